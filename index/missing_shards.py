"""The shards of a job that are not there yet, and who makes them; a shard is the same whoever made it.

Knows nothing of how a plan is made or of what follows on the last shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from index.engines import Engine, LocalEngine, RayEngine
from index.plan import Plan, ShardRows
from index.progress import Progress
from index.quarantine import Quarantine
from index.ray_engine import run_on_ray
from index.row_digests import RowDigests
from index.shard import ShardWork, run_shard, shard_work
from index.workers import WorkerSetup, open_decoders, run_in_processes
from phosphene.corpus import Corpus
from phosphene.pipeline import Pipeline

__all__ = ["MissingShards", "Workforce"]


@dataclass(frozen=True, kw_only=True)
class Workforce:
    """Who makes shards, and how many bad images they put up with."""

    engine: Engine
    """What runs them."""
    worker_count: int
    """Processes or tasks at work at once; 1 of the local engine works in this process."""
    max_bad_ratio: float
    """Share of the images that may be unusable."""


class MissingShards:
    """The shards of a job that are missing, and who makes them."""

    def __init__(
        self, setup: WorkerSetup, plan: Plan, corpus: Corpus, digests: RowDigests, workforce: Workforce
    ) -> None:
        """Take a job whose workspace is held."""
        self._setup, self._plan, self._workforce = setup, plan, workforce
        self._corpus, self._digests = corpus, digests
        self._pipeline: Pipeline | None = None

    def pipeline(self) -> Pipeline:
        """Return the bundle in this process; loads it the first time."""
        if self._pipeline is None:
            self._pipeline = self._setup.open_pipeline()
        return self._pipeline

    def run(self, shards: Sequence[ShardRows], progress: Progress) -> None:
        """Make those of the shards that are not there yet.

        Raises:
            CorpusError: too many images cannot be used.
        """
        workspace = self._setup.workspace
        image_count = len(self._corpus) - len(self._corpus.unlistable_folders)
        finished = {shard for shard in shards if workspace.is_finished(shard)}
        progress.begin("encode", _rows(shards), _rows(finished), "images")
        quarantine = Quarantine(
            image_count, max_bad_ratio=self._workforce.max_bad_ratio, report=workspace.quarantine_report
        )
        for shard in shards:
            if shard in finished:
                quarantine.add(workspace.shard_folder(shard))
        self._make([shard for shard in shards if shard not in finished], quarantine, progress)
        if quarantine.count:
            progress.say(f"quarantined {quarantine.count} of {image_count} images: {quarantine.examples()}")

    def _make(self, missing: Sequence[ShardRows], quarantine: Quarantine, progress: Progress) -> None:
        def finish(shard: ShardRows) -> None:
            quarantine.add(self._setup.workspace.shard_folder(shard))

        worker_count = self._workforce.worker_count
        if 0 < len(missing) < worker_count:
            progress.say(
                f"no more than {len(missing)} of {worker_count} workers have work, as many as there are shards to "
                "make; an index that is built with smaller shards (--shard-images, another plan) has more of them"
            )
        match self._workforce.engine:
            case RayEngine() as engine:
                run_on_ray(
                    self._setup,
                    missing,
                    self._cut,
                    engine=engine,
                    worker_count=worker_count,
                    progress=progress,
                    finish=finish,
                )
            case LocalEngine() if worker_count > 1 and len(missing) > 1:
                run_in_processes(
                    self._setup,
                    missing,
                    self._cut,
                    worker_count=worker_count,
                    advance=progress.advance,
                    finish=finish,
                )
            case LocalEngine():
                self._run_here(missing, quarantine, progress)
            case _ as never:
                assert_never(never)

    def _run_here(self, missing: Sequence[ShardRows], quarantine: Quarantine, progress: Progress) -> None:
        workspace = self._setup.workspace
        with open_decoders() as decoders:
            for shard in missing:
                write = partial(
                    run_shard,
                    work=self._cut(shard),
                    config=self._plan.config,
                    pipeline=self.pipeline(),
                    decoders=decoders,
                    advance=progress.advance,
                )
                workspace.write_shard(shard, write)
                quarantine.add(workspace.shard_folder(shard))

    def _cut(self, shard: ShardRows) -> ShardWork:
        return shard_work(shard, self._corpus, self._digests, first_row=self._plan.first_row)


def _rows(shards: Sequence[ShardRows] | set[ShardRows]) -> int:
    return sum(shard.stop - shard.start for shard in shards)
