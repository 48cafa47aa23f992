"""What an open index answers about neurons; knows nothing of files."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Int64

from index.opened import OpenedIndex
from index.posting_values import histogram
from index.postings import count_below
from index.values import ALL_NEURONS, Exemplar, ExemplarKind, NeuronFilter, NeuronOrder, NeuronRow
from phosphene.errors import SettingError

__all__ = ["NeuronAnswers"]


class NeuronAnswers(OpenedIndex):
    """Answers about neurons, their exemplars and their neighbours."""

    @property
    def firing_counts(self) -> Int64[np.ndarray, " neurons"]:
        """Images on which each neuron fires."""
        return self._neurons.firing_count

    @property
    def maxima(self) -> Float64[np.ndarray, " neurons"]:
        """What each neuron's activations are divided by in the score of an expression: its largest; 0 if dead."""
        return self._expressions.maxima

    @property
    def sensitive_neuron_ids(self) -> frozenset[int]:
        """Neurons that are sensitive; answers hold them all the same: hiding them is the caller's."""
        return frozenset(() if self._flags is None else self._flags.neuron_ids)

    def neuron(self, neuron_id: int) -> NeuronRow:
        """Return a neuron's figures and names.

        Raises:
            NotFound: no such neuron.
        """
        self._check_neuron(neuron_id)
        return self._neurons.neuron(neuron_id)

    def list_neurons(self, order: NeuronOrder = NeuronOrder.NEURON_ID, filter: NeuronFilter = ALL_NEURONS) -> list[int]:
        """Return the ids of all neurons that pass the filter, in order."""
        return self._neurons.in_order(order, filter, sensitive_neuron_ids=self.sensitive_neuron_ids)

    def exemplars(self, neuron_id: int, kind: ExemplarKind, count: int) -> list[Exemplar]:
        """Return up to `count` exemplars, strongest first; each image once; none for a dead neuron.

        Raises:
            NotFound: no such neuron.
        """
        self._check_neuron(neuron_id)
        hidden_rows = self._visibility.hidden_rows
        return [
            self._hidden.without(exemplar, neuron_id, firing=int(self._neurons.firing_count[neuron_id]))
            for exemplar in self._exemplars.exemplars(neuron_id, kind, count, hidden_rows=hidden_rows)
        ]

    def images_by_neuron(self, neuron_id: int, count: int) -> list[Exemplar]:
        """Return the images that excite a neuron most: its top exemplars."""
        return self.exemplars(neuron_id, ExemplarKind.TOP, count)

    def quantile(self, neuron_id: int, value: float) -> float:
        """Return the share of the neuron's firing images with a smaller activation, in [0, 1]; exact.

        Raises:
            NotFound: no such neuron.
        """
        self._check_neuron(neuron_id)
        below, firing = count_below([(shard.postings, shard.codes) for shard in self._shards], neuron_id, value)
        return self._hidden.share_below(neuron_id, value, below=below, firing=firing)

    def activation_histogram(self, neuron_id: int, edges: Float64[np.ndarray, " edges"]) -> Int64[np.ndarray, " bins"]:
        """Count the images on which a neuron fires, by activation; see `index.posting_values.histogram`.

        Raises:
            NotFound: no such neuron.
        """
        self._check_neuron(neuron_id)
        return histogram(self._search_shards, neuron_id, edges, excluded_rows=self._visibility.hidden_rows)

    def co_active_neurons(self, neuron_id: int, count: int) -> list[tuple[int, float, int]]:
        """Return up to `count` (other neuron id, normalised PMI, images on which both fire), best first.

        Raises:
            NotFound: no such neuron.
        """
        self._check_neuron(neuron_id)
        return self._neighbours.of(neuron_id)[:count]

    def nearest_neurons(self, vector: Float32[np.ndarray, " width"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` (neuron id, cosine of its direction with the vector), best first.

        Args:
            vector: in the space of the residuals; for an image, its residual less the decoder bias.
            count: at least 1.

        Raises:
            SettingError: the vector has another width.
        """
        if len(vector) != self._directions.width:
            raise SettingError(f"the vector has {len(vector)} numbers; directions have {self._directions.width}")
        return self._directions.nearest(vector, count)

    def neurons_like(self, neuron_id: int, count: int) -> list[tuple[int, float]]:
        """Return up to `count` other neurons by the cosine of directions, best first.

        Raises:
            NotFound: no such neuron.
        """
        self._check_neuron(neuron_id)
        return self._directions.like(neuron_id, count)

    def neurons_by_text(self, text_vector: Float32[np.ndarray, " embedding"], count: int) -> list[tuple[int, float]]:
        """Return up to `count` live (neuron id, score) by a vector of the text tower, best first.

        The score is the cosine of the centred text vector with the neuron's centred exemplar embedding.

        Raises:
            Unanswerable: the index holds no embeddings.
            SettingError: the vector has another width.
        """
        return self._text_search(text_vector).neurons(text_vector, count)
