"""The figures of the index that have a bar; pure."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.figures import Figure
from benchmarks.samples import Samples

__all__ = ["FIGURES", "LARGE", "SMALL"]

SMALL, LARGE = 200_000, 1_000_000
"""Images that are searched."""


def _ratio(over: str, under: str) -> Callable[[Samples], float]:
    return lambda samples: samples[over] / samples[under]


def _sample(name: str) -> Callable[[Samples], float]:
    return lambda samples: samples[name]


def _faster(
    images: int, peer: str, shown: str, bar: float, aim: str, *, what: str = "similar images", mine: str = "ours"
) -> list[Figure]:
    return [
        Figure(
            name=f"{what}, {images // 1000} k, against {shown}, {unit}",
            value=_ratio(f"{images}.{peer}.{sample}", f"{images}.{mine}.{sample}"),
            bar=bar,
            aim=aim,
            sense=">=",
        )
        for unit, sample in (("wall time", "wall_s"), ("CPU-seconds", "cpu_s"))
    ]


FIGURES: tuple[Figure, ...] = (
    *_faster(SMALL, "scipy", "scipy", 8, "25"),
    *_faster(LARGE, "scipy", "scipy", 15, "25"),
    *_faster(SMALL, "qdrant", "Qdrant's engine", 6, "10"),
    *_faster(SMALL, "seismic", "Seismic at recall .99", 0.4, "1"),
    *_faster(LARGE, "scipy", "scipy", 30, "60", what="FAISS tier", mine="sketch"),
    Figure(
        name="FAISS tier, recall of the ten nearest",
        value=_sample(f"{LARGE}.sketch.recall"),
        bar=0.97,
        aim="0.97",
        sense=">=",
    ),
    Figure(
        name="FAISS tier, bytes per image beside the codes",
        value=lambda samples: samples[f"{LARGE}.sketch.stored_bytes"] / LARGE,
        bar=50,
        aim="50",
        sense="<=",
    ),
    Figure(
        name="answers equal to brute force",
        value=lambda samples: min(samples.values["equal_to_brute_force"]),
        bar=1.0,
        aim="1",
        sense=">=",
    ),
    Figure(
        name="bytes / Seismic's, both without the dense neurons",
        value=_ratio(f"{SMALL}.ours.bytes_without_dense", f"{SMALL}.seismic.stored_bytes"),
        bar=0.5,
        aim="0.5",
        sense="<=",
    ),
    Figure(
        name="build CPU / Seismic's",
        value=_ratio(f"{SMALL}.ours.postings_cpu_s", f"{SMALL}.seismic.build_cpu_s"),
        bar=0.05,
        aim="0.05",
        sense="<=",
    ),
    Figure(
        name="postings build, CPU-s per million images",
        value=lambda samples: samples[f"{LARGE}.ours.postings_cpu_s"] / (LARGE / 1e6),
        bar=3,
        aim="1",
        sense="<=",
    ),
    Figure(
        name="codes + postings, bytes per image",
        value=lambda samples: samples[f"{LARGE}.ours.stored_bytes"] / LARGE,
        bar=285,
        aim="200",
        sense="<=",
    ),
    Figure(
        name="top-100 per neuron, thousand images per CPU-s",
        value=lambda samples: samples["tops.ours.per_cpu_s"] / 1000,
        bar=100,
        aim="250",
        sense=">=",
    ),
    Figure(
        name="top-100 per neuron, against dense torch.topk, CPU-seconds",
        value=_ratio("tops.ours.per_cpu_s", "tops.torch.per_cpu_s"),
        bar=40,
        aim="40",
        sense=">=",
    ),
    Figure(
        name="nearest neuron, 16384 x 768, ms",
        value=lambda samples: samples["neurons.16384.ours.wall_s"] * 1000,
        bar=2,
        aim="1",
        sense="<=",
    ),
    Figure(
        name="nearest neuron, 65536 x 1024, ms",
        value=lambda samples: samples["neurons.65536.ours.wall_s"] * 1000,
        bar=8,
        aim="4",
        sense="<=",
    ),
)
"""In the order in which they are printed."""
