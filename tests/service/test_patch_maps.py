"""Patch maps over a real channel: of every listed exemplar where they are asked for, in the frame of its own image."""

import io
from dataclasses import replace

import pytest
from PIL import Image

from phosphene.preprocessing import ExactSize, ShortestEdge
from phosphene.v1 import explain_pb2, images_pb2, models_pb2, neurons_pb2, values_pb2
from tests.fakes import CORPUS, FakeEngine, FakeReader, fake_entry, png
from tests.service.conftest import serving

HALF_RED = "red-half"


def half_red():
    """An image that is red on its left half and black on its right."""
    stream = io.BytesIO()
    picture = Image.new("RGB", (16, 16), (0, 0, 0))
    picture.paste((255, 0, 0), (0, 0, 8, 16))
    picture.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
async def mapped():
    engine = FakeEngine()
    reader = FakeReader({HALF_RED: half_red()} | CORPUS)
    async with serving([fake_entry(engine, reader=reader)], engine=engine) as service:
        yield service


def all_exemplars(answer):
    match answer:
        case explain_pb2.ExplainResponse():
            return [e for listed in (*answer.neurons, *answer.nearest_neurons) for e in listed.top_images]
        case neurons_pb2.GetNeuronResponse():
            return [*answer.top_images, *answer.spread_images]
        case neurons_pb2.SearchNeuronsResponse():
            return [e for match in answer.neurons for e in match.top_images]
        case images_pb2.SearchImagesResponse():
            return list(answer.images)


QUESTIONS = {
    "Explain": explain_pb2.ExplainRequest(
        image=values_pb2.ImageQuery(data=png((250, 0, 0))),
        parts=[explain_pb2.EXPLAIN_PART_TOP_IMAGES, explain_pb2.EXPLAIN_PART_NEAREST_NEURONS],
        nearest_count=2,
    ),
    "GetNeuron": neurons_pb2.GetNeuronRequest(
        neuron_id=0, parts=[neurons_pb2.NEURON_PART_TOP_IMAGES, neurons_pb2.NEURON_PART_SPREAD_IMAGES]
    ),
    "SearchNeurons": neurons_pb2.SearchNeuronsRequest(text="red", include_top_images=True, count=1),
    "SearchImages": images_pb2.SearchImagesRequest(neuron_id=0),
}


@pytest.mark.parametrize("method", QUESTIONS)
async def test_maps_come_where_they_are_asked_for_alone(mapped, method):
    request = QUESTIONS[method]
    listed = all_exemplars(await getattr(mapped.stub, method)(request))
    assert listed
    assert not any(exemplar.HasField("patch_map") for exemplar in listed)
    request = type(request).FromString(request.SerializeToString())
    request.include_patch_maps = True
    listed = all_exemplars(await getattr(mapped.stub, method)(request))
    for exemplar in listed:
        drawn = exemplar.patch_map
        assert (drawn.grid.row_count, drawn.grid.column_count, len(drawn.shares)) == (2, 2, 4)
        assert max(drawn.shares) == 255
        region = drawn.grid.region
        assert (region.left, region.top, region.right, region.bottom) == (0, 0, 1, 1)
    halves = [exemplar.patch_map.shares for exemplar in listed if exemplar.image.uri == f"{HALF_RED}.png"]
    assert halves
    assert set(halves) == {bytes([255, 0, 255, 0])}


async def test_a_search_by_no_neuron_has_no_maps(mapped):
    for query in ({"expression": "0"}, {"image": values_pb2.ImageQuery(data=png((250, 0, 0)))}):
        answer = await mapped.stub.SearchImages(images_pb2.SearchImagesRequest(include_patch_maps=True, **query))
        assert answer.images
        assert not any(match.HasField("patch_map") for match in answer.images)


async def test_an_index_without_maps_says_so_and_answers_without():
    class Unmapped(FakeReader):
        patch_grid = None

        def patch_map(self, row, neuron_id):
            return None

    engine = FakeEngine()
    async with serving([fake_entry(engine, reader=Unmapped(CORPUS))], engine=engine) as service:
        model = (await service.stub.GetModel(models_pb2.GetModelRequest())).model
        assert not model.corpora[0].patch_maps
        request = neurons_pb2.GetNeuronRequest(
            neuron_id=0, parts=[neurons_pb2.NEURON_PART_TOP_IMAGES], include_patch_maps=True
        )
        answer = await service.stub.GetNeuron(request)
        assert not answer.top_images[0].HasField("patch_map")


async def test_the_grid_of_an_explanation_covers_what_the_crop_keeps():
    engine = FakeEngine()
    bundle, corpora = fake_entry(engine)
    cropping = replace(bundle.preprocessing, resize=ShortestEdge(pixels=8), crop=ExactSize(height=8, width=8))
    entry = (replace(bundle, preprocessing=cropping), corpora)
    async with serving([entry], engine=engine) as service:
        request = explain_pb2.ExplainRequest(
            image=values_pb2.ImageQuery(data=png((250, 0, 0), width=32, height=16)),
            parts=[explain_pb2.EXPLAIN_PART_PATCH_ACTIVATIONS],
        )
        grid = (await service.stub.Explain(request)).grid
        assert (grid.row_count, grid.column_count) == (2, 2)
        region = grid.region
        assert (region.left, region.top, region.right, region.bottom) == (0.25, 0, 0.75, 1)
        model = (await service.stub.GetModel(models_pb2.GetModelRequest())).model
        assert model.corpora[0].patch_maps
        assert not model.grid.HasField("region")
