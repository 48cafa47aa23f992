"""First names: what all exemplars share and the corpus does not."""

import numpy as np
import pytest

from index.naming import name_neuron, term_shares, terms_of
from index.values import NameSource

COLOURS = ("red", "blue", "green", "yellow")
SHAPES = ("circle", "square", "star", "ring", "cross")


def _captions(count: int, seed: int = 0) -> list[tuple[str, str]]:
    generator = np.random.default_rng(seed)
    return [(str(generator.choice(COLOURS)), str(generator.choice(SHAPES))) for _ in range(count)]


CORPUS = _captions(2000)
SHARES = term_shares(terms_of(None, f"a {colour} {shape} on a white background") for colour, shape in CORPUS)


def _exemplars(colour: str | None, shape: str | None, count: int = 32) -> list[frozenset[tuple[NameSource, str]]]:
    return [terms_of(None, f"a {colour or c} {shape or s} on a white background") for c, s in _captions(count, seed=1)]


def test_terms_are_labels_words_and_pairs_without_function_words() -> None:
    assert terms_of("sea_horse", "A red circle, on the White wall") == {
        (NameSource.LABEL, "sea horse"),
        (NameSource.CAPTION, "red"),
        (NameSource.CAPTION, "circle"),
        (NameSource.CAPTION, "white"),
        (NameSource.CAPTION, "wall"),
        (NameSource.CAPTION, "red circle"),
        (NameSource.CAPTION, "white wall"),
    }
    assert terms_of(None, None) == frozenset()
    assert terms_of(" \t_", "_") == frozenset()
    assert terms_of("_okapi ", None) == {(NameSource.LABEL, "okapi")}


def test_shares_are_shares_of_images() -> None:
    shares = term_shares([terms_of("a", "red red"), terms_of("b", None), terms_of("a", "red"), terms_of(None, None)])
    assert shares[NameSource.LABEL, "a"] == 0.5
    assert shares[NameSource.CAPTION, "red"] == 0.5
    assert shares[NameSource.CAPTION, "red red"] == 0.25


@pytest.mark.parametrize(
    ("colour", "shape", "name"), [("red", None, "red"), (None, "star", "star"), ("blue", "ring", "blue ring")]
)
def test_names_what_the_exemplars_share(colour: str | None, shape: str | None, name: str) -> None:
    names = name_neuron(_exemplars(colour, shape), [1.0] * 32, SHARES)
    assert names[0].name == name
    share = SHARES[NameSource.CAPTION, name]
    assert names[0].score == pytest.approx(32 / 34 * (1 - share))
    assert names[0].margin > 0.2
    assert names[0].source is NameSource.CAPTION


def test_words_of_every_caption_are_no_name() -> None:
    assert name_neuron(_exemplars(None, None), [1.0] * 32, SHARES) == ()


def test_strong_exemplars_count_more() -> None:
    exemplars = _exemplars("red", None, 16) + _exemplars("blue", None, 16)
    assert name_neuron(exemplars, [10.0] * 16 + [1.0] * 16, SHARES)[0].name == "red"
    assert name_neuron(exemplars, [1.0] * 16 + [10.0] * 16, SHARES)[0].name == "blue"


def test_two_exemplars_give_no_name() -> None:
    rare = [terms_of("okapi", None)] * 2
    assert name_neuron(rare, [1.0, 1.0], {(NameSource.LABEL, "okapi"): 0.001}) == ()
    assert name_neuron(rare * 2, [1.0] * 4, {(NameSource.LABEL, "okapi"): 0.001})[0].name == "okapi"


def test_a_label_and_its_caption_are_one_name() -> None:
    terms = [terms_of("star", "a star")] * 8
    shares = {(NameSource.LABEL, "star"): 0.1, (NameSource.CAPTION, "star"): 0.1}
    assert [name.name for name in name_neuron(terms, [1.0] * 8, shares)] == ["star"]


def test_a_rival_that_fits_as_well_leaves_no_margin() -> None:
    terms = [terms_of(None, "star on sky")] * 8
    names = name_neuron(terms, [1.0] * 8, {(NameSource.CAPTION, "star"): 0.1, (NameSource.CAPTION, "sky"): 0.1})
    assert {name.name for name in names} == {"star", "sky"}
    assert [name.margin for name in names] == [0.0, 0.0]


def test_a_dead_neuron_has_no_name() -> None:
    assert name_neuron([], [], SHARES) == ()


def test_random_exemplars_are_hardly_ever_named() -> None:
    named = 0
    for seed in range(200):
        drawn = _captions(32, seed=100 + seed)
        exemplars = [terms_of(None, f"a {colour} {shape} on a white background") for colour, shape in drawn]
        named += bool(name_neuron(exemplars, [1.0] * 32, SHARES))
    assert named <= 2
