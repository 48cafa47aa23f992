"""Reads harvested activations: held-out split by image, moments, and shuffled batches from (seed, epoch).

Knows nothing of encoders or autoencoders. Memory stays bounded whatever the corpus: files are memory-mapped, rows are
shuffled within windows of shards, one window is in memory at a time, and the shards of a window change with every
epoch. What a batch holds follows from (seed, step) alone, so that a resumed run sees the same data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from phosphene.errors import CorpusError
from phosphene.manifest import Manifest, digest_of, open_artefact
from training.shards import ShardRecord, load_array, read_norm_limit, read_records
from training.source import MIN_IMAGE_COUNT, held_out_count
from training.windows import Window, cut_batches

__all__ = ["MIN_IMAGE_COUNT", "Activations", "Shard", "held_out_count"]

_WINDOW_BYTES = 256 << 20
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One slice of the harvest, on disk; every array of it is memory-mapped when it is asked for."""

    folder: Path
    """The harvest."""
    record: ShardRecord
    """What the slice holds."""
    norm_limit: tuple[int, float] | None
    """Place of the first patch, and the norm beyond which a patch is left out; None leaves nothing out."""

    @property
    def image_rows(self) -> Int[np.ndarray, " rows"]:
        """Corpus row of the image that each residual comes from."""
        return load_array(self.folder, self.record.name, "rows")

    def rows_of(self, images: Int[np.ndarray, " images"], *, are_excluded: bool = False) -> Bool[np.ndarray, " rows"]:
        """Which residuals come from these images, or from all but these; artefact tokens that are left out aside."""
        chosen: np.ndarray = np.isin(self.image_rows, images, invert=are_excluded)
        if self.norm_limit is not None:
            first_patch, limit = self.norm_limit
            name = self.record.name
            chosen &= (load_array(self.folder, name, "norms") <= limit) | (
                load_array(self.folder, name, "tokens") < first_patch
            )
        return chosen

    def load(self, chosen: Bool[np.ndarray, " rows"]) -> Float32[np.ndarray, "chosen d"]:
        """The chosen residuals in float32."""
        loaded = np.empty((int(chosen.sum()), self.record.width), dtype=np.float32)
        self.load_into(loaded, chosen)
        return loaded

    def load_into(self, room: Float32[np.ndarray, "chosen d"], chosen: Bool[np.ndarray, " rows"]) -> None:
        """Fill `room` with the chosen residuals, in blocks that are not worth counting."""
        stored = load_array(self.folder, self.record.name)
        places = np.flatnonzero(chosen)
        block_rows = max(1, _BLOCK_BYTES // (self.record.width * 4))
        for start in range(0, len(places), block_rows):
            room[start : start + block_rows] = stored[places[start : start + block_rows]]


class Activations:
    """All residuals of a corpus at a site, split by image into training rows and two held-out halves."""

    def __init__(self, path: Path, *, seed: int, leaves_out_artefacts: bool = False) -> None:
        """Check the artefact and split its images.

        Args:
            path: a harvest.
            seed: decides which images are held out, and the order of the batches.
            leaves_out_artefacts: whether the high-norm artefact tokens that the harvest marked are used nowhere,
                neither to train on nor held out.

        Raises:
            ArtefactMissing, ArtefactDamaged: the artefact is not whole.
            ArtefactMismatch, SchemaUnknown: its shards belong to several harvests, or to another version.
            CorpusError: too few images.
        """
        self.manifest: Manifest = open_artefact(path, kind="activations")
        self._seed = seed
        records = read_records(path)
        norm_limit = read_norm_limit(path) if leaves_out_artefacts else None
        self.shards = [Shard(folder=path, record=record, norm_limit=norm_limit) for record in records]
        images = np.concatenate([np.zeros(0, np.int64), *(np.unique(shard.image_rows) for shard in self.shards)])
        if len(images) < MIN_IMAGE_COUNT:
            raise CorpusError(
                f"only {len(images)} images of the corpus can be read; the least is {MIN_IMAGE_COUNT}: add images"
            )
        tokens_per_image = max(1, sum(record.row_count for record in records) // len(images))
        held_out = np.random.default_rng([seed, 0]).permutation(images)[: held_out_count(len(images), tokens_per_image)]
        self._halves = (np.sort(held_out[::2]), np.sort(held_out[1::2]))
        self._held_out = np.sort(held_out)
        self._counts = [int(self._training_rows(shard).sum()) for shard in self.shards]
        self._loaded: tuple[tuple[int, ...], Tensor] | None = None
        self.id = self.manifest.id
        if leaves_out_artefacts:
            self.id = digest_of({"activations": self.manifest.id, "leaves_out_artefacts": True})
        self.image_count = len(images)
        self.held_out_image_count = len(held_out)
        self.training_count = sum(self._counts)
        self.width: int = records[0].width

    def quarantined(self) -> list[dict[str, Any]]:
        """The unreadable images of the harvest: corpus row and error class, in corpus order."""
        return [entry for shard in self.shards for entry in shard.record.quarantined]

    def moments(self) -> tuple[Float[Tensor, " d"], float]:
        """Mean of the training rows, and their mean square about it, per coordinate."""
        total = np.zeros(self.width)
        squares = np.zeros(self.width)
        block_rows = max(1, _BLOCK_BYTES // (self.width * 8))
        for shard in self.shards:
            rows = shard.load(self._training_rows(shard))
            for start in range(0, len(rows), block_rows):
                block = rows[start : start + block_rows].astype(np.float64)
                total += block.sum(axis=0)
                squares += np.square(block, out=block).sum(axis=0)
        mean = total / self.training_count
        mean_square = float((squares / self.training_count - np.square(mean)).mean())
        return torch.from_numpy(mean.astype(np.float32)), max(mean_square, 0.0)

    def held_out(self, half: int) -> Float[Tensor, "rows d"]:
        """Residuals of one half (0 or 1) of the held-out images, in corpus order."""
        parts = [shard.load(shard.rows_of(self._halves[half])) for shard in self.shards]
        return torch.from_numpy(np.concatenate(parts))

    def sample(self, limit: int) -> Float[Tensor, "rows d"]:
        """At most `limit` training rows, spread evenly over the shards, the same in every run."""
        limit = min(limit, self.training_count)
        parts = []
        before = 0
        for index, (shard, count) in enumerate(zip(self.shards, self._counts, strict=True)):
            share = limit * (before + count) // self.training_count - limit * before // self.training_count
            kept = np.random.default_rng([self._seed, 1, index]).permutation(count)[:share]
            rows = self._training_rows(shard)
            chosen = np.zeros(len(rows), dtype=bool)
            chosen[np.flatnonzero(rows)[kept]] = True
            parts.append(shard.load(chosen))
            before += count
        return torch.from_numpy(np.concatenate(parts))

    def batches(self, batch_rows: int, *, first_step: int) -> Iterator[Float[Tensor, "rows d"]]:
        """Batches from step `first_step` on, without end; every epoch drops its last incomplete batch.

        Args:
            batch_rows: rows per batch; `training_count`, where that is less: unreadable images have no rows.
            first_step: how many batches an earlier run has used.
        """
        batch_rows = min(batch_rows, self.training_count)
        batches_per_epoch = self.training_count // batch_rows
        epoch, done = divmod(first_step, batches_per_epoch)
        try:
            while True:
                windows = self._epoch_windows(epoch, skip=done * batch_rows)
                yield from cut_batches(windows, batch_rows, batches_per_epoch - done)
                epoch, done = epoch + 1, 0
        finally:
            self._loaded = None

    def _training_rows(self, shard: Shard) -> Bool[np.ndarray, " rows"]:
        return shard.rows_of(self._held_out, are_excluded=True)

    def _epoch_windows(self, epoch: int, *, skip: int) -> Iterator[Window]:
        generator = np.random.default_rng([self._seed, 2, epoch])
        for window in self._windows(generator.permutation(len(self.shards))):
            order = generator.permutation(sum(self._counts[index] for index in window))
            if skip < len(order):
                yield Window(self._load_window(window), torch.from_numpy(order[skip:]))
            skip = max(0, skip - len(order))

    def _windows(self, order: Int[np.ndarray, " shards"]) -> Iterator[tuple[int, ...]]:
        window: list[int] = []
        size_bytes = 0
        for index in order.tolist():
            window.append(index)
            size_bytes += self._counts[index] * self.width * 4
            if size_bytes >= _WINDOW_BYTES:
                yield tuple(sorted(window))
                window, size_bytes = [], 0
        if window:
            yield tuple(sorted(window))

    def _load_window(self, window: tuple[int, ...]) -> Float[Tensor, "rows d"]:
        # A corpus that fits into one window is read once, not once an epoch.
        if self._loaded is None or self._loaded[0] != window:
            self._loaded = None
            room = np.empty((sum(self._counts[index] for index in window), self.width), dtype=np.float32)
            start = 0
            for index in window:
                shard, count = self.shards[index], self._counts[index]
                shard.load_into(room[start : start + count], self._training_rows(shard))
                start += count
            self._loaded = (window, torch.from_numpy(room))
        return self._loaded[1]
