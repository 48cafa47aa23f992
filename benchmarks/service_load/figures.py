"""The figures of the service that have a bar, and comparisons that have none; pure."""

from __future__ import annotations

from benchmarks.figures import Figure
from benchmarks.samples import Samples
from benchmarks.service_load.device import CEILING_PER_S, batch_s

__all__ = ["FIGURES", "compared"]


def compared(samples: Samples) -> list[str]:
    """Comparisons without a bar, in words: where a peer fills the device too, nothing can be much faster."""
    pairs = {
        "LitServe with several copies of the model, 32 callers": ("ours.per_s", "litserve.per_s"),
        "Ray Serve at its best, 32 callers": ("ours.per_s", "ray.per_s"),
        "Ray Serve as its guide has it, 32 callers": ("ours.per_s", "ray-guide.per_s"),
    }
    told = [
        f"against {name}: {samples[ours] / samples[theirs]:.2f}x"
        for name, (ours, theirs) in pairs.items()
        if {ours, theirs} <= samples.values.keys()
    ]
    if {"ours.cpu_s", "ceiling_decode_cpu_s"} <= samples.values.keys():
        above_ms = 1000 * (samples["ours.cpu_s"] - samples["ceiling_decode_cpu_s"])
        told.append(f"serving CPU above decoding in bursts, as the load has them: {above_ms:.2f} ms per image")
    return told


def _over(ours: float, theirs: float, *, least: float) -> float:
    """How many times ours is theirs, which counts as `least` where it is less: nothing is infinitely better."""
    return ours / max(theirs, least)


FIGURES: tuple[Figure, ...] = (
    Figure(
        name="served / ceiling, 32 callers",
        value=lambda samples: samples["ours.per_s"] / CEILING_PER_S,
        bar=0.90,
        aim="0.97",
        sense=">=",
    ),
    Figure(
        name="served / ceiling, 32 callers, neighbours busy",
        value=lambda samples: samples["ours.busy.per_s"] / CEILING_PER_S,
        bar=0.85,
        aim="0.97",
        sense=">=",
    ),
    Figure(
        name="p50 of one caller / (decode + device)",
        value=lambda samples: samples["ours.one.p50_s"] / (samples["paced_decode_p50_s"] + batch_s(1)),
        bar=1.15,
        aim="1.05",
        sense="<=",
    ),
    Figure(
        name="serving CPU above decode, ms per image",
        value=lambda samples: 1000 * (samples["ours.cpu_s"] - samples["decode_cpu_s"]),
        bar=1.2,
        aim="0.7",
        sense="<=",
    ),
    Figure(
        name="against LitServe with one copy of the model, 32 callers",
        value=lambda samples: samples["ours.per_s"] / samples["litserve-single.per_s"],
        bar=1.25,
        aim="its bound",
        sense=">=",
        bound=lambda samples: CEILING_PER_S / samples["litserve-single.per_s"],
    ),
    Figure(
        name="against LitServe's best, 3-megapixel photos",
        value=lambda samples: samples["ours.large.per_s"] / samples["litserve.large.per_s"],
        bar=2.0,
        aim="3",
        sense=">=",
    ),
    Figure(
        name="against Ray Serve's best, 3-megapixel photos",
        value=lambda samples: samples["ours.large.per_s"] / samples["ray.large.per_s"],
        bar=2.5,
        aim="4",
        sense=">=",
    ),
    Figure(
        name="goodput / capacity at 2x overload, 1 s deadlines",
        value=lambda samples: samples["ours.overload.per_s"] / CEILING_PER_S,
        bar=0.85,
        aim="0.95",
        sense=">=",
    ),
    Figure(
        name="goodput against LitServe's at 2x overload",
        value=lambda samples: _over(samples["ours.overload.per_s"], samples["litserve.overload.per_s"], least=1.0),
        bar=10.0,
        aim="10",
        sense=">=",
    ),
    Figure(
        name="refusal p50, ms",
        value=lambda samples: samples["ours.overload.refusal_p50_ms"],
        bar=20.0,
        aim="5",
        sense="<=",
    ),
    Figure(
        name="cache hit p50 / miss p50, in process",
        value=lambda samples: samples["ours.hit.p50_s"] / samples["ours.one.p50_s"],
        bar=0.2,
        aim="0.1",
        sense="<=",
    ),
    Figure(
        name="cache hit p50 / miss p50, Redis",
        value=lambda samples: samples["ours.redis.hit.p50_s"] / samples["ours.redis.one.p50_s"],
        bar=0.2,
        aim="0.1",
        sense="<=",
    ),
    Figure(
        name="real encoder: (bare engine + decode CPU) / served CPU",
        value=lambda samples: (samples["real.engine_cpu_s"] + samples["real.decode_cpu_s"]) / samples["real.cpu_s"],
        bar=0.90,
        aim="0.95",
        sense=">=",
    ),
    Figure(
        name="cold start to READY, embedded bundle, s",
        value=lambda samples: samples["cold_start_s"],
        bar=20.0,
        aim="8",
        sense="<=",
    ),
)
