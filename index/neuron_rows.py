"""Sums up every neuron over all shards: figures over the corpus, and first names from its words.

rows = neuron_rows(shards, exemplars, images)
scores = monosemanticity(coded_embeddings, neuron_count=..., width=...)
neighbours = co_activation_neighbours(search_shards, neuron_count=..., image_count=...)
write_neighbours(folder, neighbours)
rows = completed_rows(rows, monosemanticity=scores, mean_l0=..., neighbours=neighbours)
write_neurons(folder, rows)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, Int64

from index.activation_counts import neuron_blocks
from index.co_activation import CoActivation
from index.dense_clusters import dense_cluster, dense_neurons
from index.exemplars import ExemplarStore
from index.image_table import ImageTable
from index.label_masses import label_masses, merge_masses
from index.naming import NAME_EXEMPLAR_COUNT, Term, name_neuron, term_shares, terms_of
from index.shard_counts import BLOCK_NEURONS, count_shards, merge_few
from index.shards import Shards
from index.values import ExemplarKind, NeuronRow

__all__ = ["completed_rows", "neuron_rows"]

_SHARE_SAMPLE_IMAGES = 200_000


def neuron_rows(shards: Shards, exemplars: ExemplarStore, images: ImageTable) -> list[NeuronRow]:
    """Return one row per neuron, ascending; memory is that of a block of neurons."""
    labels = _label_numbers(images)
    shares = term_shares(_sample(images))
    readable_count = int(images.readable.sum())
    rows: list[NeuronRow] = []
    for neurons in neuron_blocks(shards.neuron_count, BLOCK_NEURONS):
        counts = count_shards(shards, neurons)
        codes = (shard.codes for shard in shards)
        masses = (
            label_masses(part.offsets, part.neuron_ids, part.values, numbers, neurons=neurons)
            for part, numbers in zip(codes, labels, strict=True)
        )
        entropies = merge_few(masses, merge_masses).entropies()
        for neuron_id, firing_count, entropy in zip(neurons, counts.firing_counts, entropies, strict=True):
            figures = counts.statistics(neuron_id)
            top = exemplars.exemplars(neuron_id, ExemplarKind.TOP, NAME_EXEMPLAR_COUNT)
            shown = [images.image(exemplar.row) for exemplar in top]
            terms = [terms_of(image.label, image.caption) for image in shown]
            rows.append(
                NeuronRow(
                    neuron_id=neuron_id,
                    firing_count=int(firing_count),
                    density=int(firing_count) / readable_count,
                    mean=figures.mean,
                    std=figures.std,
                    maximum=figures.maximum,
                    quantiles=figures.quantiles,
                    label_entropy=None if np.isnan(entropy) else float(entropy),
                    names=name_neuron(terms, [exemplar.value for exemplar in top], shares),
                )
            )
    return rows


def completed_rows(
    rows: Sequence[NeuronRow],
    *,
    monosemanticity: Float64[np.ndarray, " neurons"],
    mean_l0: float,
    neighbours: CoActivation,
) -> list[NeuronRow]:
    """Return the rows of all neurons with the figures that need other neurons, or the images' vectors.

    Args:
        rows: one per neuron, ascending.
        monosemanticity: see `index.monosemanticity`; NaN where a neuron has none.
        mean_l0: neurons that fire on a readable image, on average.
        neighbours: co-activation neighbours of every neuron.
    """
    dense = dense_neurons(np.array([row.density for row in rows]), mean_l0=mean_l0)
    cluster = dense_cluster(dense, neighbours.ids, neighbours.npmi)
    return [
        replace(
            row,
            monosemanticity=None if np.isnan(score) else float(score),
            is_dense=bool(is_dense),
            in_dense_cluster=bool(in_cluster),
        )
        for row, score, is_dense, in_cluster in zip(rows, monosemanticity, dense, cluster, strict=True)
    ]


def _label_numbers(images: ImageTable) -> list[Int64[np.ndarray, " rows"]]:
    """Return the number of every row's label, shard by shard; -1 where it has none."""
    known = sorted({label for part in images.columns("label") for label in part if label})
    numbers = {label: number for number, label in enumerate(known)}
    return [
        np.array([numbers[label] if label else -1 for label in part], dtype=np.int64)
        for part in images.columns("label")
    ]


def _sample(images: ImageTable) -> Iterator[frozenset[Term]]:
    readable = np.flatnonzero(images.readable)
    places = np.unique(np.linspace(0, len(readable) - 1, min(len(readable), _SHARE_SAMPLE_IMAGES)).astype(np.int64))
    wanted = np.zeros(images.row_count, dtype=bool)
    wanted[readable[places]] = True
    start = 0
    for labels, captions in zip(images.columns("label"), images.columns("caption"), strict=True):
        for place in np.flatnonzero(wanted[start : start + len(labels)]):
            yield terms_of(labels[place], captions[place])
        start += len(labels)
