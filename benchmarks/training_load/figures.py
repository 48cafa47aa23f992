"""From what was measured to the figures that have a bar; pure.

A figure whose samples are missing is left out and named by `not_measured`: it neither holds nor fails.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.record import Must
from benchmarks.samples import Samples
from benchmarks.training_load.races import K

__all__ = ["BATCHTOPK_PEERS", "MAIN", "QUALITY", "RATES", "SMALL", "compared", "musts", "not_measured"]

MAIN, SMALL = "512 x 8192", "512 x 4096"
"""The race, and the training against the peers, by width and neurons."""
QUALITY = MAIN
"""The training on its own has the size of the race."""
RATES = (1e-3, 3e-3)
"""Learning rates of the training against the peers; the last is that of the training on its own."""
BATCHTOPK_PEERS = ("saelens", "dictionary_learning", "overcomplete")
"""Peers whose rule is the same as ours."""

_SPEEDS = (
    ("SAELens", "Phosphene", ("saelens",), 5.0, "8"),
    ("dictionary_learning", "Phosphene", ("dictionary_learning",), 4.5, "8"),
    ("Overcomplete", "Phosphene", ("overcomplete",), 3.3, "10"),
    ("sparsify, with TopK", "Phosphene topk", ("sparsify", "sparsify adam"), 1.2, "3"),
)
_BFLOAT16_SPEEDS = (
    ("SAELens", "Phosphene bfloat16", ("saelens",), 7.0, "12"),
    ("dictionary_learning", "Phosphene bfloat16", ("dictionary_learning",), 7.0, "12"),
    ("Overcomplete", "Phosphene bfloat16", ("overcomplete",), 5.5, "10"),
    ("sparsify, with TopK", "Phosphene topk bfloat16", ("sparsify", "sparsify adam"), 1.9, "3"),
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A line of the table of bars."""

    name: str
    """What it is, and what it should reach."""
    value: Callable[[Samples], float]
    """How it follows from the samples; raises `KeyError` where one is missing."""
    bar: Callable[[Samples], float]
    """What it must reach."""
    sense: Literal[">=", "<="]
    """On which side of the bar it belongs."""


def musts(samples: Samples) -> dict[str, Must]:
    """Every figure that can be made of the samples."""
    found: dict[str, Must] = {}
    for figure in _figures():
        try:
            found[figure.name] = Must(value=figure.value(samples), bar=figure.bar(samples), sense=figure.sense)
        except KeyError:
            continue
    return found


def not_measured(samples: Samples) -> list[str]:
    """Names of the figures whose samples are missing."""
    found = musts(samples)
    return [figure.name for figure in _figures() if figure.name not in found]


def compared(samples: Samples) -> list[str]:
    """Figures without a bar, in words: the distance to the bare product, and the ratios at other sizes."""
    told = []
    races = sorted({name.rsplit(".", 2)[0] for name in samples.values if name.endswith(".per_cpu_s")})
    for race in races:
        for name, others in (("Phosphene", BATCHTOPK_PEERS), ("Phosphene topk", ("sparsify", "sparsify adam"))):
            for other in ("GEMM", *others):
                mine, theirs = f"{race}.{name}", f"{race}.{other}"
                if {f"{mine}.per_s", f"{theirs}.per_s"} <= samples.values.keys():
                    wall = samples[f"{mine}.per_s"] / samples[f"{theirs}.per_s"]
                    cpu = samples[f"{mine}.per_cpu_s"] / samples[f"{theirs}.per_cpu_s"]
                    told.append(
                        f"{race}: {name} takes {1 / wall:.2f}x the bare product's time, {1 / cpu:.2f}x its CPU-seconds"
                        if other == "GEMM"
                        else f"{race}: {name} against {other}: {wall:.2f}x in wall time, {cpu:.2f}x in CPU-seconds"
                    )
    return told


def _figures() -> Iterator[Figure]:
    for prefix, speeds in (("float32", _SPEEDS), ("bfloat16 selection", _BFLOAT16_SPEEDS)):
        for shown, mine, theirs, bar, aim in speeds:
            for unit, sample in (("wall time", "per_s"), ("CPU-seconds", "per_cpu_s")):
                name = f"{prefix}, against {shown}, {unit} (aim {aim})"
                yield Figure(name=name, value=_faster(mine, theirs, sample), bar=_fixed(bar), sense=">=")
    yield Figure(
        name="memory above data and torch / dictionary_learning's (aim 0.4)",
        value=lambda samples: samples[f"{MAIN}.Phosphene.peak_mib"] / samples[f"{MAIN}.dictionary_learning.peak_mib"],
        bar=_fixed(0.6),
        sense="<=",
    )
    own = f"{QUALITY}.{RATES[-1]:g}.Phosphene"
    yield Figure(
        name="held-out FVU after 1,000 steps, worst seed (aim 0.05)",
        value=lambda samples: max(samples.values[f"{own}.fvu"]),
        bar=_fixed(0.085),
        sense="<=",
    )
    yield Figure(
        name="MMCS after 1,000 steps, worst seed (aim 0.985)",
        value=lambda samples: min(samples.values[f"{own}.mmcs"]),
        bar=_fixed(0.955),
        sense=">=",
    )
    yield Figure(
        name="L0 / 32 - 1 at the calibrated threshold, worst seed",
        value=lambda samples: max(abs(l0 / K - 1) for l0 in samples.values[f"{own}.l0"]),
        bar=_fixed(0.02),
        sense="<=",
    )
    for rate in RATES:
        yield _beside(rate, "fvu", "<=")
        yield _beside(rate, "mmcs", ">=")


def _beside(rate: float, metric: Literal["fvu", "mmcs"], sense: Literal[">=", "<="]) -> Figure:
    """How far the mean over our seeds is from the best peer's; the spread of the seeds is allowed."""
    best, allowed = (min, 1) if sense == "<=" else (max, -1)

    def seeds(samples: Samples, name: str) -> list[float]:
        return samples.values.get(f"{SMALL}.{rate:g}.{name}.{metric}", [])

    def value(samples: Samples) -> float:
        peers = [statistics.fmean(found) for name in BATCHTOPK_PEERS if (found := seeds(samples, name))]
        mine = seeds(samples, "Phosphene")
        if not mine or not peers:
            raise KeyError(f"{SMALL}.{rate:g}")
        return statistics.fmean(mine) - best(peers)

    def spread(samples: Samples) -> float:
        found = [seeds(samples, name) for name in ("Phosphene", *BATCHTOPK_PEERS)]
        return allowed * max(max(values) - min(values) for values in found if values)

    name = f"lr {rate:g}: {metric.upper()} less that of the best BatchTopK peer (bar: the seeds' spread)"
    return Figure(name=name, value=value, bar=spread, sense=sense)


def _faster(mine: str, theirs: tuple[str, ...], sample: str) -> Callable[[Samples], float]:
    """How many times the best of their settings."""

    def value(samples: Samples) -> float:
        places = [f"{MAIN}.{name}.{sample}" for name in theirs]
        known = [samples[place] for place in places if place in samples.values]
        if not known:
            raise KeyError(places[0])
        return samples[f"{MAIN}.{mine}.{sample}"] / max(known)

    return value


def _fixed(bar: float) -> Callable[[Samples], float]:
    return lambda _: bar
