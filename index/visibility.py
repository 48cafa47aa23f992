"""Which rows of an index its answers may show, and why not the others; knows nothing of files or of neurons.

Rows are hidden for reasons, each a set of rows with the words of the refusal: those that were taken down, and whatever
else is to be hidden by row. A quarantined row is hidden from searches only: asked for by its number, it is shown with
the reason why it could not be used.

    visibility = Visibility(readable=..., hidden=[Hidden(rows=..., why="was taken down")])
    visibility.check(5)
    visibility.with_hidden(Hidden(rows=..., why="is sensitive"))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from index.row_sets import among
from phosphene.errors import NotFound

__all__ = ["Hidden", "Visibility"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Hidden:
    """Rows that are hidden for one reason."""

    rows: Int64[np.ndarray, " rows"]
    """Rows of the index, rising, each once."""
    why: str
    """What the refusal says of a row, as in `row 5 was taken down`."""


class Visibility:
    """What an answer may hold; immutable."""

    hidden_rows: Int64[np.ndarray, " hidden"]
    """Rows that no answer holds, rising."""
    shown: Bool[np.ndarray, " rows"]
    """Rows that searches may find: neither hidden nor quarantined."""
    excluded_rows: Int64[np.ndarray, " excluded"]
    """All other rows, rising."""

    def __init__(self, *, readable: Bool[np.ndarray, " rows"], hidden: Sequence[Hidden] = ()) -> None:
        """Hide rows.

        Args:
            readable: rows that are not quarantined.
            hidden: rows to hide, by reason; where reasons overlap, the first one is named.
        """
        self._readable, self._hidden = readable, tuple(hidden)
        self.hidden_rows = np.unique(np.concatenate([np.zeros(0, np.int64), *(each.rows for each in hidden)]))
        self.shown = readable
        if len(self.hidden_rows):
            self.shown = readable.copy()
            self.shown[self.hidden_rows] = False
        self.excluded_rows = np.flatnonzero(~self.shown)

    def with_hidden(self, hidden: Hidden) -> Visibility:
        """Return the same with more rows hidden."""
        return Visibility(readable=self._readable, hidden=[*self._hidden, hidden])

    def hides(self, row: int) -> bool:
        """Tell whether no answer may hold a row."""
        return bool(among(np.array([row]), self.hidden_rows)[0])

    def check(self, row: int) -> None:
        """Refuse a hidden row.

        Raises:
            NotFound: the row is hidden, and why.
        """
        if self.shown.item(row):  # As nearly all are; the rest takes ten times as long.
            return
        for each in self._hidden:
            if among(np.array([row]), each.rows)[0]:
                raise NotFound(f"row {row} {each.why}")
