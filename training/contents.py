"""The bytes of a corpus's images, digested before any work, so that changed images make another plan.

Names and labels alone would let a finished bundle, or half-done work, of other images pass for one of these. Knows
nothing of encoders.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from phosphene.corpus import Corpus
from phosphene.errors import CorpusError, ImageError
from phosphene.images import image_sha256
from training.progress import Progress

_READER_LIMIT = 8
_BLOCK_ROWS = 256


def digest_images(corpus: Corpus, image_count: int, progress: Progress) -> tuple[str, ...]:
    """The sha256 of the bytes of the first so many images, in hexadecimal; empty where one cannot be read.

    Args:
        corpus: what to read, once.
        image_count: how many of its images are used.
        progress: where to report.
    """

    def digest(row: int) -> str:
        try:
            return image_sha256(corpus.read(row))
        except (CorpusError, ImageError):
            return ""

    digests: list[str] = []
    with (
        ThreadPoolExecutor(min(_READER_LIMIT, os.cpu_count() or 1), thread_name_prefix="digest") as readers,
        progress.stage("digest", image_count, "images") as advance,
    ):
        for start in range(0, image_count, _BLOCK_ROWS):
            digests += readers.map(digest, range(start, min(start + _BLOCK_ROWS, image_count)))
            advance(len(digests), "")
    return tuple(digests)
