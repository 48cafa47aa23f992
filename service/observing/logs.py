"""Log lines as JSON objects, one a line on standard output, each with the id of the request that it belongs to.

What happens with every request is written some lines at a time, within a tenth of a second: each alone would cost the
event loop several times as much. Every other line is written at once, behind what was gathered before it. Every
character outside printable ASCII is escaped, so that no caller can write control characters into a terminal or forge a
line. Knows nothing of gRPC.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import random
import re
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, TextIO

__all__ = ["JsonFormatter", "log_event", "log_soon", "new_request_id", "open_logs", "request_id"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that the running task answers; empty outside of requests."""

_LOGGER = logging.getLogger("phosphene.service")
# Ids tell requests apart and guard nothing, so that none needs the system's entropy.
_IDS = random.Random()
# `json.dumps` would make one for every line.
_JSON = json.JSONEncoder(ensure_ascii=True, default=str)
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_GATHER_S = 0.1


def new_request_id(offered: str | None) -> str:
    """The caller's own id where it is plain (1-64 letters, digits, `.`, `_`, `-`), else a fresh random one."""
    if offered is not None and _PLAIN_ID.fullmatch(offered):
        return offered
    return f"{_IDS.getrandbits(128):032x}"


def log_event(event: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: object) -> None:
    """Write one line.

    Args:
        event: what happened, a short fixed phrase.
        level: a level of `logging`.
        error: an exception whose traceback belongs to the line.
        fields: values that JSON can hold; anything else is written as its `str`.
    """
    _LOGGER.log(level, event, exc_info=error, extra={"fields": fields})


def log_soon(event: str, **fields: object) -> None:
    """Write one line of level INFO within a tenth of a second, with others that come meanwhile; see `log_event`.

    The line tells the time at which this was called. A process that is killed loses what it has not written yet.
    """
    if not _LOGGER.isEnabledFor(logging.INFO):
        return
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LineHandler):
            handler.gather(event, fields)
            return
    _LOGGER.info(event, extra={"fields": fields})


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, event, request, then the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without a newline; the traceback, if any, under `traceback`."""
        of_others = {} if record.name == _LOGGER.name else {"logger": record.name}
        traceback = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return _line(
            record.created,
            record.levelname.lower(),
            record.getMessage(),
            request_id.get(),
            {**of_others, **getattr(record, "fields", {}), **traceback},
        )


class _LineHandler(logging.StreamHandler[Any]):
    """Writes records as they come, and gathered lines together."""

    def __init__(self, stream: io.TextIOBase | TextIO) -> None:
        super().__init__(stream)
        self.setFormatter(JsonFormatter())
        self._gathered: list[tuple[float, str, str, dict[str, object]]] = []
        self._waiting_loop: asyncio.AbstractEventLoop | None = None

    def gather(self, event: str, fields: dict[str, object]) -> None:
        """Keep a line until the event loop that runs comes to it; without one write it now."""
        self.acquire()
        try:
            self._gathered.append((time.time(), event, request_id.get(), fields))
        finally:
            self.release()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write_gathered_now()
            return
        if self._waiting_loop is not loop:
            self._waiting_loop = loop
            loop.call_later(_GATHER_S, self._write_gathered_now)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record behind what was gathered before it; a stream that takes nothing is told of on stderr alone."""
        try:
            self._write_gathered()
        except Exception:
            self.handleError(record)
        super().emit(record)

    def flush(self) -> None:
        """Write what was gathered, and have the stream pass it on."""
        self._write_gathered()
        super().flush()

    def _write_gathered_now(self) -> None:
        self._waiting_loop = None
        try:
            self.flush()
        except Exception:
            self.handleError(logging.makeLogRecord({"msg": "gathered lines"}))

    def _write_gathered(self) -> None:
        self.acquire()
        try:
            gathered, self._gathered = self._gathered, []
            if gathered:
                lines = (_line(at, "info", event, identity, fields) for at, event, identity, fields in gathered)
                self.stream.write("".join(f"{line}\n" for line in lines))
        finally:
            self.release()


def _line(unix_s: float, level: str, event: str, identity: str, fields: Mapping[str, object]) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(unix_s))
    line: dict[str, object] = {"time": f"{now}.{int(unix_s % 1 * 1000):03d}Z", "level": level, "event": event}
    if identity:
        line["request_id"] = identity
    line.update(fields)
    return _JSON.encode(line)


def open_logs(level: str, stream: io.TextIOBase | None = None) -> None:
    """Send this process's log lines, those of libraries included, to `stream` (standard output)."""
    # No line shows them, and each costs every line a system call or a walk of the stack.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # as the manual of `logging` has it, under Optimization
    root = logging.getLogger()
    root.handlers[:] = [_LineHandler(stream if stream is not None else sys.stdout)]
    root.setLevel(logging.WARNING)
    _LOGGER.setLevel(level.upper())
