"""What an encoder asks of its pixels, read from Hugging Face preprocessor files; knows nothing of image bytes.

The reference is the Pillow backend of transformers 5 (`image_processing_backends.PilBackend`): defaults of each
processor, old files with whole numbers for sizes, and the flags that switch a step off.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from phosphene.errors import SettingError

__all__ = ["RESAMPLE_CODES", "ExactSize", "Preprocessing", "Resize", "ShortestEdge"]

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
_COMMON: dict[str, Any] = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
_CLIP: dict[str, Any] = _COMMON | {
    "resample": 3,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
    "default_to_square": False,
}
_HALVES: dict[str, Any] = _COMMON | {"image_mean": _HALF, "image_std": _HALF, "size": {"height": 224, "width": 224}}
_PROCESSOR_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "BitImageProcessor": _CLIP,
    "SiglipImageProcessor": _HALVES | {"resample": 3, "do_center_crop": False, "default_to_square": False},
    "ViTImageProcessor": _HALVES | {"resample": 2, "do_center_crop": False, "default_to_square": True},
    "DeiTImageProcessor": _HALVES
    | {
        "resample": 3,
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "default_to_square": True,
    },
}
_PROCESSOR_OF_MODEL = {
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "vit": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
}
_DECISIVE_KEYS = frozenset(_CLIP)
# What stands in such files and changes no pixel of an RGB image; `crop_pct` is heard by none of these processors.
_IDLE_KEYS = frozenset(
    {
        *(
            "image_processor_type",
            "feature_extractor_type",
            "processor_class",
            "_processor_class",
            "_valid_processor_keys",
        ),
        *(
            "do_convert_rgb",
            "data_format",
            "input_data_format",
            "return_tensors",
            "device",
            "disable_grouping",
            "use_fast",
        ),
        *("image_seq_length", "crop_pct", "pad_size", "transformers_version", "backend"),
    }
)
# Harmless when off; a change of pixels that is not made here when on.
_FLAGS_REFUSED = ("do_pad", "use_square_size", "do_thumbnail", "do_align_long_axis", "do_flip_channel_order")
RESAMPLE_CODES = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Pillow's number of each filter, as preprocessor files give it."""
_RESAMPLE_NAMES = {code: name for name, code in RESAMPLE_CODES.items()}


@dataclass(frozen=True, kw_only=True)
class ShortestEdge:
    """Scale so that the shorter edge gets this length; the aspect ratio stays."""

    pixels: int


@dataclass(frozen=True, kw_only=True)
class ExactSize:
    """Scale to exactly this size, whatever the aspect ratio."""

    height: int
    width: int


Resize = ShortestEdge | ExactSize | None


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an encoder wants its pixels: resize, centre crop, then (pixels * rescale_factor - mean) / std."""

    resize: Resize
    """None where the file says do_resize = false."""
    resample: str
    """Filter of the resize: nearest, lanczos, bilinear, bicubic, box or hamming."""
    crop: ExactSize | None
    """Centre crop after the resize, padded with zeros where the image is smaller."""
    rescale_factor: float
    """1/255 as a rule; 1.0 where the file says do_rescale = false."""
    mean: tuple[float, float, float]
    """Per channel, after rescaling; zeros where the file says do_normalize = false."""
    std: tuple[float, float, float]
    """Per channel, after rescaling; ones where the file says do_normalize = false."""

    @property
    def size(self) -> ExactSize:
        """Height and width of every prepared image."""
        fixed = self.crop if self.crop is not None else self.resize
        if not isinstance(fixed, ExactSize):
            raise SettingError(
                f"preprocessing with resize {self.resize} and crop {self.crop} gives pixels of varying size; encoders "
                "need one size: set do_center_crop with crop_size, or size to {height, width}"
            )
        return fixed

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, model_type: str | None = None) -> Preprocessing:
        """Read a Hugging Face `preprocessor_config.json` as the Pillow backend of transformers 5 does.

        Args:
            config: the file's content; a `processor_config.json` with an `image_processor` inside will do.
            model_type: `model_type` of the model's config; used where an old file names no processor.

        Raises:
            SettingError: an unknown processor, a key that changes pixels in a way not known here, or no fixed size.
        """
        given = config.get("image_processor", config)
        if not isinstance(given, Mapping):
            raise SettingError(f"image_processor is {given!r}; it holds the settings of one, as an object")
        settings = _PROCESSOR_DEFAULTS[_processor_name(given, model_type)] | {
            key: value for key, value in given.items() if value is not None
        }
        _refuse_unknown_settings(settings)
        _refuse_unclear_flags(settings)
        resample = settings["resample"]
        if settings["do_resize"] and (not isinstance(resample, int) or resample not in _RESAMPLE_NAMES):
            raise SettingError(f"resample is {resample!r}; Pillow's filters are {_RESAMPLE_NAMES}", field="resample")
        is_normalised = bool(settings["do_normalize"])
        preprocessing = cls(
            resize=_resize_of(settings) if settings["do_resize"] else None,
            resample=_RESAMPLE_NAMES[resample] if settings["do_resize"] else "bicubic",
            crop=_exact_size(settings.get("crop_size"), "crop_size") if settings["do_center_crop"] else None,
            rescale_factor=_factor(settings["rescale_factor"]) if settings["do_rescale"] else 1.0,
            mean=_per_channel(settings["image_mean"] if is_normalised else 0.0, "image_mean"),
            std=_per_channel(settings["image_std"] if is_normalised else 1.0, "image_std"),
        )
        _ = preprocessing.size
        return preprocessing

    def to_config(self) -> dict[str, Any]:
        """Return the canonical dictionary, to be digested and stored; transformers and `from_config` read it back."""
        match self.resize:
            case ShortestEdge(pixels=pixels):
                size: dict[str, int] | None = {"shortest_edge": pixels}
            case ExactSize(height=height, width=width):
                size = {"height": height, "width": width}
            case None:
                size = None
            case _:
                assert_never(self.resize)
        crop = None if self.crop is None else {"height": self.crop.height, "width": self.crop.width}
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": size is not None,
            "size": size,
            "resample": RESAMPLE_CODES[self.resample],
            "do_center_crop": crop is not None,
            "crop_size": crop,
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def _processor_name(config: Mapping[str, Any], model_type: str | None) -> str:
    declared = config.get("image_processor_type") or config.get("feature_extractor_type")
    if declared is None:
        declared = _PROCESSOR_OF_MODEL.get(model_type or "")
    name = str(declared).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if name not in _PROCESSOR_DEFAULTS:
        raise SettingError(
            f"image processor is {declared} (model type {model_type}); known are {', '.join(_PROCESSOR_DEFAULTS)}: "
            "name one of them as image_processor_type in preprocessor_config.json, if it is the right one",
            field="image_processor_type",
        )
    return name


def _refuse_unknown_settings(settings: Mapping[str, Any]) -> None:
    unknown = sorted(settings.keys() - _DECISIVE_KEYS - _IDLE_KEYS - set(_FLAGS_REFUSED))
    unknown += [flag for flag in _FLAGS_REFUSED if settings.get(flag)]
    if unknown:
        raise SettingError(
            f"preprocessor settings {', '.join(f'{key} = {settings[key]!r}' for key in unknown)} are not known here "
            f"and may change pixels; known are {', '.join(sorted(_DECISIVE_KEYS))}: remove them if they do not",
            field=unknown[0],
        )


def _refuse_unclear_flags(settings: Mapping[str, Any]) -> None:
    """Refuse what is neither true nor false, such as the text "false", which Python takes for true."""
    for key, value in settings.items():
        if key.startswith("do_") and value not in (True, False):
            raise SettingError(f"{key} is {value!r}; it must be true or false", field=key)


def _resize_of(settings: Mapping[str, Any]) -> ShortestEdge | ExactSize:
    size = settings["size"]
    if isinstance(size, int) and not settings["default_to_square"]:
        size = {"shortest_edge": size}
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        return ShortestEdge(pixels=_positive(size["shortest_edge"], "size"))
    return _exact_size(size, "size")


def _exact_size(size: Any, field: str) -> ExactSize:
    match size:
        case int():
            return ExactSize(height=_positive(size, field), width=_positive(size, field))
        case [height, width] | {"height": height, "width": width} if len(size) == 2:
            return ExactSize(height=_positive(height, field), width=_positive(width, field))
        case _:
            raise SettingError(
                f"{field} is {size!r}; known are a whole number, [height, width], {{height, width}} and, for size, "
                "{shortest_edge}",
                field=field,
            )


def _positive(value: Any, field: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 8192:
        raise SettingError(f"{field} has the length {value!r}; the limits are 1 and 8192 pixels", field=field)
    return value


def _per_channel(value: Any, field: str) -> tuple[float, float, float]:
    values = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(map(_is_number, values)) or (field == "image_std" and 0 in values):
        raise SettingError(f"{field} is {value!r}; it is one number per channel (3), none of them 0 in image_std")
    return float(values[0]), float(values[1]), float(values[2])


def _factor(value: Any) -> float:
    if not _is_number(value) or value == 0:
        raise SettingError(
            f"rescale_factor is {value!r}; it is a number other than 0, 1/255 as a rule", field="rescale_factor"
        )
    return float(value)


def _is_number(value: Any) -> bool:
    # JSON has whole numbers that no float holds; NaN is none of these.
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
