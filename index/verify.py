"""Whether the parts of an index say the same: what digests alone do not show; knows nothing of how it was built.

Digests tell that every file is as it was written. Here the numbers are checked against each other, shard by shard:
postings, norms, tops and exemplars are what follows from the codes, the neuron table counts the postings, both tables
of images say the same, digests lead to their rows, and whoever is quarantined has neither code nor thumbnail.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from index.exemplars import ExemplarStore
from index.image_table import ImageTable
from index.neuron_table import NeuronTable
from index.patch_maps import shard_maps
from index.plan import IndexConfig, config_of, stored_shards
from index.quarantine import QUARANTINE_FILE, quarantined_rows, read_quarantine
from index.retrieval.postings import build_postings, row_norms
from index.shard import shard_tops
from index.shards import Shard, Shards, open_shards
from index.thumbnails import ThumbnailStore
from phosphene.errors import ArtefactDamaged
from phosphene.manifest import Manifest, file_sha256, open_artefact

__all__ = ["verify_index"]


def verify_index(folder: Path, *, advance: Callable[[int], None]) -> Manifest:
    """Check an index, all of it; memory is that of one shard, or of a block of neurons.

    Args:
        folder: the index.
        advance: told of every shard gone through.

    Raises:
        ArtefactError: a file is missing or differs from its digest.
        ArtefactDamaged: files do not say the same; all findings of shards in one error, or, where there are none, all
            findings over them.
    """
    manifest = open_artefact(folder, kind="index")
    shards = open_shards(folder, stored_shards(manifest.config["plan"]))
    images, thumbnails = ImageTable(folder, shards), ThumbnailStore(shards)
    grid = manifest.config["patch_grid"]
    found: list[str] = []
    for shard, digests in zip(shards, images.columns("sha256"), strict=True):
        findings = [
            *_shard_findings(shard, images, digests),
            *_row_findings(shard, images, thumbnails),
            *([] if grid is None else _map_findings(shard, tuple(grid))),
        ]
        found += [f"shard {shard.rows.name}: {finding}" for finding in findings]
        advance(1)
    if not found:  # What is over all shards follows from them.
        found += _index_findings(folder, shards, images, config_of(manifest.config["plan"]))
    if found:
        raise ArtefactDamaged(f"index {folder.name!r} contradicts itself: {'; '.join(found)}: build it again")
    return manifest


def _shard_findings(shard: Shard, images: ImageTable, digests: Sequence[str]) -> Iterator[str]:
    yield from _record_findings(shard)
    codes, neuron_count = shard.codes, shard.postings.neuron_count
    if int(codes.offsets[0]) != 0 or bool((np.diff(codes.offsets) < 0).any()):
        yield "codes/offsets.npy does not rise from 0"
        return
    if codes.entry_count and int(codes.neuron_ids.max()) >= neuron_count:
        yield f"codes/neuron_ids.npy names neuron {int(codes.neuron_ids.max())} of {neuron_count}"
        return
    yield from _order_findings(shard)
    quarantined = ~images.readable[shard.rows.start : shard.rows.stop]
    if bool(np.diff(codes.offsets)[quarantined].any()):
        yield "a quarantined row has a code"
    due = build_postings(codes.offsets, codes.neuron_ids, codes.values, neuron_count=neuron_count)
    if not (
        np.array_equal(due.neuron_starts, shard.postings.neuron_starts)
        and np.array_equal(due.words, shard.postings.words)
        and due.scale == shard.postings.scale
    ):
        yield "postings/ is not codes/ turned round"
    if not np.array_equal(row_norms(codes.offsets, codes.values), shard.norms):
        yield "row_norms.npy does not hold the norms of codes/"
    tops, stored = shard_tops(codes, digests, neuron_count=neuron_count), shard.tops
    if not all(np.array_equal(getattr(tops, name), getattr(stored, name)) for name in ("starts", "rows", "values")):
        yield "tops/ does not hold the strongest images of codes/"


def _row_findings(shard: Shard, images: ImageTable, thumbnails: ThumbnailStore) -> Iterator[str]:
    differing = images.rows_that_differ(shard)
    if differing:
        yield f"images.parquet says something else than image_rows/ of {len(differing)} rows, such as {differing[0]}"
    rows = range(shard.rows.start, shard.rows.stop)
    wrong = [row for row in rows if bool(thumbnails.thumbnail(row)) != bool(images.readable[row])]
    if wrong:
        yield f"thumbnails/ has one of a quarantined row, or none of a readable one: {wrong[:5]}"


def _record_findings(shard: Shard) -> Iterator[str]:
    record = json.loads((shard.folder / "record.json").read_bytes())
    if record["rows"] != [shard.rows.start, shard.rows.stop]:
        yield f"record.json is of the rows {record['rows']}, not {[shard.rows.start, shard.rows.stop]}"
    differing = [name for name, digest in record["files"].items() if file_sha256(shard.folder / name) != digest]
    if differing:
        yield f"record.json has other digests of {differing}"


def _order_findings(shard: Shard) -> Iterator[str]:
    codes = shard.codes
    if not bool((np.isfinite(codes.values) & (codes.values > 0)).all()):
        yield "codes/values.npy holds activations that are not above 0"
    owners = np.repeat(np.arange(codes.row_count), np.diff(codes.offsets))
    order = np.lexsort((codes.neuron_ids, -codes.values.astype(np.float32), owners))
    if not np.array_equal(order, np.arange(len(order))):
        yield "a code is not in order of activation, then neuron"
    pairs = np.sort(owners * shard.postings.neuron_count + codes.neuron_ids)
    if bool((np.diff(pairs) == 0).any()):
        yield "a code names a neuron twice"


def _map_findings(shard: Shard, grid: tuple[int, int]) -> Iterator[str]:
    patch_count = grid[0] * grid[1]
    maps = shard_maps(shard, patch_count=patch_count)
    per_row = np.add.reduceat(np.append(maps.counts, 0).astype(np.int64), shard.codes.offsets[:-1])
    per_row[np.diff(shard.codes.offsets) == 0] = 0
    if int(maps.offsets[0]) != 0 or not np.array_equal(np.diff(maps.offsets), per_row):
        yield "maps/offsets.npy does not count what maps/counts.npy holds"
        return
    owners = np.repeat(np.arange(len(maps.counts)), maps.counts)
    if len(maps.patches) and int(maps.patches.max()) >= patch_count:
        yield f"maps/patches.npy names patch {int(maps.patches.max())} of {patch_count}"
    if bool((np.diff(owners * patch_count + maps.patches) <= 0).any()):
        yield "maps/patches.npy does not ascend within a map"
    if bool((maps.values == 0).any()):
        yield "maps/values.npy holds 0"


def _index_findings(folder: Path, shards: Shards, images: ImageTable, config: IndexConfig) -> Iterator[str]:
    firing = sum(np.diff(shard.postings.neuron_starts) for shard in shards)
    if not np.array_equal(firing, NeuronTable(folder).firing_count):
        yield "neurons.parquet counts other images than postings/"
    if not images.names_every_image():
        yield "digests/ does not lead to the rows that have them"
        return
    counts = {"top_count": config.top_count, "spread_count": config.spread_count}
    if not ExemplarStore(folder).follows_from(shards, images.first_rows(), **counts):
        yield "exemplars/ does not hold what follows from codes/"
    if list(quarantined_rows([shard.folder for shard in shards])) != list(read_quarantine(folder / QUARANTINE_FILE)):
        yield f"{QUARANTINE_FILE} lists other rows than images.parquet"
