"""A shared pass gives each image what it gets alone, and runs no block that nobody needs."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.bundle import Bundle
from phosphene.device_errors import device_errors
from phosphene.encoder import Family, Site, Tokens
from phosphene.engine import EngineName, EngineRequest, Want
from phosphene.engine_device import bucket_size, take_rows, used_memory_bytes
from phosphene.engine_shared import SharedEngine, group_bundles, open_shared_engine
from phosphene.engine_torch import TorchEngine
from phosphene.errors import (
    ArtefactMismatch,
    DeviceFailed,
    DeviceOutOfMemory,
    NumericError,
    ReadoutMissing,
)
from phosphene.readout import SimilarityReadout
from tests.families import BLOCK_COUNT, write_encoder
from tests.phosphene.engine_bundles import assert_row, make_bundle, random_pixels

_SITES = (
    Site(block=0, tokens=Tokens.CLS),
    Site(block=1, tokens=Tokens.ALL),
    Site(block=1, tokens=Tokens.PATCHES),
    Site(block=BLOCK_COUNT - 1, tokens=Tokens.MEAN),
    Site(block=None, tokens=Tokens.EMBEDDING),
)

wants = st.builds(
    Want,
    token_codes=st.booleans(),
    fidelity=st.booleans(),
    residuals=st.booleans(),
    embeddings=st.booleans(),
    scores=st.booleans(),
)
requests = st.builds(EngineRequest, bundle=st.integers(0, len(_SITES) - 1), want=wants)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("shared")
    encoder = write_encoder(folder / "encoder", Family.CLIP)
    return [
        make_bundle(folder / f"bundle-{place}", encoder, site, jump=place == 1, twins=place == 2)
        for place, site in enumerate(_SITES)
    ]


@pytest.fixture(scope="module")
def engine(bundles: list[Bundle]) -> SharedEngine:
    return open_shared_engine(bundles)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> SharedEngine:
    """A DINOv2 without text, on its own encoder."""
    folder = tmp_path_factory.mktemp("plain")
    encoder = write_encoder(folder / "encoder", Family.DINOV2)
    return open_shared_engine([make_bundle(folder / "bundle", encoder, Site(block=1, tokens=Tokens.CLS))])


@settings(max_examples=40)
@given(st.lists(requests, min_size=1, max_size=7), st.integers(0, 2**31))
def test_a_row_is_what_its_image_gives_alone(engine: SharedEngine, asked: list[EngineRequest], seed: int) -> None:
    pixels = random_pixels(len(asked), seed)
    for place, (row, request) in enumerate(zip(engine.run_rows(pixels, asked), asked, strict=True)):
        assert_row(row, engine.engines[request.bundle].run(pixels[place : place + 1], request.want), request.want)


@settings(max_examples=20)
@given(st.lists(requests, min_size=1, max_size=6))
def test_each_image_runs_the_blocks_that_its_cost_says(engine: SharedEngine, asked: list[EngineRequest]) -> None:
    passes: list[int] = []
    blocks = engine.engines[0].encoder._tower.blocks
    listeners = [block.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0]))) for block in blocks]
    try:
        engine.run_rows(random_pixels(len(asked), 0), asked)
    finally:
        for listener in listeners:
            listener.remove()
    assert sum(passes) == sum(engine.cost(request) for request in asked)
    assert len(passes) == max(engine.cost(request) for request in asked)


def test_costs_are_counted_in_blocks(engine: SharedEngine) -> None:
    assert [engine.cost(EngineRequest(bundle=place)) for place in range(5)] == [1, 2, 2, 3, 3]
    assert engine.cost(EngineRequest(bundle=0, want=Want(scores=True))) == BLOCK_COUNT
    assert engine.name is EngineName.TORCH
    assert engine.can(Want(scores=True, embeddings=True))


def test_twins_go_to_the_lower_neuron_whoever_is_beside(engine: SharedEngine) -> None:
    pixels = random_pixels(3, 5)
    for row in engine.run_rows(pixels, [EngineRequest(bundle=2, want=Want(token_codes=True))] * 3):
        assert row.token_values is not None
        assert row.token_neuron_ids is not None
        # k is odd: each neuron comes with its twin but for the last, which is the lower one
        assert (row.token_neuron_ids[:, 1:6:2] - row.token_neuron_ids[:, 0:6:2] == 24).all()
        assert (row.token_neuron_ids[:, 6] < 24).all()


def test_a_second_batch_may_be_launched_before_the_first_is_collected(engine: SharedEngine) -> None:
    pixels, asked = random_pixels(6, 1), [EngineRequest(bundle=1, want=Want(fidelity=True))] * 3
    first, second = engine.launch(pixels[:3], asked), engine.launch(pixels[3:], asked)
    for place, row in enumerate([*first(), *second()]):
        assert_row(row, engine.engines[1].run(pixels[place : place + 1], asked[0].want), asked[0].want)


def test_stages_are_told_once_per_batch(engine: SharedEngine) -> None:
    told: list[tuple[str, float]] = []
    ticks = iter([10.0, 12.0, 15.0])
    timed = SharedEngine(engine.engines, on_stage=lambda *stage: told.append(stage), clock=lambda: next(ticks))
    timed.run_rows(random_pixels(2, 0), [EngineRequest(bundle=0), EngineRequest(bundle=3)])
    assert told == [("encode", 2.0), ("sae", 3.0)]


def test_bundles_are_grouped_by_encoder(engine: SharedEngine, plain: SharedEngine) -> None:
    some, other = [one.bundle for one in engine.engines[:2]], plain.engines[0].bundle
    assert group_bundles([some[0], other, some[1]]) == [(0, 2), (1,)]
    with pytest.raises(ArtefactMismatch, match="another encoder"):
        SharedEngine([engine.engines[0], plain.engines[0]])
    with pytest.raises(ArtefactMismatch, match="digest"):
        open_shared_engine([some[0], other])


def test_a_readout_that_is_not_there_is_refused(plain: SharedEngine) -> None:
    with pytest.raises(ReadoutMissing, match="projected embedding"):
        plain.run_rows(random_pixels(1, 0), [EngineRequest(want=Want(embeddings=True))])


def test_residuals_that_are_no_numbers_are_refused(plain: SharedEngine) -> None:
    layer = plain.engines[0].encoder._tower.blocks[0]
    listener = layer.register_forward_hook(lambda _, __, output: output * torch.nan)
    try:
        with pytest.raises(NumericError, match="NaN"):
            plain.run_rows(random_pixels(1, 0), [EngineRequest()])
    finally:
        listener.remove()


@pytest.mark.parametrize(
    ("raised", "due"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), DeviceOutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), DeviceOutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), DeviceOutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"), DeviceOutOfMemory),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), DeviceOutOfMemory),
        (RuntimeError("CUDA error: out of memory\nmore"), DeviceOutOfMemory),
        (RuntimeError("CUDA driver error: out of memory"), DeviceOutOfMemory),
        (RuntimeError("Triton Error [CUDA]: out of memory"), DeviceOutOfMemory),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nmore"), DeviceFailed),
        (RuntimeError("CUDA driver error: device-side assert triggered"), DeviceFailed),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceFailed),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), DeviceFailed),
        (RuntimeError("shapes do not match"), RuntimeError),
    ],
)
def test_device_errors_have_our_names(raised: Exception, due: type[Exception]) -> None:
    with pytest.raises(due) as caught, device_errors(torch.device("cpu")):
        raise raised
    assert type(caught.value) is due
    assert "\n" not in str(caught.value)


def test_memory_that_ran_out_is_free_once_that_is_said(plain: SharedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    block = plain.engines[0].encoder._tower.blocks[0]
    held: list[weakref.ref[torch.Tensor]] = []

    def forward(hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        larger = hidden.repeat(2, 1, 1)
        held.extend(map(weakref.ref, (hidden, larger)))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(block, "forward", forward)
    with pytest.raises(DeviceOutOfMemory) as caught:
        plain.run_rows(random_pixels(2, 0), [EngineRequest(), EngineRequest()])
    assert caught.value.__cause__ is not None
    assert [tensor() for tensor in held] == [None, None]


def test_the_cpu_has_no_device_memory(engine: SharedEngine) -> None:
    assert engine.device_memory_bytes == 0


@pytest.mark.gpu
def test_device_memory_is_what_everybody_uses() -> None:
    device = torch.device("cuda")
    held = torch.empty(2**26, dtype=torch.uint8, device=device)
    assert held.numel() <= used_memory_bytes(device) <= torch.cuda.get_device_properties(device).total_memory


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_taken_rows_are_the_rows(rows: list[int]) -> None:
    tensor = torch.arange(20).reshape(10, 2)
    np.testing.assert_array_equal(take_rows(tensor, rows).numpy(), tensor.numpy()[rows])


@given(st.integers(1, 300))
def test_buckets_are_few_on_cuda_and_exact_on_the_cpu(count: int) -> None:
    size = bucket_size(count, torch.device("cuda"))
    assert size // 2 < count <= size
    assert size.bit_count() == 1
    assert bucket_size(count, torch.device("cpu")) == count


def test_one_bundle_alone_and_its_texts_tell_the_devices_errors_too(
    bundles: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    alone = TorchEngine(bundles[0])
    assert isinstance(alone.readout, SimilarityReadout)
    monkeypatch.setattr(alone.encoder._tower.blocks[0], "forward", fail)
    with pytest.raises(DeviceOutOfMemory, match="run a smaller one"):
        alone.run(random_pixels(1, 0))
    side = alone.readout._load_text_side()
    monkeypatch.setattr(alone.readout, "_text_side", side._replace(embed=fail))
    with pytest.raises(DeviceOutOfMemory, match="run a smaller one"):
        alone.readout.text_vectors(["red"])
