import pytest
import torch
from torch import Tensor

from phosphene.errors import DeviceOutOfMemory
from tests.training.scripted_learner import ScriptedLearner, UndividedLearner
from training.learner import StepReport
from training.memory import RowBlocks, step_in_blocks


def test_blocks_are_halved_until_they_fit_and_the_batch_stays_whole() -> None:
    learner, blocks = ScriptedLearner(rows_that_fit=10), RowBlocks(64)
    inputs = torch.arange(256.0).reshape(64, 4)
    step_in_blocks(learner, inputs, blocks)
    assert (learner.block_rows, blocks.limit, blocks.halved_count) == (8, 8, 3)
    assert learner.step_count == 1
    assert torch.equal(learner.weights.decoder_bias, inputs.mean(dim=0))


def test_what_fits_is_left_alone() -> None:
    learner, blocks = ScriptedLearner(block_rows=16), RowBlocks(64)
    step_in_blocks(learner, torch.ones(64, 4), blocks)
    assert (learner.block_rows, blocks.halved_count) == (16, 0)


def test_halving_goes_on_from_the_learners_own_blocks() -> None:
    learner = ScriptedLearner(rows_that_fit=3, block_rows=4)
    step_in_blocks(learner, torch.ones(64, 4), RowBlocks(64))
    assert learner.block_rows == 2


def test_one_row_that_does_not_fit_is_refused() -> None:
    learner = ScriptedLearner(rows_that_fit=0)
    with pytest.raises(
        DeviceOutOfMemory, match="one row of a batch does not fit .* fewer --neurons, or a machine with more memory$"
    ):
        step_in_blocks(learner, torch.ones(64, 4), RowBlocks(64))
    assert learner.step_count == 0


def test_one_row_that_does_not_fit_on_a_gpu_may_fit_elsewhere() -> None:
    with pytest.raises(DeviceOutOfMemory, match="fewer --neurons, or a larger device, or --device cpu$"):
        RowBlocks(1).halve(torch.device("cuda:0"))


def test_a_learner_that_takes_only_whole_batches_says_so() -> None:
    with pytest.raises(
        DeviceOutOfMemory, match="a step over 64 rows does not fit .* smaller --batch, fewer .*, or a mach"
    ):
        step_in_blocks(UndividedLearner(rows_that_fit=10), torch.ones(64, 4), RowBlocks(64))


class FailingLearner(ScriptedLearner):
    """Its device says in these words that it cannot go on."""

    text = ""

    def step(self, inputs: Tensor) -> StepReport:
        try:
            return super().step(inputs)
        except torch.OutOfMemoryError:
            raise RuntimeError(self.text) from None


@pytest.mark.parametrize("text", ["CUDA error: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_memory_that_a_library_lacks_is_memory_too(text: str) -> None:
    learner = FailingLearner(rows_that_fit=10)
    learner.text = text
    step_in_blocks(learner, torch.ones(64, 4), RowBlocks(64))
    assert (learner.block_rows, learner.step_count) == (8, 1)


def test_another_error_is_not_tried_again() -> None:
    learner = FailingLearner(rows_that_fit=10)
    learner.text = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        step_in_blocks(learner, torch.ones(64, 4), RowBlocks(64))
    assert learner.block_rows > 64
