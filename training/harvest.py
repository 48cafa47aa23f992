"""Corpus x encoder x site -> residuals on disk, in shards that survive a kill at any moment.

The plan fixes which images share a forward pass; an unreadable image leaves zero pixels in its batch and no residuals,
and is counted. A shard is done when its record is there and matches; running again does what is missing and ends in
the same bytes. Knows nothing of autoencoders.

    shard-00000.npy         residuals [rows, d], float32 or float16
    shard-00000.rows.npy    corpus row of each residual, int64 [rows]
    shard-00000.json        record: plan, counts, unreadable images, digests; written last
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int, UInt8

from phosphene.corpus import Corpus
from phosphene.encoder import Encoder, Site
from phosphene.errors import CorpusError, ImageError, NumericError
from phosphene.images import image_sha256, prepare
from phosphene.manifest import digest_of, find_artefact, partial_path, seal
from training.progress import Advance, Progress
from training.settings import Execution, HarvestSettings, config_of
from training.shards import is_done, read_records, remove_leftovers, shard_name, write_shard


@dataclass(frozen=True, kw_only=True, eq=False)
class HarvestPlan:
    """What is read, and in which portions."""

    corpus: Corpus
    """The images."""
    digests: Sequence[str]
    """sha256 of the bytes of each image that is used; empty for one that cannot be read."""
    encoder: Encoder
    """The frozen model."""
    site: Site
    """Where in it residuals are read."""
    settings: HarvestSettings
    """Batches, tokens and storage."""
    execution: Execution
    """Device and threads: floating-point results depend on them."""

    @property
    def image_count(self) -> int:
        """Images of the corpus that are used."""
        return len(self.digests)

    @property
    def tokens_per_image(self) -> int:
        """Residuals of each image."""
        token_count = self.encoder.site_token_count(self.site)
        limit = self.settings.tokens_per_image
        return token_count if limit is None else min(limit, token_count)

    @property
    def shard_images(self) -> int:
        """Images per shard."""
        return self.settings.shard_images(self.tokens_per_image, self.encoder.site_width(self.site))

    @property
    def config(self) -> dict[str, Any]:
        """Everything that decides the bytes, beside the corpus and the encoder's weights."""
        return {
            "encoder": self.encoder.spec.to_config(),
            "preprocessing": self.encoder.preprocessing.to_config(),
            "site": self.site.to_config(),
            "image_count": self.image_count,
            "shard_images": self.shard_images,
            "settings": config_of(self.settings),
            "execution": config_of(self.execution),
        }

    @property
    def inputs(self) -> dict[str, str]:
        """What it is made from."""
        return {"corpus": self.corpus.content_digest(self.digests), "encoder": self.encoder.spec.weights_sha256}

    @property
    def id(self) -> str:
        """Digest of the plan."""
        return digest_of({"inputs": self.inputs, "config": self.config})


def harvest(plan: HarvestPlan, folder: Path, progress: Progress) -> Path:
    """Read all residuals, or what an earlier run has left to read.

    Args:
        plan: what to read.
        folder: holds one artefact per plan.
        progress: where to report.

    Returns:
        The activations artefact.

    Raises:
        NumericError: the encoder gave NaN or infinity; names shard and row.
        CorpusError: an image changed since the plan was made.
        ArtefactDamaged: a finished harvest of this plan lies there and is not sound.
    """
    target = folder / plan.id[:16]
    if find_artefact(target, kind="activations") is not None:
        progress.event("harvest reused", images=plan.image_count, residuals_per_image=plan.tokens_per_image)
        return target
    partial = partial_path(target)
    partial.mkdir(parents=True, exist_ok=True)
    plan_id = plan.id
    shards = _plan_shards(plan)
    with progress.stage("harvest", plan.image_count, "images") as advance:
        advance(0, "")
        for name, rows in shards.items():
            if is_done(partial, name, plan_id):
                advance(rows.stop, "")
            else:
                _harvest_shard(plan, plan_id, partial, name, rows, advance)
    remove_leftovers(partial, set(shards))
    seal(partial, target, kind="activations", inputs=plan.inputs, config=plan.config)
    unreadable = quarantined_images(target)
    if unreadable:
        progress.event("images left out", unreadable=len(unreadable), first=plan.corpus.rows[unreadable[0]["row"]].uri)
    return target


def quarantined_images(path: Path) -> list[dict[str, Any]]:
    """The unreadable images of a finished harvest: corpus row and error class, in corpus order."""
    return [entry for record in read_records(path) for entry in record.quarantined]


def _plan_shards(plan: HarvestPlan) -> dict[str, range]:
    starts = range(0, plan.image_count, plan.shard_images)
    return {
        shard_name(index): range(start, min(start + plan.shard_images, plan.image_count))
        for index, start in enumerate(starts)
    }


def _harvest_shard(plan: HarvestPlan, plan_id: str, partial: Path, name: str, rows: range, advance: Advance) -> None:
    blocks: list[Float32[np.ndarray, "rows d"]] = []
    image_rows: list[Int[np.ndarray, " rows"]] = []
    contents = hashlib.sha256()
    quarantined: list[dict[str, Any]] = []
    for batch in _prepared_batches(plan, rows):
        residuals = plan.encoder.residuals(torch.from_numpy(batch.pixels), plan.site).float().cpu().numpy()
        contents.update("".join(batch.sha256).encode())
        quarantined += [{"row": row, "error": error} for row, error in batch.errors.items()]
        for row, tokens in zip(batch.rows, residuals, strict=True):
            if row not in batch.errors:
                kept = tokens[_kept_tokens(plan, row, len(tokens))]
                blocks.append(kept)
                image_rows.append(np.full(len(kept), row, dtype=np.int64))
        advance(batch.rows.stop, "")
    width = plan.encoder.site_width(plan.site)
    with np.errstate(over="ignore"):  # what does not fit into float16 is refused below, by row
        stored = np.concatenate([np.zeros((0, width), np.float32), *blocks]).astype(plan.settings.storage.value)
    origins = np.concatenate([np.zeros(0, np.int64), *image_rows])
    _refuse_non_finite(plan, name, stored, origins)
    write_shard(
        partial,
        name,
        stored,
        origins,
        plan_id=plan_id,
        contents_sha256=contents.hexdigest(),
        quarantined=quarantined,
    )


class _Batch(NamedTuple):
    rows: range
    pixels: UInt8[np.ndarray, "images 3 height width"]
    sha256: list[str]
    errors: dict[int, str]


def _prepared_batches(plan: HarvestPlan, rows: range) -> Iterator[_Batch]:
    # One batch is decoded while the encoder works on the one before it.
    size = plan.settings.batch_images
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    with ThreadPoolExecutor(max_workers=1) as decoder:
        ahead = decoder.submit(_prepare_batch, plan, batches[0])
        for following in [*batches[1:], None]:
            batch = ahead.result()
            if following is not None:
                ahead = decoder.submit(_prepare_batch, plan, following)
            yield batch


def _prepare_batch(plan: HarvestPlan, rows: range) -> _Batch:
    size = plan.encoder.preprocessing.size
    batch = _Batch(rows, np.zeros((len(rows), 3, size.height, size.width), dtype=np.uint8), [], {})
    for slot, row in enumerate(rows):
        digest = ""
        try:
            data = plan.corpus.read(row)
            digest = image_sha256(data)
            batch.pixels[slot] = prepare(data, plan.encoder.preprocessing).pixels
        except (CorpusError, ImageError) as error:
            batch.errors[row] = type(error).__name__
        if digest != plan.digests[row]:
            raise CorpusError(
                f"{plan.corpus.rows[row].uri!r} changed while the corpus was being read; run it again once nothing "
                "writes there"
            )
        batch.sha256.append(digest)
    return batch


def _kept_tokens(plan: HarvestPlan, row: int, token_count: int) -> Int[np.ndarray, " kept"]:
    if plan.tokens_per_image == token_count:
        return np.arange(token_count)
    generator = np.random.default_rng([plan.settings.seed, row])
    return np.sort(generator.choice(token_count, plan.tokens_per_image, replace=False))


def _refuse_non_finite(plan: HarvestPlan, name: str, stored: np.ndarray, origins: Int[np.ndarray, " rows"]) -> None:
    broken = np.flatnonzero(~np.isfinite(stored).all(axis=1))
    if len(broken):
        row = int(origins[broken[0]])
        raise NumericError(
            f"{name} holds NaN or infinity in {len(broken)} of {len(stored)} residuals, first at row {broken[0]} "
            f"(image {row}, {plan.corpus.rows[row].uri!r}) at {plan.site} as {plan.settings.storage.value}: "
            "use --storage float32, or another encoder or site"
        )
