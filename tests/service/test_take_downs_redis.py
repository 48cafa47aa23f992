"""Take-downs with a Redis that replicas share: what was kept there before answers nobody after their reloads."""

from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import grpc.aio
import pytest

from phosphene.images import image_sha256
from phosphene.v1 import admin_pb2, admin_pb2_grpc, explain_pb2, images_pb2, values_pb2
from service.settings import ArtefactSettings
from tests.fakes import png
from tests.service.caching.redis_server import running_redis
from tests.service.conftest import ANY_PORT, serving_artefacts, settings_with
from tests.service.scraping import page
from tests.service.test_take_downs import DOWN, RELOAD, STORED_PARTS, everything, name, shown_by, world

__all__ = ["world"]

FOREIGN = png((30, 200, 90))


class Replica:
    """One replica: its service, its operator's port, and what its cache said."""

    def __init__(self, running, admin):
        self.stub, self.admin, self._metrics = running.stub, admin, running.metrics_address

    async def hits(self):
        return (await page(self._metrics))['phosphene_cache_results_total{result="hit"}']


@asynccontextmanager
async def replicas(current, redis, count=2):
    settings = settings_with(cache={"redis_url": redis.url, "limit_bytes": 2**20}, network={"admin_listen": ANY_PORT})
    async with AsyncExitStack() as lifetimes:
        enter = lifetimes.enter_async_context
        opened = []
        for _ in range(count):
            running = await enter(serving_artefacts(ArtefactSettings(current=current), settings=settings))
            orders = await enter(grpc.aio.insecure_channel(str(running.admin_address)))
            opened.append(Replica(running, admin_pb2_grpc.AdminServiceStub(orders)))
        yield opened


def by_bytes(data):
    return explain_pb2.ExplainRequest(
        image=values_pb2.ImageQuery(data=data), parts=STORED_PARTS, include_thumbnails=True
    )


def by_digest(digest, parts=STORED_PARTS):
    return explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(sha256=digest), parts=parts)


async def is_not_found(stub, digest):
    """Every way to ask for the image by itself."""
    image = values_pb2.ImageQuery(sha256=digest)
    for ask in (
        stub.Explain(by_digest(digest)),
        # Parts that the index does not store are asked of the cache even of images that it holds.
        stub.Explain(by_digest(digest, [explain_pb2.EXPLAIN_PART_PATCH_ACTIVATIONS])),
        stub.SearchImages(images_pb2.SearchImagesRequest(image=image)),
        stub.GetImage(images_pb2.GetImageRequest(sha256=digest)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "was taken down from corpus 'pictures'" in caught.value.details()


async def test_what_redis_kept_before_is_answered_by_no_replica(world, tmp_path):  # noqa: F811
    current, digest, data = tmp_path / "CURRENT", world["digests"][DOWN], world["data"][DOWN]
    name(current, world, down=False)
    patches = [explain_pb2.EXPLAIN_PART_PATCH_ACTIVATIONS]
    with running_redis() as redis:
        async with replicas(current, redis) as (first, second):
            # Warm: the first replica encodes it, the second has it from Redis, whatever is asked.
            live = explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(data=data), parts=patches)
            await first.stub.Explain(live)
            assert (await second.stub.Explain(by_digest(digest, patches))).image.corpus_image.row == DOWN
            assert await second.hits() == 1
            assert (await second.stub.Explain(by_bytes(data))).image.corpus_image.row == DOWN
            for replica in (first, second):
                assert shown_by(await everything(replica.stub, world), world["marks"])
            kept = set(redis.run("KEYS", "*"))
            assert kept

            name(current, world, down=True)
            assert (await first.admin.Reload(RELOAD)).switched
            # What a replica of the old generation keeps on putting there answers nobody of the new one.
            await second.stub.Explain(live)
            await is_not_found(first.stub, digest)
            assert shown_by(await everything(first.stub, world), world["marks"]) == set()
            assert (await second.admin.Reload(RELOAD)).switched
            for replica in (first, second):
                await is_not_found(replica.stub, digest)
                assert shown_by(await everything(replica.stub, world), world["marks"]) == set()
            # It is all still there, under the keys of the old generation.
            assert kept <= set(redis.run("KEYS", "*"))

            # Redis serves the new generation as it did the old one: what is sent to one replica, the other knows.
            await first.stub.Explain(by_bytes(FOREIGN))
            hits = await second.hits()
            again = await second.stub.Explain(by_digest(image_sha256(FOREIGN)))
            assert await second.hits() == hits + 1
            assert not again.image.HasField("corpus_image")
            # Whoever sends the image itself is told what lights up on it, and nothing of the corpus's.
            for replica in (first, second):
                own = await replica.stub.Explain(by_bytes(data))
                assert not own.image.HasField("corpus_image")
                assert shown_by([own], world["marks"][::2]) == set()

        # A replica that starts afterwards finds Redis as it is.
        async with replicas(current, redis, count=1) as (third,):
            assert kept <= set(redis.run("KEYS", "*"))
            assert shown_by(await everything(third.stub, world), world["marks"]) == set()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await third.stub.GetImage(images_pb2.GetImageRequest(sha256=digest))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert not (await third.admin.Reload(admin_pb2.ReloadRequest())).switched
