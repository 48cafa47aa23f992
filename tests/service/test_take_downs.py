"""Take-downs over a real channel: from the reply of the reload on, no answer shows the image, whatever was warm."""

import asyncio
import threading
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from google.rpc import code_pb2

from index.build import BuildJob, build_index
from index.plan import IndexConfig
from index.reader import open_index
from index.take_down import Request, TakeDownJob, take_down
from phosphene.current import save_current
from phosphene.encoder import Family, Tokens
from phosphene.image_limits import ImageLimits
from phosphene.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    explain_pb2,
    images_pb2,
    models_pb2,
    neurons_pb2,
    streams_pb2,
    values_pb2,
)
from service.answers import Answers
from service.calls_in_hand import CallsInHand
from service.catalogue import Catalogue
from service.explain import StoredImage, explain
from service.generations import Generations
from service.observing.metric_events import Metrics
from service.servicers import PhospheneServicer
from service.settings import ArtefactSettings
from service.uploads import UploadBudget
from tests.fakes import FakeEngine, FakeReader, fake_entry, png
from tests.index.quiet import Notes
from tests.index.small_world import write_bundle, write_corpus
from tests.service.conftest import ANY_PORT, serving, serving_artefacts, settings_with

IMAGE_COUNT = 12
DOWN = 3
OTHERS = (0, 4, 9)
SETTINGS = settings_with(cache={"limit_bytes": 2**20}, network={"admin_listen": ANY_PORT})
PARTS = [number for name, number in explain_pb2.ExplainPart.items() if number and not name.endswith("SCORES")]
STORED_PARTS = [
    explain_pb2.EXPLAIN_PART_NEURONS,
    explain_pb2.EXPLAIN_PART_TOP_IMAGES,
    explain_pb2.EXPLAIN_PART_SIMILAR_IMAGES,
    explain_pb2.EXPLAIN_PART_CODE,
]
SIMILARITIES = (
    images_pb2.IMAGE_METRIC_CODE_COSINE,
    images_pb2.IMAGE_METRIC_CODE_INNER_PRODUCT,
    images_pb2.IMAGE_METRIC_RESIDUAL_COSINE,
)
RELOAD = admin_pb2.ReloadRequest()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A bundle, an index, tombstones of one image; what tells that image, and every image's file."""
    folder = tmp_path_factory.mktemp("take-down")
    corpus = write_corpus(folder / "pictures", IMAGE_COUNT)
    bundle, index, down = write_bundle(folder, Family.CLIP, tokens=Tokens.PATCHES), folder / "index", folder / "down"
    config = IndexConfig(shard_image_count=8, batch_images=4, thread_count=1, top_count=IMAGE_COUNT, spread_count=6)
    build_index(BuildJob(corpus=str(corpus), bundle=bundle, out=index, config=config), Notes())
    take_down(TakeDownJob(index=index, out=down, requests=[Request(what=f"{DOWN:04d}.png")]))
    with open_index(index) as reader:
        image, thumbnail = reader.image(DOWN), reader.thumbnail(DOWN)
        neurons = reader.code(DOWN).neuron_ids.tolist()
        digests = [reader.image(row).sha256 for row in range(IMAGE_COUNT)]
    data = [(folder / "pictures" / f"{row:04d}.png").read_bytes() for row in range(IMAGE_COUNT)]
    marks = (image.uri.encode(), image.sha256.encode(), thumbnail)
    return {
        "bundle": bundle,
        "index": index,
        "down": down,
        "marks": marks,
        "digests": digests,
        "data": data,
        "neurons": neurons,
    }


def name(current, world, *, down):
    tombstones = {"pictures": world["down"]} if down else {}
    save_current(current, bundles={"b": world["bundle"]}, indexes={"pictures": world["index"]}, tombstones=tombstones)


@asynccontextmanager
async def operated(world, current):
    name(current, world, down=False)
    async with (
        serving_artefacts(ArtefactSettings(current=current), settings=SETTINGS) as running,
        grpc.aio.insecure_channel(str(running.admin_address)) as orders,
    ):
        yield running.stub, admin_pb2_grpc.AdminServiceStub(orders)


async def everything(stub, world):
    """Every answer that may show an image of the corpus, asked about its neurons and about other images."""
    answers = []
    for row, (data, digest) in enumerate(zip(world["data"], world["digests"], strict=True)):
        if row not in OTHERS:
            continue
        live, stored = values_pb2.ImageQuery(data=data), values_pb2.ImageQuery(sha256=digest)
        asked = {"exemplars_per_neuron": 8, "similar_count": 20, "top_n": 8}
        for image, parts in ((live, PARTS), (stored, STORED_PARTS)):
            request = explain_pb2.ExplainRequest(image=image, parts=parts, include_thumbnails=True, **asked)
            answers.append(await stub.Explain(request))
            for metric in SIMILARITIES if image is live else SIMILARITIES[:1]:
                search = images_pb2.SearchImagesRequest(
                    image=image, similarity=metric, count=100, include_thumbnails=True
                )
                answers.append(await stub.SearchImages(search))
            items = [streams_pb2.ExplainImagesRequest(item=row, explain=request)]
            answers += [answer async for answer in stub.ExplainImages(iter(items))]
        answers.append(await stub.GetImage(images_pb2.GetImageRequest(sha256=digest)))
    for neuron_id in world["neurons"]:
        answers.append(
            await stub.GetNeuron(
                neurons_pb2.GetNeuronRequest(
                    neuron_id=neuron_id,
                    parts=[number for number in neurons_pb2.NeuronPart.values() if number],
                    exemplar_count=50,
                    include_thumbnails=True,
                )
            )
        )
        for query in ({"neuron_id": neuron_id}, {"expression": str(neuron_id)}, {"expression": f"!{neuron_id}"}):
            search = images_pb2.SearchImagesRequest(count=100, include_thumbnails=True, **query)
            answers.append(await stub.SearchImages(search))
    words = images_pb2.SearchImagesRequest(text="a red circle", count=100, include_thumbnails=True)
    answers.append(await stub.SearchImages(words))
    for query in ({"text": "a red circle"}, {"neuron_id": 1}):
        search = neurons_pb2.SearchNeuronsRequest(count=100, include_top_images=True, exemplars_per_neuron=12, **query)
        answers.append(await stub.SearchNeurons(search))
    answers.append(await stub.ListNeurons(neurons_pb2.ListNeuronsRequest(page_size=100)))
    answers.append(await stub.ListModels(models_pb2.ListModelsRequest()))
    return answers


def shown_by(answers, marks):
    """Kinds of answers that hold one of the marks."""
    return {type(answer).__name__ for answer in answers if any(mark in answer.SerializeToString() for mark in marks)}


async def test_no_answer_shows_an_image_that_was_taken_down(world, tmp_path):
    current, digest = tmp_path / "CURRENT", world["digests"][DOWN]
    live = explain_pb2.ExplainRequest(
        image=values_pb2.ImageQuery(data=world["data"][DOWN]), parts=STORED_PARTS, include_thumbnails=True
    )
    by_digest = values_pb2.ImageQuery(sha256=digest)
    about_it = (
        lambda stub: stub.Explain(explain_pb2.ExplainRequest(image=by_digest, parts=STORED_PARTS)),
        lambda stub: stub.GetImage(images_pb2.GetImageRequest(sha256=digest)),
        lambda stub: stub.SearchImages(images_pb2.SearchImagesRequest(image=by_digest)),
    )
    async with operated(world, current) as (stub, admin):
        # Warm: its code is cached, and every other answer has been given once.
        before = await stub.Explain(live)
        assert before.image.corpus_image.row == DOWN
        for ask in about_it:
            await ask(stub)
        found = shown_by(await everything(stub, world), world["marks"])
        assert found == {
            "ExplainResponse", "ExplainImagesResponse", "GetNeuronResponse", "SearchImagesResponse",
            "SearchNeuronsResponse",
        }  # fmt: skip
        name(current, world, down=True)
        assert (await admin.Reload(RELOAD)).switched
        for ask in about_it:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(stub)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert "was taken down from corpus 'pictures'" in caught.value.details()
        assert shown_by(await everything(stub, world), world["marks"]) == set()
        # Whoever has its bytes learns what lights up on them, as on any picture that is not of the corpus.
        after = await stub.Explain(live)
        assert after.provenance.generation != before.provenance.generation
        assert after.provenance.index_id == before.provenance.index_id
        assert not after.image.HasField("corpus_image")
        assert after.image.sha256 == digest
        assert after.code.neuron_ids == before.code.neuron_ids
        assert DOWN not in {match.image.row for match in after.similar_images}
        assert world["marks"][0] not in after.SerializeToString()
        # Its own upload is answered by digest from the cache, and stays no image of the corpus.
        again = await stub.Explain(explain_pb2.ExplainRequest(image=by_digest, parts=STORED_PARTS))
        assert not again.image.HasField("corpus_image")
        # And no step back shows it but the one that is meant.
        assert not (await admin.Reload(RELOAD)).switched
        name(current, world, down=False)
        assert (await admin.Reload(RELOAD)).switched
        assert (await stub.GetImage(images_pb2.GetImageRequest(sha256=digest))).image.row == DOWN


async def test_counts_leave_it_out(world, tmp_path):
    current = tmp_path / "CURRENT"
    async with operated(world, current) as (stub, admin):
        listed = await stub.ListNeurons(neurons_pb2.ListNeuronsRequest(order=neurons_pb2.NEURON_ORDER_DENSITY))
        neuron_id = listed.neurons[0].neuron_id
        profile = neurons_pb2.GetNeuronRequest(neuron_id=neuron_id, parts=[neurons_pb2.NEURON_PART_HISTOGRAM])
        search = images_pb2.SearchImagesRequest(expression=f"{neuron_id} | !{neuron_id}")
        counts = []
        for down in (False, True):
            name(current, world, down=down)
            await admin.Reload(RELOAD)
            histogram = (await stub.GetNeuron(profile)).histogram
            counts.append(((await stub.SearchImages(search)).total_count, sum(histogram.counts)))
    assert counts[0] == (IMAGE_COUNT, IMAGE_COUNT)
    assert counts[1] == (IMAGE_COUNT - 1, IMAGE_COUNT - 1)


class SlowReader(FakeReader):
    """An index whose search for similar images can be held."""

    def __init__(self, images):
        super().__init__(images)
        self.entered, self.gate = threading.Event(), threading.Event()

    def similar_images(self, *asked, **options):
        """As the fake's, once the gate is open."""
        self.entered.set()
        assert self.gate.wait(30)
        return super().similar_images(*asked, **options)


class Shop:
    """Opens one corpus of fakes; from `take_down` on without one of its images."""

    def __init__(self):
        self.engine = FakeEngine()
        self.reader = SlowReader({"red-1": png((250, 10, 10)), "red-2": png((200, 0, 0))})

    def take_down(self):
        """What an index with tombstones answers."""
        self.reader = SlowReader({"red-1": png((250, 10, 10))})
        self.reader.tombstones_id, self.reader.take_down_ids = "d" * 64, frozenset({"d" * 64})

    @asynccontextmanager
    async def __call__(self, before=None):
        yield Catalogue([fake_entry(self.engine, reader=self.reader)])

    def opener(self, settings, on_stage):
        """Itself, for the service."""
        self.engine.on_stage = on_stage
        return self


def uris(answer):
    return {match.image.uri for match in answer.similar_images}


async def test_the_reload_answers_once_the_last_answer_from_before_is_made():
    shop = Shop()
    old = shop.reader
    request = explain_pb2.ExplainRequest(
        image=values_pb2.ImageQuery(data=png((220, 4, 4))), parts=[explain_pb2.EXPLAIN_PART_SIMILAR_IMAGES]
    )
    async with (
        serving(engine=shop.engine, make_opener=shop.opener, settings=SETTINGS) as running,
        grpc.aio.insecure_channel(str(running.admin_address)) as orders,
    ):
        admin = admin_pb2_grpc.AdminServiceStub(orders)
        before = (await admin.GetStatus(admin_pb2.GetStatusRequest())).generation
        under_way = asyncio.ensure_future(running.stub.Explain(request))
        assert await asyncio.to_thread(old.entered.wait, 30)
        shop.take_down()
        reload = asyncio.ensure_future(admin.Reload(RELOAD))

        for _ in range(200):
            if (await admin.GetStatus(admin_pb2.GetStatusRequest())).generation != before:
                break
        # An answer that begins now is of the new generation, while the old one is still in hand.
        (model,) = (await running.stub.ListModels(models_pb2.ListModelsRequest())).models
        await admin.GetStatus(admin_pb2.GetStatusRequest())
        assert not reload.done()
        old.gate.set()
        late = await under_way
        assert uris(late) == {"red-1.png", "red-2.png"}
        assert late.provenance.generation != model.generation
        assert (await reload).switched


class AnyCall:
    """A call without a deadline."""

    def time_remaining(self):
        return None

    invocation_metadata = peer = set_trailing_metadata = write = abort = time_remaining


class FromTheIndex(Answers):
    """Answers at once, from the index alone."""

    def __init__(self):
        self.limits = ImageLimits()

    async def explain(self, catalogue, query, claim):
        generation = catalogue.generation(query.scope)
        return generation, explain(generation, query, StoredImage(0))


async def test_a_stream_that_is_read_slowly_gets_no_answer_from_before():
    shop = Shop()
    shop.reader.gate.set()
    more = asyncio.Event()

    async def messages():
        for item in range(4):
            if item == 2:
                await more.wait()
            yield streams_pb2.ExplainImagesRequest(
                item=item,
                explain=explain_pb2.ExplainRequest(
                    image=values_pb2.ImageQuery(sha256="0" * 64), parts=[explain_pb2.EXPLAIN_PART_SIMILAR_IMAGES]
                ),
            )

    async with Generations(shop, lambda catalogue: asyncio.sleep(0), lambda catalogue: None) as generations:
        await generations.load()
        servicer = PhospheneServicer(
            FromTheIndex(),
            generations,
            calls=CallsInHand(),
            uploads=UploadBudget(2**20, idle_s=1.0, clock=lambda: 0.0),
            bulk_image_limit=8,
            limit=None,
            metrics=Metrics(methods=("ExplainImages",), queue_capacity=8),
            on_stage=lambda stage, duration_s: None,
            clock=lambda: 0.0,
        )
        answers = servicer.ExplainImages(messages(), AnyCall())
        first = await anext(answers)
        assert uris(first.explanation) == {"red-2.png"}
        shop.take_down()
        shop.reader.gate.set()
        # Nobody has read the second answer, which is made.
        assert await generations.load()
        more.set()
        rest = {answer.item: answer async for answer in answers}
    assert rest[1].status.code == code_pb2.UNAVAILABLE
    assert "ask it again" in rest[1].status.message
    assert not rest[1].HasField("explanation")
    for item in (2, 3):
        assert rest[item].HasField("explanation")
        assert uris(rest[item].explanation) == set()
