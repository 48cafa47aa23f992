"""The HTTP page that Prometheus scrapes: owns its thread and port; knows no metric."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import WSGIApplication

from phosphene.errors import SettingError
from service.settings import ListenAddress

__all__ = ["MetricsServer", "ScrapedPage"]

_IDLE_LIMIT_S = 10.0
_CONNECTION_LIMIT = 64
_CONNECTION_LIMIT_S = 60.0


@runtime_checkable
class ScrapedPage(Protocol):
    """What can be scraped."""

    @property
    def page(self) -> WSGIApplication:
        """Writes the metrics in the form that the scraper asks for."""


class _Handler(WSGIRequestHandler):
    # A connection that sends nothing must not hold its thread for ever.
    timeout = _IDLE_LIMIT_S

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: scrapes are not worth a log line."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, listen: ListenAddress, connection_limit: int, connection_limit_s: float) -> None:
        """Bind, over IPv6 where the host is such an address."""
        self._connection_limit_s = connection_limit_s
        self._begun_s: dict[socket.socket, float] = {}
        self.address_family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        self._free = threading.BoundedSemaphore(connection_limit)
        super().__init__((listen.host, listen.port), _Handler)

    def verify_request(self, request: object, client_address: object) -> bool:
        """Hang up on whoever comes while all connections are taken."""
        return self._free.acquire(blocking=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own."""
        self._begun_s[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._leave(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and leave the place to the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def service_actions(self) -> None:
        """Hang up on whoever takes too long: one that sends a byte now and then is never idle."""
        begun_before_s = time.monotonic() - self._connection_limit_s
        for request, begun_s in list(self._begun_s.items()):
            if begun_s <= begun_before_s:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def _leave(self, request: socket.socket) -> None:
        del self._begun_s[request]
        self._free.release()

    def server_bind(self) -> None:
        """Bind without looking up the host's name, which can take seconds where there is no resolver."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a scraper that hangs up harms nobody."""


class MetricsServer:
    """Shows a page on a port; an async context manager that owns both."""

    def __init__(
        self,
        metrics: ScrapedPage,
        listen: ListenAddress,
        *,
        connection_limit: int = _CONNECTION_LIMIT,
        connection_limit_s: float = _CONNECTION_LIMIT_S,
    ) -> None:
        """Keep what to show, where, and on how many connections at a time, each for how long: each has a thread."""
        self._metrics = metrics
        self._listen = listen
        self._connection_limit = connection_limit
        self._connection_limit_s = connection_limit_s
        self.address = listen
        """The bound address, once entered."""

    async def __aenter__(self) -> Self:
        """Bind the port and answer scrapes; raises `SettingError` where the port is taken."""
        try:
            self._server = _Server(self._listen, self._connection_limit, self._connection_limit_s)
        except OSError as error:
            raise SettingError(
                f"PHOSPHENE_METRICS_LISTEN is {self._listen}, which cannot be bound ({error.strerror}); "
                "end the process that holds it, or choose another port"
            ) from error
        self._server.set_app(self._metrics.page)
        self._thread = threading.Thread(target=self._server.serve_forever, name="phosphene-metrics", daemon=True)
        self._thread.start()
        self.address = ListenAddress(host=self._listen.host, port=self._server.server_port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop answering and free the port."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        self._thread.join()
