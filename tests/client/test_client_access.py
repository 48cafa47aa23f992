"""Tokens and TLS: who is told what, over which kind of channel, and what is refused before anything is sent."""

import asyncio
import hashlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from phosphene.client import AdminClient, AsyncClient, Client
from phosphene.client.access import access_to, read_token
from phosphene.client.command import main
from phosphene.errors import PermissionDenied, ServiceUnreachable, SettingError, Unauthenticated
from tests.client.fake_service import FakeService
from tests.service.conftest import ANY_PORT, SETTINGS, serving

TOKEN = "sesame-1234"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A chain and a key for this machine, which vouch for themselves."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH to make certificates with")
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        + ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        + ["-keyout", str(key), "-out", str(chain)],
        check=True,
        capture_output=True,
    )
    return chain, key


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A tokens file of the service: one that may ask, one that may operate."""
    path = tmp_path / "tokens"
    lines = [(TOKEN, "ann", ""), ("root-1234", "root", " admin")]
    path.write_text("".join(f"{name} {hashlib.sha256(t.encode()).hexdigest()}{mark}\n" for t, name, mark in lines))
    return path


@pytest.mark.parametrize(
    "address", ["localhost:65536", "dns:///localhost:99999", "ipv6:%5B::1%5D:100000", "h:" + "9" * 5000]
)
def test_a_port_that_grpc_would_take_for_another_is_refused(address: str) -> None:
    with pytest.raises(SettingError, match="the highest port is 65535"):
        access_to(address, token=TOKEN, tls=True)


@pytest.mark.parametrize("address", ["localhost:65535", "localhost", "::1", "unix:/run/p:99999", "dns:///h:50051"])
def test_other_addresses_are_left_to_grpc(address: str) -> None:
    access_to(address)


async def test_a_token_travels_with_every_call(service: FakeService) -> None:
    with Client(service.address, token=TOKEN) as client:
        client.model()
        list(client.explain_images([b"\xff\xd8"]))
    async with AsyncClient(service.address, token=TOKEN) as client:
        await client.model()
        assert [position async for position, _ in client.explain_images([b"\xff\xd8"])] == [0]
    with Client(service.address) as client:
        client.model()
    said = [metadata.get("authorization") for metadata in service.metadata]
    assert said == [f"Bearer {TOKEN}"] * 4 + [None]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1", "dns:///localhost:1", "ipv4:127.0.0.1:1"),
        *("ipv6:[::1]:1", "ipv6:%5B::1%5D:1", "unix:/run/x.sock", "unix-abstract:x"),
    ],
)
def test_a_token_stays_on_this_machine_without_tls(address: str) -> None:
    allowed = access_to(address, token=TOKEN)
    assert allowed.metadata == (("authorization", f"Bearer {TOKEN}"),)
    assert ("grpc.enable_http_proxy", 0) in allowed.channel_options


async def test_a_proxy_of_the_environment_is_not_for_this_machine(
    service: FakeService, deserted_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{deserted_address}")
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for access in ({}, {"token": TOKEN}):
        with Client(service.address, retries=0, **access) as client:
            client.model()
        async with AsyncClient(service.address, retries=0, **access) as client:
            await client.model()
    assert access_to("10.0.0.1:1").channel_options == ()


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1:1", "example.org:1", "localhost.example.org:1", "127.0.0.1.example.org:1", "0.0.0.0:1", ""),
        *("ipv4:127.0.0.1:1,10.0.0.1:1", "ipv4:10.0.0.1:1,127.0.0.1:1", "dns://10.0.0.1/localhost:1"),
        *("xds:///localhost", "[2001:db8::1]:1", "passthrough:///10.0.0.1:1"),
    ],
)
def test_a_token_is_not_sent_in_clear_to_another_machine(address: str) -> None:
    with pytest.raises(SettingError, match="would travel in clear") as caught:
        Client(address, token=TOKEN)
    assert TOKEN not in str(caught.value)
    access_to(address, token=TOKEN, tls=True)
    access_to(address)


@pytest.mark.parametrize("token", ["", " ", "two words", "line\nbreak", "é", "x" * 513])
def test_what_no_metadata_can_hold_is_no_token(token: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="printable ASCII"):
        access_to("localhost:1", token=token)
    path = tmp_path / "token"
    path.write_text(token, encoding="utf-8")
    with pytest.raises(SettingError, match="does not hold one token"):
        read_token(path)


def test_a_token_file_may_end_its_line(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert read_token(path) == TOKEN
    with pytest.raises(SettingError, match="cannot be read"):
        read_token(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ca": "x.pem"}, "ca is set and tls is not"),
        ({"tls": True, "ca": "no/such.pem"}, "ca is 'no/such.pem', which cannot be read"),
        ({"tls": True, "ca": __file__}, "holds no PEM block of a certificate"),
        ({"tls": True, "certificate": "x.pem"}, "go together"),
        ({"tls": True, "key": "x.pem"}, "go together"),
        ({"credentials": grpc.ssl_channel_credentials(), "tls": True, "ca": "x"}, "credentials is set beside tls, ca"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Client("localhost:1", **options)


def secured(certificate: tuple[Path, Path], tokens: Path, *, client_ca: Path | None = None) -> Any:
    chain, key = certificate
    return replace(
        SETTINGS,
        network=replace(SETTINGS.network, admin_listen=ANY_PORT),
        security=replace(SETTINGS.security, certificate=chain, key=key, tokens=tokens, client_ca=client_ca),
    )


async def test_the_service_lets_in_who_shows_a_token_over_tls(certificate: tuple[Path, Path], tokens: Path) -> None:
    chain, _ = certificate
    async with serving(settings=secured(certificate, tokens)) as running:
        address = str(running.address)
        async with AsyncClient(address, token=TOKEN, tls=True, ca=chain) as client:
            assert (await client.model()).bundle
        async with AsyncClient(address, token="another", tls=True, ca=chain) as client:
            with pytest.raises(Unauthenticated, match="one that it does not know"):
                await client.model()
            with pytest.raises(Unauthenticated, match="one that it does not know"):
                async for _ in client.explain_images([b"\xff\xd8"]):
                    pass
        async with AsyncClient(address, token=TOKEN, tls=True, retries=0) as client:
            with pytest.raises(ServiceUnreachable):
                await client.model()


async def test_the_service_lets_in_who_shows_a_certificate(certificate: tuple[Path, Path], tokens: Path) -> None:
    chain, key = certificate
    async with serving(settings=secured(certificate, tokens, client_ca=chain)) as running:
        options: dict[str, Any] = {"token": TOKEN, "tls": True, "ca": chain}
        async with AsyncClient(str(running.address), certificate=chain, key=key, **options) as client:
            assert (await client.model()).bundle
        async with AsyncClient(str(running.address), retries=0, **options) as client:
            with pytest.raises(ServiceUnreachable):
                await client.model()


async def test_operators_ask_with_their_own_token(
    certificate: tuple[Path, Path], tokens: Path, tmp_path: Path, capsys
) -> None:
    chain, _ = certificate
    root = tmp_path / "root"
    root.write_text("root-1234\n")
    async with serving(settings=secured(certificate, tokens)) as running:
        address = str(running.admin_address)

        def refused() -> None:
            with AdminClient(address, token=TOKEN, tls=True, ca=chain) as client, pytest.raises(PermissionDenied):
                client.status()

        await asyncio.to_thread(refused)
        access = ["--address", address, "--token-file", str(root), "--tls", "--ca", str(chain)]

        async def said(action: str) -> str:
            assert await asyncio.to_thread(main, ["admin", action, *access]) == 0
            return capsys.readouterr().out

        assert (await said("status")).startswith("serving generation ")
        assert (await said("reload")).startswith("nothing has changed, still serving generation ")
        assert not running.stop.is_set()
        assert await said("drain") == "draining; accepted work may take 5.00 s\n"
        assert running.stop.is_set()


def test_no_admin_port_ends_with_1(deserted_address: str, capsys) -> None:
    assert main(["admin", "status", "--address", deserted_address]) == 1
    assert deserted_address in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["models", "--server", "10.0.0.1:1"], "would travel in clear"),
        (["admin", "status", "--address", "10.0.0.1:1"], "would travel in clear"),
    ],
)
def test_what_access_refuses_ends_with_2(arguments: list[str], said: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    assert main([*arguments, "--token-file", str(path)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert TOKEN not in err
