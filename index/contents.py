"""The bytes of a corpus, digested before an index job starts, so that a changed image makes another plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor

from index.ahead import blocks_ahead
from index.row_digests import RowDigests
from phosphene.corpus import Corpus
from phosphene.errors import CorpusError, ImageError
from phosphene.images import image_sha256

__all__ = ["digest_images"]

_BLOCK_ROWS = 256


def digest_images(corpus: Corpus, readers: Executor, advance: Callable[[int], None]) -> RowDigests:
    """Return the sha256 of every image's bytes; none for a row that cannot be read.

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

    blocks = [range(start, min(start + _BLOCK_ROWS, len(corpus))) for start in range(0, len(corpus), _BLOCK_ROWS)]

    def digests() -> Iterator[str]:
        for block in blocks_ahead(blocks, digest, readers):
            yield from block
            advance(len(block))

    return RowDigests.of(digests())
