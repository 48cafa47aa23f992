"""The embedded encoder and a few of its scenes, for the tests of recipes and sweeps."""

from __future__ import annotations

from pathlib import Path

from embedded.scenes import render_corpus

EMBEDDED_ENCODER = Path(__file__).resolve().parents[2] / "embedded" / "tiny-clip"


def write_scenes(folder: Path, count: int) -> Path:
    """Render so many scenes; returns the list of them."""
    render_corpus(folder, 0, count, 64)
    return folder / "captions.csv"
