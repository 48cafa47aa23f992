import pytest
import torch

from training.active import choose_active, decode_active
from training.settings import BiasInit, SaeSettings
from training.variants import (
    BatchTopKTraining,
    JumpReluTraining,
    MatryoshkaTraining,
    ReluTraining,
    SparseVariant,
    TopKTraining,
)
from training.weights import geometric_median, initial_weights


def sample(rows: int = 600) -> torch.Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    "variant", [TopKTraining(k=4), BatchTopKTraining(k=4), MatryoshkaTraining(k=4, prefixes=(16, 64))]
)
def test_no_other_factor_on_the_encoder_reconstructs_better_at_the_start(variant: SparseVariant) -> None:
    sae = SaeSettings(neuron_count=64, variant=variant)
    weights = initial_weights(sample(), sae, bias_init=BiasInit.MEAN, seed=0)

    def error(factor: float) -> float:
        rows = sample()
        active = choose_active(variant, factor * weights.pre_activations(rows))
        return float((rows - weights.decoder_bias - decode_active(active, weights.directions)).square().mean())

    assert error(1.0) < min(error(0.9), error(1.1))
    assert torch.allclose(weights.directions.norm(dim=1), torch.ones(64))


def test_a_variant_without_a_fixed_number_of_active_neurons_starts_with_tied_weights() -> None:
    free = ReluTraining(l1_coefficient=1.0, is_error_normalised=False, has_ghost_gradients=False)
    sae = SaeSettings(neuron_count=64, variant=free)
    weights = initial_weights(sample(), sae, bias_init=BiasInit.MEAN, seed=0)
    assert torch.equal(weights.encoder_weight, weights.directions.T)


def test_directions_start_near_rows_of_the_data_and_none_equals_another() -> None:
    rows = sample(12)  # Fewer than neurons: several start at the same row.
    sae = SaeSettings(neuron_count=64, variant=BatchTopKTraining(k=2))
    weights = initial_weights(rows, sae, bias_init=BiasInit.MEAN, seed=0)
    unit = torch.nn.functional.normalize(rows - weights.decoder_bias, dim=1)
    assert float((weights.directions @ unit.T).amax(dim=1).min()) > 0.8
    likeness = weights.directions @ weights.directions.T - torch.eye(64)
    assert float(likeness.max()) < 0.999


def test_where_a_row_activates_much_of_all_neurons_directions_start_random() -> None:
    rows = sample(12)
    unit = torch.nn.functional.normalize(rows - rows.mean(dim=0), dim=1)
    for variant in (BatchTopKTraining(k=3), JumpReluTraining(l0_coefficient=1.0)):
        weights = initial_weights(rows, SaeSettings(neuron_count=64, variant=variant), bias_init=BiasInit.MEAN, seed=0)
        assert float((weights.directions @ unit.T).amax(dim=1).min()) < 0.5


def test_a_row_at_the_decoder_bias_leaves_the_random_direction() -> None:
    sae = SaeSettings(neuron_count=64, variant=TopKTraining(k=2))
    weights = initial_weights(torch.ones(20, 4), sae, bias_init=BiasInit.MEAN, seed=0)
    assert torch.allclose(weights.directions.norm(dim=1), torch.ones(64))


def test_the_start_follows_from_the_seed() -> None:
    sae = SaeSettings(neuron_count=32, variant=TopKTraining(k=4))
    first, again, other = (initial_weights(sample(), sae, bias_init=BiasInit.MEAN, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(value, again.tensors()[name]) for name, value in first.tensors().items())
    assert not torch.equal(first.directions, other.directions)


def test_the_geometric_median_resists_an_outlier_and_minimises_the_summed_distance() -> None:
    rows = torch.cat([sample(101), torch.full((10, 16), 1000.0)])
    median = geometric_median(rows)

    def cost(point: torch.Tensor) -> float:
        return float((rows - point).norm(dim=1).double().sum())

    assert float(median.norm()) < 2
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        assert cost(median) <= cost(median + 0.05 * torch.randn(16, generator=generator))
    assert cost(median) < cost(rows.mean(dim=0))


def test_the_decoder_bias_can_start_at_the_geometric_median() -> None:
    sae = SaeSettings(neuron_count=32, variant=TopKTraining(k=4))
    rows = torch.cat([sample(101), torch.full((10, 16), 1000.0)])
    weights = initial_weights(rows, sae, bias_init=BiasInit.GEOMETRIC_MEDIAN, seed=0)
    assert torch.equal(weights.decoder_bias, geometric_median(rows))
