"""The shards of an index, opened: which one holds a row, and what it holds of it; knows nothing of neurons' figures.

Everything large is memory-mapped. A shard is immutable, so that any number of readers may share it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from index.codes_store import CodesStore
from index.plan import SHARDS_FOLDER, ShardRows
from index.postings import read_norms, read_postings
from index.retrieval.postings import ShardPostings
from index.tops import Tops, read_tops
from phosphene.codes import ImageCode
from phosphene.errors import ArtefactDamaged

__all__ = ["Shard", "Shards", "open_shards"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """One shard, memory-mapped."""

    folder: Path
    """Where it lies."""
    rows: ShardRows
    """Its rows of the index."""
    codes: CodesStore
    """Its codes."""
    postings: ShardPostings
    """The same by neuron."""
    norms: Float32[np.ndarray, " rows"]
    """Euclidean norm of each row's stored code."""

    @property
    def tops(self) -> Tops:
        """Every neuron's strongest images, by row in the shard; mapped when asked for, since answers do without.

        Raises:
            ArtefactDamaged: the arrays do not fit together.
        """
        return read_tops(self.folder)


class Shards:
    """The shards of an index, in order; addressed by rows of the index."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Take at least one shard; each begins where the one before ends."""
        self._shards = tuple(shards)
        self._starts = [shard.rows.start for shard in shards]

    def __len__(self) -> int:
        """Count the shards."""
        return len(self._shards)

    def __getitem__(self, number: int) -> Shard:
        """Return a shard by number."""
        return self._shards[number]

    def __iter__(self) -> Iterator[Shard]:
        """Go through the shards in order."""
        return iter(self._shards)

    @property
    def row_count(self) -> int:
        """Rows of the index."""
        return self._shards[-1].rows.stop

    @property
    def neuron_count(self) -> int:
        """Neurons of the sparse autoencoder, dead ones included."""
        return self._shards[0].postings.neuron_count

    @property
    def entry_count(self) -> int:
        """Activations over all rows."""
        return sum(shard.codes.entry_count for shard in self._shards)

    def find(self, row: int) -> tuple[int, int]:
        """Return the number of the shard that holds a row (0 <= row < row_count), and the row in it."""
        number = bisect_right(self._starts, row) - 1
        return number, row - self._starts[number]

    def parts(self, rows: Int64[np.ndarray, " rows"]) -> Iterator[tuple[int, Int64[np.ndarray, " places"]]]:
        """Yield the number of each shard that holds some of the rows, and the places of those in `rows`."""
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            yield int(number), np.flatnonzero(numbers == number)

    def code(self, row: int) -> ImageCode:
        """Return the stored code of a row (0 <= row < row_count)."""
        number, local = self.find(row)
        return self._shards[number].codes.code(local)


def open_shards(index: Path, rows: Sequence[ShardRows]) -> Shards:
    """Map the shards of an index that is finished, or being put together.

    Args:
        index: its folder.
        rows: which rows each shard has, in order.

    Raises:
        ArtefactDamaged: the files of a shard do not fit together.
    """
    return Shards([_open_shard(index / SHARDS_FOLDER / each.name, each) for each in rows])


def _open_shard(folder: Path, rows: ShardRows) -> Shard:
    row_count = rows.stop - rows.start
    codes, norms = CodesStore(folder), read_norms(folder)
    shard = Shard(
        folder=folder,
        rows=rows,
        codes=codes,
        postings=read_postings(folder, row_count),
        norms=norms,
    )
    if not row_count == codes.row_count == len(norms) or codes.entry_count != len(shard.postings.words):
        raise ArtefactDamaged(
            f"{folder}: due are {row_count} rows; codes/ has {codes.row_count} with {codes.entry_count} entries, "
            f"row_norms.npy {len(norms)} rows, postings/ {len(shard.postings.words)} entries: build the index again"
        )
    return shard
