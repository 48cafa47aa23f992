"""The bytes of a corpus, digested before an index job starts, so that a changed image makes another plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from index.ahead import blocks_ahead
from phosphene.corpus import Corpus
from phosphene.errors import CorpusError, ImageError
from phosphene.images import image_sha256

__all__ = ["content_digest", "digest_images"]

_BLOCK_ROWS = 256


def digest_images(corpus: Corpus, readers: Executor, advance: Callable[[int], None]) -> list[str]:
    """Return the sha256 of every image's bytes, in hexadecimal; empty where a row cannot be read.

    Args:
        corpus: what to read, once.
        readers: the pool that reads; a bounded number of rows is under way.
        advance: told the number of rows digested.
    """

    def digest(row: int) -> str:
        try:
            return image_sha256(corpus.read(row))
        except (CorpusError, ImageError):
            return ""

    digests: list[str] = []
    blocks = [range(start, min(start + _BLOCK_ROWS, len(corpus))) for start in range(0, len(corpus), _BLOCK_ROWS)]
    for block in blocks_ahead(blocks, digest, readers):
        digests += block
        advance(len(block))
    return digests


def content_digest(corpus: Corpus, digests: Sequence[str]) -> str:
    """Return the digest of a corpus with its contents: of `corpus.digest` and the digest of every image, in order."""
    whole = hashlib.sha256(corpus.digest.encode())
    for digest in digests:
        whole.update(b"\n" + digest.encode())
    return whole.hexdigest()
