"""Where on an image each of its neurons fires: of sites with patches, a map for every activation of every image code.

A map is kept as the patches on which the neuron fires and how strongly, in 1/255 of its activation on the image (which
is the largest over the site's tokens). So exemplars of any kind, and results of any search, have theirs, and a shard
needs nothing of the others. Patches count row by row from 0. Knows nothing of photos.

    with PatchMapsWriter(folder, patch_count=196) as maps:
        maps.add(code, token_values[first_patch:], token_neuron_ids[first_patch:])
    PatchMaps(shards, grid=(14, 14)).map(row, neuron_id)
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float32, Int, Int64, Integer, UInt8

from index.array_stream import ArrayStream
from index.arrays import map_array
from index.codes_store import stored_order
from index.shards import Shard, Shards
from phosphene.bundle import Bundle
from phosphene.codes import ImageCode
from phosphene.durable_files import save_array
from phosphene.errors import ArtefactDamaged
from phosphene.site import Tokens

__all__ = ["MAP_PEAK", "PatchMaps", "PatchMapsWriter", "PatchTokens", "ShardMaps", "patch_tokens", "shard_maps"]

MAP_PEAK = 255
"""What a map says of a patch that has the neuron's activation on the image."""
_FOLDER = "maps"


@dataclass(frozen=True, kw_only=True)
class PatchTokens:
    """Which tokens of a site are patches."""

    grid: tuple[int, int]
    """Rows and columns of patches."""
    first: int
    """Tokens of the site before its first patch."""

    @property
    def count(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]


def patch_tokens(bundle: Bundle) -> PatchTokens | None:
    """Return the patches of a bundle's site; None where it has none."""
    match bundle.site.tokens:
        case Tokens.PATCHES:
            return PatchTokens(grid=bundle.encoder_spec.grid, first=0)
        case Tokens.ALL:
            return PatchTokens(grid=bundle.encoder_spec.grid, first=bundle.encoder_spec.prefix_token_count)
        case _:
            return None


class PatchMapsWriter:
    """Writes the maps of a shard, row after row, under `folder`/maps; holds one image's at a time."""

    def __init__(self, folder: Path, *, patch_count: int) -> None:
        """Create the files; close them by leaving the context."""
        target = folder / _FOLDER
        target.mkdir()
        self._offsets_file = target / "offsets.npy"
        self._offsets = [0]
        place_dtype, count_dtype = _dtypes(patch_count)
        with ExitStack() as files:
            self._counts = files.enter_context(ArrayStream(target / "counts.npy", count_dtype))
            self._patches = files.enter_context(ArrayStream(target / "patches.npy", place_dtype))
            self._values = files.enter_context(ArrayStream(target / "values.npy", np.uint8))
            self._files = files.pop_all()

    def __enter__(self) -> PatchMapsWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the files."""
        self._files.close()
        save_array(self._offsets_file, np.array(self._offsets, dtype=np.int64))

    def add(
        self,
        code: ImageCode,
        token_values: Float32[np.ndarray, "patches slots"],
        token_neuron_ids: Int64[np.ndarray, "patches slots"],
    ) -> None:
        """Write the maps of the next row.

        Args:
            code: its image code; empty for a row without one.
            token_values: activations of the codes of its patches; 0 where a slot is unused.
            token_neuron_ids: their neurons.
        """
        counts, patches, values = _hits(code, token_values, token_neuron_ids)
        self._counts.append(counts.astype(self._counts.dtype))
        self._patches.append(patches.astype(self._patches.dtype))
        self._values.append(values)
        self._offsets.append(self._offsets[-1] + len(patches))


def _dtypes(patch_count: int) -> tuple[type[np.uint8 | np.uint16], type[np.uint8 | np.uint16]]:
    """Return how a patch's place, and how a number of patches is stored."""
    return np.uint8 if patch_count <= 1 << 8 else np.uint16, np.uint8 if patch_count < 1 << 8 else np.uint16


def _hits(
    code: ImageCode,
    token_values: Float32[np.ndarray, "patches slots"],
    token_neuron_ids: Int64[np.ndarray, "patches slots"],
) -> tuple[Int64[np.ndarray, " entries"], Int64[np.ndarray, " hits"], UInt8[np.ndarray, " hits"]]:
    """Return patches per entry of the code as it is stored, and which they are and their share, entry by entry."""
    if not len(code):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint8)
    order = stored_order(code)
    by_neuron = np.argsort(code.neuron_ids[order])
    known = code.neuron_ids[order][by_neuron]
    patches, slots = np.nonzero(token_values > 0)
    fired = token_neuron_ids[patches, slots]
    places = np.minimum(np.searchsorted(known, fired), len(known) - 1)
    # What the image code has cut has no entry.
    kept = np.flatnonzero(known[places] == fired)
    entries = by_neuron[places[kept]]
    by_entry = np.argsort(entries, kind="stable")
    entries, kept = entries[by_entry], kept[by_entry]
    shares = token_values[patches[kept], slots[kept]] / code.values[order][entries]
    values = np.clip(np.rint(shares * MAP_PEAK), 1, MAP_PEAK).astype(np.uint8)
    return np.bincount(entries, minlength=len(order)), patches[kept], values


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardMaps:
    """The maps of one shard, memory-mapped."""

    offsets: Int64[np.ndarray, " rows_and_one"]
    """Where each row begins in `patches` and `values`."""
    counts: Integer[np.ndarray, " entries"]
    """Patches on which each activation of the codes is seen."""
    patches: Integer[np.ndarray, " hits"]
    """Which they are; of one activation ascending."""
    values: UInt8[np.ndarray, " hit_values"]
    """Activation there, in 1/255 of that on the image; at least 1."""


def shard_maps(shard: Shard, *, patch_count: int) -> ShardMaps:
    """Map the maps of a shard.

    Raises:
        ArtefactDamaged: the arrays do not fit together, or the codes.
    """
    source = shard.folder / _FOLDER
    place_dtype, count_dtype = _dtypes(patch_count)
    maps = ShardMaps(
        offsets=map_array(source / "offsets.npy", np.int64, 1),
        counts=map_array(source / "counts.npy", count_dtype, 1),
        patches=map_array(source / "patches.npy", place_dtype, 1),
        values=map_array(source / "values.npy", np.uint8, 1),
    )
    row_count, entry_count, hit_count = len(maps.offsets) - 1, len(maps.counts), int(maps.offsets[-1])
    if (row_count, entry_count) != (shard.codes.row_count, shard.codes.entry_count) or not (
        hit_count == len(maps.patches) == len(maps.values)
    ):
        raise ArtefactDamaged(
            f"{source}: codes/ has {shard.codes.row_count} rows and {shard.codes.entry_count} entries, maps/ "
            f"{row_count} and {entry_count}; offsets.npy names {hit_count} patches, patches.npy has "
            f"{len(maps.patches)}, values.npy {len(maps.values)}: build the index again"
        )
    return maps


class PatchMaps:
    """The maps of an index."""

    grid: tuple[int, int]
    """Rows and columns of a map."""

    def __init__(self, shards: Shards, *, grid: tuple[int, int]) -> None:
        """Map those of every shard.

        Raises:
            ArtefactDamaged: the arrays of a shard do not fit together.
        """
        self.grid = grid
        self._shards = shards
        self._parts = [shard_maps(shard, patch_count=grid[0] * grid[1]) for shard in shards]

    def map(self, row: int, neuron_id: int) -> UInt8[np.ndarray, "grid_rows grid_columns"] | None:
        """Return where a neuron fires on an image, in 1/255 of its activation there; None where it does not fire."""
        number, local = self._shards.find(row)
        codes, maps = self._shards[number].codes, self._parts[number]
        begin, end = int(codes.offsets[local]), int(codes.offsets[local + 1])
        found: Int[np.ndarray, " _"] = np.flatnonzero(codes.neuron_ids[begin:end] == neuron_id)
        if not len(found):
            return None
        entry = begin + int(found[0])
        first = int(maps.offsets[local]) + int(maps.counts[begin:entry].sum(dtype=np.int64))
        hits = slice(first, first + int(maps.counts[entry]))
        drawn = np.zeros(self.grid[0] * self.grid[1], dtype=np.uint8)
        drawn[maps.patches[hits]] = maps.values[hits]
        return drawn.reshape(self.grid)
