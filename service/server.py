"""The gRPC server: its port, message limits, health, reflection, and a graceful end; an async context manager."""

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
from service.metrics import Metrics
from service.servicers import PhospheneServicer
from service.settings import ListenAddress

__all__ = ["METHODS", "SERVICE", "Server"]

_DESCRIPTOR = service_pb2.DESCRIPTOR.services_by_name["PhospheneService"]
SERVICE: str = _DESCRIPTOR.full_name
"""Full name of the service, for health checks."""
METHODS: tuple[str, ...] = tuple(method.name for method in _DESCRIPTOR.methods)
"""Names of its methods."""
_MESSAGE_OVERHEAD_BYTES = 2**20


class Server:
    """Listens and answers; NOT_SERVING to health checks until `open_for_business`."""

    def __init__(
        self,
        answers: Answers,
        *,
        listen: ListenAddress,
        drain_s: float,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        """Prepare the server.

        Args:
            answers: what answers.
            listen: where; port 0 picks a free one.
            drain_s: seconds that accepted work may take on leaving.
            metrics: told of requests.
            clock: monotonic seconds.
        """
        self._answers = answers
        self._listen = listen
        self._drain_s = drain_s
        self._metrics = metrics
        self._clock = clock
        self._health = HealthServicer()
        self.address = listen
        """The bound address, once entered."""

    async def __aenter__(self) -> Self:
        """Bind the port and answer; raises `SettingError` where the port is taken."""
        message_limit_bytes = self._answers.limits.file_bytes + _MESSAGE_OVERHEAD_BYTES
        self._server = grpc.aio.server(
            interceptors=[AnswerInterceptor(service=SERVICE, metrics=self._metrics, clock=self._clock)],
            options=[
                ("grpc.max_receive_message_length", message_limit_bytes),
                ("grpc.max_send_message_length", message_limit_bytes),
                ("grpc.so_reuseport", 0),
            ],
        )
        service_pb2_grpc.add_PhospheneServiceServicer_to_server(
            PhospheneServicer(self._answers, clock=self._clock), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection([SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        self.address = ListenAddress(host=self._listen.host, port=self._bind())
        await self._server.start()
        return self

    async def open_for_business(self) -> None:
        """Say SERVING to health checks."""
        await self._say(health_pb2.HealthCheckResponse.SERVING)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Say NOT_SERVING, refuse new calls, and give accepted ones `drain_s` seconds to end."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._drain_s)

    async def _say(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in (health.OVERALL_HEALTH, SERVICE):
            await self._health.set(name, status)

    def _bind(self) -> int:
        try:
            port: int = self._server.add_insecure_port(str(self._listen))
        except RuntimeError:
            port = 0
        if not port:
            raise SettingError(
                f"PHOSPHENE_LISTEN is {self._listen}, which cannot be bound: the port is in use or the address is not "
                "this machine's; end the process that holds it, or choose another"
            )
        return port
