"""One shard of a harvest while it is in memory: filled batch by batch, checked, written. Knows nothing of encoders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from phosphene.corpus import Corpus
from phosphene.errors import NumericError
from phosphene.site import Site
from training.harvest_settings import HarvestSettings, Storage
from training.pixels import PixelBatch
from training.shards import ShardArrays, write_shard


class GrowingShard:
    """The residuals of some images at one site, stored as they come."""

    def __init__(self, name: str, rows: range, *, token_count: int, width: int, settings: HarvestSettings) -> None:
        """Make room for the images.

        Args:
            name: stem of the files.
            rows: corpus rows of the images.
            token_count: residuals kept of each image.
            width: length of a residual.
            settings: storage, and which tokens are kept.
        """
        self.name = name
        self.rows = rows
        self._settings = settings
        self._token_count = token_count
        row_count = len(rows) * token_count
        self._residuals = np.empty((row_count, width), dtype=settings.storage.value)
        self._image_rows = np.empty(row_count, dtype=np.int64)
        self._tokens = np.empty(row_count, dtype=np.int32)
        self._filled = 0
        self._contents = hashlib.sha256()
        self._quarantined: list[dict[str, Any]] = []

    def add(self, batch: PixelBatch, residuals: Float[Tensor, "images site_tokens d"]) -> bool:
        """Take what the encoder made of a batch, unreadable images aside; True once all images are there."""
        self._contents.update("".join(batch.sha256).encode())
        self._quarantined += [{"row": row, "error": error} for row, error in batch.errors.items()]
        kept = kept_tokens(batch.rows, residuals.shape[1], self._token_count, seed=self._settings.seed)
        values = stored(kept_residuals(residuals, kept), self._settings.storage)
        for slot, row in enumerate(batch.rows):
            if row not in batch.errors:
                place = slice(self._filled, self._filled + self._token_count)
                self._residuals[place] = values[slot]
                self._image_rows[place] = row
                self._tokens[place] = kept[slot]
                self._filled = place.stop
        return batch.rows[-1] == self.rows[-1]

    def write(self, folder: Path, *, plan_id: str, corpus: Corpus, site: Site) -> None:
        """Write it durably.

        Raises:
            NumericError: NaN or infinity; names shard, row and image.
            OSError: no room or no access.
        """
        arrays = ShardArrays(
            residuals=self._residuals[: self._filled],
            image_rows=self._image_rows[: self._filled],
            tokens=self._tokens[: self._filled],
        )
        self._refuse_non_finite(arrays, corpus, site)
        write_shard(
            folder,
            self.name,
            arrays,
            plan_id=plan_id,
            contents_sha256=self._contents.hexdigest(),
            quarantined=self._quarantined,
        )

    def _refuse_non_finite(self, arrays: ShardArrays, corpus: Corpus, site: Site) -> None:
        broken = np.flatnonzero(~np.isfinite(arrays.residuals).all(axis=1))
        if len(broken):
            row = int(arrays.image_rows[broken[0]])
            raise NumericError(
                f"{self.name} holds NaN or infinity in {len(broken)} of {self._filled} residuals, first at row "
                f"{broken[0]} (image {row}, {corpus.rows[row].uri!r}) at {site} as {self._settings.storage.value}: "
                "use --storage float32, or another encoder or site"
            )


def kept_tokens(rows: Sequence[int], token_count: int, kept_count: int, *, seed: int) -> Int[np.ndarray, "images kept"]:
    """Which of an image's tokens are kept, ascending: a draw without replacement from (seed, corpus row)."""
    if kept_count == token_count:
        return np.broadcast_to(np.arange(token_count), (len(rows), token_count))
    draws = (np.random.default_rng([seed, row]).choice(token_count, kept_count, replace=False) for row in rows)
    return np.stack([np.sort(draw) for draw in draws])


def kept_residuals(
    residuals: Float[Tensor, "images site_tokens d"], kept: Int[np.ndarray, "images kept"]
) -> Float[Tensor, "images kept d"]:
    """Those tokens of each image, on the residuals' device."""
    if kept.shape[1] == residuals.shape[1]:
        return residuals
    return residuals[torch.arange(len(kept))[:, None], torch.from_numpy(kept)]


def stored(residuals: Float[Tensor, "images kept d"], storage: Storage) -> Float[np.ndarray, "images kept d"]:
    """As they lie on disk, rounded on the residuals' device; what half precision cannot hold becomes infinite."""
    match storage:
        case Storage.FLOAT32:
            return residuals.cpu().numpy()
        case Storage.FLOAT16:
            return residuals.half().cpu().numpy()
        case _:
            assert_never(storage)
