"""Activations whose directions are known: sparse sums of unit vectors with Zipf frequencies, and a little noise.

A row is sum_i on_i strength_i u_i + noise. Direction i (from 1) is on with a probability that falls as i^-exponent and
is scaled so that `mean_active` directions are on in an average row; none is on in more than half of them. Strengths are
uniform on 1..3, noise is white. Rows are written centred and with a mean square of one, from the moments that follow
from the recipe, so that no contestant gains by another's normaliser. numpy alone; blocks keep memory low.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["Recipe", "draw_rows", "frequencies", "make_data", "make_directions"]

_BLOCK_ROWS = 2048
_FREQUENCY_LIMIT = 0.5
_STRENGTHS = (1.0, 3.0)
_DIRECTIONS, _TRAINING, _HELD_OUT = range(3)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the rows are made of."""

    width: int
    """Coordinates of a row."""
    training_rows: int
    """Rows to learn from."""
    held_out_rows: int
    """Rows of the same directions that nobody learns from."""
    direction_count: int = 2048
    """Known directions."""
    mean_active: float = 20.0
    """Directions that are on in a row, on average."""
    exponent: float = 1.0
    """Of Zipf's law."""
    noise_share: float = 0.01
    """Variance of the noise as a share of the variance of the sums."""
    seed: int = 0
    """Decides everything."""


def make_data(recipe: Recipe, folder: Path) -> Path:
    """Write `directions.npy`, `training.npy` and `held_out.npy`, once; returns their folder under `folder`."""
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()
    target = folder / f"d{recipe.width}-{digest[:12]}"
    target.mkdir(parents=True, exist_ok=True)
    directions = make_directions(recipe)
    _once(target / "directions.npy", lambda path: np.save(path, directions))
    for name, stream, row_count in (
        ("training", _TRAINING, recipe.training_rows),
        ("held_out", _HELD_OUT, recipe.held_out_rows),
    ):
        _once(target / f"{name}.npy", _writer(recipe, directions, stream, row_count))
    return target


def make_directions(recipe: Recipe) -> Float[np.ndarray, "directions d"]:
    """Unit vectors drawn evenly from the sphere."""
    drawn = _generator(recipe, _DIRECTIONS).standard_normal((recipe.direction_count, recipe.width))
    unit: Float[np.ndarray, "directions d"] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


def frequencies(recipe: Recipe) -> Float[np.ndarray, " directions"]:
    """The share of rows in which each direction is on, the most frequent first.

    Raises:
        ValueError: no scale of the law gives so many active directions.
    """
    law = np.arange(1, recipe.direction_count + 1, dtype=np.float64) ** -recipe.exponent
    limit = _FREQUENCY_LIMIT * recipe.direction_count
    if not 0 < recipe.mean_active < limit:
        raise ValueError(f"mean_active is {recipe.mean_active}; it must be above 0 and below {limit:g}")
    low, high = 0.0, _FREQUENCY_LIMIT / law[-1]
    for _ in range(100):
        middle = (low + high) / 2
        if np.minimum(middle * law, _FREQUENCY_LIMIT).sum() < recipe.mean_active:
            low = middle
        else:
            high = middle
    often: Float[np.ndarray, " directions"] = np.minimum(high * law, _FREQUENCY_LIMIT)
    return often


def draw_rows(
    recipe: Recipe,
    directions: Float[np.ndarray, "directions d"],
    row_count: int,
    generator: np.random.Generator,
) -> tuple[Float[np.ndarray, "rows d"], Bool[np.ndarray, "rows directions"]]:
    """Draw rows, centred and with a mean square of one, and which directions are on in each."""
    often = frequencies(recipe)
    mean_strength, mean_square_strength = _strength_moments()
    variance = float((often * mean_square_strength - (often * mean_strength) ** 2).sum())
    noise_variance = recipe.noise_share * variance
    is_on = generator.random((row_count, recipe.direction_count), dtype=np.float32) < often.astype(np.float32)
    codes = np.zeros((row_count, recipe.direction_count), np.float32)
    codes[is_on] = generator.uniform(*_STRENGTHS, int(is_on.sum()))
    codes -= (often * mean_strength).astype(np.float32)
    noise = generator.standard_normal((row_count, recipe.width), dtype=np.float32)
    rows = codes @ directions + noise * np.float32((noise_variance / recipe.width) ** 0.5)
    rows /= np.float32(((variance + noise_variance) / recipe.width) ** 0.5)
    return rows, is_on


def _writer(
    recipe: Recipe, directions: Float[np.ndarray, "directions d"], stream: int, row_count: int
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        generator = _generator(recipe, stream)
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(row_count, recipe.width))
        for start in range(0, row_count, _BLOCK_ROWS):
            count = min(_BLOCK_ROWS, row_count - start)
            file[start : start + count], _ = draw_rows(recipe, directions, count, generator)
        file.flush()

    return write


def _once(path: Path, write: Callable[[Path], None]) -> None:
    if path.exists():
        return
    partial = path.with_name(f"partial-{path.name}")
    write(partial)
    partial.rename(path)


def _generator(recipe: Recipe, stream: int) -> np.random.Generator:
    return np.random.default_rng([recipe.seed, stream])


def _strength_moments() -> tuple[float, float]:
    low, high = _STRENGTHS
    return (low + high) / 2, (low * low + low * high + high * high) / 3
