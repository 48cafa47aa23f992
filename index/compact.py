"""Compaction: an index rewritten into full shards, without the images that were taken down; no encoder runs.

What was taken down is on no disk that holds the new index alone: neither picture nor code, text or embedding. Killed at
any moment and run again, it goes on with the shards that are missing and ends with the same manifest id.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from index.build import BuildResult, find_finished, publish_index
from index.bundle_parts import StoredBundle
from index.image_table import ImageTable
from index.plan import Plan, config_of, stored_shards
from index.progress import Progress
from index.row_copies import RowCopies
from index.shards import Shards, open_shards
from index.tombstones import open_tombstones
from index.workspace import open_workspace, refuse_source
from phosphene.errors import ArtefactMismatch, CorpusError
from phosphene.manifest import digest_of, open_artefact

__all__ = ["CompactJob", "compact_index"]


@dataclass(frozen=True, kw_only=True)
class CompactJob:
    """What to rewrite, and where."""

    index: Path
    """Folder of the index; it stays as it is."""
    out: Path
    """Folder of the index to be."""
    tombstones: Path | None = None
    """Folder of the tombstones of the images to leave behind; None: none is."""


def compact_index(job: CompactJob, progress: Progress) -> BuildResult:
    """Compact an index, or do what is missing of it.

    Raises:
        ArtefactError: the index, the tombstones or what lies at `out` is missing, damaged or another one; or the
            tombstones hide no row of this index.
        CorpusError: no image would be left.
        SettingError: `out` holds something else, or another process works on it.
    """
    refuse_source(job.out, job.index)
    manifest = open_artefact(job.index, kind="index")
    earlier = manifest.config["plan"]
    shards = open_shards(job.index, stored_shards(earlier))
    images = ImageTable(job.index, shards)
    kept = np.ones(shards.row_count, dtype=bool)
    made_from = {"index": manifest.id}
    if job.tombstones is not None:
        tombstones = open_tombstones(job.tombstones)
        down = images.rows_with(tombstones.reasons.keys())
        if not len(down):
            raise ArtefactMismatch(
                f"none of the {len(tombstones.reasons)} images of tombstones {job.tombstones.name!r} is in index "
                f"{job.index.name!r}: name those that were made for it, or none to merge small shards alone"
            )
        kept[down] = False
        made_from["tombstones"] = tombstones.id
    if not bool((kept & images.readable).any()):
        raise CorpusError(f"every image of index {job.index.name!r} was taken down; an index needs at least 1")
    copies = RowCopies(job.index, shards, kept)
    plan = Plan(
        corpus_digest=digest_of(made_from),
        row_count=copies.row_count,
        bundle_id=str(earlier["bundle_id"]),
        code_id=str(earlier["code_id"]),
        config=config_of(earlier),
        vocabulary_digest=str(earlier["vocabulary_digest"]),
        made_from=made_from,
    )
    finished = find_finished(job.out, plan, {})
    if finished is not None:
        return finished
    with open_workspace(job.out, plan, device=_device_of(shards), report=progress.say) as workspace:
        finished = find_finished(job.out, plan, {})
        if finished is not None:  # By another process, while this one looked for rows.
            return finished
        done = [shard for shard in plan.shards if workspace.is_finished(shard)]
        progress.begin("compact", copies.row_count, sum(shard.stop - shard.start for shard in done), "images")
        for shard in plan.shards:
            if shard not in done:
                workspace.write_shard(shard, partial(copies.write, start=shard.start, stop=shard.stop))
                progress.advance(shard.stop - shard.start)
        facts = {name: value for name, value in manifest.config.items() if name not in ("plan", "plan_id")}
        return publish_index(job.out, workspace, plan, StoredBundle(job.index), facts, progress)


def _device_of(shards: Shards) -> str:
    """Return the kinds of devices that the codes were computed on, each once, whatever was compacted before."""
    named = (json.loads((shard.folder / "record.json").read_bytes())["device"].split("+") for shard in shards)
    return "+".join(sorted({kind for kinds in named for kind in kinds}))
