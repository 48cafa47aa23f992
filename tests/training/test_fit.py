import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from phosphene.encoder import Family, Site, Tokens
from phosphene.errors import ArtefactDamaged, ArtefactMismatch, CorpusError, NumericError, SettingError
from phosphene.manifest import hold_folder
from phosphene.pipeline import open_bundle
from phosphene.selection import JumpReLU, TopK
from tests.families import write_encoder
from tests.training.corpora import corrupt, write_corpus
from training.fit import fit
from training.gate import NotPublished
from training.plan import FitRequest, Sources
from training.progress import SilentProgress
from training.settings import Execution, SaeRequest, TrainingRequest
from training.variants import VariantName


def make_request(corpus: Path, encoder: Path, out: Path, **changes: Any) -> FitRequest:
    request = FitRequest(
        sources=Sources(corpus=str(corpus), encoder=str(encoder)),
        site=Site(block=1, tokens=Tokens.CLS),
        sae=SaeRequest(k=4, neuron_count=48, variant=VariantName.TOPK),
        training=TrainingRequest(step_count=60),
        out=out,
    )
    return dataclasses.replace(request, **changes)


@pytest.mark.parametrize("variant", list(VariantName))
def test_a_bundle_comes_out_that_encodes_and_says_how_good_it_is(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path, variant: VariantName
) -> None:
    sae = SaeRequest(k=4, neuron_count=48, variant=variant)
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b", sae=sae)
    result = fit(request, SilentProgress())
    assert result.is_new
    bundle = result.bundle
    assert isinstance(bundle.sae.selection, TopK if variant is VariantName.TOPK else JumpReLU)
    assert bundle.vocabulary is not None
    assert bundle.vocabulary.names == ("blue", "green", "red", "white")
    quality = bundle.training["held_out_quality"]
    assert 0 < quality["fvu"] < 0.9
    assert quality["row_count"] == bundle.training["held_out_image_count"] == 24
    assert (bundle.training["calibration"] is None) == (variant is VariantName.TOPK)
    codes = open_bundle(bundle.path).encode(sorted(corpus_folder.rglob("*.png"))[:8])
    assert all(len(code) > 0 for code in codes)
    assert not (tmp_path / "b.work" / "training").exists() or not list((tmp_path / "b.work" / "training").iterdir())


@pytest.mark.parametrize("family", list(Family))
def test_every_family_can_be_fitted(corpus_folder: Path, tmp_path: Path, family: Family) -> None:
    encoder = write_encoder(tmp_path / "encoder", family)
    site = Site(block=1, tokens=Tokens.MEAN if family is Family.SIGLIP else Tokens.CLS)
    request = make_request(corpus_folder, encoder, tmp_path / "b", site=site)
    assert fit(request, SilentProgress()).bundle.training["held_out_quality"]["fvu"] < 1


def test_patch_tokens_can_be_fitted(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    site = Site(block=2, tokens=Tokens.PATCHES)
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b", site=site)
    training = fit(request, SilentProgress()).bundle.training
    assert training["held_out_quality"]["row_count"] == 24 * 16


def test_a_finished_bundle_is_left_alone(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b")
    first = fit(request, SilentProgress())
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*")}
    again = fit(request, SilentProgress())
    assert not again.is_new
    assert again.bundle.id == first.bundle.id
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "b").rglob("*")} == stamps


def test_equal_requests_make_equal_bundles_and_other_seeds_other_codes(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    requests = [
        make_request(corpus_folder, encoder_folder, tmp_path / folder / "b", training=training)
        for folder, training in (
            ("1", TrainingRequest(step_count=40)),
            ("2", TrainingRequest(step_count=40)),
            ("3", TrainingRequest(step_count=40, seed=5)),
        )
    ]
    first, second, other = (fit(request, SilentProgress()).bundle for request in requests)
    assert first.id == second.id
    assert first.code_id != other.code_id


def test_another_configuration_at_the_same_place_is_refused_by_name(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b")
    bundle = fit(request, SilentProgress()).bundle
    other = dataclasses.replace(request, sae=dataclasses.replace(request.sae, k=3), training=TrainingRequest(seed=1))
    with pytest.raises(ArtefactMismatch, match=r"sae\.k: 4 -> 3\n(.*\n)*.*training\.seed: 0 -> 1"):
        fit(other, SilentProgress())
    assert fit(request, SilentProgress()).bundle.id == bundle.id


def test_changed_images_under_the_same_names_are_another_configuration(encoder_folder: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", 40)
    request = make_request(corpus, encoder_folder, tmp_path / "b")
    fit(request, SilentProgress())
    first, second = sorted(corpus.rglob("*.png"))[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(ArtefactMismatch, match=r"inputs\.corpus"):
        fit(request, SilentProgress())


def test_two_fits_of_one_bundle_do_not_meet(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "b.work").mkdir()
    with hold_folder(tmp_path / "b.work"), pytest.raises(SettingError, match="another process works in 'b.work'"):
        fit(make_request(corpus_folder, encoder_folder, tmp_path / "b"), SilentProgress())
    assert not (tmp_path / "b").exists()


def test_something_else_at_the_same_place_is_left_alone(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(ArtefactMismatch, match="is no bundle"):
        fit(make_request(corpus_folder, encoder_folder, tmp_path / "b"), SilentProgress())
    assert (tmp_path / "b" / "thesis.txt").read_text() == "mine"


def test_a_damaged_bundle_is_refused(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b")
    fit(request, SilentProgress())
    file = tmp_path / "b" / "sae" / "sae_weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    with pytest.raises(ArtefactDamaged, match="remove it and run its job again"):
        fit(request, SilentProgress())


def test_a_leftover_partial_blocks_nothing(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "b.partial" / "sae").mkdir(parents=True)
    (tmp_path / "b.partial" / "sae" / "junk").write_text("junk")
    bundle = fit(make_request(corpus_folder, encoder_folder, tmp_path / "b"), SilentProgress()).bundle
    assert "sae/junk" not in bundle.manifest.files


def test_unreadable_images_are_counted(encoder_folder: Path, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", 40)
    corrupt(folder, 11)
    bundle = fit(make_request(folder, encoder_folder, tmp_path / "b"), SilentProgress()).bundle
    assert bundle.training["quarantined"] == [{"row": 11, "error": "ImageUnreadable"}]
    assert bundle.training["image_count"] == 39


def test_a_batch_of_everything_shrinks_with_what_cannot_be_read(encoder_folder: Path, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", 41)
    corrupt(folder, 11)
    training = TrainingRequest(step_count=20, batch_rows=4096)
    bundle = fit(make_request(folder, encoder_folder, tmp_path / "b", training=training), SilentProgress()).bundle
    assert bundle.training["training_quality"]["row_count"] < bundle.training["plan"]["training"]["batch_rows"]


def test_a_corpus_of_unreadable_images_is_refused(encoder_folder: Path, tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", 20)
    for position in range(10):
        corrupt(folder, position)
    with pytest.raises(CorpusError, match="only 10 images of the corpus can be read"):
        fit(make_request(folder, encoder_folder, tmp_path / "b"), SilentProgress())
    assert not (tmp_path / "b").exists()


def test_what_fails_the_gate_is_not_published(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    request = make_request(
        corpus_folder, encoder_folder, tmp_path / "b", training=TrainingRequest(step_count=40, learning_rate=50.0)
    )
    with pytest.raises((NotPublished, NumericError), match="diverged"):
        fit(request, SilentProgress())
    assert not (tmp_path / "b").exists()


def test_fit_computes_with_the_threads_asked_for(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    request = make_request(corpus_folder, encoder_folder, tmp_path / "b", execution=Execution(thread_count=2))
    try:
        bundle = fit(request, SilentProgress()).bundle
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert bundle.training["execution"] == {"device": "cpu", "thread_count": 2}
