"""Tables of answers that are not whole, or newer than this client."""

import io

from rich.console import Console, RenderableType

from phosphene.client.tables import explanation_view, models_view, neuron_view
from phosphene.v1.explain_pb2 import Code, ExplainResponse, Fidelity
from phosphene.v1.neurons_pb2 import ActivationHistogram, GetNeuronResponse
from tests.client.sample_answers import explanation, model


def shown(view: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=120, highlight=False)
    console.print(view)
    return console.file.getvalue()


def test_a_code_that_was_asked_for_is_shown() -> None:
    code = Code(neuron_ids=[38, 4_194_303], activations=[27.76, 0.51], cut_count=3)
    said = shown(explanation_view(ExplainResponse(code=code), "photo.jpg"))
    assert "Its whole code (activations cut from it: 3)" in said
    assert [line.split() for line in said.splitlines() if line.startswith(("38 ", "4194303 "))] == [
        ["38", "27.8"],
        ["4194303", "0.510"],
    ]
    assert "Its whole code" not in shown(explanation_view(explanation(), "photo.jpg"))


def test_an_image_on_which_nothing_fires_is_said_to_be_one() -> None:
    silent = ExplainResponse(fidelity=Fidelity(fvu=1.0, l0=0.0))
    assert "No neuron fires on this image." in shown(explanation_view(silent, "photo.jpg"))
    for answer in (ExplainResponse(fidelity=Fidelity(fvu=0.2)), explanation()):
        assert "No neuron fires" not in shown(explanation_view(answer, "photo.jpg"))


def test_a_readout_that_only_a_newer_service_knows_is_shown_as_that() -> None:
    newer = model()
    newer.readout = 99
    assert "unknown (99)" in shown(models_view([model(), newer]))


def test_a_histogram_without_bins_is_a_table_without_rows() -> None:
    assert "How strongly it fires" in shown(neuron_view(GetNeuronResponse(histogram=ActivationHistogram())))
