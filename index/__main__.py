"""The command line of the index: `python -m index build | show | verify | diff | activate`.

python -m index build photos/ --bundle build/bundle --out build/index --workers 2
python -m index show build/index
python -m index verify build/index
python -m index diff build/index build/other-index
python -m index activate build/CURRENT --bundle scenes=build/bundle --index scenes=build/index
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from phosphene.errors import PhospheneError, SettingError

__all__ = ["main"]

_PLAIN_WIDTH = 120
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 refused, 130 stopped by the user."""
    options = _parser().parse_args(arguments)
    try:
        match options.command:
            case "build":
                _build(options)
            case "show":
                _show(options)
            case "verify":
                _verify(options)
            case "diff":
                _diff(options)
            case _:
                _activate(options)
    except PhospheneError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        place = "" if error.filename is None else f" ({error.filename})"
        sys.stderr.write(
            f"error: {error.strerror or error}{place}; make room or mend access, or choose another place\n"
        )
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m index", description="Precompute what a bundle says of a corpus.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build an index, or what is missing of it")
    build.add_argument("corpus", help="folder, CSV or Parquet list, or WebDataset tars")
    build.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    build.add_argument("--out", type=Path, required=True, help="folder of the index to be")
    build.add_argument("--shard-images", type=int, default=65_536, help="rows per shard (%(default)s, the most)")
    build.add_argument("--engine", choices=["local"], default="local", help="what runs the shards (%(default)s)")
    build.add_argument(
        "--workers", type=int, default=1, help="processes that encode; no part of the plan (%(default)s)"
    )
    build.add_argument("--batch", type=int, default=32, help="images per batch (%(default)s)")
    build.add_argument("--threads", type=int, default=2, help="CPU threads; part of the plan (%(default)s)")
    build.add_argument("--top", type=int, default=128, help="top exemplars per neuron (%(default)s)")
    build.add_argument("--spread", type=int, default=32, help="spread exemplars per neuron (%(default)s)")
    build.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    build.add_argument(
        "--max-bad-ratio", type=float, default=0.1, help="share of unusable images to put up with (%(default)s)"
    )
    build.add_argument(
        "--sketch-from",
        type=int,
        default=4_000_000,
        help="rows from which similar images are approximate (%(default)s)",
    )
    build.add_argument("--metrics-file", type=Path, help="Prometheus textfile to keep")
    show = commands.add_parser("show", help="print what is in an index")
    show.add_argument("index", type=Path)
    show.add_argument("--names", type=int, default=20, help="named neurons to list (%(default)s)")
    verify = commands.add_parser("verify", help="check every file of an index, and that they say the same")
    verify.add_argument("index", type=Path)
    diff = commands.add_parser("diff", help="list the neurons that fire more in another index of the same bundle")
    diff.add_argument("first", type=Path)
    diff.add_argument("second", type=Path)
    diff.add_argument("--count", type=int, default=20, help="neurons to list (%(default)s)")
    activate = commands.add_parser("activate", help="name the generation that a service serves after its next reload")
    activate.add_argument("current", type=Path, help="the file that PHOSPHENE_CURRENT names")
    activate.add_argument(
        "--bundle", metavar="NAME=FOLDER", action="append", required=True, help="the first is the default"
    )
    activate.add_argument("--index", metavar="NAME=FOLDER", action="append", default=[])
    return parser


def _build(options: argparse.Namespace) -> None:
    # Torch takes seconds to load; `--help` and a wrong option do without.
    from index.build import BuildJob, build_index
    from index.metrics import MetricsFile
    from index.outcome import describe_outcome, outcome_figures
    from index.plan import IndexConfig
    from index.progress import open_progress
    from index.stages import MeasuredProgress

    job = BuildJob(
        corpus=options.corpus,
        bundle=options.bundle,
        out=options.out,
        config=IndexConfig(
            shard_image_count=options.shard_images,
            batch_images=options.batch,
            thread_count=options.threads,
            top_count=options.top,
            spread_count=options.spread,
            sketch_from_images=options.sketch_from,
        ),
        device=options.device,
        max_bad_ratio=options.max_bad_ratio,
        worker_count=options.workers,
    )
    metrics = None if options.metrics_file is None else MetricsFile(options.metrics_file, options.out.name)
    console = Console(stderr=True)
    with open_progress(console) as inner:
        progress = MeasuredProgress(inner, metrics)
        result = build_index(job, progress)
    figures = outcome_figures(result)
    progress.finish(figures)
    if console.is_terminal:
        console.print(describe_outcome(result, progress.stages))
    _answer(
        {
            "event": "index",
            "out": str(options.out),
            "id": result.manifest.id,
            "plan_id": result.plan_id,
            "was_finished": result.was_finished,
            **figures,
            "stage_s": {name: round(stage.duration_s, 3) for name, stage in progress.stages.items()},
        }
    )


def _show(options: argparse.Namespace) -> None:
    from index.reader import open_index
    from index.show import describe_index

    with open_index(options.index) as index:
        # Off a terminal rich assumes 80 columns, too few for a digest and its name.
        console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
        console.print(describe_index(options.index, index, name_count=options.names))


def _verify(options: argparse.Namespace) -> None:
    from index.plan import plan_shards
    from index.progress import open_progress
    from index.verify import verify_index
    from phosphene.manifest import read_manifest

    plan = read_manifest(options.index).config.get("plan", {})
    shards = plan_shards(int(plan.get("row_count", 0)), int(plan.get("shard_image_count", 1)))
    with open_progress(Console(stderr=True)) as progress:
        progress.begin("verify", len(shards), 0, "shards")
        manifest = verify_index(options.index, advance=progress.advance)
    _answer({"event": "verified", "id": manifest.id, "shards": len(shards), "files": len(manifest.files)})


def _diff(options: argparse.Namespace) -> None:
    from index.diff import describe_shifts, neurons_firing_more
    from index.reader import open_index

    with open_index(options.first) as first, open_index(options.second) as second:
        shifts = neurons_firing_more(first, second)
    console = Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    console.print(describe_shifts(shifts, count=options.count))


def _activate(options: argparse.Namespace) -> None:
    from phosphene.current import save_current

    current = save_current(
        options.current, bundles=_named_folders(options.bundle), indexes=_named_folders(options.index)
    )
    _answer(
        {
            "event": "activated",
            "current": str(options.current),
            "bundles": {member.name: member.id for member in current.bundles},
            "indexes": {member.name: member.id for member in current.indexes},
        }
    )


def _named_folders(entries: Sequence[str]) -> dict[str, Path]:
    """Read `NAME=FOLDER` entries; raises `SettingError`."""
    folders: dict[str, Path] = {}
    for entry in entries:
        name, separator, folder = entry.partition("=")
        if not separator or not _NAME.fullmatch(name) or not folder:
            raise SettingError(
                f"{entry!r} must be NAME=FOLDER, the name of 1-64 characters from a-z, 0-9, '.', '_', '-'"
            )
        if name in folders:
            raise SettingError(f"the name {name} is given twice; names must differ")
        folders[name] = Path(folder)
    return folders


def _answer(record: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
