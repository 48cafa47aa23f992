"""Encoder output -> scores, and text -> vector where the model has a text side.

A readout belongs to one encoder: text similarity (CLIP, SigLIP), a classifier's logits, or none. Text towers and
tokenizers are read when text is first asked for. Knows nothing of SAEs.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import transformers
from jaxtyping import Float, Float32, Int64
from safetensors import safe_open
from torch import Tensor

from phosphene.encoder import Encoder, EncoderOutput, Family
from phosphene.encoder_families import Head, load_part, reading
from phosphene.encoder_source import find_encoder, read_config, weight_files
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, InputError, ReadoutMissing

__all__ = ["ClassifierReadout", "NoReadout", "Readout", "SimilarityReadout", "Vocabulary", "load_readout"]

_TEXTS_PER_BATCH = 256
_TOKENIZER_CONTENTS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",), ("tokenizer.model",))
_LEGACY_END = 2  # CLIP configurations of before 2023 name this id; their models pool at each text's highest id instead


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Names that images are scored against, with their text vectors."""

    names: tuple[str, ...]
    """In the order of the scores."""
    vectors: Float32[np.ndarray, "names embedding"]
    """Of unit length."""


class ClassifierReadout:
    """The logits of the classifier that came with the encoder's weights."""

    kind: Literal["classifier"] = "classifier"

    def __init__(self, head: Head) -> None:
        """Take the encoder's head."""
        self.names = head.names
        self._head = head

    def scores(self, output: EncoderOutput) -> Float[Tensor, "images names"]:
        """Give the logits of each image, in the order of `names`; gradients flow where the output has them."""
        return self._head.classify(output)


class NoReadout:
    """What an encoder has that neither compares with text nor classifies."""

    kind: Literal["none"] = "none"

    def __init__(self, reason: str) -> None:
        """Keep why there is nothing to read out."""
        self.reason = reason

    def scores(self, *_: object) -> Float[Tensor, "images names"]:
        """Refuse.

        Raises:
            ReadoutMissing: Always.
        """
        raise ReadoutMissing(self.reason)

    def text_vectors(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts embedding"]:
        """Refuse.

        Raises:
            ReadoutMissing: Always.
        """
        raise ReadoutMissing(self.reason)


class SimilarityReadout:
    """Text similarity as the dual encoder was trained with it: logit_scale * cosine + logit_bias.

    CLIP: Radford et al. 2021, arXiv:2103.00020 (no bias). SigLIP: Zhai et al. 2023, arXiv:2303.15343.
    """

    kind: Literal["similarity"] = "similarity"

    def __init__(
        self,
        folder: Path,
        *,
        family: Family,
        model: str,
        device: torch.device,
        guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Read the scale and bias; leave the text tower for the first text.

        Args:
            folder: Folder of the dual model.
            family: CLIP or SigLIP.
            model: What errors call the encoder.
            device: Where texts are encoded.
            guard: Entered around what runs there, to tell its errors.

        Raises:
            ArtefactDamaged: The weights have no logit scale.
        """
        names = ("logit_scale", "logit_bias") if family is Family.SIGLIP else ("logit_scale",)
        numbers = _read_numbers(folder, names)
        self.logit_scale = float(np.exp(numbers["logit_scale"]))
        """Factor of the cosine."""
        self.logit_bias = numbers.get("logit_bias", 0.0)
        """Added to every score; 0 for CLIP."""
        self._folder, self._family, self._model, self._device = folder, family, model, device
        self._guard = guard
        self._vectors: weakref.WeakKeyDictionary[Vocabulary, Tensor] = weakref.WeakKeyDictionary()
        self._text_side: _TextSide | None = None
        self._loading = threading.Lock()

    def scores(self, output: EncoderOutput, vocabulary: Vocabulary) -> Float[Tensor, "images names"]:
        """Score each image against each name; gradients flow where the output has them.

        Raises:
            ArtefactMismatch: The vocabulary's vectors are of another encoder's length.
        """
        embedding = output.embedding
        assert embedding is not None, "load_readout gives encoders without an embedding another readout"
        if vocabulary.vectors.shape[1] != embedding.shape[1]:
            raise ArtefactMismatch(
                f"the vocabulary has vectors of length {vocabulary.vectors.shape[1]}; {self._model} has embeddings of "
                f"length {embedding.shape[1]}: make the vocabulary with this encoder"
            )
        cosines = torch.nn.functional.normalize(embedding, dim=-1) @ self._vectors_of(vocabulary, embedding.device).T
        return cosines * self.logit_scale + self.logit_bias

    def text_vectors(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts embedding"]:
        """Give the vectors of texts, of unit length, as the caller worded them (no templates).

        The first call reads the text tower; safe from several threads.

        Raises:
            InputError: A text is longer than the text tower reads.
            ReadoutMissing: The encoder has no tokenizer that can be read, or not one that fits its text tower.
            ArtefactDamaged: The text tower does not load.
        """
        side = self._load_text_side()
        batches = [texts[start : start + _TEXTS_PER_BATCH] for start in range(0, len(texts), _TEXTS_PER_BATCH)]
        vectors = [self._embed(side, list(batch)) for batch in batches]
        if not vectors:
            return np.zeros((0, side.width), dtype=np.float32)
        return np.concatenate(vectors)

    def check_texts(self, texts: Sequence[str]) -> None:
        """Refuse what `text_vectors` would refuse, and encode nothing; raises as it does."""
        if texts:
            self._token_ids(self._load_text_side(), list(texts))

    def _vectors_of(self, vocabulary: Vocabulary, device: torch.device) -> Float32[Tensor, "names embedding"]:
        """The vocabulary's vectors on a device; copied there once, and gone with the vocabulary."""
        found = self._vectors.get(vocabulary)
        if found is None or found.device != device:
            # What inference makes takes no part in gradients.
            with torch.inference_mode(False):
                found = self._vectors[vocabulary] = torch.from_numpy(vocabulary.vectors).to(device)
        return found

    def _embed(self, side: _TextSide, texts: list[str]) -> Float32[np.ndarray, "texts embedding"]:
        ids = self._token_ids(side, texts)
        padded = self._pad(side, ids)
        with self._guard(), torch.inference_mode():
            vectors = side.embed(padded.to(self._device))
            unit: Float32[np.ndarray, "texts embedding"] = torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()
        return unit

    def _token_ids(self, side: _TextSide, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = side.tokenizer(texts, padding=False, truncation=False, verbose=False)["input_ids"]
        for text, tokens in zip(texts, ids, strict=True):
            if len(tokens) > side.limit:
                raise InputError(
                    f"the text {text[:60]!r} is {len(tokens)} tokens long; {self._model} reads at most {side.limit} "
                    "(start and end marks included): shorten it",
                    field="text",
                )
        if self._family is Family.CLIP and not all(_ends_where_pooled(side, tokens) for tokens in ids):
            where = "its highest token id" if side.end_id == _LEGACY_END else f"its token {side.end_id}"
            raise ReadoutMissing(
                f"the text tower of {self._model} reads a text at {where} (eos_token_id is {side.end_id}), and its "
                "tokenizer does not end texts there; the folder's tokenizer and config.json do not belong together"
            )
        return ids

    def _pad(self, side: _TextSide, ids: list[list[int]]) -> Int64[Tensor, "texts positions"]:
        """Pad as the family was trained: SigLIP to its limit, whose last position it reads; CLIP sees no padding."""
        if self._family is Family.SIGLIP:
            return torch.tensor([tokens + [side.pad_id] * (side.limit - len(tokens)) for tokens in ids])
        longest = max(len(tokens) for tokens in ids)
        return torch.tensor([tokens + tokens[-1:] * (longest - len(tokens)) for tokens in ids])

    def _load_text_side(self) -> _TextSide:
        with self._loading:
            if self._text_side is None:
                self._text_side = _load_text_side(self._folder, self._family, self._model, self._device)
            return self._text_side


Readout = SimilarityReadout | ClassifierReadout | NoReadout


def load_readout(
    source: str | Path,
    encoder: Encoder,
    *,
    revision: str | None = None,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Readout:
    """Find what turns an encoder's output into scores.

    Args:
        source: Where the encoder was loaded from.
        encoder: The loaded encoder.
        revision: Branch, tag or commit on the hub.
        guard: Entered around texts on the encoder's device, to tell its errors.

    Raises:
        EncoderMissing: The folder is gone.
        ArtefactDamaged: A dual model without its logit scale.
    """
    if encoder.head is not None:
        return ClassifierReadout(encoder.head)
    folder = find_encoder(source, revision=revision).folder
    model = encoder.spec.model
    if read_config(folder).get("model_type") in ("clip", "siglip") and encoder.spec.embedding_width is not None:
        return SimilarityReadout(folder, family=encoder.spec.family, model=model, device=encoder.device, guard=guard)
    return NoReadout(
        f"{model} ({encoder.spec.family.value}) has neither a text tower nor a classifier, so images have no scores "
        "and text has no vector; use a CLIP or SigLIP model with both towers, or a model with a classifier"
    )


class _TextSide(NamedTuple):
    tokenizer: Any
    embed: Callable[[Int64[Tensor, "texts positions"]], Float[Tensor, "texts width"]]
    width: int
    limit: int
    """Longest text in tokens, marks included."""
    end_id: int
    pad_id: int


def _load_text_side(folder: Path, family: Family, model: str, device: torch.device) -> _TextSide:
    tokenizer = _load_tokenizer(folder, model)
    tower: Any
    if family is Family.SIGLIP:
        with reading(folder, transformers.SiglipConfig):
            config: Any = transformers.SiglipConfig.from_pretrained(str(folder), local_files_only=True).text_config
        tower = load_part(folder, transformers.SiglipTextModel, device=device)
        width, pad_id = config.projection_size, tokenizer.pad_token_id
        if pad_id is None:
            raise ReadoutMissing(f"the tokenizer of {model} names no padding token; restore its tokenizer_config.json")
    else:
        with reading(folder, transformers.CLIPConfig):
            dual: Any = transformers.CLIPConfig.from_pretrained(str(folder), local_files_only=True)
        config = dual.text_config
        config.projection_dim = width = dual.projection_dim
        tower = load_part(folder, transformers.CLIPTextModelWithProjection, device=device, config=config)
        pad_id = config.eos_token_id

    def embed(ids: Tensor) -> Tensor:
        output = tower(input_ids=ids)
        vectors: Tensor = output.pooler_output if family is Family.SIGLIP else output.text_embeds
        return vectors

    limit = config.max_position_embeddings
    return _TextSide(tokenizer, embed, width, limit, end_id=config.eos_token_id, pad_id=pad_id)


def _load_tokenizer(folder: Path, model: str) -> Any:
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZER_CONTENTS):
        # transformers would make an empty tokenizer of the family's class, and every text would get some wrong vector
        raise ReadoutMissing(
            f"{model} has no tokenizer, so text has no vector; put the model's tokenizer files into its folder "
            f"({' or '.join(' with '.join(names) for names in _TOKENIZER_CONTENTS)})"
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # absent files, absent packages and damaged ones share no base class
        reason = str(error).strip().partition("\n")[0]
        raise ReadoutMissing(
            f"the tokenizer of {model} cannot be read ({type(error).__name__}: {reason}); put the model's tokenizer "
            "files into its folder, and install what they need (SigLIP: pip install sentencepiece protobuf)"
        ) from error


def _ends_where_pooled(side: _TextSide, tokens: list[int]) -> bool:
    return tokens[-1] == (max(tokens) if side.end_id == _LEGACY_END else side.end_id) if tokens else False


def _read_numbers(folder: Path, names: Sequence[str]) -> dict[str, float]:
    """Read single numbers out of an encoder's weights, and nothing else of them."""
    found = {}
    for path in weight_files(folder):
        with reading(folder, Tensor), safe_open(path, "pt") as weights:
            held = set(weights.keys()).intersection(names)
            found.update({name: float(weights.get_tensor(name)) for name in held})
    missing = [name for name in names if name not in found]
    if missing:
        raise ArtefactDamaged(f"the weights of {folder.name} lack {', '.join(missing)}; fetch the folder again")
    return found
