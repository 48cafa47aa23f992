"""Puts finished shards together into one index, step by step; knows nothing of resuming or of the corpus."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import faiss
import numpy as np
from jaxtyping import Bool, Float32, Float64

from index.co_activation import co_activation_neighbours
from index.dense_clusters import dense_neurons, left_out_of_similarity
from index.directions import write_directions
from index.exemplars import ExemplarStore, write_exemplars
from index.image_table import ImageTable, write_digests
from index.monosemanticity import CodedEmbeddings, monosemanticity
from index.neighbours import write_neighbours
from index.neuron_rows import completed_rows, neuron_rows
from index.neuron_table import NeuronTable, write_neurons
from index.plan import IndexConfig, Plan
from index.progress import Progress
from index.quarantine import QUARANTINE_FILE, write_quarantine
from index.shards import Shards, open_shards
from index.similar import SimilarImages, search_recall, search_shards
from index.sketch import write_sketch
from index.summary import Summary, write_summary
from index.text_search import Embeddings, write_text_search
from phosphene.errors import InputError, ReadoutMissing
from phosphene.pipeline import Pipeline

__all__ = ["assemble"]

_TEXT_SAMPLE_COUNT = 128
_STEPS = 7


def assemble(folder: Path, *, plan: Plan, pipeline: Pipeline, with_text: bool, progress: Progress) -> Summary:
    """Put every file but the manifest beside the finished shards.

    Args:
        folder: the index being written; its shards lie there, and nothing else.
        plan: which shards, and the configuration.
        pipeline: for the directions, and for text vectors where there is a text tower.
        with_text: whether the shards hold embeddings.
        progress: told of every step.
    """
    progress.begin("assemble", _STEPS, 0, "steps")
    config = plan.config
    # FAISS sums in another order with another number of threads.
    faiss.omp_set_num_threads(config.thread_count)
    shards = open_shards(folder, plan.shards)
    write_digests(folder, shards)
    write_quarantine(folder / QUARANTINE_FILE, [shard.folder for shard in shards])
    images = ImageTable(folder, shards)
    progress.advance(1)
    counts = (config.top_count, config.spread_count)
    write_exemplars(folder, shards, images.first_rows(), top_count=counts[0], spread_count=counts[1])
    exemplars = ExemplarStore(folder)
    progress.advance(1)
    _write_neurons(folder, shards, exemplars, images, with_text=with_text)
    neurons = NeuronTable(folder)
    progress.advance(1)
    write_directions(folder, pipeline.bundle.sae.directions.detach().cpu().numpy())
    progress.advance(1)
    if with_text:
        mean = _text_mean(images, pipeline)
        count = shards.neuron_count
        write_text_search(folder, exemplars, Embeddings(shards), images.readable, mean, neuron_count=count)
    progress.advance(1)
    mean_l0 = shards.entry_count / int(images.readable.sum())
    left_out = left_out_of_similarity(neurons.density, dense_neurons(neurons.density, mean_l0=mean_l0))
    recall = _write_similar(folder, shards, left_out, config)
    progress.advance(1)
    left_out_ids = [int(neuron_id) for neuron_id in np.flatnonzero(left_out)]
    summary = write_summary(folder, images, shards, neurons, left_out_neuron_ids=left_out_ids, similar_recall=recall)
    progress.advance(1)
    return summary


def _write_neurons(
    folder: Path, shards: Shards, exemplars: ExemplarStore, images: ImageTable, *, with_text: bool
) -> None:
    """Write the neuron table and the neighbours."""
    image_count, neuron_count = int(images.readable.sum()), shards.neuron_count
    neighbours = co_activation_neighbours(search_shards(shards), neuron_count=neuron_count, image_count=image_count)
    write_neighbours(folder, neighbours)
    rows = completed_rows(
        neuron_rows(shards, exemplars, images),
        monosemanticity=_monosemanticity(shards) if with_text else None,
        mean_l0=shards.entry_count / image_count,
        neighbours=neighbours,
    )
    write_neurons(folder, rows)


def _monosemanticity(shards: Shards) -> Float64[np.ndarray, " neurons"]:
    embeddings = Embeddings(shards)
    coded = [
        CodedEmbeddings(
            offsets=shard.codes.offsets,
            neuron_ids=shard.codes.neuron_ids,
            values=shard.codes.values,
            embeddings=part,
        )
        for shard, part in zip(shards, embeddings.parts, strict=True)
    ]
    return monosemanticity(coded, neuron_count=shards.neuron_count, width=embeddings.width)


def _write_similar(folder: Path, shards: Shards, left_out: Bool[np.ndarray, " neurons"], config: IndexConfig) -> float:
    """Write the sketch where the plan asks for one; returns the recall of the search for similar images."""
    if shards.row_count < config.sketch_from_images:
        return 1.0
    seed = config.sketch_seed
    write_sketch(folder, shards, left_out=left_out, seed=seed, ivf_from_images=config.ivf_from_images)
    ids = np.flatnonzero(left_out).tolist()
    exact = SimilarImages(folder, shards, left_out_neuron_ids=ids, sketch_seed=None, recall=1.0)
    sketch = SimilarImages(folder, shards, left_out_neuron_ids=ids, sketch_seed=seed, recall=1.0)
    return search_recall(sketch, exact, shards)


def _text_mean(images: ImageTable, pipeline: Pipeline) -> Float32[np.ndarray, " embedding"]:
    """Return the mean vector of a sample of the corpus's own words; zeros where none can be read."""
    width = pipeline.engine.encoder.spec.embedding_width
    assert width is not None
    texts = sorted({text for name in ("label", "caption") for part in images.columns(name) for text in part if text})
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
