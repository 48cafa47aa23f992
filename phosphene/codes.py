"""The sparse code: which neurons fire, and how strongly, for one token or one image.

A code is sparse from birth: pairs of value and neuron id, never a vector over all neurons. Knows nothing of
encoders, autoencoders or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int32
from torch import Tensor

__all__ = ["CodeLimits", "ImageCode", "TokenCodes", "image_codes"]


@dataclass(frozen=True, kw_only=True)
class CodeLimits:
    """How many neurons a code may hold; part of a bundle's `code_id`."""

    image_code_limit: int = 64
    """Neurons kept for one image: the largest ones."""
    token_code_limit: int = 64
    """Neurons kept for one token under JumpReLU; TopK keeps its own k."""


class TokenCodes(NamedTuple):
    """Codes of a block of tokens, padded to one width.

    A slot is in use where its value is greater than 0; an unused slot has value 0 and neuron id 0. Along the last axis
    values descend and ties go by ascending neuron id.
    """

    values: Float[Tensor, "*tokens width"]
    """Activations, in the unit of the residual once multiplied by the neuron's direction."""
    neuron_ids: Int[Tensor, "*tokens width"]
    """Which neuron each value belongs to (int64)."""
    cut_counts: Int[Tensor, "*tokens"]
    """Active neurons of each token that `token_code_limit` cut off."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageCode:
    """The code of one image: strongest neuron first, ties by ascending neuron id."""

    neuron_ids: Int32[np.ndarray, " active"]
    """Neurons that fire; each at most once."""
    values: Float32[np.ndarray, " active"]
    """Their activations, all greater than 0."""
    cut_count: int = 0
    """Activations cut off by the limits, on tokens and on the image together."""

    def __len__(self) -> int:
        """Return the number of neurons that fire (L0)."""
        return len(self.neuron_ids)


def image_codes(token_codes: TokenCodes, *, limit: int) -> list[ImageCode]:
    """Pool token codes into image codes: the maximum over tokens per neuron, cut to the largest.

    Args:
        token_codes: codes of shape [images, tokens, width].
        limit: `image_code_limit`, the neurons kept per image.

    Returns:
        One code per image, in order.
    """
    values = token_codes.values.detach().cpu().numpy().astype(np.float32, copy=False)
    neuron_ids = token_codes.neuron_ids.detach().cpu().numpy().astype(np.int32, copy=False)
    cut_counts = token_codes.cut_counts.detach().cpu().numpy()
    return [
        _pool(values[image].ravel(), neuron_ids[image].ravel(), int(cut_counts[image].sum()), limit)
        for image in range(len(values))
    ]


def _pool(
    values: Float32[np.ndarray, " slots"], neuron_ids: Int32[np.ndarray, " slots"], cut_count: int, limit: int
) -> ImageCode:
    active = values > 0
    values, neuron_ids = values[active], neuron_ids[active]
    by_neuron = np.lexsort((-values, neuron_ids))
    values, neuron_ids = values[by_neuron], neuron_ids[by_neuron]
    largest = np.ones(len(neuron_ids), dtype=bool)
    largest[1:] = neuron_ids[1:] != neuron_ids[:-1]
    values, neuron_ids = values[largest], neuron_ids[largest]
    by_value = np.lexsort((neuron_ids, -values))
    kept = by_value[:limit]
    return ImageCode(neuron_ids=neuron_ids[kept], values=values[kept], cut_count=cut_count + len(by_value) - len(kept))
