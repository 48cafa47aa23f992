"""The kernels of Triton against plain torch: compiled where there is a GPU, else run by Triton's interpreter."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.training.sparse.test_sparse_learner import NEURONS, ROWS, VARIANTS, batches
from tests.training.sparse.test_torch_learner import COEFFICIENT, IN_BFLOAT16, IS_DEAD, parameters
from training.sparse.torch_gradients import Batch, Parameters, TorchSparseGradients
from training.sparse.torch_sums import PlainSums, Sums
from training.variants import SparseVariant

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="no package triton: torch's CUDA builds bring it"
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def kernels() -> Iterator[Sums]:
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")  # read when Triton itself is imported, too
        module = importlib.import_module("training.sparse.triton_sums")
        yield module.TritonSums()


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def places(count: int, below: int, *, seed: int) -> Tensor:
    return torch.randint(below, (count,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("width", [1, 24, 128, 200])
def test_weighted_sums_are_those_of_a_plain_loop(kernels: Sums, width: int) -> None:
    table, weights = drawn(40, width, seed=0), drawn(150, seed=1)
    indices = places(150, 40, seed=2)
    starts = torch.tensor([0, 0, 1, 17, 33, 100, 150], device=DEVICE)
    ends = torch.tensor([0, 1, 17, 30, 100, 141, 150], device=DEVICE)
    found = kernels.weighted(table, indices, weights, starts, ends)
    for bag, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        due = (weights[start:end, None].double() * table[indices[start:end]].double()).sum(dim=0)
        assert torch.allclose(found[bag].double(), due, atol=1e-5), bag


@pytest.mark.parametrize("width", [1, 24, 128, 200])
def test_products_of_rows_are_those_of_plain_torch(kernels: Sums, width: int) -> None:
    left, right = drawn(40, width, seed=0), drawn(30, width, seed=1)
    pairs = (left, places(150, 40, seed=2), right, places(150, 30, seed=3))
    is_wanted = drawn(150, seed=4) > 0
    found = kernels.dots(*pairs, is_wanted=is_wanted, slots_at_once=7)
    due = PlainSums().dots(*pairs, is_wanted=is_wanted, slots_at_once=7)
    assert torch.allclose(found, due, atol=1e-4 if width > 24 else 1e-5)
    assert not bool(found[~is_wanted].any())


@pytest.mark.parametrize("variant", VARIANTS + IN_BFLOAT16)
def test_gradients_equal_those_of_plain_torch(kernels: Sums, variant: SparseVariant) -> None:
    batch = Batch(batches(1)[0].to(DEVICE), IS_DEAD.to(DEVICE), torch.arange(NEURONS // 2, NEURONS, device=DEVICE))
    found, again, due = (
        TorchSparseGradients(
            Parameters(*(tensor.to(DEVICE) for tensor in parameters())),
            variant,
            sums,
            auxiliary_coefficient=COEFFICIENT,
        ).compute(batch, block_rows=ROWS)
        for sums in (kernels, kernels, PlainSums())
    )
    assert float(found.loss) == pytest.approx(float(due.loss), rel=1e-6)
    assert torch.equal(found.fired, due.fired)
    for name in Parameters._fields:
        mine, expected = getattr(found.gradients, name), getattr(due.gradients, name)
        assert float((mine - expected).abs().max()) < 1e-5 * float(expected.abs().max()), name
        assert torch.equal(mine, getattr(again.gradients, name)), name
