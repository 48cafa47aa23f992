"""The index job, from a corpus and a bundle to a finished index; reads downwards.

Killed at any moment and run again, it goes on with the shards that are missing and ends with the same manifest id. On a
finished index of the same plan it returns at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from index.assemble import assemble
from index.contents import digest_images
from index.image_table import read_quarantined
from index.plan import IndexConfig, Plan
from index.progress import Progress
from index.shard import run_shard
from index.workspace import Workspace, discard_workspace, open_workspace
from phosphene.bundle import Bundle, load_bundle
from phosphene.corpus import Corpus, open_corpus
from phosphene.engine_torch import TorchEngine
from phosphene.errors import ArtefactMismatch, CorpusError, SettingError
from phosphene.manifest import MANIFEST_NAME, Manifest, differences, find_artefact, seal
from phosphene.pipeline import Pipeline
from phosphene.readout import SimilarityReadout

__all__ = ["BuildJob", "BuildResult", "build_index"]

_DECODER_LIMIT = 8
_EXAMPLES_IN_ERROR = 5


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

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            SettingError: `max_bad_ratio` is out of bounds.
        """
        if not 0 <= self.max_bad_ratio <= 1:
            raise SettingError(f"max_bad_ratio is {self.max_bad_ratio:g}; the limits are 0 to 1 (--max-bad-ratio)")


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What lies at `out` now."""

    manifest: Manifest
    """The index's manifest."""
    plan_id: str
    """Digest of inputs and configuration."""
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
    with ThreadPoolExecutor(min(_DECODER_LIMIT, os.cpu_count() or 1), thread_name_prefix="decode") as decoders:
        progress.begin("digest", len(corpus), 0, "images")
        digests = digest_images(corpus, decoders, progress.advance)
        plan = plan_index(corpus, digests, bundle, job.config)
        finished = _find_finished(job.out, plan)
        if finished is not None:
            discard_workspace(job.out, plan)
            return BuildResult(manifest=finished, plan_id=plan.id, was_finished=True)
        pipeline = Pipeline(TorchEngine(bundle, device=job.device, thread_count=job.config.thread_count))
        with_text = isinstance(pipeline.engine.readout, SimilarityReadout)
        device = pipeline.engine.device.type
        with open_workspace(job.out, plan, device=device, report=progress.say) as workspace:
            finished = _find_finished(job.out, plan)
            if finished is not None:  # By another process, while this one read the corpus.
                discard_workspace(job.out, plan)
                return BuildResult(manifest=finished, plan_id=plan.id, was_finished=True)
            encode = partial(
                run_shard,
                config=plan.config,
                corpus=corpus,
                digests=digests,
                pipeline=pipeline,
                with_embeddings=with_text,
                decoders=decoders,
                advance=progress.advance,
            )
            _run_missing_shards(workspace, job, plan, encode, progress)
            draft = workspace.fresh_draft()
            shards = [workspace.shard_folder(shard) for shard in plan.shards]
            assemble(draft, shards, config=plan.config, pipeline=pipeline, with_text=with_text, progress=progress)
            if job.out.exists():
                job.out.rmdir()
            config = {"plan": plan.to_config(), "plan_id": plan.id, "has_text": with_text}
            manifest = seal(draft, job.out, kind="index", inputs=plan.inputs, config=config)
            discard_workspace(job.out, plan)
    return BuildResult(manifest=manifest, plan_id=plan.id, was_finished=False)


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


def _find_finished(out: Path, plan: Plan) -> Manifest | None:
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
    return manifest


def _run_missing_shards(
    workspace: Workspace, job: BuildJob, plan: Plan, encode: Callable[..., None], progress: Progress
) -> None:
    finished = [shard for shard in plan.shards if workspace.is_finished(shard)]
    progress.begin("encode", plan.row_count, sum(shard.stop - shard.start for shard in finished), "images")
    bad: list[tuple[str, str]] = []
    for shard in finished:
        bad += read_quarantined(workspace.shard_folder(shard))
    _check_bad(bad, plan, job)
    for shard in plan.shards:
        if shard not in finished:
            workspace.write_shard(shard, partial(encode, shard=shard))
            bad += read_quarantined(workspace.shard_folder(shard))
            _check_bad(bad, plan, job)
    if bad:
        progress.say(f"quarantined {len(bad)} of {plan.row_count} images: {_examples(bad)}")


def _check_bad(bad: list[tuple[str, str]], plan: Plan, job: BuildJob) -> None:
    if len(bad) == plan.row_count:
        raise CorpusError(f"none of the {plan.row_count} images of the corpus can be used: {_examples(bad)}")
    if len(bad) > job.max_bad_ratio * plan.row_count:
        raise CorpusError(
            f"{len(bad)} of {plan.row_count} images cannot be used, {len(bad) / plan.row_count:.1%} so far; the limit "
            f"is {job.max_bad_ratio:.1%}: mend them, or allow more with --max-bad-ratio: {_examples(bad)}"
        )


def _examples(bad: list[tuple[str, str]]) -> str:
    shown = "; ".join(f"{uri}: {reason}" for uri, reason in bad[:_EXAMPLES_IN_ERROR])
    more = len(bad) - _EXAMPLES_IN_ERROR
    return f"{shown}; and {more} more" if more > 0 else shown
