"""The files of a harvest: residuals, where they come from, and a record that is written last.

    shard-00000.npy         residuals [rows, d], float32 or float16
    shard-00000.rows.npy    corpus row of each residual, int64 [rows]
    shard-00000.json        record: plan, counts, unreadable images, digests

A shard is done when its record is there and matches. Knows nothing of encoders or of how residuals are used.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from phosphene.errors import SchemaUnknown
from phosphene.manifest import canonical_json, file_sha256, write_durably


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What one shard holds."""

    name: str
    """Stem of its files."""
    plan_id: str
    """The plan that it belongs to."""
    row_count: int
    """Residuals."""
    width: int
    """Length of a residual."""
    contents_sha256: str
    """Digest over the digests of its images' bytes, in order; without those too large to read."""
    quarantined: list[dict[str, Any]]
    """Unreadable images: corpus row and error class."""
    sha256: dict[str, str]
    """Digests of its array files by name."""


def shard_name(index: int) -> str:
    """The stem of a shard's files."""
    return f"shard-{index:05d}"


def write_shard(
    folder: Path,
    name: str,
    residuals: Float[np.ndarray, "rows d"],
    image_rows: Int64[np.ndarray, " rows"],
    *,
    plan_id: str,
    contents_sha256: str,
    quarantined: list[dict[str, Any]],
) -> None:
    """Write one shard durably, the record last.

    Args:
        folder: where.
        name: stem of the files.
        residuals: float32 or float16.
        image_rows: corpus row of each residual.
        plan_id: the plan that it belongs to.
        contents_sha256: see `ShardRecord`.
        quarantined: see `ShardRecord`.
    """
    arrays: dict[str, np.ndarray] = {f"{name}.npy": residuals, f"{name}.rows.npy": image_rows}
    for file_name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_durably(folder / file_name, buffer.getvalue())
    record = ShardRecord(
        name=name,
        plan_id=plan_id,
        row_count=len(residuals),
        width=residuals.shape[1],
        contents_sha256=contents_sha256,
        quarantined=quarantined,
        sha256={file_name: file_sha256(folder / file_name) for file_name in arrays},
    )
    write_durably(folder / f"{name}.json", canonical_json(asdict(record)))


def is_done(folder: Path, name: str, plan_id: str) -> bool:
    """Whether a shard of this plan lies there, whole."""
    file = folder / f"{name}.json"
    if not file.is_file():
        return False
    try:
        record = ShardRecord(**json.loads(file.read_bytes()))
    except (ValueError, TypeError):
        return False
    files = [(folder / file_name, sha256) for file_name, sha256 in record.sha256.items()]
    return record.plan_id == plan_id and all(path.is_file() and file_sha256(path) == sha256 for path, sha256 in files)


def read_records(folder: Path) -> list[ShardRecord]:
    """The records of a finished harvest, in order; the caller has checked the manifest.

    Raises:
        SchemaUnknown: a record of another form.
    """
    files = sorted(folder.glob("shard-*.json"))
    try:
        return [ShardRecord(**json.loads(file.read_bytes())) for file in files]
    except TypeError as cause:
        raise SchemaUnknown(f"the shards of {folder.name!r} have records of another version; harvest again") from cause


def remove_leftovers(folder: Path, names: set[str]) -> None:
    """Drop what a killed run left half-written (drafts, a manifest before its rename), which must not be sealed."""
    due = {f"{name}{suffix}" for name in names for suffix in (".npy", ".rows.npy", ".json")}
    for path in folder.iterdir():
        if path.name not in due:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
