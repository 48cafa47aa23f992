"""TLS and mTLS over a real channel, with certificates made by openssl for the test."""

import shutil
import subprocess

import grpc
import grpc.aio
import pytest

from phosphene.errors import SettingError
from phosphene.v1 import models_pb2, service_pb2_grpc
from service.security import server_credentials
from service.settings import SecuritySettings
from tests.service.conftest import serving, settings_with

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH to make certificates with")


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """An authority, and a server's and a client's certificate that it signed."""
    folder = tmp_path_factory.mktemp("pki")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority",
            "-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.pem")  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
                "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.csr")  # fmt: skip
        openssl("x509", "-req", "-in", f"{folder}/{name}.csr", "-CA", f"{folder}/ca.pem",
                "-CAkey", f"{folder}/ca.key", "-CAcreateserial", "-days", "2",
                "-extfile", f"{folder}/names", "-out", f"{folder}/{name}.pem")  # fmt: skip
    return folder


def secured(pki, **security):
    return settings_with(security={"certificate": pki / "server.pem", "key": pki / "server.key", **security})


def credentials(pki, *, as_client=False):
    pair = ((pki / "client.key").read_bytes(), (pki / "client.pem").read_bytes()) if as_client else (None, None)
    return grpc.ssl_channel_credentials((pki / "ca.pem").read_bytes(), *pair)


async def models(channel):
    stub = service_pb2_grpc.PhospheneServiceStub(channel)
    return (await stub.ListModels(models_pb2.ListModelsRequest(), timeout=10)).models


async def test_tls_is_spoken_and_plaintext_is_not(pki):
    async with serving(settings=secured(pki), credentials=credentials(pki)) as running:
        assert await models(running.channel)
        async with grpc.aio.insecure_channel(str(running.address)) as plain:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await models(plain)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_mtls_asks_for_a_certificate(pki):
    settings = secured(pki, client_ca=pki / "ca.pem")
    async with serving(settings=settings, credentials=credentials(pki, as_client=True)) as running:
        assert await models(running.channel)
        async with grpc.aio.secure_channel(str(running.address), credentials(pki)) as nameless:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await models(nameless)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "none.key"}, "PHOSPHENE_TLS_KEY"),
        ({"certificate": "names"}, "holds no PEM block"),
        ({"client_ca": "names"}, "PHOSPHENE_TLS_CLIENT_CA"),
    ],
)
def test_files_that_are_no_pem_are_named(pki, change, message):
    paths = {"certificate": "server.pem", "key": "server.key", **change}
    security = SecuritySettings(**{name: pki / file for name, file in paths.items()})
    with pytest.raises(SettingError, match=message):
        server_credentials(security)


async def test_a_key_of_another_certificate_is_refused_at_start(pki):
    with pytest.raises(SettingError, match="certificate and key do not go together"):
        async with serving(settings=secured(pki, key=pki / "client.key")):
            pass
