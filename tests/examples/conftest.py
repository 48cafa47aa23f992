"""A real service process over fakes, its images, and a scripted service for what a real one does rarely."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.real_process import real_process
from tests.examples.scripted_service import Certificate, ScriptedService, make_certificate, scripted
from tests.fakes import CORPUS


@pytest.fixture(scope="session")
def real_service(root: Path) -> Iterator[str]:
    """The address of `python -m service` over fakes, in a process of its own."""
    with real_process(root) as running:
        yield running.address


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose strongest neurons are red (0.98) and brightness."""
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    path.write_bytes(CORPUS["red-1"])
    return path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH to make a certificate with")
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text("s3cret\n")
    return path


@pytest.fixture(scope="session")
def guarded_service(
    root: Path, certificate: Certificate, token_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a real process that speaks TLS and asks for the token."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"examples {hashlib.sha256(token_file.read_bytes().strip()).hexdigest()}\n")
    with real_process(
        root,
        PHOSPHENE_TLS_CERTIFICATE=str(certificate.chain),
        PHOSPHENE_TLS_KEY=str(certificate.key),
        PHOSPHENE_TOKENS_FILE=str(tokens),
    ) as running:
        yield running.address.replace("127.0.0.1", "localhost")


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    with scripted() as running:
        yield running


@pytest.fixture
def tls_service(certificate: Certificate) -> Iterator[ScriptedService]:
    with scripted(certificate) as running:
        yield running
