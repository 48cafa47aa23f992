"""The work on one shard: read, decode, encode, and write what the index needs of each image.

Decoding runs ahead in a pool while the engine works; a corrupt photo is quarantined with its reason, and its row stays
in its batch as zero pixels, so that no other image's code can depend on it. Knows nothing of resuming.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16

from index.ahead import blocks_ahead
from index.codes_store import write_codes
from index.image_table import ImageRecord, write_images
from index.plan import IndexConfig, ShardRows
from index.text_search import EMBEDDINGS_FILE
from index.thumbnails import write_thumbnails
from phosphene.codes import ImageCode
from phosphene.corpus import Corpus
from phosphene.engine import EngineBatch, Want
from phosphene.errors import CorpusError, ImageError
from phosphene.images import PreparedImage, image_sha256, thumbnail
from phosphene.pipeline import Pipeline

__all__ = ["run_shard"]

# Some of Pillow's messages name an object by its address, which differs from run to run.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


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
    shard: ShardRows,
    config: IndexConfig,
    corpus: Corpus,
    digests: Sequence[str],
    pipeline: Pipeline,
    with_embeddings: bool,
    decoders: Executor,
    advance: Callable[[int], None],
) -> None:
    """Encode the images of a shard and write their rows, codes, thumbnails and embeddings.

    Args:
        folder: an empty folder; the caller makes it durable.
        shard: which rows.
        config: batch size and thumbnail size.
        corpus: where the images come from.
        digests: sha256 of every row's bytes as the plan knows them; empty for a row that could not be read.
        pipeline: the bundle, ready to run.
        with_embeddings: whether to keep projected embeddings, float16.
        decoders: the pool that reads and decodes ahead.
        advance: told the number of images finished, after every batch.

    Raises:
        NumericError: the encoder or the sparse autoencoder gave NaN or infinity.
        CorpusError: an image changed since the plan was made.
    """

    def load(row: int) -> _LoadedImage:
        return _load(row, corpus=corpus, pipeline=pipeline, thumbnail_px=config.thumbnail_px)

    want = Want(fidelity=True, embeddings=with_embeddings)
    records: list[ImageRecord] = []
    codes: list[ImageCode] = []
    thumbnails: list[bytes] = []
    embeddings: list[Float16[np.ndarray, "images embedding"]] = []
    for loaded in blocks_ahead(shard.batches(config.batch_images), load, decoders):
        _refuse_changes(loaded, digests, corpus)
        answer = pipeline.engine.run(_stack(loaded, pipeline), want)
        codes += [_code(image, answer.codes[place]) for place, image in enumerate(loaded)]
        records += [_record(image, corpus, answer, place) for place, image in enumerate(loaded)]
        thumbnails += [image.thumbnail for image in loaded]
        if answer.embeddings is not None:
            embeddings.append(_embeddings(loaded, answer.embeddings))
        advance(len(loaded))
    write_images(folder, records)
    write_codes(folder, codes)
    write_thumbnails(folder, thumbnails)
    if with_embeddings:
        np.save(folder / EMBEDDINGS_FILE, np.concatenate(embeddings))


def _load(row: int, *, corpus: Corpus, pipeline: Pipeline, thumbnail_px: int) -> _LoadedImage:
    sha256, byte_count = "", 0
    try:
        data = corpus.read(row)
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


def _refuse_changes(loaded: list[_LoadedImage], digests: Sequence[str], corpus: Corpus) -> None:
    changed = [corpus.rows[image.row].uri for image in loaded if image.sha256 != digests[image.row]]
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


def _record(image: _LoadedImage, corpus: Corpus, answer: EngineBatch, place: int) -> ImageRecord:
    row = corpus.rows[image.row]
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
        fvu=answer.fidelity[place].fvu if image.prepared else None,
        quarantine_reason=image.quarantine_reason,
    )


def _embeddings(loaded: list[_LoadedImage], embeddings: np.ndarray) -> Float16[np.ndarray, "images embedding"]:
    readable = np.array([image.prepared is not None for image in loaded])
    return np.where(readable[:, None], embeddings, 0.0).astype(np.float16)
