"""The work on one shard: read, decode, encode, and write what the index needs of each image and of each neuron.

Decoding runs ahead in a pool while the engine works; a corrupt photo is quarantined with its reason, and its row stays
in its batch as zero pixels, so that no other image's code can depend on it. Knows nothing of resuming.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float16

from index.ahead import blocks_ahead
from index.codes_store import CodesStore, write_codes
from index.image_table import ImageRecord, write_images
from index.image_vectors import EMBEDDINGS_FILE, RESIDUALS_FILE, stored_vectors
from index.patch_maps import PatchMapsWriter, PatchTokens, patch_tokens
from index.plan import IndexConfig, ShardRows
from index.postings import write_postings
from index.row_digests import RowDigests
from index.thumbnails import write_thumbnails
from index.tops import Tops, top_images, write_tops
from phosphene.codes import ImageCode
from phosphene.corpus import Corpus
from phosphene.durable_files import save_array
from phosphene.engine import EngineBatch, Want
from phosphene.errors import CorpusError, ImageError
from phosphene.images import PreparedImage, image_sha256
from phosphene.manifest import canonical_json
from phosphene.pipeline import Pipeline
from phosphene.readout import SimilarityReadout

__all__ = ["EncodedRows", "ShardWork", "run_shard", "shard_tops", "shard_work", "write_rows", "write_turned"]

# Some of Pillow's messages name an object by its address, which differs from run to run.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """What one shard is made from; small enough to send to another process."""

    shard: ShardRows
    """Its rows of the corpus."""
    corpus: Corpus
    """Those rows alone, counted from 0."""
    digests: RowDigests
    """sha256 of each row's bytes as the plan knows them; empty for a row that could not be read."""


def shard_work(shard: ShardRows, corpus: Corpus, digests: RowDigests, *, first_row: int = 0) -> ShardWork:
    """Cut one shard out of a corpus, whose first row is row `first_row` of the index, and its digests."""
    rows = slice(shard.start - first_row, shard.stop - first_row)
    part = replace(corpus, rows=corpus.rows[rows])
    return ShardWork(shard=shard, corpus=part, digests=digests[rows])


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
    patches = patch_tokens(pipeline.bundle) if config.patch_maps else None
    want = Want(fidelity=True, residuals=True, embeddings=with_embeddings, token_codes=patches is not None)
    records: list[ImageRecord] = []
    codes: list[ImageCode] = []
    thumbnails: list[bytes] = []
    residuals: list[Float16[np.ndarray, "images width"]] = []
    embeddings: list[Float16[np.ndarray, "images embedding"]] = []
    with ExitStack() as files:
        maps = patches and files.enter_context(PatchMapsWriter(folder, patch_count=patches.count))
        for loaded in blocks_ahead(work.shard.batches(config.batch_images), load, decoders):
            _refuse_changes(loaded, work)
            answer = pipeline.engine.run(_stack(loaded, pipeline), want)
            batch = [_code(image, answer.codes[place]) for place, image in enumerate(loaded)]
            codes += batch
            if maps and patches:
                _add_maps(maps, patches, batch, answer)
            records += [_record(image, work, answer, place) for place, image in enumerate(loaded)]
            thumbnails += [image.thumbnail for image in loaded]
            readable = np.array([image.prepared is not None for image in loaded])
            assert answer.residuals is not None, "the engine was asked for residuals"
            residuals.append(stored_vectors(answer.residuals, readable))
            if answer.embeddings is not None:
                embeddings.append(stored_vectors(answer.embeddings, readable))
            advance(len(loaded))
    found = EncodedRows(records=records, codes=codes, thumbnails=thumbnails, residuals=residuals, embeddings=embeddings)
    write_rows(folder, found, neuron_count=pipeline.bundle.sae.neuron_count)


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """All that is kept of the images of a shard, in the order of the rows."""

    records: Sequence[ImageRecord]
    """Rows of the image table."""
    codes: Sequence[ImageCode]
    """Empty for a quarantined row."""
    thumbnails: Sequence[bytes]
    """JPEG; empty for a quarantined row."""
    residuals: Sequence[Float16[np.ndarray, "_ width"]]
    """Batch by batch, as `index.image_vectors` stores them."""
    embeddings: Sequence[Float16[np.ndarray, "_ embedding"]]
    """Batch by batch; no batch at all where the encoder has no text tower."""


def write_rows(folder: Path, rows: EncodedRows, *, neuron_count: int) -> None:
    """Write every file of a shard but its record.

    Args:
        folder: an empty folder.
        rows: what was found.
        neuron_count: neurons of the sparse autoencoder.
    """
    write_images(folder, rows.records)
    write_thumbnails(folder, rows.thumbnails)
    save_array(folder / RESIDUALS_FILE, np.concatenate(rows.residuals))
    if rows.embeddings:
        save_array(folder / EMBEDDINGS_FILE, np.concatenate(rows.embeddings))
    write_codes(folder, rows.codes, neuron_count=neuron_count)
    write_turned(folder, [record.sha256 for record in rows.records], neuron_count=neuron_count)


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
        prepared, picture = pipeline.prepare_with_thumbnail(data, thumbnail_px=thumbnail_px)
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


def _add_maps(maps: PatchMapsWriter, patches: PatchTokens, codes: Sequence[ImageCode], answer: EngineBatch) -> None:
    assert answer.token_codes is not None, "the engine was asked for token codes"
    values = answer.token_codes.values[:, patches.first :].float().numpy()
    neuron_ids = answer.token_codes.neuron_ids[:, patches.first :].numpy()
    for place, code in enumerate(codes):
        maps.add(code, values[place], neuron_ids[place])


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
