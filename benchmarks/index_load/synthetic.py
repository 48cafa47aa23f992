"""Codes with known statistics: Zipf frequencies, classes whose images share most of their neurons; needs numpy alone.

`Recipe` decides every byte. The same images are queried by others of the same kind, which are not among them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

__all__ = ["Recipe", "SparseRows", "dense_neurons", "load_rows", "make_rows", "write_rows"]

_POOL = 30
_FROM_POOL = 26
_BLOCK = 50_000
_DENSEST = 0.1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides the codes."""

    image_count: int
    """Rows that are searched."""
    query_count: int = 400
    """Rows that are asked for."""
    neuron_count: int = 16_384
    """Neurons; the one of rank r fires with a frequency that falls as 1/r."""
    class_count: int = 2_000
    """Classes, of equal size, in random order over the rows."""
    active: int = 32
    """Neurons that fire on an image (L0): 26 of its class's 30, and 6 of its own."""
    seed: int = 0
    """Decides everything else."""

    @property
    def name(self) -> str:
        """Of the folder it is kept in."""
        return f"{self.image_count}-{self.neuron_count}-{self.active}-{self.class_count}-{self.query_count}-{self.seed}"


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseRows:
    """Codes in rows: compressed sparse rows, values falling within each."""

    offsets: np.ndarray
    """int64 [rows + 1]."""
    neuron_ids: np.ndarray
    """int32 [entries]."""
    values: np.ndarray
    """float16 [entries]."""

    @property
    def row_count(self) -> int:
        """Rows."""
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> SparseRows:
        """Rows from `start` to before `stop`."""
        begin, end = int(self.offsets[start]), int(self.offsets[stop])
        return SparseRows(
            offsets=self.offsets[start : stop + 1] - begin,
            neuron_ids=self.neuron_ids[begin:end],
            values=self.values[begin:end],
        )

    def without(self, is_left_out: np.ndarray) -> SparseRows:
        """The same rows without some neurons."""
        kept = ~is_left_out[self.neuron_ids]
        offsets = np.zeros_like(self.offsets)
        offsets[1:] = np.cumsum(kept)[self.offsets[1:] - 1] if len(kept) else 0
        return SparseRows(offsets=offsets, neuron_ids=self.neuron_ids[kept], values=self.values[kept])


def dense_neurons(rows: SparseRows, recipe: Recipe) -> np.ndarray:
    """Which neurons are too dense to tell images apart: bool [neurons]."""
    density = np.bincount(rows.neuron_ids, minlength=recipe.neuron_count) / rows.row_count
    return density > max(_DENSEST, 8 * recipe.active / recipe.neuron_count)


def write_rows(recipe: Recipe, folder: Path) -> Path:
    """Make the images and the queries of a recipe, unless they are there; returns their folder."""
    target = folder / recipe.name
    if (target / "recipe.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    images, queries = make_rows(recipe)
    for name, rows in (("images", images), ("queries", queries)):
        np.save(target / f"{name}-offsets.npy", rows.offsets)
        np.save(target / f"{name}-neuron_ids.npy", rows.neuron_ids)
        np.save(target / f"{name}-values.npy", rows.values)
    (target / "recipe.json").write_text(json.dumps(asdict(recipe)))
    return target


def load_rows(folder: Path, name: str) -> SparseRows:
    """Map the `images` or the `queries` of a folder."""
    parts = {
        field: np.load(folder / f"{name}-{field}.npy", mmap_mode="r").view(np.ndarray)
        for field in ("offsets", "neuron_ids", "values")
    }
    return SparseRows(**parts)


def make_rows(recipe: Recipe) -> tuple[SparseRows, SparseRows]:
    """The images and the queries of a recipe."""
    generator = np.random.default_rng(recipe.seed)
    chances = 1.0 / np.arange(1, recipe.neuron_count + 1)
    ranks = generator.permutation(recipe.neuron_count)
    keys = np.log(chances) + generator.gumbel(size=(recipe.class_count, recipe.neuron_count))
    pools = np.argpartition(-keys, _POOL, axis=1)[:, :_POOL]
    strengths = generator.lognormal(0.0, 0.5, size=pools.shape)
    blocks = list(_blocks(recipe, generator, pools, strengths, np.cumsum(chances) / chances.sum()))
    neuron_ids = ranks.astype(np.int32)[np.concatenate([block[0] for block in blocks])]
    values = np.concatenate([block[1] for block in blocks])
    counts = np.concatenate([block[2] for block in blocks])
    whole = SparseRows(offsets=np.concatenate([[0], np.cumsum(counts)]), neuron_ids=neuron_ids, values=values)
    return whole.part(0, recipe.image_count), whole.part(recipe.image_count, whole.row_count)


def _blocks(
    recipe: Recipe, generator: np.random.Generator, pools: np.ndarray, strengths: np.ndarray, ladder: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Neurons by rank, values and counts of some rows at a time."""
    left = recipe.image_count + recipe.query_count
    while left:
        size = min(left, _BLOCK)
        left -= size
        owners = generator.integers(recipe.class_count, size=size)
        chosen = np.argpartition(generator.random((size, _POOL)), _FROM_POOL, axis=1)[:, :_FROM_POOL]
        shared = pools[owners[:, None], chosen]
        own = np.searchsorted(ladder, generator.random((size, recipe.active - _FROM_POOL)))
        means = np.concatenate([strengths[owners[:, None], chosen], np.full(own.shape, 0.7)], axis=1)
        values = (means * generator.lognormal(0.0, 0.35, size=means.shape)).astype(np.float16)
        ids = np.concatenate([shared, own], axis=1)
        order = np.argsort(ids, axis=1, kind="stable")
        ids, values = np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1)
        values[:, 1:][ids[:, 1:] == ids[:, :-1]] = 0
        order = np.argsort(-values, axis=1, kind="stable")
        ids, values = np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1)
        fires = values > 0
        yield ids[fires], values[fires], fires.sum(axis=1)
