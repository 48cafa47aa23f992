"""Several bundles on one encoder: one forward pass for a batch in which every image has its own request.

Residuals are captured at each block where a bundle listens, and an image leaves the pass at the last block that it
needs. On CUDA nothing waits for the device until the rows are collected, so that a second batch can be launched behind
a running one. What a row holds is what `TorchEngine.run` gives for its image alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from phosphene.bundle import Bundle
from phosphene.device_errors import device_errors
from phosphene.encoder import EncoderOutput, Tokens
from phosphene.engine import EngineName, EngineRequest, EngineRow, Want
from phosphene.engine_device import DeviceTimer, bucket_size, take_rows, upload, used_memory_bytes
from phosphene.engine_rows import read_out
from phosphene.engine_torch import TorchEngine
from phosphene.errors import ArtefactMismatch

__all__ = ["SharedEngine", "group_bundles", "open_shared_engine"]


def group_bundles(bundles: Sequence[Bundle]) -> list[tuple[int, ...]]:
    """Say which bundles can share one forward pass: equal encoder and preprocessing.

    Args:
        bundles: any bundles.

    Returns:
        Positions in `bundles`, each in one group, in order.
    """
    groups: dict[tuple[str, object], list[int]] = {}
    for position, bundle in enumerate(bundles):
        groups.setdefault((bundle.encoder_spec.weights_sha256, bundle.preprocessing), []).append(position)
    return [tuple(group) for group in groups.values()]


def open_shared_engine(
    bundles: Sequence[Bundle],
    *,
    device: str = "cpu",
    thread_count: int | None = None,
    on_stage: Callable[[str, float], None] | None = None,
) -> SharedEngine:
    """Load the encoder of the first bundle and let all of them run on it.

    Args:
        bundles: at least one; all of one group of `group_bundles`.
        device: a torch device.
        thread_count: CPU threads of this process; None keeps torch's own.
        on_stage: as for `SharedEngine`.

    Raises:
        SettingError, EncoderError, ArtefactMismatch: as `TorchEngine` and `SharedEngine`.
    """
    first = TorchEngine(bundles[0], device=device, thread_count=thread_count)
    others = [TorchEngine(bundle, device=device, encoder=first.encoder) for bundle in bundles[1:]]
    return SharedEngine([first, *others], on_stage=on_stage)


class SharedEngine:
    """An `Engine` over several bundles on one encoder and device."""

    def __init__(
        self,
        engines: Sequence[TorchEngine],
        *,
        on_stage: Callable[[str, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join engines that hold the same encoder.

        Args:
            engines: one per bundle, at least one; `EngineRequest.bundle` counts in their order.
            on_stage: told `encode` and `sae` with the seconds that each took, once per batch that is collected.
            clock: monotonic seconds.

        Raises:
            ArtefactMismatch: the engines hold different encoders, or want different pixels.
        """
        first = engines[0]
        for engine in engines:
            if engine.encoder is not first.encoder or engine.bundle.preprocessing != first.bundle.preprocessing:
                raise ArtefactMismatch(
                    f"bundle {engine.bundle.path.name!r} has another encoder or preprocessing than bundle "
                    f"{first.bundle.path.name!r}; give each encoder an engine of its own"
                )
        self.engines = tuple(engines)
        self.device = first.device
        self._encoder = first.encoder
        self._last_block = first.encoder.spec.block_count - 1
        self._on_stage = on_stage
        self._timer = DeviceTimer(self.device, clock)

    @property
    def name(self) -> EngineName:
        """What computes the codes."""
        return EngineName.TORCH

    @property
    def device_memory_bytes(self) -> int:
        """Memory of the device that is in use."""
        return used_memory_bytes(self.device)

    def can(self, want: Want) -> bool:
        """Everything; whether a bundle has a readout is the bundle's matter."""
        return True

    def cost(self, request: EngineRequest) -> float:
        """Price one image: the blocks that run for it."""
        return self._stop(request) + 1.0

    def run_rows(
        self, pixels: UInt8[np.ndarray, "images 3 height width"], requests: Sequence[EngineRequest]
    ) -> list[EngineRow]:
        """Run a batch and wait for it; see `Engine.run_rows`."""
        return self.launch(pixels, requests)()

    def launch(
        self, pixels: UInt8[np.ndarray, "images 3 height width"], requests: Sequence[EngineRequest]
    ) -> Callable[[], list[EngineRow]]:
        """Start a batch; see `Engine.launch`."""
        order = sorted(range(len(requests)), key=lambda row: self._place(requests[row]))
        with device_errors(self.device), torch.inference_mode():
            start = self._timer.mark()
            passed = self._forward(upload(pixels, order, self.device), [requests[row] for row in order])
            encoded = self._timer.mark()
            shares = [
                (taken.positions, read_out(self.engines[bundle], taken.wants, taken.residuals, taken.output))
                for bundle, taken in passed.items()
                if taken.residuals is not None
            ]
            coded = self._timer.mark()

        def collect() -> list[EngineRow]:
            with device_errors(self.device), torch.inference_mode():
                self._timer.wait(coded)
                answers = {
                    order[position]: row
                    for positions, share in shares
                    for position, row in zip(positions, share.rows(), strict=True)
                }
            if self._on_stage is not None:
                self._on_stage("encode", self._timer.seconds(start, encoded))
                self._on_stage("sae", self._timer.seconds(encoded, coded))
            return [answers[row] for row in range(len(order))]

        return collect

    def _stop(self, request: EngineRequest) -> int:
        """Give the last block that an image needs."""
        block = self.engines[request.bundle].bundle.site.block
        return self._last_block if block is None or request.want.runs_to_end else block

    def _place(self, request: EngineRequest) -> tuple[int, int, bool, bool, bool]:
        """Sort images so that those who leave first stand last and equal wants together: then rows are slices."""
        want = request.want
        return (-self._stop(request), request.bundle, not want.scores, not want.embeddings, not want.fidelity)

    def _forward(
        self, pixels: UInt8[Tensor, "rows 3 height width"], requests: Sequence[EngineRequest]
    ) -> dict[int, _Taken]:
        """Run the encoder once for images in the order of `_place`, and keep what each bundle needs of it."""
        stops = [self._stop(request) for request in requests]
        passed: dict[int, _Taken] = {}
        for position, request in enumerate(requests):
            taken = passed.setdefault(request.bundle, _Taken(engine=self.engines[request.bundle]))
            taken.positions.append(position)
            taken.wants.append(request.want)
        blocks = sorted({*stops, *(taken.block for taken in passed.values() if taken.block is not None)})
        hidden = self._encoder.hidden(pixels, blocks[0])
        for before, block in zip([blocks[0], *blocks], blocks, strict=False):
            hidden = self._encoder.advance(hidden, after=before, to=block)
            for taken in passed.values():
                if taken.block == block:
                    rows = take_rows(hidden, taken.positions)
                    taken.residuals = self._encoder.select(rows, taken.engine.bundle.site.tokens)
            staying = sum(stop > block for stop in stops)
            if staying:
                hidden = hidden[: bucket_size(staying, self.device)]
        for taken in passed.values():
            self._finish(hidden, taken)
        return passed

    def _finish(self, hidden: Float[Tensor, "rows tokens width"], taken: _Taken) -> None:
        """Run what follows the last block for those of a bundle's images that want it; they are its first."""
        is_embedding = taken.engine.bundle.site.tokens is Tokens.EMBEDDING
        whole_count = len(taken.positions) if is_embedding else sum(want.runs_to_end for want in taken.wants)
        if whole_count:
            rows = take_rows(hidden, taken.positions[:whole_count])
            taken.output = self._encoder.resume(rows, self._last_block)
        if is_embedding and taken.output is not None and taken.output.embedding is not None:
            taken.residuals = taken.output.embedding[:, None]


@dataclass(kw_only=True, eq=False)
class _Taken:
    """What one bundle takes from a pass."""

    engine: TorchEngine
    positions: list[int] = field(default_factory=list)
    """Places of its images in the sorted batch, ascending."""
    wants: list[Want] = field(default_factory=list)
    """What each of them wants."""
    residuals: Float[Tensor, "images tokens width"] | None = None
    output: EncoderOutput | None = None
    """Of its first images."""

    @property
    def block(self) -> int | None:
        return self.engine.bundle.site.block
