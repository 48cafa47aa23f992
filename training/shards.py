"""The files of a harvest: residuals, where they come from, and a record that is written last.

    shard-00000.npy         residuals [rows, d], float32 or float16
    shard-00000.rows.npy    corpus row of each residual, int64 [rows]
    shard-00000.tokens.npy  its place among the tokens that the site reads of the image, int32 [rows]
    shard-00000.norms.npy   its Euclidean norm as stored, float32 [rows]
    shard-00000.json        record: plan, counts, unreadable images, digests
    artefact-tokens.json    which norms mark a patch as an artefact token; once, at the end

A shard is done when its record is there and matches. Knows nothing of encoders or of how residuals are used.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64

from phosphene.durable_files import write_durably
from phosphene.errors import ArtefactMismatch, SchemaUnknown
from phosphene.manifest import canonical_json, file_sha256
from training.artefact_tokens import ArtefactTokens, find_artefact_tokens

ROW_BYTES = 8 + 4 + 4
"""What the disk holds of each residual beside its values: corpus row, place, norm."""

_ARRAY_SUFFIXES = (".npy", ".rows.npy", ".tokens.npy", ".norms.npy")
_ARTEFACT_TOKENS_NAME = "artefact-tokens.json"
_BLOCK_ROWS = 4096


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


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardArrays:
    """The residuals of one shard and where each comes from."""

    residuals: Float[np.ndarray, "rows d"]
    """In float32 or float16."""
    image_rows: Int64[np.ndarray, " rows"]
    """Corpus row of each, ascending."""
    tokens: Int32[np.ndarray, " rows"]
    """Place of each among the tokens that the site reads of the image."""

    def norms(self) -> Float32[np.ndarray, " rows"]:
        """The Euclidean norm of each residual, block by block: half precision is widened first."""
        norms = np.empty(len(self.residuals), dtype=np.float32)
        for start in range(0, len(norms), _BLOCK_ROWS):
            block = self.residuals[start : start + _BLOCK_ROWS].astype(np.float32)
            norms[start : start + _BLOCK_ROWS] = np.sqrt(np.einsum("ij,ij->i", block, block))
        return norms


def shard_name(index: int) -> str:
    """The stem of a shard's files."""
    return f"shard-{index:05d}"


def write_shard(
    folder: Path,
    name: str,
    arrays: ShardArrays,
    *,
    plan_id: str,
    contents_sha256: str,
    quarantined: list[dict[str, Any]],
) -> None:
    """Write one shard durably, the record last.

    Args:
        folder: where.
        name: stem of the files.
        arrays: what it holds.
        plan_id: the plan that it belongs to.
        contents_sha256: see `ShardRecord`.
        quarantined: see `ShardRecord`.

    Raises:
        OSError: no room or no access; names the file.
    """
    contents = (arrays.residuals, arrays.image_rows, arrays.tokens, arrays.norms())
    files = [f"{name}{suffix}" for suffix in _ARRAY_SUFFIXES]
    for file_name, array in zip(files, contents, strict=True):
        _write_array(folder / file_name, array)
    record = ShardRecord(
        name=name,
        plan_id=plan_id,
        row_count=len(arrays.residuals),
        width=arrays.residuals.shape[1],
        contents_sha256=contents_sha256,
        quarantined=quarantined,
        sha256={file_name: file_sha256(folder / file_name) for file_name in files},
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
        ArtefactMismatch: shards of several plans.
    """
    files = sorted(folder.glob("shard-*.json"), key=lambda file: (len(file.name), file.name))
    try:
        records = [ShardRecord(**json.loads(file.read_bytes())) for file in files]
    except TypeError as cause:
        raise SchemaUnknown(f"the shards of {folder.name!r} have records of another version; harvest again") from cause
    if any(set(record.sha256) != {f"{record.name}{suffix}" for suffix in _ARRAY_SUFFIXES} for record in records):
        raise SchemaUnknown(f"the shards of {folder.name!r} have files of another version; harvest again")
    kinds = {(record.plan_id, record.width): record.name for record in records}
    if len(kinds) > 1:
        raise ArtefactMismatch(
            f"{folder.name!r} mixes shards of {len(kinds)} harvests, such as {sorted(kinds.values())[:2]}: "
            "harvest again"
        )
    return records


def mark_artefact_tokens(folder: Path, names: Sequence[str], *, first_patch: int | None) -> ArtefactTokens:
    """Find which norms mark a patch as an artefact token, and keep it beside the shards.

    Args:
        folder: holds all shards of the harvest.
        names: their stems.
        first_patch: place of the first patch among an image's tokens; None where there are none.
    """

    def patch_norms() -> Iterator[Float32[np.ndarray, " rows"]]:
        for name in names if first_patch is not None else ():
            norms, tokens = load_array(folder, name, "norms"), load_array(folder, name, "tokens")
            yield norms[tokens >= first_patch]

    found = find_artefact_tokens(patch_norms)
    write_durably(folder / _ARTEFACT_TOKENS_NAME, canonical_json(asdict(found) | {"first_patch": first_patch}))
    return found


def read_norm_limit(folder: Path) -> tuple[int, float] | None:
    """Place of the first patch, and the norm beyond which a patch is an artefact token; None where none is one."""
    found = json.loads((folder / _ARTEFACT_TOKENS_NAME).read_bytes())
    return None if found["norm_limit"] is None else (found["first_patch"], found["norm_limit"])


def load_array(folder: Path, name: str, kind: str = "") -> np.ndarray:
    """One array of a shard, memory-mapped: "" (residuals), "rows", "tokens" or "norms"."""
    file = f"{name}.{kind}.npy" if kind else f"{name}.npy"
    loaded: np.ndarray = np.load(folder / file, mmap_mode="r", allow_pickle=False)
    return loaded


def remove_leftovers(folder: Path, names: set[str]) -> None:
    """Drop what a killed run left half-written (drafts, a manifest before its rename), which must not be sealed."""
    due = {f"{name}{suffix}" for name in names for suffix in (*_ARRAY_SUFFIXES, ".json")}
    for path in folder.iterdir():
        if path.name not in due:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _write_array(path: Path, array: np.ndarray) -> None:
    """Write one array so that it is either whole or absent, without a copy of it in memory."""
    draft = path.with_name(path.name + ".draft")
    try:
        with draft.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            file.write(array.reshape(-1).view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    draft.replace(path)
