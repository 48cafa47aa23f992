"""The index job, from a corpus and a bundle to a finished index; reads downwards.

Killed at any moment and run again, it goes on with the shards that are missing and ends with the same manifest id. On a
finished index of the same plan it returns at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from index.assemble import assemble
from index.bundle_parts import BundleParts, LoadedBundle
from index.contents import digest_images
from index.earlier import EarlierIndex, open_earlier, take_over
from index.engines import Engine, LocalEngine, RayEngine
from index.missing_shards import MissingShards, Workforce
from index.patch_maps import patch_tokens
from index.plan import IndexConfig, Plan
from index.progress import Progress
from index.quarantine import unlisted_folders
from index.ray_engine import require_ray
from index.row_digests import RowDigests
from index.summary import Summary, read_summary
from index.vocabulary import vocabulary_digest
from index.workers import WorkerSetup, open_decoders
from index.workspace import Workspace, discard_workspace, open_workspace, refuse_source
from phosphene.artefact_writing import seal
from phosphene.bundle import Bundle, load_bundle
from phosphene.corpus import Corpus, open_corpus
from phosphene.engine import open_device
from phosphene.errors import ArtefactMismatch, CorpusError, SettingError
from phosphene.manifest import MANIFEST_NAME, Manifest, differences, find_artefact
from phosphene.open_files import shortage_explained
from phosphene.readout import SimilarityReadout

__all__ = [
    "BuildJob",
    "BuildResult",
    "Sources",
    "build_index",
    "complete_index",
    "find_finished",
    "missing_shards",
    "open_sources",
    "plan_index",
    "publish_index",
]

_WORKER_LIMIT = 256
_SHOWN = 5


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
    """Share of the images that may be unusable, in [0, 1]; at 0, folders that cannot be listed are refused too. No part
    of the plan."""
    worker_count: int = 1
    """Processes that encode; 1 of the local engine works in this one. No part of the plan."""
    engine: Engine = field(default_factory=LocalEngine)
    """What runs them; no part of the plan."""
    earlier: Path | None = None
    """Index to append to: its rows come first, and its own `config` stands. None: an index of the corpus alone."""
    vocabulary: tuple[str, ...] = ()
    """Words that may name neurons by the text tower, part of the plan; none: those that `earlier` was given, or those
    of the bundle, if any."""

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
    skipped_counts: Mapping[str, int]
    """Files that were found beside the images, by why they are none."""
    unlisted_folder_count: int = 0
    """Folders that could not be listed; whatever images they hold are missing."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What an index is made from, opened."""

    bundle: Bundle
    """What to index with."""
    corpus: Corpus
    """What to index."""
    earlier: EarlierIndex | None = None
    """The index whose rows come first; None: none do."""
    vocabulary: tuple[str, ...] = ()
    """Words that were given to name neurons by the text tower; none: those of the bundle, if any."""

    def digest(self, progress: Progress) -> RowDigests:
        """Read every image once."""
        progress.begin("digest", len(self.corpus), 0, "images")
        with open_decoders() as readers:
            return digest_images(self.corpus, readers, progress.advance)


def build_index(job: BuildJob, progress: Progress) -> BuildResult:
    """Build an index, or what is missing of it.

    Raises:
        CorpusError: the corpus is missing or empty, or too much of it cannot be used or listed.
        ArtefactError: the bundle or what lies at `out` is missing, damaged or another one.
        SettingError: `out` holds something else, or another process works on it.
        EncoderError: the bundle's encoder cannot be loaded.
        NumericError: the encoder or the sparse autoencoder gave NaN or infinity.
    """
    sources = open_sources(job, progress)
    digests = sources.digest(progress)
    plan = plan_index(sources, digests, job.config)
    return complete_index(job, sources, digests, plan, progress)


def open_sources(job: BuildJob, progress: Progress) -> Sources:
    """Load the bundle and list the corpus; says what was found beside the images.

    Raises:
        As `build_index`.
    """
    _refuse_place(job.out)
    if not (job.out / MANIFEST_NAME).exists():  # A finished index asks for no device.
        open_device(job.device)
    if isinstance(job.engine, RayEngine):
        require_ray()
    if job.earlier is not None:
        refuse_source(job.out, job.earlier)
    bundle = load_bundle(job.bundle)
    earlier = None if job.earlier is None else open_earlier(job.earlier, bundle)
    words = job.vocabulary or (() if earlier is None else earlier.vocabulary)
    sources = Sources(bundle=bundle, corpus=open_corpus(job.corpus), earlier=earlier, vocabulary=words)
    skipped = sources.corpus.skipped_counts
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
        seen_count = sum(skipped.values()) + len(sources.corpus) - len(sources.corpus.unlistable_folders)
        progress.say(f"skipped {sum(skipped.values())} of {seen_count} files: {reasons}")
    _report_unlistable(sources.corpus, job.max_bad_ratio, progress)
    return sources


def _report_unlistable(corpus: Corpus, max_bad_ratio: float, progress: Progress) -> None:
    """Say which folders cannot be listed; raises `CorpusError` where nothing may be missing."""
    folders = corpus.unlistable_folders
    if not folders:
        return
    shown = ", ".join(map(repr, folders[:_SHOWN])) + (f" and {len(folders) - _SHOWN} more" if folders[_SHOWN:] else "")
    found = f"{len(folders)} folders of the corpus cannot be listed: {shown}"
    if len(folders) == len(corpus):
        raise CorpusError(f"{found}; there is no image beside them: make them readable, or name another source")
    if max_bad_ratio == 0:
        raise CorpusError(
            f"{found}; with --max-bad-ratio 0 nothing may be missing: make them readable, or allow more than 0"
        )
    progress.say(f"{found}; whatever images they hold are missing from the index")


def complete_index(job: BuildJob, sources: Sources, digests: RowDigests, plan: Plan, progress: Progress) -> BuildResult:
    """Do what is missing of a planned job, and publish the index. Arguments and errors as `build_index`."""
    finished = find_finished(job.out, plan, sources.corpus.skipped_counts)
    if finished is not None:
        return finished
    device = open_device(job.device).type
    with open_workspace(job.out, plan, device=device, report=progress.say) as workspace:
        finished = find_finished(job.out, plan, sources.corpus.skipped_counts)
        if finished is not None:  # By another process, while this one read the corpus.
            return finished
        shards = missing_shards(job, workspace, sources, digests, plan)
        _check_vocabulary(sources.vocabulary, plan, shards)
        if sources.earlier is not None:
            take_over(sources.earlier, workspace, progress)
        shards.run(plan.new_shards, progress)
        pipeline = shards.pipeline()
        with_text = isinstance(pipeline.engine.readout, SimilarityReadout)
        if sources.earlier is not None:
            sources.earlier.check_text(with_text)
        patches = patch_tokens(sources.bundle) if plan.config.patch_maps else None
        parts = LoadedBundle(pipeline, sources.vocabulary)
        facts = {"has_text": with_text, "patch_grid": None if patches is None else list(patches.grid)}
        result = publish_index(job.out, workspace, plan, parts, facts, progress)
    return replace(result, skipped_counts=sources.corpus.skipped_counts)


def publish_index(
    out: Path, workspace: Workspace, plan: Plan, bundle: BundleParts, facts: Mapping[str, Any], progress: Progress
) -> BuildResult:
    """Put an index together whose shards are all there, and publish it.

    Args:
        out: where.
        workspace: the shards; the caller holds it.
        plan: whose they are.
        bundle: what they were made with.
        facts: what the manifest says of the shards beside the plan.
        progress: told of every step.
    """
    draft = workspace.fresh_draft()
    with shortage_explained(f"index {out.name!r}"):
        summary = assemble(draft, plan=plan, bundle=bundle, with_text=bool(facts["has_text"]), progress=progress)
    if out.exists():
        out.rmdir()
    config = {**facts, "plan": plan.to_config(), "plan_id": plan.id}
    manifest = seal(draft, out, kind="index", inputs=plan.inputs, config=config)
    discard_workspace(out, plan)
    return BuildResult(
        manifest=manifest,
        plan_id=plan.id,
        summary=summary,
        was_finished=False,
        skipped_counts={},
        unlisted_folder_count=len(unlisted_folders(out)),
    )


def missing_shards(
    job: BuildJob, workspace: Workspace, sources: Sources, digests: RowDigests, plan: Plan
) -> MissingShards:
    """Return the shards that a held workspace lacks, and who makes them."""
    setup = WorkerSetup(
        bundle=job.bundle.absolute(),
        bundle_id=sources.bundle.id,
        device=job.device,
        config=plan.config,
        workspace=workspace,
    )
    force = Workforce(engine=job.engine, worker_count=job.worker_count, max_bad_ratio=job.max_bad_ratio)
    return MissingShards(setup, plan, sources.corpus, digests, force)


def _check_vocabulary(words: Sequence[str], plan: Plan, shards: MissingShards) -> None:
    """Refuse now what naming would refuse once all images are encoded."""
    if vocabulary_digest(words) != plan.vocabulary_digest:
        raise ArtefactMismatch(
            "the words that name neurons are not those that were planned; name that file with --vocabulary, or none "
            "where none was named"
        )
    if not words:
        return
    pipeline = shards.pipeline()
    match pipeline.engine.readout:
        case SimilarityReadout() as readout:
            readout.check_texts(words)
        case _:
            pipeline.text_vectors(words)


def plan_index(sources: Sources, digests: RowDigests, config: IndexConfig) -> Plan:
    """Decide what to do; has no effects.

    Args:
        sources: what to index, and with what.
        digests: sha256 of every row's bytes.
        config: what the caller chose; an earlier index's own stands.

    Raises:
        CorpusError: the corpus is empty.
    """
    earlier = sources.earlier
    return Plan(
        corpus_digest=sources.corpus.content_digest(digests),
        row_count=len(sources.corpus) + (0 if earlier is None else earlier.row_count),
        bundle_id=sources.bundle.id,
        code_id=sources.bundle.code_id,
        config=config if earlier is None else earlier.config,
        earlier=() if earlier is None else earlier.segments,
        made_from={} if earlier is None else {"index": earlier.manifest.id},
        vocabulary_digest=vocabulary_digest(sources.vocabulary),
    )


def find_finished(out: Path, plan: Plan, skipped_counts: Mapping[str, int]) -> BuildResult | None:
    """Return what lies at `out` where that is the index of this plan, None where nothing lies there.

    Raises:
        ArtefactError: another index lies there, or a damaged one.
        SettingError: something else lies there.
    """
    _refuse_place(out)
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
    return BuildResult(
        manifest=manifest,
        plan_id=plan.id,
        summary=read_summary(out),
        was_finished=True,
        skipped_counts=skipped_counts,
        unlisted_folder_count=len(unlisted_folders(out)),
    )


def _refuse_place(out: Path) -> None:
    """Refuse where no index can be made; says nothing of an artefact that lies there."""
    if (out / MANIFEST_NAME).exists():
        return
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise SettingError(f"{out} exists and is no index; choose another --out, or remove it first")
    find_artefact(out, kind="index")
