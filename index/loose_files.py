"""Files that a command keeps beside artefacts: refused within one, which would be refused by all from then on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from phosphene.errors import ArtefactError, SettingError
from phosphene.manifest import MANIFEST_NAME, partial_path, read_manifest

__all__ = ["refuse_within_artefact"]


def refuse_within_artefact(file: Path, *, what: str, growing: Sequence[Path] = ()) -> None:
    """Refuse a file that lies in an artefact, which holds what its manifest names and nothing else.

    Args:
        file: what is to be written; links are followed.
        what: what it is called, for the message.
        growing: folders of artefacts to be.

    Raises:
        SettingError: it lies in an artefact, in one to be, or in the place where that grows.
    """
    folders = Path(os.path.realpath(file)).parents
    to_be = {Path(os.path.realpath(place)) for target in growing for place in (target, partial_path(target))}
    for folder in folders:
        if folder in to_be or _is_artefact(folder):
            raise SettingError(
                f"the {what} {str(file)!r} would lie in {str(folder)!r}, an artefact, which holds nothing but its own "
                "files; name a place outside it"
            )


def _is_artefact(folder: Path) -> bool:
    try:
        return (folder / MANIFEST_NAME).is_file() and bool(read_manifest(folder))
    except ArtefactError:  # Others call files so, too.
        return False
