"""The commands of `python -m index` that make an index: whole, or in parts on several machines."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from index.options import new_folder, refuse_half_characters
from phosphene.errors import SettingError

if TYPE_CHECKING:
    from index.build import BuildJob

__all__ = ["add_job_commands", "run_job"]


def add_job_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `build`, `append`, `compact`, `plan`, `run-shards` and `finish`."""
    build = commands.add_parser("build", help="build an index, or what is missing of it")
    append = commands.add_parser("append", help="build an index of another one's images and of new ones")
    append.add_argument("--index", type=Path, required=True, help="the index to append to; it stays as it is")
    plan = commands.add_parser("plan", help="begin an index that several machines build: list and digest its images")
    part = commands.add_parser("run-shards", help="make the shards of one part of a planned index, or what is missing")
    finish = commands.add_parser("finish", help="make what is missing of a planned index, and publish it")
    compact = commands.add_parser("compact", help="rewrite an index into full shards, without what was taken down")
    compact.add_argument("index", type=Path)
    compact.add_argument("--tombstones", type=Path, help="images to leave behind; without, small shards are merged")
    for command in (build, append, plan, part, finish):
        command.add_argument("corpus", help="folder, CSV or Parquet list, or WebDataset tars")
        command.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
        command.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    for command in (build, append, compact, plan, part, finish):
        command.add_argument("--out", type=new_folder, required=True, help="folder of the index to be")
        command.add_argument("--metrics-file", type=Path, help="Prometheus textfile to keep")
    for command in (build, plan):
        _add_plan(command)
    for command in (build, append, plan, finish):
        _add_words(command)
    for command in (build, append, part, finish):
        _add_workforce(command)
    part.add_argument(
        "--part", required=True, metavar="NUMBER/COUNT", help="which shards: every COUNT-th from NUMBER on, from 0"
    )


def run_job(options: argparse.Namespace) -> dict[str, object]:
    """Do what the command says; returns what it answers.

    Raises:
        PhospheneError, OSError: it cannot be done.
    """
    # Torch takes seconds to load; `--help` and a wrong option do without.
    from index.build import BuildResult, build_index
    from index.compact import CompactJob, compact_index
    from index.loose_files import refuse_within_artefact
    from index.metrics import MetricsFile
    from index.outcome import describe_outcome, outcome_figures
    from index.parts import Part, finish_parts, plan_parts, run_part
    from index.progress import open_progress
    from index.stages import MeasuredProgress

    refuse_half_characters([str(options.out.absolute())])
    part = Part.parse(options.part) if options.command == "run-shards" else None
    job = None if options.command == "compact" else _job(options)
    metrics = None
    if options.metrics_file is not None:
        refuse_within_artefact(options.metrics_file, what="metrics file", growing=[options.out])
        metrics = MetricsFile(options.metrics_file, options.out.name)
    console = Console(stderr=True)
    result: BuildResult | None = None
    record: dict[str, object] = {}
    with open_progress(console) as inner:
        progress = MeasuredProgress(inner, metrics)
        if job is None:
            result = compact_index(
                CompactJob(index=options.index, out=options.out, tombstones=options.tombstones), progress
            )
        elif part is not None:
            shard_count = run_part(job, part, progress)
            record = {"event": "shards", "part": options.part, "shards": shard_count}
        elif options.command == "plan":
            plan = plan_parts(job, progress)
            record = {"event": "planned", "plan_id": plan.id, "images": plan.row_count, "shards": len(plan.shards)}
        else:
            result = (finish_parts if options.command == "finish" else build_index)(job, progress)
    if result is not None:
        record = {"event": "index", "id": result.manifest.id, "plan_id": result.plan_id}
        record["was_finished"] = result.was_finished
    figures = {} if result is None else outcome_figures(result)
    progress.finish(figures)
    if result is not None and console.is_terminal:
        console.print(describe_outcome(result, progress.stages))
    stages = {name: round(stage.duration_s, 3) for name, stage in progress.stages.items()}
    return record | {"out": str(options.out)} | figures | {"stage_s": stages}


def _add_plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("--shard-images", type=int, default=65_536, help="rows per shard (%(default)s, the most)")
    command.add_argument("--batch", type=int, default=32, help="images per batch (%(default)s)")
    command.add_argument("--threads", type=int, default=2, help="CPU threads; part of the plan (%(default)s)")
    command.add_argument("--top", type=int, default=128, help="top exemplars per neuron (%(default)s)")
    command.add_argument("--spread", type=int, default=32, help="spread exemplars per neuron (%(default)s)")
    command.add_argument(
        "--no-maps", action="store_true", help="keep no maps of where neurons fire, at sites with patches"
    )
    command.add_argument(
        "--sketch-from",
        type=int,
        default=4_000_000,
        help="rows from which similar images are approximate (%(default)s)",
    )
    command.add_argument(
        "--ivf-from",
        type=int,
        default=200_000,
        help="rows from which approximate searches use inverted lists (%(default)s)",
    )
    command.add_argument(
        "--quantiser",
        choices=["fast-scan", "eight-bit"],
        default="fast-scan",
        help="what those lists hold: eight-bit can be searched on a GPU (%(default)s)",
    )


def _add_words(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--vocabulary",
        type=Path,
        help="file of words that may name neurons by the text tower, one a line; part of the plan (default: those of "
        "the index that is appended to, or of the bundle)",
    )


def _add_workforce(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="what runs the shards (%(default)s)"
    )
    command.add_argument("--ray-address", help="a Ray cluster that runs; without it one begins on this machine")
    command.add_argument(
        "--workers", type=int, default=1, help="processes that encode; no part of the plan (%(default)s)"
    )
    command.add_argument(
        "--max-bad-ratio",
        type=float,
        default=0.1,
        help="share of unusable images to put up with; at 0 every folder has to be readable too (%(default)s)",
    )


def _job(options: argparse.Namespace) -> BuildJob:
    from index.build import BuildJob
    from index.engines import LocalEngine, RayEngine
    from index.parts import planned
    from index.plan import IndexConfig, Quantiser
    from index.vocabulary import read_vocabulary

    if options.command in ("build", "plan"):
        config = IndexConfig(
            shard_image_count=options.shard_images,
            batch_images=options.batch,
            thread_count=options.threads,
            top_count=options.top,
            spread_count=options.spread,
            patch_maps=not options.no_maps,
            sketch_from_images=options.sketch_from,
            ivf_from_images=options.ivf_from,
            quantiser=Quantiser(options.quantiser),
        )
    elif options.command == "append":
        config = IndexConfig()  # That of the earlier index stands.
    else:
        config = planned(options.out).config
    named = getattr(options, "vocabulary", None)
    job = BuildJob(
        corpus=options.corpus,
        bundle=options.bundle,
        out=options.out,
        config=config,
        device=options.device,
        vocabulary=() if named is None else read_vocabulary(named),
    )
    if options.command == "plan":
        return job
    if options.ray_address is not None and options.engine != "ray":
        raise SettingError(f"--ray-address {options.ray_address} without --engine ray; say both, or neither")
    return replace(
        job,
        max_bad_ratio=options.max_bad_ratio,
        worker_count=options.workers,
        earlier=options.index if options.command == "append" else None,
        engine=RayEngine(address=options.ray_address) if options.engine == "ray" else LocalEngine(),
    )
