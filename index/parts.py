"""One job in parts, on machines that share a folder: planned once, its shards made anywhere, finished once.

    python -m index plan corpus/ --bundle B --out OUT           # reads every image once
    python -m index run-shards corpus/ --bundle B --out OUT --part 3/8
    python -m index finish corpus/ --bundle B --out OUT         # makes what is missing, and publishes

Each step may be killed and run again. The result is that of `build`, with the same id. What parts share lies in
`OUT.partial`, see `index.workspace`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from index.build import BuildJob, BuildResult, complete_index, find_finished, missing_shards, open_sources, plan_index
from index.image_table import ImageTable
from index.plan import Plan, ShardRows
from index.progress import Progress
from index.row_digests import RowDigests, read_digests, write_digests
from index.shards import open_shards
from index.workspace import open_workspace, read_plan, share_workspace
from phosphene.corpus import Corpus
from phosphene.engine import open_device
from phosphene.errors import ArtefactMismatch, SettingError
from phosphene.manifest import partial_path, read_manifest

__all__ = ["Part", "finish_parts", "plan_parts", "planned", "run_part"]

_PART = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A share of the shards of a job."""

    number: int
    """From 0."""
    count: int
    """Parts of the job."""

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `3/8`.

        Raises:
            SettingError: it is no such thing.
        """
        match = _PART.fullmatch(text)
        part = None if match is None else cls(number=int(match[1]), count=int(match[2]))
        if part is None or part.number >= part.count:
            raise SettingError(
                f"part {text!r} must be NUMBER/COUNT with 0 <= NUMBER < COUNT <= 999999, such as 3/8 (--part)"
            )
        return part

    def of(self, shards: Sequence[ShardRows]) -> Sequence[ShardRows]:
        """Return every `count`-th shard, from the `number`-th on."""
        return shards[self.number :: self.count]


def planned(out: Path) -> Plan:
    """Return the plan of the job whose index is to lie, or lies, at `out`.

    Raises:
        ArtefactMissing: no job was planned there.
    """
    if not partial_path(out).exists() and out.exists():
        plan = Plan.from_config(read_manifest(out).config.get("plan", {}))
        if plan is not None:
            return plan
    return read_plan(out)


def plan_parts(job: BuildJob, progress: Progress) -> Plan:
    """Read the corpus once, and leave behind what parts need; does nothing where the index is there.

    Raises:
        As `build_index`.
    """
    sources = open_sources(job, progress)
    digests = sources.digest(progress)
    plan = plan_index(sources, digests, job.config)
    if find_finished(job.out, plan, sources.corpus.skipped_counts) is None:
        with open_workspace(job.out, plan, device=open_device(job.device).type, report=progress.say) as workspace:
            write_digests(workspace.digests, digests)
    return plan


def run_part(job: BuildJob, part: Part, progress: Progress) -> int:
    """Make the shards of a part that are missing; returns how many the part has.

    Raises:
        As `build_index`.
        ArtefactMismatch: corpus or bundle are not those that were planned.
    """
    plan = planned(job.out)
    sources = open_sources(job, progress)
    _refuse_other_bundle(plan, sources.bundle.id)
    shards = part.of(plan.shards)
    if find_finished(job.out, plan, sources.corpus.skipped_counts) is not None:
        _refuse_other_corpus(_stored_digests(job.out, plan), sources.corpus, plan)
        return len(shards)
    with share_workspace(job.out, device=open_device(job.device).type) as workspace:
        digests = _planned_digests(workspace.digests, sources.corpus, plan)
        missing_shards(job, workspace, sources, digests, plan).run(shards, progress)
    return len(shards)


def finish_parts(job: BuildJob, progress: Progress) -> BuildResult:
    """Make what no part has made, and publish the index.

    Raises:
        As `run_part`.
    """
    plan = planned(job.out)
    sources = open_sources(job, progress)
    _refuse_other_bundle(plan, sources.bundle.id)
    finished = find_finished(job.out, plan, sources.corpus.skipped_counts)
    if finished is not None:
        _refuse_other_corpus(_stored_digests(job.out, plan), sources.corpus, plan)
        return finished
    digests = _planned_digests(partial_path(job.out) / "digests.npy", sources.corpus, plan)
    return complete_index(job, sources, digests, plan, progress)


def _planned_digests(path: Path, corpus: Corpus, plan: Plan) -> RowDigests:
    """Return the digests of the rows as they were planned, on condition that these are the rows."""
    digests = read_digests(path)
    _refuse_other_corpus(digests, corpus, plan)
    return digests


def _stored_digests(index: Path, plan: Plan) -> RowDigests:
    """Return the digests of the rows that a finished index was given, those it grew from aside."""
    images = ImageTable(index, open_shards(index, plan.shards))
    return RowDigests.of(digest for part in images.columns("sha256") for digest in part)[plan.first_row :]


def _refuse_other_corpus(digests: RowDigests, corpus: Corpus, plan: Plan) -> None:
    if len(digests) != len(corpus) or corpus.content_digest(digests) != plan.corpus_digest:
        planned_count = plan.row_count - plan.first_row
        raise ArtefactMismatch(
            f"the corpus is not the one that was planned: it lists {len(corpus)} images, the plan {planned_count}, or "
            "names, labels or captions differ; put it back, or run `python -m index plan` again"
        )


def _refuse_other_bundle(plan: Plan, bundle_id: str) -> None:
    if bundle_id != plan.bundle_id:
        raise ArtefactMismatch(
            f"the job was planned for bundle {plan.bundle_id}, and this one is {bundle_id}; name that one with "
            "--bundle, or run `python -m index plan` again"
        )
