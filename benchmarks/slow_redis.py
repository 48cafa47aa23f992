"""What does a Redis that answers slowly cost a request? Run it as `make bench-slow_redis`.

Phosphene's own serving process with the stand-in device (25 ms for one image) is asked about images that nobody has
seen and about some that Redis keeps, by 32 callers who pause between requests, so that neither the device nor the
machine is full, and by one. Redis is a real one behind a link whose length changes while requests are under way; every
request counts from the moment at which it does. What is added is told against the same service without Redis.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from benchmarks.record import Must, Record
from benchmarks.service_load.callers_grpc import GrpcCallers
from benchmarks.service_load.load import quantile
from benchmarks.service_load.photo_requests import Requests
from benchmarks.service_load.photos import make_photos
from benchmarks.service_load.processes import free_port, redis_server, running
from benchmarks.service_load.servers import Server, ServerSilent, ours

FOLDER = Path("build/bench/service")
BAR_MS = 60.0
BACK_BAR_S = 10.0
KNOWN_COUNT = 64
KNOWN_SHARE = 0.25
READY_LIMIT_S = 60.0
HEAL_LIMIT_S = 30.0
DEADLINE_S = 10.0
PAUSE_S = 0.6
"""A caller's pause, on average: 32 callers make 50 requests a second, a third of what the device can do."""
SETTLE_S = 1.0
LOOK_S = 0.05
_CLOSED = 'phosphene_circuit_state{state="closed"}'

console = Console()


@dataclass(frozen=True, kw_only=True)
class Line:
    """How far away Redis is."""

    rtt_ms: float
    """There and back, at least."""
    jitter_ms: float = 0.0
    """Up to so much more, there and back, drawn anew each way."""

    @classmethod
    def read(cls, text: str) -> Line:
        """From `40` or `20+60`."""
        rtt_ms, _, jitter_ms = text.partition("+")
        return cls(rtt_ms=float(rtt_ms), jitter_ms=float(jitter_ms or 0.0))

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.rtt_ms:g} ms" + (f" + 0..{self.jitter_ms:g}" if self.jitter_ms else "")


LINES = (
    *(Line(rtt_ms=rtt_ms) for rtt_ms in (0.0, 10.0, 20.0, 30.0, 40.0, 45.0, 49.0, 60.0)),
    Line(rtt_ms=10.0, jitter_ms=30.0),
    Line(rtt_ms=20.0, jitter_ms=60.0),
)
QUICK_LINES = (Line(rtt_ms=0.0), Line(rtt_ms=40.0), Line(rtt_ms=20.0, jitter_ms=60.0))


@dataclass(kw_only=True)
class Heard:
    """Latencies of one window, seconds, and what went wrong."""

    new_s: list[float] = field(default_factory=list)
    """Of requests about images that nobody has seen."""
    known_s: list[float] = field(default_factory=list)
    """Of those about images that Redis keeps."""
    bad_count: int = 0
    """Answers that were wrong or none."""

    def p_ms(self, share: float) -> float:
        """A quantile over requests about new images."""
        return 1000 * quantile(self.new_s, share)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a running service is asked."""

    address: str
    """Where it answers."""
    photos: Path
    """What `make_photos` wrote."""
    callers: int
    """How many; several pause between their requests."""
    window_s: float
    """Length of each window."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="make bench-slow_redis", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three lengths of the line, short windows")
    parser.add_argument("--callers", type=int, nargs="*", default=[32, 1], help="how many callers, in turn")
    parser.add_argument("--rates", nargs="*", choices=["no", "yes"], default=["no", "yes"], help="rate limits, in turn")
    parser.add_argument("--window-s", type=float, default=8.0, help="seconds of each window")
    parser.add_argument("--lines", nargs="*", metavar="MS[+MS]", help="round trips, and what jitter adds at most")
    options = parser.parse_args(arguments)
    lines = QUICK_LINES if options.quick else LINES
    if options.lines:
        lines = tuple(Line.read(text) for text in options.lines)
    record = Record(name="slow_redis")
    photos = make_photos(FOLDER / "photos")
    for rates in options.rates:
        for callers in options.callers:
            window_s = 4.0 if options.quick else options.window_s
            record.rows += compare(photos, lines, callers=callers, has_rates=rates == "yes", window_s=window_s)
    for row in record.rows:
        name = f"{row['Redis at']}, callers {row['callers']}, rate limits {row['rates']}"
        record.must[f"added p99 ms, {name}"] = Must(value=row["added p99"], bar=BAR_MS, sense="<=")
        record.must[f"s until hits, {name}"] = Must(value=row["back s"], bar=BACK_BAR_S, sense="<=")
    record.must["wrong or failed answers"] = Must(value=sum(row["bad"] for row in record.rows), bar=0, sense="<=")
    return record.write()


def compare(
    photos: Path, lines: Sequence[Line], *, callers: int, has_rates: bool, window_s: float
) -> list[dict[str, Any]]:
    """Rows for every length of the line, of one number of callers."""
    variables = {"PHOSPHENE_RATE_PER_S": "100000", "PHOSPHENE_RATE_BURST": "100000"} if has_rates else {}
    with serving(ours(**variables), photos) as (address, _):
        asking = Asking(address=address, photos=photos, callers=callers, window_s=window_s)
        without = asyncio.run(ask(asking, series=1))
    rows = []
    with ExitStack() as open_things:
        redis_url = open_things.enter_context(redis_server(FOLDER / "logs" / "redis.log"))
        link = open_things.enter_context(Link.open(urlsplit(redis_url).port or 0))
        served = serving(ours(PHOSPHENE_REDIS_URL=link.url, **variables), photos)
        address, metrics = open_things.enter_context(served)
        asking = Asking(address=address, photos=photos, callers=callers, window_s=window_s)
        for series, line in enumerate(lines, start=2):
            row = {"rates": "yes" if has_rates else "no", "callers": callers, "Redis at": line.name}
            row |= one_line(asking, metrics, link, line, series, without)
            rows.append(row)
            console.print("  ".join(f"{name} {value}" for name, value in row.items()))
    return rows


def one_line(asking: Asking, metrics: str, link: Link, line: Line, series: int, without: Heard) -> dict[str, Any]:
    """Let the line become as long as this while requests are under way, heal it, and wait for hits."""
    before = page(metrics)
    heard = asyncio.run(ask(asking, series=series, at_begin=lambda: link.be(line)))
    after = page(metrics)
    told = {kind: int(after[_results(kind)] - before[_results(kind)]) for kind in ("hit", "error", "bypassed")}
    link.be(Line(rtt_ms=0.0))
    begun_s = time.monotonic()
    asyncio.run(_until_hit(asking, metrics))
    return {
        "requests": len(heard.new_s),
        "p50 ms": round(heard.p_ms(0.5), 1),
        "p99 ms": round(heard.p_ms(0.99), 1),
        "max ms": round(heard.p_ms(1.0), 1),
        "added p50": round(heard.p_ms(0.5) - without.p_ms(0.5), 1),
        "added p99": round(heard.p_ms(0.99) - without.p_ms(0.99), 1),
        "known p50 ms": round(1000 * quantile(heard.known_s, 0.5), 1),
        "known p99 ms": round(1000 * quantile(heard.known_s, 0.99), 1),
        "circuit": "closed" if after[_CLOSED] else "open",
        "hits": told["hit"],
        "errors": told["error"],
        "bypassed": told["bypassed"],
        "back s": round(time.monotonic() - begun_s, 2),
        "bad": heard.bad_count + without.bad_count,
    }


class Link:
    """The slow link as a process; a context manager by `open`."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        """Keep the process."""
        self._process = process
        self.url = f"redis://127.0.0.1:{port}/0"

    @classmethod
    @contextmanager
    def open(cls, target_port: int) -> Iterator[Link]:
        """Start it without delay."""
        port = free_port()
        command = (sys.executable, "-m", "benchmarks.service_load.slow_link", str(port), str(target_port))
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            link = cls(process, port)
            link._hear()
            try:
                yield link
            finally:
                process.terminate()

    def be(self, line: Line) -> None:
        """Take this length from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line.rtt_ms / 2000} {line.jitter_ms / 2000}\n")
        self._process.stdin.flush()
        self._hear()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ok\n":
            raise RuntimeError("the slow link has ended; its last words are above")


@contextmanager
def serving(server: Server, photos: Path) -> Iterator[tuple[str, str]]:
    """Start the service; gives its address and that of its metrics once it answers."""
    port, metrics_port = free_port(), free_port()
    with tempfile.NamedTemporaryFile(prefix="phosphene-device-") as device:
        given = {"{port}": str(port), "{device}": device.name}
        command = [given.get(part, part) for part in server.command]
        variables = {name: value.replace("{port}", str(port)) for name, value in server.variables.items()}
        variables["PHOSPHENE_METRICS_LISTEN"] = f"127.0.0.1:{metrics_port}"
        with running(command, log=FOLDER / "logs" / "slow-redis.log", variables=variables):
            asyncio.run(_until_ready(f"127.0.0.1:{port}", _known(photos)))
            yield f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics"


def page(metrics: str) -> dict[str, float]:
    """Every sample of the metrics, by name and labels."""
    with urllib.request.urlopen(metrics, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    samples = [line.rpartition(" ") for line in lines if line[:1] not in ("", "#")]
    return {name: float(value) for name, _, value in samples}


async def ask(asking: Asking, *, series: int, at_begin: Callable[[], None] = lambda: None) -> Heard:
    """Ask about new and known images; what is sent in the window counts.

    Args:
        asking: whom, and how.
        series: tells the new images from those of other windows.
        at_begin: called when the window begins, while requests are under way.
    """
    heard = Heard()
    new, known = Requests.read(asking.photos, size="small", decoding="drafted", series=series), _known(asking.photos)
    serials = iter(range(2**32))
    draw = random.Random(series)
    loop = asyncio.get_running_loop()
    pause_s = PAUSE_S if asking.callers > 1 else 0.0

    async def call(callers: GrpcCallers) -> None:
        await asyncio.sleep(draw.uniform(0.0, pause_s))
        while (asked_s := loop.time()) < end_s:
            is_known = draw.random() < KNOWN_SHARE
            requests, serial = (known, draw.randrange(KNOWN_COUNT)) if is_known else (new, next(serials))
            ended = await callers.ask(requests, DEADLINE_S, serial)
            if asked_s >= begin_s:
                (heard.known_s if is_known else heard.new_s).append(loop.time() - asked_s)
                heard.bad_count += ended != "answered"
            await asyncio.sleep(draw.uniform(0.0, 2 * pause_s))

    async with GrpcCallers(asking.address) as callers:
        for serial in range(KNOWN_COUNT):
            await callers.ask(known, DEADLINE_S, serial)
        begin_s = loop.time() + SETTLE_S
        end_s = begin_s + asking.window_s
        loop.call_at(begin_s, at_begin)
        await asyncio.gather(*(call(callers) for _ in range(asking.callers)))
    return heard


def _known(photos: Path) -> Requests:
    """The images that are asked about again and again."""
    return Requests.read(photos, size="small", decoding="drafted", series=0)


def _results(kind: str) -> str:
    return f'phosphene_cache_results_total{{result="{kind}"}}'


async def _until_ready(address: str, requests: Requests) -> None:
    limit_s = time.monotonic() + READY_LIMIT_S
    async with GrpcCallers(address) as callers:
        while await callers.ask(requests, DEADLINE_S, 0) != "answered":
            if time.monotonic() > limit_s:
                raise ServerSilent("the service gave no right answer; see its log")
            await asyncio.sleep(LOOK_S)


async def _until_hit(asking: Asking, metrics: str) -> None:
    """Ask until Redis is asked again and gives what it keeps."""
    known, limit_s = _known(asking.photos), time.monotonic() + HEAL_LIMIT_S
    async with GrpcCallers(asking.address) as callers:
        while time.monotonic() < limit_s:
            before = page(metrics)
            if before[_CLOSED]:
                for _ in range(2):
                    await callers.ask(known, DEADLINE_S, 0)
                if page(metrics)[_results("hit")] > before[_results("hit")]:
                    return
            await asyncio.sleep(LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
