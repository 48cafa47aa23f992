"""Preprocessing: equal to the Pillow processors of transformers, for every family that is read."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from phosphene.errors import SettingError
from phosphene.images import prepare
from phosphene.preprocessing import ExactSize, Preprocessing, ShortestEdge
from tests.phosphene.png_writer import encoded, photo

PROCESSORS = {
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "BitImageProcessor": BitImageProcessorPil,
    "SiglipImageProcessor": SiglipImageProcessorPil,
    "ViTImageProcessor": ViTImageProcessorPil,
    "DeiTImageProcessor": DeiTImageProcessorPil,
}
SIZES = [(224, 224), (300, 451), (451, 300), (97, 130), (33, 400), (500, 41), (1, 1), (11, 500), (640, 481)]


def theirs(processor: Any, image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(processor.preprocess(image, return_tensors="np")["pixel_values"][0])


def ours(preprocessing: Preprocessing, image: Image.Image) -> np.ndarray[Any, Any]:
    """Normalised as a device would do it."""
    pixels = prepare(encoded(image, "PNG"), preprocessing).pixels.astype(np.float64)
    mean, std = np.reshape(preprocessing.mean, (3, 1, 1)), np.reshape(preprocessing.std, (3, 1, 1))
    return (pixels * preprocessing.rescale_factor - mean) / std


def assert_equal_pixels(preprocessing: Preprocessing, processor: Any, image: Image.Image, bar: float = 1e-3) -> None:
    found, expected = ours(preprocessing, image), theirs(processor, image)
    assert found.shape == expected.shape
    levels = np.abs(found - expected) * np.reshape(preprocessing.std, (3, 1, 1)) / preprocessing.rescale_factor
    assert levels.mean() < bar


@pytest.mark.parametrize("height_width", SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_equal_to_transformers_with_its_defaults(name, height_width):
    image = photo(*height_width, seed=sum(height_width))
    assert_equal_pixels(Preprocessing.from_config({"image_processor_type": name}), PROCESSORS[name](), image)


@pytest.mark.parametrize("height_width", [(1, 90), (170, 2), (3, 400), (2, 1000)])
def test_images_too_long_to_be_resized_whole_differ_by_rounding_only(height_width):
    preprocessing = Preprocessing.from_config(
        {"image_processor_type": "CLIPImageProcessor", "size": 64, "crop_size": 64}
    )
    processor = CLIPImageProcessorPil(size=64, crop_size=64)
    assert_equal_pixels(preprocessing, processor, photo(*height_width), bar=0.5)


@pytest.mark.parametrize("name", PROCESSORS)
def test_equal_to_transformers_on_noise(name):
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (201, 333, 3), dtype=np.uint8))
    assert_equal_pixels(Preprocessing.from_config({"image_processor_type": name}), PROCESSORS[name](), noise)


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(PROCESSORS)),
    st.integers(1, 80),
    st.integers(1, 80),
    st.fixed_dictionaries(
        {
            "size": st.one_of(
                st.integers(8, 40),
                st.fixed_dictionaries({"shortest_edge": st.integers(8, 40)}),
                st.fixed_dictionaries({"height": st.integers(8, 40), "width": st.integers(8, 40)}),
            ),
            "crop_size": st.one_of(
                st.integers(8, 48), st.fixed_dictionaries({"height": st.integers(8, 48), "width": st.integers(8, 48)})
            ),
            "do_center_crop": st.just(True),
            "resample": st.integers(0, 5),
        },
        optional={
            "do_resize": st.booleans(),
            "do_rescale": st.booleans(),
            "do_normalize": st.booleans(),
            "image_mean": st.sampled_from([0.4, [0.1, 0.2, 0.3]]),
            "rescale_factor": st.sampled_from([1 / 127.5, 1 / 255]),
        },
    ),
)
def test_equal_to_transformers_with_any_settings(name, height, width, config):
    preprocessing = Preprocessing.from_config({"image_processor_type": name, **config})
    assert_equal_pixels(preprocessing, PROCESSORS[name](**config), photo(height, width))


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_canonical_form_is_read_back_here_and_by_transformers(name):
    preprocessing = Preprocessing.from_config({"image_processor_type": name, "do_rescale": False})
    config = preprocessing.to_config()
    assert Preprocessing.from_config(config) == preprocessing
    assert_equal_pixels(preprocessing, CLIPImageProcessorPil(**config), photo(50, 70))


@pytest.mark.parametrize(
    ("config", "model_type", "resize", "crop", "resample"),
    [
        (
            {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3},
            None,
            ShortestEdge(pixels=224),
            ExactSize(height=224, width=224),
            "bicubic",
        ),
        (
            {"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, "do_center_crop": True},
            None,
            ExactSize(height=256, width=256),
            ExactSize(height=224, width=224),
            "bicubic",
        ),
        ({"size": 384, "resample": 2}, "vit", ExactSize(height=384, width=384), None, "bilinear"),
        ({"image_processor_type": "ViTImageProcessorFast"}, "vit", ExactSize(height=224, width=224), None, "bilinear"),
        (
            {"image_processor_type": "ViTFeatureExtractor", "size": [30, 40]},
            None,
            ExactSize(height=30, width=40),
            None,
            "bilinear",
        ),
        (
            {"size": {"shortest_edge": 256}, "crop_pct": 0.875, "do_convert_rgb": True, "processor_class": None},
            "dinov2_with_registers",
            ShortestEdge(pixels=256),
            ExactSize(height=224, width=224),
            "bicubic",
        ),
        (
            {"processor_class": "SiglipProcessor", "image_processor": {"image_processor_type": "SiglipImageProcessor"}},
            "siglip",
            ExactSize(height=224, width=224),
            None,
            "bicubic",
        ),
    ],
)
def test_old_and_new_files(config, model_type, resize, crop, resample):
    preprocessing = Preprocessing.from_config(config, model_type=model_type)
    assert (preprocessing.resize, preprocessing.crop, preprocessing.resample) == (resize, crop, resample)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "name one of them as image_processor_type"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
        ({"image_processor_type": "CLIPImageProcessor", "do_pad": True}, "do_pad = True"),
        ({"image_processor_type": "CLIPImageProcessor", "do_sharpen": False}, "do_sharpen = False"),
        ({"image_processor_type": "CLIPImageProcessor", "resample": 9}, "resample is 9"),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"longest_edge": 9}}, "longest_edge"),
        ({"image_processor_type": "CLIPImageProcessor", "size": 0}, "length 0"),
        ({"image_processor_type": "CLIPImageProcessor", "crop_size": "224"}, "'224'"),
        ({"image_processor_type": "CLIPImageProcessor", "do_center_crop": False}, "varying size"),
        ({"image_processor_type": "SiglipImageProcessor", "size": 224}, "varying size"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "varying size"),
        ({"image_processor_type": "ViTImageProcessor", "do_center_crop": True}, "crop_size is None"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": [1.0, 0.0, 1.0]}, "image_std"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [1.0, 0.0]}, "image_mean"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": "0.5"}, "image_mean is '0.5'"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, "0.5", 0.5]}, "image_mean is"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": [math.nan, 1.0, 1.0]}, "image_std is .*nan"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [10**400, 0, 0]}, "image_mean is .*1000"),
        ({"image_processor_type": "ViTImageProcessor", "rescale_factor": 10**400}, "rescale_factor is 1000"),
        ({"image_processor_type": "ViTImageProcessor", "rescale_factor": "1/255"}, "rescale_factor is '1/255'"),
        ({"image_processor_type": "ViTImageProcessor", "rescale_factor": 0}, "rescale_factor is 0"),
        ({"image_processor_type": "ViTImageProcessor", "resample": [3]}, r"resample is \[3\]"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": "false"}, "do_resize is 'false'"),
        ({"image_processor": "ViTImageProcessor"}, "image_processor is 'ViTImageProcessor'"),
    ],
)
def test_what_is_not_understood_is_refused(config, message):
    with pytest.raises(SettingError, match=message):
        Preprocessing.from_config(config)


def test_real_photos_through_a_real_preprocessor_file(shared: Path) -> None:
    folder = shared / "models" / "deit-tiny-patch16-224"
    preprocessing = Preprocessing.from_config(json.loads((folder / "preprocessor_config.json").read_text()))
    processor = ViTImageProcessorPil.from_pretrained(folder)
    for place in ("Leopards", "anchor", "yin_yang"):
        photograph = next(iter(sorted((shared / "photos" / "caltech101" / place).iterdir())))
        prepared = prepare(photograph.read_bytes(), preprocessing)
        assert not prepared.drafted
        with Image.open(photograph) as opened:
            image = opened.convert("RGB")
        unscaled = processor.preprocess(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        assert (prepared.pixels == unscaled).all()


def test_images_and_corpora_need_no_torch() -> None:
    rooms = "import phosphene.images, phosphene.corpus, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", rooms], check=False).returncode == 0
