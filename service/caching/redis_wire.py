"""One connection to Redis, as bytes out and answers in; the only user of redis-py.

Whatever goes wrong with it, or with what came over it, is a `LinkLost`. Knows nothing of questions and their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio.connection import Connection, parse_url
from redis.exceptions import RedisError, ResponseError

from phosphene.errors import SettingError

__all__ = ["LinkLost", "RedisAddress", "RedisWire", "ServerError"]


class LinkLost(Exception):
    """The connection is of no use any more; never leaves the files named redis_*."""


@dataclass(frozen=True)
class ServerError:
    """Redis answered with an error."""

    reason: str


class RedisWire:
    """A connection that is opened once and never again."""

    def __init__(self, connection: Connection) -> None:
        """Take over a connection that is not open yet."""
        self._connection = connection

    async def open(self) -> None:
        """Connect, agree on TLS, authenticate and choose the database; raises `LinkLost`."""
        try:
            await self._connection.connect()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise LinkLost(_text(error)) from error

    def pack(self, *words: bytes | str | int) -> list[bytes]:
        """A command as bytes to send; the first word holds no space."""
        return self._connection.pack_command(*words)

    async def send(self, packed: list[bytes]) -> None:
        """Send packed commands; raises `LinkLost`."""
        try:
            await self._connection.send_packed_command(packed, check_health=False)
        except Exception as error:
            raise LinkLost(_text(error)) from error

    async def receive(self) -> Sequence[Any] | bytes | int | ServerError | None:
        """The next answer, however long it takes; raises `LinkLost`."""
        try:
            answer: Sequence[Any] | bytes | int | None = await self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return ServerError(_text(error))
        # Anything: redis-py may stumble over bytes that are no answer in ways that it does not name.
        except Exception as error:
            raise LinkLost(_text(error)) from error
        return answer

    def abort(self) -> None:
        """Close without waiting for a peer that may never read what is still unsent."""
        writer = self._connection._writer
        if writer is not None:
            writer.transport.abort()
            self._connection._close()  # type: ignore[no-untyped-call]


class RedisAddress:
    """Where Redis is; its text holds no password."""

    def __init__(self, url: str, *, connect_s: float) -> None:
        """Read a URL.

        Args:
            url: `redis://`, `rediss://` (TLS) or `unix://`, with user, password and database as redis-py reads them.
            connect_s: seconds that a connection may take to come about.

        Raises:
            SettingError: it is none; the message does not repeat it, for it may hold a password.
        """
        try:
            options: dict[str, Any] = dict(parse_url(url))
            self._kind: type[Connection] = options.pop("connection_class", Connection)
            # After the URL's own: what the wire is built on is not the URL's to choose.
            options.update(
                protocol=2,
                decode_responses=False,
                socket_timeout=None,
                socket_connect_timeout=connect_s,
                health_check_interval=0,
                driver_info=None,
            )
            self._options = options
            self.wire()
            parts = urlsplit(url)
        except (ValueError, TypeError, AttributeError, RedisError):
            raise SettingError(
                "PHOSPHENE_REDIS_URL is no URL of a Redis; write redis://host:port/database, rediss:// for TLS, or"
                " unix://path, with :password@ before the host where there is one"
            ) from None
        self._text = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def __str__(self) -> str:
        """Scheme, host, port and database."""
        return self._text

    def wire(self) -> RedisWire:
        """A connection that is not open yet."""
        return RedisWire(self._kind(**self._options))


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
