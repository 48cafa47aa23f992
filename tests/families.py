"""Random-weight encoders of every family in the Hugging Face layout: small, seeded, written by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, assert_never

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from phosphene.encoder import Family

IMAGE_PX = 32
PATCH_PX = 8
WIDTH = 32
BLOCK_COUNT = 3
MLP_UNIT_COUNT = 64
TEXT_LIMIT = 32
PROJECTION_WIDTH = 20
CLASS_NAMES = ("tench", "goldfish", "hammerhead", "stingray", "hen")

_SENTENCES = (
    "a photo of a small red circle on a blue background",
    "a photo of two large green squares beside a striped triangle",
    "one yellow star above three dotted rings, left of a grey cross",
)
_TOWER: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": BLOCK_COUNT, "num_attention_heads": 4}
_VISION: dict[str, Any] = _TOWER | {"image_size": IMAGE_PX, "patch_size": PATCH_PX}
_LABELS: dict[str, Any] = {
    "id2label": dict(enumerate(CLASS_NAMES)),
    "label2id": {name: i for i, name in enumerate(CLASS_NAMES)},
}


def write_encoder(folder: Path, family: Family, *, seed: int = 0) -> Path:
    """Write one encoder of a family: weights, configuration, preprocessor, and a tokenizer where it has a text side."""
    transformers.set_seed(seed)
    model, tokenizer = _build(family)
    save_model(folder, model, seed=seed)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def save_model(folder: Path, model: Any, *, seed: int = 0, image_px: int = IMAGE_PX) -> None:
    """Write any vision model with random weights (no parameter stays at zero or one) and a preprocessor for it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("logit_scale", "logit_bias")):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image_px, "width": image_px},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))


def _build(family: Family) -> tuple[Any, Any]:
    plain = _VISION | {"intermediate_size": MLP_UNIT_COUNT} | _LABELS
    dino = _VISION | {"mlp_ratio": MLP_UNIT_COUNT // WIDTH, "layerscale_value": 1.0} | _LABELS
    match family:
        case Family.CLIP:
            return _clip()
        case Family.SIGLIP:
            return _siglip()
        case Family.DINOV2:
            return transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**dino)), None
        case Family.DINOV2_REGISTERS:
            config = transformers.Dinov2WithRegistersConfig(num_register_tokens=4, **dino)
            return transformers.Dinov2WithRegistersForImageClassification(config), None
        case Family.VIT:
            return transformers.ViTForImageClassification(transformers.ViTConfig(**plain)), None
        case Family.DEIT:
            return transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**plain)), None
        case _:
            assert_never(family)


def _clip() -> tuple[Any, Any]:
    tokenizer = clip_tokenizer()
    text = _TOWER | {
        "intermediate_size": MLP_UNIT_COUNT,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_LIMIT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = transformers.CLIPConfig(
        vision_config=_VISION | {"intermediate_size": MLP_UNIT_COUNT}, text_config=text, projection_dim=PROJECTION_WIDTH
    )
    return transformers.CLIPModel(config), tokenizer


def clip_tokenizer() -> Any:
    """Make a byte-level BPE tokenizer of CLIP's kind: each word of three sentences is merged from left to right."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in sorted(set(" ".join(_SENTENCES).replace(",", "").split())):
        symbols = [*word[:-1], f"{word[-1]}</w>"]
        for end in range(1, len(symbols)):
            merges["".join(symbols[:end]), symbols[end]] = None
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    words += ["".join(pair) for pair in merges]
    vocab = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=TEXT_LIMIT)


def _siglip() -> tuple[Any, Any]:
    tokenizer = siglip_tokenizer()
    text = _TOWER | {
        "intermediate_size": MLP_UNIT_COUNT,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_LIMIT,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = _VISION | {"intermediate_size": MLP_UNIT_COUNT}
    model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text))
    with torch.no_grad():
        model.logit_scale.fill_(4.7)
        model.logit_bias.fill_(-12.9)
    return model, tokenizer


def siglip_tokenizer() -> Any:
    """Make a word tokenizer in the place of SigLIP's SentencePiece model: texts end with </s>, which also pads."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(_SENTENCES, trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"]))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>", model_max_length=TEXT_LIMIT
    )
