"""What is asked of the index whose codes Qdrant holds: an interface that `IndexReader` and the tests' fake satisfy."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Int64

from index.values import ImageRow
from phosphene.codes import ImageCode

__all__ = ["CodeSource"]


@runtime_checkable
class CodeSource(Protocol):
    """Codes and what is known of them; see `index.reader` for the meaning of each."""

    @property
    def id(self) -> str:
        """Digest of the contents."""

    @property
    def code_id(self) -> str:
        """What decides the codes."""

    @property
    def row_count(self) -> int:
        """Rows, quarantined ones included."""

    @property
    def image_count(self) -> int:
        """Rows that are not quarantined."""

    @property
    def neuron_count(self) -> int:
        """Neurons of the SAE."""

    @property
    def left_out_neuron_ids(self) -> tuple[int, ...]:
        """Neurons that do not count in similarity."""

    @property
    def maxima(self) -> Float64[np.ndarray, " neurons"]:
        """What each neuron's activations are divided by in the score of an expression."""

    @property
    def hidden_rows(self) -> Int64[np.ndarray, " hidden"]:
        """Rows that no answer holds although their images could be used, rising."""

    def code(self, row: int) -> ImageCode:
        """A row's stored code."""

    def image(self, row: int) -> ImageRow:
        """A row of the corpus."""
