"""ExplainImages over a real channel: statuses per item, uploads in chunks, the bulk lane, and what ends a stream."""

import asyncio
from dataclasses import replace

import grpc
import grpc.aio
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2

from phosphene.v1 import explain_pb2, streams_pb2, values_pb2
from service.claims import Lane
from service.servicers import _expected_bytes
from service.wire.requests import explain_query
from tests.fakes import CORPUS, FakeEngine, FakeReader, fake_entry, png
from tests.service.conftest import alive, logged, serving, settings_with
from tests.service.scraping import metric, until


def asking(item, data=None, **fields):
    image = values_pb2.ImageQuery(data=data) if data is not None else None
    return streams_pb2.ExplainImagesRequest(item=item, explain=explain_pb2.ExplainRequest(image=image, **fields))


def uploading(item, data, chunk_bytes):
    announced = explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(upload=values_pb2.Upload(size_bytes=len(data))))
    yield streams_pb2.ExplainImagesRequest(item=item, explain=announced)
    for start in range(0, len(data), chunk_bytes):
        yield streams_pb2.ExplainImagesRequest(item=item, chunk=data[start : start + chunk_bytes])


async def outcomes(running, messages, **options):
    return {reply.item: reply async for reply in running.stub.ExplainImages(iter(messages), **options)}


async def test_every_item_has_its_own_answer_or_its_own_status(running):
    found = await outcomes(
        running,
        [
            asking(1, CORPUS["red-1"]),
            asking(2, b"no image"),
            asking(3, CORPUS["blue-1"]),
            asking(4, CORPUS["red-1"], bundle="nope"),
            asking(5, CORPUS["red-1"], top_n=0),
            streams_pb2.ExplainImagesRequest(item=6),
            asking(7),
        ],
    )
    assert found[1].explanation.neurons[0].neuron.neuron_id == 0
    assert found[3].explanation.neurons[0].neuron.neuron_id == 2
    assert {item: reply.status.code for item, reply in found.items() if reply.HasField("status")} == {
        2: code_pb2.INVALID_ARGUMENT,
        4: code_pb2.NOT_FOUND,
        5: code_pb2.INVALID_ARGUMENT,
        6: code_pb2.INVALID_ARGUMENT,
        7: code_pb2.INVALID_ARGUMENT,
    }
    assert await metric(running, 'phosphene_stream_items_total{outcome="ok"}') == 2
    assert await metric(running, 'phosphene_stream_items_total{outcome="refused"}') == 5
    violations = error_details_pb2.BadRequest()
    found[5].status.details[0].Unpack(violations)
    assert violations.field_violations[0].field == "explain.top_n"


async def test_an_image_in_chunks_is_the_same_image(running):
    data = png((7, 200, 30), width=300, height=300)
    found = await outcomes(running, [*uploading(1, data, 100), asking(2, data)])
    assert found[1].explanation == found[2].explanation
    assert found[1].explanation.image.sha256 == found[2].explanation.image.sha256


async def test_an_upload_outside_a_stream_is_refused_with_the_remedy(running):
    request = explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(upload=values_pb2.Upload(size_bytes=5)))
    with pytest.raises(grpc.aio.AioRpcError, match="send the bytes as image.data"):
        await running.stub.Explain(request)


async def test_an_upload_beyond_the_limit_fails_alone():
    async with serving(settings=settings_with(image={"limit_bytes": 2048})) as running:
        announced = asking(1)
        announced.explain.image.upload.size_bytes = 2049
        found = await outcomes(running, [announced, asking(2, CORPUS["red-1"])])
        assert found[1].status.code == code_pb2.INVALID_ARGUMENT
        assert "1 to 2048" in found[1].status.message
        assert found[2].explanation.neurons


async def test_an_image_beyond_the_limit_fails_alone_with_all_its_chunks_sent():
    async with serving(settings=settings_with(image={"limit_bytes": 2048})) as running:
        large = uploading(1, CORPUS["red-1"] + bytes(9000), 1000)
        found = await outcomes(running, [*large, asking(2, CORPUS["red-1"])])
        assert found[1].status.code == code_pb2.INVALID_ARGUMENT
        assert "1 to 2048" in found[1].status.message
        assert found[2].explanation.neurons


async def test_a_lone_image_in_chunks_may_be_larger_than_the_queue_as_it_may_in_one_piece():
    async with serving(settings=settings_with(queue={"image_bytes": 2**20})) as running:
        data = CORPUS["red-1"] + bytes(3 * 2**20)
        found = await outcomes(running, uploading(1, data, 2**18))
        assert found[1].explanation.neurons


async def test_an_answer_that_no_message_holds_fails_alone():
    class Wordy(FakeReader):
        def image(self, row):
            return replace(super().image(row), caption="long " * 2**19)

    engine = FakeEngine()
    shown = {"parts": [explain_pb2.EXPLAIN_PART_TOP_IMAGES, explain_pb2.EXPLAIN_PART_SIMILAR_IMAGES]}
    async with serving([fake_entry(engine, reader=Wordy(CORPUS))], engine=engine) as running:
        asked = [asking(1, CORPUS["blue-1"]), asking(2, CORPUS["red-1"], **shown), asking(3, CORPUS["red-1"])]
        found = await outcomes(running, asked)
        assert found[2].status.code == code_pb2.RESOURCE_EXHAUSTED
        assert "the limit is 17 MiB: ask for fewer images" in found[2].status.message
        assert not found[2].status.details
        assert found[1].explanation.neurons
        assert found[3].explanation.neurons
        with pytest.raises(grpc.aio.AioRpcError, match="the limit is 17 MiB: ask for fewer images") as caught:
            await running.stub.Explain(asked[1].explain)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await metric(running, 'phosphene_requests_total{code="RESOURCE_EXHAUSTED",method="Explain"}') == 1
        assert await metric(running, 'phosphene_requests_total{code="OK",method="ExplainImages"}') == 1


async def test_a_small_limit_on_uploads_is_none_on_answers():
    class Wordy(FakeReader):
        def image(self, row):
            return replace(super().image(row), caption="long " * 30_000)

    engine = FakeEngine()
    async with serving(
        [fake_entry(engine, reader=Wordy(CORPUS))], engine=engine, settings=settings_with(image={"limit_bytes": 1024})
    ) as running:
        asked = asking(1, CORPUS["red-1"], parts=[explain_pb2.EXPLAIN_PART_TOP_IMAGES])
        (found,) = (await outcomes(running, [asked])).values()
        assert found.explanation.ByteSize() > 2**20 + 1024


async def test_a_caller_that_breaks_the_order_is_told_and_the_stream_ends(running):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await outcomes(running, [streams_pb2.ExplainImagesRequest(item=1, chunk=b"a")])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "announce it" in caught.value.details()


async def test_an_upload_that_stands_still_fails_alone():
    async with serving(settings=settings_with(queue={"upload_idle_s": 0.1})) as running:
        call = running.stub.ExplainImages()
        announced, first, *_ = uploading(1, CORPUS["red-1"], 10)
        await call.write(announced)
        await call.write(first)
        dropped = await call.read()
        assert (dropped.item, dropped.status.code) == (1, code_pb2.DEADLINE_EXCEEDED)
        assert "PHOSPHENE_UPLOAD_IDLE_S" in dropped.status.message
        await call.write(asking(2, CORPUS["red-1"]))
        await call.done_writing()
        assert (await call.read()).explanation.neurons
        assert await call.read() is grpc.aio.EOF
        assert await metric(running, 'phosphene_stream_items_total{outcome="expired"}') == 1


async def test_a_stream_waits_in_the_bulk_lane():
    async with serving(settings=settings_with(engine={"batch_images": 2})) as running:
        running.engine.gate.clear()
        first = running.stub.Explain(asking(0, png((1, 0, 0))).explain)
        await asyncio.to_thread(running.engine.entered.acquire)
        stream = running.stub.ExplainImages(iter([asking(item, png((0, item, 90))) for item in range(1, 9)]))
        await until(running, 'phosphene_queue_depth_items{lane="bulk"}', 8)
        single = running.stub.Explain(asking(0, png((200, 0, 0))).explain)
        await until(running, 'phosphene_queue_depth_items{lane="interactive"}', 1)
        assert running.batcher.backlog_s(Lane.INTERACTIVE) < running.batcher.backlog_s(Lane.BULK)
        running.engine.gate.set()
        assert (await single).neurons[0].neuron.neuron_id == 0
        assert sorted([reply.item async for reply in stream]) == list(range(1, 9))
        await first


async def test_the_log_explains_the_defect_of_an_item_under_the_id_that_its_caller_has(running):
    running.engine.is_poison = lambda pixels: bool(np.all(pixels[2] == 77))
    asked = [asking(5, png((9, 9, 77))), asking(6, CORPUS["red-1"])]
    with logged() as lines:
        found = await outcomes(running, asked, metadata=[("x-request-id", "my-id-2")])
    assert found[6].explanation.neurons
    assert found[5].status.code == code_pb2.INTERNAL
    assert "my-id-2" in found[5].status.message
    assert "secret" not in str(found[5])
    (defect,) = [line for line in lines() if line["event"] == "defect"]
    assert (defect["request_id"], defect["item"]) == ("my-id-2", 5)
    assert "secret path" in defect["traceback"]


async def test_one_stream_never_asks_for_more_than_there_is_room_for():
    async with serving(settings=settings_with(queue={"images": 4, "decode_worker_count": 1})) as running:
        found = await outcomes(running, [asking(item, png((item, 0, 90))) for item in range(1, 40)])
    assert len(found) == 39
    assert all(reply.HasField("explanation") for reply in found.values())


async def test_a_stream_counts_as_one_request_and_leaves_nothing_behind(running):
    call = running.stub.ExplainImages(iter([asking(item, png((item, 0, 0))) for item in range(1, 30)]))
    assert (await call.read()).item
    call.cancel()
    # The next answer comes only once the batcher and the pool are free of what the stream had asked.
    assert (await running.stub.Explain(asking(0, CORPUS["red-2"]).explain)).neurons
    assert running.replica.status().image_count == 0


async def test_a_replica_that_leaves_waits_for_no_stream_that_has_nothing_to_answer():
    async with serving(settings=settings_with(network={"drain_s": 600.0})) as running:
        call = running.stub.ExplainImages()
        await call.write(asking(1, CORPUS["red-1"]))
        assert (await call.read()).explanation.neurons
        async with asyncio.timeout(60):
            await running.server.__aexit__(None, None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_a_replica_that_leaves_answers_what_its_streams_have_asked():
    async with serving(settings=settings_with(network={"drain_s": 600.0})) as running:
        running.engine.gate.clear()
        call = running.stub.ExplainImages()
        await call.write(asking(1, CORPUS["red-1"]))
        await asyncio.to_thread(running.engine.entered.acquire)
        leaving = asyncio.create_task(running.server.__aexit__(None, None, None))
        status = grpc.StatusCode.INVALID_ARGUMENT
        while status is grpc.StatusCode.INVALID_ARGUMENT:
            # It takes calls until it has begun to leave.
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.stub.Explain(asking(0, b"no image").explain)
            status = caught.value.code()
        assert status is grpc.StatusCode.UNAVAILABLE
        assert not leaving.done()
        running.engine.gate.set()
        assert (await call.read()).explanation.neurons
        async with asyncio.timeout(60):
            await leaving


async def test_what_a_stream_is_expected_to_hold_counts_every_list_of_images(running):
    parts = [explain_pb2.EXPLAIN_PART_NEAREST_NEURONS, explain_pb2.EXPLAIN_PART_TOP_IMAGES]
    one, many = (explain_query(asking(1, b"x", parts=parts, top_n=1, nearest_count=count).explain) for count in (1, 99))
    assert _expected_bytes(many) == 50 * _expected_bytes(one)


async def test_a_stream_that_rests_holds_no_message_of_its_caller(running):
    of_others = alive(streams_pb2.ExplainImagesRequest)
    call = running.stub.ExplainImages()
    await call.write(asking(1, CORPUS["red-1"]))
    assert (await call.read()).explanation.neurons
    await call.write(asking(2, CORPUS["red-1"], top_n=0))
    assert (await call.read()).status.code == code_pb2.INVALID_ARGUMENT
    assert alive(streams_pb2.ExplainImagesRequest) <= of_others
    call.cancel()


async def test_a_faulty_item_of_a_stream_counts_for_the_rate_of_its_caller():
    async with serving(settings=settings_with(security={"rate_per_s": 0.001, "rate_burst": 3})) as running:
        found = await outcomes(running, [asking(item, CORPUS["red-1"], top_n=0) for item in range(1, 5)])
    # The stream itself is one.
    codes = sorted(reply.status.code for reply in found.values())
    assert codes == [code_pb2.INVALID_ARGUMENT] * 2 + [code_pb2.RESOURCE_EXHAUSTED] * 2
