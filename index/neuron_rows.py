"""Sums up every neuron of a finished set of postings: figures over the corpus, and first names from its words."""

from __future__ import annotations

import numpy as np

from index.exemplars import ExemplarStore
from index.image_table import ImageTable
from index.naming import NAME_EXEMPLAR_COUNT, Term, name_neuron, term_shares, terms_of
from index.postings import Postings
from index.statistics import activation_statistics, label_entropy
from index.values import ExemplarKind, NeuronRow

__all__ = ["neuron_rows"]

_SHARE_SAMPLE_IMAGES = 200_000


def neuron_rows(postings: Postings, exemplars: ExemplarStore, images: ImageTable) -> list[NeuronRow]:
    """Return one row per neuron, ascending."""
    captions, labels = images.column("caption"), images.column("label")
    numbers = {label: number for number, label in enumerate(sorted({label for label in labels if label}))}
    label_numbers = np.array([numbers[label] if label else -1 for label in labels], dtype=np.int64)
    shares = term_shares(terms_of(labels[row], captions[row]) for row in _sample(images))
    readable_count = int(images.readable.sum())
    rows: list[NeuronRow] = []
    for neuron_id in range(postings.neuron_count):
        firing, values = postings.rows(neuron_id), postings.values(neuron_id)
        figures = activation_statistics(values)
        top = exemplars.exemplars(neuron_id, ExemplarKind.TOP, NAME_EXEMPLAR_COUNT)
        terms: list[frozenset[Term]] = [terms_of(labels[exemplar.row], captions[exemplar.row]) for exemplar in top]
        rows.append(
            NeuronRow(
                neuron_id=neuron_id,
                firing_count=len(firing),
                density=len(firing) / readable_count,
                mean=figures.mean,
                std=figures.std,
                maximum=figures.maximum,
                quantiles=figures.quantiles,
                label_entropy=label_entropy(values, label_numbers[firing]),
                names=name_neuron(terms, [exemplar.value for exemplar in top], shares),
            )
        )
    return rows


def _sample(images: ImageTable) -> list[int]:
    readable = np.flatnonzero(images.readable)
    places = np.unique(np.linspace(0, len(readable) - 1, min(len(readable), _SHARE_SAMPLE_IMAGES)).astype(np.int64))
    return [int(row) for row in readable[places]]
