"""How well a CLIP folder names the concepts of held-out scenes, from prompts alone, through its own preprocessor.

    python -m embedded.zero_shot embedded/tiny-clip --count 2000

Knows nothing of training.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from embedded.captions import prompts
from embedded.concepts import FACTORS, Factor, values_of
from embedded.scene_plan import SINGLE_OBJECT_MIX
from embedded.scenes import EVALUATION_FIRST_SEED, render_scene


@torch.inference_mode()
def embed_prompts(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, factor: Factor
) -> Float[Tensor, "values width"]:
    """Unit-length embeddings of a factor's prompts, in the order of `values_of`."""
    tokens = tokenizer(list(prompts(factor).values()), padding=True, return_tensors="pt")
    return functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


@torch.inference_mode()
def measure_zero_shot(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    preprocessor: CLIPImageProcessorPil,
    seeds: Iterable[int],
    size_px: int = 160,
) -> dict[str, float]:
    """Share of single-object scenes whose value of each factor has the nearest prompt.

    Args:
        model: image and text tower.
        tokenizer: the model's own.
        preprocessor: the model's own; scenes pass through it as PNG pixels of `size_px`.
        seeds: which scenes.
        size_px: side of the rendered scenes.

    Returns:
        Accuracy in 0..1 by factor, without `count`, which is always one here.
    """
    factors = [factor for factor in FACTORS if factor != "count"]
    prompt = {factor: embed_prompts(model, tokenizer, factor) for factor in factors}
    right = dict.fromkeys(factors, 0)
    scene_count = 0
    remaining = iter(seeds)
    while part := list(islice(remaining, 100)):
        scenes = [render_scene(seed, size_px, SINGLE_OBJECT_MIX) for seed in part]
        pixels = preprocessor([Image.fromarray(scene.pixels) for scene in scenes], return_tensors="pt")
        image = functional.normalize(model.get_image_features(**pixels).pooler_output, dim=-1)
        scene_count += len(scenes)
        for factor in factors:
            guesses = (image @ prompt[factor].T).argmax(1).tolist()
            for guess, scene in zip(guesses, scenes, strict=True):
                right[factor] += values_of(factor)[guess] in scene.factors.values(factor)
    return {factor: right[factor] / scene_count for factor in factors}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the accuracies of a folder as JSON."""
    parser = argparse.ArgumentParser(prog="python -m embedded.zero_shot", description="Zero-shot accuracy on scenes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--first-seed", type=int, default=EVALUATION_FIRST_SEED)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", type=int, default=160, help="side of the rendered scenes in px")
    options = parser.parse_args(arguments)
    model = CLIPModel.from_pretrained(options.folder).eval()
    figures = measure_zero_shot(
        model,
        PreTrainedTokenizerFast.from_pretrained(options.folder),
        CLIPImageProcessorPil.from_pretrained(options.folder),
        range(options.first_seed, options.first_seed + options.count),
        options.size,
    )
    sys.stdout.write(json.dumps({factor: round(value, 4) for factor, value in figures.items()}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
