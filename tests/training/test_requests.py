import dataclasses
from typing import Any

import pytest

from phosphene.errors import SettingError
from training.requests import SaeRequest, TrainingRequest, nested_sizes
from training.settings import SaeSettings, config_of
from training.variants import JumpReluTraining, MatryoshkaTraining, TopKTraining, VariantName

SAE = SaeSettings(neuron_count=1024, variant=TopKTraining(k=16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 65, "neuron_count": 64}, "--k is 65; the limit is the number of neurons, 64: lower --k"),
        ({"k": 65, "expansion": 2}, "--k is 65; the limit is the number of neurons, 64"),
        ({"k": 0, "neuron_count": 64}, "--k is 0; the least is 1"),
        ({"k": 4, "expansion": 0}, "--expansion is 0; the least is 1"),
        ({"k": 1, "neuron_count": 1}, "--neurons is 1; the least is 2"),
        ({"k": 4, "neuron_count": 2**31}, "--neurons is 2147483648; the least is 2, and the most 2,147,483,647"),
        ({"k": 4, "neuron_count": 10**400}, "--neurons is 10{400}; the least is 2, and the most 2,147,483,647"),
        (
            {"k": 4, "expansion": 2**26},
            "--expansion is 67108864, which are 2,147,483,648 neurons .* width 32; the limit",
        ),
        ({"k": 4, "expansion": 10**4299}, "--expansion is 10{4299}; the least is 1, and the most gives 2,147,483,647"),
        ({"k": 4}, "exactly one of --neurons and --expansion"),
        ({"k": 4, "neuron_count": 64, "expansion": 2}, "exactly one of --neurons and --expansion"),
        ({"neuron_count": 64}, "--k is missing: --variant batchtopk needs --k, .* from 1 to 64, all .*relu, jumprelu"),
        ({"expansion": 2}, "--k is missing: .* from 1 to the number of neurons, or a variant that takes --sparsity"),
        ({"k": 4, "neuron_count": 64, "sparsity": 1.0}, "--sparsity goes with --variant relu and jumprelu"),
        ({"k": 4, "neuron_count": 64, "variant": VariantName.RELU}, "--k goes with the top-k variants; relu takes"),
        ({"neuron_count": 64, "variant": VariantName.RELU, "sparsity": -1.0}, "--sparsity is -1.0; it must be 0 or"),
        ({"k": 4, "neuron_count": 64, "prefixes": (0.5,)}, "--prefixes goes with --variant matryoshka, not batchtopk"),
    ],
)
def test_an_impossible_autoencoder_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SaeRequest(**options).resolve(32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_count": 0}, "--steps is 0"),
        ({"step_count": 99999999999999999999}, "--steps is 9{20}; it must be from 1 to 1,000,000,000"),
        ({"epochs": 0.0}, "--epochs is 0"),
        ({"epochs": 1e300}, r"--epochs is 1e\+300; it must be greater than 0, and at most 1,000,000,000"),
        ({"epochs": 1e9, "batch_rows": 100}, "10,000,000,000 steps of 100 .* lower --epochs, or raise --batch"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 2**63}, r"--seed is 9223372036854775808; it must be 0 or more and below 2\*\*63"),
        ({"warmup_steps": 10**400}, "--warmup is 10{400} steps; it must be from 0 to 1,000,000,000"),
        ({"epochs": float("nan")}, "--epochs is nan"),
        ({"batch_rows": 0}, "--batch is 0"),
        ({"learning_rate": -1.0}, "--lr is -1"),
        ({"learning_rate": float("inf")}, "--lr is inf"),
        ({"step_count": 3, "epochs": 1.0}, "at most one of --steps and --epochs"),
    ],
)
def test_an_impossible_optimisation_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        TrainingRequest(**options).resolve(1000, SAE, width=32)


def test_what_is_left_open_follows_from_the_corpus() -> None:
    small = TrainingRequest().resolve(3600, SAE, width=512)
    assert (small.batch_rows, small.step_count) == (512, 2000)
    large = TrainingRequest().resolve(20_000_000, SAE, width=512)
    assert (large.batch_rows, large.step_count) == (4096, 4882)
    tiny = TrainingRequest().resolve(12, SAE, width=512)
    assert tiny.batch_rows == 12
    assert TrainingRequest(epochs=1.5).resolve(1000, SAE, width=32).step_count == 12
    wide = TrainingRequest().resolve(3600, dataclasses.replace(SAE, neuron_count=4096), width=2048)
    assert wide.learning_rate == pytest.approx(small.learning_rate / 2)
    long = TrainingRequest(step_count=8000).resolve(3600, SAE, width=512)
    assert long.learning_rate == pytest.approx(small.learning_rate / 2)


def test_nested_sizes_are_shares_or_numbers_and_end_with_the_whole() -> None:
    assert nested_sizes((0.25, 0.5), 64) == (16, 32, 64)
    assert nested_sizes((10.0, 20.0, 64.0), 64) == (10, 20, 64)
    for wrong in ((0.5, 0.25), (0.5, 65.0), (-1.0,), (float("nan"),), (8.0, 8.0)):
        with pytest.raises(SettingError, match="--prefixes gives"):
            nested_sizes(wrong, 64)


def test_every_variant_resolves() -> None:
    nested = SaeRequest(k=4, expansion=2, variant=VariantName.MATRYOSHKA).resolve(32)
    assert nested.variant == MatryoshkaTraining(k=4, prefixes=(4, 8, 16, 32, 64))
    assert nested.k == 4
    free = SaeRequest(neuron_count=64, variant=VariantName.JUMPRELU, sparsity=0.5).resolve(32)
    assert free.variant == JumpReluTraining(l0_coefficient=0.5)
    assert free.k is None
    relu = SaeRequest(neuron_count=64, variant=VariantName.RELU).resolve(32)
    assert config_of(relu)["variant"]["name"] == "relu"
