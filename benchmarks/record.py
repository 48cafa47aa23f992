"""What every benchmark writes: the machine, the rows, and the figures that must hold (docs/design.md section 8)."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, assert_never

from rich.console import Console
from rich.table import Table

OUTPUT = Path("build/bench")
PACKAGES = ("torch", "transformers", "numpy", "numba", "faiss-cpu", "pillow", "grpcio")
_LEAST_WIDTH = 200
# So much taken by other guests of the same machine shows in every figure.
_TOLD_STOLEN_SHARE = 0.02


@dataclass(frozen=True, kw_only=True)
class Must:
    """A figure with a bar."""

    value: float
    bar: float
    sense: Literal[">=", "<="]
    bound: float | None = None
    """The most that anybody could reach, where something outside sets a limit; told beside a miss, excuses none."""

    @property
    def holds(self) -> bool:
        """Whether the value is on the right side of the bar."""
        match self.sense:
            case ">=":
                return self.value >= self.bar
            case "<=":
                return self.value <= self.bar
            case _:
                assert_never(self.sense)

    @property
    def verdict(self) -> str:
        """In a word, and where a bar that is missed is out of everybody's reach, what could be reached."""
        if self.holds:
            return "holds"
        return "MISSED" if self.bound is None or self.bound >= self.bar else f"MISSED, bound {self.bound:.3f}"


@dataclass(frozen=True, kw_only=True)
class Ticks:
    """Processor time since the machine's start, over all processors, in clock ticks."""

    total: int
    stolen: int
    """Of these, what a hypervisor gave to other guests while this one had work."""

    def stolen_share(self, before: Ticks) -> float:
        """Share of the time since `before` that was stolen, in [0, 1]."""
        return (self.stolen - before.stolen) / max(1, self.total - before.total)


def processor_ticks(lines: Sequence[str]) -> Ticks:
    """Read the lines of /proc/stat; none where there is no such file."""
    # user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in these, too.
    ticks = [int(value) for value in lines[0].split()[1:9]] if lines else [0] * 8
    return Ticks(total=sum(ticks), stolen=ticks[7])


@dataclass(kw_only=True)
class Record:
    """The outcome of one run of one benchmark."""

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    must: dict[str, Must] = field(default_factory=dict)
    peers: dict[str, dict[str, str]] = field(default_factory=dict)
    """What is installed in the environment of each peer that ran, with versions."""
    started_s: float = field(default_factory=time.monotonic)
    started_ticks: Ticks = field(default_factory=lambda: processor_ticks(_lines("/proc/stat")))

    def write(self) -> int:
        """Print the tables, write `build/bench/NAME.json`, and return an exit status: 1 where a bar is missed."""
        console = Console()
        # Narrower, a table of a dozen columns would fold every figure; a terminal that is narrower wraps whole lines.
        console.width = max(console.width, _LEAST_WIDTH)
        if table_rows := [row for row in self.rows if not _is_remark(row)]:
            console.print(_table(self.name, list(table_rows[0]), [list(row.values()) for row in table_rows]))
        for row in filter(_is_remark, self.rows):
            console.print(": ".join(str(value) for value in row.values() if value != ""), highlight=False, markup=False)
        bars = [[name, must.value, must.sense, must.bar, must.verdict] for name, must in self.must.items()]
        console.print(_table("must", ["figure", "value", "", "bar", ""], bars))
        stolen_share = processor_ticks(_lines("/proc/stat")).stolen_share(self.started_ticks)
        if stolen_share >= _TOLD_STOLEN_SHARE:
            console.print(
                f"{stolen_share:.0%} of the processors' time went to other guests of this machine: take no figure for "
                "what it can do"
            )
        OUTPUT.mkdir(parents=True, exist_ok=True)
        found = environment(time.monotonic() - self.started_s)
        body = {
            "environment": found | {"stolen_share": round(stolen_share, 4), "peers": self.peers},
            "rows": self.rows,
            "must": {
                name: {
                    "value": must.value,
                    "bar": must.bar,
                    "sense": must.sense,
                    "bound": must.bound,
                    "holds": must.holds,
                }
                for name, must in self.must.items()
            },
        }
        target = OUTPUT / f"{self.name}.json"
        target.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
        console.print(f"written to {target}")
        return 0 if all(must.holds for must in self.must.values()) else 1


def _is_remark(row: Mapping[str, Any]) -> bool:
    """Whether a row has hardly a figure: a sentence, which no table has room for."""
    return 2 * sum(value == "" for value in row.values()) > len(row)


def environment(wall_s: float) -> dict[str, Any]:
    """Describe the machine, and how busy it was with other work: load average beside the wall time."""
    told = {line.split(":")[0].strip(): line.split(":")[-1].strip() for line in _lines("/proc/cpuinfo")}
    memory_kib = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "cpu": told.get("model name") or platform.processor(),
        # Machines of one name may be generations apart.
        "cpu_family": told.get("cpu family", ""),
        "cpu_model": told.get("model", ""),
        "cores": len(_lines("/proc/cpuinfo", prefix="processor")),
        "memory_gib": round(memory_kib / (1 << 20), 1),
        "python": sys.version.split()[0],
        # Builds of one version differ: one made with profile-guided optimisation is faster.
        "python_build": ", ".join((*platform.python_build(), platform.python_compiler())),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": commit,
        "load_average": [float(value) for value in (_lines("/proc/loadavg") or ["0 0 0"])[0].split()[:3]],
        "wall_s": round(wall_s, 1),
    }


def _lines(path: str, prefix: str = "") -> list[str]:
    file = Path(path)
    return [line for line in file.read_text().splitlines() if line.startswith(prefix)] if file.exists() else []


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    return table
