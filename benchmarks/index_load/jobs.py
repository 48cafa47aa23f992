"""Whole shards and whole jobs: which processes are run for them, and the figures that have a bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from benchmarks.samples import Samples

__all__ = ["FULL", "JOB_FIGURES", "QUICK", "JobPlan", "measure_jobs"]

_NEURONS = 16_384


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """How long to measure."""

    round_count: int
    """Times that everything is done."""
    shard_images: int
    """Images of the shard that is finished."""
    job_images: int
    """Photos that are encoded, bare and in a job."""
    memory_images: int
    """Pictures of the smaller job; the larger one has ten times as many."""


QUICK = JobPlan(round_count=1, shard_images=65_536, job_images=1_200, memory_images=2_000)
FULL = JobPlan(round_count=2, shard_images=65_536, job_images=2_000, memory_images=5_000)


def measure_jobs(
    plan: JobPlan, codes: Path, run_once: Callable[..., dict[str, Any]], samples: Samples, remark: Callable[[str], None]
) -> None:
    """Measure everything.

    Args:
        plan: how long.
        codes: folder of synthetic codes.
        run_once: runs a module of this package in a process of its own, with these arguments.
        samples: filled.
        remark: says something to people.
    """
    for _ in range(plan.round_count):
        answer = run_once("finalisation", str(codes), str(_NEURONS), str(plan.shard_images))
        samples.add("shard.cpu_s_per_million", answer["shard_cpu_s"])
        samples.add("shard.score_cpu_s_per_million", answer["score_cpu_s"])
        answer = run_once("whole_job", "share", str(plan.job_images))
        samples.add("job.bare.cpu_s", answer["bare_cpu_s"])
        samples.add("job.kept_bare.cpu_s", answer["kept_bare_cpu_s"])
        samples.add("job.job.cpu_s", answer["job_cpu_s"])
    for name, count in (("small", plan.memory_images), ("large", 10 * plan.memory_images)):
        samples.add(f"memory.{name}.bytes", run_once("whole_job", "memory", str(count))["peak_bytes"])
    grown = samples["memory.large.bytes"] - samples["memory.small.bytes"]
    remark(f"MonoSemanticity: {samples['shard.score_cpu_s_per_million']:.1f} CPU-s per million images, 512 wide")
    kept = samples["job.kept_bare.cpu_s"] / samples["job.job.cpu_s"]
    remark(f"whole job: {kept:.2f} of its CPU is a bare encoder's that keeps the memory that it frees, as the job does")
    remark(
        f"memory of a job: {samples['memory.small.bytes'] / 2**20:.0f} MiB with {plan.memory_images} images, "
        f"{samples['memory.large.bytes'] / 2**20:.0f} MiB with ten times as many: "
        f"{grown / (9 * plan.memory_images):.0f} bytes for each more"
    )


JOB_FIGURES: tuple[Figure, ...] = (
    Figure(
        name="whole shard finalisation, CPU-s per million images",
        value=lambda samples: samples["shard.cpu_s_per_million"],
        bar=15,
        aim="8",
        sense="<=",
    ),
    Figure(
        name="whole job, (encoder + decode CPU, bare) / job CPU",
        value=lambda samples: samples["job.bare.cpu_s"] / samples["job.job.cpu_s"],
        bar=0.9,
        aim="0.95",
        sense=">=",
    ),
    Figure(
        name="whole job, memory with 10x more images / memory",
        value=lambda samples: samples["memory.large.bytes"] / samples["memory.small.bytes"],
        bar=1.1,
        aim="1",
        sense="<=",
    ),
)
"""Printed after those of retrieval."""
