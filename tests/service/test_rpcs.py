"""Every method over a real channel; what the fakes do can be worked out by hand."""

import asyncio
from dataclasses import replace

import grpc
import pytest

from index.values import NameSource, NeuronName
from phosphene.engine import EngineName, Want
from phosphene.images import image_sha256
from phosphene.v1 import explain_pb2, images_pb2, models_pb2, neurons_pb2, values_pb2
from tests.fakes import CORPUS, NEURON_COUNT, FakeEngine, FakeReader, fake_entry, png
from tests.service.conftest import alive, serving

RED, WHITE = CORPUS["red-1"], CORPUS["white-1"]
ALL_PARTS = [number for number in explain_pb2.ExplainPart.values() if number]


def live(data):
    return values_pb2.ImageQuery(data=data)


def stored(data):
    return values_pb2.ImageQuery(sha256=image_sha256(data))


async def test_explain_gives_neurons_alone_unless_told(running):
    answer = await running.stub.Explain(explain_pb2.ExplainRequest(image=live(png((255, 128, 0)))))
    assert [active.neuron.neuron_id for active in answer.neurons] == [0, 1, 3]
    assert [round(active.activation, 2) for active in answer.neurons] == [1.0, 0.5, 0.5]
    assert not answer.HasField("fidelity")
    assert not answer.HasField("grid")
    assert not answer.HasField("code")
    for part in (answer.nearest_neurons, answer.similar_images, answer.scores):
        assert not part
    assert not answer.neurons[0].top_images
    assert running.engine.wants == [Want()]


async def test_explain_gives_every_part(running):
    data = png((255, 128, 0), width=24, height=12)
    answer = await running.stub.Explain(explain_pb2.ExplainRequest(image=live(data), parts=ALL_PARTS))
    assert (answer.image.sha256, answer.image.width, answer.image.height) == (image_sha256(data), 24, 12)
    assert not answer.image.HasField("corpus_image")
    provenance = answer.provenance
    assert (provenance.bundle, provenance.corpus, provenance.site) == ("colours", "swatches", "block 1, patches")
    assert (provenance.bundle_id, provenance.code_id, provenance.index_id) == ("b" * 64, "c" * 64, "1" * 64)
    assert provenance.generation
    assert provenance.service_version
    assert answer.fidelity.fvu == 0.25
    assert answer.fidelity.explained_variance == 0.75
    assert answer.fidelity.HasField("cosine")
    red = answer.neurons[0]
    assert red.neuron.name.name == "red"
    assert red.neuron.density == pytest.approx(4 / 6)
    assert red.quantile == pytest.approx(2 / 4)  # two reds are below 255, two whites equal
    assert (answer.grid.row_count, answer.grid.column_count) == (2, 2)
    assert list(red.patch_activations) == pytest.approx([1.0] * 4)
    assert [exemplar.image.label for exemplar in red.top_images] == ["white", "white", "red", "red"]
    # residual (1, .5, 0, .5) less the bias .1
    assert [near.neuron.neuron_id for near in answer.nearest_neurons][:3] == [0, 1, 3]
    assert answer.nearest_neurons[0].cosine == pytest.approx(0.9 / (0.81 + 2 * 0.402**2 + 0.01) ** 0.5, abs=0.01)
    assert answer.similar_images[0].score <= 1
    assert answer.similar_images[0].shared_neuron_ids
    assert {score.name for score in answer.scores} == {"dark", "light"}
    assert list(answer.code.neuron_ids) == [0, 1, 3]
    assert list(answer.code.activations) == pytest.approx([active.activation for active in answer.neurons])


async def test_counts_cut_every_list(running):
    request = explain_pb2.ExplainRequest(
        image=live(WHITE),
        parts=ALL_PARTS,
        top_n=2,
        nearest_count=1,
        exemplars_per_neuron=2,
        similar_count=1,
        score_count=1,
        include_thumbnails=True,
    )
    answer = await running.stub.Explain(request)
    assert len(answer.neurons) == 2
    assert len(answer.nearest_neurons) == len(answer.similar_images) == len(answer.scores) == 1
    assert [len(active.top_images) for active in answer.neurons] == [2, 2]
    assert answer.neurons[0].top_images[0].image.thumbnail.startswith(b"\xff\xd8")
    assert answer.similar_images[0].image.thumbnail.startswith(b"\xff\xd8")
    assert len(answer.code.neuron_ids) == 4  # the code is whole


async def test_an_image_of_the_corpus_never_finds_itself_or_its_copies(running):
    for image in (live(WHITE), stored(WHITE)):
        answer = await running.stub.Explain(
            explain_pb2.ExplainRequest(image=image, parts=[explain_pb2.EXPLAIN_PART_SIMILAR_IMAGES], similar_count=100)
        )
        assert answer.image.corpus_image.label == "white"
        assert [match.image.label for match in answer.similar_images].count("white") == 0
        assert len(answer.similar_images) == 4


async def test_explain_by_digest_equals_explain_by_bytes_without_the_engine(running):
    parts = [
        explain_pb2.EXPLAIN_PART_NEURONS,
        explain_pb2.EXPLAIN_PART_TOP_IMAGES,
        explain_pb2.EXPLAIN_PART_SIMILAR_IMAGES,
        explain_pb2.EXPLAIN_PART_CODE,
    ]
    by_bytes = await running.stub.Explain(explain_pb2.ExplainRequest(image=live(RED), parts=parts))
    run_count = len(running.engine.batch_sizes)
    by_digest = await running.stub.Explain(explain_pb2.ExplainRequest(image=stored(RED), parts=parts))
    assert by_digest == by_bytes
    assert len(running.engine.batch_sizes) == run_count


async def test_fidelity_by_digest_holds_only_what_the_index_stored(running):
    answer = await running.stub.Explain(
        explain_pb2.ExplainRequest(image=stored(CORPUS["blue-1"]), parts=[explain_pb2.EXPLAIN_PART_FIDELITY])
    )
    assert answer.fidelity.fvu == pytest.approx(0.03)
    assert not answer.fidelity.HasField("cosine")
    assert not answer.fidelity.HasField("residual_norm")
    assert not answer.neurons


async def test_a_bundle_without_a_corpus_still_explains():
    engine = FakeEngine()
    async with serving([fake_entry(engine, corpora=())], engine=engine) as running:
        answer = await running.stub.Explain(explain_pb2.ExplainRequest(image=live(RED)))
    assert answer.provenance.corpus == ""
    assert answer.provenance.index_id == ""
    assert [active.neuron.neuron_id for active in answer.neurons] == [0, 3]
    assert not answer.neurons[0].HasField("quantile")
    assert not answer.neurons[0].neuron.HasField("density")
    assert not answer.neurons[0].neuron.HasField("is_dense")


async def test_get_neuron(running):
    parts = [number for number in neurons_pb2.NeuronPart.values() if number]
    answer = await running.stub.GetNeuron(neurons_pb2.GetNeuronRequest(neuron_id=2, parts=parts, exemplar_count=3))
    assert answer.neuron.name.name == "blue"
    assert (answer.statistics.firing_count, answer.statistics.image_count) == (3, 6)
    assert [quantile.level for quantile in answer.statistics.quantiles] == [0, 1]
    assert [exemplar.image.label for exemplar in answer.top_images] == ["white", "white", "blue"]
    assert answer.spread_images
    assert [match.neuron.neuron_id for match in answer.similar_neurons] == [0, 1, 3, 4, 5]
    # blue is 1, 1 and 230 / 255
    assert list(answer.histogram.edges) == pytest.approx([place / 10 for place in range(11)])
    assert list(answer.histogram.counts) == [0] * 9 + [3]
    assert [(other.neuron.neuron_id, other.image_count) for other in answer.co_active_neurons] == [
        (1, 3),
        (3, 3),
        (0, 2),
    ]
    assert [other.npmi for other in answer.co_active_neurons] == pytest.approx([1, 1, 2 / 3])
    assert answer.neuron.monosemanticity == 0.2
    assert answer.neuron.HasField("is_dense")
    assert not answer.neuron.is_dense
    assert next(other for other in answer.co_active_neurons if other.neuron.neuron_id == 3).neuron.is_dense


async def test_get_neuron_cuts_the_histogram_and_the_co_active_neurons_as_asked(running):
    parts = [neurons_pb2.NEURON_PART_HISTOGRAM, neurons_pb2.NEURON_PART_CO_ACTIVE_NEURONS]
    answer = await running.stub.GetNeuron(
        neurons_pb2.GetNeuronRequest(neuron_id=0, parts=parts, bin_count=2, co_active_count=1)
    )
    # red is 1, 1, 250 / 255 and 200 / 255
    assert (list(answer.histogram.edges), list(answer.histogram.counts)) == ([0, 0.5, 1], [0, 4])
    assert sum(answer.histogram.counts) == answer.statistics.firing_count
    assert len(answer.co_active_neurons) == 1
    dead = await running.stub.GetNeuron(neurons_pb2.GetNeuronRequest(neuron_id=5, parts=parts))
    assert not dead.HasField("histogram")
    assert not dead.co_active_neurons
    assert not dead.neuron.HasField("monosemanticity")


async def test_get_neuron_gives_no_more_than_asked_and_says_a_dead_one_is_dead(running):
    answer = await running.stub.GetNeuron(neurons_pb2.GetNeuronRequest(neuron_id=5))
    assert answer.statistics.firing_count == 0
    assert answer.neuron.density == 0
    assert not answer.neuron.HasField("maximum")
    assert not answer.HasField("histogram")
    for part in (
        answer.top_images,
        answer.spread_images,
        answer.similar_neurons,
        answer.names,
        answer.co_active_neurons,
    ):
        assert not part


async def test_list_neurons_pages_through_everything_once(running):
    seen, token = [], ""
    while True:
        page = await running.stub.ListNeurons(
            neurons_pb2.ListNeuronsRequest(order=neurons_pb2.NEURON_ORDER_DENSITY, page_size=4, page_token=token)
        )
        assert page.total_count == NEURON_COUNT
        seen += [summary.neuron_id for summary in page.neurons]
        token = page.next_page_token
        if not token:
            break
    assert sorted(seen) == list(range(NEURON_COUNT))
    assert seen[0] == 3  # every swatch is bright enough


async def test_list_neurons_filters(running):
    request = neurons_pb2.ListNeuronsRequest(
        filter=neurons_pb2.NeuronFilter(min_density=0.1, max_density=0.9, name_contains="RE", alive_only=True)
    )
    page = await running.stub.ListNeurons(request)
    assert [summary.neuron_id for summary in page.neurons] == [0, 1]  # red, green
    assert page.next_page_token == ""


async def test_list_neurons_of_the_dense_cluster_and_the_others(running):
    listed = {}
    for is_in in (True, False):
        chosen = neurons_pb2.NeuronFilter(in_dense_cluster=is_in)
        page = await running.stub.ListNeurons(neurons_pb2.ListNeuronsRequest(filter=chosen, page_size=1))
        again = neurons_pb2.ListNeuronsRequest(filter=chosen, page_size=9, page_token=page.next_page_token)
        found = [*page.neurons, *(await running.stub.ListNeurons(again)).neurons]
        assert [summary.in_dense_cluster for summary in found] == [is_in] * page.total_count
        listed[is_in] = [summary.neuron_id for summary in found]
    assert listed == {True: [2, 3], False: [0, 1, 4, 5]}


async def test_search_neurons_by_text_and_by_neuron(running):
    by_text = await running.stub.SearchNeurons(
        neurons_pb2.SearchNeuronsRequest(text="green", count=2, include_top_images=True, exemplars_per_neuron=1)
    )
    assert by_text.metric == neurons_pb2.NEURON_METRIC_TEXT_EXEMPLARS
    assert by_text.neurons[0].neuron.neuron_id == 1
    assert len(by_text.neurons) == 2
    assert len(by_text.neurons[0].top_images) == 1
    by_neuron = await running.stub.SearchNeurons(neurons_pb2.SearchNeuronsRequest(neuron_id=0))
    assert by_neuron.metric == neurons_pb2.NEURON_METRIC_DIRECTIONS
    assert 0 not in [match.neuron.neuron_id for match in by_neuron.neurons]
    assert not by_neuron.neurons[0].top_images


async def test_search_images_by_image_by_digest_and_by_neuron(running):
    by_image = await running.stub.SearchImages(images_pb2.SearchImagesRequest(image=live(RED), count=2))
    by_digest = await running.stub.SearchImages(images_pb2.SearchImagesRequest(image=stored(RED), count=2))
    assert by_image == by_digest
    assert by_image.metric == images_pb2.IMAGE_METRIC_CODE_COSINE
    assert by_image.images[0].image.uri == "red-2.png"
    by_neuron = await running.stub.SearchImages(
        images_pb2.SearchImagesRequest(neuron_id=2, count=1, include_thumbnails=True)
    )
    assert by_neuron.metric == images_pb2.IMAGE_METRIC_ACTIVATION
    assert by_neuron.images[0].image.label == "white"
    assert by_neuron.images[0].score == pytest.approx(1.0)
    assert by_neuron.images[0].image.thumbnail


async def test_search_images_by_expression(running):
    answer = await running.stub.SearchImages(
        images_pb2.SearchImagesRequest(expression="0>0.8 & !1 | 2", count=2, include_thumbnails=True)
    )
    assert answer.metric == images_pb2.IMAGE_METRIC_EXPRESSION
    assert answer.total_count == 4  # red-1, blue, both whites
    assert [match.image.uri for match in answer.images] == ["white-1.png", "white-2.png"]
    assert [match.score for match in answer.images] == pytest.approx([2, 2])
    assert answer.images[0].image.thumbnail
    assert not answer.images[0].shared_neuron_ids
    assert not answer.HasField("code_search")
    none = await running.stub.SearchImages(images_pb2.SearchImagesRequest(expression="4"))
    assert none.HasField("total_count")
    assert (none.total_count, list(none.images)) == (0, [])


async def test_search_images_by_the_similarity_that_is_asked_for(running):
    def ask(image, **options):
        return running.stub.SearchImages(images_pb2.SearchImagesRequest(image=image, **options))

    products = await ask(stored(RED), similarity=images_pb2.IMAGE_METRIC_CODE_INNER_PRODUCT)
    assert products.metric == images_pb2.IMAGE_METRIC_CODE_INNER_PRODUCT
    # White has the red of the query, and more light.
    assert products.images[0].image.label == "white"
    assert products.recall == 1.0
    for image in (live(RED), stored(RED)):
        near = await ask(image, similarity=images_pb2.IMAGE_METRIC_RESIDUAL_COSINE, count=3)
        assert near.metric == images_pb2.IMAGE_METRIC_RESIDUAL_COSINE
        assert near.recall == pytest.approx(0.9)
        assert not near.HasField("code_search")
        assert near.images[0].image.uri == "red-2.png"
        assert len(near.images) == 3
    whole = await ask(stored(RED), count=1)
    parts = [await ask(stored(RED), only_neuron_ids=[neuron]) for neuron in range(4)]
    same = [match.score for part in parts for match in part.images if match.image == whole.images[0].image]
    assert sum(same) == pytest.approx(whole.images[0].score)
    assert all(part.metric == images_pb2.IMAGE_METRIC_CODE_COSINE for part in parts)


async def test_search_images_by_words(running):
    answer = await running.stub.SearchImages(images_pb2.SearchImagesRequest(text="blue", count=3))
    assert answer.metric == images_pb2.IMAGE_METRIC_TEXT_COSINE
    assert {match.image.label for match in answer.images} == {"blue", "white"}
    assert answer.recall == pytest.approx(0.8)
    assert not answer.HasField("code_search")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"neuron_id": 1, "similarity": images_pb2.IMAGE_METRIC_CODE_COSINE}, "similarity"),
        ({"image": stored(RED), "similarity": images_pb2.IMAGE_METRIC_ACTIVATION}, "similarity"),
        ({"image": stored(RED), "similarity": 77}, "similarity"),
        ({"text": "red", "only_neuron_ids": [1]}, "only_neuron_ids"),
        ({"image": stored(RED), "only_neuron_ids": range(65)}, "only_neuron_ids"),
        (
            {
                "image": stored(RED),
                "only_neuron_ids": [1],
                "similarity": images_pb2.IMAGE_METRIC_RESIDUAL_COSINE,
            },
            "only_neuron_ids",
        ),
        ({"text": "  "}, "text"),
    ],
)
async def test_a_similarity_that_does_not_fit_is_refused(running, options, field):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.SearchImages(images_pb2.SearchImagesRequest(**options))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in refused.value.details()


async def test_an_unknown_neuron_among_those_that_count_is_not_found(running):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.SearchImages(images_pb2.SearchImagesRequest(image=stored(RED), only_neuron_ids=[1, 999]))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_every_answer_about_an_image_says_what_encoded_that_image():
    engine = FakeEngine()
    engine.name = EngineName.ONNXRUNTIME_INT8
    bundle, corpora = fake_entry(engine)
    bundle = replace(bundle, facts=replace(bundle.facts, engine=EngineName.ONNXRUNTIME_INT8, engine_id="7" * 64))
    said = {}
    async with serving([(bundle, corpora)], engine=engine) as running:
        for name, query in {"stored": stored(RED), "sent": values_pb2.ImageQuery(data=png((250, 60, 70)))}.items():
            said[name] = {
                (await running.stub.Explain(explain_pb2.ExplainRequest(image=query))).provenance.engine,
                (await running.stub.SearchImages(images_pb2.SearchImagesRequest(image=query))).provenance.engine,
            }
        by_neuron = await running.stub.SearchImages(images_pb2.SearchImagesRequest(neuron_id=0))
    assert said == {"stored": {"torch"}, "sent": {"onnxruntime-int8"}}
    assert by_neuron.provenance.engine == "onnxruntime-int8"


async def test_answers_by_code_say_how_the_images_were_looked_for():
    engine, reader = FakeEngine(), FakeReader(CORPUS)
    reader.similar_recall, reader.left_out_neuron_ids = 0.75, (3, 5)
    async with serving([fake_entry(engine, reader=reader)], engine=engine) as running:
        found = await running.stub.SearchImages(images_pb2.SearchImagesRequest(image=stored(RED)))
        similar = await running.stub.Explain(
            explain_pb2.ExplainRequest(image=stored(RED), parts=[explain_pb2.EXPLAIN_PART_SIMILAR_IMAGES])
        )
        others = await running.stub.Explain(explain_pb2.ExplainRequest(image=stored(RED)))
        by_neuron = await running.stub.SearchImages(images_pb2.SearchImagesRequest(neuron_id=0))
    assert (found.code_search.recall, list(found.code_search.left_out_neuron_ids)) == (0.75, [3, 5])
    assert similar.code_search == found.code_search
    assert found.code_search.engine == found.engine == values_pb2.SEARCH_ENGINE_INDEX
    assert not found.HasField("total_count")
    for answer in (others, by_neuron):
        assert not answer.HasField("code_search")


async def test_get_image(running):
    answer = await running.stub.GetImage(images_pb2.GetImageRequest(sha256=image_sha256(RED)))
    assert answer.image.uri == "red-1.png"
    assert answer.image.thumbnail.startswith(b"\xff\xd8")


async def test_models_tell_what_can_be_asked():
    engine = FakeEngine()
    entries = [fake_entry(engine, corpora=("a", "b")), fake_entry(engine, name="plain", has_text_tower=False)]
    async with serving(entries, engine=engine) as running:
        answer = await running.stub.ListModels(models_pb2.ListModelsRequest())
        default = await running.stub.GetModel(models_pb2.GetModelRequest())
        plain = await running.stub.GetModel(models_pb2.GetModelRequest(bundle="plain"))
    assert [model.bundle for model in answer.models] == ["colours", "plain"]
    assert default.model == answer.models[0]
    assert plain.model == answer.models[1]
    model = default.model
    assert [corpus.corpus for corpus in model.corpora] == ["a", "b"]
    assert model.corpora[0].text_search
    assert not plain.model.corpora[0].text_search
    assert (model.neuron_count, model.k, model.score_count) == (NEURON_COUNT, 4, 2)
    assert model.selection == models_pb2.SELECTION_TOP_K
    assert model.readout == models_pb2.READOUT_KIND_SIMILARITY
    assert plain.model.readout == models_pb2.READOUT_KIND_NONE
    assert (model.grid.row_count, model.site.text, model.site.block) == (2, "block 1, patches", 1)
    assert model.limits.byte_limit == 16 * 2**20
    assert model.corpora[0].quarantined_image_count == 1


async def test_bundle_and_corpus_are_chosen_by_name():
    engine = FakeEngine()
    entries = [fake_entry(engine), fake_entry(engine, name="other", corpora=("x", "y"))]
    async with serving(entries, engine=engine) as running:
        answer = await running.stub.GetNeuron(neurons_pb2.GetNeuronRequest(bundle="other", corpus="y", neuron_id=0))
    assert (answer.provenance.bundle, answer.provenance.corpus) == ("other", "y")


async def test_concurrent_requests_each_get_their_own_answer(running):
    colours = [(red, green, 60) for red in range(60, 256, 30) for green in range(60, 256, 30)]
    answers = await asyncio.gather(
        *(
            running.stub.Explain(
                explain_pb2.ExplainRequest(image=live(png(colour)), parts=[explain_pb2.EXPLAIN_PART_CODE])
            )
            for colour in colours
        )
    )
    for colour, answer in zip(colours, answers, strict=True):
        code = dict(zip(answer.code.neuron_ids, answer.code.activations, strict=True))
        assert [code[0] * 255, code[1] * 255] == pytest.approx(colour[:2], abs=0.01)
    assert max(running.engine.batch_sizes) <= 32


async def test_neurons_that_show_one_thing_come_first(running):
    request = neurons_pb2.ListNeuronsRequest(order=neurons_pb2.NEURON_ORDER_MONOSEMANTICITY)
    listed = (await running.stub.ListNeurons(request)).neurons
    scores = [neuron.monosemanticity for neuron in listed if neuron.HasField("monosemanticity")]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) > 1


@pytest.mark.parametrize("source", NameSource)
async def test_every_source_of_names_has_a_word_in_the_contract(source):
    class Named(FakeReader):
        def _names(self, neuron_id):
            return (NeuronName(name="thing", score=0.5, margin=0.1, source=source),)

    engine = FakeEngine()
    async with serving([fake_entry(engine, reader=Named(CORPUS))], engine=engine) as service:
        answer = await service.stub.GetNeuron(neurons_pb2.GetNeuronRequest(neuron_id=0))
        assert values_pb2.NameSource.Name(answer.names[0].source) == f"NAME_SOURCE_{source.name}"


async def test_an_image_that_is_searched_by_is_held_once_while_the_device_works(running):
    request = images_pb2.SearchImagesRequest(image=live(RED)).SerializeToString()
    of_others = alive(images_pb2.SearchImagesRequest)
    running.engine.gate.clear()
    # Sent as bytes: what is found of such messages is the service's.
    search = running.channel.unary_unary("/phosphene.v1.PhospheneService/SearchImages")
    call = search(request)
    try:
        assert await asyncio.to_thread(running.engine.entered.acquire, timeout=30)
        assert alive(images_pb2.SearchImagesRequest) <= of_others
    finally:
        running.engine.gate.set()
    assert images_pb2.SearchImagesResponse.FromString(await call).images
