"""Bundles: what is saved is what is opened, damage is refused, and codes agree for every family of encoders."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phosphene.bundle import Bundle, load_bundle, save_bundle
from phosphene.codes import CodeLimits, ImageCode
from phosphene.encoder import Family, Site, Tokens, load_encoder
from phosphene.engine import Want
from phosphene.engine_torch import TorchEngine
from phosphene.errors import (
    ArtefactDamaged,
    ArtefactError,
    ArtefactMismatch,
    ImageUnreadable,
    ReadoutMissing,
    SettingError,
    SiteError,
)
from phosphene.pipeline import Pipeline, open_bundle
from phosphene.readout import Vocabulary
from phosphene.sae import SparseAutoencoder
from phosphene.selection import JumpReLU, TopK
from tests.families import write_encoder

NEURON_COUNT = 48


def make_bundle(
    folder: Path, family: Family, site: Site | None = None, *, jump: bool = False, vocabulary: Vocabulary | None = None
) -> Bundle:
    encoder_folder = folder / f"encoder-{family}"
    if not encoder_folder.exists():
        write_encoder(encoder_folder, family)
    encoder = load_encoder(encoder_folder)
    site = site or Site(block=1, tokens=Tokens.ALL)
    width = encoder.site_width(site)
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(NEURON_COUNT, width, generator=generator), dim=1)
    sae = SparseAutoencoder(
        encoder_weight=directions.T.contiguous(),
        encoder_bias=torch.zeros(NEURON_COUNT),
        directions=directions,
        decoder_bias=torch.randn(width, generator=generator) * 0.1,
        selection=JumpReLU(torch.full((NEURON_COUNT,), 0.1)) if jump else TopK(6),
    )
    return save_bundle(
        folder / "bundle",
        encoder=encoder,
        encoder_source=encoder_folder,
        site=site,
        sae=sae,
        limits=CodeLimits(image_code_limit=20, token_code_limit=12),
        training={"note": "random"},
        vocabulary=vocabulary,
    )


def test_an_encoder_named_by_the_home_folders_sign_is_copied_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_bundle(tmp_path, Family.VIT)
    monkeypatch.setenv("HOME", str(tmp_path))
    bundle = save_bundle(
        tmp_path / "again",
        encoder=load_encoder("~/encoder-vit"),
        encoder_source="~/encoder-vit",
        site=made.site,
        sae=made.sae,
        limits=made.limits,
        training={"note": "random"},
    )
    assert bundle.id == made.id


def photos(count: int, seed: int = 0) -> list[bytes]:
    """Smooth random pictures as PNG files."""
    generator = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        small = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((61, 47), Image.Resampling.BICUBIC).save(file, "PNG")
        files.append(file.getvalue())
    return files


def as_pairs(code: ImageCode) -> dict[int, float]:
    return dict(zip(code.neuron_ids.tolist(), code.values.tolist(), strict=True))


@pytest.mark.parametrize("jump", [False, True])
@pytest.mark.parametrize("family", list(Family))
def test_same_image_same_code_alone_and_in_any_batch(tmp_path: Path, family: Family, jump: bool) -> None:
    make_bundle(tmp_path, family, jump=jump)
    pipeline = open_bundle(tmp_path / "bundle")
    images = photos(5)
    for image, together in zip(images, pipeline.encode(images), strict=True):
        (alone,) = pipeline.encode([image])
        assert len(together) > 0
        tolerance = 1e-5 * float(together.values.max())
        left, right = as_pairs(alone), as_pairs(together)
        # An id may differ only where its value lies at the cut.
        for neuron in set(left) | set(right):
            if neuron in left and neuron in right:
                assert abs(left[neuron] - right[neuron]) <= tolerance
            else:
                value = left.get(neuron, right.get(neuron, 0.0))
                assert abs(value - float(together.values.min())) <= tolerance


@pytest.mark.parametrize("family", list(Family))
def test_what_else_is_asked_for_changes_no_code(tmp_path: Path, family: Family) -> None:
    make_bundle(tmp_path, family)
    pipeline = open_bundle(tmp_path / "bundle")
    prepared = [pipeline.prepare(image) for image in photos(3)]
    plain = pipeline.run(prepared)
    has_scores = bool(pipeline.engine.score_names)
    rich = pipeline.run(
        prepared, Want(token_codes=True, fidelity=True, residuals=True, scores=has_scores, embeddings=False)
    )
    for left, right in zip(plain.codes, rich.codes, strict=True):
        assert np.array_equal(left.neuron_ids, right.neuron_ids)
        np.testing.assert_allclose(left.values, right.values, rtol=1e-5)
    assert plain.fidelity is None
    assert plain.residuals is None
    assert rich.residuals is not None
    assert rich.residuals.shape == (3, pipeline.bundle.sae.width)
    assert rich.fidelity is not None
    assert all(record.fvu > 0 for record in rich.fidelity)
    assert all(record.l0 <= 6 for record in rich.fidelity)
    if has_scores:
        assert rich.scores is not None
        assert rich.scores.shape == (3, len(pipeline.engine.score_names))


def test_fidelity_equals_its_definition(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, Family.VIT)
    engine = TorchEngine(load_bundle(bundle.path))
    pipeline = Pipeline(engine)
    prepared = [pipeline.prepare(image) for image in photos(2)]
    answer = pipeline.run(prepared, Want(fidelity=True))
    pixels = torch.from_numpy(np.stack([image.pixels for image in prepared]))
    residuals = engine.encoder.residuals(pixels, bundle.site)
    reconstruction = bundle.sae.decode(bundle.sae.encode(residuals, limit=12))
    assert answer.fidelity is not None
    for image, record in enumerate(answer.fidelity):
        error = ((residuals[image] - reconstruction[image]) ** 2).sum()
        spread = ((residuals[image] - bundle.sae.decoder_bias) ** 2).sum()
        assert record.fvu == pytest.approx(float(error / spread), rel=1e-4)
        assert record.residual_norm == pytest.approx(float(residuals[image].norm(dim=-1).mean()), rel=1e-4)


def test_the_embedding_site_reads_the_projection(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, Family.CLIP, Site(block=None, tokens=Tokens.EMBEDDING))
    pipeline = open_bundle(bundle.path)
    prepared = [pipeline.prepare(image) for image in photos(3)]
    answer = pipeline.run(prepared, Want(residuals=True, embeddings=True))
    assert answer.residuals is not None
    assert answer.embeddings is not None
    norms = np.linalg.norm(answer.residuals, axis=1, keepdims=True)
    np.testing.assert_allclose(answer.residuals / norms, answer.embeddings, rtol=1e-4, atol=1e-5)


def test_scores_of_a_text_tower_follow_the_vocabulary(tmp_path: Path) -> None:
    encoder_folder = write_encoder(tmp_path / "encoder-clip", Family.CLIP)
    names = ("a red circle", "a green square")
    bare = make_bundle(tmp_path, Family.CLIP)
    vectors = open_bundle(bare.path).text_vectors(names)
    bare.path.rename(tmp_path / "bare")
    bundle = make_bundle(tmp_path, Family.CLIP, vocabulary=Vocabulary(names, vectors))
    pipeline = open_bundle(bundle.path)
    prepared = [pipeline.prepare(image) for image in photos(2)]
    answer = pipeline.run(prepared, Want(scores=True, embeddings=True))
    assert answer.scores is not None
    assert answer.embeddings is not None
    cosines = answer.embeddings @ vectors.T
    ratio = answer.scores / cosines
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)
    assert pipeline.engine.score_names == names
    assert encoder_folder.exists()
    bare_pipeline = open_bundle(tmp_path / "bare")
    with pytest.raises(ReadoutMissing, match="vocabulary"):
        bare_pipeline.run(prepared, Want(scores=True))


def test_an_encoder_without_a_text_tower_says_so(tmp_path: Path) -> None:
    pipeline = open_bundle(make_bundle(tmp_path, Family.VIT).path)
    with pytest.raises(ReadoutMissing, match="text"):
        pipeline.text_vectors(["a red circle"])
    with pytest.raises(ReadoutMissing, match="embedding"):
        pipeline.run([pipeline.prepare(photos(1)[0])], Want(embeddings=True))


def test_a_bundle_is_self_contained_and_reproducible(tmp_path: Path) -> None:
    first = make_bundle(tmp_path, Family.DEIT)
    first.path.rename(tmp_path / "moved")
    second = make_bundle(tmp_path, Family.DEIT)
    for file in (tmp_path / "encoder-deit").iterdir():
        file.unlink()
    assert second.id == first.id
    assert load_bundle(tmp_path / "moved").code_id == second.code_id
    assert len(open_bundle(tmp_path / "moved").encode(photos(1))[0]) > 0
    assert str(tmp_path) not in (tmp_path / "moved" / "manifest.json").read_text()


def test_code_id_changes_with_what_decides_codes_alone(tmp_path: Path) -> None:
    base = make_bundle(tmp_path, Family.VIT)
    base.path.rename(tmp_path / "base")
    other_site = make_bundle(tmp_path, Family.VIT, Site(block=0, tokens=Tokens.ALL))
    other_site.path.rename(tmp_path / "site")
    other_rule = make_bundle(tmp_path, Family.VIT, jump=True)
    assert len({base.code_id, other_site.code_id, other_rule.code_id}) == 3


@pytest.mark.parametrize(
    "part", ["manifest.json", "encoder/reference.json", "sae/cfg.json", "sae/sae_weights.safetensors"]
)
def test_one_flipped_bit_is_refused(tmp_path: Path, part: str) -> None:
    file = make_bundle(tmp_path, Family.VIT).path / part
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(bytes(data))
    with pytest.raises(ArtefactError):
        load_bundle(tmp_path / "bundle")


def test_a_flipped_bit_in_the_copied_encoder_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, Family.VIT)
    for file in sorted((bundle.path / "encoder" / "weights").iterdir()):
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(flipped) // 2] ^= 1
        file.write_bytes(bytes(flipped))
        with pytest.raises(ArtefactDamaged, match=file.name):
            load_bundle(bundle.path)
        file.write_bytes(whole)
    load_bundle(bundle.path)


def test_an_sae_of_another_width_or_an_unknown_site_leaves_nothing_behind(tmp_path: Path) -> None:
    encoder_folder = write_encoder(tmp_path / "encoder", Family.VIT)
    encoder = load_encoder(encoder_folder)
    sae = SparseAutoencoder(
        encoder_weight=torch.zeros(7, 9),
        encoder_bias=torch.zeros(9),
        directions=torch.zeros(9, 7),
        decoder_bias=torch.zeros(7),
        selection=TopK(2),
    )
    for site, error in (
        (Site(block=1, tokens=Tokens.CLS), ArtefactMismatch),
        (Site(block=99, tokens=Tokens.CLS), SiteError),
    ):
        with pytest.raises(error):
            save_bundle(
                tmp_path / "bundle",
                encoder=encoder,
                encoder_source=encoder_folder,
                site=site,
                sae=sae,
                limits=CodeLimits(),
                training={},
            )
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "bundle.partial").exists()


def test_devices_that_are_not_there_are_named(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, Family.VIT)
    for device in ("tpu", "meta", "cuda:63"):
        with pytest.raises(SettingError, match="use cpu"):
            TorchEngine(bundle, device=device)


def test_a_missing_image_file_is_named(tmp_path: Path) -> None:
    pipeline = open_bundle(make_bundle(tmp_path, Family.VIT).path)
    with pytest.raises(ImageUnreadable, match=r"nowhere\.jpg"):
        pipeline.encode([tmp_path / "nowhere.jpg"])


def test_the_sae_folder_reads_as_saelens_writes_it(tmp_path: Path) -> None:
    config = json.loads((make_bundle(tmp_path, Family.VIT).path / "sae" / "cfg.json").read_text())
    assert config["architecture"] == "topk"
    assert (config["d_in"], config["d_sae"], config["k"]) == (32, NEURON_COUNT, 6)
    assert config["metadata"]["site"] == {"block": 1, "tokens": "all", "prompt": None}
