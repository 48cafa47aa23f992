"""Corpus rows -> batches of pixels, decoded by a bounded pool of threads ahead of whoever uses them.

An unreadable image leaves zero pixels and the name of its error. Pillow lets go of the interpreter while it decodes, so
that threads are enough. Knows nothing of models.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from phosphene.corpus import Corpus
from phosphene.errors import CorpusError, ImageError
from phosphene.images import Preprocessing, image_sha256, prepare
from training.execution import Execution

_DECODER_LIMIT = 16
_AHEAD_BATCHES = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedImages:
    """The images of a corpus as they were when the plan was made."""

    corpus: Corpus
    """Where their bytes are."""
    digests: Sequence[str]
    """sha256 of the bytes of each; empty for one that cannot be read."""
    preprocessing: Preprocessing
    """What pixels have to be like."""


class PixelBatch(NamedTuple):
    """Images that go through the encoder together."""

    rows: Sequence[int]
    """Their corpus rows."""
    pixels: UInt8[np.ndarray, "images 3 height width"]
    """Zero for an unreadable image."""
    sha256: Sequence[str]
    """Digest of the bytes of each; empty for one that cannot be read."""
    errors: dict[int, str]
    """Class of the error of each unreadable image, by corpus row."""


def decoded_batches(
    images: PlannedImages, batches: Iterable[Sequence[int]], *, decoder_count: int
) -> Generator[PixelBatch, None, None]:
    """Decode batches in order, at most two of them ahead of the one in use.

    Args:
        images: what to read.
        batches: corpus rows of each batch.
        decoder_count: threads.

    Raises:
        CorpusError: an image changed since the plan was made.
    """
    pool = ThreadPoolExecutor(decoder_count, thread_name_prefix="decode")
    ahead: deque[_Growing] = deque()
    try:
        for rows in batches:
            ahead.append(_Growing(images, rows, pool))
            if len(ahead) > _AHEAD_BATCHES:
                yield ahead.popleft().finish()
        while ahead:
            yield ahead.popleft().finish()
    finally:
        pool.shutdown(cancel_futures=True)


def decoder_count_for(execution: Execution) -> int:
    """How many threads decode: the cores that the encoder leaves free, but at least one."""
    core_count = os.cpu_count() or 1
    busy_count = execution.thread_count if execution.device == "cpu" else 1
    return min(max(core_count - busy_count, 1), _DECODER_LIMIT)


class _Growing:
    """A batch whose images are being decoded."""

    def __init__(self, images: PlannedImages, rows: Sequence[int], pool: ThreadPoolExecutor) -> None:
        size = images.preprocessing.size
        self._rows = rows
        self._pixels = np.zeros((len(rows), 3, size.height, size.width), dtype=np.uint8)
        self._decoded: list[Future[tuple[str, str]]] = [
            pool.submit(_decode, images, row, self._pixels[slot]) for slot, row in enumerate(rows)
        ]

    def finish(self) -> PixelBatch:
        decoded = [future.result() for future in self._decoded]
        errors = {row: error for row, (_, error) in zip(self._rows, decoded, strict=True) if error}
        return PixelBatch(self._rows, self._pixels, [digest for digest, _ in decoded], errors)


def _decode(images: PlannedImages, row: int, pixels: UInt8[np.ndarray, "3 height width"]) -> tuple[str, str]:
    """Fill the pixels; give the digest of the bytes and the class of the error, both empty where there is none."""
    digest = error = ""
    try:
        data = images.corpus.read(row)
        digest = image_sha256(data)
        pixels[:] = prepare(data, images.preprocessing).pixels
    except (CorpusError, ImageError) as caught:
        error = type(caught).__name__
    if digest != images.digests[row]:
        raise CorpusError(
            f"{images.corpus.rows[row].uri!r} changed while the corpus was being read; run it again once nothing "
            "writes there"
        )
    return digest, error
