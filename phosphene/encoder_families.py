"""The families of vision models, each cut where Phosphene cuts: embeddings, blocks, and what follows the last block.

The only place that knows how transformers names the parts of a model. Families are closed: a model is read because a
`case` below says how, never because its weights look like another's. Knows nothing of sites, images or bundles.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from phosphene.device_errors import device_errors
from phosphene.encoder_source import read_config
from phosphene.errors import ArtefactDamaged, EncoderUnsupported

__all__ = ["EncoderOutput", "Family", "Head", "Tower", "load_part", "load_tower", "reading"]


_SHOWN = 5


class Family(StrEnum):
    """A family of vision models."""

    CLIP = "clip"
    SIGLIP = "siglip"
    DINOV2 = "dinov2"
    DINOV2_REGISTERS = "dinov2_with_registers"
    VIT = "vit"
    DEIT = "deit"


class EncoderOutput(NamedTuple):
    """What a whole encoder makes of a batch; equal to the Hugging Face model's fields of the same meaning."""

    last_hidden: Float[Tensor, "images tokens width"]
    """Residuals after the last block and the family's final norm (CLIP norms its pooled token alone)."""
    pooled: Float[Tensor, "images pooled"] | None
    """The family's own pooling: CLIP, DINOv2: normed class token; SigLIP: attention pooling; ViT, DeiT: their pooler
    where the weights have one (classifiers do not)."""
    embedding: Float[Tensor, "images embedding"] | None
    """The vector that text is compared with, not normalised; None where the family has no text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A classifier on top of an encoder."""

    classify: Callable[[EncoderOutput], Tensor]
    """Output of a batch -> logits [images, names]."""
    names: tuple[str, ...]
    """Class names in the order of the logits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tower:
    """The vision side of a loaded model, in float32, without gradients."""

    family: Family
    embed: Callable[[Tensor], Tensor]
    """Normalised pixels [images, 3, h, w] -> residuals before block 0 [images, tokens, width]."""
    blocks: tuple[nn.Module, ...]
    finish: Callable[[Tensor], EncoderOutput]
    """Residuals after the last block -> output."""
    prefix_token_count: int
    """Tokens before the patches: class token, then register or distillation tokens."""
    embedding_width: int | None
    config: Any
    """The vision configuration of transformers: hidden_size, patch_size, image_size."""
    head: Head | None = None

    @property
    def unit_readers(self) -> tuple[nn.Module, ...]:
        """For each block the linear map whose input is the activations of its MLP's units."""
        return tuple(_unit_reader(block) for block in self.blocks)

    @property
    def has_fixed_size(self) -> bool:
        """Whether pixels must have the configured size (DINOv2 interpolates its positions)."""
        return self.family not in (Family.DINOV2, Family.DINOV2_REGISTERS)


def load_tower(folder: Path, *, device: torch.device) -> Tower:
    """Load the vision side of the model in a Hugging Face folder; a text side is not read.

    Raises:
        EncoderUnsupported: A model that is none of the families.
        ArtefactDamaged: The weights do not load, or not all that the configuration asks for are there.
    """
    config = read_config(folder)
    if "quantization_config" in config:
        raise EncoderUnsupported(f"{folder.name} is quantised; encoders are read in float32: give the original weights")
    architecture = _architecture(config, folder.name)

    def part(model_class: Any, **options: Any) -> Any:
        return load_part(folder, model_class, device=device, **options)

    match architecture:
        case "CLIPModel" | "CLIPVisionModelWithProjection":
            whole = part(transformers.CLIPVisionModelWithProjection, config=_clip_config(folder, config))
            return _clip(whole.vision_model, project=whole.visual_projection)
        case "CLIPVisionModel":
            return _clip(part(transformers.CLIPVisionModel))
        case "CLIPForImageClassification":
            whole = part(transformers.CLIPForImageClassification)
            return _clip(whole.vision_model, head=_patch_mean_head(whole, first_patch=1))
        case "SiglipModel" | "SiglipVisionModel":
            return _siglip(part(transformers.SiglipVisionModel))
        case "SiglipForImageClassification":
            whole = part(transformers.SiglipForImageClassification)
            return _siglip(whole.vision_model, head=_patch_mean_head(whole, first_patch=0))
        case "Dinov2Model":
            return _dinov2(part(transformers.Dinov2Model), Family.DINOV2)
        case "Dinov2ForImageClassification":
            whole = part(transformers.Dinov2ForImageClassification)
            return _dinov2(whole.dinov2, Family.DINOV2, classifier=whole.classifier)
        case "Dinov2WithRegistersModel":
            return _dinov2(part(transformers.Dinov2WithRegistersModel), Family.DINOV2_REGISTERS)
        case "Dinov2WithRegistersForImageClassification":
            whole = part(transformers.Dinov2WithRegistersForImageClassification)
            return _dinov2(whole.dinov2_with_registers, Family.DINOV2_REGISTERS, classifier=whole.classifier)
        case "ViTModel":
            return _vit(part(transformers.ViTModel, optional_prefix="pooler."), Family.VIT)
        case "ViTForImageClassification":
            whole = part(transformers.ViTForImageClassification)
            return _vit(whole.vit, Family.VIT, classifiers=[whole.classifier])
        case "DeiTModel":
            return _vit(part(transformers.DeiTModel, optional_prefix="pooler."), Family.DEIT)
        case "DeiTForImageClassification":
            whole = part(transformers.DeiTForImageClassification)
            return _vit(whole.deit, Family.DEIT, classifiers=[whole.classifier])
        case "DeiTForImageClassificationWithTeacher":
            whole = part(transformers.DeiTForImageClassificationWithTeacher)
            return _vit(whole.deit, Family.DEIT, classifiers=[whole.cls_classifier, whole.distillation_classifier])
        case _:
            raise EncoderUnsupported(
                f"{folder.name} is a {architecture}, which is not read; read are CLIP, SigLIP, DINOv2 (with and "
                "without registers), ViT and DeiT, as plain models and as image classifiers"
            )


def load_part(
    folder: Path, model_class: Any, *, device: torch.device, config: Any = None, optional_prefix: str | None = None
) -> Any:
    """Load one transformers class from a folder: safetensors only, float32, frozen, and complete or not at all.

    Args:
        folder: Folder in the Hugging Face layout; it may hold more weights than the class has.
        model_class: A `PreTrainedModel` class.
        device: Where the weights go.
        config: Configuration in place of the folder's own.
        optional_prefix: Name of a submodule with a dot behind; it becomes None where the folder lacks its weights.

    Raises:
        ArtefactDamaged: The weights do not load, or some are missing.
        DeviceOutOfMemory: They do not fit into the device's memory.
        DeviceFailed: The device is lost to this process.
    """
    with reading(folder, model_class):
        model, report = model_class.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
        )
    missing = sorted(name for name in report["missing_keys"] if not name.endswith("mask_token"))
    if optional_prefix is not None and missing and all(name.startswith(optional_prefix) for name in missing):
        setattr(model, optional_prefix.removesuffix("."), None)
        missing = []
    if missing:
        raise ArtefactDamaged(
            f"the encoder {folder.name} lacks {len(missing)} of the weights that {model_class.__name__} has, "
            f"{missing[0]} among them; config.json and the weights do not belong together: fetch both again"
        )
    with device_errors(device, what=f"the encoder {folder.name}", remedy="free some there, or choose another device"):
        return model.to(device).eval().requires_grad_(False)


_BASE_ARCHITECTURES = {
    "clip": "CLIPModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "vit": "ViTModel",
    "deit": "DeiTModel",
}


def _architecture(config: dict[str, Any], name: str) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _BASE_ARCHITECTURES:
        raise EncoderUnsupported(
            f"{name} has the model_type {model_type!r}, which is not read; read are {', '.join(_BASE_ARCHITECTURES)}"
        )
    named = config.get("architectures") or [_BASE_ARCHITECTURES[model_type]]
    return str(named[0])


def _clip_config(folder: Path, config: dict[str, Any]) -> Any:
    """Give a dual model's vision configuration the width of the dual's own projection."""
    if config["model_type"] == "clip_vision_model":
        return None
    with reading(folder, transformers.CLIPConfig):
        dual: Any = transformers.CLIPConfig.from_pretrained(str(folder), local_files_only=True)
    dual.vision_config.projection_dim = dual.projection_dim
    return dual.vision_config


def _clip(model: Any, *, project: Any = None, head: Head | None = None) -> Tower:
    def embed(pixels: Tensor) -> Tensor:
        hidden: Tensor = model.pre_layrnorm(model.embeddings(pixels))
        return hidden

    def finish(hidden: Tensor) -> EncoderOutput:
        pooled = model.post_layernorm(hidden[:, 0])
        return EncoderOutput(hidden, pooled, None if project is None else project(pooled))

    return Tower(
        family=Family.CLIP,
        embed=embed,
        blocks=tuple(model.encoder.layers),
        finish=finish,
        prefix_token_count=1,
        embedding_width=None if project is None else project.out_features,
        config=model.config,
        head=head,
    )


def _siglip(model: Any, *, head: Head | None = None) -> Tower:
    def finish(hidden: Tensor) -> EncoderOutput:
        last_hidden = model.post_layernorm(hidden)
        pooled = model.head(last_hidden) if model.use_head else None
        return EncoderOutput(last_hidden, pooled, pooled)

    return Tower(
        family=Family.SIGLIP,
        embed=model.embeddings,
        blocks=tuple(model.encoder.layers),
        finish=finish,
        prefix_token_count=0,
        embedding_width=model.config.hidden_size if model.use_head else None,
        config=model.config,
        head=head,
    )


def _dinov2(model: Any, family: Family, *, classifier: Any = None) -> Tower:
    prefix_token_count = 1 + getattr(model.config, "num_register_tokens", 0)

    def finish(hidden: Tensor) -> EncoderOutput:
        last_hidden = model.layernorm(hidden)
        return EncoderOutput(last_hidden, last_hidden[:, 0], None)

    def classify(output: EncoderOutput) -> Tensor:
        patches = output.last_hidden[:, prefix_token_count:]
        logits: Tensor = classifier(torch.cat([output.last_hidden[:, 0], patches.mean(dim=1)], dim=1))
        return logits

    return Tower(
        family=family,
        embed=model.embeddings,
        blocks=tuple(model.encoder.layer),
        finish=finish,
        prefix_token_count=prefix_token_count,
        embedding_width=None,
        config=model.config,
        head=_head(model.config, classify, [classifier]),
    )


def _vit(model: Any, family: Family, *, classifiers: Sequence[Any] = ()) -> Tower:
    def finish(hidden: Tensor) -> EncoderOutput:
        last_hidden = model.layernorm(hidden)
        return EncoderOutput(last_hidden, None if model.pooler is None else model.pooler(last_hidden), None)

    def classify(output: EncoderOutput) -> Tensor:
        """Average the heads' logits; each head reads the prefix token of its own place (DeiT: class, distillation)."""
        logits = torch.stack([head(output.last_hidden[:, place]) for place, head in enumerate(classifiers)])
        return logits.mean(dim=0)

    return Tower(
        family=family,
        embed=model.embeddings,
        blocks=tuple(model.layers),
        finish=finish,
        prefix_token_count=2 if family is Family.DEIT else 1,
        embedding_width=None,
        config=model.config,
        head=_head(model.config, classify, classifiers),
    )


def _unit_reader(block: Any) -> nn.Module:
    """Find an MLP's second linear map: `fc2`, or `down_proj` in the gated MLPs of large DINOv2 models."""
    reader: nn.Module = block.mlp.down_proj if hasattr(block.mlp, "down_proj") else block.mlp.fc2
    return reader


def _patch_mean_head(whole: Any, *, first_patch: int) -> Head | None:
    def classify(output: EncoderOutput) -> Tensor:
        logits: Tensor = whole.classifier(output.last_hidden[:, first_patch:].mean(dim=1))
        return logits

    return _head(whole.config, classify, [whole.classifier])


def _head(config: Any, classify: Callable[[EncoderOutput], Tensor], classifiers: Sequence[Any]) -> Head | None:
    """Name a classifier's logits; None for models without one (transformers puts an Identity for zero classes).

    Raises:
        ArtefactDamaged: A logit has no name; another's would be wrong.
    """
    if not classifiers or not all(isinstance(classifier, nn.Linear) for classifier in classifiers):
        return None
    count = classifiers[0].out_features
    nameless = [i for i in range(count) if i not in config.id2label]
    if nameless:
        raise ArtefactDamaged(
            f"id2label in the encoder's config.json names classes {sorted(config.id2label)[:_SHOWN]}, and none for "
            f"{nameless[:_SHOWN]} of its {count} outputs: number the classes from 0"
        )
    return Head(classify=classify, names=tuple(config.id2label[i] for i in range(count)))


@contextmanager
def reading(folder: Path, what: type) -> Iterator[None]:
    """Let transformers read silently, and turn whatever it raises into one error.

    Its progress bar and its report of unread weights stay off the terminal: `load_part` checks what was read.
    """
    try:
        with _SILENCE, _silent():
            yield
    except Exception as error:  # configurations and weights fail in a dozen ways that share no base class
        reason = str(error).partition("\n")[0]
        raise ArtefactDamaged(
            f"the encoder {folder.name} does not load as {what.__name__} ({type(error).__name__}: {reason}); "
            "fetch the folder again"
        ) from error


# transformers keeps both switches for the whole process; two threads that load at once would restore each other's
_SILENCE = threading.Lock()


@contextmanager
def _silent() -> Iterator[None]:
    verbosity, shows_progress = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shows_progress:
            transformers_logging.enable_progress_bar()
