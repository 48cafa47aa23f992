"""Puts finished shards together into one index, step by step; knows nothing of resuming or of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import faiss
import numpy as np
from jaxtyping import Float32

from index.codes_store import CodesStore, concatenate_codes
from index.directions import write_directions
from index.exemplars import ExemplarStore, first_rows, write_exemplars
from index.image_table import ImageTable, concatenate_images
from index.neuron_rows import neuron_rows
from index.neuron_table import NeuronTable, write_neurons
from index.plan import IndexConfig
from index.postings import Postings, write_postings
from index.progress import Progress
from index.sketch import SimilarImages, sketch_recall, write_sketch
from index.summary import write_summary
from index.text_search import concatenate_embeddings, write_text_search
from index.thumbnails import concatenate_thumbnails
from phosphene.errors import InputError, ReadoutMissing
from phosphene.pipeline import Pipeline

__all__ = ["assemble"]

_TEXT_SAMPLE_COUNT = 128
_STEPS = 8


def assemble(
    folder: Path,
    shards: Sequence[Path],
    *,
    config: IndexConfig,
    pipeline: Pipeline,
    with_text: bool,
    progress: Progress,
) -> None:
    """Fill an empty folder with every file of the index but its manifest.

    Args:
        folder: the index being written.
        shards: finished shards, in order.
        config: what the plan fixes.
        pipeline: for the directions, and for text vectors where there is a text tower.
        with_text: whether the shards hold embeddings.
        progress: told of every step.
    """
    progress.begin("assemble", _STEPS, 0, "steps")
    # FAISS sums in another order with another number of threads.
    faiss.omp_set_num_threads(config.thread_count)
    concatenate_images(folder, shards)
    concatenate_thumbnails(folder, shards)
    progress.advance(1)
    concatenate_codes(folder, shards)
    images, codes = ImageTable(folder), CodesStore(folder)
    progress.advance(1)
    sae = pipeline.bundle.sae
    write_postings(folder, codes, sae.neuron_count)
    postings = Postings(folder)
    progress.advance(1)
    first = first_rows([digest or "" for digest in images.column("sha256")])
    write_exemplars(folder, postings, first, top_count=config.top_count, spread_count=config.spread_count)
    exemplars = ExemplarStore(folder, postings)
    progress.advance(1)
    write_neurons(folder, neuron_rows(postings, exemplars, images))
    progress.advance(1)
    write_directions(folder, sae.directions.detach().cpu().numpy())
    write_sketch(folder, codes, sae.neuron_count, seed=config.sketch_seed, ivf_from_images=config.ivf_from_images)
    progress.advance(1)
    if with_text:
        concatenate_embeddings(folder, shards)
        write_text_search(folder, postings, exemplars, images.readable, _text_mean(images, pipeline))
    progress.advance(1)
    similar = SimilarImages(folder, codes, sae.neuron_count, seed=config.sketch_seed)
    write_summary(folder, images, codes, NeuronTable(folder), recall=sketch_recall(similar, codes))
    progress.advance(1)


def _text_mean(images: ImageTable, pipeline: Pipeline) -> Float32[np.ndarray, " embedding"]:
    """Return the mean vector of a sample of the corpus's own words; zeros where none can be read."""
    width = pipeline.engine.encoder.spec.embedding_width
    assert width is not None
    texts = sorted({text for name in ("label", "caption") for text in images.column(name) if text})
    if not texts:
        return np.zeros(width, dtype=np.float32)
    places = np.unique(np.linspace(0, len(texts) - 1, min(len(texts), _TEXT_SAMPLE_COUNT)).astype(np.int64))
    vectors = _text_vectors([texts[place] for place in places], pipeline)
    if not vectors:
        return np.zeros(width, dtype=np.float32)
    mean: Float32[np.ndarray, " embedding"] = np.stack(vectors).astype(np.float64).mean(axis=0).astype(np.float32)
    return mean


def _text_vectors(texts: list[str], pipeline: Pipeline) -> list[Float32[np.ndarray, " embedding"]]:
    """Return the vectors of the texts that the text tower reads; none where the encoder lacks its tokenizer."""
    try:
        return list(pipeline.text_vectors(texts))
    except ReadoutMissing:
        return []
    except InputError:  # A caption may be longer than the text tower reads.
        vectors: list[Float32[np.ndarray, " embedding"]] = []
        for text in texts:
            with suppress(InputError):
                vectors += list(pipeline.text_vectors([text]))
        return vectors
