"""The embedded bundle through ONNX Runtime over real gRPC: the same codes; what the graph lacks runs on torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo import EMBEDDED, serving, step
from phosphene.client import Client
from tests.end_to_end.house import House


@pytest.fixture(scope="module")
def onnx_client(scenes_house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a service that runs the exported graph."""
    engine = tmp_path_factory.mktemp("engine") / "onnx"
    step("export", "training", "export-engine", str(scenes_house.bundle), "--out", str(engine))
    settings = {
        "PHOSPHENE_ENGINE": "onnxruntime",
        "PHOSPHENE_ENGINES": f"{EMBEDDED.name}={engine}",
        "PHOSPHENE_ENGINE_THREADS": "1",
    }
    with (
        serving(EMBEDDED.name, scenes_house.bundle, scenes_house.index, free_ports=True, settings=settings) as (
            address,
            _,
        ),
        Client(address) as opened,
    ):
        yield opened


def test_the_exported_engine_gives_the_codes_of_torch(
    client: Client, onnx_client: Client, scenes_folder: Path, held_out_truth: dict[str, object]
) -> None:
    for name in list(held_out_truth)[:25]:
        image = scenes_folder / "held-out" / name
        due = client.explain(image, parts=["code", "fidelity", "nearest_neurons"])
        found = onnx_client.explain(image, parts=["code", "fidelity", "nearest_neurons"])
        assert (due.provenance.engine, found.provenance.engine) == ("torch", "onnxruntime")
        assert due.provenance.code_id == found.provenance.code_id
        left = dict(zip(due.code.neuron_ids, due.code.activations, strict=True))
        right = dict(zip(found.code.neuron_ids, found.code.activations, strict=True))
        largest = max(left.values())
        for neuron_id in left.keys() | right.keys():
            assert right.get(neuron_id, 0.0) == pytest.approx(left.get(neuron_id, 0.0), abs=2e-5 * largest)
        assert found.fidelity.fvu == pytest.approx(due.fidelity.fvu, rel=1e-3)
        assert [near.neuron.neuron_id for near in found.nearest_neurons] == [
            near.neuron.neuron_id for near in due.nearest_neurons
        ]


def test_what_the_graph_lacks_runs_on_torch_and_says_so(
    client: Client, onnx_client: Client, scenes_folder: Path, held_out_truth: dict[str, object]
) -> None:
    image = scenes_folder / "held-out" / next(iter(held_out_truth))
    found = onnx_client.explain(image, parts=["scores"])
    assert found.provenance.engine == "torch"
    assert [score.name for score in found.scores] == [
        score.name for score in client.explain(image, parts=["scores"]).scores
    ]
    assert onnx_client.search_neurons("a striped shape", count=3).neurons
