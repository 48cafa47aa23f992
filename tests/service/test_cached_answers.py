"""What the cache answers over a real channel: equal images once, digests without an upload, nobody else's image."""

import asyncio
import hashlib

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from phosphene.images import image_sha256
from phosphene.v1 import explain_pb2, images_pb2, values_pb2
from service.caching.envelope import wrap
from tests.fakes import CORPUS, FakeEngine, fake_entry, png
from tests.service.caching.redis_server import running_redis
from tests.service.conftest import serving, settings_with

CACHED = settings_with(cache={"limit_bytes": 2**20})
FOREIGN = png((3, 90, 200))
PARTS = explain_pb2.ExplainPart


def by_bytes(*parts, data=FOREIGN):
    return explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(data=data), parts=parts)


def by_digest(*parts, data=FOREIGN):
    return explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(sha256=image_sha256(data)), parts=parts)


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    (rich,) = [value for key, value in caught.value.trailing_metadata() if key == "grpc-status-details-bin"]
    return caught.value, status_pb2.Status.FromString(rich).details[0]


async def test_equal_images_reach_the_device_once_and_answer_alike():
    async with serving(settings=CACHED) as running:
        first = await running.stub.Explain(by_bytes())
        assert await running.stub.Explain(by_bytes()) == first
        assert running.engine.batch_sizes == [1]
        other = await running.stub.Explain(by_bytes(data=png((200, 3, 3))))
        assert other.neurons[0].neuron.neuron_id != first.neurons[0].neuron.neuron_id


async def test_more_parts_ask_the_device_again_and_are_kept_too():
    async with serving(settings=CACHED) as running:
        await running.stub.Explain(by_bytes())
        scored = await running.stub.Explain(by_bytes(PARTS.EXPLAIN_PART_SCORES))
        assert scored.scores
        assert running.engine.batch_sizes == [1, 1]
        assert (await running.stub.Explain(by_bytes())).neurons
        assert (await running.stub.Explain(by_bytes(PARTS.EXPLAIN_PART_SCORES))) == scored
        assert running.engine.batch_sizes == [1, 1]


async def test_an_image_that_was_sent_before_is_answered_by_digest():
    async with serving(settings=CACHED) as running:
        error, detail = await refused(running.stub.Explain(by_digest()))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert "send the image's bytes" in error.details()
        uploaded = await running.stub.Explain(by_bytes())
        assert await running.stub.Explain(by_digest()) == uploaded
        similar = images_pb2.SearchImagesRequest(image=values_pb2.ImageQuery(sha256=image_sha256(FOREIGN)))
        assert (await running.stub.SearchImages(similar)).images
        assert running.engine.batch_sizes == [1]
        error, _ = await refused(running.stub.Explain(by_digest(PARTS.EXPLAIN_PART_SCORES)))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_a_corpus_image_by_digest_gives_pixel_parts_only_from_the_cache():
    red = CORPUS["red-1"]
    async with serving(settings=CACHED) as running:
        error, detail = await refused(running.stub.Explain(by_digest(PARTS.EXPLAIN_PART_SCORES, data=red)))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        violation = error_details_pb2.PreconditionFailure()
        detail.Unpack(violation)
        assert violation.violations[0].type == "IMAGE_REQUIRED"
        uploaded = await running.stub.Explain(by_bytes(PARTS.EXPLAIN_PART_SCORES, data=red))
        assert (await running.stub.Explain(by_digest(PARTS.EXPLAIN_PART_SCORES, data=red))).scores == uploaded.scores


async def test_nobody_learns_of_another_callers_image(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{name} {hashlib.sha256(name.encode()).hexdigest()}\n" for name in ("ann", "bob")))
    settings = settings_with(cache={"limit_bytes": 2**20}, security={"tokens": tokens})
    async with serving(settings=settings) as running:
        ann, bob = ([("authorization", f"Bearer {name}")] for name in ("ann", "bob"))
        await running.stub.Explain(by_bytes(), metadata=ann)
        assert (await running.stub.Explain(by_digest(), metadata=ann)).neurons
        error, _ = await refused(running.stub.Explain(by_digest(), metadata=bob))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        await running.stub.Explain(by_bytes(), metadata=bob)
        assert running.engine.batch_sizes == [1, 1]


async def test_failures_are_not_kept():
    async with serving(settings=CACHED) as running:
        running.engine.is_poison = lambda pixels: True
        await refused(running.stub.Explain(by_bytes()))
        running.engine.is_poison = lambda pixels: False
        assert (await running.stub.Explain(by_bytes())).neurons


async def test_each_bundle_has_its_own_codes():
    engine = FakeEngine()
    entries = [fake_entry(engine), fake_entry(engine, name="twin", corpora=())]
    async with serving(entries, engine=engine, settings=CACHED) as running:
        await running.stub.Explain(by_bytes())
        request = by_bytes()
        request.bundle = "twin"
        assert (await running.stub.Explain(request)).provenance.bundle == "twin"


async def test_a_value_of_another_version_is_made_anew():
    with running_redis() as redis:
        async with serving(settings=settings_with(cache={"redis_url": redis.url})) as running:
            first = await running.stub.Explain(by_bytes())
            async with asyncio.timeout(30):
                while not (names := redis.run("KEYS", "phosphene:code:*")):
                    await asyncio.sleep(0)
            (name,) = names
            foreign = wrap(bytes.fromhex(name.decode().rpartition("{")[2].rstrip("}")), b"PHI\x02 of a later version")
            redis.run("SET", name, foreign)
            error, _ = await refused(running.stub.Explain(by_digest()))
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert await running.stub.Explain(by_bytes()) == first
            async with asyncio.timeout(30):
                while redis.run("GET", name) == foreign:
                    await asyncio.sleep(0)
            assert await running.stub.Explain(by_digest()) == first
            assert running.engine.batch_sizes == [1, 1]
