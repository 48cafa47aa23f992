"""The command line of the index: `python -m index build | show | verify`.

python -m index build photos/ --bundle build/bundle --out build/index
python -m index show build/index
python -m index verify build/index
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from phosphene.errors import PhospheneError

__all__ = ["main"]

_PLAIN_WIDTH = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 2 refused, 130 stopped by the user."""
    options = _parser().parse_args(arguments)
    try:
        match options.command:
            case "build":
                _build(options)
            case "show":
                _show(options)
            case _:
                _verify(options)
    except PhospheneError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        place = "" if error.filename is None else f" ({error.filename})"
        sys.stderr.write(
            f"error: {error.strerror or error}{place}; make room or mend access, or choose another --out\n"
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
    build.add_argument("--shard-images", type=int, default=1024, help="rows per shard (%(default)s)")
    build.add_argument("--batch", type=int, default=32, help="images per batch (%(default)s)")
    build.add_argument("--threads", type=int, default=2, help="CPU threads; part of the plan (%(default)s)")
    build.add_argument("--top", type=int, default=128, help="top exemplars per neuron (%(default)s)")
    build.add_argument("--spread", type=int, default=32, help="spread exemplars per neuron (%(default)s)")
    build.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    build.add_argument(
        "--max-bad-ratio", type=float, default=0.1, help="share of unusable images to put up with (%(default)s)"
    )
    show = commands.add_parser("show", help="print what is in an index")
    show.add_argument("index", type=Path)
    show.add_argument("--names", type=int, default=20, help="named neurons to list (%(default)s)")
    verify = commands.add_parser("verify", help="check every file of an index")
    verify.add_argument("index", type=Path)
    return parser


def _build(options: argparse.Namespace) -> None:
    # Torch takes seconds to load; `--help` and a wrong option do without.
    from index.build import BuildJob, build_index
    from index.plan import IndexConfig
    from index.progress import open_progress

    job = BuildJob(
        corpus=options.corpus,
        bundle=options.bundle,
        out=options.out,
        config=IndexConfig(
            shard_images=options.shard_images,
            batch_images=options.batch,
            thread_count=options.threads,
            top_count=options.top,
            spread_count=options.spread,
        ),
        device=options.device,
        max_bad_ratio=options.max_bad_ratio,
    )
    with open_progress(Console(stderr=True)) as progress:
        result = build_index(job, progress)
    _answer(
        {
            "event": "index",
            "out": str(options.out),
            "id": result.manifest.id,
            "plan_id": result.plan_id,
            "was_finished": result.was_finished,
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
    from index.reader import open_index

    with open_index(options.index) as index:
        _answer({"event": "verified", "id": index.id, "images": index.image_count, "neurons": index.neuron_count})


def _answer(record: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
