"""What the steps of an answer tell of the model and of the device that it runs on."""

import asyncio
import threading
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import numpy as np
import pytest

from phosphene.v1 import explain_pb2, neurons_pb2, streams_pb2, values_pb2
from service.catalogue import Catalogue
from tests.fakes import CORPUS, FakeEngine, FakeReader, fake_entry, png
from tests.service.conftest import serving, settings_with
from tests.service.scraping import metric, until


def explain(colour):
    return explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(data=png(colour)))


async def ended(call):
    """The status that a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


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


async def test_an_interactive_request_does_not_wait_for_the_same_image_of_a_bulk_request():
    async with serving(settings=settings_with(cache={"limit_bytes": 2**20})) as running:
        running.engine.gate.clear()
        held = running.stub.Explain(explain((200, 0, 0)))
        await asyncio.to_thread(running.engine.entered.acquire)
        asked = streams_pb2.ExplainImagesRequest(item=1, explain=explain((0, 200, 0)))
        stream = running.stub.ExplainImages(iter([asked]))
        await until(running, 'phosphene_queue_depth_items{lane="bulk"}', 1)
        interactive = running.stub.Explain(explain((0, 200, 0)))
        await until(running, 'phosphene_queue_depth_items{lane="interactive"}', 1)
        running.engine.gate.set()
        answer = await interactive
        assert (await stream.read()).explanation.neurons == answer.neurons
        assert (await held).neurons


async def test_requests_that_wait_for_the_same_image_are_bounded_and_reach_the_device_once():
    settings = settings_with(cache={"limit_bytes": 2**20}, queue={"images": 8})
    async with serving(settings=settings) as running:
        running.engine.gate.clear()
        calls = [asyncio.ensure_future(ended(running.stub.Explain(explain((200, 0, 0))))) for _ in range(50)]
        async with asyncio.timeout(30):
            while sum(call.done() for call in calls) < 44:
                await asyncio.sleep(0.005)
        assert running.replica.status().image_count == 6
        running.engine.gate.set()
        codes = await asyncio.gather(*calls)
        assert codes.count(grpc.StatusCode.OK) == 6
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 44
        assert running.engine.batch_sizes == [1]
        assert running.replica.status().image_count == 0


class HeldReader(FakeReader):
    """An index whose look-ups by digest wait for a gate."""

    def __init__(self):
        self.gate = threading.Event()
        super().__init__(CORPUS)

    def row_of(self, sha256):
        assert self.gate.wait(30)
        return super().row_of(sha256)


async def test_a_full_pool_of_lookups_refuses_before_the_device_has_worked():
    engine, reader = FakeEngine(), HeldReader()
    entries = [fake_entry(engine, reader=reader)]
    async with serving(entries, engine=engine, settings=settings_with(queue={"images": 2})) as running:
        try:
            calls = [asyncio.ensure_future(ended(running.stub.Explain(explain((9, 200, blue))))) for blue in (0, 99)]
            async with asyncio.timeout(30):
                while sum(engine.batch_sizes) < 2 or running.replica.status().image_count:
                    await asyncio.sleep(0.005)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.stub.Explain(explain((0, 0, 200)))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert sum(engine.batch_sizes) == 2
            assert "2 look-ups wait for a worker or will" in caught.value.details()
        finally:
            reader.gate.set()
        assert await asyncio.gather(*calls) == [grpc.StatusCode.OK] * 2
        assert (await running.stub.Explain(explain((0, 0, 200)))).neurons


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
