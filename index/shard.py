"""The work on one shard: read, decode, encode, and write what the index needs of each image and of each neuron.

Decoding runs ahead in a pool while the engine works; a corrupt photo is quarantined with its reason, and its row stays
in its batch as zero pixels, so that no other image's code can depend on it. Knows nothing of resuming.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float16

from index.ahead import blocks_ahead
from index.codes_store import CodesStore, write_codes
from index.image_table import ImageRecord, write_images
from index.plan import IndexConfig, ShardRows
from index.postings import write_postings
from index.text_search import EMBEDDINGS_FILE
from index.thumbnails import write_thumbnails
from index.tops import Tops, top_images, write_tops
from phosphene.codes import ImageCode
from phosphene.corpus import Corpus
from phosphene.engine import EngineBatch, Want
from phosphene.errors import CorpusError, ImageError
from phosphene.images import PreparedImage, image_sha256, thumbnail
from phosphene.manifest import canonical_json
from phosphene.pipeline import Pipeline
from phosphene.readout import SimilarityReadout

__all__ = ["ShardWork", "run_shard", "shard_tops", "shard_work", "write_turned"]

# Some of Pillow's messages name an object by its address, which differs from run to run.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """What one shard is made from; small enough to send to another process."""

    shard: ShardRows
    """Its rows of the corpus."""
    corpus: Corpus
    """Those rows alone, counted from 0."""
    digests: Sequence[str]
    """sha256 of each row's bytes as the plan knows them; empty for a row that could not be read."""


def shard_work(shard: ShardRows, corpus: Corpus, digests: Sequence[str]) -> ShardWork:
    """Cut one shard out of a corpus and its digests."""
    rows = range(shard.start, shard.stop)
    part = replace(
        corpus,
        rows=corpus.rows[shard.start : shard.stop],
        spans={row - shard.start: corpus.spans[row] for row in rows if row in corpus.spans},
    )
    return ShardWork(shard=shard, corpus=part, digests=digests[shard.start : shard.stop])


@dataclass(frozen=True, kw_only=True)
class _LoadedImage:
    """One row after decoding."""

    row: int
    sha256: str
    byte_count: int
    prepared: PreparedImage | None
    thumbnail: bytes
    quarantine_reason: str | None


def run_shard(
    folder: Path,
    *,
    work: ShardWork,
    config: IndexConfig,
    pipeline: Pipeline,
    decoders: Executor,
    advance: Callable[[int], None],
) -> None:
    """Encode the images of a shard and write all that the index keeps of them.

    Args:
        folder: an empty folder; the caller makes it durable.
        work: which rows, and where they come from.
        config: batch size and thumbnail size.
        pipeline: the bundle, ready to run.
        decoders: the pool that reads and decodes ahead.
        advance: told the number of images finished, after every batch.

    Raises:
        NumericError: the encoder or the sparse autoencoder gave NaN or infinity.
        CorpusError: an image changed since the plan was made.
    """

    def load(row: int) -> _LoadedImage:
        return _load(row, work, pipeline=pipeline, thumbnail_px=config.thumbnail_px)

    with_embeddings = isinstance(pipeline.engine.readout, SimilarityReadout)
    want = Want(fidelity=True, embeddings=with_embeddings)
    records: list[ImageRecord] = []
    codes: list[ImageCode] = []
    thumbnails: list[bytes] = []
    embeddings: list[Float16[np.ndarray, "images embedding"]] = []
    for loaded in blocks_ahead(work.shard.batches(config.batch_images), load, decoders):
        _refuse_changes(loaded, work)
        answer = pipeline.engine.run(_stack(loaded, pipeline), want)
        codes += [_code(image, answer.codes[place]) for place, image in enumerate(loaded)]
        records += [_record(image, work, answer, place) for place, image in enumerate(loaded)]
        thumbnails += [image.thumbnail for image in loaded]
        if answer.embeddings is not None:
            embeddings.append(_embeddings(loaded, answer.embeddings))
        advance(len(loaded))
    write_images(folder, records)
    write_thumbnails(folder, thumbnails)
    if with_embeddings:
        np.save(folder / EMBEDDINGS_FILE, np.concatenate(embeddings))
    neuron_count = pipeline.bundle.sae.neuron_count
    write_codes(folder, codes, neuron_count=neuron_count)
    write_turned(folder, [record.sha256 for record in records], neuron_count=neuron_count)


def write_turned(folder: Path, digests: Sequence[str], *, neuron_count: int) -> None:
    """Write what follows from the codes of a shard: postings, norms and tops.

    Args:
        folder: the shard being written; its codes lie there.
        digests: sha256 of every row's bytes; among rows with the same bytes only the first is a top image.
        neuron_count: neurons of the sparse autoencoder.
    """
    codes = CodesStore(folder)
    write_postings(folder, codes, neuron_count)
    write_tops(folder, shard_tops(codes, digests, neuron_count=neuron_count))


def shard_tops(codes: CodesStore, digests: Sequence[str], *, neuron_count: int) -> Tops:
    """Return every neuron's strongest images of a shard, each image once. Arguments as `write_turned`."""
    first: dict[str, int] = {}
    shown = np.array([not digest or first.setdefault(digest, row) == row for row, digest in enumerate(digests)])
    lengths = np.diff(codes.offsets)
    kept = np.repeat(shown, lengths)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(np.where(shown, lengths, 0), out=offsets[1:])
    return top_images(offsets, codes.neuron_ids[kept], codes.values[kept], neuron_count=neuron_count)


def _load(row: int, work: ShardWork, *, pipeline: Pipeline, thumbnail_px: int) -> _LoadedImage:
    sha256, byte_count = "", 0
    try:
        data = work.corpus.read(row - work.shard.start)
        sha256, byte_count = image_sha256(data), len(data)
        prepared = pipeline.prepare(data)
        picture = thumbnail(data, size_px=thumbnail_px)
    except (ImageError, CorpusError) as error:
        return _LoadedImage(
            row=row,
            sha256=sha256,
            byte_count=byte_count,
            prepared=None,
            thumbnail=b"",
            quarantine_reason=_ADDRESS.sub("", str(error)),
        )
    return _LoadedImage(
        row=row, sha256=sha256, byte_count=byte_count, prepared=prepared, thumbnail=picture, quarantine_reason=None
    )


def _refuse_changes(loaded: list[_LoadedImage], work: ShardWork) -> None:
    changed = [
        work.corpus.rows[image.row - work.shard.start].uri
        for image in loaded
        if image.sha256 != work.digests[image.row - work.shard.start]
    ]
    if changed:
        raise CorpusError(
            f"{len(changed)} images changed while the corpus was being indexed: {', '.join(changed[:5])}; run it again "
            "once nothing writes there"
        )


def _stack(loaded: list[_LoadedImage], pipeline: Pipeline) -> np.ndarray:
    size = pipeline.bundle.preprocessing.size
    pixels = np.zeros((len(loaded), 3, size.height, size.width), dtype=np.uint8)
    for place, image in enumerate(loaded):
        if image.prepared is not None:
            pixels[place] = image.prepared.pixels
    return pixels


def _code(image: _LoadedImage, code: ImageCode) -> ImageCode:
    if image.prepared is not None:
        return code
    return ImageCode(neuron_ids=np.zeros(0, dtype=np.int32), values=np.zeros(0, dtype=np.float32))


def _record(image: _LoadedImage, work: ShardWork, answer: EngineBatch, place: int) -> ImageRecord:
    row = work.corpus.rows[image.row - work.shard.start]
    assert answer.fidelity is not None
    return ImageRecord(
        row=image.row,
        uri=row.uri,
        sha256=image.sha256,
        byte_count=image.byte_count,
        width=image.prepared.width if image.prepared else 0,
        height=image.prepared.height if image.prepared else 0,
        label=row.label,
        caption=row.caption,
        extra=canonical_json(dict(row.extra)).decode() if row.extra else None,
        fvu=answer.fidelity[place].fvu if image.prepared else None,
        quarantine_reason=image.quarantine_reason,
    )


def _embeddings(loaded: list[_LoadedImage], embeddings: np.ndarray) -> Float16[np.ndarray, "images embedding"]:
    readable = np.array([image.prepared is not None for image in loaded])
    return np.where(readable[:, None], embeddings, 0.0).astype(np.float16)
