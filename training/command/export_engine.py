"""`python -m training export-engine`: a bundle's graph for ONNX Runtime."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.command import options as shared
from training.engine_export import export_engine
from training.progress import Progress


def add(command: argparse.ArgumentParser) -> None:
    """Its options."""
    command.add_argument("bundle", type=Path, help="the bundle's folder")
    shared.add_out(command, "the engine's folder")
    command.add_argument(
        "--int8", action="store_true", help="8-bit weights: faster on the CPU, codes near those of float32 only"
    )


def run(options: argparse.Namespace, progress: Progress) -> None:
    """Do it and say what came out; errors as `training.engine_export.export_engine`."""
    result = export_engine(options.bundle, options.out, is_int8=options.int8)
    measured = result.manifest.config["measured"]
    progress.event(
        "published" if result.is_new else "already finished",
        path=str(result.path),
        engine=result.manifest.config["engine"],
        id=result.manifest.id,
        image_difference=measured["image_difference"],
        top10_overlap=measured["top10_overlap"],
    )
