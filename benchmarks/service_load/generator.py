"""A load generator in a process of its own: reads phases as JSON lines, and answers each with what it measured.

    python -m benchmarks.service_load.generator grpc 127.0.0.1:50051 SERVER_PID PHOTOS

It first waits until the server answers, and says so. It tells its own processor time apart from the server's.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from benchmarks.service_load.load import Ended, closed_loop, open_loop
from benchmarks.service_load.photo_requests import Requests
from benchmarks.service_load.processes import is_alive, tree_cpu_s

_READY_LIMIT_S = 120.0
_READY_DEADLINE_S = 10.0
_RETRY_S = 0.1
_NICENESS = -10
"""In front of the server and its neighbours: callers are elsewhere in real life, and do not wait for its processors."""


class Callers(Protocol):
    """What sends requests."""

    async def ask(self, requests: Requests, deadline_s: float, serial: int) -> Ended:
        """Send one and judge its answer."""


def main() -> int:
    """Serve phases until the input ends."""
    protocol, address, server_pid, photos = sys.argv[1:]
    with suppress(PermissionError):
        os.nice(_NICENESS)
    return asyncio.run(_serve(protocol, address, int(server_pid), Path(photos)))


async def _serve(protocol: str, address: str, server_pid: int, photos: Path) -> int:
    async with _callers(protocol, address) as callers:
        decoding = {"grpc": "drafted", "grpc-any": None}.get(protocol, "whole")
        last = await _wait_until_ready(callers, server_pid, Requests.read(photos, size="small", decoding=decoding))
        _say({"ready": last == "answered", "last": last})
        series = 0
        while line := await asyncio.to_thread(sys.stdin.readline):
            series += 1
            phase = json.loads(line)
            requests = Requests.read(
                photos,
                size=phase["size"],
                decoding=decoding,
                is_repeated=phase["is_repeated"],
                series=series,
            )
            _say(await _run(callers, requests, phase, server_pid))
    return 0


def _callers(protocol: str, address: str) -> AbstractAsyncContextManager[Callers]:
    # Each environment has the library of its own protocol alone.
    match protocol:
        case "grpc" | "grpc-any":
            from benchmarks.service_load.callers_grpc import GrpcCallers

            return GrpcCallers(address)
        case "base64" | "raw":
            from benchmarks.service_load.callers_http import HttpCallers

            return HttpCallers(address, body=protocol)
        case _:
            raise ValueError(f"protocol {protocol!r} is not one; use grpc, grpc-any, base64 or raw")


async def _wait_until_ready(callers: Callers, server_pid: int, requests: Requests) -> Ended:
    limit_s = time.monotonic() + _READY_LIMIT_S
    while (ended := await callers.ask(requests, _READY_DEADLINE_S, 0)) != "answered":
        if time.monotonic() > limit_s or not is_alive(server_pid):
            break
        await asyncio.sleep(_RETRY_S)
    return ended


async def _run(callers: Callers, requests: Requests, phase: dict[str, Any], server_pid: int) -> dict[str, Any]:
    edges: list[tuple[float, float]] = []
    ask = partial(callers.ask, requests)
    window = {
        "deadline_s": phase["deadline_s"],
        "warm_s": phase["warm_s"],
        "measure_s": phase["measure_s"],
        "on_edge": lambda: edges.append((tree_cpu_s(server_pid), time.process_time())),
    }
    if "rate_per_s" in phase:
        tally = await open_loop(ask, rate_per_s=phase["rate_per_s"], **window)
    else:
        tally = await closed_loop(ask, callers=phase["callers"], **window)
    (server_before_s, own_before_s), (server_after_s, own_after_s) = edges
    return tally.summary() | {
        "server_cpu_s": server_after_s - server_before_s,
        "generator_cpu_s": own_after_s - own_before_s,
    }


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
