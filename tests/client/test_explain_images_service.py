"""explain_images against the real service over fakes: uploads in pieces, digests first, a service that leaves."""

import asyncio
import io
import random

import pytest
from PIL import Image

from phosphene.client import AsyncClient, Digest
from phosphene.errors import ImageRequired, ImageUnreadable, InputError, NotFound
from phosphene.v1.explain_pb2 import ExplainResponse
from tests.fakes import CORPUS, png
from tests.service.conftest import ANY_PORT, serving, settings_with


def noise(seed: int, size_px: int = 1000) -> bytes:
    """A PNG of 3 MB: noise does not shrink."""
    stream = io.BytesIO()
    Image.frombytes("RGB", (size_px, size_px), random.Random(seed).randbytes(3 * size_px**2)).save(
        stream, "PNG", compress_level=0
    )
    return stream.getvalue()


async def all_answers(address, images, **options):
    async with AsyncClient(str(address), timeout_s=20) as client:
        return {position: outcome async for position, outcome in client.explain_images(images, **options)}


async def test_many_images_are_answered_as_one_by_one():
    images = [png((10 * number, 255 - 10 * number, 0)) for number in range(24)]
    async with serving() as running:
        found = await all_answers(running.address, images, parts=["neurons", "code"], in_flight=5)
        async with AsyncClient(str(running.address)) as client:
            alone = [await client.explain(image, parts=["neurons", "code"]) for image in images]
    assert [found[position].neurons for position in range(24)] == [each.neurons for each in alone]
    assert [found[position].image.sha256 for position in range(24)] == [each.image.sha256 for each in alone]


async def test_large_images_arrive_whole_in_pieces(tmp_path):
    path = tmp_path / "noise.png"
    path.write_bytes(noise(1))
    async with serving() as running:
        found = await all_answers(running.address, [path, noise(2), png((0, 0, 255))], parts=["fidelity"])
        async with AsyncClient(str(running.address)) as client:
            alone = await client.explain(path, parts=["fidelity"])
    assert all(isinstance(outcome, ExplainResponse) for outcome in found.values())
    assert found[0].image.sha256 == alone.image.sha256
    assert found[0].fidelity.fvu == pytest.approx(alone.fidelity.fvu, rel=1e-5)


async def test_every_image_has_an_error_of_its_own():
    async with serving() as running:
        found = await all_answers(running.address, [b"no image", png((255, 0, 0)), Digest("ab" * 32), "no/such.png"])
        with pytest.raises(InputError):
            await all_answers(running.address, [png((255, 0, 0))], in_flight=0)
    kinds = [type(found[position]) for position in range(4)]
    assert kinds == [InputError, ExplainResponse, NotFound, ImageUnreadable]


async def test_images_of_the_corpus_are_asked_by_digest_and_others_sent():
    own, other = CORPUS["red-1"], png((1, 2, 3))
    async with serving() as running:
        found = await all_answers(running.address, [own, other], digest_first=True)
        assert sum(running.engine.batch_sizes) == 1
        async with AsyncClient(str(running.address)) as client:
            stored = await client.explain(own, digest_first=True)
            assert sum(running.engine.batch_sizes) == 1
            sent = await client.explain(other, digest_first=True)
            # Scores need the image: the service says so, and is sent it.
            scored = await client.explain(own, digest_first=True, parts=["scores"])
            with pytest.raises(ImageRequired):
                await client.explain(sha256=scored.image.sha256, parts=["scores"])
            with pytest.raises(NotFound, match="nope"):
                await client.explain(own, digest_first=True, bundle="nope")
    assert found[0].neurons == stored.neurons
    assert found[1].neurons == sent.neurons
    assert scored.scores


async def test_an_image_that_the_cache_holds_is_not_sent_again():
    image = png((1, 2, 3))
    async with serving(settings=settings_with(cache={"limit_bytes": 2**20})) as running:
        first = await all_answers(running.address, [image])
        again = await all_answers(running.address, [Digest(first[0].image.sha256)])
        assert sum(running.engine.batch_sizes) == 1
    assert first[0].neurons == again[0].neurons


async def test_a_stream_outlives_the_replica_that_it_began_on():
    found: dict[int, object] = {}
    enough, has_begun, goes_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    is_restarted = False

    async def images():
        while not enough.is_set():
            yield png((1, 2, 3))

    async def collect(address):
        async with AsyncClient(str(address), timeout_s=30, retries=50) as client:
            async for position, outcome in client.explain_images(images(), in_flight=4):
                assert position not in found
                found[position] = outcome
                (goes_on if is_restarted else has_begun).set()

    def settings(listen):
        return settings_with(network={"drain_s": 0.2, "listen": listen})

    async with serving(settings=settings(ANY_PORT)) as first:
        asking = asyncio.create_task(collect(first.address))
        await has_begun.wait()
    async with serving(settings=settings(first.address)):
        is_restarted = True
        await goes_on.wait()
        enough.set()
        await asking
    assert sorted(found) == list(range(len(found)))
    assert {type(outcome) for outcome in found.values()} == {ExplainResponse}
