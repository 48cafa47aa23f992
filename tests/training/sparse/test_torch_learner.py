import dataclasses
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from phosphene.errors import DeviceOutOfMemory
from tests.training.recorded_progress import RecordedProgress
from tests.training.sparse.dispatch import NeverWaits, RunsOutOfMemory
from tests.training.sparse.test_sparse_learner import (
    DEAD,
    NEURONS,
    ROWS,
    SETTINGS,
    VARIANTS,
    WIDTH,
    batches,
    kernels,
    start,
)
from training.active import choose_active
from training.checkpoint import CheckpointFolder
from training.curve import Curve
from training.journal import read_journal
from training.memory import RowBlocks, WorksInBlocks, step_in_blocks
from training.objectives import auxiliary_loss, reconstruction_loss
from training.ranks import Ranks
from training.run import Run, resume
from training.settings import TrainingSettings
from training.sparse.torch_gradients import Batch, Parameters, TorchSparseGradients
from training.sparse.torch_learner import TorchSparseLearner
from training.sparse.torch_sums import PlainSums, sums_for, triton_sums, why_plain
from training.variants import (
    BatchTopKTraining,
    MatryoshkaTraining,
    SelectionPrecision,
    SparseVariant,
    TopKTraining,
)

CPU = torch.device("cpu")
IS_DEAD = torch.arange(NEURONS) >= NEURONS - DEAD
COEFFICIENT = 1 / 4
IN_BFLOAT16 = [dataclasses.replace(variant, precision=SelectionPrecision.BFLOAT16) for variant in VARIANTS]


def learner(
    variant: SparseVariant,
    *,
    device: torch.device = CPU,
    settings: TrainingSettings = SETTINGS,
) -> TorchSparseLearner:
    return TorchSparseLearner(start(), variant, settings, device=device)


def snapshot(of: TorchSparseLearner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in of.state().items()}


def parameters() -> Parameters:
    weights = start().tensors()
    return Parameters(
        weights["encoder_weight"].T.contiguous(),
        weights["encoder_bias"],
        weights["directions"],
        weights["decoder_bias"],
    )


def chosen(variant: SparseVariant, pre: Tensor) -> Tensor:
    """Which neurons of which rows are active, as a table."""
    values, neuron_ids, row_starts = choose_active(variant, pre)
    rows = torch.searchsorted(row_starts, torch.arange(len(values)), right=True) - 1
    table = torch.zeros_like(pre, dtype=torch.bool)
    table[rows, neuron_ids] = values > 0
    return table


def gradients_of_autograd(
    inputs: Tensor, variant: SparseVariant, is_dead: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of a dense code in float64, selected in the variant's precision."""
    dtype = torch.bfloat16 if variant.precision is SelectionPrecision.BFLOAT16 else torch.float32
    found = parameters()
    rows, bias, directions, offset = learnt = [tensor.double().requires_grad_() for tensor in found]
    plain = torch.addmm(found[1].to(dtype), (inputs - found[3]).to(dtype), found[0].to(dtype).T)
    pre = (inputs.double() - offset) @ rows.T + bias
    code = torch.where(chosen(variant, plain), pre, 0).relu()
    sizes = variant.prefixes if isinstance(variant, MatryoshkaTraining) else (NEURONS,)
    losses = [reconstruction_loss(inputs.double(), code[:, :size] @ directions[:size] + offset) for size in sizes]
    objective = torch.stack(losses).mean()
    if is_dead is not None:
        strongest = chosen(TopKTraining(k=min(WIDTH // 2, int(is_dead.sum()))), plain.masked_fill(~is_dead, -torch.inf))
        again = (inputs.double() - offset.detach()) @ rows.T + bias
        residual = inputs.double() - code @ directions - offset
        dead_reconstruction = torch.where(strongest, again, 0).relu() @ directions
        objective = objective + COEFFICIENT * auxiliary_loss(residual, dead_reconstruction)
    return losses[-1].detach(), list(torch.autograd.grad(objective, learnt))


# In bfloat16 many pre-activations are equal, and which of those stay may depend on the blocks.
@pytest.mark.parametrize(
    ("variant", "block_rows"),
    [*((variant, ROWS) for variant in VARIANTS + IN_BFLOAT16), *((variant, 23) for variant in VARIANTS)],
)
@pytest.mark.parametrize("with_dead", [False, True])
def test_gradients_are_those_of_autograd_on_a_dense_code(
    variant: SparseVariant, with_dead: bool, block_rows: int
) -> None:
    inputs = batches(1)[0]
    core = TorchSparseGradients(
        parameters(),
        variant,
        PlainSums(),
        auxiliary_coefficient=COEFFICIENT,
    )
    batch = Batch(inputs, IS_DEAD, torch.arange(NEURONS) if with_dead else None)
    done = core.compute(batch, block_rows=block_rows)
    loss, due = gradients_of_autograd(inputs, variant, IS_DEAD if with_dead else None)
    assert float(done.loss) == pytest.approx(float(loss), rel=1e-6)
    for name, gradient, expected in zip(Parameters._fields, done.gradients, due, strict=True):
        assert float((gradient - expected).abs().max()) < 1e-6 * float(expected.abs().max()), name
    assert bool(done.gradients.encoder_rows[IS_DEAD].any()) == with_dead


@pytest.mark.parametrize("variant", VARIANTS)
def test_living_neurons_among_the_candidates_change_no_bit(variant: SparseVariant) -> None:
    core = TorchSparseGradients(parameters(), variant, PlainSums(), auxiliary_coefficient=COEFFICIENT)
    exact, loose, loosest = (
        core.compute(Batch(batches(1)[0], IS_DEAD, torch.arange(first, NEURONS)), block_rows=ROWS)
        for first in (NEURONS - DEAD, NEURONS - 2 * DEAD, 0)
    )
    for other in (loose, loosest):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(exact.gradients, other.gradients, strict=True))
        assert torch.equal(exact.fired, other.fired)


@pytest.mark.parametrize("variant", VARIANTS + IN_BFLOAT16)
def test_nothing_in_a_step_waits_for_the_device(variant: SparseVariant) -> None:
    ours = learner(variant)
    with NeverWaits():
        reports = [ours.step(inputs) for inputs in batches(12)]
    assert [int(report.dead_count) >= DEAD for report in reports] == [False] * 2 + [True] * 10


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_asked_for_where_nothing_can_be_read(variant: SparseVariant) -> None:
    """On the meta device tensors have sizes and no values; a tensor elsewhere would have to be copied there."""
    ours = learner(
        variant, device=torch.device("meta"), settings=dataclasses.replace(SETTINGS, dead_after_samples=10**9)
    )
    for _ in range(3):
        report = ours.step(torch.empty(ROWS, WIDTH, device="meta"))
    assert {tensor.device.type for tensor in (report.loss, report.l0, report.dead_count, report.is_skipped)} == {"meta"}


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS + IN_BFLOAT16)
def test_a_step_on_a_gpu_waits_for_nothing(variant: SparseVariant) -> None:
    device = torch.device("cuda")
    ours = learner(variant, device=device)
    data = [inputs.to(device) for inputs in batches(12)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        reports = [ours.step(inputs) for inputs in data]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [int(report.dead_count) >= DEAD for report in reports] == [False] * 2 + [True] * 10


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gpu_takes_the_steps_of_the_kernels(variant: SparseVariant) -> None:
    ours, due = learner(variant, device=torch.device("cuda")), kernels(variant)
    for inputs in batches(12):
        found, expected = ours.step(inputs.to("cuda")), due.step(inputs)
        assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-5)
        assert int(found.dead_count) == expected.dead_count
    for name, value in due.weights.tensors().items():
        assert torch.allclose(ours.weights.tensors()[name].cpu(), value, atol=1e-5), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_in_blocks_of_rows_is_the_same_step(variant: SparseVariant) -> None:
    whole, parts = learner(variant), learner(variant)
    assert isinstance(parts, WorksInBlocks)
    parts.block_rows = 23
    for inputs in batches(8):
        due, found = whole.step(inputs), parts.step(inputs)
        assert float(found.loss) == pytest.approx(float(due.loss), rel=1e-6)
        assert float(found.l0) == float(due.l0)
        assert int(found.dead_count) == int(due.dead_count)
    for name, tensor in snapshot(whole).items():
        assert torch.allclose(parts.state()[name].double(), tensor.double(), atol=1e-6), name


@pytest.mark.parametrize("variant", VARIANTS[:2] + IN_BFLOAT16[:2])
def test_in_blocks_nothing_has_rows_times_neurons_values(variant: SparseVariant) -> None:
    ours = learner(variant)
    ours.block_rows = 8
    memory = RunsOutOfMemory()
    with memory:
        for inputs in batches(4):
            ours.step(inputs)
    # Two reconstructions of every row: by all neurons, and of what is left by the dead ones.
    assert memory.largest == 2 * ROWS * WIDTH < ROWS * NEURONS


@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_a_batch_that_does_not_fit_is_learnt_from_in_smaller_blocks(variant: SparseVariant) -> None:
    ours, due, blocks = learner(variant), learner(variant), RowBlocks(ROWS)
    with RunsOutOfMemory(limit_values=ROWS * NEURONS // 2 + 100):
        for inputs in batches(4):
            step_in_blocks(ours, inputs, blocks)
    for inputs in batches(4):
        due.step(inputs)
    # A block of 48 rows has fewer pre-activations than fit; the directions of its active neurons are more.
    assert (ours.block_rows, blocks.limit, blocks.halved_count) == (24, 24, 2)
    assert ours.step_count == 4
    for name, tensor in snapshot(due).items():
        assert torch.allclose(ours.state()[name].double(), tensor.double(), atol=1e-6), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_that_runs_out_of_memory_anywhere_has_changed_nothing(variant: SparseVariant) -> None:
    ours, due = learner(variant), learner(variant)
    *data, last = batches(4)
    for inputs in data:
        ours.step(inputs)
        due.step(inputs)
    before, failed_count = snapshot(ours), 0
    while True:
        try:
            with RunsOutOfMemory(fails_at=failed_count):
                ours.step(last)
            break
        except torch.OutOfMemoryError:
            failed_count += 1
        assert ours.step_count == 3
        assert all(torch.equal(tensor, ours.state()[name]) for name, tensor in before.items())
    assert failed_count > 50
    due.step(last)
    assert all(torch.equal(tensor, ours.state()[name]) for name, tensor in snapshot(due).items())


def test_one_of_several_processes_does_not_step_again_by_itself() -> None:
    """The others would wait for it in another place of the step."""
    ranks = Ranks(rank=1, count=2)
    ours = TorchSparseLearner(start(), TopKTraining(k=5), SETTINGS, device=CPU, ranks=ranks)
    inputs = batches(1)[0]
    with RunsOutOfMemory(fails_at=0), pytest.raises(DeviceOutOfMemory, match="process 1: use a smaller --batch"):
        step_in_blocks(ours, inputs, RowBlocks(ROWS))
    assert ours.step_count == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_neurons_that_die_after_a_restart_are_seen_in_time(variant: SparseVariant) -> None:
    """A restarted learner has counted less far ahead than one that never stopped; both end in the same bits."""
    settings = dataclasses.replace(SETTINGS, dead_after_samples=9 * ROWS)
    data, stopped_at = batches(16), 8
    whole = learner(variant, settings=settings)
    reports = [whole.step(inputs) for inputs in data[:stopped_at]]
    again = learner(variant, settings=settings)
    again.restore(stopped_at, snapshot(whole))
    for inputs in data[stopped_at:]:
        reports.append(whole.step(inputs))
        found = again.step(inputs)
        assert torch.equal(found.loss, reports[-1].loss)
        assert int(found.dead_count) == int(reports[-1].dead_count)
    assert [int(report.dead_count) > 0 for report in reports] == [False] * 9 + [True] * 7
    assert all(torch.equal(tensor, again.state()[name]) for name, tensor in snapshot(whole).items())


def test_the_least_active_value_is_reported_where_selection_is_over_the_batch() -> None:
    inputs = batches(1)[0]
    pre = start().pre_activations(inputs)
    report = learner(BatchTopKTraining(k=5)).step(inputs)
    assert float(report.least_active) == pytest.approx(float(pre.flatten().topk(5 * ROWS).values[-1]), rel=1e-5)
    assert learner(TopKTraining(k=5)).step(inputs).least_active is None


def test_a_run_reads_what_the_steps_only_promised(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, step_count=20, dead_after_samples=4 * ROWS)
    progress = RecordedProgress()
    checkpoints = CheckpointFolder(tmp_path / "checkpoints", plan_id="p", every_steps=10, time_share=1.0)
    ours, data = learner(BatchTopKTraining(k=5), settings=settings), batches(20)
    data[6] = torch.full_like(data[6], torch.nan)
    journal = tmp_path / "journal.jsonl"
    with Curve(
        "name", run="r", step=0, journal=journal, tensorboard=None, metrics_file=None, progress=progress
    ) as curve:
        run = Run(
            ours,
            settings,
            run_id="r",
            variance=1.0,
            checkpoint=None,
            checkpoints=checkpoints,
            curve=curve,
            progress=progress,
        )
        for inputs in data:
            run.step(inputs)
    assert run.skipped_count == 1
    assert [line["skipped_count"] for line in read_journal(journal, run="r")] == [1, 1]
    assert [line["dead_share"] >= DEAD / NEURONS for line in read_journal(journal, run="r")] == [True, True]
    again = learner(BatchTopKTraining(k=5), settings=settings)
    checkpoint = resume(again, checkpoints, progress)
    assert checkpoint is not None
    assert checkpoint.counts["skipped"] == 1
    assert all(torch.equal(tensor, again.state()[name]) for name, tensor in snapshot(ours).items())


def test_only_cuda_devices_have_triton() -> None:
    assert isinstance(sums_for(CPU), PlainSums)
    assert why_plain(CPU) is None


def give_triton(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """A Triton that raises at every launch, or sums in plain torch."""

    class TritonSums(PlainSums):
        def weighted(self, *arguments: Tensor) -> Tensor:
            if error is not None:
                raise error
            return super().weighted(*arguments)

    module = ModuleType("training.sparse.triton_sums")
    monkeypatch.setattr(module, "TritonSums", TritonSums, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_kernels_that_run_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    give_triton(monkeypatch, None)
    assert type(triton_sums(CPU)).__name__ == "TritonSums"


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler.\nMore"), FileNotFoundError("gcc")])
def test_kernels_that_cannot_be_compiled_give_way_to_plain_torch(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    give_triton(monkeypatch, error)
    assert triton_sums(CPU) == f"{type(error).__name__}: {error}".partition("\n")[0]
    monkeypatch.setattr("training.sparse.torch_sums._try_out", lambda sums, device: sums.weighted())
    cuda = torch.device("cuda")
    assert isinstance(sums_for(cuda), PlainSums)
    assert why_plain(cuda) == triton_sums(cuda)


def test_memory_that_runs_out_is_no_fault_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    give_triton(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        triton_sums(CPU)
