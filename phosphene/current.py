"""CURRENT: the file that names one generation, every bundle and index that is served together, by folder and id.

    {"bundles": {"scenes": {"folder": "bundle-7", "id": "..."}}, "indexes": {...}, "schema": 1}

It is replaced as a whole by a rename, so a reader sees the old generation or the new one. Folders are relative to the
file. The ids are what the writer saw: a folder that holds something else by now is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from phosphene.errors import ArtefactDamaged, ArtefactMismatch, ArtefactMissing, SchemaUnknown
from phosphene.manifest import open_artefact, read_manifest, write_durably

__all__ = ["Current", "Member", "load_current", "save_current"]

_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Member:
    """A bundle or index of the generation."""

    name: str
    """What requests call it."""
    path: Path
    """Its folder."""
    id: str
    """Its id."""


@dataclass(frozen=True, kw_only=True)
class Current:
    """One generation, each kind in the order that makes its first entry the default."""

    bundles: tuple[Member, ...]
    """At least one."""
    indexes: tuple[Member, ...]
    """Each belongs to the bundle that it was built for."""


def save_current(path: Path, *, bundles: Mapping[str, Path], indexes: Mapping[str, Path]) -> Current:
    """Name a generation, in place of the one that the file named before.

    Args:
        path: the file.
        bundles: name to folder, the default first.
        indexes: name to folder.

    Raises:
        ArtefactError: a folder is no published bundle or index.
    """
    current = Current(
        bundles=tuple(_checked(name, folder, kind="bundle") for name, folder in bundles.items()),
        indexes=tuple(_checked(name, folder, kind="index") for name, folder in indexes.items()),
    )
    base = path.parent.resolve()
    document = {
        "schema": _SCHEMA,
        "bundles": {entry.name: _described(entry, base) for entry in current.bundles},
        "indexes": {entry.name: _described(entry, base) for entry in current.indexes},
    }
    # Not sorted: the order tells the default.
    write_durably(path, (json.dumps(document, indent=2) + "\n").encode())
    return current


def load_current(path: Path) -> Current:
    """Read which generation is named.

    Raises:
        ArtefactMissing: no such file, or a folder that it names is gone.
        ArtefactDamaged: it does not parse.
        ArtefactMismatch: a folder holds another artefact than the one that was named.
        SchemaUnknown: written by another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise ArtefactMissing(f"no file {str(path)!r}; name a generation with `python -m index activate`") from cause
    except (OSError, ValueError) as cause:
        raise ArtefactDamaged(
            f"{str(path)!r} cannot be read ({cause}); write it with `python -m index activate`"
        ) from cause
    if not isinstance(document, dict) or document.get("schema") != _SCHEMA:
        raise SchemaUnknown(f"{str(path)!r} is not a generation of schema {_SCHEMA}; write it with this version")
    if document.keys() != {"schema", "bundles", "indexes"}:
        raise SchemaUnknown(f"{str(path)!r} has the keys {sorted(document)}; known are bundles, indexes and schema")
    current = Current(
        bundles=_members(path, document["bundles"], kind="bundle"),
        indexes=_members(path, document["indexes"], kind="index"),
    )
    if not current.bundles:
        raise ArtefactDamaged(f"{str(path)!r} names no bundle; write it with `python -m index activate`")
    return current


def _checked(name: str, folder: Path, *, kind: Literal["bundle", "index"]) -> Member:
    return Member(name=name, path=folder, id=open_artefact(folder, kind=kind).id)


def _members(path: Path, entries: Any, *, kind: Literal["bundle", "index"]) -> tuple[Member, ...]:
    members: list[Member] = []
    try:
        named = [(str(name), path.parent / entry["folder"], str(entry["id"])) for name, entry in entries.items()]
    except (AttributeError, KeyError, TypeError) as cause:
        raise ArtefactDamaged(f"the {kind} entries of {str(path)!r} do not parse; write it again") from cause
    for name, folder, identity in named:
        found = read_manifest(folder)
        if (found.kind, found.id) != (kind, identity):
            raise ArtefactMismatch(
                f"{str(path)!r} names the {kind} {name} with the id {identity}, and {str(folder)!r} holds the "
                f"{found.kind} {found.id}; name the generation again with `python -m index activate`"
            )
        members.append(Member(name=name, path=folder, id=identity))
    return tuple(members)


def _described(member: Member, base: Path) -> dict[str, str]:
    return {"folder": os.path.relpath(member.path.resolve(), base), "id": member.id}
