"""Scores and text vectors against the whole Hugging Face model; what is refused, and that it says so."""

from __future__ import annotations

import gc
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from phosphene.encoder import Encoder, EncoderOutput, Family, load_encoder
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, InputError, ReadoutMissing
from phosphene.images import prepare
from phosphene.readout import ClassifierReadout, NoReadout, SimilarityReadout, Vocabulary, load_readout
from tests.families import CLASS_NAMES, IMAGE_PX, TEXT_LIMIT, save_model, write_encoder

TEXTS = (
    "a photo of a red circle",
    "one yellow star",
    "two large green squares beside a striped triangle on a blue background",
)
DUALS = [Family.CLIP, Family.SIGLIP]
REAL_VIT = Path(__file__).parents[3] / "shared/models/deit-tiny-patch16-224"
REAL_PHOTOS = Path(__file__).parents[3] / "shared/photos/caltech101"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: write_encoder(root / family.value, family) for family in Family}


@pytest.fixture(scope="module")
def encoders(folders: dict[Family, Path]) -> dict[Family, Encoder]:
    return {family: load_encoder(folder) for family, folder in folders.items()}


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (4, 3, IMAGE_PX, IMAGE_PX), generator=generator, dtype=torch.uint8)


def similarity(folder: Path, encoder: Encoder) -> SimilarityReadout:
    readout = load_readout(folder, encoder)
    assert isinstance(readout, SimilarityReadout)
    return readout


def whole_logits(folder: Path, family: Family, pixels: Tensor, texts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Scores and unit text vectors by the model's own forward and its tokenizer's own padding."""
    mean, std = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.27, 0.26, 0.28])
    inputs = (pixels / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if family is Family.CLIP:
        model: Any = transformers.CLIPModel.from_pretrained(folder).eval()
        words = dict(tokenizer(list(texts), padding=True, return_tensors="pt"))
    else:
        model = transformers.SiglipModel.from_pretrained(folder).eval()
        words = dict(tokenizer(list(texts), padding="max_length", max_length=TEXT_LIMIT, return_tensors="pt"))
        del words["attention_mask"]
    with torch.no_grad():
        output = model(pixel_values=inputs, input_ids=words["input_ids"], attention_mask=words.get("attention_mask"))
    return output.logits_per_image, output.text_embeds


@pytest.mark.parametrize("family", DUALS)
def test_similarity_equals_the_whole_model(
    family: Family, folders: dict[Family, Path], encoders: dict[Family, Encoder], pixels: Tensor
) -> None:
    readout = similarity(folders[family], encoders[family])
    vectors = readout.text_vectors(TEXTS)
    scores = readout.scores(encoders[family].output(pixels), Vocabulary(TEXTS, vectors))
    due_scores, due_vectors = whole_logits(folders[family], family, pixels, TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(vectors, due_vectors, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores, due_scores, rtol=1e-4, atol=1e-4)
    assert float(due_scores.std()) > 0.01, "the texts all score alike: the test is blind"
    assert (readout.logit_bias == 0) == (family is Family.CLIP)


def test_a_vocabulary_lies_on_a_device_once_and_goes_with_its_owner(
    folders: dict[Family, Path], encoders: dict[Family, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    readout = similarity(folders[Family.CLIP], encoders[Family.CLIP])
    vocabulary = Vocabulary(TEXTS, readout.text_vectors(TEXTS))
    copied: list[int] = []
    from_numpy = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: copied.append(len(array)) or from_numpy(array))
    for device in ("cpu", "meta", "meta"):
        embedding = torch.ones(2, vocabulary.vectors.shape[1], device=device, requires_grad=True)
        with torch.inference_mode():
            assert readout.scores(_only(embedding), vocabulary).device.type == device
        readout.scores(_only(embedding), vocabulary).sum().backward()
    assert copied == [len(TEXTS)] * 2
    del vocabulary
    gc.collect()
    assert not readout._vectors


def _only(embedding: Tensor) -> EncoderOutput:
    """An output of which nothing but the embedding is looked at."""
    return EncoderOutput(*(embedding if name == "embedding" else None for name in EncoderOutput._fields))


@pytest.mark.parametrize("family", DUALS)
def test_a_text_has_the_same_vector_alone_and_among_others(
    family: Family, folders: dict[Family, Path], encoders: dict[Family, Encoder]
) -> None:
    readout = similarity(folders[family], encoders[family])
    together = readout.text_vectors(TEXTS * 100)
    assert len(together) == 300
    for place, text in enumerate(TEXTS):
        np.testing.assert_allclose(readout.text_vectors([text])[0], together[place], atol=1e-5)
        np.testing.assert_allclose(together[place + 297], together[place], atol=1e-5)
    assert readout.text_vectors([]).shape == (0, together.shape[1])


@pytest.mark.parametrize("family", DUALS)
def test_texts_up_to_the_limit_are_read_and_longer_ones_refused(
    family: Family, folders: dict[Family, Path], encoders: dict[Family, Encoder]
) -> None:
    readout = similarity(folders[family], encoders[family])
    marks = 2 if family is Family.CLIP else 1
    longest = " ".join(["red"] * (TEXT_LIMIT - marks))
    assert readout.text_vectors([longest]).shape[0] == 1
    with pytest.raises(
        InputError, match=rf"'red red.* is {TEXT_LIMIT + 1} tokens long; .* at most {TEXT_LIMIT}"
    ) as caught:
        readout.text_vectors(["red", longest + " red"])
    assert caught.value.field == "text"


def test_the_text_tower_is_read_once_and_only_when_text_comes(tmp_path: Path, pixels: Tensor) -> None:
    folder = write_encoder(tmp_path / "clip", Family.CLIP)
    encoder = load_encoder(folder)
    readout = similarity(folder, encoder)
    with ThreadPoolExecutor(4) as pool:
        vectors = list(pool.map(readout.text_vectors, [TEXTS] * 4))
    shutil.rmtree(folder)
    np.testing.assert_array_equal(readout.text_vectors(TEXTS), vectors[0])


def test_scores_need_no_tokenizer(tmp_path: Path, pixels: Tensor) -> None:
    folder = write_encoder(tmp_path, Family.CLIP)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    encoder = load_encoder(folder)
    readout = similarity(folder, encoder)
    assert encoder.spec.embedding_width is not None
    vocabulary = Vocabulary(("x", "y"), np.eye(2, encoder.spec.embedding_width, dtype=np.float32))
    output = encoder.output(pixels)
    assert output.embedding is not None
    due = readout.logit_scale * torch.nn.functional.normalize(output.embedding, dim=-1)[:, :2]
    torch.testing.assert_close(readout.scores(output, vocabulary), due)
    with pytest.raises(ReadoutMissing, match="has no tokenizer.*put the model's tokenizer files into its folder"):
        readout.text_vectors(TEXTS)


def test_a_vocabulary_of_another_encoder_is_refused(
    folders: dict[Family, Path], encoders: dict[Family, Encoder], pixels: Tensor
) -> None:
    readout = similarity(folders[Family.CLIP], encoders[Family.CLIP])
    with pytest.raises(ArtefactMismatch, match="length 7; clip has embeddings of length 20"):
        readout.scores(encoders[Family.CLIP].output(pixels), Vocabulary(("x",), np.ones((1, 7), dtype=np.float32)))


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, Family.CLIP)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ReadoutMissing, match="the tokenizer of .* cannot be read"):
        similarity(folder, load_encoder(folder)).text_vectors(TEXTS)


@pytest.mark.parametrize("end_id", [2, 7])
def test_a_tokenizer_that_ends_texts_elsewhere_than_the_tower_reads_is_refused(tmp_path: Path, end_id: int) -> None:
    folder = write_encoder(tmp_path, Family.CLIP)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = end_id
    (folder / "config.json").write_text(json.dumps(config))
    readout = similarity(folder, load_encoder(folder))
    with pytest.raises(ReadoutMissing, match=rf"eos_token_id is {end_id}.*do not belong together"):
        readout.text_vectors(TEXTS)


def test_legacy_configurations_pool_at_the_highest_id(tmp_path: Path, pixels: Tensor) -> None:
    """The published CLIP folders name eos_token_id 2 while their end mark has the highest id of all."""
    folder = write_encoder(tmp_path, Family.CLIP)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    end, last = "<|endoftext|>", max(words, key=words.__getitem__)
    words[end], words[last] = words[last], words[end]
    for token in tokenizer["added_tokens"]:
        token["id"] = words[token["content"]]
    tokenizer["post_processor"]["sep"][1] = words[end]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    readout = similarity(folder, load_encoder(folder))
    due = whole_logits(folder, Family.CLIP, pixels, TEXTS)[1]
    np.testing.assert_allclose(readout.text_vectors(TEXTS), due, rtol=1e-4, atol=1e-5)


def test_a_dual_model_without_its_scale_is_damaged(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, Family.SIGLIP)
    weights = load_file(folder / "model.safetensors")
    del weights["logit_bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtefactDamaged, match="lack logit_bias"):
        load_readout(folder, load_encoder(folder))


@pytest.mark.parametrize("family", [family for family in Family if family not in DUALS])
def test_classifiers_name_their_scores(
    family: Family, folders: dict[Family, Path], encoders: dict[Family, Encoder], pixels: Tensor
) -> None:
    encoder = encoders[family]
    readout = load_readout(folders[family], encoder)
    assert isinstance(readout, ClassifierReadout)
    assert readout.names == CLASS_NAMES
    output = encoder.output(pixels)
    assert encoder.head is not None
    torch.testing.assert_close(readout.scores(output), encoder.head.classify(output))


@pytest.mark.parametrize("kind", ["ViTModel", "CLIPVisionModelWithProjection", "SiglipVisionModel"])
def test_an_encoder_with_neither_text_nor_classes_says_so(tmp_path: Path, kind: str) -> None:
    model_class = getattr(transformers, kind)
    config = model_class.config_class(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=IMAGE_PX,
        patch_size=8,
    )
    save_model(tmp_path, model_class(config))
    readout = load_readout(tmp_path, load_encoder(tmp_path))
    assert isinstance(readout, NoReadout)
    with pytest.raises(ReadoutMissing, match="neither a text tower nor a classifier"):
        readout.text_vectors(TEXTS)
    with pytest.raises(ReadoutMissing, match="neither a text tower nor a classifier"):
        readout.scores(EncoderOutput(torch.zeros(1, 1, 1), None, None))


@pytest.mark.skipif(not REAL_VIT.is_dir() or not REAL_PHOTOS.is_dir(), reason="the real model and photos are not here")
@pytest.mark.parametrize(
    ("folder", "name"), [("dalmatian", "dalmatian"), ("accordion", "accordion"), ("cougar_face", "cougar")]
)
def test_a_real_classifier_knows_real_photos(folder: str, name: str) -> None:
    encoder = load_encoder(REAL_VIT)
    readout = load_readout(REAL_VIT, encoder)
    assert isinstance(readout, ClassifierReadout)
    whole = transformers.ViTForImageClassification.from_pretrained(REAL_VIT).eval()
    processor = transformers.ViTImageProcessorPil.from_pretrained(REAL_VIT)
    photos = sorted((REAL_PHOTOS / folder).iterdir())[:8]
    pixels = np.stack([prepare(photo.read_bytes(), encoder.preprocessing).pixels for photo in photos])
    scores = readout.scores(encoder.output(torch.from_numpy(pixels)))
    with torch.no_grad():
        images = [Image.open(photo).convert("RGB") for photo in photos]
        due = whole(processor(images, return_tensors="pt").pixel_values).logits
    torch.testing.assert_close(scores, due, rtol=1e-4, atol=1e-3)
    best = [readout.names[i] for i in scores.argmax(dim=1).tolist()]
    assert sum(name in found for found in best) >= 6, best
