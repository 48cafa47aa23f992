"""Requests that ask for too much: refused by their numbers, and read no further than that takes."""

import tracemalloc

import pytest

from phosphene.errors import InputError, NotFound
from phosphene.v1 import explain_pb2, images_pb2, neurons_pb2, values_pb2
from service.outcomes import outcome_of
from service.queries import ExplainPart
from service.wire.requests import explain_query, image_search, neuron_query, neuron_search

MANY = 2**17
IMAGE = values_pb2.ImageQuery(sha256="a" * 64)
TOP_IMAGES = explain_pb2.EXPLAIN_PART_TOP_IMAGES
EVERY_EXPLAIN_PART = [number for number in explain_pb2.ExplainPart.values() if number]


def explain(**fields):
    return explain_pb2.ExplainRequest(image=IMAGE, **fields)


@pytest.mark.parametrize(
    ("read", "request_", "field"),
    [
        (explain_query, explain(parts=[explain_pb2.EXPLAIN_PART_NEURONS] * MANY), "parts"),
        (explain_query, explain(parts=range(2**20, 2**20 + MANY)), "parts"),
        (neuron_query, neurons_pb2.GetNeuronRequest(neuron_id=0, parts=[1] * MANY), "parts"),
        (image_search, images_pb2.SearchImagesRequest(image=IMAGE, only_neuron_ids=[2] * MANY), "only_neuron_ids"),
    ],
)
def test_a_long_list_is_refused_by_its_length_alone(read, request_, field):
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=f"{field} has {MANY} .*the limit is 64") as caught:
            read(request_)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.field == field
    assert peak_bytes < MANY


def test_64_parts_are_read_whatever_their_order_and_repetition():
    query = explain_query(explain(parts=(EVERY_EXPLAIN_PART * 8)[::-1]))
    assert query.parts == frozenset(ExplainPart)


def test_a_few_unknown_values_stand_for_all():
    with pytest.raises(InputError, match="value 1000, 1001, 1002, 1003, …, which names nothing here; known are 1, 2"):
        explain_query(explain(parts=range(1063, 999, -1)))
    with pytest.raises(InputError, match="value 0, 1001, which"):
        explain_query(explain(parts=[1001, 0, 1001]))


@pytest.mark.parametrize(
    ("read", "request_", "asked"),
    [
        (explain_query, explain(parts=[TOP_IMAGES], top_n=65, exemplars_per_neuron=128), 8320),
        (explain_query, explain(parts=EVERY_EXPLAIN_PART, top_n=50, nearest_count=50, exemplars_per_neuron=82), 8212),
        (
            neuron_search,
            neurons_pb2.SearchNeuronsRequest(neuron_id=0, include_top_images=True, count=100, exemplars_per_neuron=82),
            8200,
        ),
    ],
)
def test_more_images_than_an_answer_may_list_are_refused_with_the_numbers(read, request_, asked):
    with pytest.raises(InputError, match=f"list {asked} images; the limit is 8192, and 1024 with thumbnails") as caught:
        read(request_)
    assert caught.value.field == "exemplars_per_neuron"


@pytest.mark.parametrize(
    "fields", [{"top_n": 100}, {"nearest_count": 100}, {"exemplars_per_neuron": 128}, {"similar_count": 100}]
)
def test_the_most_of_each_field_is_no_more_than_an_answer_may_list(fields):
    assert explain_query(explain(parts=EVERY_EXPLAIN_PART, **fields))


def test_images_that_are_not_asked_for_do_not_count():
    assert explain_query(explain(top_n=100, exemplars_per_neuron=128))
    assert explain_query(explain(parts=[TOP_IMAGES], top_n=64, nearest_count=100, exemplars_per_neuron=128))
    assert neuron_search(neurons_pb2.SearchNeuronsRequest(neuron_id=0, count=100, exemplars_per_neuron=128))


class Endless(str):
    """A text of which no caller has the time to walk the whole."""

    __slots__ = ()

    def __iter__(self):
        raise AssertionError("walked from end to end")


def test_a_status_reads_no_more_of_a_text_than_it_shows():
    for name in (Endless("n" * 5000), Endless("\n" * 5000), Endless("é" * 5000), Endless("short")):
        outcome = outcome_of(NotFound("no such bundle", field="bundle", name=name), request_id="r1")
        (resource,) = outcome.details
        shown = resource.resource_name
        assert len(shown.encode()) <= 200
        assert shown.endswith("…") is (len(name) > 200)
        assert shown.rstrip("…").strip() in name
