"""The index job, from a corpus and a bundle to a finished index; reads downwards.

Killed at any moment and run again, it goes on with the shards that are missing and ends with the same manifest id. On a
finished index of the same plan it returns at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from index.assemble import assemble
from index.contents import digest_images
from index.plan import IndexConfig, Plan, ShardRows
from index.progress import Progress
from index.quarantine import Quarantine
from index.shard import ShardWork, run_shard, shard_work
from index.summary import Summary, read_summary
from index.workers import WorkerSetup, open_decoders, run_in_processes
from index.workspace import Workspace, discard_workspace, open_workspace
from phosphene.bundle import Bundle, load_bundle
from phosphene.corpus import Corpus, open_corpus
from phosphene.engine import open_device
from phosphene.errors import ArtefactMismatch, SettingError
from phosphene.manifest import MANIFEST_NAME, Manifest, differences, find_artefact, seal
from phosphene.pipeline import Pipeline
from phosphene.readout import SimilarityReadout

__all__ = ["BuildJob", "BuildResult", "build_index"]

_WORKER_LIMIT = 256


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """What to build, and where."""

    corpus: str
    """Folder, CSV or Parquet list, or WebDataset tars, as `phosphene.corpus` reads them."""
    bundle: Path
    """Folder of the bundle."""
    out: Path
    """Folder of the index to be."""
    config: IndexConfig
    """What the plan fixes."""
    device: str = "cpu"
    """Torch device; no part of the plan."""
    max_bad_ratio: float = 0.1
    """Share of the corpus that may be unusable, in [0, 1]; no part of the plan."""
    worker_count: int = 1
    """Processes that encode; 1 works in this one. No part of the plan."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            SettingError: `max_bad_ratio` or `worker_count` is out of bounds.
        """
        if not 1 <= self.worker_count <= _WORKER_LIMIT:
            raise SettingError(f"{self.worker_count} workers; the limits are 1 to {_WORKER_LIMIT} (--workers)")
        if not 0 <= self.max_bad_ratio <= 1:
            raise SettingError(f"max_bad_ratio is {self.max_bad_ratio:g}; the limits are 0 to 1 (--max-bad-ratio)")


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What lies at `out` now."""

    manifest: Manifest
    """The index's manifest."""
    plan_id: str
    """Digest of inputs and configuration."""
    summary: Summary
    """Its figures."""
    was_finished: bool
    """Whether it lay there already."""


def build_index(job: BuildJob, progress: Progress) -> BuildResult:
    """Build an index, or what is missing of it.

    Raises:
        CorpusError: the corpus is missing or empty, or too much of it cannot be used.
        ArtefactError: the bundle or what lies at `out` is missing, damaged or another one.
        SettingError: `out` holds something else, or another process works on it.
        EncoderError: the bundle's encoder cannot be loaded.
        NumericError: the encoder or the sparse autoencoder gave NaN or infinity.
    """
    bundle = load_bundle(job.bundle)
    corpus = open_corpus(job.corpus)
    progress.begin("digest", len(corpus), 0, "images")
    with open_decoders() as readers:
        digests = digest_images(corpus, readers, progress.advance)
    plan = plan_index(corpus, digests, bundle, job.config)
    finished = _find_finished(job.out, plan)
    if finished is not None:
        return finished
    setup = partial(WorkerSetup, bundle=job.bundle, bundle_id=bundle.id, device=job.device, config=plan.config)
    device = open_device(job.device).type
    with open_workspace(job.out, plan, device=device, report=progress.say) as workspace:
        finished = _find_finished(job.out, plan)
        if finished is not None:  # By another process, while this one read the corpus.
            return finished
        shards = _Shards(setup(workspace=workspace), job, plan, corpus, digests)
        shards.run_missing(progress)
        pipeline = shards.pipeline()
        with_text = isinstance(pipeline.engine.readout, SimilarityReadout)
        draft = workspace.fresh_draft()
        summary = assemble(draft, plan=plan, pipeline=pipeline, with_text=with_text, progress=progress)
        if job.out.exists():
            job.out.rmdir()
        config = {"plan": plan.to_config(), "plan_id": plan.id, "has_text": with_text}
        manifest = seal(draft, job.out, kind="index", inputs=plan.inputs, config=config)
        discard_workspace(job.out, plan)
    return BuildResult(manifest=manifest, plan_id=plan.id, summary=summary, was_finished=False)


def plan_index(corpus: Corpus, digests: Sequence[str], bundle: Bundle, config: IndexConfig) -> Plan:
    """Decide what to do; has no effects.

    Args:
        corpus: what to index.
        digests: sha256 of every row's bytes.
        bundle: what to index it with.
        config: what the caller chose.

    Raises:
        CorpusError: the corpus is empty.
    """
    return Plan(
        corpus_digest=corpus.content_digest(digests),
        row_count=len(corpus),
        bundle_id=bundle.id,
        code_id=bundle.code_id,
        config=config,
    )


def _find_finished(out: Path, plan: Plan) -> BuildResult | None:
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST_NAME).exists()):
        raise SettingError(f"{out} exists and is no index; choose another --out, or remove it first")
    manifest = find_artefact(out, kind="index")
    if manifest is None:
        return None
    if manifest.config["plan_id"] != plan.id:
        changed = "; ".join(differences(plan.to_config(), manifest.config["plan"]))
        raise ArtefactMismatch(
            f"{out} holds the finished index of another plan (there -> wanted): {changed}; choose another --out, or "
            "remove it first"
        )
    discard_workspace(out, plan)
    return BuildResult(manifest=manifest, plan_id=plan.id, summary=read_summary(out), was_finished=True)


class _Shards:
    """The shards of a job that are missing, and who makes them."""

    def __init__(self, setup: WorkerSetup, job: BuildJob, plan: Plan, corpus: Corpus, digests: Sequence[str]) -> None:
        self._setup, self._job, self._plan = setup, job, plan
        self._corpus, self._digests = corpus, digests
        self._pipeline: Pipeline | None = None

    def pipeline(self) -> Pipeline:
        """Return the bundle in this process; loads it the first time."""
        if self._pipeline is None:
            self._pipeline = self._setup.open_pipeline()
        return self._pipeline

    def run_missing(self, progress: Progress) -> None:
        """Make every shard that is not there yet.

        Raises:
            CorpusError: too many images cannot be used.
        """
        workspace, row_count = self._setup.workspace, self._plan.row_count
        finished = [shard for shard in self._plan.shards if workspace.is_finished(shard)]
        progress.begin("encode", row_count, sum(shard.stop - shard.start for shard in finished), "images")
        quarantine = Quarantine(row_count, max_bad_ratio=self._job.max_bad_ratio, report=workspace.quarantine_report)
        for shard in finished:
            quarantine.add(workspace.shard_folder(shard))
        missing = [shard for shard in self._plan.shards if shard not in finished]
        if self._job.worker_count == 1 or len(missing) <= 1:
            self._run_here(missing, quarantine, progress)
        else:
            run_in_processes(
                self._setup,
                missing,
                self._cut,
                worker_count=self._job.worker_count,
                advance=progress.advance,
                finish=lambda shard: quarantine.add(workspace.shard_folder(shard)),
            )
        if quarantine.count:
            progress.say(f"quarantined {quarantine.count} of {row_count} images: {quarantine.examples()}")

    def _run_here(self, missing: Sequence[ShardRows], quarantine: Quarantine, progress: Progress) -> None:
        workspace: Workspace = self._setup.workspace
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
        return shard_work(shard, self._corpus, self._digests)
