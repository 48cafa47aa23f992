"""The tiny CLIP of the repository: its folder loads like any CLIP, and it still names what held-out scenes show."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from embedded.captions import prompts
from embedded.clip_folder import FOLDER, TOKEN_LIMIT, build_tokenizer
from embedded.concepts import FACTORS, values_of
from embedded.scenes import CORPUS_FIRST_SEED, EVALUATION_FIRST_SEED, TRAINING_FIRST_SEED, render_scene
from embedded.zero_shot import measure_zero_shot

FOLDER_LIMIT_BYTES = 8 * 2**20
SAMPLE_SCENES = 200
BARS = {"colour": 0.95, "background": 0.95, "texture": 0.9, "shape": 0.8, "size": 0.75}


@pytest.fixture(scope="module")
def model():
    return CLIPModel.from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def preprocessor():
    return CLIPImageProcessorPil.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def accuracy(model, tokenizer, preprocessor):
    # Far from the seeds that the README's figures and the trainer's own checks are measured on.
    first = EVALUATION_FIRST_SEED + 900_000
    return measure_zero_shot(model, tokenizer, preprocessor, range(first, first + SAMPLE_SCENES))


@pytest.mark.parametrize("factor", sorted(BARS))
def test_zero_shot_on_held_out_scenes(accuracy, factor):
    # Two standard errors of so small a sample at the bar itself; the README has the figures of a larger one.
    bar = BARS[factor]
    assert accuracy[factor] >= bar - 2 * (bar * (1 - bar) / SAMPLE_SCENES) ** 0.5


def test_other_weights_would_fail(model, tokenizer, preprocessor):
    untrained = copy.deepcopy(model)
    torch.manual_seed(0)
    for parameter in untrained.vision_model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    seeds = range(EVALUATION_FIRST_SEED, EVALUATION_FIRST_SEED + 60)
    figures = measure_zero_shot(untrained, tokenizer, preprocessor, seeds, 64)
    assert all(figures[factor] < bar - 0.1 for factor, bar in BARS.items())


def test_the_folder_is_small_and_whole():
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= set(files)
    assert sum(files.values()) <= FOLDER_LIMIT_BYTES


def test_the_text_tower_reads_the_whole_prompt(model, tokenizer):
    # An end token of id 2 means "pool at the highest id" to CLIPTextModel: words behind it would go unread.
    config = model.config.text_config
    assert config.eos_token_id == tokenizer.eos_token_id
    assert config.eos_token_id != 2
    texts = ["a zigzag star, on a sand background", "a zigzag star, on a sky background"]
    with torch.inference_mode():
        both = model.get_text_features(**tokenizer(texts, return_tensors="pt")).pooler_output
        padded = tokenizer(
            [*texts, "a small orange zigzag star on the left and a red ring"], padding=True, return_tensors="pt"
        )
        among_longer = model.get_text_features(**padded).pooler_output[:2]
    assert (both[0] - both[1]).norm() > 0.05 * both[0].norm()
    torch.testing.assert_close(among_longer, both, rtol=1e-4, atol=1e-4)


def test_the_tokenizer_knows_every_word(tokenizer):
    texts = [text for factor in FACTORS for text in prompts(factor).values()]
    texts += [render_scene(seed, 32).caption for seed in range(300)]
    rows = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in rows)
    assert all(row[0] == tokenizer.bos_token_id and row[-1] == tokenizer.eos_token_id for row in rows)
    assert max(len(row) for row in rows) <= TOKEN_LIMIT
    assert rows == build_tokenizer()(texts)["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("a dog")["input_ids"]


def test_the_preprocessor_is_the_usual_one(preprocessor):
    scene = Image.fromarray(render_scene(0, 160).pixels)
    pixels = preprocessor(scene, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 64, 64)
    auto = AutoImageProcessor.from_pretrained(FOLDER)(scene, return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(auto.numpy(), pixels.numpy(), atol=0.05)


def test_no_scene_is_both_trained_and_tested_on():
    # The README's ranges: corpus, evaluation, training.
    assert CORPUS_FIRST_SEED + 1_000_000 <= EVALUATION_FIRST_SEED
    assert EVALUATION_FIRST_SEED + 1_000_000 <= TRAINING_FIRST_SEED
    assert all(len(values_of(factor)) >= 3 for factor in FACTORS)
