import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from phosphene.bundle import load_bundle
from phosphene.encoder import Site, Tokens
from phosphene.errors import SettingError
from phosphene.selection import JumpReLU, TopK
from tests.training.scenes import EMBEDDED_ENCODER, write_scenes
from training.__main__ import main
from training.command.recipes import view_of
from training.recipes import (
    RecipeName,
    hugofry_clip_l14_layer22_x64,
    pach_batchtopk_clip_l14_336,
    pach_matryoshka_clip_l14_336,
    recipe_of,
)
from training.settings import BiasInit, InputScaling, SaeSettings, config_of
from training.variants import BatchTopKTraining, MatryoshkaTraining, ReluTraining

IMAGENET_ROWS = 1_281_167


@pytest.fixture(scope="module")
def scenes_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "corpus", 96)


def resolved_rate(name: RecipeName, neuron_count: int) -> float:
    sae = SaeSettings(neuron_count=neuron_count, variant=BatchTopKTraining(k=20))
    return recipe_of(name).training.resolve(IMAGENET_ROWS, sae, width=1024).learning_rate


def test_every_recipe_is_called_by_its_name_and_can_be_resolved() -> None:
    for name in RecipeName:
        recipe = recipe_of(name)
        assert recipe.name is name
        sae = recipe.sae.resolve(1024)
        settings = recipe.training.resolve(IMAGENET_ROWS, sae, width=1024)
        json.dumps([config_of(sae), config_of(settings)], allow_nan=False)


def test_hugo_frys_run_is_his() -> None:
    recipe = hugofry_clip_l14_layer22_x64()
    assert recipe.site == Site(block=22, tokens=Tokens.CLS)
    sae = recipe.sae.resolve(1024)
    assert sae.neuron_count == 65_536
    assert sae.inputs is InputScaling.RAW
    assert sae.variant == ReluTraining(l1_coefficient=8e-5, is_error_normalised=True, has_ghost_gradients=True)
    assert sae.variant.dead_window_steps == 64
    settings = recipe.training.resolve(IMAGENET_ROWS, sae, width=1024)
    assert (settings.learning_rate, settings.batch_rows, settings.step_count) == (4e-4, 1024, 2560)
    assert settings.step_count * settings.warmup_share == pytest.approx(500)
    assert (settings.decay_share, settings.gradient_clip) == (0.0, math.inf)
    assert settings.bias_init is BiasInit.GEOMETRIC_MEDIAN


def test_pachs_learning_rate_falls_with_the_root_of_the_neurons() -> None:
    for expansion in (1, 16, 64):
        neuron_count = expansion * 1024
        due = 2e-4 / math.sqrt(neuron_count / 2**14)
        assert resolved_rate(RecipeName.PACH_BATCHTOPK_CLIP_L14_336, neuron_count) == pytest.approx(due)
    settings = pach_batchtopk_clip_l14_336().training.resolve(
        IMAGENET_ROWS, SaeSettings(neuron_count=1024, variant=BatchTopKTraining(k=20)), width=1024
    )
    assert (settings.step_count, settings.batch_rows, settings.decay_share) == (110_000, 4096, 0.0)
    assert settings.step_count * settings.warmup_share == pytest.approx(1000)


def test_pachs_parameters_are_the_papers() -> None:
    recipe = pach_matryoshka_clip_l14_336(expansion=16, k=50, block=11)
    variant = recipe.sae.resolve(1024).variant
    assert variant == MatryoshkaTraining(k=50, prefixes=(1024, 3072, 7168, 16_384))
    assert recipe.site == Site(block=11, tokens=Tokens.CLS)
    assert pach_batchtopk_clip_l14_336(block=None).site == Site(block=None, tokens=Tokens.EMBEDDING)
    for wrong, message in (
        ({"expansion": 65}, "expansion is 65"),
        ({"k": 51}, "k is 51"),
        ({"block": 12}, "block is 12"),
    ):
        with pytest.raises(SettingError, match=message):
            pach_batchtopk_clip_l14_336(**wrong)


def test_the_table_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    for name in RecipeName:
        assert name in shown
    assert main(["recipes", "--json"]) == 0
    recipes = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [recipe["name"] for recipe in recipes] == list(RecipeName)
    assert recipes[0]["sae"]["sparsity"] == 8e-5


# What a short run on a few scenes needs beside the recipe: its own encoder, block and length, and a size that so few
# images can fill; the learning rates are meant for 1,000 times as many steps.
OVERRIDES = {
    RecipeName.HUGOFRY_CLIP_L14_LAYER22_X64: ("--expansion", "2", "--warmup", "10", "--lr", "4e-3"),
    RecipeName.PACH_BATCHTOPK_CLIP_L14_336: ("--expansion", "1", "--k", "8", "--warmup", "10"),
    RecipeName.PACH_MATRYOSHKA_CLIP_L14_336: ("--expansion", "1", "--k", "8", "--warmup", "10"),
    RecipeName.HE_CAPTIONER: (
        "--expansion",
        "2",
    ),
    RecipeName.TINY: (),
    RecipeName.DEIT: ("--expansion", "1", "--k", "8"),
}


@pytest.mark.parametrize("name", list(RecipeName))
def test_each_recipe_runs_on_the_embedded_encoder(scenes_list: Path, tmp_path: Path, name: RecipeName) -> None:
    command = ["fit", str(scenes_list), "--recipe", name, "--encoder", str(EMBEDDED_ENCODER), "--block", "5"]
    short = ["--limit", "96", "--batch", "64", "--steps", "200", "--threads", "1", "--out", str(tmp_path / "b")]
    assert main([*command, *OVERRIDES[name], *short]) == 0
    bundle, recipe = load_bundle(tmp_path / "b"), recipe_of(name)
    plan = bundle.training["plan"]
    assert plan["sae"]["variant"]["name"] == recipe.sae.variant
    assert plan["sae"]["inputs"] == recipe.sae.inputs
    assert plan["training"]["bias_init"] == recipe.training.bias_init
    assert (plan["training"]["step_count"], plan["training"]["batch_rows"]) == (200, 64)
    assert bundle.site == Site(block=5, tokens=Tokens.CLS)
    assert isinstance(bundle.sae.selection, TopK if name is RecipeName.TINY else JumpReLU)


def test_the_embedding_is_a_site_of_pachs_recipe(scenes_list: Path, tmp_path: Path) -> None:
    name = RecipeName.PACH_BATCHTOPK_CLIP_L14_336
    command = ["fit", str(scenes_list), "--recipe", name, "--encoder", str(EMBEDDED_ENCODER), "--tokens", "embedding"]
    short = ["--limit", "96", "--batch", "64", "--steps", "200", "--threads", "1", "--out", str(tmp_path / "b")]
    assert main([*command, *OVERRIDES[name], *short]) == 0
    assert load_bundle(tmp_path / "b").site == Site(block=None, tokens=Tokens.EMBEDDING)


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_names_and_encoders_are_whole_at_any_width(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    recipes = [recipe_of(name) for name in RecipeName]
    console.print(view_of(recipes, console))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert {line.split()[0] for line in lines if not line.startswith(" ")} >= set(RecipeName)
    assert "110,000 steps of 4,096" in " ".join(" ".join(lines).split())
    assert "…" not in "".join(lines)
