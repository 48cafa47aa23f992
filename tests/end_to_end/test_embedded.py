"""The embedded default over real gRPC: the neurons that light up on a scene show what the scene shows."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

import phosphene
from embedded.concepts import FACTORS, values_of
from index.exemplars import ExemplarStore
from index.image_vectors import ImageVectors
from index.plan import plan_shards
from index.reader import IndexReader, open_index
from index.shards import open_shards
from index.text_naming import prepared_vocabulary, with_text_names
from index.text_search import mean_embedding
from index.values import ExemplarKind
from phosphene.client import Client
from phosphene.errors import InputError, NotFound
from tests.end_to_end.house import House, Value, top_exemplars

TOP_NEURONS, TOP_IMAGES = 5, 9
AGREEING_NEURONS, AGREEING_IMAGES = 3, 7
COMMON_SHARE = 0.3


def rare_values(truth: dict[str, frozenset[Value]]) -> frozenset[Value]:
    """Return the values that at most 30 % of the corpus shows."""
    counts = Counter(value for shown in truth.values() for value in shown)
    return frozenset(value for value, count in counts.items() if count <= COMMON_SHARE * len(truth))


def share_of_scenes_accounted_for(
    fired: dict[str, list[int]],
    held_out: dict[str, frozenset[Value]],
    exemplars: dict[int, list[str]],
    corpus: dict[str, frozenset[Value]],
) -> float:
    """Return the share of scenes with enough neurons whose exemplars share a rare value with the scene."""
    rare = rare_values(corpus)

    def agrees(neuron_id: int, shown: frozenset[Value]) -> bool:
        seen = Counter(value for uri in exemplars[neuron_id] for value in corpus[uri] & shown & rare)
        return max(seen.values(), default=0) >= AGREEING_IMAGES

    accounted = [sum(agrees(neuron, held_out[name]) for neuron in neurons) for name, neurons in fired.items()]
    return sum(count >= AGREEING_NEURONS for count in accounted) / len(accounted)


def test_neurons_show_what_the_scene_shows(
    client: Client,
    scenes_folder: Path,
    corpus_truth: dict[str, frozenset[Value]],
    held_out_truth: dict[str, frozenset[Value]],
) -> None:
    fired = {}
    for name in held_out_truth:
        answer = client.explain(scenes_folder / "held-out" / name, parts=["neurons"], top_n=TOP_NEURONS)
        fired[name] = [active.neuron.neuron_id for active in answer.neurons]
    exemplars = top_exemplars(client, {neuron for neurons in fired.values() for neuron in neurons}, TOP_IMAGES)
    uris = list(corpus_truth)
    shuffled = dict(zip(uris, random.Random(0).sample(uris, len(uris)), strict=True))
    control = {neuron: [shuffled[uri] for uri in images] for neuron, images in exemplars.items()}

    real = share_of_scenes_accounted_for(fired, held_out_truth, exemplars, corpus_truth)
    by_chance = share_of_scenes_accounted_for(fired, held_out_truth, control, corpus_truth)
    assert real >= 0.9
    assert by_chance <= real / 2


def test_live_codes_equal_the_index(client: Client, scenes_house: House, corpus_truth: dict[str, object]) -> None:
    for name in list(corpus_truth)[:: len(corpus_truth) // 20]:
        data = (scenes_house.corpus.parent / name).read_bytes()
        live = client.explain(data, parts=["neurons", "code"], top_n=64)
        stored = client.explain(sha256=hashlib.sha256(data).hexdigest(), parts=["neurons"], top_n=64)
        assert live.image.corpus_image.uri == stored.image.corpus_image.uri == name
        left = {active.neuron.neuron_id: active.activation for active in live.neurons}
        right = {active.neuron.neuron_id: active.activation for active in stored.neurons}
        assert left.keys() == right.keys()
        for neuron_id, activation in left.items():
            # One float16 step.
            assert right[neuron_id] == pytest.approx(activation, rel=2**-10)


def test_an_image_of_the_corpus_leaves_itself_out_and_finds_images_like_it(
    client: Client, scenes_house: House, corpus_truth: dict[str, frozenset[Value]]
) -> None:
    agreement, by_chance = 0.0, 0.0
    uris = list(corpus_truth)
    generator = random.Random(1)
    for name in uris[:: len(uris) // 25]:
        answer = client.explain(scenes_house.corpus.parent / name, parts=["similar_images"], similar_count=5)
        similar = [match.image.uri for match in answer.similar_images]
        assert name not in similar
        assert len(similar) == 5
        agreement += sum(len(corpus_truth[name] & corpus_truth[uri]) for uri in similar)
        by_chance += sum(len(corpus_truth[name] & corpus_truth[uri]) for uri in generator.sample(uris, 5))
    assert agreement > 1.5 * by_chance


@pytest.mark.parametrize("factor_words", [("colour", "red"), ("background", "meadow"), ("shape", "heart")])
def test_text_finds_neurons_whose_images_show_it(
    client: Client, corpus_truth: dict[str, frozenset[Value]], factor_words: Value
) -> None:
    factor, word = factor_words
    text = f"something on a {word} background" if factor == "background" else f"a {word} shape"
    found = client.search_neurons("a heart" if word == "heart" else text, count=3, include_top_images=True)
    shares = [
        sum(factor_words in corpus_truth[exemplar.image.uri] for exemplar in match.top_images) / len(match.top_images)
        for match in found.neurons
    ]
    assert max(shares) >= 7 / 9


def test_an_expression_answers_as_brute_force_over_the_stored_codes(client: Client, scenes_house: House) -> None:
    first, second, third, fourth = (
        neuron.neuron_id for neuron in client.neurons_page(order="density", page_size=4).neurons
    )
    with open_index(scenes_house.index) as index:
        codes = [index.code(row) for row in range(index.row_count)]
        maximum = {neuron: index.neuron(neuron).maximum for neuron in (first, second, third)}
    activations = [dict(zip(code.neuron_ids.tolist(), code.values.tolist(), strict=True)) for code in codes]
    fired = sorted(code[first] for code in activations if first in code)
    # A value that some image has: a rounded one would move it to the other side.
    threshold = fired[len(fired) // 2]
    due = {
        row: sum(code.get(neuron, 0.0) / maximum[neuron] for neuron in sorted(maximum))
        for row, code in enumerate(activations)
        if code.get(first, 0.0) > threshold and (second in code or third in code) and fourth not in code
    }
    assert 0 < len(due) < len(fired) / 2
    answer = client.search_images(expression=f"{first}>{threshold} & ({second} | {third}) & !{fourth}", count=100)
    assert answer.total_count == len(due)
    best = sorted(due, key=lambda row: (-due[row], row))[:100]
    assert [match.image.row for match in answer.images] == best
    assert [match.score for match in answer.images] == pytest.approx([due[row] for row in best])

    known = client.neuron(first, parts=["histogram", "co_active_neurons"], bin_count=7)
    assert list(known.histogram.counts) == np.histogram(fired, known.histogram.edges)[0].tolist()
    assert sum(known.histogram.counts) == known.statistics.firing_count == len(fired)
    assert known.co_active_neurons
    for other in known.co_active_neurons:
        assert other.image_count == sum(first in code and other.neuron.neuron_id in code for code in activations)
    assert -1 <= known.neuron.monosemanticity <= 1
    assert known.neuron.HasField("monosemanticity")


def test_every_part_of_an_explanation_is_there(client: Client, scenes_folder: Path, held_out_truth: object) -> None:
    assert held_out_truth
    image = next(iter(sorted((scenes_folder / "held-out" / "images").iterdir())))
    answer = client.explain(
        image,
        parts=["fidelity", "neurons", "nearest_neurons", "top_images", "similar_images", "scores", "code"],
        include_thumbnails=True,
    )
    assert 0 < answer.fidelity.fvu < 1
    assert 0 < len(answer.neurons) <= 10
    assert all(active.top_images[0].image.thumbnail[:2] == b"\xff\xd8" for active in answer.neurons)
    assert all(0 <= active.quantile <= 1 for active in answer.neurons)
    assert len(answer.nearest_neurons) == 10
    cosines = [neuron.cosine for neuron in answer.nearest_neurons]
    assert cosines == sorted(cosines, reverse=True)
    assert len(answer.similar_images) == 12
    assert answer.scores
    assert answer.provenance.code_id


def test_a_notebook_sees_the_codes_that_the_service_sees(
    client: Client, scenes_house: House, scenes_folder: Path, held_out_truth: dict[str, object]
) -> None:
    pipeline = phosphene.open_bundle(scenes_house.bundle)
    for name in list(held_out_truth)[:5]:
        (code,) = pipeline.encode([scenes_folder / "held-out" / name])
        answer = client.explain(scenes_folder / "held-out" / name, parts=["neurons"], top_n=64)
        served = {active.neuron.neuron_id: active.activation for active in answer.neurons}
        assert served.keys() == set(code.neuron_ids.tolist())
        for neuron_id, value in zip(code.neuron_ids.tolist(), code.values.tolist(), strict=True):
            assert served[neuron_id] == pytest.approx(value, rel=1e-5, abs=1e-5 * float(code.values.max()))


def test_wrong_requests_are_told_what_is_wrong(client: Client) -> None:
    with pytest.raises(InputError, match="PNG"):
        client.explain(b"these are not the bytes of an image")
    with pytest.raises(NotFound, match="neuron"):
        client.neuron(1_000_000)
    with pytest.raises(NotFound, match="scenes"):
        client.explain(b"", bundle="nowhere")
    with pytest.raises(NotFound):
        client.explain(sha256="0" * 64)
    with pytest.raises(InputError, match="top_n"):
        client.explain(sha256="0" * 64, top_n=0)


def test_metrics_count_what_was_served(client: Client, scenes_house: House) -> None:
    client.models()
    with urlopen(f"http://{scenes_house.metrics}/metrics") as page:
        text = page.read().decode()
    assert 'phosphene_requests_total{code="OK",method="ListModels"}' in text


def test_the_text_tower_names_concept_neurons(scenes_house: House, corpus_truth: dict[str, frozenset[Value]]) -> None:
    """A word of the vocabulary of scenes names a neuron only where its exemplars show it, nearly always."""
    words = tuple(value for factor in FACTORS for value in values_of(factor))
    pipeline = phosphene.open_bundle(scenes_house.bundle, thread_count=1)
    with open_index(scenes_house.index) as index:
        shards = open_shards(scenes_house.index, plan_shards(index.row_count, index.config["shard_image_count"]))
        embeddings, readable = ImageVectors(shards), np.ones(index.row_count, dtype=bool)
        mean = mean_embedding(embeddings, readable)
        vocabulary = prepared_vocabulary(words, pipeline.text_vectors(words), embeddings, readable, mean)
        rows = [replace(index.neuron(neuron_id), names=()) for neuron_id in range(index.neuron_count)]
        named = with_text_names(rows, vocabulary, ExemplarStore(scenes_house.index), embeddings, mean)
        bases = Counter(value for shown in corpus_truth.values() for _, value in shown)
        right = [
            _exemplar_share(index, row.neuron_id, row.names[0].name, corpus_truth)
            >= bases[row.names[0].name] / len(corpus_truth) + 0.3
            for row in named
            if row.names
        ]
    assert len(right) >= 0.6 * len(named)
    assert sum(right) >= 0.9 * len(right)


def _exemplar_share(index: IndexReader, neuron_id: int, word: str, truth: dict[str, frozenset[Value]]) -> float:
    """Return the share of a neuron's exemplars that show what the word says, weighted by activation."""
    exemplars = index.exemplars(neuron_id, ExemplarKind.TOP, 32)
    shows = [word in {value for _, value in truth[index.image(exemplar.row).uri]} for exemplar in exemplars]
    return float(np.average(shows, weights=[exemplar.value for exemplar in exemplars]))
