"""`python -m service` with the stand-in device in place of a model.

    python -m benchmarks.service_load.our_server DEVICE_FILE

The only file of the benchmark that knows the inside of the service: what an engine is, and what an opener returns.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
from jaxtyping import UInt8

from benchmarks.service_load.device import NEURON_COUNT, StandInDevice, fingerprint
from benchmarks.service_load.photos import PREPROCESSING
from phosphene.codes import CodeLimits, ImageCode
from phosphene.encoder import EncoderSpec, Family, Site, Tokens
from phosphene.engine import EngineName, EngineRequest, EngineRow, Want
from phosphene.selection import TopK
from service.__main__ import main
from service.assembly import OnStage
from service.catalogue import Catalogue
from service.generation import ModelFacts, ServedBundle
from service.generations import Opener
from service.observing.model_health import ModelHealth
from service.operations import EncodeRoute, encode_operation
from service.settings import Settings

_WIDTH, _SITE_BLOCK, _CODE_NEURONS = 768, 10, 10


class StandInEngine:
    """An engine whose every batch waits for the device; the ten neurons of an image's fingerprint light up."""

    name = EngineName.TORCH
    device_memory_bytes = 0

    def __init__(self, device: StandInDevice) -> None:
        """Run on the device."""
        self._device = device
        self._activations = np.arange(_CODE_NEURONS, 0, -1, dtype=np.float32)

    def can(self, want: Want) -> bool:
        """Codes and nothing else."""
        return want == Want()

    def cost(self, request: EngineRequest) -> float:
        """As a model that is run up to its eleventh block."""
        return _SITE_BLOCK + 1

    def launch(
        self, pixels: UInt8[np.ndarray, "images 3 height width"], requests: Sequence[EngineRequest]
    ) -> Callable[[], list[EngineRow]]:
        """Put a batch into the device's queue; the returned function sleeps until it is done."""
        done_at_s = self._device.submit(len(pixels))

        def collect() -> list[EngineRow]:
            self._device.wait(done_at_s)
            return [self._row(image) for image in pixels]

        return collect

    def run_rows(
        self, pixels: UInt8[np.ndarray, "images 3 height width"], requests: Sequence[EngineRequest]
    ) -> list[EngineRow]:
        """Run a batch and wait for it."""
        return self.launch(pixels, requests)()

    def _row(self, image: UInt8[np.ndarray, "3 height width"]) -> EngineRow:
        neuron_ids = np.array(fingerprint(image), np.int32)
        return EngineRow(code=ImageCode(neuron_ids=neuron_ids, values=self._activations))


def served_bundle(engine: StandInEngine) -> ServedBundle:
    """A bundle that looks like one on a ViT-B/16."""
    facts = ModelFacts(
        bundle_id="b" * 64,
        code_id="c" * 64,
        encoder=EncoderSpec(
            family=Family.VIT,
            model="stand-in",
            revision=None,
            width=_WIDTH,
            block_count=12,
            prefix_token_count=1,
            has_cls=True,
            grid=(14, 14),
            embedding_width=None,
            weights_sha256="e" * 64,
        ),
        site=Site(block=_SITE_BLOCK, tokens=Tokens.CLS),
        neuron_count=NEURON_COUNT,
        selection=TopK(_CODE_NEURONS),
        limits=CodeLimits(),
        readout="none",
        device="cpu",
        precision="float32",
        engine=engine.name,
    )
    return ServedBundle(
        name="stand-in",
        facts=facts,
        preprocessing=PREPROCESSING,
        decoder_bias=np.zeros(_WIDTH, np.float32),
        score_names=(),
        routes=(EncodeRoute(operation=encode_operation(engine), engine=engine, position=0),),
        text=None,
        no_text_reason="the stand-in has no text tower",
        health=ModelHealth(reference=None),
    )


def make_opener(settings: Settings, on_stage: OnStage) -> Opener:
    """Make what opens the device that the command line names."""

    @asynccontextmanager
    async def open_stand_in(before: Catalogue | None) -> AsyncIterator[Catalogue]:
        with StandInDevice(sys.argv[1]) as device:
            yield Catalogue([(served_bundle(StandInEngine(device)), ())])

    return open_stand_in


if __name__ == "__main__":
    raise SystemExit(main(make_opener))
