"""Every way in which a request can fail, over a real channel: code, google.rpc details, and not a word too much."""

import asyncio
import io
import json
import logging

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from phosphene.encoder import Tokens
from phosphene.errors import NotFound, PhospheneError
from phosphene.images import image_sha256
from phosphene.v1 import explain_pb2, images_pb2, models_pb2, neurons_pb2, values_pb2
from service.observing.logs import open_logs
from service.outcomes import outcome_of
from tests.fakes import CORPUS, NEURON_COUNT, FakeEngine, FakeReader, fake_entry, png
from tests.service.conftest import serving, settings_with
from tests.service.scraping import metric, until

RED = values_pb2.ImageQuery(data=CORPUS["red-1"])
STORED = values_pb2.ImageQuery(sha256=image_sha256(CORPUS["red-1"]))


def explain(**fields):
    return "Explain", explain_pb2.ExplainRequest(**{"image": RED, **fields})


async def refused(running, call, **options):
    """Send a request that must fail; its code, message and details by type name."""
    method, request = call
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(running.stub, method)(request, **options)
    error = caught.value
    rich = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    status = status_pb2.Status.FromString(rich[0]) if rich else status_pb2.Status()
    details = {}
    for packed in status.details:
        name = packed.TypeName().rpartition(".")[2]
        details[name] = getattr(error_details_pb2, name)()
        packed.Unpack(details[name])
    return error.code(), error.details(), details


def bad_field(details):
    (violation,) = details["BadRequest"].field_violations
    return violation.field


INVALID = [
    (explain(image=values_pb2.ImageQuery()), "image", "image.data"),
    (("Explain", explain_pb2.ExplainRequest()), "image", "image.data"),
    (explain(image=values_pb2.ImageQuery(data=b"")), "image.data", "empty"),
    (explain(image=values_pb2.ImageQuery(data=b"no image at all, just words")), "image.data", "JPEG"),
    (explain(image=values_pb2.ImageQuery(data=CORPUS["red-1"][:-20])), "image.data", ""),
    (explain(image=values_pb2.ImageQuery(sha256="ABC")), "image.sha256", "64 lowercase"),
    (explain(top_n=0), "top_n", "1 to 100"),
    (explain(top_n=101), "top_n", "1 to 100"),
    (explain(nearest_count=0), "nearest_count", "1 to 100"),
    (explain(exemplars_per_neuron=129), "exemplars_per_neuron", "1 to 128"),
    (explain(similar_count=101), "similar_count", "1 to 100"),
    (explain(score_count=1001), "score_count", "1 to 1000"),
    (explain(parts=[0]), "parts", "0"),
    (explain(parts=[99]), "parts", "99"),
    (
        explain(
            parts=[explain_pb2.EXPLAIN_PART_TOP_IMAGES], top_n=100, exemplars_per_neuron=11, include_thumbnails=True
        ),
        "include_thumbnails",
        "1024",
    ),
    (("GetNeuron", neurons_pb2.GetNeuronRequest()), "neuron_id", "not set"),
    (("GetNeuron", neurons_pb2.GetNeuronRequest(neuron_id=0, exemplar_count=0)), "exemplar_count", "1 to 128"),
    (("GetNeuron", neurons_pb2.GetNeuronRequest(neuron_id=0, similar_count=101)), "similar_count", "1 to 100"),
    (("GetNeuron", neurons_pb2.GetNeuronRequest(neuron_id=0, parts=[9])), "parts", "9"),
    (("ListNeurons", neurons_pb2.ListNeuronsRequest(page_size=0)), "page_size", "1 to 1000"),
    (("ListNeurons", neurons_pb2.ListNeuronsRequest(page_size=1001)), "page_size", "1 to 1000"),
    (("ListNeurons", neurons_pb2.ListNeuronsRequest(order=77)), "order", "77"),
    (("ListNeurons", neurons_pb2.ListNeuronsRequest(page_token="AAAA")), "page_token", "begin again"),
    (
        ("ListNeurons", neurons_pb2.ListNeuronsRequest(filter=neurons_pb2.NeuronFilter(min_density=float("nan")))),
        "filter.min_density",
        "0 to 1",
    ),
    (
        ("ListNeurons", neurons_pb2.ListNeuronsRequest(filter=neurons_pb2.NeuronFilter(max_density=1.5))),
        "filter.max_density",
        "0 to 1",
    ),
    (
        (
            "ListNeurons",
            neurons_pb2.ListNeuronsRequest(filter=neurons_pb2.NeuronFilter(min_density=0.5, max_density=0.25)),
        ),
        "filter.max_density",
        "0.5",
    ),
    (
        ("ListNeurons", neurons_pb2.ListNeuronsRequest(filter=neurons_pb2.NeuronFilter(name_contains="x" * 257))),
        "filter.name_contains",
        "256",
    ),
    (("SearchNeurons", neurons_pb2.SearchNeuronsRequest()), "query", "neuron_id"),
    (("SearchNeurons", neurons_pb2.SearchNeuronsRequest(text=" \t")), "text", "1024"),
    (("SearchNeurons", neurons_pb2.SearchNeuronsRequest(text="x" * 1025)), "text", "1024"),
    (("SearchNeurons", neurons_pb2.SearchNeuronsRequest(text="red", count=0)), "count", "1 to 100"),
    (
        ("SearchNeurons", neurons_pb2.SearchNeuronsRequest(text="red", exemplars_per_neuron=0)),
        "exemplars_per_neuron",
        "1 to 128",
    ),
    (("SearchImages", images_pb2.SearchImagesRequest()), "query", "neuron_id"),
    (("SearchImages", images_pb2.SearchImagesRequest(image=RED, count=101)), "count", "1 to 100"),
    (("SearchImages", images_pb2.SearchImagesRequest(expression="")), "expression", "column 1"),
    (("SearchImages", images_pb2.SearchImagesRequest(expression="0 & & 1")), "expression", "column 5"),
    (("SearchImages", images_pb2.SearchImagesRequest(expression="0>1e999")), "expression", "column 3"),
    (("SearchImages", images_pb2.SearchImagesRequest(expression="1|" * 1024 + "1")), "expression", "2048"),
    (("GetNeuron", neurons_pb2.GetNeuronRequest(neuron_id=1, bin_count=101)), "bin_count", "1 to 100"),
    (("GetNeuron", neurons_pb2.GetNeuronRequest(neuron_id=1, co_active_count=0)), "co_active_count", "1 to 100"),
    (("SearchImages", images_pb2.SearchImagesRequest(image=values_pb2.ImageQuery())), "image", "image.data"),
    (("GetImage", images_pb2.GetImageRequest(sha256="x" * 64)), "sha256", "64 lowercase"),
]


async def test_what_is_wrong_is_named_by_field(running):
    for call, field, text in INVALID:
        code, message, details = await refused(running, call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT, (call, message)
        assert bad_field(details) == field, call
        assert text in message, call
    assert not running.engine.batch_sizes


async def test_image_limits_are_named_with_value_and_limit():
    async with serving(settings=settings_with(image={"limit_bytes": 4096, "limit_pixels": 100})) as running:
        many_pixels = explain(image=values_pb2.ImageQuery(data=png((1, 2, 3), width=11, height=10)))
        code, message, details = await refused(running, many_pixels)
        assert (code, bad_field(details)) == (grpc.StatusCode.INVALID_ARGUMENT, "image.data")
        assert "PHOSPHENE_IMAGE_LIMIT_PIXELS" in message
        many_bytes = explain(image=values_pb2.ImageQuery(data=CORPUS["red-1"] + bytes(5000)))
        code, message, details = await refused(running, many_bytes)
        assert (code, bad_field(details)) == (grpc.StatusCode.INVALID_ARGUMENT, "image.data")
        assert "PHOSPHENE_IMAGE_LIMIT_BYTES" in message
        code, message, details = await refused(
            running, explain(image=values_pb2.ImageQuery(data=bytes(4096 + 2**20 + 1)))
        )
        assert (code, details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, {})


async def test_what_does_not_exist_is_named_with_what_does(running):
    missing = "f" * 64
    cases = [
        (("GetModel", models_pb2.GetModelRequest(bundle="nope")), "bundle", "nope", "colours"),
        (explain(bundle="nope"), "bundle", "nope", "colours"),
        (explain(corpus="nope"), "corpus", "nope", "swatches"),
        (("GetNeuron", neurons_pb2.GetNeuronRequest(neuron_id=NEURON_COUNT)), "neuron_id", "6", "0 to 5"),
        (("SearchNeurons", neurons_pb2.SearchNeuronsRequest(neuron_id=2**32 - 1)), "neuron_id", "4294967295", "0 to 5"),
        (("SearchImages", images_pb2.SearchImagesRequest(neuron_id=6)), "neuron_id", "6", "0 to 5"),
        (("SearchImages", images_pb2.SearchImagesRequest(expression="0 & 6")), "expression", "6", "0 to 5"),
        (explain(image=values_pb2.ImageQuery(sha256=missing)), "image.sha256", missing, "swatches"),
        (("GetImage", images_pb2.GetImageRequest(sha256=missing)), "sha256", missing, "swatches"),
    ]
    for call, kind, name, known in cases:
        code, message, details = await refused(running, call)
        assert code is grpc.StatusCode.NOT_FOUND, call
        assert (details["ResourceInfo"].resource_type, details["ResourceInfo"].resource_name) == (kind, name)
        assert known in message


async def test_parts_that_need_pixels_are_refused_for_a_digest_with_the_remedy(running):
    for part in (
        explain_pb2.EXPLAIN_PART_PATCH_ACTIVATIONS,
        explain_pb2.EXPLAIN_PART_NEAREST_NEURONS,
        explain_pb2.EXPLAIN_PART_SCORES,
    ):
        code, message, details = await refused(running, explain(image=STORED, parts=[part]))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "send the image's bytes" in message
        assert details["PreconditionFailure"].violations[0].subject == "parts"


async def test_what_a_bundle_or_corpus_lacks_is_said():
    engine = FakeEngine()
    entries = [
        fake_entry(engine, name="bare", corpora=(), has_scores=False, tokens=Tokens.CLS),
        fake_entry(engine, name="wordless", has_text_tower=False),
        fake_entry(engine, name="unindexed", reader=FakeReader(CORPUS, has_text=False)),
    ]
    async with serving(entries, engine=engine) as running:
        cases = [
            (explain(parts=[explain_pb2.EXPLAIN_PART_TOP_IMAGES]), "no corpus"),
            (explain(parts=[explain_pb2.EXPLAIN_PART_NEAREST_NEURONS]), "no corpus"),
            (explain(parts=[explain_pb2.EXPLAIN_PART_SIMILAR_IMAGES]), "no corpus"),
            (explain(parts=[explain_pb2.EXPLAIN_PART_SCORES]), "no names to score"),
            (explain(parts=[explain_pb2.EXPLAIN_PART_PATCH_ACTIVATIONS]), "no patches"),
            (("GetNeuron", neurons_pb2.GetNeuronRequest(neuron_id=0)), "no corpus"),
            (("ListNeurons", neurons_pb2.ListNeuronsRequest()), "no corpus"),
            (("SearchImages", images_pb2.SearchImagesRequest(image=RED)), "no corpus"),
            (("GetImage", images_pb2.GetImageRequest(sha256="0" * 64)), "no corpus"),
            (("SearchNeurons", neurons_pb2.SearchNeuronsRequest(bundle="wordless", text="red")), "no text tower"),
            (
                ("SearchImages", images_pb2.SearchImagesRequest(bundle="wordless", text="red")),
                "nothing can be searched",
            ),
            (("SearchNeurons", neurons_pb2.SearchNeuronsRequest(bundle="unindexed", text="red")), "embeddings"),
            (("SearchImages", images_pb2.SearchImagesRequest(bundle="unindexed", text="red")), "nothing in it can be"),
        ]
        for call, text in cases:
            code, message, details = await refused(running, call)
            assert code is grpc.StatusCode.FAILED_PRECONDITION, call
            assert text in message
            assert details["PreconditionFailure"].violations[0].description == message
    assert not engine.batch_sizes


async def test_an_image_of_too_many_pixels_is_never_told_to_try_again():
    # More of them than there is room for over all images, and one is in hand.
    async with serving(settings=settings_with(queue={"image_pixels": 1000}, image={"limit_pixels": 500})) as running:
        calls = await held(running, 0)
        many_pixels = explain(image=values_pb2.ImageQuery(data=png((1, 2, 3), width=40, height=40)))
        code, message, details = await refused(running, many_pixels)
        assert (code, bad_field(details)) == (grpc.StatusCode.INVALID_ARGUMENT, "image.data")
        assert "PHOSPHENE_IMAGE_LIMIT_PIXELS" in message
        running.engine.gate.set()
        assert (await calls[0]).neurons


async def held(running, count):
    """Hold the engine with one request, and let `count` more wait for it."""
    running.engine.gate.clear()
    method = running.stub.Explain
    calls = [method(explain()[1])]
    await asyncio.to_thread(running.engine.entered.acquire)
    calls += [method(explain()[1]) for _ in range(count)]
    return calls


async def test_a_full_queue_answers_at_once_with_retry_info():
    async with serving(settings=settings_with(queue={"images": 2})) as running:
        calls = await held(running, 1)
        await until(running, 'phosphene_queue_depth_items{lane="interactive"}', 1)
        code, message, details = await refused(running, explain())
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "PHOSPHENE_QUEUE_IMAGES" in message
        delay_s = details["RetryInfo"].retry_delay.ToNanoseconds() / 1e9
        assert 0.05 <= delay_s <= 30
        running.engine.gate.set()
        for call in calls:
            assert (await call).neurons
        assert await metric(running, 'phosphene_refused_requests_total{reason="overloaded"}') == 1


async def test_an_expired_deadline_and_a_caller_that_left_cost_no_device_time():
    async with serving() as running:
        calls = await held(running, 1)
        await until(running, 'phosphene_queue_depth_items{lane="interactive"}', 1)
        code, _, _ = await refused(running, explain(), timeout=0.2)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        calls[1].cancel()
        await until(running, 'phosphene_queue_depth_items{lane="interactive"}', 0)
        running.engine.gate.set()
        await calls[0]
        assert running.engine.batch_sizes == [1]
        assert await metric(running, 'phosphene_dropped_items_total{cause="cancelled",stage="queue"}') == 2


async def test_a_defect_shows_an_id_and_no_text():
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    open_logs("info", stream)
    try:
        async with serving() as running:
            running.engine.is_poison = lambda pixels: True
            code, message, details = await refused(running, explain(), metadata=[("x-request-id", "my-id-1")])
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in message
    assert "/etc" not in message
    assert "my-id-1" in message
    assert details["RequestInfo"].request_id == "my-id-1"
    assert not details["RequestInfo"].serving_data
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    (defect,) = [line for line in lines if line["event"] == "defect"]
    assert defect["request_id"] == "my-id-1"
    assert "secret path" in defect["traceback"]


async def test_bytes_that_are_no_message_are_refused_without_a_parsers_words(running):
    method = running.channel.unary_unary("/phosphene.v1.PhospheneService/Explain")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(b"\xff\xff\xffgarbage")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Explain" in caught.value.details()
    assert "class" not in caught.value.details()


async def test_one_poisoned_image_harms_no_other():
    async with serving() as running:
        running.engine.is_poison = lambda pixels: bool(np.all(pixels[2] == 77))
        calls = await held(running, 0)
        good = [running.stub.Explain(explain(image=values_pb2.ImageQuery(data=png((200, i, 0))))[1]) for i in range(5)]
        bad = running.stub.Explain(explain(image=values_pb2.ImageQuery(data=png((9, 9, 77))))[1])
        await until(running, 'phosphene_queue_depth_items{lane="interactive"}', 6)
        running.engine.gate.set()
        for call in [*calls, *good]:
            assert (await call).neurons[0].neuron.neuron_id == 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bad
        assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_every_answer_carries_its_request_id(running):
    call = running.stub.ListModels(models_pb2.ListModelsRequest(), metadata=[("x-request-id", "abc.1")])
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "abc.1"
    forged = running.stub.ListModels(models_pb2.ListModelsRequest(), metadata=[("x-request-id", "a b")])
    await forged
    assert len(dict(await forged.trailing_metadata())["x-request-id"]) == 32


@given(st.text(max_size=3000))
def test_no_foreign_exception_text_ever_reaches_a_caller(text):
    for error in (RuntimeError(text), KeyError(text), OSError(text), PhospheneError(text)):
        outcome = outcome_of(error, request_id="r1")
        assert outcome == outcome_of(RuntimeError("other"), request_id="r1")


@given(st.text(max_size=3000))
def test_a_status_is_short_and_plain(text):
    outcome = outcome_of(NotFound(text, field="bundle", name=text), request_id="r1")
    assert len(outcome.message.encode()) <= 1000
    assert outcome.message.isprintable()
    assert len(outcome.to_status().SerializeToString()) < 2500


async def test_a_huge_name_still_gets_its_status(running):
    for name in ("é" * 100_000, "\x00\n" * 50_000, "😀" * 20_000):
        code, _, details = await refused(running, explain(bundle=name))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "ResourceInfo" in details
