"""Reads harvested activations: held-out split by image, moments, and shuffled batches from (seed, epoch).

Knows nothing of encoders or autoencoders. Memory stays bounded: rows are shuffled within windows of shards, and the
shards of a window change with every epoch. What a batch holds follows from (seed, step) alone, so that a resumed run
sees the same data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from phosphene.errors import CorpusError
from phosphene.manifest import Manifest, open_artefact
from training.shards import read_records

MIN_IMAGE_COUNT = 16
"""Images that a corpus must yield: fewer leave nothing to hold out."""

_WINDOW_BYTES = 256 << 20
_HELD_OUT_LIMIT_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One slice of the harvest."""

    path: Path
    """The `.npy` file of residuals, [rows, d]."""
    image_rows: Int[np.ndarray, " rows"]
    """Corpus row of the image that each residual comes from."""
    held_out: Bool[np.ndarray, " rows"]
    """Which residuals belong to held-out images."""

    @property
    def training_count(self) -> int:
        """Residuals to train on."""
        return int((~self.held_out).sum())

    def load(self, chosen: Bool[np.ndarray, " rows"]) -> Float32[np.ndarray, "chosen d"]:
        """The chosen residuals in float32."""
        stored = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return np.asarray(stored[chosen], dtype=np.float32)


class Activations:
    """All residuals of a corpus at a site, split by image into training rows and two held-out halves."""

    def __init__(self, path: Path, *, seed: int) -> None:
        """Check the artefact and split its images.

        Args:
            path: a harvest.
            seed: decides which images are held out, and the order of the batches.

        Raises:
            ArtefactMissing, ArtefactDamaged: the artefact is not whole.
            CorpusError: too few images.
        """
        self.manifest: Manifest = open_artefact(path, kind="activations")
        self._seed = seed
        records = read_records(path)
        image_rows = [np.load(path / f"{record.name}.rows.npy", allow_pickle=False) for record in records]
        images = np.unique(np.concatenate(image_rows))
        if len(images) < MIN_IMAGE_COUNT:
            raise CorpusError(
                f"only {len(images)} images of the corpus can be read; the least is {MIN_IMAGE_COUNT}: add images"
            )
        tokens_per_image = max(1, sum(map(len, image_rows)) // len(images))
        held_out = np.random.default_rng([seed, 0]).permutation(images)[: held_out_count(len(images), tokens_per_image)]
        self._halves = (np.sort(held_out[::2]), np.sort(held_out[1::2]))
        self.shards = [
            Shard(path=path / f"{record.name}.npy", image_rows=rows, held_out=np.isin(rows, held_out))
            for record, rows in zip(records, image_rows, strict=True)
        ]
        self.image_count = len(images)
        self.held_out_image_count = len(held_out)
        self.training_count = sum(shard.training_count for shard in self.shards)
        self.width: int = records[0].width
        self._loaded: tuple[tuple[int, ...], Float32[np.ndarray, "rows d"]] | None = None

    def moments(self) -> tuple[Float[Tensor, " d"], float]:
        """Mean of the training rows, and their mean square about it, per coordinate."""
        total = np.zeros(self.width)
        squares = np.zeros(self.width)
        for shard in self.shards:
            rows = shard.load(~shard.held_out).astype(np.float64)
            total += rows.sum(axis=0)
            squares += np.square(rows).sum(axis=0)
        mean = total / self.training_count
        mean_square = float((squares / self.training_count - np.square(mean)).mean())
        return torch.from_numpy(mean.astype(np.float32)), max(mean_square, 0.0)

    def held_out(self, half: int) -> Float[Tensor, "rows d"]:
        """Residuals of one half (0 or 1) of the held-out images, in corpus order."""
        parts = [shard.load(np.isin(shard.image_rows, self._halves[half])) for shard in self.shards]
        return torch.from_numpy(np.concatenate(parts))

    def sample(self, limit: int) -> Float[Tensor, "rows d"]:
        """At most `limit` training rows, spread evenly over the shards, the same in every run."""
        parts = []
        for index, shard in enumerate(self.shards):
            share = -(-limit * shard.training_count // self.training_count)
            rows = np.flatnonzero(~shard.held_out)
            kept = np.random.default_rng([self._seed, 1, index]).permutation(rows)[:share]
            chosen = np.zeros(len(shard.held_out), dtype=bool)
            chosen[kept] = True
            parts.append(shard.load(chosen))
        return torch.from_numpy(np.concatenate(parts)[:limit])

    def batches(self, batch_rows: int, *, first_step: int) -> Iterator[Float[Tensor, "rows d"]]:
        """Batches from step `first_step` on, without end; every epoch drops its last incomplete batch.

        Args:
            batch_rows: rows per batch; `training_count`, where that is less: unreadable images have no rows.
            first_step: how many batches an earlier run has used.
        """
        batch_rows = min(batch_rows, self.training_count)
        batches_per_epoch = self.training_count // batch_rows
        epoch, done = divmod(first_step, batches_per_epoch)
        while True:
            rows = self._epoch_rows(epoch, skip=done * batch_rows)
            yield from _cut(rows, batch_rows, batches_per_epoch - done)
            epoch, done = epoch + 1, 0

    def _epoch_rows(self, epoch: int, *, skip: int) -> Iterator[Float32[np.ndarray, "rows d"]]:
        generator = np.random.default_rng([self._seed, 2, epoch])
        for window in self._windows(generator.permutation(len(self.shards))):
            order = generator.permutation(sum(self.shards[index].training_count for index in window))
            if skip < len(order):
                yield self._load_window(window)[order[skip:]]
            skip = max(0, skip - len(order))

    def _windows(self, order: Int[np.ndarray, " shards"]) -> Iterator[tuple[int, ...]]:
        window: list[int] = []
        size_bytes = 0
        for index in order.tolist():
            window.append(index)
            size_bytes += self.shards[index].training_count * self.width * 4
            if size_bytes >= _WINDOW_BYTES:
                yield tuple(sorted(window))
                window, size_bytes = [], 0
        if window:
            yield tuple(sorted(window))

    def _load_window(self, window: tuple[int, ...]) -> Float32[np.ndarray, "rows d"]:
        # A corpus that fits into one window is read once, not once an epoch.
        if self._loaded is None or self._loaded[0] != window:
            self._loaded = None
            parts = [self.shards[index].load(~self.shards[index].held_out) for index in window]
            self._loaded = (window, np.concatenate(parts))
        return self._loaded[1]


def held_out_count(image_count: int, tokens_per_image: int) -> int:
    """How many images are held out: a tenth, but at least 64 or a quarter, and at most 65,536 tokens; always even."""
    wanted = max(image_count // 10, min(image_count // 4, 64))
    limit = max(_HELD_OUT_LIMIT_ROWS // tokens_per_image, 4)
    return min(wanted, limit) // 2 * 2


def _cut(
    blocks: Iterator[Float32[np.ndarray, "rows d"]], batch_rows: int, batch_count: int
) -> Iterator[Float[Tensor, "rows d"]]:
    carried: Float32[np.ndarray, "rows d"] | None = None
    for block in blocks:
        rows = block if carried is None else np.concatenate([carried, block])
        whole = min(len(rows) // batch_rows, batch_count)
        for index in range(whole):
            yield torch.from_numpy(rows[index * batch_rows : (index + 1) * batch_rows])
        batch_count -= whole
        carried = rows[whole * batch_rows :]
