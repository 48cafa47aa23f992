import socket
from collections.abc import Iterator

import pytest

from phosphene.client import Client
from tests.client.fake_service import FakeService, serving


@pytest.fixture
def service() -> Iterator[FakeService]:
    with serving(FakeService()) as served:
        yield served


@pytest.fixture
def client(service: FakeService) -> Iterator[Client]:
    with Client(service.address, timeout_s=10) as opened:
        yield opened


@pytest.fixture
def deserted_address() -> Iterator[str]:
    """An address that is bound, so that nobody else takes it, and not listened at."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"
