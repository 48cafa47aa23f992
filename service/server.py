"""The gRPC server: its port, message limits, health, reflection, and a graceful end."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from phosphene.errors import SettingError
from phosphene.v1 import service_pb2, service_pb2_grpc
from service.answers import Answers
from service.interceptor import AnswerInterceptor
from service.servicers import PhospheneServicer
from service.settings import ListenAddress

__all__ = ["MESSAGE_OVERHEAD_BYTES", "METHODS", "SERVICE", "Port", "Server"]

_DESCRIPTOR = service_pb2.DESCRIPTOR.services_by_name["PhospheneService"]
SERVICE: str = _DESCRIPTOR.full_name
"""Full name of the service, for health checks."""
METHODS: tuple[str, ...] = tuple(method.name for method in _DESCRIPTOR.methods)
"""Names of its methods."""
MESSAGE_OVERHEAD_BYTES = 2**20
"""What a message may hold beside one image."""


class Port:
    """A bound port with a gRPC server behind it that does not answer yet; an async context manager that frees it.

    Bound before bundles are loaded, so that a taken port is told at once.
    """

    def __init__(self, listen: ListenAddress, *, message_limit_bytes: int, interceptor: AnswerInterceptor) -> None:
        """Prepare the port.

        Args:
            listen: where; port 0 picks a free one.
            message_limit_bytes: most bytes of a request and of a reply.
            interceptor: goes around every method.
        """
        self._listen = listen
        self.grpc_server = grpc.aio.server(
            interceptors=[interceptor],
            options=[
                ("grpc.max_receive_message_length", message_limit_bytes),
                ("grpc.max_send_message_length", message_limit_bytes),
                ("grpc.so_reuseport", 0),
            ],
        )
        self.address = listen
        """The bound address, once entered."""

    async def __aenter__(self) -> Self:
        """Bind; raises `SettingError` where the port is taken."""
        try:
            port: int = self.grpc_server.add_insecure_port(str(self._listen))
        except RuntimeError:
            port = 0
        if not port:
            raise SettingError(
                f"PHOSPHENE_LISTEN is {self._listen}, which cannot be bound: the port is in use or the address is not "
                "this machine's; end the process that holds it, or choose another"
            )
        self.address = ListenAddress(host=self._listen.host, port=port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Free the port; a server that was drained is closed already."""
        await self.grpc_server.stop(None)


class Server:
    """Answers on a port; NOT_SERVING to health checks until `open_for_business`."""

    def __init__(self, port: Port, answers: Answers, *, drain_s: float, clock: Callable[[], float]) -> None:
        """Prepare the server.

        Args:
            port: where it listens, bound.
            answers: what answers.
            drain_s: seconds that accepted work may take on leaving.
            clock: monotonic seconds, for deadlines.
        """
        self._grpc_server = port.grpc_server
        self._answers = answers
        self._drain_s = drain_s
        self._clock = clock
        self._health = HealthServicer()

    async def __aenter__(self) -> Self:
        """Begin to answer."""
        servicer = PhospheneServicer(self._answers, clock=self._clock)
        service_pb2_grpc.add_PhospheneServiceServicer_to_server(servicer, self._grpc_server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc_server)
        names = [SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._grpc_server)
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._grpc_server.start()
        return self

    async def open_for_business(self) -> None:
        """Say SERVING to health checks."""
        await self._say(health_pb2.HealthCheckResponse.SERVING)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Say NOT_SERVING, refuse new calls, and give accepted ones `drain_s` seconds to end."""
        await self._health.enter_graceful_shutdown()
        await self._grpc_server.stop(self._drain_s)

    async def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in (health.OVERALL_HEALTH, SERVICE):
            await self._health.set(name, status)
