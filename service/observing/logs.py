"""Log lines as JSON objects, one a line on standard output, each with the id of the request that it belongs to.

Every character outside printable ASCII is escaped, so that no caller can write control characters into a terminal or
forge a line. Knows nothing of gRPC.
"""

from __future__ import annotations

import io
import json
import logging
import random
import re
import sys
import time
from contextvars import ContextVar

__all__ = ["JsonFormatter", "log_event", "new_request_id", "open_logs", "request_id"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that the running task answers; empty outside of requests."""

_LOGGER = logging.getLogger("phosphene.service")
# Ids tell requests apart and guard nothing, so that none needs the system's entropy.
_IDS = random.Random()
# `json.dumps` would make one for every line.
_JSON = json.JSONEncoder(ensure_ascii=True, default=str)
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


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


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, event, request, then the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without a newline; the traceback, if any, under `traceback`."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{now}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.name != _LOGGER.name:
            line["logger"] = record.name
        if identity := request_id.get():
            line["request_id"] = identity
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _JSON.encode(line)


def open_logs(level: str, stream: io.TextIOBase | None = None) -> None:
    """Send this process's log lines, those of libraries included, to `stream` (standard output)."""
    # No line shows them, and each costs every line a system call or a walk of the stack.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # as the manual of `logging` has it, under Optimization
    handler = logging.StreamHandler(stream if stream is not None else sys.stdout)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _LOGGER.setLevel(level.upper())
