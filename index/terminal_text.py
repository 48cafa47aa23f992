"""Texts of a corpus, which may hold anything, as a terminal may have them; knows nothing of tables and colours."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

# Words of Persian or Hindi are misspelt without them.
_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """Return `text` on one line, with `?` for what commands a terminal or turns the direction of writing."""
    return "".join(char if _is_shown(char) else "?" for char in text)


def _is_shown(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"
