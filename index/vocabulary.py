"""The words that may name neurons by the text tower: a file of them, one a line; knows nothing of the tower."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from index.arrays import map_array
from phosphene.durable_files import save_array
from phosphene.errors import SettingError
from phosphene.manifest import digest_of

__all__ = ["read_vocabulary", "read_words", "vocabulary_digest", "write_vocabulary"]

_FILE, _VECTORS = "vocabulary.json", "vocabulary.npy"
_LEAST_WORDS = 2
_WORD_LIMIT = 200_000
_LENGTH_LIMIT = 256


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Read a file of words or phrases, one a line, in UTF-8; blank lines and repeats do not count.

    A byte order mark, which editors on Windows put first, is no part of a word.

    Raises:
        SettingError: it cannot be read, or holds too few, too many or too long ones.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise SettingError(
            f"the vocabulary {str(path)!r} cannot be read ({cause}); name a UTF-8 file with a word on each line"
        ) from cause
    words = tuple(dict.fromkeys(stripped for line in lines if (stripped := line.strip())))
    if not _LEAST_WORDS <= len(words) <= _WORD_LIMIT:
        raise SettingError(
            f"the vocabulary {str(path)!r} holds {len(words)} words; the limits are {_LEAST_WORDS} to {_WORD_LIMIT}: a "
            "name is judged against the others"
        )
    long = [f"line {number}" for number, line in enumerate(lines, 1) if len(line.strip()) > _LENGTH_LIMIT]
    if long:
        raise SettingError(
            f"{', '.join(long[:5])} of the vocabulary {str(path)!r} have more than {_LENGTH_LIMIT} characters; "
            "shorten them"
        )
    return words


def vocabulary_digest(words: Sequence[str]) -> str:
    """Return what a plan says of a vocabulary; empty for none."""
    return digest_of(list(words)) if words else ""


def write_vocabulary(folder: Path, words: Sequence[str], vectors: Float32[np.ndarray, "words embedding"]) -> None:
    """Write the words that neurons were named with into an index, and their text vectors."""
    (folder / _FILE).write_text(json.dumps(list(words), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    save_array(folder / _VECTORS, vectors.astype(np.float32))


def read_words(folder: Path) -> tuple[tuple[str, ...], Float32[np.ndarray, "words embedding"]] | None:
    """Return the words that the neurons of a finished index were named with, and their vectors; None: there are none.

    Raises:
        ArtefactDamaged: the vectors are no such array.
    """
    if not (folder / _FILE).exists():
        return None
    words: list[str] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    return tuple(words), map_array(folder / _VECTORS, np.float32, 2)
