"""The command against a service of an earlier version: does without what it chose itself, says what it cannot."""

from collections.abc import Iterator

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest

from phosphene.client.command import main
from phosphene.v1.neurons_pb2 import GetNeuronRequest, GetNeuronResponse, NeuronOrder, NeuronPart
from tests.client.fake_service import Failure, FakeService, serving
from tests.client.sample_answers import explanation, neuron_answer


class OlderService(FakeService):
    """Knows three parts of a neuron, six orders and no expressions, and ignores fields that it does not know."""

    def GetNeuron(self, request, context):
        self._begin(request, context)
        unknown = [part for part in request.parts if part > NeuronPart.NEURON_PART_SIMILAR_NEURONS]
        if unknown:
            self._refuse(context, "parts", f"parts has the value {unknown[0]}, which names nothing here")
        answer = neuron_answer(request.neuron_id, thumbnails=request.include_thumbnails)
        return GetNeuronResponse(
            provenance=answer.provenance,
            neuron=answer.neuron,
            statistics=answer.statistics,
            names=answer.names,
            top_images=answer.top_images,
            spread_images=answer.spread_images,
            similar_neurons=answer.similar_neurons,
        )

    def ListNeurons(self, request, context):
        if request.order > NeuronOrder.NEURON_ORDER_NAME_SCORE:
            self._refuse(context, "order", f"order has the value {request.order}, which names nothing here")
        return super().ListNeurons(request, context)

    def SearchImages(self, request, context):
        if request.WhichOneof("query") == "expression":
            self._refuse(context, "query", "query is not set; set image or neuron_id")
        return super().SearchImages(request, context)

    def _refuse(self, context, field, message):
        violation = BadRequest.FieldViolation(field=field, description=message)
        Failure(grpc.StatusCode.INVALID_ARGUMENT, message, (BadRequest(field_violations=[violation]),)).end(context)


@pytest.fixture
def older() -> Iterator[OlderService]:
    with serving(OlderService()) as served:
        yield served


def test_a_neuron_is_shown_without_the_parts_that_are_not_known_there(older, tmp_path, capsys) -> None:
    page = tmp_path / "neuron.html"
    assert main(["neuron", "21", "--server", older.address, "--html", str(page)]) == 0
    out, err = capsys.readouterr()
    assert "Images that excite it most" in out
    assert "How strongly it fires" not in out
    assert "the service is older than this command; the answer is without histogram, co_active_neurons" in err
    asked = [request for request in older.requests if isinstance(request, GetNeuronRequest)]
    assert [len(request.parts) for request in asked] == [5, 3]
    assert "It fires most on" in page.read_text()


def test_a_newer_service_is_asked_once(service: FakeService, capsys) -> None:
    assert main(["neuron", "21", "--server", service.address]) == 0
    assert len(service.requests) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "what"),
    [(["neurons", "--order", "monosemanticity"], "--order"), (["images", "1 & 2"], "neuron expressions")],
)
def test_what_was_chosen_and_is_not_known_there_is_said(older, words, what, capsys) -> None:
    assert main([*words, "--server", older.address]) == 1
    err = capsys.readouterr().err
    assert "the service may be older than this command" in err
    assert what in err


def test_other_faults_do_not_blame_the_version(service: FakeService, capsys) -> None:
    violation = BadRequest.FieldViolation(field="filter.min_density", description="bad")
    refused = Failure(grpc.StatusCode.INVALID_ARGUMENT, "bad", (BadRequest(field_violations=[violation]),))
    service.failures.append(refused)
    assert main(["neurons", "--server", service.address]) == 1
    assert "older" not in capsys.readouterr().err


class Secretive(FakeService):
    """Hides three neurons and images."""

    def _explained(self, request, data):
        answer = explanation()
        answer.hidden_count = 0 if request.include_sensitive else 3
        return answer


def test_hidden_ones_are_told_and_can_be_asked_for(tmp_path, capsys) -> None:
    photo, page = tmp_path / "photo.png", tmp_path / "page.html"
    photo.write_bytes(b"\x89PNG")
    with serving(Secretive()) as service:
        command = ["explain", str(photo), "--server", service.address, "--html", str(page)]
        assert main(command) == 0
        assert "3 neurons and images are hidden as sensitive" in capsys.readouterr().out
        assert "3 neurons and images are hidden as sensitive" in page.read_text()
        assert main([*command, "--include-sensitive"]) == 0
        assert "hidden as sensitive" not in capsys.readouterr().out + page.read_text()
