"""What the steps of an answer tell of the model and of the device that it runs on."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import numpy as np
import pytest

from phosphene.v1 import explain_pb2, neurons_pb2, values_pb2
from service.catalogue import Catalogue
from tests.fakes import FakeEngine, fake_entry, png
from tests.service.conftest import serving, settings_with
from tests.service.scraping import metric, until


def explain(colour):
    return explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(data=png(colour)))


async def test_each_image_without_a_finite_code_is_counted_once_and_harms_no_other():
    async with serving() as running:
        running.engine.is_nan = lambda pixels: bool(np.all(pixels[2] == 77))
        running.engine.gate.clear()
        calls = [running.stub.Explain(explain(colour)) for colour in ((200, 0, 0), (9, 9, 77), (8, 8, 77), (0, 200, 0))]
        running.engine.gate.set()
        for call in (calls[0], calls[3]):
            assert (await call).neurons
        for call in calls[1:3]:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert await metric(running, 'phosphene_model_nonfinite_images_total{bundle="colours"}') == 2
        assert await metric(running, 'phosphene_model_window_images{bundle="colours"}') == 2


async def test_another_failure_says_nothing_of_the_model():
    async with serving() as running:
        running.engine.is_poison = lambda pixels: True
        with pytest.raises(grpc.aio.AioRpcError):
            await running.stub.Explain(explain((200, 0, 0)))
        assert await metric(running, 'phosphene_model_nonfinite_images_total{bundle="colours"}') == 0


async def test_a_text_takes_a_place_in_hand_as_an_image_does():
    """Texts that nobody counts would fill the engine's queue, and images be refused after their decode."""
    async with serving(settings=settings_with(queue={"images": 2})) as running:
        running.engine.gate.clear()
        held = running.stub.Explain(explain((200, 0, 0)))
        await asyncio.to_thread(running.engine.entered.acquire)
        search = neurons_pb2.SearchNeuronsRequest(text="red")
        waiting = running.stub.SearchNeurons(search)
        await until(running, 'phosphene_queue_depth_items{lane="interactive"}', 1)
        assert running.replica.status().image_count == 2
        for call in (running.stub.Explain(explain((0, 200, 0))), running.stub.SearchNeurons(search)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        running.engine.gate.set()
        assert (await held).neurons
        assert (await waiting).neurons
        assert running.replica.status().image_count == 0


async def test_device_memory_is_asked_of_the_engine_that_answers():
    former, latter = FakeEngine(), FakeEngine()
    former.device_memory_bytes, latter.device_memory_bytes = 4096, 8192
    openings = iter([fake_entry(former), fake_entry(latter, name="colours-again")])

    def make_opener(settings, on_stage):
        @asynccontextmanager
        async def open_next(before):
            yield Catalogue([next(openings)])

        return open_next

    async with serving(engine=former, make_opener=make_opener) as running:
        assert await metric(running, "phosphene_device_memory_bytes") == 4096
        former.device_memory_bytes = 2048
        assert await metric(running, "phosphene_device_memory_bytes") == 2048
        assert await running.replica.reload()
        assert await metric(running, "phosphene_device_memory_bytes") == 8192
