"""The health probe against the real server, in the clear and with TLS, and as the process that a container runs."""

import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from phosphene.errors import SettingError
from service.health_probe import Target, probe, target_of
from service.settings import ListenAddress, read_settings
from tests.deploy.real_process import real_process, without_settings

BUNDLES = {"PHOSPHENE_BUNDLES": "colours=unused"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for phosphene.test that vouches for itself: its file, and its key's."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        + ["-subj", "/CN=phosphene.test", "-addext", "subjectAltName=DNS:phosphene.test"]
        + ["-keyout", str(key), "-out", str(chain)],
        check=True,
        capture_output=True,
    )
    return chain, key


@contextmanager
def health_server(status=health_pb2.HealthCheckResponse.SERVING, *, certificate=None, asks_for_client=False):
    """A gRPC server with this health; gives its address."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        servicer = health.HealthServicer()
        servicer.set("", status)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        if certificate is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            chain, key = (file.read_bytes() for file in certificate)
            credentials = grpc.ssl_server_credentials(
                [(key, chain)], chain if asks_for_client else None, asks_for_client
            )
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield ListenAddress(host="127.0.0.1", port=port)
        finally:
            server.stop(grace=None).wait()


def test_a_wildcard_is_probed_on_loopback_and_tls_comes_along():
    plain = target_of(read_settings({**BUNDLES, "PHOSPHENE_LISTEN": "0.0.0.0:7", "PHOSPHENE_ALLOW_PLAINTEXT": "yes"}))
    assert plain == Target(address=ListenAddress(host="127.0.0.1", port=7))
    tls = {"PHOSPHENE_LISTEN": "[::]:7", "PHOSPHENE_TLS_CERTIFICATE": "/tls.crt", "PHOSPHENE_TLS_KEY": "/tls.key"}
    seen = target_of(read_settings({**BUNDLES, **tls}), server_name="a.test")
    assert (str(seen.address), str(seen.certificate), seen.key, seen.server_name) == (
        "[::1]:7",
        "/tls.crt",
        None,
        "a.test",
    )
    mutual = target_of(read_settings({**BUNDLES, **tls, "PHOSPHENE_TLS_CLIENT_CA": "/ca.crt"}))
    assert str(mutual.key) == "/tls.key"


def test_a_port_that_is_chosen_at_start_cannot_be_probed():
    with pytest.raises(SettingError, match="PHOSPHENE_LISTEN is 127.0.0.1:0"):
        target_of(read_settings({**BUNDLES, "PHOSPHENE_LISTEN": "127.0.0.1:0"}))


def test_what_the_server_says_decides():
    with health_server() as address:
        assert probe(Target(address=address)) is None
    assert "answers UNAVAILABLE" in probe(Target(address=address))
    with health_server(health_pb2.HealthCheckResponse.NOT_SERVING) as address:
        assert probe(Target(address=address)) == f"{address} says NOT_SERVING"


def test_a_server_that_does_not_answer_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        fault = probe(Target(address=ListenAddress(host=host, port=port)), timeout_s=0.2)
    assert "answers DEADLINE_EXCEEDED" in fault


@pytest.mark.parametrize("asks_for_client", [False, True])
def test_tls_is_checked_against_the_services_own_certificate(certificate, asks_for_client):
    chain, key = certificate
    with health_server(certificate=certificate, asks_for_client=asks_for_client) as address:
        target = Target(
            address=address, certificate=chain, key=key if asks_for_client else None, server_name="phosphene.test"
        )
        assert probe(target) is None
        assert "UNAVAILABLE" in probe(replace(target, server_name="other.test"))
        assert "UNAVAILABLE" in probe(Target(address=address))


def test_as_a_container_runs_it_beside_the_real_process(root, certificate, tmp_path):
    chain, key = certificate
    tokens = tmp_path / "tokens"
    tokens.write_text(f"somebody {'0' * 64}\n")
    guarded = {
        "PHOSPHENE_TLS_CERTIFICATE": str(chain),
        "PHOSPHENE_TLS_KEY": str(key),
        "PHOSPHENE_TOKENS_FILE": str(tokens),
    }

    def run(**variables):
        command = [sys.executable, "-m", "service.health_probe", "--server-name", "phosphene.test"]
        environment = without_settings() | BUNDLES | variables
        done = subprocess.run(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        return done.returncode, done.stderr

    with real_process(root, **guarded) as running:
        assert run(PHOSPHENE_LISTEN=running.address, **guarded) == (0, "")
        assert run(PHOSPHENE_LISTEN=running.address)[0] == 1
        assert run(PHOSPHENE_LISTEN=running.address, PHOSPHENE_DRAIN_S="long")[0] == 1
    status, errors = run(PHOSPHENE_LISTEN=running.address, **guarded)
    assert status == 1
    assert errors.startswith(f"health probe: {running.address} answers UNAVAILABLE")


def test_it_imports_no_torch(root):
    program = "import sys, service.health_probe; sys.exit(sorted({'torch', 'numpy', 'PIL'} & sys.modules.keys()) or 0)"
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
