"""What runs before anybody is served: it leaves no false idea of the device, and no load keeps it waiting."""

import asyncio
import time

import numpy as np
import pytest

from phosphene.engine import Want
from phosphene.v1 import explain_pb2, values_pb2
from service.assembly import _warm
from service.batching.batcher import Batcher
from service.catalogue import Catalogue
from service.claims import Claim
from service.operations import EncodeItem
from tests.fakes import FakeEngine, fake_entry, png
from tests.service.conftest import serving

SETUP_S = 1.0


class LazyEngine(FakeEngine):
    """An engine whose first batch pays for its set-up."""

    is_set_up = False

    def run(self, pixels, want):
        if not self.is_set_up:
            self.is_set_up = True
            time.sleep(SETUP_S)
        return super().run(pixels, want)


async def test_lazy_set_up_is_not_taken_for_the_time_of_a_batch():
    async with serving(engine=LazyEngine()) as running:
        assert 0 < running.batcher.latency.seconds(2.0) < SETUP_S / 2
        image = values_pb2.ImageQuery(data=png((1, 2, 3)))
        await running.stub.Explain(explain_pb2.ExplainRequest(image=image), timeout=SETUP_S)


@pytest.mark.parametrize("bulk_share", [0.0, 0.25])
async def test_callers_who_keep_the_device_busy_do_not_keep_a_reload_waiting(bulk_share):
    engine = FakeEngine()
    catalogue = Catalogue([fake_entry(engine)])
    ((bundle, _),) = catalogue.entries
    (route,) = bundle.routes
    size = bundle.preprocessing.size
    grey = np.zeros((3, size.height, size.width), np.uint8)

    async def ask_for_ever(batcher, name):
        while True:
            item = EncodeItem(pixels=grey, request=route.request(Want()))
            await batcher.run(route.operation, item, claim=Claim(caller=name))

    async with Batcher(
        batch_limit=4, queue_limit=64, clock=time.monotonic, bulk_share=bulk_share, stall_s=30.0
    ) as batcher:
        callers = [asyncio.create_task(ask_for_ever(batcher, f"caller {number}")) for number in range(24)]
        try:
            async with asyncio.timeout(30):
                await _warm(catalogue, batcher)
        finally:
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
