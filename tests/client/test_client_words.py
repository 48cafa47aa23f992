"""Figures in words: never more than was measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phosphene.client.words import (
    code_search_words,
    density_words,
    label_summary,
    meaning_words,
    number,
    percent,
    plain,
    quantile_words,
    verdict,
)
from phosphene.v1.explain_pb2 import Fidelity
from phosphene.v1.values_pb2 import CodeSearch, CorpusImage, Exemplar, NeuronSummary, SearchEngine


@given(st.floats(0, 1))
def test_a_percentage_never_rounds_to_all_or_nothing(share: float) -> None:
    said = percent(share)
    assert (said == "0 %") == (share == 0)
    assert (said == "100 %") == (share == 1)


@given(st.floats(0.0001, 0.99999))
def test_a_percentage_is_close(share: float) -> None:
    assert abs(float(percent(share).removesuffix(" %")) - 100 * share) <= (1.01 if share >= 0.1 else 0.51)


def test_percentages() -> None:
    shares = (0, 0.00001, 0.0081, 0.05, 0.123, 0.999, 0.9999, 1)
    said = ["0 %", "< 0.01 %", "0.81 %", "5 %", "12 %", "99.9 %", "99.9 %", "100 %"]
    assert [percent(float(share)) for share in shares] == said


def test_numbers_have_three_digits() -> None:
    values = (0.0, 12.0, 9.6, 123.4, 1234.5, 0.01234, -0.5)
    assert [number(value) for value in values] == ["0", "12.0", "9.60", "123", "1234", "0.0123", "-0.500"]
    rounded = (999.4, 999.49, 999.5, 999.99, -999.7, 1000.0)
    assert [number(value) for value in rounded] == ["999", "999", "1000", "1000", "-1000", "1000"]


def test_quantiles_and_densities() -> None:
    assert quantile_words(None) == "no corpus image to compare with"
    assert quantile_words(0.97) == "stronger than 97 % of the images on which it fires"
    assert quantile_words(0.0) == "weaker than every corpus image on which it fires"
    assert quantile_words(1.0) == "stronger than every corpus image on which it fires"
    assert density_words(0.0) == "never fires in the corpus"
    assert density_words(0.02) == "fires on 2 % of images"
    assert density_words(1.0) == "fires on 100 % of images, so that it says little by itself"
    assert density_words(None) == "no corpus"


def test_nothing_is_said_of_an_exact_search_or_an_unmeasured_neuron() -> None:
    assert code_search_words(CodeSearch(recall=1.0)) == ""
    assert code_search_words(CodeSearch(recall=1.0, left_out_neuron_ids=[3, 17])).endswith("do not count: 3, 17.")
    assert code_search_words(CodeSearch(recall=1.0, engine=SearchEngine.SEARCH_ENGINE_INDEX)) == ""
    by_qdrant = CodeSearch(recall=1.0, engine=SearchEngine.SEARCH_ENGINE_QDRANT)
    assert code_search_words(by_qdrant) == "Qdrant found them, from the codes of the index."
    assert code_search_words(CodeSearch(recall=0.999)) == "Such a search finds 99.9 % of the nearest images."
    assert meaning_words(NeuronSummary()) == ""
    assert meaning_words(NeuronSummary(monosemanticity=0.0)) == "monosemanticity 0.00 (1: its images are all alike)"
    assert meaning_words(NeuronSummary(is_dense=True)).startswith("dense")


@given(st.text())
def test_plain_texts_are_one_line_of_printable_characters(text: str) -> None:
    assert all(char.isprintable() or char.isspace() for char in plain(text) if char not in "\u200c\u200d")
    assert len(plain(text).splitlines()) <= 1
    assert plain(plain(text)) == plain(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),  # Persian
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u200d\u0937"),  # Hindi
        ("pay\u200cpal \u200d", "paypal"),
        ("\u06cc\u200c\u200d\u200c\u06cc", "\u06cc\u06cc"),
        ("\u06cc\u202e\u200c", "\u06cc"),
    ],
)
def test_joiners_stay_between_letters_that_join_and_nowhere_else(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_labels_are_counted_and_captions_stand_in() -> None:
    images = [
        CorpusImage(label="cat"),
        CorpusImage(label="cat"),
        CorpusImage(caption="a dog"),
        CorpusImage(label="emu"),
    ]
    assert label_summary([Exemplar(image=image) for image in images]) == "cat ×2, a dog"
    assert label_summary([]) == ""


@pytest.mark.parametrize(
    ("cuts", "token_cuts", "said"),
    [
        (0, 0, "holds of this image."),
        (1, 1, "1 weaker neuron counts in this, but was cut from the code. 1 activation was cut from its tokens."),
        (2, 3, "2 weaker neurons count in this, but were cut from the code. 3 activations were cut from its tokens."),
    ],
)
def test_what_was_cut_is_counted(cuts: int, token_cuts: int, said: str) -> None:
    assert verdict(Fidelity(fvu=0.1, cut_count=cuts, token_cut_count=token_cuts)).reason.endswith(said)
