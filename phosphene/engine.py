"""What an engine is: pixels in, codes out, and what else was asked for.

The values that engines take and give, and the interface that all of them have. `engine_torch.py` runs one bundle,
`engine_shared.py` several on one encoder, `engine_onnx.py` an exported graph. Knows nothing of image formats, files of
an index, or gRPC. float32 means float32: TF32 is off on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from phosphene.codes import ImageCode, TokenCodes
from phosphene.errors import SettingError
from phosphene.fidelity import Fidelity

__all__ = ["Engine", "EngineBatch", "EngineName", "EngineRequest", "EngineRow", "Want", "open_device"]


class EngineName(StrEnum):
    """What computed a code; part of its provenance."""

    TORCH = "torch"
    ONNXRUNTIME = "onnxruntime"
    """An exported graph in float32: its codes are those of torch."""
    ONNXRUNTIME_INT8 = "onnxruntime-int8"
    """An exported graph with 8-bit weights: its codes are near those of torch, and never to be taken for them."""


@dataclass(frozen=True, kw_only=True)
class Want:
    """What a caller wants beside the image codes; it pays only for that."""

    token_codes: bool = False
    """The codes of every token of the site."""
    fidelity: bool = False
    """How well the codes account for the residuals."""
    residuals: bool = False
    """One residual per image: the site's only token, or the mean over its tokens."""
    embeddings: bool = False
    """The projected embedding, at unit norm. Runs the encoder to its end."""
    scores: bool = False
    """The readout's scores. Runs the encoder to its end."""

    def __or__(self, other: Want) -> Want:
        """All that either wants."""
        return Want(
            token_codes=self.token_codes or other.token_codes,
            fidelity=self.fidelity or other.fidelity,
            residuals=self.residuals or other.residuals,
            embeddings=self.embeddings or other.embeddings,
            scores=self.scores or other.scores,
        )

    @property
    def runs_to_end(self) -> bool:
        """Whether the encoder must be run behind the site."""
        return self.embeddings or self.scores


@dataclass(frozen=True, kw_only=True)
class EngineBatch:
    """The answer for a batch of which every image wants the same; every field has one entry per image, in order."""

    codes: list[ImageCode]
    """Image codes."""
    token_codes: TokenCodes | None = None
    """Token codes [images, tokens, width], on the CPU."""
    fidelity: list[Fidelity] | None = None
    """Fidelity records."""
    residuals: Float32[np.ndarray, "images width"] | None = None
    """Residuals, over tokens as `Want.residuals` says."""
    embeddings: Float32[np.ndarray, "images embedding"] | None = None
    """Projected embeddings at unit norm."""
    scores: Float32[np.ndarray, "images names"] | None = None
    """Readout scores; the names are `TorchEngine.score_names`."""


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What is wanted of one image."""

    bundle: int = 0
    """Which of the engine's bundles, in its order."""
    want: Want = Want()
    """What to compute beside the image code."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EngineRow:
    """The answer for one image; what was not wanted is None."""

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
    embedding: Float32[np.ndarray, " embedding"] | None = None
    """The projected embedding at unit norm."""

    @property
    def want(self) -> Want:
        """What is here beside the code."""
        return Want(
            token_codes=self.token_values is not None,
            fidelity=self.fidelity is not None,
            residuals=self.residual is not None,
            embeddings=self.embedding is not None,
            scores=self.scores is not None,
        )

    def holds(self, want: Want) -> bool:
        """Whether everything that is wanted is here."""
        return self.want | want == self.want


@runtime_checkable
class Engine(Protocol):
    """Runs batches in which each image has its own request; not thread-safe: one thread drives it."""

    @property
    def name(self) -> EngineName:
        """What computes the codes."""
        ...

    @property
    def device_memory_bytes(self) -> int:
        """Memory of its device that is in use now, whoever uses it; 0 on the CPU. Any thread may ask; never raises."""
        ...

    def can(self, want: Want) -> bool:
        """Whether this engine can give all that is wanted."""
        ...

    def cost(self, request: EngineRequest) -> float:
        """Price one image in block-passes: one transformer block for one image is 1."""
        ...

    def run_rows(
        self, pixels: UInt8[np.ndarray, "images 3 height width"], requests: Sequence[EngineRequest]
    ) -> list[EngineRow]:
        """Run a batch; no image's answer depends on another's.

        Args:
            pixels: uint8 [images, 3, height, width], as the bundles' preprocessing makes them.
            requests: one per image.

        Returns:
            One row per image, in order.

        Raises:
            NumericError: the encoder gave NaN or infinity.
            ReadoutMissing: scores or embeddings asked of an encoder that has none.
            Unanswerable: the engine cannot give what is wanted; see `can`.
            DeviceOutOfMemory: the batch does not fit; a smaller one may.
            DeviceFailed: the device is lost to this process.
        """
        ...

    def launch(
        self, pixels: UInt8[np.ndarray, "images 3 height width"], requests: Sequence[EngineRequest]
    ) -> Callable[[], list[EngineRow]]:
        """Start a batch as `run_rows` does; the returned function waits for it and gives the rows.

        On the CPU the work is done when this returns. On CUDA it is under way, and another batch may be launched behind
        it before the first one is collected; batches are collected in the order of their launch.
        """
        ...


def open_device(name: str) -> torch.device:
    """Find a device, and turn TF32 off on it.

    Args:
        name: `cpu`, `cuda` or `cuda:N`.

    Raises:
        SettingError: no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as cause:
        raise SettingError(f"device {name!r} is not one; use cpu, cuda or cuda:N", field="device") from cause
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"device {name!r} is not supported; use cpu, cuda or cuda:N", field="device")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise SettingError(
                f"device {name!r} is not here: {torch.cuda.device_count()} CUDA devices are visible; use cpu",
                field="device",
            )
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return device
