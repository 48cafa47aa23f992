"""Export: every family and every kind of tokens gives torch's codes; nothing else is published."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phosphene.encoder import Family, Site, Tokens
from phosphene.engine import EngineName, EngineRequest, Want
from phosphene.engine_artefact import GRAPH_NAME, IMAGE_TOLERANCE, Likeness, golden_pixels
from phosphene.engine_onnx import open_onnx_engine
from phosphene.engine_shared import open_shared_engine
from phosphene.errors import ArtefactMismatch, NumericError
from phosphene.manifest import open_artefact
from phosphene.preprocessing import ExactSize, Preprocessing
from phosphene.selection import JumpReLU, Selection, TopK, select
from tests.families import write_encoder
from tests.phosphene.engine_bundles import assert_code, make_bundle, random_pixels
from training.__main__ import main
from training.engine_export import Selector, _tolerance, export_engine, write_graph

RULES: tuple[Selection, ...] = (TopK(3), JumpReLU(torch.tensor([-1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0])))


class BothRules(torch.nn.Module):
    """Two selections of the same pre-activations in one graph."""

    def __init__(self) -> None:
        super().__init__()
        self._selectors = [Selector(rule, neuron_count=7, limit=3) for rule in RULES]

    def forward(self, dense: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part for selector in self._selectors for part in selector(dense))


@pytest.fixture(scope="module")
def selectors(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    path = tmp_path_factory.mktemp("selectors") / "selectors.onnx"
    names = [f"{name}{rule}" for rule in range(len(RULES)) for name in ("values", "neuron_ids", "cuts")]
    write_graph(BothRules(), torch.zeros(2, 7), path, input_name="dense", output_names=names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@given(rows=st.lists(st.lists(st.integers(-3, 3), min_size=7, max_size=7), min_size=1, max_size=5))
def test_ties_order_and_cuts_are_those_of_select(
    selectors: onnxruntime.InferenceSession, rows: list[list[int]]
) -> None:
    dense = np.array(rows, np.float32)
    due = [part for rule in RULES for part in select(rule, torch.from_numpy(dense), limit=3)]
    for found, part in zip(selectors.run(None, {"dense": dense}), due, strict=True):
        np.testing.assert_array_equal(found, part.numpy())


@pytest.mark.slow
def test_the_command_publishes_once_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(
        tmp_path / "bundle", write_encoder(tmp_path / "encoder", Family.VIT), Site(block=0, tokens=Tokens.CLS)
    )
    command = ["export-engine", str(bundle.path), "--out", str(tmp_path / "engine")]
    capsys.readouterr()
    assert (main(command), main(command)) == (0, 0)
    written = capsys.readouterr()
    first, again = map(json.loads, written.out.splitlines())
    assert written.err == ""
    assert (first["event"], again["event"]) == ("published", "already finished")
    assert first["id"] == again["id"] == open_artefact(tmp_path / "engine", kind="engine").id
    assert main([*command, "--int8"]) == 2
    assert "onnxruntime-int8 is due" in capsys.readouterr().err
    _assert_no_paths(tmp_path / "engine" / GRAPH_NAME)
    assert not list(tmp_path.glob("*.partial"))


def test_a_graph_with_other_codes_is_not_published() -> None:
    good = Likeness(image_difference=IMAGE_TOLERANCE, token_difference=2e-5, differing_tokens=0, top10_overlap=1.0)
    assert _tolerance(good, EngineName.ONNXRUNTIME)["image_difference"] == IMAGE_TOLERANCE
    for bad in (
        Likeness(image_difference=2e-5, token_difference=2e-5, differing_tokens=0, top10_overlap=1.0),
        Likeness(image_difference=0.0, token_difference=0.0, differing_tokens=1, top10_overlap=1.0),
    ):
        with pytest.raises(NumericError, match="nothing is published"):
            _tolerance(bad, EngineName.ONNXRUNTIME)


def test_8_bit_weights_that_keep_next_to_nothing_are_not_published() -> None:
    def kept(overlap: float) -> Likeness:
        return Likeness(image_difference=1.0, token_difference=1.0, differing_tokens=9, top10_overlap=overlap)

    assert _tolerance(kept(0.35), EngineName.ONNXRUNTIME_INT8) == {"top10_overlap": 0.25}
    for overlap in (0.0, 0.1):
        with pytest.raises(NumericError, match="more than 0.1; nothing is published"):
            _tolerance(kept(overlap), EngineName.ONNXRUNTIME_INT8)


def test_an_engine_that_golden_codes_cannot_check_is_not_published(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder", Family.VIT)
    bundle = make_bundle(tmp_path / "bundle", encoder, Site(block=0, tokens=Tokens.CLS), jump=True, scale=1e-9)
    with pytest.raises(NumericError, match="no neuron fires on the golden images"):
        export_engine(bundle.path, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_golden_images_are_the_same_everywhere_and_differ_from_each_other() -> None:
    preprocessing = Preprocessing(
        resize=ExactSize(height=20, width=12),
        resample="bilinear",
        crop=None,
        rescale_factor=1 / 255,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    pixels = golden_pixels(preprocessing)
    assert pixels.shape == (8, 3, 20, 12)
    np.testing.assert_array_equal(pixels, golden_pixels(preprocessing))
    assert len(np.unique(pixels.reshape(8, -1), axis=0)) == 8
    assert pixels.std(axis=(1, 2, 3)).min() > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "site", "jump"),
    [
        (Family.CLIP, Site(block=None, tokens=Tokens.EMBEDDING), False),
        (Family.CLIP, Site(block=2, tokens=Tokens.ALL), False),
        (Family.SIGLIP, Site(block=None, tokens=Tokens.EMBEDDING), True),
        (Family.SIGLIP, Site(block=1, tokens=Tokens.MEAN), False),
        (Family.DINOV2, Site(block=1, tokens=Tokens.PATCHES), True),
        (Family.DINOV2_REGISTERS, Site(block=2, tokens=Tokens.ALL), False),
        (Family.VIT, Site(block=0, tokens=Tokens.CLS), True),
        (Family.DEIT, Site(block=1, tokens=Tokens.MEAN), False),
    ],
)
def test_every_family_and_kind_of_tokens(tmp_path: Path, family: Family, site: Site, jump: bool) -> None:
    encoder = write_encoder(tmp_path / "encoder", family)
    _assert_same_as_torch(tmp_path, encoder, site, jump=jump, size_px=32)


@pytest.mark.slow
def test_the_embedded_encoder(tmp_path: Path, root: Path) -> None:
    _assert_same_as_torch(
        tmp_path, root / "embedded" / "tiny-clip", Site(block=4, tokens=Tokens.ALL), jump=False, size_px=64
    )


@pytest.mark.slow
def test_a_real_encoder(tmp_path: Path, shared: Path) -> None:
    encoder = shared / "models" / "deit-tiny-patch16-224"
    _assert_same_as_torch(tmp_path, encoder, Site(block=11, tokens=Tokens.CLS), jump=True, size_px=224)


@pytest.mark.slow
def test_int8_keeps_most_of_the_strongest_neurons_and_never_passes_for_float32(tmp_path: Path, root: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", root / "embedded" / "tiny-clip", Site(block=4, tokens=Tokens.ALL))
    export = export_engine(bundle.path, tmp_path / "engine", is_int8=True)
    config = export.manifest.config
    assert config["engine"] == "onnxruntime-int8"
    assert 0.5 < config["tolerance"]["top10_overlap"] < config["measured"]["top10_overlap"]
    assert config["measured"]["differing_tokens"] > 0
    assert {path.name for path in export.path.iterdir()} == {
        "manifest.json",
        GRAPH_NAME,
        f"{GRAPH_NAME}.data",
        "golden",
    }
    with pytest.raises(ArtefactMismatch, match="onnxruntime-int8"):
        open_onnx_engine(export.path, bundle)
    engine = open_onnx_engine(export.path, bundle, expected=EngineName.ONNXRUNTIME_INT8, thread_count=1)
    assert engine.name is EngineName.ONNXRUNTIME_INT8
    assert len(engine.run_rows(random_pixels(2, 0, 64), [EngineRequest(want=Want(fidelity=True))] * 2)) == 2


def _assert_same_as_torch(tmp_path: Path, encoder: Path, site: Site, *, jump: bool, size_px: int) -> None:
    bundle = make_bundle(tmp_path / "bundle", encoder, site, jump=jump)
    export = export_engine(bundle.path, tmp_path / "engine")
    _assert_no_paths(export.path / GRAPH_NAME)
    graph, eager = open_onnx_engine(export.path, bundle, thread_count=1), open_shared_engine([bundle])
    for count in (1, 3):
        pixels = random_pixels(count, count, size_px)
        asked = [EngineRequest()] * count
        for found, due in zip(graph.run_rows(pixels, asked), eager.run_rows(pixels, asked), strict=True):
            assert len(due.code) > 0
            assert_code(found.code, due.code)


def _assert_no_paths(graph: Path) -> None:
    onnx.checker.check_model(graph)
    assert not re.search(rb"\.py\b|site-packages|stack_trace", graph.read_bytes())
