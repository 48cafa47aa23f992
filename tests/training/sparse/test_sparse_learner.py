import dataclasses

import pytest
import torch

from training.learner import Learner
from training.settings import BiasInit, TrainingSettings
from training.sparse.learner import CpuSparseLearner
from training.sparse.torch_learner import TorchSparseLearner
from training.variants import (
    BatchTopKTraining,
    MatryoshkaTraining,
    SelectionPrecision,
    SparseVariant,
    TopKTraining,
)
from training.weights import Weights

ROWS, WIDTH, NEURONS, DEAD = 96, 24, 96, 16
SETTINGS = TrainingSettings(
    step_count=200, batch_rows=ROWS, learning_rate=3e-3, dead_after_samples=2 * ROWS, bias_init=BiasInit.MEAN, seed=0
)
VARIANTS = [TopKTraining(k=5), BatchTopKTraining(k=5), MatryoshkaTraining(k=5, prefixes=(6, 24, NEURONS))]


def start(*, dead_count: int = DEAD) -> Weights:
    """Random weights whose last neurons are so faint that they are never selected by themselves."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(NEURONS, WIDTH, generator=generator), dim=1)
    encoder_weight = 0.6 * directions.T.clone()
    encoder_weight[:, NEURONS - dead_count :] *= 1e-3
    return Weights(
        encoder_weight=encoder_weight,
        encoder_bias=torch.zeros(NEURONS),
        directions=directions,
        decoder_bias=0.1 * torch.randn(WIDTH, generator=generator),
    )


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(ROWS, WIDTH, generator=generator) for _ in range(count)]


def kernels(variant: SparseVariant, *, thread_count: int = 2, settings: TrainingSettings = SETTINGS) -> Learner:
    return CpuSparseLearner(start(), variant, settings, thread_count=thread_count)


def plain(variant: SparseVariant, *, settings: TrainingSettings = SETTINGS) -> Learner:
    return TorchSparseLearner(start(), variant, settings, device=torch.device("cpu"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_take_the_steps_of_autograd_dead_neurons_included(variant: SparseVariant) -> None:
    ours, due = kernels(variant), plain(variant)
    for index, inputs in enumerate(batches(12)):
        found, expected = ours.step(inputs), due.step(inputs)
        assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-5)
        assert float(found.l0) == pytest.approx(float(expected.l0))
        assert found.dead_count == expected.dead_count
        assert (found.dead_count >= DEAD) == (index >= 2)
        for name, value in due.weights.tensors().items():
            assert torch.allclose(ours.weights.tensors()[name], value, atol=3e-6), (index, name)


def test_dead_neurons_with_positive_pre_activations_learn_and_nothing_else_moves_for_them() -> None:
    silent = dataclasses.replace(SETTINGS, dead_after_samples=ROWS, auxiliary_coefficient=1 / 32)
    deaf = dataclasses.replace(silent, auxiliary_coefficient=0.0)
    inputs = batches(1)[0]
    moved = {}
    for name, settings in (("with", silent), ("without", deaf)):
        learner = kernels(TopKTraining(k=5), settings=settings)
        assert learner.step(inputs).dead_count == 0
        assert learner.step(inputs).dead_count == DEAD
        tensors = learner.weights.tensors()
        moved[name] = {
            "encoder": (tensors["encoder_weight"] - start().encoder_weight).abs().sum(dim=0)[-DEAD:],
            "directions": (tensors["directions"] - start().directions).abs().sum(dim=1)[-DEAD:],
        }
    pre = (inputs - start().decoder_bias) @ start().encoder_weight
    assert (pre[:, -DEAD:] > 0).any(dim=0).all()
    for part in ("encoder", "directions"):
        assert (moved["with"][part] > 1e-6).all()
        assert (moved["without"][part] < 1e-6).all()


def test_the_auxiliary_loss_reaches_neither_living_neurons_nor_the_decoder_bias() -> None:
    found = {}
    for coefficient in (0.0, 1 / 32):
        settings = dataclasses.replace(SETTINGS, auxiliary_coefficient=coefficient, gradient_clip=1e9)
        learner = kernels(BatchTopKTraining(k=5), settings=settings)
        for inputs in batches(3):  # the third is the first with dead neurons
            learner.step(inputs)
        found[coefficient] = {name: value.clone() for name, value in learner.weights.tensors().items()}
    living = slice(0, NEURONS - DEAD)
    assert torch.equal(found[0.0]["decoder_bias"], found[1 / 32]["decoder_bias"])
    assert torch.equal(found[0.0]["directions"][living], found[1 / 32]["directions"][living])
    assert not torch.equal(found[0.0]["directions"], found[1 / 32]["directions"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_threads_do_not_show_in_the_result(variant: SparseVariant) -> None:
    ends = []
    for thread_count in (1, 2, 3):
        learner = kernels(variant, thread_count=thread_count)
        for inputs in batches(6):
            learner.step(inputs)
        ends.append(learner.weights.tensors())
    for other in ends[1:]:
        assert all(torch.equal(value, other[name]) for name, value in ends[0].items())


@pytest.mark.parametrize("make", [kernels, plain])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_restored_learner_goes_on_in_the_same_bits(make, variant: SparseVariant) -> None:  # type: ignore[no-untyped-def]
    data = batches(8)
    whole, first = make(variant), make(variant)
    for inputs in data:
        whole.step(inputs)
    for inputs in data[:5]:
        first.step(inputs)
    stored = {name: tensor.detach().clone() for name, tensor in first.state().items()}
    again = make(variant)
    again.restore(5, stored)
    for inputs in data[5:]:
        again.step(inputs)
    assert again.step_count == whole.step_count
    assert all(torch.equal(value, again.state()[name]) for name, value in whole.state().items())


def test_in_bfloat16_too_a_restored_learner_goes_on_in_the_same_bits() -> None:
    # Neuron 0 is worth more than neuron 1 on a row of ones, and bfloat16 has it the other way round: which of them is
    # selected follows from where the search begins, which the batches before say.
    encoder_weight = torch.zeros(5, 3)
    encoder_weight[:4, 0] = 1.0038
    encoder_weight[:4, 1] = torch.tensor([1.0, 1.004, 1.004, 1.004])
    encoder_weight[4, 2] = 2.36
    weights = Weights(
        encoder_weight=encoder_weight,
        encoder_bias=torch.zeros(3),
        directions=torch.nn.functional.normalize(torch.ones(3, 5), dim=1),
        decoder_bias=torch.zeros(5),
    )
    variant = TopKTraining(k=1, precision=SelectionPrecision.BFLOAT16)
    settings = dataclasses.replace(SETTINGS, learning_rate=1e-20)
    before, after = torch.zeros(4, 5), torch.ones(4, 5)
    before[:, 4], after[:, 4] = 1.0, 0.0
    whole, again = (CpuSparseLearner(weights, variant, settings, thread_count=1) for _ in range(2))
    whole.step(before)
    again.restore(1, {name: tensor.clone() for name, tensor in whole.state().items()})
    for learner in (whole, again):
        learner.step(after)
    assert all(torch.equal(value, again.state()[name]) for name, value in whole.state().items())


def test_kernels_and_plain_torch_read_each_others_checkpoints() -> None:
    variant, data = BatchTopKTraining(k=5), batches(6)
    first, due = kernels(variant), plain(variant)
    for inputs in data[:3]:
        first.step(inputs)
        due.step(inputs)
    second = plain(variant)
    second.restore(3, first.state())
    for inputs in data[3:]:
        second.step(inputs)
        due.step(inputs)
    for name, value in due.weights.tensors().items():
        assert torch.allclose(second.weights.tensors()[name], value, atol=3e-6)


@pytest.mark.parametrize("make", [kernels, plain])
def test_a_step_that_would_lead_to_nan_is_skipped_and_changes_nothing(make) -> None:  # type: ignore[no-untyped-def]
    learner = make(BatchTopKTraining(k=5))
    learner.step(batches(1)[0])
    before = {name: tensor.detach().clone() for name, tensor in learner.state().items()}
    bad = batches(1)[0].clone()
    bad[3, 2] = float("nan")
    assert learner.step(bad).is_skipped
    assert learner.step_count == 2
    assert all(torch.equal(value, learner.state()[name]) for name, value in before.items())
    assert not learner.step(batches(1)[0]).is_skipped


@pytest.mark.parametrize("make", [kernels, plain])
def test_directions_keep_unit_norm(make) -> None:  # type: ignore[no-untyped-def]
    learner = make(MatryoshkaTraining(k=5, prefixes=(6, 24, NEURONS)))
    for inputs in batches(5):
        learner.step(inputs)
    assert torch.allclose(learner.weights.directions.norm(dim=1), torch.ones(NEURONS), atol=1e-6)


def test_matryoshka_minimises_the_mean_over_its_prefixes_with_one_selection() -> None:
    """Against the dense loss, written plainly, in float64."""
    variant = MatryoshkaTraining(k=5, prefixes=(6, 24, NEURONS))
    settings = dataclasses.replace(SETTINGS, gradient_clip=1e9)
    inputs = batches(1)[0]
    learner = CpuSparseLearner(start(dead_count=0), variant, settings, thread_count=1)
    learner.step(inputs)
    tensors = {name: value.double().requires_grad_() for name, value in start(dead_count=0).tensors().items()}
    pre = (inputs.double() - tensors["decoder_bias"]) @ tensors["encoder_weight"] + tensors["encoder_bias"]
    edge = pre.detach().flatten().topk(5 * ROWS).values[-1]
    code = torch.where(pre >= edge, pre, 0).clamp_min(0)
    losses = [
        (code[:, :size] @ tensors["directions"][:size] + tensors["decoder_bias"] - inputs).square().mean()
        for size in variant.prefixes
    ]
    gradient = torch.autograd.grad(sum(losses) / len(losses), tensors["encoder_weight"])[0]
    # Adam's first moment after one step is a tenth of the gradient.
    found = learner.state()["encoder_rows.mean"].T / 0.1
    assert torch.allclose(found.double(), gradient, atol=1e-7)
