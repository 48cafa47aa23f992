import dataclasses
import math

import pytest
import torch
from torch import Tensor

from phosphene.selection import JumpReLU, select
from tests.training.synthetic import WIDTH, mixtures
from training.dense_learner import DenseLearner
from training.learner import Learner, StepReport, learning_rate_at
from training.memory import WorksInBlocks
from training.ranks import ALONE, Ranks
from training.settings import BiasInit, SaeSettings, TrainingSettings
from training.trainer import make_learner as learner_of
from training.variants import DenseVariant, JumpReluTraining, ReluTraining
from training.weights import initial_weights

NEURONS = 48
FRY = ReluTraining(l1_coefficient=0.01, is_error_normalised=True, has_ghost_gradients=True, dead_window_steps=4)
HE = ReluTraining(l1_coefficient=0.01, is_error_normalised=False, has_ghost_gradients=False)
JUMP = JumpReluTraining(l0_coefficient=0.003)
VARIANTS = [pytest.param(FRY, id="fry"), pytest.param(HE, id="he"), pytest.param(JUMP, id="jumprelu")]


def rows(count: int, seed: int = 0) -> Tensor:
    drawn = torch.from_numpy(mixtures(count, seed=seed))
    centred = drawn - drawn.mean(dim=0)
    return centred / centred.square().mean().sqrt()


def make_settings(**changes: object) -> TrainingSettings:
    settings = TrainingSettings(
        step_count=200, batch_rows=64, learning_rate=4e-3, dead_after_samples=256, bias_init=BiasInit.MEAN, seed=0
    )
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]


def make_learner(variant: DenseVariant, settings: TrainingSettings | None = None, ranks: Ranks = ALONE) -> DenseLearner:
    sae = SaeSettings(neuron_count=NEURONS, variant=variant)
    weights = initial_weights(rows(256), sae, bias_init=BiasInit.MEAN, seed=3)
    return DenseLearner(weights, variant, settings or make_settings(), device=torch.device("cpu"), ranks=ranks)


def advance(learner: DenseLearner, data: Tensor, count: int) -> list[StepReport]:
    generator = torch.Generator().manual_seed(7 + learner.step_count)
    batch_rows = learner.settings.batch_rows
    return [learner.step(data[torch.randint(len(data), (batch_rows,), generator=generator)]) for _ in range(count)]


def snapshot(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in learner.state().items()}


def plant_dead(learner: DenseLearner, neurons: list[int], *, bias: float = -4.0) -> None:
    """Make these neurons silent, with a record of having been so for long."""
    state = snapshot(learner)
    state["encoder_bias"][neurons] = bias
    state["encoder_weight"][:, neurons] *= 0.1
    state["steps_since_fired"][neurons] = 1000
    state["samples_since_fired"][neurons] = 100_000
    learner.restore(learner.step_count, state)


def plain_loss(x: Tensor, learnt: dict[str, Tensor], variant: DenseVariant) -> Tensor:
    """The loss without ghosts, where the threshold's pseudo-derivative is written as a smooth stand-in worth zero."""
    h = (x - learnt["decoder_bias"]) @ learnt["encoder_weight"] + learnt["encoder_bias"]
    if isinstance(variant, ReluTraining):
        code = h.clamp_min(0)
        penalty = variant.l1_coefficient * code.sum() / len(x)
    else:
        bar = learnt["threshold"]
        inside = ((h - bar).abs() < variant.bandwidth / 2).detach().double()
        step = (h > bar).detach().double() + inside / variant.bandwidth * (bar.detach() - bar)
        code = h * (h > bar).detach() + bar.detach() * inside / variant.bandwidth * (bar.detach() - bar)
        penalty = variant.l0_coefficient * step.sum() / len(x)
    error = (x - code @ learnt["directions"] - learnt["decoder_bias"]) ** 2
    if isinstance(variant, ReluTraining) and variant.is_error_normalised:
        error = error / (x**2).sum(dim=1, keepdim=True).sqrt()
    return error.mean() + penalty


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_equal_a_plain_reference_in_double_precision(variant: DenseVariant) -> None:
    data, settings = rows(64 * 5), make_settings(gradient_clip=0.05)
    if isinstance(variant, ReluTraining):
        variant = dataclasses.replace(variant, has_ghost_gradients=False)
    learner = make_learner(variant, settings)
    names = [name for name in learner.state() if f"{name}.mean" in learner.state()]
    learnt = {name: learner.state()[name].detach().double().requires_grad_() for name in names}
    moments = {name: (torch.zeros_like(learnt[name]), torch.zeros_like(learnt[name])) for name in names}
    for step in range(5):
        x = data[64 * step : 64 * step + 64]
        learner.step(x)
        loss = plain_loss(x.double(), learnt, variant)
        gradients = dict(zip(names, torch.autograd.grad(loss, learnt.values()), strict=True))
        with torch.no_grad():
            unit = learnt["directions"]
            for neuron in range(NEURONS):
                gradient = gradients["directions"][neuron]
                gradients["directions"][neuron] -= (gradient @ unit[neuron]) * unit[neuron]
            norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
            for name, gradient in gradients.items():
                gradient *= min(1.0, settings.gradient_clip / norm)
                mean, square = moments[name]
                mean += 0.1 * (gradient - mean)
                square += 0.001 * (gradient**2 - square)
                size = (square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                learnt[name] -= learning_rate_at(step, settings) * mean / (1 - 0.9 ** (step + 1)) / size
            unit /= unit.norm(dim=1, keepdim=True)
            if "threshold" in learnt:
                learnt["threshold"].clamp_(min=0)
    for name in names:
        # Where a gradient is all but zero, Adam's first steps go by its sign, which rounding decides.
        settled = moments[name][1].sqrt() > 1e-6 * float(moments[name][1].max().sqrt())
        is_equal = torch.isclose(learner.state()[name].double(), learnt[name].detach(), rtol=1e-3, atol=2e-5)
        assert bool((is_equal | ~settled).all()), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_learner_learns_and_keeps_its_invariants(variant: DenseVariant) -> None:
    learner = make_learner(variant)
    assert isinstance(learner, Learner)
    reports = advance(learner, rows(1024), 200)
    assert learner.step_count == 200
    assert float(reports[-1].loss) < 0.15 < 1 < float(reports[0].loss)
    assert not any(report.is_skipped for report in reports)
    norms = learner.weights.directions.detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(NEURONS))
    if "threshold" in learner.state():
        assert bool((learner.state()["threshold"] >= 0).all())


@pytest.mark.parametrize(
    ("lax", "strict"),
    [
        (FRY, dataclasses.replace(FRY, l1_coefficient=0.04)),
        (HE, dataclasses.replace(HE, l1_coefficient=0.1)),
        (JUMP, dataclasses.replace(JUMP, l0_coefficient=0.1)),
    ],
    ids=["fry", "he", "jumprelu"],
)
def test_l0_falls_as_the_coefficient_rises(lax: DenseVariant, strict: DenseVariant) -> None:
    data = rows(1024)
    quick = make_settings(step_count=120, learning_rate=1e-2)
    dense, sparse = (float(advance(make_learner(variant, quick), data, 120)[-1].l0) for variant in (lax, strict))
    assert 0 < sparse < 0.7 * dense


def test_the_reported_loss_is_the_mean_squared_error_whatever_is_minimised() -> None:
    x = rows(64)
    fry, he = make_learner(FRY).step(x), make_learner(HE).step(x)
    assert torch.equal(fry.loss, he.loss)
    learner = make_learner(HE)
    weights = {name: tensor.detach() for name, tensor in learner.weights.tensors().items()}
    code = ((x - weights["decoder_bias"]) @ weights["encoder_weight"] + weights["encoder_bias"]).relu()
    error = (x - weights["decoder_bias"] - code @ weights["directions"]).square().mean()
    torch.testing.assert_close(he.loss, error)
    assert float(he.l0) == pytest.approx(float((code > 0).sum(dim=1).float().mean()))


def test_ghost_gradients_reach_the_dead_neurons_and_nothing_else() -> None:
    dead = [3, 17, 40]
    alive = [neuron for neuron in range(NEURONS) if neuron not in dead]
    without = dataclasses.replace(FRY, has_ghost_gradients=False)
    learners = [make_learner(variant, make_settings(gradient_clip=math.inf)) for variant in (FRY, without)]
    before = None
    for learner in learners:
        plant_dead(learner, dead)
        before = before or snapshot(learner)
        learner.step(rows(64))
    ghostly, plain = (snapshot(learner) for learner in learners)
    assert before is not None
    assert torch.equal(ghostly["decoder_bias"], plain["decoder_bias"])
    assert torch.equal(ghostly["encoder_weight"][:, alive], plain["encoder_weight"][:, alive])
    assert torch.equal(ghostly["encoder_bias"][alive], plain["encoder_bias"][alive])
    assert torch.equal(ghostly["directions"][alive], plain["directions"][alive])
    for name in ("encoder_weight.mean", "encoder_bias.mean", "directions.mean"):
        columns = (slice(None), dead) if name == "encoder_weight.mean" else (dead,)
        assert bool((ghostly[name][columns] != 0).all()), name
        assert not bool(plain[name][columns].any()), name
    assert torch.equal(plain["encoder_weight"][:, dead], before["encoder_weight"][:, dead])
    assert bool((ghostly["steps_since_fired"][dead] == 1001).all())


def test_only_neurons_silent_for_the_window_get_ghost_gradients() -> None:
    learner = make_learner(FRY)
    silent = [5, 9]
    plant_dead(learner, silent)
    state = snapshot(learner)
    state["steps_since_fired"][5] = FRY.dead_window_steps - 1
    state["steps_since_fired"][9] = FRY.dead_window_steps
    learner.restore(0, state)
    learner.step(rows(64))
    moments = learner.state()["directions.mean"]
    assert not bool(moments[5].any())
    assert bool(moments[9].any())
    learner.step(rows(64))
    assert bool(learner.state()["directions.mean"][5].any())


def test_ghost_gradients_revive_dead_neurons() -> None:
    dead, data = list(range(8)), rows(1024)
    still_dead = []
    for has_ghosts in (True, False):
        learner = make_learner(dataclasses.replace(FRY, has_ghost_gradients=has_ghosts))
        plant_dead(learner, dead, bias=-1.5)
        still_dead.append(advance(learner, data, 200)[-1].dead_count)
    assert still_dead[0] < len(dead) <= still_dead[1]


def test_dead_neurons_are_those_that_fired_on_none_of_the_last_samples() -> None:
    learner = make_learner(JUMP, make_settings(dead_after_samples=128))
    state = snapshot(learner)
    state["encoder_bias"][[1, 2]] = -100
    learner.restore(0, state)
    reports = advance(learner, rows(256), 3)
    assert [report.dead_count for report in reports] == [0, 0, 2]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_in_blocks_of_rows_is_the_same_step(variant: DenseVariant) -> None:
    data = rows(64 * 4)
    learners = [make_learner(variant), make_learner(variant)]
    learners[1].block_rows = 23
    assert isinstance(learners[1], WorksInBlocks)
    for learner in learners:
        plant_dead(learner, [0, 11], bias=-1.0)
    for step in range(4):
        whole, blocks = (learner.step(data[64 * step : 64 * step + 64]) for learner in learners)
        torch.testing.assert_close(blocks.loss, whole.loss, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(blocks.l0, whole.l0, rtol=1e-2, atol=0)
        assert blocks.dead_count == whole.dead_count
    whole_state, state = (snapshot(learner) for learner in learners)
    for name in ("encoder_weight.mean", "encoder_bias.mean", "directions.mean", "decoder_bias.mean"):
        size = float(whole_state[name].abs().max())
        torch.testing.assert_close(state[name], whole_state[name], rtol=1e-2, atol=1e-3 * size)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_restored_learner_goes_on_bit_equal(variant: DenseVariant) -> None:
    data, killed_at = rows(512), 23
    undisturbed = make_learner(variant)
    plant_dead(undisturbed, [0, 11])
    advance(undisturbed, data, killed_at - 1)
    undisturbed.step(torch.full((64, WIDTH), math.nan))
    stored = snapshot(undisturbed)
    resumed = make_learner(variant)
    resumed.restore(killed_at, {name: tensor.clone() for name, tensor in stored.items()})
    assert snapshot(resumed).keys() == stored.keys()
    for mine, theirs in zip(advance(resumed, data, 20), advance(undisturbed, data, 20), strict=True):
        assert torch.equal(mine.loss, theirs.loss)
        assert torch.equal(mine.l0, theirs.l0)
        assert mine.dead_count == theirs.dead_count
    for name, tensor in snapshot(undisturbed).items():
        assert torch.equal(tensor, resumed.state()[name]), name
    assert resumed.step_count == undisturbed.step_count == killed_at + 20


def test_restoring_shares_no_memory_with_what_was_stored() -> None:
    learner = make_learner(JUMP)
    stored = snapshot(learner)
    copies = {name: tensor.clone() for name, tensor in stored.items()}
    learner.restore(0, stored)
    advance(learner, rows(256), 3)
    for name, tensor in copies.items():
        assert torch.equal(tensor, stored[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e25], ids=["nan", "infinite", "overflowing"])
@pytest.mark.parametrize("steps_before", [0, 6])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    variant: DenseVariant, bad: float, steps_before: int
) -> None:
    learner = make_learner(variant)
    plant_dead(learner, [0, 11])
    advance(learner, rows(256), steps_before)
    before = snapshot(learner)
    poisoned = rows(64)
    poisoned[5, 2] = bad
    report = learner.step(poisoned)
    assert report.is_skipped
    assert report.dead_count == 2
    assert learner.step_count == steps_before + 1
    for name, tensor in before.items():
        assert torch.equal(tensor, learner.state()[name]), name
    assert not learner.step(rows(64)).is_skipped


def test_thresholds_start_where_asked_and_rise_under_the_penalty() -> None:
    learner = make_learner(dataclasses.replace(JUMP, l0_coefficient=0.05, initial_threshold=0.2))
    assert torch.equal(learner.state()["threshold"].detach(), torch.full((NEURONS,), 0.2))
    advance(learner, rows(1024), 100)
    assert float(learner.state()["threshold"].detach().mean()) > 0.3


def test_thresholds_stay_at_zero_or_above() -> None:
    learner = make_learner(dataclasses.replace(JUMP, l0_coefficient=0.0, initial_threshold=1e-3, bandwidth=0.5))
    lowest = []
    for _ in range(30):
        advance(learner, rows(256), 1)
        lowest.append(float(learner.state()["threshold"].detach().min()))
    assert min(lowest) == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_own_selection_fires_what_training_fires(variant: DenseVariant) -> None:
    learner, x = make_learner(variant), rows(64)
    advance(learner, rows(512), 50)
    selection = learner.own_selection()
    assert isinstance(selection, JumpReLU)
    assert selection.threshold.dtype == torch.float32
    assert not selection.threshold.requires_grad
    if isinstance(variant, ReluTraining):
        assert not bool(selection.threshold.any())
    else:
        assert torch.equal(selection.threshold, learner.state()["threshold"].detach())
    with torch.no_grad():
        codes = select(selection, learner.weights.pre_activations(x), limit=NEURONS)
    l0 = (codes.values > 0).sum() / len(x)
    assert torch.equal(l0, learner.step(x).l0)
    assert torch.equal(selection.threshold, learner.own_selection().threshold) == isinstance(variant, ReluTraining)


def test_jumprelu_goes_on_from_the_thresholds_of_what_it_is_started_from() -> None:
    sae = SaeSettings(neuron_count=NEURONS, variant=JUMP)
    weights = initial_weights(rows(256), sae, bias_init=BiasInit.MEAN, seed=3)
    threshold = torch.linspace(0.1, 0.5, NEURONS)
    device = torch.device("cpu")
    for initial, due in (
        (JumpReLU(threshold), threshold),
        (JumpReLU(torch.zeros(NEURONS)), torch.full((NEURONS,), JUMP.initial_threshold)),
        (None, torch.full((NEURONS,), JUMP.initial_threshold)),
    ):
        rule = learner_of(weights, sae, make_settings(), device=device, initial=initial).own_selection()
        assert isinstance(rule, JumpReLU)
        assert torch.equal(rule.threshold, due)
