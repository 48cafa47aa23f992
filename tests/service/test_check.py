"""`python -m service check`: says what would be served, and every fault of what would not."""

import asyncio
import re
import shutil
import subprocess
from contextlib import asynccontextmanager

import pytest

from phosphene.errors import ArtefactMissing
from service.catalogue import Catalogue
from service.check import _served, check
from tests.fakes import CORPUS, FakeEngine, FakeReader, fake_entry


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("PHOSPHENE_BUNDLES", "colours=unused")
    return monkeypatch


@asynccontextmanager
async def open_fakes(before):
    yield Catalogue([fake_entry(FakeEngine())])


def test_what_would_be_served_is_said(environment, capsys):
    assert check(lambda settings: open_fakes) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    assert any("bundle 'colours': 6 neurons" in line for line in lines)
    assert any("index 'swatches' of 'colours': 6 images" in line for line in lines)


def test_every_fault_is_told(environment, tmp_path, capsys):
    @asynccontextmanager
    async def open_nothing(before):
        raise ArtefactMissing("no artefact at 'unused'")
        yield

    environment.setenv("PHOSPHENE_TOKENS_FILE", str(tmp_path / "none"))
    environment.setenv("PHOSPHENE_TLS_CERTIFICATE", str(tmp_path / "none"))
    environment.setenv("PHOSPHENE_TLS_KEY", str(tmp_path / "none"))
    assert check(lambda settings: open_nothing) == 2
    said = capsys.readouterr().out
    assert "FAULT  tls: PHOSPHENE_TLS_CERTIFICATE" in said
    assert "FAULT  callers: PHOSPHENE_TOKENS_FILE" in said
    assert "FAULT  artefacts: no artefact at 'unused'" in said


def test_bad_settings_are_told(environment, capsys):
    environment.setenv("PHOSPHENE_BATCH_IMAGES", "0")
    assert check(lambda settings: pytest.fail("opened")) == 2
    assert "FAULT  settings: PHOSPHENE_BATCH_IMAGES is '0'" in capsys.readouterr().out


def test_a_key_of_another_certificate_is_told(environment, tmp_path, capsys):
    """The service itself would say no more than that the port cannot be bound."""
    make_certificates(tmp_path, "one", "other")
    environment.setenv("PHOSPHENE_TLS_CERTIFICATE", str(tmp_path / "one"))
    for key, status, said in (("one", 0, "ok     tls"), ("other", 2, "FAULT  tls")):
        environment.setenv("PHOSPHENE_TLS_KEY", str(tmp_path / f"{key}.key"))
        assert check(lambda settings: open_fakes) == status
        assert said in capsys.readouterr().out


def test_a_client_ca_that_is_damaged_is_told(environment, tmp_path, capsys):
    make_certificates(tmp_path, "one", "clients")
    damaged = tmp_path / "damaged"
    damaged.write_text("-----BEGIN CERTIFICATE-----\ngarbage\n-----END CERTIFICATE-----\n")
    environment.setenv("PHOSPHENE_TLS_CERTIFICATE", str(tmp_path / "one"))
    environment.setenv("PHOSPHENE_TLS_KEY", str(tmp_path / "one.key"))
    environment.setenv("PHOSPHENE_TLS_CLIENT_CA", str(tmp_path / "clients"))
    assert check(lambda settings: open_fakes) == 0
    assert "certificates asked of clients (mTLS)" in capsys.readouterr().out
    environment.setenv("PHOSPHENE_TLS_CLIENT_CA", str(damaged))
    assert check(lambda settings: open_fakes) == 2
    assert f"FAULT  tls: PHOSPHENE_TLS_CLIENT_CA is {str(damaged)!r}" in capsys.readouterr().out


def make_certificates(folder, *names):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH to make certificates with")
    for name in names:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            + ["-days", "2", "-subj", f"/CN={name}", "-keyout", folder / f"{name}.key", "-out", folder / name],
            check=True,
            capture_output=True,
        )


def test_a_model_that_gives_no_numbers_is_told(environment, capsys):
    @asynccontextmanager
    async def open_broken(before):
        engine = FakeEngine()
        engine.is_nan = lambda pixels: True
        yield Catalogue([fake_entry(engine)])

    assert check(lambda settings: open_broken) == 2
    assert "FAULT  artefacts: encoder 'fake' gave NaN" in capsys.readouterr().out


def test_a_redis_that_is_away_is_a_warning(environment, capsys):
    async def closed_port():
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        return port

    environment.setenv("PHOSPHENE_REDIS_URL", f"redis://:word@127.0.0.1:{asyncio.run(closed_port())}/0")
    assert check(lambda settings: open_fakes) == 0
    said = capsys.readouterr()
    assert re.search(r"^WARN   redis: .*Connect call failed", said.out, re.MULTILINE)
    assert "word" not in said.out
    assert said.err == ""


def test_what_is_hidden_and_how_neurons_are_called_is_said():
    reader = FakeReader(CORPUS)
    reader.tombstones_id, reader.flags_id, reader.names_id = "down", "flagged", "named"
    (line,) = [line for line in _served(Catalogue([fake_entry(FakeEngine(), reader=reader)])) if "index" in line]
    assert line.endswith(", tombstones down, flags flagged, names named")
