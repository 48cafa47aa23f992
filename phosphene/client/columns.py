"""A table that fits the terminal: words are folded, and where figures would not fit it becomes a list of its rows.

A library would cut what does not fit, without a word; half a neuron's number is another neuron's. Knows nothing of
answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

__all__ = ["Columns"]

_GAP = 2
# Words are folded to no less than this, headings of a list to this.
_LEAST_WIDTH = 14
_HEADING_WIDTH = 16


class Columns:
    """Rows under headings; texts have no markup."""

    def __init__(self, *headings: str, folded: frozenset[str]) -> None:
        """Begin without rows.

        Args:
            headings: of the columns.
            folded: those of them that hold words; the others hold figures, which stay on one line.
        """
        self._headings = headings
        self._folded = folded
        self._rows: list[Sequence[Text]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Add a row with a cell for each heading."""
        self._rows.append([cell if isinstance(cell, Text) else Text(cell) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """Draw it as wide as there is room for."""
        widths = self._widths(options.max_width)
        yield self._as_list() if widths is None else self._as_table(widths)

    def _widths(self, width: int) -> list[int] | None:
        """Return the width of each column, at most `width` in all; None where the figures alone need more."""
        wanted, least = [], []
        for heading, *cells in zip(self._headings, *self._rows, strict=True):
            longest = max((_longest_line(cell.plain) for cell in cells), default=0)
            wanted.append(max(cell_len(heading), longest))
            word = max(map(cell_len, heading.split()), default=0)
            least.append(max(word, min(longest, _LEAST_WIDTH) if heading in self._folded else longest))
        room = width - _GAP * (len(wanted) - 1)
        if sum(wanted) <= room:
            return wanted
        if sum(least) > room:
            return None
        widths, spare = list(least), room - sum(least)
        # Headings and short words first, so that one long column does not fold them all.
        for position in sorted(range(len(widths)), key=lambda position: wanted[position] - least[position]):
            more = min(spare, wanted[position] - least[position])
            widths[position] += more
            spare -= more
        return widths

    def _as_table(self, widths: Sequence[int]) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        for heading, width in zip(self._headings, widths, strict=True):
            table.add_column(Text(heading, style="dim"), overflow="fold", width=width, vertical="top")
        for row in self._rows:
            table.add_row(*row)
        return table

    def _as_list(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=False)
        table.add_column(style="dim", overflow="fold", max_width=_HEADING_WIDTH)
        table.add_column(overflow="fold")
        for position, row in enumerate(self._rows):
            if position:
                table.add_row("", "")
            for heading, cell in zip(self._headings, row, strict=True):
                table.add_row(Text(heading), cell)
        return table


def _longest_line(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)
