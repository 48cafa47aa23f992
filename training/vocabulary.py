"""The names that a bundle's readout compares images with: a file's, or the corpus's labels. Knows nothing of SAEs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from phosphene.corpus import Row
from phosphene.errors import InputError, ReadoutMissing, SettingError
from phosphene.readout import Readout, SimilarityReadout

_LIMIT_NAMES = 100_000


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Names from a text file: one per line, blank lines skipped, order kept.

    Raises:
        SettingError: no such file, no UTF-8 text, no names, too many, or one of them twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise SettingError(
            f"--vocabulary {str(path)!r} cannot be read as UTF-8 text; give a file with one name per line"
        ) from cause
    names = tuple(line.strip() for line in lines if line.strip())
    if not 1 <= len(names) <= _LIMIT_NAMES:
        raise SettingError(f"--vocabulary holds {len(names)} names; it must hold 1 to {_LIMIT_NAMES:,}")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise SettingError(f"--vocabulary holds {twice[:5]} more than once; remove the repetitions")
    return names


def choose_vocabulary(
    readout: Readout, *, model: str, rows: Sequence[Row], named: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The names that the readout of a bundle gets; none where it reads no text.

    Args:
        readout: of the encoder.
        model: the encoder's name, for messages.
        rows: of the corpus; their labels are the names where none are given.
        named: what `read_vocabulary` gave.

    Raises:
        SettingError: names were given, and nothing can read them.
        InputError: the text tower cannot take one of them.
    """
    if not isinstance(readout, SimilarityReadout):
        if named is not None:
            raise SettingError(
                f"--vocabulary was given, but {model} has no text tower to compare names with images: leave it out",
                field="vocabulary",
            )
        return ()
    if named is not None:
        readout.check_texts(named)
        return named
    labels = sorted({row.label for row in rows if row.label})
    return _legible(readout, labels[:_LIMIT_NAMES])


def _legible(readout: SimilarityReadout, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels that the text tower reads: nobody asked for them, so one too long is left out, not refused."""
    legible: list[str] = []
    for label in labels:
        try:
            readout.check_texts([label])
        except ReadoutMissing:
            return ()
        except InputError:
            continue
        legible.append(label)
    return tuple(legible)
