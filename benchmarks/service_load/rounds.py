"""One round: every server in turn, each alone on the machine, under every load that it is measured with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.samples import Samples
from benchmarks.service_load.device import CEILING_PER_S
from benchmarks.service_load.photos import Size
from benchmarks.service_load.processes import neighbours
from benchmarks.service_load.servers import Phase, Server, UnderTest, ours, ours_with_model, serving

__all__ = ["Opponent", "Plan", "Rounds"]

CALLERS = 32
OVERLOAD = 2.0
DEADLINE_S = 1.0
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure."""

    round_count: int
    """Rounds; a figure is made of their medians."""
    window_s: float
    """Seconds of each window under 32 callers, and under overload."""
    one_caller_s: float
    """Seconds of each window under one caller."""


@dataclass(frozen=True, kw_only=True)
class Opponent:
    """A peer with one choice of settings, and the loads in which it is compared."""

    server: Server
    """How to start it."""
    name: str
    """Its samples are called `name.per_s`, `name.large.per_s` and `name.overload.per_s`."""
    sizes: tuple[Size, ...] = ("small",)
    """Photos that 32 callers ask about."""
    has_overload: bool = False
    """Whether it is overloaded too."""


class Rounds:
    """Runs rounds; keeps a row for each phase and the samples that figures are made of."""

    def __init__(self, plan: Plan, *, photos: Path, logs: Path, say: Callable[[str], None]) -> None:
        """Keep what every round needs.

        Args:
            plan: lengths.
            photos: what `make_photos` wrote.
            logs: folder for the servers' output.
            say: told of every phase as it ends.
        """
        self.plan = plan
        self.rows: list[Row] = []
        self.samples = Samples()
        self.bad_count = 0
        """Answers of Phosphene that were wrong, and calls that failed without being refused or expired."""
        self._photos, self._logs, self._say = photos, logs, say
        self._round = 0

    def run(self, opponents: Sequence[Opponent]) -> None:
        """Run one round."""
        self._round += 1
        self.ours()
        for opponent in opponents:
            self.opponent(opponent)

    def ours(self) -> None:
        """Phosphene under every load."""
        with serving(ours(), photos=self._photos, logs=self._logs) as server:
            full = self._ask(server, "32 callers", self._full_load("small"))
            self.samples.add("ours.per_s", full["answered_per_s"])
            self.samples.add("ours.cpu_s", full["server_cpu_s"] / max(1, full["answered"]))
            self._one_caller(server, "ours")
            with neighbours(os.cpu_count() or 1):
                busy = self._ask(server, "32 callers, neighbours", self._full_load("small"))
            self.samples.add("ours.busy.per_s", busy["answered_per_s"])
            large = self._ask(server, "32 callers, 3 MP", self._full_load("large"))
            self.samples.add("ours.large.per_s", large["answered_per_s"])
            overload = self._overload(server, "ours")
            refusal_ms = overload["refusal_p50_ms"] if overload["refused"] else 1000 * DEADLINE_S
            self.samples.add("ours.overload.refusal_p50_ms", refusal_ms)

    def opponent(self, opponent: Opponent) -> None:
        """A peer under the loads in which it is compared."""
        with serving(opponent.server, photos=self._photos, logs=self._logs) as server:
            for size in opponent.sizes:
                load, sample = ("32 callers", "per_s") if size == "small" else ("32 callers, 3 MP", "large.per_s")
                self.samples.add(
                    f"{opponent.name}.{sample}", self._ask(server, load, self._full_load(size))["answered_per_s"]
                )
            if opponent.has_overload:
                self._overload(server, opponent.name)

    def trial(self, server: Server, size: Size) -> float:
        """Images per second at 32 callers, for the search of a peer's best settings."""
        with serving(server, photos=self._photos, logs=self._logs) as under_test:
            rate: float = self._ask(under_test, f"trial, {size}", self._full_load(size))["answered_per_s"]
        return rate

    def remark(self, load: str, note: str) -> None:
        """Keep a finding in words as a row of its own."""
        self.rows.append(dict.fromkeys(self.rows[0], "") | {"server": "Phosphene", "load": load, "note": note})
        self._say(f"{load}: {note}")

    def redis(self, url: str) -> None:
        """Phosphene's cache in Redis: hits against misses of one caller."""
        with serving(ours(PHOSPHENE_REDIS_URL=url), photos=self._photos, logs=self._logs) as server:
            self._one_caller(server, "ours.redis", note="cache in Redis")

    def real_encoder(self, bundle: Path) -> None:
        """Phosphene with a real encoder on one thread: what an image costs all told."""
        server = ours_with_model(bundle, PHOSPHENE_ENGINE_THREADS="1")
        with serving(server, photos=self._photos, logs=self._logs) as under_test:
            phase = Phase(callers=CALLERS, measure_s=2 * self.plan.window_s, warm_s=2.0)
            answer = self._ask(under_test, "32 callers, real encoder", phase)
        self.samples.add("real.cpu_s", answer["server_cpu_s"] / max(1, answer["answered"]))

    def _full_load(self, size: Size) -> Phase:
        # Large photos keep a caller waiting for seconds: the window begins when all servers are in their stride.
        if size == "large":
            return Phase(callers=CALLERS, measure_s=1.5 * self.plan.window_s, size=size, warm_s=4.0)
        return Phase(callers=CALLERS, measure_s=self.plan.window_s, size=size)

    def _one_caller(self, server: UnderTest, name: str, note: str = "") -> None:
        miss = self._ask(server, "1 caller", Phase(callers=1, measure_s=self.plan.one_caller_s), note)
        self.samples.add(f"{name}.one.p50_s", miss["p50_ms"] / 1000)
        repeated = Phase(callers=1, measure_s=self.plan.one_caller_s / 2, is_repeated=True)
        hit = self._ask(server, "1 caller, same image", repeated, note)
        self.samples.add(f"{name}.hit.p50_s", hit["p50_ms"] / 1000)

    def _overload(self, server: UnderTest, name: str) -> dict[str, Any]:
        phase = Phase(
            rate_per_s=OVERLOAD * CEILING_PER_S, measure_s=self.plan.window_s, warm_s=2.0, deadline_s=DEADLINE_S
        )
        answer = self._ask(server, "2x overload", phase)
        self.samples.add(f"{name}.overload.per_s", answer["answered_per_s"])
        return answer

    def _ask(self, server: UnderTest, load: str, phase: Phase, note: str = "") -> dict[str, Any]:
        answer = server.ask(phase)
        answered_count = answer["answered"]
        row: Row = {
            "round": self._round,
            "server": server.server.name,
            "load": load,
            "images/s": round(answer["answered_per_s"], 1),
            "p50 ms": round(answer["p50_ms"], 1) if answered_count else "-",
            "p99 ms": round(answer["p99_ms"], 1) if answered_count else "-",
            "refused": answer["refused"],
            "expired": answer["expired"],
            "bad": answer["failed"] + answer["wrong"],
            "CPU ms": round(1000 * answer["server_cpu_s"] / answered_count, 2) if answered_count else "-",
            "load CPU s": round(answer["generator_cpu_s"], 2),
            "late ms": round(answer["lateness_p99_ms"], 1),
            "note": note or server.server.note,
        }
        self.rows.append(row)
        if server.server.protocol.startswith("grpc"):
            self.bad_count += row["bad"]
        self._say(
            f"{row['server']:<9} {load:<24} {row['images/s']:>6} images/s, p50 {row['p50 ms']:>7} ms  {row['note']}"
        )
        return answer
