"""Tombstones: the images that were taken down, by the sha256 of their bytes; an artefact beside the index they are of.

An index is immutable, so what is taken down is named apart from it. A digest stays the same through appends and
compaction, and in every index that holds the image. Knows nothing of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from index.tables import read_table, write_table
from phosphene.artefact_writing import publish
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, SettingError
from phosphene.manifest import find_artefact, is_digest, open_artefact

__all__ = ["REASON_LIMIT", "Tombstones", "open_tombstones", "save_tombstones"]

REASON_LIMIT = 1000
"""Most characters of a reason."""
_FILE = "tombstones.parquet"
_SCHEMA = pa.schema([pa.field("sha256", pa.string(), nullable=False), pa.field("reason", pa.string())])


@dataclass(frozen=True, kw_only=True, eq=False)
class Tombstones:
    """The images that were taken down."""

    id: str
    """Digest of the contents."""
    reasons: Mapping[str, str | None]
    """sha256 of each image's bytes, ascending, with the reason why it was taken down; None where none was given."""


def open_tombstones(path: Path) -> Tombstones:
    """Open tombstones, every digest checked before anything is parsed.

    Raises:
        ArtefactError: they are missing, damaged, or something else.
    """
    manifest = open_artefact(path, kind="tombstones")
    table = read_table(path / _FILE, _SCHEMA)
    digests, reasons = table["sha256"].to_pylist(), table["reason"].to_pylist()
    if digests != sorted(set(digests)) or not all(map(is_digest, digests)):
        raise ArtefactDamaged(f"{path / _FILE} does not hold rising digests: make the tombstones again")
    return Tombstones(id=manifest.id, reasons=dict(zip(digests, reasons, strict=True)))


def save_tombstones(out: Path, reasons: Mapping[str, str | None], *, inputs: dict[str, str]) -> tuple[Tombstones, bool]:
    """Publish tombstones, or find that they lie there already.

    Args:
        out: their folder.
        reasons: sha256 of the bytes of every image that is down, and why.
        inputs: ids of what they were made from, by role.

    Returns:
        What lies at `out` now, and whether it lay there before.

    Raises:
        SettingError: a reason is too long.
        ArtefactMismatch: `out` holds other tombstones, or something else.
    """
    long = [digest for digest, reason in reasons.items() if reason is not None and len(reason) > REASON_LIMIT]
    if long:
        raise SettingError(f"the reasons of {long} are longer than {REASON_LIMIT} characters, the limit; shorten them")
    ordered = dict(sorted(reasons.items()))
    found = find_artefact(out, kind="tombstones")
    if found is not None:
        there = open_tombstones(out)
        if there.reasons != ordered or found.inputs != inputs:
            raise ArtefactMismatch(
                f"{out} holds other tombstones, of {len(there.reasons)} images: choose another --out (and --from "
                f"{out} to add to them)"
            )
        return there, True

    def write(folder: Path) -> None:
        rows: list[dict[str, object]] = [{"sha256": digest, "reason": reason} for digest, reason in ordered.items()]
        write_table(folder / _FILE, _SCHEMA, [rows])

    manifest = publish(out, kind="tombstones", inputs=inputs, config={"image_count": len(ordered)}, write=write)
    return Tombstones(id=manifest.id, reasons=ordered), False
