"""The rows of a corpus in two blocks of memory: a row takes the bytes of its words and 16 more, not a dozen objects.

Knows nothing of where rows come from; imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from phosphene.corpus_lists import ListedImage
from phosphene.corpus_storage import Span

__all__ = ["PackedRows", "Row"]

_KEY_BYTES = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a corpus, by what is known without opening it."""

    row: int
    """Place in the corpus, from 0."""
    uri: str
    """Name within the corpus: a path with forward slashes, relative to the folder or list; `shard.tar/key.jpg`."""
    label: str | None
    caption: str | None
    extra: Mapping[str, str]
    """Further columns of a list, or further keys of a WebDataset .json."""


class PackedRows(Sequence[Row]):
    """Rows in order, unpacked one at a time. Immutable, and small to send to another process."""

    def __init__(self, words: bytes, starts: array[int], first: int = 0) -> None:
        """Take them packed.

        Args:
            words: a JSON array for each row: uri, label, caption, extra; and its place in a tar: file, offset, bytes.
            starts: where each row begins, and where the last ends.
            first: place in the corpus of the first row.
        """
        self._words, self._starts, self._first = words, starts, first

    @classmethod
    def pack(cls, listed: Iterable[tuple[ListedImage, Span | None]]) -> PackedRows:
        """Pack images as they come, each with its span where it is a part of a file."""
        words, starts = bytearray(), array("Q", [0])
        for image, span in listed:
            fields: list[object] = [image.uri, image.label, image.caption, dict(image.extra)]
            if span is not None:
                fields += [span.file, span.offset, span.byte_count]
            words += json.dumps(fields, separators=(",", ":")).encode("ascii")
            starts.append(len(words))
        return cls(bytes(words), starts)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int) -> Row: ...
    @overload
    def __getitem__(self, row: slice) -> PackedRows: ...
    def __getitem__(self, row: int | slice) -> Row | PackedRows:
        """Return a row, or a range of them (step 1), which keep their places in the corpus."""
        if isinstance(row, slice):
            start, stop, step = row.indices(len(self))
            assert step == 1, "rows are cut into ranges"
            base, end = self._starts[start], self._starts[max(start, stop)]
            starts = array("Q", (place - base for place in self._starts[start : max(start, stop) + 1]))
            return PackedRows(self._words[base:end], starts, self._first + start)
        place = range(len(self))[row]
        uri, label, caption, extra, *_ = self._fields(place)
        return Row(self._first + place, uri, label, caption, extra)

    def span(self, row: int) -> Span | None:
        """Return where in a tar a row lies; None for a file of its own."""
        fields = self._fields(row)
        return Span(file=fields[4], offset=fields[5], byte_count=fields[6]) if len(fields) > 4 else None

    def repeated_uris(self) -> list[str]:
        """Return the uris that two or more rows have."""
        keys = array("Q")
        for row in self:
            keys.frombytes(hashlib.blake2b(row.uri.encode(), digest_size=_KEY_BYTES).digest())
        ordered = array("Q", sorted(keys))
        doubtful = {key for key, following in zip(ordered, ordered[1:], strict=False) if key == following}
        if not doubtful:
            return []
        # Two names may share a key.
        counts = Counter(self[place].uri for place, key in enumerate(keys) if key in doubtful)
        return [uri for uri, count in counts.items() if count > 1]

    def _fields(self, row: int) -> list[Any]:
        fields: list[Any] = json.loads(self._words[self._starts[row] : self._starts[row + 1]])
        return fields
