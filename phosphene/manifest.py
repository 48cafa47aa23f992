"""Artefacts on disk: named by digest, checked before anything is parsed; `artefact_writing` makes them.

`manifest.json` is the last file written; an artefact is done when its manifest matches. Knows nothing of what the
files mean. The rules are docs/design.md section 4; the fields are docs/artefacts.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from phosphene.errors import (
    ArtefactDamaged,
    ArtefactError,
    ArtefactMismatch,
    ArtefactMissing,
    ArtefactRefused,
    SchemaUnknown,
    SettingError,
)

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA",
    "FileEntry",
    "Kind",
    "Manifest",
    "canonical_json",
    "differences",
    "digest_of",
    "file_sha256",
    "find_artefact",
    "is_digest",
    "open_artefact",
    "partial_path",
    "read_manifest",
    "refuse_place",
]

MANIFEST_NAME = "manifest.json"
SCHEMA = 1
"""Of every kind that `_SCHEMAS` does not name."""
Kind = Literal["bundle", "index", "activations", "engine", "tombstones", "flags", "names"]

_SCHEMAS = {"index": 2}

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
_KEYS = {"schema", "kind", "created_by", "inputs", "config", "files", "id", "check"}
_MANIFEST_LIMIT_BYTES = 16 << 20
_PICKLE_SUFFIXES = {".bin", ".ckpt", ".joblib", ".npz", ".pickle", ".pkl", ".pt", ".pth"}


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of one file."""

    sha256: str
    """Digest of its bytes, 64 hexadecimal digits."""
    bytes: int
    """Its length."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of one artefact."""

    kind: str
    """Which kind of artefact this is."""
    created_by: str
    """Program and version that wrote it; no part of the id."""
    inputs: dict[str, str]
    """Ids of what it was made from, by role."""
    config: dict[str, Any]
    """Everything that decided its contents."""
    files: dict[str, FileEntry]
    """Every file beside the manifest, by POSIX path relative to it."""

    @property
    def schema(self) -> int:
        """Version of the kind's layout."""
        return _SCHEMAS.get(self.kind, SCHEMA)

    @property
    def id(self) -> str:
        """The artefact's name: sha256 of the canonical JSON without `created_by`."""
        return digest_of(self._body())

    def _body(self) -> dict[str, Any]:
        return {
            "schema": self.schema,
            "kind": self.kind,
            "inputs": self.inputs,
            "config": self.config,
            "files": {name: {"sha256": entry.sha256, "bytes": entry.bytes} for name, entry in self.files.items()},
        }

    def to_bytes(self) -> bytes:
        """Return the text of `manifest.json`; `check` covers all of it, so that no flipped bit goes unseen."""
        body = self._body() | {"created_by": self.created_by, "id": self.id}
        body["check"] = digest_of(body)
        return (json.dumps(body, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of a value: keys sorted, no spaces, UTF-8, no NaN."""
    return _CANONICAL.encode(value).encode()


def digest_of(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def is_digest(text: str) -> bool:
    """Tell whether a text is a SHA-256 as it is written here: 64 lowercase hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_path(target: Path) -> Path:
    """Return where an artefact grows before it is renamed to `target`.

    Raises:
        SettingError: `target` is the root of a file system, which has no name.
    """
    named = target if target.name not in ("", "..") else Path(os.path.abspath(target))
    if not named.name:
        raise SettingError(f"{str(target)!r} cannot be a folder that is made anew; name one in it")
    return named.with_name(named.name + ".partial")


def refuse_place(target: Path) -> None:
    """Refuse where an artefact cannot be made: before the work, not after it.

    Raises:
        SettingError: it is a link or a mount point, or lies in an artefact.
    """
    if target.is_symlink():
        raise SettingError(f"{str(target)!r} is a symbolic link; name the folder itself")
    if os.path.ismount(target):
        raise SettingError(f"a file system is mounted at {str(target)!r}; name a folder in it")
    for parent in Path(os.path.abspath(target)).parents:
        if not (parent / MANIFEST_NAME).is_file():
            continue
        try:
            kind = read_manifest(parent).kind
        except ArtefactError:
            continue
        raise SettingError(
            f"{str(target)!r} lies in {str(parent)!r}, which is an artefact of kind {kind!r} and holds nothing else; "
            "name a folder outside it"
        )


def read_manifest(path: Path) -> Manifest:
    """Read and check `manifest.json` itself, not the files it names.

    Raises:
        ArtefactMissing: no folder or no manifest, or none that this user may read.
        ArtefactDamaged: the text is not exactly what was written.
        SchemaUnknown: another schema number or an unknown key.
        ArtefactRefused: it names a path outside the folder, or a pickle.
    """
    file = path / MANIFEST_NAME
    if _is_withheld(file):
        raise _withheld(repr(str(path)), [MANIFEST_NAME])
    if not file.is_file():
        partial = " (an unfinished one lies beside it: run its job again)" if partial_path(path).exists() else ""
        raise ArtefactMissing(f"no artefact at {str(path)!r}: {MANIFEST_NAME} is not there{partial}")
    if file.stat().st_size > _MANIFEST_LIMIT_BYTES:
        raise ArtefactDamaged(
            f"{MANIFEST_NAME} of {path.name!r} is {file.stat().st_size} B; the limit is {_MANIFEST_LIMIT_BYTES} B"
        )
    raw = file.read_bytes()
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as cause:
        raise ArtefactDamaged(f"{MANIFEST_NAME} of {path.name!r} is not JSON; {_REMEDY}") from cause
    if not isinstance(body, dict):
        raise ArtefactDamaged(f"{MANIFEST_NAME} of {path.name!r} is not a JSON object; {_REMEDY}")
    check = body.pop("check", None)
    if check is not None and not _has_digest(body, check):
        raise ArtefactDamaged(f"{MANIFEST_NAME} of {path.name!r} differs from its own check; {_REMEDY}")
    _refuse_schema(path.name, body)
    if set(body) | {"check"} != _KEYS or check is None:
        raise SchemaUnknown(f"{MANIFEST_NAME} of {path.name!r} has the keys {sorted(body)}; due are {sorted(_KEYS)}")
    try:
        files = {name: FileEntry(**entry) for name, entry in body["files"].items()}
    except (AttributeError, TypeError) as cause:
        raise SchemaUnknown(
            f"{MANIFEST_NAME} of {path.name!r} lists its files in another form; upgrade Phosphene"
        ) from cause
    manifest = Manifest(
        kind=body["kind"], created_by=body["created_by"], inputs=body["inputs"], config=body["config"], files=files
    )
    if raw != manifest.to_bytes():
        raise ArtefactDamaged(f"{MANIFEST_NAME} of {path.name!r} is not as it was written; {_REMEDY}")
    _refuse_names(path.name, files)
    return manifest


def open_artefact(path: Path, *, kind: Kind) -> Manifest:
    """Check an artefact against its manifest, every byte of it, before anything is parsed.

    Args:
        path: the artefact's folder.
        kind: what it must be.

    Returns:
        Its manifest.

    Raises:
        ArtefactMissing: no artefact, or a file of it is gone, or may not be read; all such files in one error.
        ArtefactDamaged: a file's length or digest differs; all such files in one error.
        ArtefactMismatch: it is of another kind.
        ArtefactRefused: a file that the manifest does not name (hidden ones, which nothing reads, aside), or as
            `read_manifest`.
        SchemaUnknown: as `read_manifest`.
    """
    manifest = read_manifest(path)
    if manifest.kind != kind:
        raise ArtefactMismatch(f"{path.name!r} is of kind {manifest.kind!r}; due is {kind!r}")
    unreadable = [name for name in manifest.files if _is_withheld(path / name)]
    if unreadable:
        raise _withheld(f"{kind} {str(path)!r}", unreadable)
    foreign = sorted(_visible_files(path) - manifest.files.keys() - {MANIFEST_NAME})
    if foreign:
        raise ArtefactRefused(
            f"{kind} {path.name!r} holds {foreign}, which its manifest does not name: remove what does not belong there"
        )
    missing = [name for name in manifest.files if not (path / name).is_file()]
    if missing:
        raise ArtefactMissing(f"{kind} {path.name!r} lacks {missing}; {_REMEDY}")
    damaged = [
        name
        for name, entry in manifest.files.items()
        if (path / name).stat().st_size != entry.bytes or file_sha256(path / name) != entry.sha256
    ]
    if damaged:
        raise ArtefactDamaged(f"{kind} {path.name!r}: {damaged} differ from the manifest; {_REMEDY}")
    return manifest


def find_artefact(path: Path, *, kind: Kind) -> Manifest | None:
    """Return the checked manifest of a finished artefact, or None where there is none.

    Raises:
        ArtefactDamaged, ArtefactMismatch, ArtefactRefused, SchemaUnknown: something lies there and is not sound.
        SettingError: nothing lies there, and nothing can be made there, as with `publish`.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        refuse_place(path)
        return None
    return open_artefact(path, kind=kind)


def differences(due: dict[str, Any], found: dict[str, Any], prefix: str = "") -> list[str]:
    """Name the keys at which two configurations differ, as `key: found -> due`."""
    lines: list[str] = []
    for key in sorted(set(due) | set(found)):
        left, right = found.get(key), due.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            lines += differences(right, left, f"{prefix}{key}.")
        elif left != right:
            lines.append(f"{prefix}{key}: {left!r} -> {right!r}")
    return lines


_REMEDY = "copy it again from where it was made, or remove it and run its job again"


def _has_digest(body: dict[str, Any], check: object) -> bool:
    try:
        return digest_of(body) == check
    except ValueError:  # NaN, or half a character, which no manifest was ever written with.
        return False


def _is_withheld(file: Path) -> bool:
    try:
        if file.is_file():
            file.open("rb").close()
    except PermissionError:
        return True
    return False


def _withheld(artefact: str, names: list[str]) -> ArtefactMissing:
    return ArtefactMissing(
        f"{artefact} has files that cannot be read: {names}; let the user who runs this read them and enter their "
        "folders: chmod -R a+rX"
    )


def _refuse_schema(artefact: str, body: dict[str, Any]) -> None:
    found, kind = body.get("schema"), body.get("kind")
    due = _SCHEMAS.get(kind, SCHEMA) if isinstance(kind, str) else SCHEMA
    if found == due:
        return
    is_old = isinstance(found, int) and found < due
    remedy = "run the job that made it again, into another folder" if is_old else "upgrade Phosphene"
    raise SchemaUnknown(f"{artefact!r} ({kind}) has schema {found!r}; this version reads {due}: {remedy}")


def _visible_files(folder: Path) -> set[str]:
    names = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return {name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)}


def _refuse_names(artefact: str, files: dict[str, FileEntry]) -> None:
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name:
            raise ArtefactRefused(f"{artefact!r} names {name!r}, which is not a plain path inside the artefact")
        if path.suffix in _PICKLE_SUFFIXES:
            raise ArtefactRefused(
                f"{artefact!r} names {name!r}, which may be a pickle and is never read; use safetensors or .npy"
            )
