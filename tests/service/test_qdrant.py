"""Codes searched in Qdrant, over a real channel: the answers of the index, or a refusal, and never an empty list.

Qdrant is its own engine behind a stand-in for the server.
"""

from contextlib import asynccontextmanager, contextmanager

import grpc
import grpc.aio
import pytest
from google.rpc import code_pb2
from qdrant_client import models

from index.build import BuildJob, build_index
from index.flags import flag_index
from index.plan import IndexConfig
from index.qdrant.collection import open_qdrant
from index.qdrant.push import push_index
from index.qdrant.search import QdrantSearch
from index.reader import open_index
from index.sensitive import SensitiveConfig
from index.take_down import Request, TakeDownJob, take_down
from index.values import QdrantPlace
from phosphene.current import save_current
from phosphene.encoder import Family, Tokens
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, SettingError, Unavailable
from phosphene.v1 import admin_pb2, admin_pb2_grpc, explain_pb2, images_pb2, neurons_pb2, streams_pb2, values_pb2
from service.settings import ArtefactSettings, NamedPath
from tests.index.qdrant.rest_server import rest_server
from tests.index.quiet import Notes
from tests.index.small_world import write_bundle, write_corpus
from tests.service.conftest import ANY_PORT, logged, serving_artefacts, settings_with

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant")
IMAGE_COUNT, DOWN, SENSITIVE = 24, 3, 5
RELOAD = admin_pb2.ReloadRequest()
QUERIES = "/points/query"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A bundle, two indexes of one corpus, tombstones and flags of one image each."""
    folder = tmp_path_factory.mktemp("qdrant")
    corpus = write_corpus(folder / "pictures", IMAGE_COUNT, corrupt=(7,))
    paths = {name: folder / name for name in ("index", "other", "down", "flags")}
    bundle = write_bundle(folder, Family.CLIP, tokens=Tokens.PATCHES)
    for name, count in (("index", 10), ("other", 11)):
        config = IndexConfig(shard_image_count=8, batch_images=4, thread_count=1, top_count=count, spread_count=6)
        job = BuildJob(corpus=str(corpus), bundle=bundle, out=paths[name], config=config, max_bad_ratio=0.5)
        build_index(job, Notes())
    take_down(TakeDownJob(index=paths["index"], out=paths["down"], requests=[Request(what=f"{DOWN:04d}.png")]))
    flag_index(paths["index"], paths["flags"], SensitiveConfig(uri_patterns=(f"{SENSITIVE:04d}.png",)))
    with open_index(paths["index"]) as index:
        digests = [index.image(row).sha256 for row in range(IMAGE_COUNT)]
        strongest = index.code(0).neuron_ids[:4].tolist()
    return {"bundle": bundle, "digests": digests, "neurons": strongest, **paths}


@contextmanager
def pushed(world):
    """A Qdrant that has the index."""
    with rest_server() as server:
        with open_index(world["index"]) as index, open_qdrant(server.url) as client:
            push_index(index, client, "scenes")
        yield server


def place(server, **changes):
    return QdrantPlace(**{"url": server.url, "collection": "scenes", **changes})


def named(world, index="index"):
    return ArtefactSettings(
        bundles=(NamedPath(name="b", path=world["bundle"]),), indexes=(NamedPath(name="i", path=world[index]),)
    )


def asking(server, **network):
    return settings_with(qdrant={"url": server.url, "collection": "scenes"}, network=network)


def questions(world, **changes):
    """Every kind of question that is one to codes."""
    first, second = world["neurons"][:2]
    for row in (0, 9, 20):
        image = values_pb2.ImageQuery(sha256=world["digests"][row])
        for similarity in (images_pb2.IMAGE_METRIC_CODE_COSINE, images_pb2.IMAGE_METRIC_CODE_INNER_PRODUCT):
            for only in ((), (first, second)):
                yield images_pb2.SearchImagesRequest(
                    image=image, similarity=similarity, only_neuron_ids=only, count=30, **changes
                )
    for text in (f"{first}", f"!{first}", f"{first}>0.5 & {second}<2 | !{second}", f"{first}<0"):
        yield images_pb2.SearchImagesRequest(expression=text, count=30, **changes)


def similar(world, **changes):
    image = values_pb2.ImageQuery(sha256=world["digests"][0])
    parts = [explain_pb2.EXPLAIN_PART_SIMILAR_IMAGES]
    return explain_pb2.ExplainRequest(image=image, parts=parts, similar_count=30, **changes)


async def answers(stub, world, **changes):
    found = [await stub.SearchImages(request) for request in questions(world, **changes)]
    return found, await stub.Explain(similar(world, **changes))


async def test_the_answers_are_those_of_the_index_and_say_who_gave_them(world):
    async with serving_artefacts(named(world)) as alone:
        due, due_explained = await answers(alone.stub, world)
    with pushed(world) as server:
        async with serving_artefacts(named(world), settings=asking(server)) as running:
            server.calls.clear()
            found, explained = await answers(running.stub, world)
            assert len([path for _, path in server.calls if path.endswith(QUERIES)]) >= len(found) - 1
            server.calls.clear()
            near = await running.stub.SearchImages(
                images_pb2.SearchImagesRequest(
                    image=values_pb2.ImageQuery(sha256=world["digests"][0]),
                    similarity=images_pb2.IMAGE_METRIC_RESIDUAL_COSINE,
                )
            )
            assert near.engine == values_pb2.SEARCH_ENGINE_INDEX
            assert server.calls == []
    assert sum(len(answer.images) for answer in due) > 200
    assert due[-1].total_count == 0
    for answer, other in zip([*found, explained], [*due, due_explained], strict=True):
        for each, engine in ((answer, "QDRANT"), (other, "INDEX")):
            number = values_pb2.SearchEngine.Value(f"SEARCH_ENGINE_{engine}")
            if each.HasField("code_search"):
                assert each.code_search.engine == number
                each.code_search.ClearField("engine")
            if isinstance(each, images_pb2.SearchImagesResponse):
                assert each.engine == number
                each.ClearField("engine")
        assert answer == other


def rows(found):
    searched, explained = found
    listed = {match.image.row for answer in searched for match in answer.images}
    return listed | {match.image.row for match in explained.similar_images}


@asynccontextmanager
async def operated(world, current, server):
    async with (
        serving_artefacts(ArtefactSettings(current=current), settings=asking(server, admin_listen=ANY_PORT)) as running,
        grpc.aio.insecure_channel(str(running.admin_address)) as orders,
    ):
        yield running.stub, admin_pb2_grpc.AdminServiceStub(orders)


async def test_what_is_hidden_never_comes_back(world, tmp_path):
    current = tmp_path / "CURRENT"
    base = {"bundles": {"b": world["bundle"]}, "indexes": {"i": world["index"]}}
    save_current(current, **base)
    with pushed(world) as server:
        async with operated(world, current, server) as (stub, admin):
            before = await answers(stub, world)
            assert {DOWN, SENSITIVE} <= rows(before)
            # A neuron's images and all others: counts are figures, over all images that are left.
            assert sum(answer.total_count for answer in before[0][-4:-2]) == IMAGE_COUNT - 1
            save_current(current, **base, tombstones={"i": world["down"]}, flags={"i": world["flags"]})
            assert (await admin.Reload(RELOAD)).switched
            after = await answers(stub, world)
            assert not {DOWN, SENSITIVE} & rows(after)
            assert rows(before) - rows(after) == {DOWN, SENSITIVE}
            assert sum(answer.hidden_count for answer in after[0]) > 0
            assert sum(answer.total_count for answer in after[0][-4:-2]) == IMAGE_COUNT - 2
            shown = await answers(stub, world, include_sensitive=True)
            assert rows(before) - rows(shown) == {DOWN}


async def test_a_qdrant_that_does_not_answer_is_unavailable_and_the_rest_is_answered(world):
    with pushed(world) as server:
        async with serving_artefacts(named(world), settings=asking(server)) as running:
            for broken, said in (
                ((500, {"status": {"error": "out of memory"}}), "Qdrant answers 500"),
                ((404, {"status": {"error": "Not found"}}), "push the index again"),
                ((401, {"status": {"error": "Unauthorized"}}), "give the right API key"),
                ((200, {"result": {}, "status": "ok", "time": 0.0}), "Qdrant gave no answer"),
            ):
                server.before = lambda method, path, reply=broken: reply if "/points" in path else None
                for request in questions(world):
                    if request.expression.endswith("<0"):
                        # Nothing is asked: no image can match.
                        continue
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await running.stub.SearchImages(request)
                    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
                    assert said in caught.value.details()
                with pytest.raises(grpc.aio.AioRpcError, match=said):
                    await running.stub.Explain(similar(world))
            profile = neurons_pb2.GetNeuronRequest(neuron_id=world["neurons"][0])
            assert (await running.stub.GetNeuron(profile)).statistics.firing_count
            server.before = lambda method, path: None
            assert (await answers(running.stub, world))[0][0].images


def test_points_that_are_lost_end_answers_until_they_are_back(world):
    now_s = [0.0]
    text, lost = str(world["neurons"][0]), {"result": {"count": IMAGE_COUNT - 2}, "status": "ok", "time": 0.0}
    with pushed(world) as server, open_qdrant(server.url) as client, open_index(world["index"]) as index:
        search = QdrantSearch(client, "scenes", index, clock=lambda: now_s[0])
        code = index.code(0)

        def answers(view):
            yield lambda: view.similar_images(code, 5)
            yield lambda: view.images_by_expression(text, 5)
            yield lambda: view.count_by_expression(text)

        due = [ask() for ask in answers(search)]
        server.before = lambda method, path: (200, lost) if path.endswith("/count") else None
        now_s[0] = 9.0
        assert search.similar_images(code, 5) == due[0]
        now_s[0] = 10.0
        for ask in [*answers(search), *answers(search.showing(index))]:
            with pytest.raises(Unavailable, match=f"counts {IMAGE_COUNT - 2} points .* has {IMAGE_COUNT - 1} images"):
                ask()
        server.before = lambda method, path: None
        assert [ask() for ask in answers(search)] == due
        server.calls.clear()
        search.similar_images(code, 5)
        assert len(server.calls) == 1


async def test_the_log_says_why_an_answer_was_unavailable(world):
    with pushed(world) as server, logged() as lines:
        async with serving_artefacts(named(world), settings=asking(server)) as running:
            answer = (500, {"status": {"error": "out of\x1b[31m memory\nand more"}})
            server.before = lambda method, path: answer if "/points" in path else None
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.stub.Explain(similar(world), metadata=[("x-request-id", "my-id-3")])
            items = running.stub.ExplainImages(
                iter([streams_pb2.ExplainImagesRequest(item=5, explain=similar(world))]),
                metadata=[("x-request-id", "my-id-4")],
            )
            (item,) = [reply async for reply in items]
    assert item.status.code == code_pb2.UNAVAILABLE
    alone, streamed = [line for line in lines() if line["event"] == "unavailable"]
    assert (alone["request_id"], alone["method"], alone["level"]) == ("my-id-3", "Explain", "warning")
    assert (streamed["request_id"], streamed["method"], streamed["item"]) == ("my-id-4", "ExplainImages", 5)
    assert alone["reason"] == caught.value.details() == streamed["reason"] == item.status.message
    assert "Qdrant answers 500" in alone["reason"]
    assert alone["reason"].isprintable()


async def test_a_code_that_somebody_changed_is_no_answer(world):
    with pushed(world) as server, open_qdrant(server.url) as client:
        async with serving_artefacts(named(world), settings=asking(server)) as running:
            points = next(each for each in server.collections() if each.endswith("-points"))
            (record,) = client.retrieve(points, [9], with_payload=True, with_vectors=True)
            record.vector["activation"].values[0] *= 2
            client.upsert(points, [models.PointStruct(id=9, vector=record.vector, payload=record.payload)])
            with pytest.raises(grpc.aio.AioRpcError, match="another code for row 9") as caught:
                await running.stub.Explain(similar(world))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_index_that_was_not_pushed_is_not_served(world, tmp_path):
    current = tmp_path / "CURRENT"
    save_current(current, bundles={"b": world["bundle"]}, indexes={"i": world["index"]})
    with pushed(world) as server:
        async with operated(world, current, server) as (stub, admin):
            save_current(current, bundles={"b": world["bundle"]}, indexes={"i": world["other"]})
            with pytest.raises(grpc.aio.AioRpcError, match="push it: python -m index push") as caught:
                await admin.Reload(RELOAD)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert (await answers(stub, world))[0][0].images
            server.before = lambda method, path: (503, {"status": {"error": "starting"}})
            with pytest.raises(grpc.aio.AioRpcError, match="Qdrant answers 503") as caught:
                await admin.Reload(RELOAD)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            server.before = lambda method, path: None
            assert (await answers(stub, world))[0][0].images


def test_what_is_not_this_index_is_refused_when_it_is_opened(world):
    with pushed(world) as server:
        for changes, said in (
            ({"collection": "elsewhere"}, "no finished collection"),
            ({"collection": "a b"}, "must be 1-100 characters"),
            ({"api_key": "secret"}, "in the clear"),
            ({"url": "ftp://x"}, "is no URL of a Qdrant"),
        ):
            with pytest.raises(SettingError, match=said):
                open_index(world["index"], qdrant=place(server, **changes))
        other = {"result": {"count": IMAGE_COUNT}, "status": "ok", "time": 0.0}
        server.before = lambda method, path: (200, other) if path.endswith("/count") else None
        with pytest.raises(ArtefactDamaged, match=f"Qdrant counts {IMAGE_COUNT} points"):
            open_index(world["index"], qdrant=place(server))
        server.before = lambda method, path: None
        with open_qdrant(server.url) as client:
            points = next(each for each in server.collections() if each.endswith("-points"))
            server.describe(points, {"index_id": "f" * 64})
            with pytest.raises(ArtefactMismatch, match="is another index"):
                open_index(world["index"], qdrant=place(server))
            assert client.count(points).count
    with pytest.raises(Unavailable, match="Qdrant gave no answer"):
        open_index(world["index"], qdrant=place(server))


def test_every_answer_of_a_reader_is_over_what_it_shows(world):
    """A quarantined row and a hidden one among those that are looked at when it is opened."""
    with (
        pushed(world) as server,
        open_index(world["index"], tombstones=world["down"], flags=world["flags"]) as index,
        open_index(world["index"], tombstones=world["down"], flags=world["flags"], qdrant=place(server)) as elsewhere,
    ):
        assert (index.code_engine, elsewhere.code_engine) == ("index", "qdrant")
        assert elsewhere.similar_recall == 1.0
        for first, second in ((index, elsewhere), (index.without_sensitive(), elsewhere.without_sensitive())):
            code = index.code(0)
            assert first.similar_images(code, 50) == second.similar_images(code, 50)
            assert first.count_by_expression("!0") == second.count_by_expression("!0")
            assert first.images_by_expression("!0 | 0", 50) == second.images_by_expression("!0 | 0", 50)
    assert elsewhere.id == index.id
