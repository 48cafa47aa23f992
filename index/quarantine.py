"""The images of a corpus that could not be used, and why: told, listed, and refused where they are too many.

A folder that could not be listed is a row of the list too. It is no image, and counts as none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from index.image_table import read_quarantined
from phosphene.errors import ArtefactDamaged, CorpusError

__all__ = [
    "QUARANTINE_FILE",
    "Quarantine",
    "quarantined_rows",
    "read_quarantine",
    "unlisted_folders",
    "write_quarantine",
]

QUARANTINE_FILE = "quarantine.csv"
_EXAMPLES_IN_ERROR = 5
_HEADER = "row,uri,reason\n"
_NEEDS_QUOTES = re.compile(r'[,"\r\n]')
# A carriage return may stand in a cell without quotes: so the csv module of Python 3.11 wrote it, which cannot read it.
_CELL = r'("(?:[^"]++|"")*+"|[^",\n]*+)'
_LINE = re.compile(rf"([0-9]+),{_CELL},{_CELL}\n")


def write_quarantine(path: Path, shards: Sequence[Path]) -> None:
    """List the quarantined rows of shards, in order: row, uri, reason; the header alone where all were good.

    CSV with quotes where a cell needs them, whatever the cell holds and however long it is.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(_HEADER)
        for row, uri, reason in quarantined_rows(shards):
            file.write(f"{row},{_quoted(uri)},{_quoted(reason)}\n")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text


def quarantined_rows(shards: Sequence[Path]) -> Iterator[tuple[int, str, str]]:
    """Yield row, uri and reason of the quarantined rows of shards, in order."""
    for shard in shards:
        yield from read_quarantined(shard)


def read_quarantine(path: Path) -> list[tuple[int, str, str]]:
    """Return what `write_quarantine` wrote.

    Raises:
        ArtefactDamaged: it is not that.
    """
    try:
        text = path.read_bytes().decode()
        if not text.startswith(_HEADER):
            raise ValueError("the header is not row,uri,reason")
        return list(_rows(text, start=len(_HEADER)))
    except ValueError as error:
        raise ArtefactDamaged(f"{path} is no list of rows ({error}): build the index again") from error


def _rows(text: str, *, start: int) -> Iterator[tuple[int, str, str]]:
    while start < len(text):
        line = _LINE.match(text, start)
        if line is None:
            raise ValueError(f"character {start} begins no row")
        yield int(line[1]), _unquoted(line[2]), _unquoted(line[3])
        start = line.end()


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if cell.startswith('"') else cell


def unlisted_folders(index: Path) -> list[str]:
    """Return the folders of the corpus of a whole index that could not be listed, by name.

    Raises:
        ArtefactDamaged: `quarantine.csv` is no list of rows.
    """
    return [uri for _, uri, _ in read_quarantine(index / QUARANTINE_FILE) if _is_folder(uri)]


def _is_folder(uri: str) -> bool:
    return uri.endswith("/")


class Quarantine:
    """What a running job knows of bad images, shard by shard."""

    def __init__(self, image_count: int, *, max_bad_ratio: float, report: Path) -> None:
        """Begin with none.

        Args:
            image_count: images of the corpus; folders that could not be listed are none.
            max_bad_ratio: share of them that may be bad.
            report: where they are listed when they are too many.
        """
        self._image_count, self._max_bad_ratio, self._report = image_count, max_bad_ratio, report
        self._shards: dict[Path, list[tuple[int, str, str]]] = {}

    @property
    def count(self) -> int:
        """Bad images so far."""
        return sum(len(bad) for bad in self._shards.values())

    def add(self, shard: Path) -> None:
        """Count the bad images of a finished shard.

        Raises:
            CorpusError: there are too many; they are listed in the report.
        """
        self._shards[shard] = [row for row in read_quarantined(shard) if not _is_folder(row[1])]
        if self.count == self._image_count:
            self._write_report()
            raise CorpusError(f"none of the {self._image_count} images of the corpus can be used: {self.examples()}")
        if self.count > self._max_bad_ratio * self._image_count:
            self._write_report()
            raise CorpusError(
                f"{self.count} of {self._image_count} images cannot be used, {self.count / self._image_count:.1%} so "
                f"far; the limit is {self._max_bad_ratio:.1%}: mend them, or allow more with --max-bad-ratio; all are "
                f"in {self._report}: {self.examples()}"
            )

    def examples(self) -> str:
        """Name the first few, with reasons."""
        bad = [row for shard in sorted(self._shards) for row in self._shards[shard]]
        shown = "; ".join(f"{uri}: {reason}" for _, uri, reason in bad[:_EXAMPLES_IN_ERROR])
        more = len(bad) - _EXAMPLES_IN_ERROR
        return f"{shown}; and {more} more" if more > 0 else shown

    def _write_report(self) -> None:
        write_quarantine(self._report, sorted(self._shards))
