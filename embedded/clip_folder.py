"""The tiny CLIP as a Hugging Face folder: configuration, word-level tokenizer, preprocessor, export.

Knows nothing of scenes beyond the words of their captions, and nothing of training.
"""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from embedded.captions import vocabulary_words

FOLDER = Path(__file__).parent / "tiny-clip"
"""Where the weights that ship with the repository lie."""

PAD, START, END, UNKNOWN = "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|unknown|>"
TOKEN_LIMIT = 32


@dataclass(frozen=True, kw_only=True)
class TinyClipSize:
    """The architecture that is trained."""

    image_px: int = 64
    patch_px: int = 8
    image_width: int = 128
    image_blocks: int = 6
    image_units: int = 384
    """Units of each block's MLP."""
    text_width: int = 96
    text_blocks: int = 2
    heads: int = 4
    embedding_width: int = 96


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of `vocabulary_words`, lower-cased, between start and end marks."""
    # CLIPTextModel reads an end token of id 2 as an old checkpoint and pools at the highest id instead.
    words = [PAD, UNKNOWN, START, END, *vocabulary_words()]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        model_max_length=TOKEN_LIMIT,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_preprocessor(size: TinyClipSize) -> CLIPImageProcessorPil:
    """CLIP's own preprocessing at the model's resolution: bicubic resize, centre crop, CLIP mean and deviation."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": size.image_px}, crop_size={"height": size.image_px, "width": size.image_px}
    )


def build_config(size: TinyClipSize, tokenizer: PreTrainedTokenizerFast) -> CLIPConfig:
    """The configuration of an untrained model; the text tower pools at the tokenizer's true end token."""
    specials = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.text_width,
            "intermediate_size": 4 * size.text_width,
            "num_hidden_layers": size.text_blocks,
            "num_attention_heads": size.heads,
            "max_position_embeddings": TOKEN_LIMIT,
            "hidden_act": "gelu",
            "projection_dim": size.embedding_width,
            **specials,
        },
        vision_config={
            "hidden_size": size.image_width,
            "intermediate_size": size.image_units,
            "num_hidden_layers": size.image_blocks,
            "num_attention_heads": size.heads,
            "image_size": size.image_px,
            "patch_size": size.patch_px,
            "hidden_act": "gelu",
            "projection_dim": size.embedding_width,
        },
        projection_dim=size.embedding_width,
    )
    config._attn_implementation = "sdpa"
    return config


def save_folder(folder: Path, model: CLIPModel, size: TinyClipSize) -> None:
    """Write model, tokenizer and preprocessor where `CLIPModel.from_pretrained` and its like find them."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    build_tokenizer().save_pretrained(folder)
    build_preprocessor(size).save_pretrained(folder)
