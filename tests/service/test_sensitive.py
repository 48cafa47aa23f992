"""Sensitive neurons and images over a real channel: hidden everywhere by default, shown where they are asked for."""

import grpc
import pytest
from google.protobuf.message import Message

from phosphene.images import image_sha256
from phosphene.v1 import explain_pb2, images_pb2, neurons_pb2, values_pb2
from tests.fakes import CORPUS, FakeEngine, FakeReader, fake_entry, png
from tests.service.conftest import serving, settings_with

BRIGHT = 3
ROWS = {name: row for row, name in enumerate(CORPUS)}
SENSITIVE_ROW = ROWS["red-1"]
EVERY_NEURON_PART = [number for number in neurons_pb2.NeuronPart.values() if number]
EVERY_EXPLAIN_PART = [number for number in explain_pb2.ExplainPart.values() if number]
LIVE = values_pb2.ImageQuery(data=png((250, 60, 70)))


def flagged_entry(engine, **changes):
    reader = FakeReader(CORPUS, sensitive_neurons=[BRIGHT], sensitive_rows=[SENSITIVE_ROW])
    reader.left_out_neuron_ids = (1, BRIGHT)
    return fake_entry(engine, reader=reader, **changes)


@pytest.fixture
async def flagged():
    engine = FakeEngine()
    async with serving([flagged_entry(engine)], engine=engine) as service:
        yield service


def named(message):
    """Every neuron id and every corpus row that a message names, at any depth."""
    neurons, rows = set(), set()
    for field, value in message.ListFields():
        for each in value if field.is_repeated else [value]:
            if isinstance(each, Message):
                more = named(each)
                neurons |= more[0]
                rows |= more[1]
            elif field.name in ("neuron_id", "neuron_ids", "shared_neuron_ids", "left_out_neuron_ids"):
                neurons.add(each)
    if message.DESCRIPTOR.name == "CorpusImage":
        rows.add(message.row)
    if message.DESCRIPTOR.name == "NeuronSummary":
        neurons.add(message.neuron_id)
    return neurons, rows


# What would be shown: a sensitive neuron, a sensitive image; and how many of them an answer says that it hides.
QUESTIONS = {
    "explain": ("Explain", explain_pb2.ExplainRequest(image=LIVE, parts=EVERY_EXPLAIN_PART), True, True, 2),
    "neuron": ("GetNeuron", neurons_pb2.GetNeuronRequest(neuron_id=0, parts=EVERY_NEURON_PART), True, True, 2),
    "neurons": ("ListNeurons", neurons_pb2.ListNeuronsRequest(), True, False, 1),
    "search by text": ("SearchNeurons", neurons_pb2.SearchNeuronsRequest(text="bright", count=2), True, False, 1),
    "search by neuron": (
        "SearchNeurons",
        neurons_pb2.SearchNeuronsRequest(neuron_id=0, include_top_images=True),
        True,
        True,
        1,  # The image is one of the neuron's.
    ),
    "images by neuron": ("SearchImages", images_pb2.SearchImagesRequest(neuron_id=0), False, True, 1),
    # The neuron is one that images share with the queried one.
    "images by code": ("SearchImages", images_pb2.SearchImagesRequest(image=LIVE), True, True, 2),
    "images by residual": (
        "SearchImages",
        images_pb2.SearchImagesRequest(image=LIVE, similarity=images_pb2.IMAGE_METRIC_RESIDUAL_COSINE),
        False,
        True,
        1,
    ),
    "images by words": ("SearchImages", images_pb2.SearchImagesRequest(text="red"), False, True, 1),
    "images by expression": ("SearchImages", images_pb2.SearchImagesRequest(expression="0"), False, True, 1),
}


@pytest.mark.parametrize("question", QUESTIONS)
async def test_what_is_sensitive_is_shown_where_it_is_asked_for_alone(flagged, question):
    method, request, has_neuron, has_image, hidden_count = QUESTIONS[question]
    answer = await getattr(flagged.stub, method)(request)
    neurons, rows = named(answer)
    assert BRIGHT not in neurons
    assert SENSITIVE_ROW not in rows
    asked = type(request).FromString(request.SerializeToString())
    asked.include_sensitive = True
    whole = await getattr(flagged.stub, method)(asked)
    neurons, rows = named(whole)
    assert (BRIGHT in neurons, SENSITIVE_ROW in rows) == (has_neuron, has_image)
    assert whole.hidden_count == 0
    assert answer.hidden_count == hidden_count
    assert answer.provenance.generation == whole.provenance.generation


async def test_places_that_are_hidden_are_filled_with_what_comes_next(flagged):
    request = images_pb2.SearchImagesRequest(neuron_id=0, count=3)
    shown = (await flagged.stub.SearchImages(request)).images
    request.include_sensitive = True
    whole = (await flagged.stub.SearchImages(request)).images
    assert SENSITIVE_ROW in {match.image.row for match in whole}
    assert len(shown) == len(whole) == 3
    request = neurons_pb2.SearchNeuronsRequest(neuron_id=0, count=4)
    assert len((await flagged.stub.SearchNeurons(request)).neurons) == 4


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GetNeuron", neurons_pb2.GetNeuronRequest(neuron_id=BRIGHT)),
        ("SearchNeurons", neurons_pb2.SearchNeuronsRequest(neuron_id=BRIGHT)),
        ("SearchImages", images_pb2.SearchImagesRequest(neuron_id=BRIGHT)),
        # By what is the same question in other words, too.
        ("SearchImages", images_pb2.SearchImagesRequest(expression=f"0 & !({BRIGHT}<0.5 | 1)")),
        ("SearchImages", images_pb2.SearchImagesRequest(image=LIVE, only_neuron_ids=[0, BRIGHT])),
        ("GetImage", images_pb2.GetImageRequest(sha256=image_sha256(CORPUS["red-1"]))),
        (
            "Explain",
            explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(sha256=image_sha256(CORPUS["red-1"]))),
        ),
    ],
)
async def test_what_is_asked_for_by_itself_is_not_found(flagged, method, request_):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(flagged.stub, method)(request_)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert "is sensitive; ask for it with include_sensitive" in refused.value.details()
    request_ = type(request_).FromString(request_.SerializeToString())
    request_.include_sensitive = True
    await getattr(flagged.stub, method)(request_)


async def test_neurons_that_would_not_be_listed_are_not_counted_as_hidden(flagged):
    """The third of neuron 0's likes is sensitive, and two are asked for."""
    search = await flagged.stub.SearchNeurons(neurons_pb2.SearchNeuronsRequest(neuron_id=0, count=2))
    part = [neurons_pb2.NEURON_PART_SIMILAR_NEURONS]
    profile = await flagged.stub.GetNeuron(neurons_pb2.GetNeuronRequest(neuron_id=0, parts=part, similar_count=2))
    for answer, listed in ((search, search.neurons), (profile, profile.similar_neurons)):
        assert [match.neuron.neuron_id for match in listed] == [1, 2]
        assert answer.hidden_count == 0


@pytest.mark.parametrize("metric", ["IMAGE_METRIC_CODE_COSINE", "IMAGE_METRIC_RESIDUAL_COSINE"])
async def test_an_image_that_would_not_be_listed_is_not_counted_as_hidden(metric):
    """Copies of the queried image take no places of the answer; what comes after its last place counts for nothing."""
    engine = FakeEngine()
    corpus = CORPUS | {f"white-{copy}": CORPUS["white-1"] for copy in range(3, 6)}
    query = {"image": values_pb2.ImageQuery(data=CORPUS["white-1"]), "similarity": metric}
    async with serving([fake_entry(engine, reader=FakeReader(corpus))], engine=engine) as service:
        whole = await service.stub.SearchImages(images_pb2.SearchImagesRequest(count=4, **query))
    order = [match.image.row for match in whole.images]
    assert sorted(order) == [0, 1, 2, 3]
    reader = FakeReader(corpus, sensitive_rows=[order[2]])
    async with serving([fake_entry(engine, reader=reader)], engine=engine) as service:
        for count, listed, hidden_count in ((2, order[:2], 0), (3, [*order[:2], order[3]], 1), (9, None, 1)):
            found = await service.stub.SearchImages(images_pb2.SearchImagesRequest(count=count, **query))
            assert found.hidden_count == hidden_count
            assert [match.image.row for match in found.images] == (listed or [*order[:2], order[3]])


async def test_the_queried_image_is_no_answer_of_its_own_search(flagged):
    query = images_pb2.SearchImagesRequest(image=values_pb2.ImageQuery(data=CORPUS["red-1"]), count=2)
    assert (await flagged.stub.SearchImages(query)).hidden_count == 1  # The neuron that all of them share.


async def test_a_hidden_image_that_the_corpus_holds_twice_counts_once():
    engine = FakeEngine()
    reader = FakeReader(CORPUS, sensitive_rows=[ROWS["white-1"], ROWS["white-2"]])
    async with serving([fake_entry(engine, reader=reader)], engine=engine) as service:
        found = await service.stub.SearchImages(images_pb2.SearchImagesRequest(image=LIVE))
    assert found.hidden_count == 1


async def test_lists_of_what_is_sensitive_and_of_what_is_not(flagged):
    async def listed(**asked):
        chosen = neurons_pb2.NeuronFilter(is_sensitive=asked.pop("is_sensitive"))
        page = await flagged.stub.ListNeurons(neurons_pb2.ListNeuronsRequest(filter=chosen, **asked))
        return {neuron.neuron_id: neuron.is_sensitive for neuron in page.neurons}, page.hidden_count

    assert await listed(is_sensitive=True, include_sensitive=True) == ({BRIGHT: True}, 0)
    others = {neuron_id: False for neuron_id in range(6) if neuron_id != BRIGHT}
    for include in (True, False):
        assert await listed(is_sensitive=False, include_sensitive=include) == (others, 0)
    with pytest.raises(grpc.aio.AioRpcError, match="set both, or neither") as refused:
        await listed(is_sensitive=True)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_uploaded_copy_does_not_show_the_corpus_s_own(flagged):
    request = explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(data=CORPUS["red-1"]))
    answer = await flagged.stub.Explain(request)
    assert not answer.image.HasField("corpus_image")
    assert answer.hidden_count == 2  # The image, and the neuron that it excites.
    request.include_sensitive = True
    assert (await flagged.stub.Explain(request)).image.corpus_image.row == SENSITIVE_ROW


async def test_the_cache_gives_neither_answer_for_the_other():
    engine = FakeEngine()
    settings = settings_with(cache={"limit_bytes": 2**20})
    async with serving([flagged_entry(engine)], engine=engine, settings=settings) as service:
        request = explain_pb2.ExplainRequest(image=LIVE, parts=EVERY_EXPLAIN_PART)
        for include in (True, False, True, False):
            request.include_sensitive = include
            neurons, rows = named(await service.stub.Explain(request))
            assert (BRIGHT in neurons, SENSITIVE_ROW in rows) == (include, include)
        assert sum(engine.batch_sizes) == 1


async def test_a_page_token_is_of_one_of_both(flagged):
    request = neurons_pb2.ListNeuronsRequest(page_size=2)
    token = (await flagged.stub.ListNeurons(request)).next_page_token
    request.page_token = token
    assert (await flagged.stub.ListNeurons(request)).neurons
    request.include_sensitive = True
    with pytest.raises(grpc.aio.AioRpcError, match="page_token"):
        await flagged.stub.ListNeurons(request)


async def test_flags_make_another_generation(flagged):
    engine = FakeEngine()
    async with serving([fake_entry(engine)], engine=engine) as plain:
        request = neurons_pb2.ListNeuronsRequest()
        ids = {(await service.stub.ListNeurons(request)).provenance.generation for service in (plain, flagged)}
        assert len(ids) == 2
