"""Tables at any width: no line is longer than the terminal, and no figure loses a digit."""

import io

import pytest
from rich.console import Console, RenderableType

from phosphene.client.tables import explanation_view, models_view, neuron_list_view, neuron_search_view, neuron_view
from phosphene.client.words import percent
from phosphene.v1.neurons_pb2 import ListNeuronsResponse, SearchNeuronsResponse
from tests.client.sample_answers import explanation, model, neuron_answer, neuron_summary, provenance

WIDTHS = (28, 33, 40, 60, 80, 200)


def lines(view: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(view)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", WIDTHS)
def test_an_explanation_keeps_its_figures_at_any_width(width: int) -> None:
    answer = explanation()
    for place, active in enumerate(answer.neurons):
        active.neuron.neuron_id = 4_194_300 + place
    shown = lines(explanation_view(answer, "photo.jpg"), width)
    assert max(map(len, shown)) <= width
    words = " ".join(shown).split()
    for active in answer.neurons:
        assert str(active.neuron.neuron_id) in words
        assert f"{active.activation:#.3g}" in words
        assert percent(active.neuron.density).split()[0] in words
    for nearest in answer.nearest_neurons:
        assert f"{nearest.cosine:.3f}" in words


@pytest.mark.parametrize("width", WIDTHS)
def test_other_answers_keep_their_figures_at_any_width(width: int) -> None:
    neurons = [neuron_summary(neuron_id) for neuron_id in (100_001, 100_009)]
    listed = ListNeuronsResponse(neurons=neurons, total_count=2, provenance=provenance())
    assert " ".join(lines(neuron_list_view(listed), width)).split().count("1.25") == 2
    about = lines(neuron_view(neuron_answer()), width)
    assert {"0.875", "0.750", "31", "30"} <= set(" ".join(about).split())
    found = SearchNeuronsResponse(neurons=neuron_answer().similar_neurons, provenance=provenance())
    assert {"0.500", "0.400", "0.300"} <= set(" ".join(lines(neuron_search_view(found, "'x'"), width)).split())
    assert "".join("".join(lines(models_view([model()]), width)).split()).count("4096images") == 1


def test_a_table_is_a_table_where_there_is_room_and_a_list_where_there_is_none() -> None:
    listed = ListNeuronsResponse(neurons=[neuron_summary(8), neuron_summary(9)], total_count=2, provenance=provenance())
    (heading,) = (line for line in lines(neuron_list_view(listed), 120) if line.startswith("neuron"))
    assert heading.split()[:3] == ["neuron", "name", "density"]
    narrow = [line.split() for line in lines(neuron_list_view(listed), 40)]
    assert [words[1:] for words in narrow if words[:1] == ["neuron"]] == [["8"], ["9"]]
    assert ["monosemanticity", "0.62"] in narrow
