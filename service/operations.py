"""What the engine's threads run: batches of pixels and batches of texts; nothing here knows of queues or requests.

An item says what it wants and of which of the engine's bundles, and receives that and nothing else, so that an answer
never depends on who else was in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from phosphene.engine import Engine, EngineRequest, EngineRow, Want
from service.batching.batcher import Operation, operation

__all__ = ["EncodeItem", "EncodeRoute", "encode_operation", "text_operation"]


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodeItem:
    """One prepared image and what is wanted of it."""

    pixels: UInt8[np.ndarray, "3 height width"]
    """As the bundle's preprocessing makes them."""
    request: EngineRequest
    """What to compute, for which bundle of the engine."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodeRoute:
    """One way to a bundle's codes."""

    operation: Operation[EncodeItem, EngineRow]
    """Encodes images; shared by the bundles of one encoder."""
    engine: Engine
    """What it runs on."""
    position: int
    """Which of the engine's bundles this is."""

    def request(self, want: Want) -> EngineRequest:
        """What to ask the engine for."""
        return EngineRequest(bundle=self.position, want=want)

    def cost(self, want: Want) -> float:
        """What that costs, in block-passes."""
        return self.engine.cost(self.request(want))


def encode_operation(engine: Engine, *, bundle_count: int = 1) -> Operation[EncodeItem, EngineRow]:
    """The operation that encodes images with an engine.

    Args:
        engine: what runs.
        bundle_count: bundles of the engine.
    """

    def launch(items: Sequence[EncodeItem]) -> Callable[[], list[EngineRow]]:
        return engine.launch(np.stack([item.pixels for item in items]), [item.request for item in items])

    return Operation(
        "encode",
        launch,
        cost=lambda item: engine.cost(item.request),
        place_cost=max(engine.cost(EngineRequest(bundle=position)) for position in range(bundle_count)),
    )


def text_operation(
    text_vectors: Callable[[Sequence[str]], Float32[np.ndarray, "texts embedding"]],
) -> Operation[str, Float32[np.ndarray, " embedding"]]:
    """The operation that turns texts into unit vectors with one bundle's text tower.

    Args:
        text_vectors: gives one row for each text.
    """
    return operation("text", lambda texts: list(text_vectors(list(texts))))
