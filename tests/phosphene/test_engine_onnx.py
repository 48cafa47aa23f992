"""An exported engine gives torch's codes, and one that does not is refused, whatever its digests say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.artefact_writing import seal
from phosphene.bundle import Bundle
from phosphene.encoder import Family, Site, Tokens
from phosphene.engine import EngineName, EngineRequest, Want
from phosphene.engine_artefact import GRAPH_NAME
from phosphene.engine_onnx import OnnxEngine, open_onnx_engine
from phosphene.engine_torch import TorchEngine
from phosphene.errors import (
    ArtefactDamaged,
    ArtefactMismatch,
    ArtefactMissing,
    NumericError,
    SettingError,
    Unanswerable,
)
from phosphene.manifest import MANIFEST_NAME, partial_path, read_manifest
from tests.families import write_encoder
from tests.phosphene.engine_bundles import assert_row, make_bundle, random_pixels
from training.engine_export import export_engine

WEIGHTS_NAME = f"{GRAPH_NAME}.data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    encoder = write_encoder(folder / "encoder", Family.CLIP)
    return make_bundle(folder / "bundle", encoder, Site(block=1, tokens=Tokens.ALL), jump=True)


@pytest.fixture(scope="module")
def exported(folder: Path, bundle: Bundle) -> Path:
    return export_engine(bundle.path, folder / "engine").path


@pytest.fixture(scope="module")
def engine(exported: Path, bundle: Bundle) -> OnnxEngine:
    return open_onnx_engine(exported, bundle, thread_count=1, may_spin=False)


@pytest.fixture(scope="module")
def torch_engine(bundle: Bundle) -> TorchEngine:
    return TorchEngine(bundle)


wants = st.builds(Want, token_codes=st.booleans(), fidelity=st.booleans(), residuals=st.booleans())


@settings(max_examples=25)
@given(st.lists(wants, min_size=1, max_size=5), st.integers(0, 2**31))
def test_rows_are_those_of_torch(engine: OnnxEngine, torch_engine: TorchEngine, asked: list[Want], seed: int) -> None:
    pixels = random_pixels(len(asked), seed)
    rows = engine.launch(pixels, [EngineRequest(want=want) for want in asked])()
    for place, (row, want) in enumerate(zip(rows, asked, strict=True)):
        assert_row(row, torch_engine.run(pixels[place : place + 1], want), want)


def test_a_large_batch_is_run_in_parts(
    engine: OnnxEngine, torch_engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = Want(token_codes=True, fidelity=True, residuals=True)
    monkeypatch.setattr(engine._graph, "_images_at_a_time", 2)
    pixels = random_pixels(5, 3)
    for place, row in enumerate(engine.run_rows(pixels, [EngineRequest(want=want)] * 5)):
        assert_row(row, torch_engine.run(pixels[place : place + 1], want), want)


def test_the_page_on_artefacts_describes_what_is_there(exported: Path, engine: OnnxEngine, root: Path) -> None:
    page = (root / "docs" / "artefacts.md").read_text(encoding="utf-8")
    page = page.partition("\n## Engine\n")[2].partition("\n## ")[0]
    described = {
        name: (dtype, len(shape.split(",")))
        for name, dtype, shape in re.findall(r"^\| `([\w/]+\.npy)` \| (\w+) \| \[([^]]+)\]", page, re.MULTILINE)
    }
    arrays = {path.relative_to(exported).as_posix(): np.load(path) for path in exported.rglob("*.npy")}
    assert described == {name: (str(array.dtype), array.ndim) for name, array in arrays.items()}
    config = read_manifest(exported).config
    files = {path.name for path in exported.iterdir() if path.is_file()} - {MANIFEST_NAME}
    outputs = [output.name for output in engine._graph._session.get_outputs()]
    for name in (*files, *config, *config["measured"], *config["tolerance"], *config["golden"], *outputs):
        assert f"`{name}`" in page


def test_what_lies_behind_the_site_is_left_to_torch(engine: OnnxEngine) -> None:
    assert engine.can(Want(token_codes=True, fidelity=True, residuals=True))
    for want in (Want(scores=True), Want(embeddings=True)):
        assert not engine.can(want)
        with pytest.raises(Unanswerable, match="block 1"):
            engine.run_rows(random_pixels(1, 0), [EngineRequest(want=want)])
    assert engine.cost(EngineRequest()) == 2
    assert engine.name is EngineName.ONNXRUNTIME


def test_the_cpu_has_no_device_memory(engine: OnnxEngine) -> None:
    assert engine.device_memory_bytes == 0


def test_an_engine_elsewhere_leaves_the_bundle_on_the_cpu(
    engine: OnnxEngine, bundle: Bundle, torch_engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phosphene.engine_torch.open_device", torch.device)
    elsewhere = TorchEngine(bundle, device="meta", encoder=torch_engine.encoder)
    assert elsewhere.sae.directions.is_meta
    want = Want(fidelity=True)
    (row,) = engine.run_rows(random_pixels(1, 3), [EngineRequest(want=want)])
    assert_row(row, torch_engine.run(random_pixels(1, 3), want), want)


def test_time_is_told_once_per_batch(engine: OnnxEngine, bundle: Bundle) -> None:
    told: list[tuple[str, float]] = []
    ticks = iter([1.0, 3.5])
    timed = OnnxEngine(
        engine._graph,
        bundle,
        name=EngineName.ONNXRUNTIME,
        on_stage=lambda *stage: told.append(stage),
        clock=lambda: next(ticks),
    )
    timed.run_rows(random_pixels(2, 0), [EngineRequest()] * 2)
    assert told == [("encode", 2.5)]


def test_a_flipped_bit_is_refused_by_its_digest(exported: Path, bundle: Bundle, tmp_path: Path) -> None:
    for name in (GRAPH_NAME, WEIGHTS_NAME, "golden/values.npy"):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(exported, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(ArtefactDamaged, match=name):
            open_onnx_engine(copy, bundle)


def test_weights_that_were_wrong_from_the_start_are_refused_by_the_golden_codes(
    exported: Path, bundle: Bundle, tmp_path: Path
) -> None:
    def change(partial: Path) -> None:
        weights = np.fromfile(partial / WEIGHTS_NAME, np.uint8)
        offset, length = largest_weight(partial / GRAPH_NAME)
        part = weights[offset : offset + length].view(np.float32)
        part *= 1.001
        weights.tofile(partial / WEIGHTS_NAME)

    wrong = resealed(exported, tmp_path / "wrong", change)
    with pytest.raises(ArtefactMismatch, match="other codes than torch"):
        open_onnx_engine(wrong, bundle)


def test_a_graph_with_other_outputs_is_refused(exported: Path, bundle: Bundle, tmp_path: Path) -> None:
    def rename(partial: Path) -> None:
        model = onnx.load(partial / GRAPH_NAME, load_external_data=False)
        model.graph.output.pop()
        onnx.save(model, partial / GRAPH_NAME)

    with pytest.raises(ArtefactDamaged, match="due are"):
        open_onnx_engine(resealed(exported, tmp_path / "fewer", rename), bundle)
    noise = resealed(exported, tmp_path / "noise", lambda partial: void((partial / GRAPH_NAME).write_bytes(b"no")))
    with pytest.raises(ArtefactDamaged, match="cannot read"):
        open_onnx_engine(noise, bundle)
    nothing = resealed(exported, tmp_path / "nothing", lambda partial: (partial / WEIGHTS_NAME).unlink())
    with pytest.raises(ArtefactDamaged, match="cannot read"):
        open_onnx_engine(nothing, bundle)


def test_an_engine_of_another_bundle_is_refused(exported: Path, folder: Path, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", folder / "encoder", Site(block=1, tokens=Tokens.ALL), jump=True, scale=2)
    with pytest.raises(ArtefactMismatch, match=other.code_id):
        open_onnx_engine(exported, other)
    with pytest.raises(ArtefactMissing):
        open_onnx_engine(tmp_path / "nowhere", other)


def test_precisions_are_never_mixed_up(exported: Path, bundle: Bundle) -> None:
    with pytest.raises(ArtefactMismatch, match="onnxruntime-int8"):
        open_onnx_engine(exported, bundle, expected=EngineName.ONNXRUNTIME_INT8)


def test_residuals_that_are_no_numbers_are_refused(engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine._graph.run

    def not_finite(pixels: np.ndarray, *, with_residuals: bool) -> tuple[object, ...]:
        codes, is_finite, residuals = run(pixels, with_residuals=with_residuals)
        return codes, is_finite & np.array([True, False]), residuals

    monkeypatch.setattr(engine._graph, "run", not_finite)
    with pytest.raises(NumericError, match="NaN"):
        engine.run_rows(random_pixels(2, 0), [EngineRequest()] * 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is here")
def test_a_device_that_is_not_here_is_refused(exported: Path, bundle: Bundle) -> None:
    with pytest.raises(SettingError, match="cuda"):
        open_onnx_engine(exported, bundle, device="cuda")


def test_a_session_that_fell_back_to_the_cpu_is_refused(
    exported: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_the_cpu(path: str, options: object, **_: object) -> object:
        return session(path, options, providers=["CPUExecutionProvider"])

    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", on_the_cpu)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("phosphene.engine_onnx.open_device", torch.device)
    with pytest.raises(SettingError, match="'cuda' is asked for, and ONNX Runtime .* cannot load its CUDA provider"):
        open_onnx_engine(exported, bundle, device="cuda")


def resealed(exported: Path, target: Path, change: object) -> Path:
    """A copy with something changed, and digests that match the change."""
    assert callable(change)
    manifest = read_manifest(exported)
    partial = partial_path(target)
    shutil.copytree(exported, partial, ignore=shutil.ignore_patterns(MANIFEST_NAME))
    change(partial)
    seal(partial, target, kind="engine", inputs=manifest.inputs, config=manifest.config)
    return target


def largest_weight(graph: Path) -> tuple[int, int]:
    """Offset and length of the largest float32 tensor beside the graph."""
    model = onnx.load(graph, load_external_data=False)
    places = [
        {entry.key: entry.value for entry in weight.external_data}
        for weight in model.graph.initializer
        if weight.data_type == onnx.TensorProto.FLOAT and weight.external_data
    ]
    return max(((int(place["offset"]), int(place["length"])) for place in places), key=lambda place: place[1])


def void(_: object) -> None:
    return None
