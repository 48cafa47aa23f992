"""An SAE from elsewhere becomes a bundle that codes as it did there, or is refused before anything is written."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from phosphene.bundle import load_bundle
from phosphene.encoder import Family, Site, Tokens
from phosphene.errors import ArtefactMismatch, ArtefactMissing, ArtefactRefused, SettingError, SiteError
from phosphene.sae import SparseAutoencoder, save_sae
from phosphene.selection import JumpReLU
from tests.families import WIDTH, write_encoder
from training.__main__ import main
from training.exchange import read_foreign
from training.importing import ImportRequest, import_sae

NEURON_COUNT = 20


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random ViT."""
    return write_encoder(tmp_path_factory.mktemp("import") / "encoder", Family.VIT)


def write_sae(folder: Path, width: int = WIDTH, seed: int = 0) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(seed)
    sae = SparseAutoencoder(
        encoder_weight=torch.randn(width, NEURON_COUNT, generator=generator),
        encoder_bias=torch.zeros(NEURON_COUNT),
        directions=torch.randn(NEURON_COUNT, width, generator=generator),
        decoder_bias=torch.randn(width, generator=generator),
        selection=JumpReLU(torch.full((NEURON_COUNT,), 0.5)),
    )
    folder.mkdir()
    save_sae(folder, sae, metadata={})
    return sae


def request(encoder: Path, folder: Path, block: int = 1) -> ImportRequest:
    site = Site(block=block, tokens=Tokens.CLS)
    return ImportRequest(sae=folder / "sae", encoder=str(encoder), site=site, out=folder / "bundle")


def test_codes_are_those_of_the_sae(encoder_folder: Path, tmp_path: Path) -> None:
    sae = write_sae(tmp_path / "sae")
    first = import_sae(request(encoder_folder, tmp_path))
    again = import_sae(request(encoder_folder, tmp_path))
    assert (first.is_new, again.is_new) == (True, False)
    assert first.bundle.id == again.bundle.id
    residuals = torch.randn(11, WIDTH, generator=torch.Generator().manual_seed(1))
    due, found = sae.encode(residuals, limit=64), again.bundle.sae.encode(residuals, limit=64)
    assert all(torch.equal(left, right) for left, right in zip(due, found, strict=True))


def test_another_sae_on_the_same_folder_is_refused_with_the_difference(encoder_folder: Path, tmp_path: Path) -> None:
    write_sae(tmp_path / "sae")
    import_sae(request(encoder_folder, tmp_path))
    (tmp_path / "sae").rename(tmp_path / "old")
    write_sae(tmp_path / "sae", seed=1)
    with pytest.raises(ArtefactMismatch, match="safetensors"):
        import_sae(request(encoder_folder, tmp_path))


def write_gated(folder: Path) -> None:
    config = {"architecture": "gated", "d_in": WIDTH, "d_sae": NEURON_COUNT, "apply_b_dec_to_input": False}
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": {"sae_lens_version": "6.54.12"}}))
    generator = torch.Generator().manual_seed(3)
    shapes = {"W_enc": (WIDTH, NEURON_COUNT), "W_dec": (NEURON_COUNT, WIDTH), "b_dec": (WIDTH,)}
    shapes |= {name: (NEURON_COUNT,) for name in ("b_gate", "b_mag", "r_mag")}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "sae_weights.safetensors")


def write_batch_topk(folder: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    state = {
        "k": torch.tensor(3, dtype=torch.int32),
        "threshold": torch.tensor(1.5),
        "encoder.weight": torch.randn(NEURON_COUNT, WIDTH, generator=generator),
        "encoder.bias": torch.randn(NEURON_COUNT, generator=generator),
        "decoder.weight": torch.randn(WIDTH, NEURON_COUNT, generator=generator),
        "b_dec": torch.randn(WIDTH, generator=generator),
    }
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": "BatchTopKSAE", "k": 3}}))


def write_overcomplete(folder: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    state = {
        "encoder.final_block.0.weight": torch.randn(NEURON_COUNT, WIDTH, generator=generator),
        "encoder.final_block.0.bias": torch.randn(NEURON_COUNT, generator=generator),
        "dictionary._weights": torch.randn(NEURON_COUNT, WIDTH, generator=generator),
        "dictionary.multiplier": torch.tensor(0.0),
    }
    torch.save(state, folder / "best.pth")
    (folder / "best.json").write_text(json.dumps({"model": "TopKSAE", "top_k": 4}))


@pytest.mark.parametrize(
    ("write", "file", "library", "architecture"),
    [
        (write_gated, "", "saelens", "gated"),
        (write_batch_topk, "", "dictionary_learning", "BatchTopKSAE"),
        (write_batch_topk, "ae.pt", "dictionary_learning", "BatchTopKSAE"),
        (write_overcomplete, "best.pth", "overcomplete", "TopKSAE"),
    ],
)
def test_every_format_becomes_a_bundle(
    encoder_folder: Path, tmp_path: Path, write: Callable[[Path], None], file: str, library: str, architecture: str
) -> None:
    (tmp_path / "sae").mkdir()
    write(tmp_path / "sae")
    source = tmp_path / "sae" / file
    asked = replace(request(encoder_folder, tmp_path), sae=source)
    bundle = import_sae(asked).bundle
    facts = bundle.training["imported"]
    assert (facts["library"], facts["architecture"]) == (library, architecture)
    assert set(facts["sae"]) == {path.name for path in (tmp_path / "sae").iterdir()}
    residuals = torch.randn(11, WIDTH, generator=torch.Generator().manual_seed(1))
    due, found = read_foreign(source).encode(residuals, limit=64), bundle.sae.encode(residuals, limit=64)
    assert all(torch.equal(left, right) for left, right in zip(due, found, strict=True))
    assert not import_sae(asked).is_new


def test_a_refused_sae_leaves_nothing(encoder_folder: Path, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "sae.pt")
    with pytest.raises(ArtefactRefused, match="pickle of Python objects"):
        import_sae(replace(request(encoder_folder, tmp_path), sae=tmp_path / "sae.pt"))
    assert {path.name for path in tmp_path.iterdir()} == {"sae.pt"}


def test_what_does_not_fit_leaves_nothing(encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactMissing, match="no SAE folder or file"):
        import_sae(request(encoder_folder, tmp_path))
    write_sae(tmp_path / "sae", width=WIDTH + 1)
    with pytest.raises(ArtefactMismatch, match=str(WIDTH + 1)):
        import_sae(request(encoder_folder, tmp_path))
    with pytest.raises(SiteError):
        import_sae(request(encoder_folder, tmp_path, block=99))
    assert {path.name for path in tmp_path.iterdir()} == {"sae"}


def test_a_token_code_may_hold_as_many_neurons_as_asked_for(
    encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sae(tmp_path / "sae")
    arguments = ["import", str(tmp_path / "sae"), "--encoder", str(encoder_folder), "--out", str(tmp_path / "bundle")]
    arguments += ["--block", "1", "--token-code-limit"]
    for wrong in ("0", "4097"):
        assert main([*arguments, wrong]) == 2
        assert f"--token-code-limit is {wrong}; it must be from 1 to 4096 neurons" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
    assert main([*arguments, "128"]) == 0
    assert main([*arguments, "128"]) == 0
    limits = load_bundle(tmp_path / "bundle").limits
    assert (limits.token_code_limit, limits.image_code_limit) == (128, 64)
    assert main([*arguments, "256"]) == 2
    assert "limits.token_code_limit: 128 -> 256" in capsys.readouterr().err


def test_an_sae_with_a_k_of_its_own_takes_no_token_code_limit(encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sae").mkdir()
    write_overcomplete(tmp_path / "sae")
    with pytest.raises(SettingError, match="--token-code-limit is 8, and this SAE keeps the 4 largest neurons of ever"):
        import_sae(replace(request(encoder_folder, tmp_path), token_code_limit=8))


def test_the_command_says_what_it_did(encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sae(tmp_path / "sae")
    arguments = ["import", str(tmp_path / "sae"), "--encoder", str(encoder_folder), "--out", str(tmp_path / "bundle")]
    assert main([*arguments, "--block", "99"]) == 2
    assert "99" in capsys.readouterr().err
    assert main([*arguments, "--block", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["event"] == "published"
