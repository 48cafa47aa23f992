"""The figures of the index that have a bar; pure."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.figures import Figure
from benchmarks.samples import Samples

__all__ = ["FIGURES", "LARGE", "NOT_MEASURABLE", "SMALL"]

SMALL, LARGE = 200_000, 1_000_000
"""Images that are searched."""
NOT_MEASURABLE = (
    "FAISS tier against scipy at recall >= .97, 1 M images: >= 30x, and its bytes per image <= 50",
    "whole shard finalisation: <= 15 CPU-s per million images",
    "whole job: (encoder + decode CPU, bare) / job CPU >= 0.9, and RSS flat",
    "the same on real codes",
)
"""Lines of the table that this benchmark has no code for."""


def _ratio(over: str, under: str) -> Callable[[Samples], float]:
    return lambda samples: samples[over] / samples[under]


def _sample(name: str) -> Callable[[Samples], float]:
    return lambda samples: samples[name]


def _faster(images: int, peer: str, shown: str, bar: float, aim: str) -> list[Figure]:
    return [
        Figure(
            name=f"similar images, {images // 1000} k, against {shown}, {unit}",
            value=_ratio(f"{images}.{peer}.{sample}", f"{images}.ours.{sample}"),
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
    Figure(
        name="answers equal to brute force",
        value=_sample("equal_to_brute_force"),
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
"""In the order of the issue."""
