"""Puts finished shards together into one index, step by step; knows nothing of resuming or of the corpus."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
from jaxtyping import Bool, Float64

from index.bundle_parts import BundleParts
from index.co_activation import co_activation_neighbours
from index.dense_clusters import dense_neurons, left_out_of_similarity
from index.effort import Approximation
from index.exemplars import ExemplarStore, write_exemplars
from index.image_table import ImageTable, write_digests
from index.image_vectors import EMBEDDINGS_FILE, RESIDUALS_FILE, ImageVectors
from index.monosemanticity import CodedEmbeddings, monosemanticity
from index.neighbours import write_neighbours
from index.neuron_rows import completed_rows, neuron_rows
from index.neuron_table import NeuronTable, write_neurons
from index.plan import IndexConfig, Plan
from index.progress import Progress
from index.quarantine import QUARANTINE_FILE, write_quarantine
from index.shards import Shards, open_shards
from index.similar import measure_sketch, search_shards
from index.sketch import write_sketch
from index.summary import Summary, write_summary
from index.text_naming import prepared_vocabulary, with_text_names
from index.text_search import mean_embedding, write_text_search
from index.values import NeuronRow
from index.vector_index import plan_layout
from index.vector_search import EMBEDDINGS_INDEX, RESIDUALS_INDEX, write_vector_search
from index.vocabulary import write_vocabulary

__all__ = ["assemble"]

_STEPS = 7


def assemble(folder: Path, *, plan: Plan, bundle: BundleParts, with_text: bool, progress: Progress) -> Summary:
    """Put every file but the manifest beside the finished shards.

    Args:
        folder: the index being written; its shards lie there, and nothing else.
        plan: which shards, and the configuration.
        bundle: for the directions, and for text vectors and words where there is a text tower.
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
    embeddings = ImageVectors(shards, EMBEDDINGS_FILE) if with_text else None
    image_mean = None if embeddings is None else mean_embedding(embeddings, images.readable)
    rows = _neuron_rows(folder, shards, exemplars, images, file=EMBEDDINGS_FILE if with_text else RESIDUALS_FILE)
    if embeddings is not None and image_mean is not None:
        rows = _named(folder, rows, bundle, exemplars, images, embeddings, image_mean)
    write_neurons(folder, rows)
    neurons = NeuronTable(folder)
    progress.advance(1)
    bundle.write_directions(folder)
    progress.advance(1)
    if embeddings is not None and image_mean is not None:
        text_mean = bundle.text_mean(images)
        write_text_search(folder, exemplars, embeddings, image_mean, text_mean, neuron_count=shards.neuron_count)
    progress.advance(1)
    mean_l0 = shards.entry_count / int(images.readable.sum())
    left_out = left_out_of_similarity(neurons.density, dense_neurons(neurons.density, mean_l0=mean_l0))
    approximations = _write_searches(folder, shards, images, left_out, config, with_text=with_text)
    progress.advance(1)
    summary = write_summary(
        folder,
        images,
        shards,
        neurons,
        left_out_neuron_ids=[int(neuron_id) for neuron_id in np.flatnonzero(left_out)],
        approximations=approximations,
    )
    progress.advance(1)
    return summary


def _neuron_rows(
    folder: Path, shards: Shards, exemplars: ExemplarStore, images: ImageTable, *, file: str
) -> list[NeuronRow]:
    """Write the neighbours, and return every neuron's figures and names from the corpus's words.

    Args:
        folder: the index being written.
        shards: its shards.
        exemplars: which images represent each neuron.
        images: rows of the corpus.
        file: the vectors that say how alike a neuron's images are.
    """
    image_count, neuron_count = int(images.readable.sum()), shards.neuron_count
    neighbours = co_activation_neighbours(search_shards(shards), neuron_count=neuron_count, image_count=image_count)
    write_neighbours(folder, neighbours)
    return completed_rows(
        neuron_rows(shards, exemplars, images),
        monosemanticity=_monosemanticity(shards, file),
        mean_l0=shards.entry_count / image_count,
        neighbours=neighbours,
    )


def _named(
    folder: Path,
    rows: list[NeuronRow],
    bundle: BundleParts,
    exemplars: ExemplarStore,
    images: ImageTable,
    embeddings: ImageVectors,
    image_mean: Float64[np.ndarray, " embedding"],
) -> list[NeuronRow]:
    """Write down the words that may name neurons by the text tower, and add the names; as they are without words."""
    found = bundle.vocabulary()
    if found is None:
        return rows
    words, vectors = found
    write_vocabulary(folder, words, vectors)
    vocabulary = prepared_vocabulary(words, vectors, embeddings, images.readable, image_mean)
    return with_text_names(rows, vocabulary, exemplars, embeddings, image_mean)


def _monosemanticity(shards: Shards, file: str) -> Float64[np.ndarray, " neurons"]:
    embeddings = ImageVectors(shards, file)
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


def _write_searches(
    folder: Path,
    shards: Shards,
    images: ImageTable,
    left_out: Bool[np.ndarray, " neurons"],
    config: IndexConfig,
    *,
    with_text: bool,
) -> dict[str, Approximation]:
    """Write the FAISS indexes over images; returns how well those find the nearest that are approximate."""
    layout = plan_layout(shards.row_count, ivf_from_images=config.ivf_from_images, quantiser=config.quantiser)
    found: dict[str, Approximation | None] = {}
    if shards.row_count >= config.sketch_from_images:
        write_sketch(folder, shards, left_out=left_out, seed=config.sketch_seed, layout=layout)
        found["code"] = measure_sketch(folder, shards, left_out=left_out, seed=config.sketch_seed)
    residuals = ImageVectors(shards, RESIDUALS_FILE)
    found["residual"] = write_vector_search(folder / RESIDUALS_INDEX, residuals, images.readable, layout)
    if with_text:
        embeddings = ImageVectors(shards, EMBEDDINGS_FILE)
        found["text"] = write_vector_search(folder / EMBEDDINGS_INDEX, embeddings, images.readable, layout)
    return {name: each for name, each in found.items() if each is not None}
