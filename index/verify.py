"""Whether the parts of an index say the same: what digests alone do not show; knows nothing of how it was built.

Digests tell that every file is as it was written. Here the numbers are checked against each other, shard by shard:
postings, norms and tops are what follows from the codes, the neuron table counts the postings, exemplars have the
activations that the codes say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from index.exemplars import ExemplarStore
from index.image_table import ImageTable
from index.neuron_table import NeuronTable
from index.plan import plan_shards
from index.retrieval.postings import build_postings, row_norms
from index.shard import shard_tops
from index.shards import Shard, Shards, open_shards
from index.values import ExemplarKind
from phosphene.errors import ArtefactDamaged
from phosphene.manifest import Manifest, file_sha256, open_artefact

__all__ = ["verify_index"]


def verify_index(folder: Path, *, advance: Callable[[int], None]) -> Manifest:
    """Check an index, all of it; memory is that of one shard.

    Args:
        folder: the index.
        advance: told of every shard gone through.

    Raises:
        ArtefactError: a file is missing or differs from its digest.
        ArtefactDamaged: files do not say the same; all findings in one error.
    """
    manifest = open_artefact(folder, kind="index")
    plan = manifest.config["plan"]
    shards = open_shards(folder, plan_shards(int(plan["row_count"]), int(plan["shard_image_count"])))
    images = ImageTable(folder, shards)
    found: list[str] = []
    for shard in shards:
        found += [f"shard {shard.rows.name}: {finding}" for finding in _shard_findings(shard, images)]
        advance(1)
    found += _index_findings(folder, shards)
    if found:
        raise ArtefactDamaged(f"index {folder.name!r} contradicts itself: {'; '.join(found)}: build it again")
    return manifest


def _shard_findings(shard: Shard, images: ImageTable) -> Iterator[str]:
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
    digests = [images.image(row).sha256 for row in range(shard.rows.start, shard.rows.stop)]
    tops, stored = shard_tops(codes, digests, neuron_count=neuron_count), shard.tops
    if not all(np.array_equal(getattr(tops, name), getattr(stored, name)) for name in ("starts", "rows", "values")):
        yield "tops/ does not hold the strongest images of codes/"


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


def _index_findings(folder: Path, shards: Shards) -> Iterator[str]:
    firing = sum(np.diff(shard.postings.neuron_starts) for shard in shards)
    if not np.array_equal(firing, NeuronTable(folder).firing_count):
        yield "neurons.parquet counts other images than postings/"
    exemplars = ExemplarStore(folder)
    wrong = [
        neuron_id
        for neuron_id in range(shards.neuron_count)
        for kind in ExemplarKind
        for exemplar in exemplars.exemplars(neuron_id, kind, 1)
        if _activation(shards, exemplar.row, neuron_id) != exemplar.value
    ]
    if wrong:
        yield f"exemplars/ has other activations than codes/ for {len(wrong)} neurons, such as {wrong[0]}"


def _activation(shards: Shards, row: int, neuron_id: int) -> float:
    code = shards.code(row)
    values = code.values[code.neuron_ids == neuron_id]
    return float(values[0]) if len(values) else 0.0
