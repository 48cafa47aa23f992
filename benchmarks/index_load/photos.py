"""Real codes: the photos of ../shared through DeiT-Tiny and an SAE trained on them, by the commands of Phosphene.

Every sixteenth photo is a query; the rest are the images. Made once, which takes minutes, and kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.index_load.synthetic import Recipe, SparseRows
from index.codes_store import CodesStore

__all__ = ["PhotosMissing", "cut_queries", "photo_recipe"]

_SHARED = Path("../shared")
_CORPUS, _ENCODER = _SHARED / "photos/caltech101/labels.csv", _SHARED / "models/deit-tiny-patch16-224"
_NEURONS, _ACTIVE = 1_536, 32
_QUERY_STEP = 16


class PhotosMissing(Exception):
    """There are no real codes here; its text says why."""


def photo_recipe(folder: Path, *, may_make: bool) -> Recipe:
    """The rows of the photos, as synthetic ones are kept.

    Args:
        folder: where rows are kept.
        may_make: whether there are minutes to make them.

    Raises:
        PhotosMissing: they are not there and cannot be made.
    """
    index = folder / "photos" / "index"
    if not (index / "manifest.json").exists():
        missing = [str(path) for path in (_CORPUS, _ENCODER) if not path.exists()]
        if missing:
            raise PhotosMissing(f"not there: {', '.join(missing)}")
        if not may_make:
            raise PhotosMissing("made by the full benchmark alone, which takes minutes for it")
        _make(folder / "photos")
    images, queries = cut_queries(_rows(index))
    recipe = Recipe(
        image_count=images.row_count,
        query_count=queries.row_count,
        neuron_count=_NEURONS,
        active=_ACTIVE,
        class_count=0,
    )
    target = folder / recipe.name
    target.mkdir(exist_ok=True)
    for name, rows in (("images", images), ("queries", queries)):
        np.save(target / f"{name}-offsets.npy", rows.offsets)
        np.save(target / f"{name}-neuron_ids.npy", rows.neuron_ids)
        np.save(target / f"{name}-values.npy", rows.values)
    (target / "recipe.json").write_text(json.dumps(asdict(recipe)))
    return recipe


def cut_queries(rows: SparseRows) -> tuple[SparseRows, SparseRows]:
    """The images and the queries among rows; empty codes are neither."""
    filled = np.flatnonzero(np.diff(rows.offsets))
    is_query = np.arange(len(filled)) % _QUERY_STEP == 0
    return _take(rows, filled[~is_query]), _take(rows, filled[is_query])


def _take(rows: SparseRows, chosen: np.ndarray) -> SparseRows:
    parts = [rows.part(int(row), int(row) + 1) for row in chosen]
    return SparseRows(
        offsets=np.cumsum([0, *(len(part.values) for part in parts)]),
        neuron_ids=np.concatenate([part.neuron_ids for part in parts]).astype(np.int32),
        values=np.concatenate([part.values for part in parts]),
    )


def _rows(index: Path) -> SparseRows:
    stores = [CodesStore(shard) for shard in sorted((index / "shards").iterdir())]
    counts = np.concatenate([np.diff(store.offsets) for store in stores])
    return SparseRows(
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        neuron_ids=np.concatenate([store.neuron_ids for store in stores]).astype(np.int32),
        values=np.concatenate([store.values for store in stores]),
    )


def _make(folder: Path) -> None:
    bundle, index = folder / "bundle", folder / "index"
    site = ("--encoder", str(_ENCODER), "--block", "10", "--tokens", "cls")
    sae = ("--neurons", str(_NEURONS), "--k", str(_ACTIVE), "--steps", "1500", "--batch", "512")
    _run("training", "fit", str(_CORPUS), *site, *sae, "--out", str(bundle))
    _run("index", "build", str(_CORPUS), "--bundle", str(bundle), "--out", str(index))


def _run(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PhotosMissing((done.stderr.strip().splitlines() or ["no reason given"])[-1])
