"""Replies: what a caller can tell apart, such as a zero from a value that is not known."""

import dataclasses

import pytest

from index.values import NameSource, NeuronName, NeuronRow
from phosphene.v1 import values_pb2
from service.generation import Generation
from service.values import ActiveNeuron, Explanation, NeuronView, QueriedImage
from service.wire import replies
from tests.fakes import FakeEngine, fake_entry

QUERIED = QueriedImage(sha256="a" * 64, width=8, height=8, drafted=False, corpus_image=None)
ALIVE = NeuronRow(
    neuron_id=0, firing_count=3, density=0.5, mean=1.5, std=0.0, maximum=2.0, quantiles=(), label_entropy=0.0, names=()
)


@pytest.fixture
def generation():
    bundle, _ = fake_entry(FakeEngine(), corpora=())
    return Generation(bundle=bundle, corpus=None, id="g")


def summary_of(generation, row, **active):
    shown = ActiveNeuron(NeuronView(neuron_id=0, row=row), 0.0, **active)
    response = replies.explain_response(generation, Explanation(image=QUERIED, engine="torch", neurons=(shown,)))
    (neuron,) = response.neurons
    assert neuron.HasField("neuron")
    assert neuron.HasField("quantile") is ("quantile" in active)
    return {field.name: value for field, value in neuron.neuron.ListFields()}


def test_neuron_0_is_there_without_a_corpus(generation):
    assert summary_of(generation, None) == {}


def test_what_is_zero_is_told_and_what_is_not_known_is_not(generation):
    known = {"density", "maximum", "mean", "label_entropy", "is_dense", "in_dense_cluster", "is_sensitive"}
    assert summary_of(generation, ALIVE, quantile=0.0).keys() == known
    scored = dataclasses.replace(ALIVE, label_entropy=None, monosemanticity=0.0)
    assert summary_of(generation, scored).keys() == known - {"label_entropy"} | {"monosemanticity"}
    dead = dataclasses.replace(ALIVE, firing_count=0, density=0.0, mean=0.0, maximum=0.0)
    assert summary_of(generation, dead).keys() == known - {"maximum", "mean"}


def test_the_first_name_is_the_one_of_a_list(generation):
    names = tuple(NeuronName(name=name, score=0.5, margin=0.25, source=NameSource.LABEL) for name in ("dog", "cat"))
    name = summary_of(generation, dataclasses.replace(ALIVE, names=names))["name"]
    assert (name.name, name.score, name.margin) == ("dog", 0.5, 0.25)
    assert name.source == values_pb2.NAME_SOURCE_LABEL


def test_parts_that_were_not_asked_for_are_absent(generation):
    response = replies.explain_response(generation, Explanation(image=QUERIED, engine="torch"))
    assert {field.name for field, _ in response.ListFields()} == {"provenance", "image"}
