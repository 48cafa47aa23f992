"""CURRENT: the file that names one generation, every bundle and index that is served together, by folder and id.

    {"bundles": {"scenes": {"folder": "bundle-7", "id": "..."}}, "indexes": {"photos": {"folder": "index-3", "id":
    "...", "tombstones": {"folder": "down-2", "id": "..."}}}, "schema": 2}

An index may have tombstones, which name the images that were taken down from it, flags, which say what of it is
sensitive, and names, which its neurons go by. `left` remembers the tombstones and flags of indexes that an earlier
generation named and this one does not. The file is replaced as a whole by a rename, so a reader sees the old generation
or the new one. Folders are relative to the file. The ids are what the writer saw: a folder that holds something else by
now is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from phosphene.durable_files import write_durably
from phosphene.errors import (
    ArtefactDamaged,
    ArtefactError,
    ArtefactMismatch,
    ArtefactMissing,
    SchemaUnknown,
    SettingError,
)
from phosphene.manifest import open_artefact, read_manifest

__all__ = ["Current", "Member", "hold_current", "load_current", "read_current", "save_current"]

_SCHEMA = 2
_LEFT_KINDS = ("tombstones", "flags")
_MemberKind = Literal["bundle", "index", "tombstones", "flags", "names"]
_ENTRY_KEYS: dict[_MemberKind, set[str]] = {
    "bundle": {"folder", "id"},
    "index": {"folder", "id", "tombstones", "flags", "names"},
    "tombstones": {"folder", "id"},
    "flags": {"folder", "id"},
    "names": {"folder", "id"},
}


@dataclass(frozen=True, kw_only=True)
class Member:
    """A bundle, an index, or what belongs to one, of the generation."""

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
    tombstones: tuple[Member, ...] = ()
    """Each by the name of the index whose images it takes down."""
    flags: tuple[Member, ...] = ()
    """Each by the name of the index of which it says what is sensitive."""
    names: tuple[Member, ...] = ()
    """Each by the name of the index whose neurons go by it."""
    left_tombstones: tuple[Member, ...] = ()
    """Of indexes that are not served any more, so that what is down does not come back with them."""
    left_flags: tuple[Member, ...] = ()
    """Of indexes that are not served any more."""

    def successors(self, name: str, indexes: Collection[str]) -> list[str]:
        """Return the names under which another generation may show the images of an index of this one.

        Args:
            name: of the index.
            indexes: names of the other generation's; where `name` is none of them, it may be any that is new there.
        """
        if name in indexes:
            return [name]
        known = {member.name for member in self.indexes}
        return [other for other in indexes if other not in known]


@contextmanager
def hold_current(path: Path) -> Iterator[None]:
    """Let no other process that does likewise name a generation meanwhile; waits while another one is about it.

    Whoever compares a generation with the one before it, and then replaces that, holds the file for both: else a
    take-down that somebody names in between is lost. Without effect on a file system that locks no folders.

    Args:
        path: the file; its folder is there.
    """
    import fcntl  # Windows has none; there artefacts can be read, not made.

    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def save_current(
    path: Path,
    *,
    bundles: Mapping[str, Path],
    indexes: Mapping[str, Path],
    tombstones: Mapping[str, Path] | None = None,
    flags: Mapping[str, Path] | None = None,
    names: Mapping[str, Path] | None = None,
    puts_back: bool = False,
) -> Current:
    """Name a generation, in place of the one that the file named before.

    What was down of an index that is named no longer, and what was sensitive of it, is remembered.

    Args:
        path: the file.
        bundles: name to folder, the default first.
        indexes: name to folder.
        tombstones: name of the index to folder.
        flags: name of the index to folder.
        names: name of the index to folder.
        puts_back: whether to forget what was down, or sensitive, of indexes that may be shown now.

    Raises:
        ArtefactError: a folder is no such published artefact.
        SettingError: tombstones, flags or names of an index that is not named; the path is a link.
    """
    if path.is_symlink():
        # Folders are relative to the file: through the link others are meant than through what it points to.
        raise SettingError(f"{str(path)!r} is a symbolic link; name the file {os.path.realpath(path)!r} itself")
    for kind, named in (("tombstones", tombstones or {}), ("flags", flags or {}), ("names", names or {})):
        if stray := sorted(named.keys() - indexes.keys()):
            raise SettingError(f"{kind} are named for {stray}; the indexes are {sorted(indexes)}: name one of them")
    left_tombstones, left_flags = _left(path, indexes, puts_back=puts_back)
    current = Current(
        bundles=tuple(_checked(name, folder, kind="bundle") for name, folder in bundles.items()),
        indexes=tuple(_checked(name, folder, kind="index") for name, folder in indexes.items()),
        tombstones=tuple(_checked(name, folder, kind="tombstones") for name, folder in (tombstones or {}).items()),
        flags=tuple(_checked(name, folder, kind="flags") for name, folder in (flags or {}).items()),
        names=tuple(_checked(name, folder, kind="names") for name, folder in (names or {}).items()),
        left_tombstones=left_tombstones,
        left_flags=left_flags,
    )
    base = path.parent.resolve()
    document: dict[str, Any] = {
        "schema": _SCHEMA,
        "bundles": {entry.name: _described(entry, base) for entry in current.bundles},
        "indexes": {
            entry.name: _described(entry, base)
            | {
                kind: _described(member, base)
                for kind, members in (
                    ("tombstones", current.tombstones),
                    ("flags", current.flags),
                    ("names", current.names),
                )
                for member in members
                if member.name == entry.name
            }
            for entry in current.indexes
        },
    }
    left = {
        name: {
            kind: _described(member, base)
            for kind, members in zip(_LEFT_KINDS, (left_tombstones, left_flags), strict=True)
            for member in members
            if member.name == name
        }
        for name in sorted({member.name for member in (*left_tombstones, *left_flags)})
    }
    if left:
        document["left"] = left
    # Not sorted: the order tells the default.
    write_durably(path, (json.dumps(document, indent=2) + "\n").encode())
    return current


def load_current(path: Path) -> Current:
    """Read which generation is named, on condition that its folders hold it.

    Raises:
        ArtefactMissing: no such file, or a folder that it names is gone.
        ArtefactDamaged: it does not parse.
        ArtefactMismatch: a folder holds another artefact than the one that was named.
        SchemaUnknown: written by another version.
    """
    current = read_current(path)
    for kind, members in (
        ("bundle", current.bundles),
        ("index", current.indexes),
        ("tombstones", current.tombstones),
        ("flags", current.flags),
        ("names", current.names),
    ):
        for member in members:
            _refuse_another(path, member, kind=kind)
    return current


def read_current(path: Path) -> Current:
    """Read which generation is named, whatever its folders hold by now.

    Raises:
        ArtefactMissing: no such file.
        ArtefactDamaged: it does not parse.
        SchemaUnknown: written by another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise ArtefactMissing(f"no file {str(path)!r}; name a generation with `python -m index activate`") from cause
    except (OSError, ValueError, RecursionError) as cause:
        raise ArtefactDamaged(
            f"{str(path)!r} cannot be read ({cause}); write it with `python -m index activate`"
        ) from cause
    document = _upgraded(document)
    if not isinstance(document, dict) or document.get("schema") != _SCHEMA:
        raise SchemaUnknown(f"{str(path)!r} is not a generation of schema {_SCHEMA}; write it with this version")
    if document.keys() | {"left"} != {"schema", "bundles", "indexes", "left"}:
        raise SchemaUnknown(
            f"{str(path)!r} has the keys {sorted(document)}; known are bundles, indexes, left and schema"
        )
    indexes, left = document["indexes"], document.get("left", {})
    current = Current(
        bundles=_members(path, document["bundles"], kind="bundle"),
        # First: what it lets pass has names and entries.
        indexes=_members(path, indexes, kind="index"),
        tombstones=_members(path, _of_indexes(indexes, "tombstones"), kind="tombstones"),
        flags=_members(path, _of_indexes(indexes, "flags"), kind="flags"),
        names=_members(path, _of_indexes(indexes, "names"), kind="names"),
        left_tombstones=_members(path, _of_left(path, left, "tombstones"), kind="tombstones"),
        left_flags=_members(path, _of_left(path, left, "flags"), kind="flags"),
    )
    if not current.bundles:
        raise ArtefactDamaged(f"{str(path)!r} names no bundle; write it with `python -m index activate`")
    return current


def _upgraded(document: Any) -> Any:
    """Return what a file of schema 1, which knew no tombstones, says in the words of schema 2."""
    if isinstance(document, dict) and document.get("schema") == 1:
        return document | {"schema": 2}
    return document


def _of_indexes(indexes: Any, kind: _MemberKind) -> dict[str, Any]:
    """Return what the entries of indexes name beside them, by the index's name."""
    return {name: entry[kind] for name, entry in indexes.items() if kind in entry}


def _of_left(path: Path, left: Any, kind: _MemberKind) -> dict[str, Any]:
    """Return what is remembered of indexes that are not named any more, by the index's name."""
    if not isinstance(left, dict) or not all(isinstance(entry, dict) for entry in left.values()):
        raise ArtefactDamaged(f"the entries under left of {str(path)!r} do not parse; write it again")
    if unknown := sorted({key for entry in left.values() for key in entry} - set(_LEFT_KINDS)):
        raise SchemaUnknown(
            f"the entries under left of {str(path)!r} have the unknown keys {unknown}; upgrade Phosphene"
        )
    return _of_indexes(left, kind)


def _left(path: Path, indexes: Collection[str], *, puts_back: bool) -> tuple[tuple[Member, ...], tuple[Member, ...]]:
    """Return the tombstones and the flags of indexes that the file named before and that are not named now."""
    try:
        before = read_current(path)
    except ArtefactError:
        return (), ()

    def stay(members: Iterable[Member]) -> tuple[Member, ...]:
        return tuple(
            member
            for member in members
            if member.name not in indexes and not (puts_back and before.successors(member.name, indexes))
        )

    return stay((*before.tombstones, *before.left_tombstones)), stay((*before.flags, *before.left_flags))


def _checked(name: str, folder: Path, *, kind: _MemberKind) -> Member:
    return Member(name=name, path=folder, id=open_artefact(folder, kind=kind).id)


def _members(path: Path, entries: Any, *, kind: _MemberKind) -> tuple[Member, ...]:
    try:
        named = [(str(name), path.parent / entry["folder"], str(entry["id"])) for name, entry in entries.items()]
        unknown = sorted({key for entry in entries.values() for key in entry} - _ENTRY_KEYS[kind])
    except (AttributeError, KeyError, TypeError) as cause:
        raise ArtefactDamaged(f"the {kind} entries of {str(path)!r} do not parse; write it again") from cause
    if unknown:
        # What is not understood might be a take-down.
        raise SchemaUnknown(f"the {kind} entries of {str(path)!r} have the unknown keys {unknown}; upgrade Phosphene")
    return tuple(Member(name=name, path=folder, id=identity) for name, folder, identity in named)


def _refuse_another(path: Path, member: Member, *, kind: str) -> None:
    found = read_manifest(member.path)
    if (found.kind, found.id) != (kind, member.id):
        raise ArtefactMismatch(
            f"{str(path)!r} names the {kind} {member.name} with the id {member.id}, and {str(member.path)!r} holds the "
            f"{found.kind} {found.id}; name the generation again with `python -m index activate`"
        )


def _described(member: Member, base: Path) -> dict[str, str]:
    return {"folder": os.path.relpath(member.path.resolve(), base), "id": member.id}
