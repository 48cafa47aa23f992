"""The gRPC servers: ports, limits of connections and messages, health, reflection, and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from phosphene.errors import SettingError
from phosphene.v1 import admin_pb2, admin_pb2_grpc, service_pb2, service_pb2_grpc
from service.answer_size import ANSWER_LIMIT_BYTES
from service.interceptor import AnswerInterceptor
from service.settings import ListenAddress

__all__ = [
    "ADMIN_METHODS",
    "ADMIN_SERVICE",
    "MESSAGE_OVERHEAD_BYTES",
    "METHODS",
    "SERVICE",
    "AdminServer",
    "Port",
    "Server",
]

_DESCRIPTOR = service_pb2.DESCRIPTOR.services_by_name["PhospheneService"]
SERVICE: str = _DESCRIPTOR.full_name
"""Full name of the service, for health checks."""
METHODS: tuple[str, ...] = tuple(method.name for method in _DESCRIPTOR.methods)
"""Names of its methods."""
_ADMIN_DESCRIPTOR = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
ADMIN_SERVICE: str = _ADMIN_DESCRIPTOR.full_name
"""Full name of the operators' service."""
ADMIN_METHODS: tuple[str, ...] = tuple(method.name for method in _ADMIN_DESCRIPTOR.methods)
"""Names of its methods."""
MESSAGE_OVERHEAD_BYTES = 2**20
"""What a message may hold beside one image."""
_METADATA_LIMIT_BYTES = 16 * 1024
_HANDSHAKE_LIMIT_MS = 10_000
_KEEPALIVE_MS = 30_000
_KEEPALIVE_ANSWER_MS = 10_000
_LEAST_PING_INTERVAL_MS = 10_000
_AGE_GRACE_MS = 60_000
_PENDING_CALLS = 10_000
# For answers that are made and on their way out.
_LAST_WORDS_S = 0.5


class _Undelivered(logging.Filter):
    """gRPC's own word on an answer that it could not send: a warning without a traceback.

    Nearly always the caller had hung up, or its deadline had passed, in the moment in which the answer was ready.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, that one in other words."""
        if record.exc_info and record.exc_info[0] is not None and record.exc_info[0].__name__ == "ExecuteBatchError":
            record.__dict__["fields"] = {"reason": record.getMessage()}
            record.msg, record.args, record.exc_info = "answer not delivered", (), None
            record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
        return True


_GRPC_LOGGER = logging.getLogger("grpc._cython.cygrpc")
_UNDELIVERED = _Undelivered()


class Port:
    """A bound port with a gRPC server behind it that does not answer yet; an async context manager that frees it.

    Bound before bundles are loaded, so that a taken port is told at once.
    """

    def __init__(
        self,
        listen: ListenAddress,
        *,
        message_limit_bytes: int,
        interceptor: AnswerInterceptor,
        credentials: grpc.ServerCredentials | None = None,
        connection_streams: int = 256,
        connection_age_s: float = 0.0,
        setting: str = "PHOSPHENE_LISTEN",
        answer_limit_bytes: int = ANSWER_LIMIT_BYTES,
    ) -> None:
        """Prepare the port.

        Args:
            listen: where; port 0 picks a free one.
            message_limit_bytes: most bytes of a request.
            interceptor: goes around every method.
            credentials: TLS; None: plaintext.
            connection_streams: most open calls of one connection.
            connection_age_s: after which a connection is asked to come anew; 0: never.
            setting: the variable that says where, for messages.
            answer_limit_bytes: most bytes of an answer; the interceptor says so of its own first.
        """
        self._listen = listen
        self._credentials = credentials
        self._setting = setting
        # No `maximum_concurrent_rpcs`: it counts calls whose message has not come, so idle connections could fill it.
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", message_limit_bytes),
            ("grpc.max_send_message_length", answer_limit_bytes),
            ("grpc.max_metadata_size", _METADATA_LIMIT_BYTES),
            ("grpc.absolute_max_metadata_size", _METADATA_LIMIT_BYTES),
            ("grpc.max_concurrent_streams", connection_streams),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_LIMIT_MS),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_ANSWER_MS),
            ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_INTERVAL_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.so_reuseport", 0),
            # It counts calls that are over but not yet forgotten, and so refuses callers who keep to the limit.
            ("grpc.http.overload_protection", 0),
            # A flood of calls that are reset at once is worked off; by default anybody's calls would be cancelled.
            ("grpc.server.max_pending_requests", _PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
        ]
        if connection_age_s:
            options += [
                ("grpc.max_connection_age_ms", round(1000 * connection_age_s)),
                ("grpc.max_connection_age_grace_ms", _AGE_GRACE_MS),
            ]
        self.interceptor = interceptor
        _GRPC_LOGGER.addFilter(_UNDELIVERED)
        self.grpc_server = grpc.aio.server(options=options)
        self.address = listen
        """The bound address, once entered."""

    async def __aenter__(self) -> Self:
        """Bind; raises `SettingError` where the port is taken or the TLS files do not go together."""
        try:
            port: int = (
                self.grpc_server.add_insecure_port(str(self._listen))
                if self._credentials is None
                else self.grpc_server.add_secure_port(str(self._listen), self._credentials)
            )
        except RuntimeError:
            port = 0
        if not port:
            tls = "" if self._credentials is None else ", or certificate and key do not go together"
            raise SettingError(
                f"{self._setting} is {self._listen}, which cannot be bound: the port is in use, the address is not "
                f"this machine's{tls}; end the process that holds it, or choose another"
            )
        self.address = ListenAddress(host=self._listen.host, port=port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Free the port; a server that was drained is closed already."""
        await self.grpc_server.stop(None)


class Server:
    """Answers on a port; NOT_SERVING to health checks until `say_serving(True)`."""

    def __init__(self, port: Port, servicer: service_pb2_grpc.PhospheneServiceServicer, *, drain_s: float) -> None:
        """Prepare the server.

        Args:
            port: where it listens, bound.
            servicer: answers.
            drain_s: seconds that accepted work may take on leaving.
        """
        self._grpc_server = port.grpc_server
        # Generated code asks for a whole server, and uses this much of it.
        self._methods: Any = _Methods(port.grpc_server, port.interceptor)
        self._calls = port.interceptor.calls
        self._servicer = servicer
        self._drain_s = drain_s
        self._health = HealthServicer()
        self._is_leaving = False
        self.is_serving = False
        """What health checks are told."""

    async def __aenter__(self) -> Self:
        """Begin to answer."""
        service_pb2_grpc.add_PhospheneServiceServicer_to_server(self._servicer, self._methods)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._methods)
        names = [SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME]
        _add_reflection(names, self._methods)
        await self.say_serving(False)
        await self._grpc_server.start()
        return self

    async def say_serving(self, is_serving: bool) -> None:
        """Tell health checks whether to send requests here; a server that leaves stays NOT_SERVING."""
        if self._is_leaving:
            return
        self.is_serving = is_serving
        statuses = health_pb2.HealthCheckResponse
        for name in (health.OVERALL_HEALTH, SERVICE):
            await self._health.set(name, statuses.SERVING if is_serving else statuses.NOT_SERVING)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Say NOT_SERVING, refuse new calls, and give accepted ones `drain_s` seconds to end."""
        self._is_leaving = True
        self.is_serving = False
        await self._health.enter_graceful_shutdown()
        # Not left to `stop`: it ends calls that come while it waits as CANCELLED, which tells nobody to try elsewhere,
        # and it waits for half-open calls and for who watches the health.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                await self._calls.leave()
        await self._grpc_server.stop(_LAST_WORDS_S)


class AdminServer:
    """Answers operators on a port of their own."""

    def __init__(self, port: Port, servicer: admin_pb2_grpc.AdminServiceServicer) -> None:
        """Prepare the server on a bound port."""
        self._grpc_server = port.grpc_server
        # Generated code asks for a whole server, and uses this much of it.
        self._methods: Any = _Methods(port.grpc_server, port.interceptor)
        self._servicer = servicer

    async def __aenter__(self) -> Self:
        """Begin to answer."""
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self._servicer, self._methods)
        names: Sequence[str] = (ADMIN_SERVICE, reflection.SERVICE_NAME)
        _add_reflection(names, self._methods)
        await self._grpc_server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let the answer under way end, and close."""
        await self._grpc_server.stop(1.0)


def _add_reflection(names: Sequence[str], methods: Any) -> None:
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer(names), methods)


class _Methods:
    """A server to which methods are added by name, in the interceptor, and not registered as well.

    Each registered method keeps a call of its own waiting, and with every request grpc.aio begins to wait for all of
    them anew; a tenth of the serving processor time went into that.
    """

    def __init__(self, server: grpc.aio.Server, interceptor: AnswerInterceptor) -> None:
        self._server = server
        self._interceptor = interceptor

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:  # type: ignore[type-arg]
        """Left out: the same methods come by their names as well."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:  # type: ignore[type-arg]
        wrapped = self._interceptor.wrapped(service, handlers)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
