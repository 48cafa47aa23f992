"""What the engine thread runs: batches of pixels and batches of texts; nothing here knows of queues or requests.

A batch computes what any of its items wants; each item then receives what it asked for and nothing else, so that an
answer never depends on who else was in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from phosphene.codes import ImageCode
from phosphene.engine import EngineBatch, Want
from phosphene.fidelity import Fidelity
from service.batcher import Lane

__all__ = ["EncodeItem", "EngineRow", "encode_lane", "text_lane"]


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodeItem:
    """One prepared image and what is wanted of it."""

    pixels: UInt8[np.ndarray, "3 height width"]
    """As the bundle's preprocessing makes them."""
    want: Want
    """What to compute beside the image code."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineRow:
    """The engine's answer for one image; what was not wanted is None."""

    code: ImageCode
    """The image code."""
    token_values: Float32[np.ndarray, "tokens slots"] | None = None
    """Activations of every token's code, descending; 0 where unused."""
    token_neuron_ids: Int64[np.ndarray, "tokens slots"] | None = None
    """Their neurons; 0 where unused."""
    fidelity: Fidelity | None = None
    """How well the code accounts for the residuals."""
    residual: Float32[np.ndarray, " width"] | None = None
    """The site's residual, averaged over its tokens."""
    scores: Float32[np.ndarray, " names"] | None = None
    """What the readout says."""


def encode_lane(
    run: Callable[[UInt8[np.ndarray, "images 3 height width"], Want], EngineBatch],
) -> Lane[EncodeItem, EngineRow]:
    """The lane that encodes images with one bundle.

    Args:
        run: `TorchEngine.run`.
    """

    def run_items(items: Sequence[EncodeItem]) -> list[EngineRow]:
        batch = run(np.stack([item.pixels for item in items]), _union([item.want for item in items]))
        return [_row(batch, position, item.want) for position, item in enumerate(items)]

    return Lane("encode", run_items)


def text_lane(
    text_vectors: Callable[[Sequence[str]], Float32[np.ndarray, "texts embedding"]],
) -> Lane[str, Float32[np.ndarray, " embedding"]]:
    """The lane that turns texts into unit vectors with one bundle's text tower.

    Args:
        text_vectors: `Pipeline.text_vectors`.
    """

    def run_items(items: Sequence[str]) -> list[Float32[np.ndarray, " embedding"]]:
        return list(text_vectors(list(items)))

    return Lane("text", run_items)


def _union(wants: Sequence[Want]) -> Want:
    return Want(
        token_codes=any(want.token_codes for want in wants),
        fidelity=any(want.fidelity for want in wants),
        residuals=any(want.residuals for want in wants),
        scores=any(want.scores for want in wants),
    )


def _row(batch: EngineBatch, position: int, want: Want) -> EngineRow:
    tokens = batch.token_codes if want.token_codes else None
    return EngineRow(
        code=batch.codes[position],
        token_values=None if tokens is None else tokens.values[position].numpy(),
        token_neuron_ids=None if tokens is None else tokens.neuron_ids[position].numpy(),
        fidelity=batch.fidelity[position] if want.fidelity and batch.fidelity is not None else None,
        residual=batch.residuals[position] if want.residuals and batch.residuals is not None else None,
        scores=batch.scores[position] if want.scores and batch.scores is not None else None,
    )
