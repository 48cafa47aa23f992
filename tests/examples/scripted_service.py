"""The scripted service of tests/client on a port with TLS or without; remembers the metadata of each call."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from phosphene.v1.service_pb2_grpc import add_PhospheneServiceServicer_to_server
from tests.client.fake_service import Failure, FakeService


@dataclass
class ScriptedService(FakeService):
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)

    def _begin(self, request: Any, context: Any) -> None:
        self.metadata.append(dict(context.invocation_metadata()))
        super()._begin(request, context)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate for localhost that vouches for itself."""

    chain: Path
    key: Path


def full(retry_after_s: float) -> Failure:
    """The refusal of a service that is full and says for how long."""
    delay = Duration(nanos=round(retry_after_s % 1 * 1e9), seconds=int(retry_after_s))
    return Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (error_details_pb2.RetryInfo(retry_delay=delay),))


def make_certificate(folder: Path, name: str = "localhost") -> Certificate:
    made = Certificate(chain=folder / f"{name}.crt", key=folder / f"{name}.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        + ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
        + ["-keyout", str(made.key), "-out", str(made.chain)],
        check=True,
        capture_output=True,
    )
    return made


@contextmanager
def scripted(certificate: Certificate | None = None) -> Iterator[ScriptedService]:
    """Serve on a free port of the loopback interface, told in `address`."""
    service = ScriptedService()
    with ThreadPoolExecutor(max_workers=4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        add_PhospheneServiceServicer_to_server(service, server)
        if certificate is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            pair = (certificate.key.read_bytes(), certificate.chain.read_bytes())
            port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        service.address = f"localhost:{port}"
        server.start()
        try:
            yield service
        finally:
            server.stop(grace=None).wait()
