import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from phosphene.errors import NumericError
from tests.training.synthetic import mixtures, write_activations
from training.activations import Activations
from training.checkpoint import CheckpointFolder
from training.progress import Advance, SilentProgress
from training.scaling import make_scaling
from training.settings import BiasInit, SaeSettings, TrainingSettings
from training.trainer import Trainer, learning_rate_at, start, train
from training.variants import VariantName
from training.weights import Weights

CPU = torch.device("cpu")
SAE = SaeSettings(neuron_count=48, k=2, variant=VariantName.BATCHTOPK)
SETTINGS = TrainingSettings(
    step_count=120, batch_rows=64, learning_rate=3e-3, dead_after_samples=512, bias_init=BiasInit.MEAN, seed=0
)


@pytest.fixture(scope="module")
def harvest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_activations(tmp_path_factory.mktemp("harvest") / "a", mixtures(800))


class Killed(BaseException):
    """What a kill looks like from within the process."""


class KillingProgress(SilentProgress):
    """Progress that stops the job the first time it reports this step or a later one."""

    def __init__(self, step: int) -> None:
        self._step = step

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        def advance(done: int, status: str) -> None:
            if done >= self._step:
                raise Killed

        yield advance


def run(
    harvest: Path,
    folder: Path,
    *,
    sae: SaeSettings = SAE,
    settings: TrainingSettings = SETTINGS,
    kill_at: int | None = None,
) -> Weights:
    activations = Activations(harvest, seed=0)
    return train(
        activations,
        make_scaling(*activations.moments()),
        sae,
        settings,
        checkpoints=CheckpointFolder(folder, plan_id="plan", every_steps=25),
        device=CPU,
        progress=SilentProgress() if kill_at is None else KillingProgress(kill_at),
    )


def equal(first: Weights, second: Weights) -> bool:
    return all(torch.equal(value, second.tensors()[name]) for name, value in first.tensors().items())


@pytest.mark.parametrize("variant", list(VariantName))
def test_killed_anywhere_and_resumed_ends_in_the_same_bits(harvest: Path, tmp_path: Path, variant: VariantName) -> None:
    sae = dataclasses.replace(SAE, variant=variant)
    whole = run(harvest, tmp_path / "whole", sae=sae)
    for kill_at in (20, 60, 100):
        with pytest.raises(Killed):
            run(harvest, tmp_path / "killed", sae=sae, kill_at=kill_at)
    assert equal(whole, run(harvest, tmp_path / "killed", sae=sae))


def test_another_seed_trains_other_weights(harvest: Path, tmp_path: Path) -> None:
    other = dataclasses.replace(SETTINGS, seed=1)
    assert not equal(run(harvest, tmp_path / "a"), run(harvest, tmp_path / "b", settings=other))


@pytest.mark.parametrize("variant", list(VariantName))
def test_training_explains_sparse_mixtures_and_keeps_directions_at_unit_norm(
    harvest: Path, tmp_path: Path, variant: VariantName
) -> None:
    activations = Activations(harvest, seed=0)
    scaling = make_scaling(*activations.moments())
    sae = dataclasses.replace(SAE, variant=variant)
    settings = dataclasses.replace(SETTINGS, step_count=400)
    weights = run(harvest, tmp_path / "c", sae=sae, settings=settings)
    assert torch.allclose(weights.directions.norm(dim=1), torch.ones(48), atol=1e-6)
    inputs = scaling.apply(activations.held_out(0))
    first, last = (
        float(Trainer(state, sae, settings, device=CPU).step(inputs).loss)
        for state in (start(activations, scaling, sae, settings), weights)
    )
    assert last < 0.25 * first


def test_gradients_along_a_direction_are_removed() -> None:
    trainer = Trainer(_weights_with_dead(), SAE, SETTINGS, device=CPU)
    trainer.step(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))
    gradient = trainer.weights.directions.grad
    assert gradient is not None
    before = _weights_with_dead().directions
    assert float((gradient * before).sum(dim=1).abs().max()) < 1e-6
    assert float(gradient.abs().max()) > 1e-4


def test_dead_neurons_are_counted_in_samples_and_revived_by_the_auxiliary_loss() -> None:
    inputs = torch.from_numpy(mixtures(64)) - 5
    sae = dataclasses.replace(SAE, variant=VariantName.TOPK)
    settings = dataclasses.replace(
        SETTINGS, dead_after_samples=128, warmup_share=0.001, step_count=10_000, learning_rate=1e-2
    )

    def dead_counts(coefficient: float) -> list[int]:
        chosen = dataclasses.replace(settings, auxiliary_coefficient=coefficient)
        trainer = Trainer(_weights_with_dead(), sae, chosen, device=CPU)
        return [trainer.step(inputs).dead_count for _ in range(200)]

    revived, left = dead_counts(1 / 32), dead_counts(0.0)
    assert revived[:2] == left[:2] == [0, 0]
    assert revived[2] >= 24
    assert revived[-1] <= 20
    assert left[-1] >= 24


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    rates = [learning_rate_at(step, SETTINGS) for step in range(SETTINGS.step_count + 1)]
    peak = SETTINGS.learning_rate
    assert 0 < rates[0] < peak / 2
    assert max(rates) == peak
    assert rates[40] == peak
    assert rates[-1] == 0
    falling = rates[80:]
    assert falling == sorted(falling, reverse=True)


def test_a_diverged_run_says_so(harvest: Path, tmp_path: Path) -> None:
    wild = dataclasses.replace(SETTINGS, learning_rate=1e38)
    with pytest.raises(NumericError, match="training diverged"):
        run(harvest, tmp_path / "d", settings=wild)


def _weights_with_dead() -> Weights:
    """Half of the neurons are so faint that they never get selected by themselves."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(48, 16, generator=generator), dim=1)
    encoder_weight = directions.T.clone()
    encoder_weight[:, 24:] *= 0.01
    return Weights(
        encoder_weight=encoder_weight,
        encoder_bias=torch.zeros(48),
        directions=directions,
        decoder_bias=torch.zeros(16),
    )
