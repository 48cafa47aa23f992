"""An SAE from elsewhere becomes a bundle that codes as it did there, or is refused before anything is written."""

import json
from pathlib import Path

import pytest
import torch

from phosphene.encoder import Family, Site, Tokens
from phosphene.errors import ArtefactMismatch, ArtefactMissing, SiteError
from phosphene.sae import SparseAutoencoder, save_sae
from phosphene.selection import JumpReLU
from tests.families import WIDTH, write_encoder
from training.__main__ import main
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


def test_what_does_not_fit_leaves_nothing(encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactMissing, match="no SAE folder"):
        import_sae(request(encoder_folder, tmp_path))
    write_sae(tmp_path / "sae", width=WIDTH + 1)
    with pytest.raises(ArtefactMismatch, match=str(WIDTH + 1)):
        import_sae(request(encoder_folder, tmp_path))
    with pytest.raises(SiteError):
        import_sae(request(encoder_folder, tmp_path, block=99))
    assert {path.name for path in tmp_path.iterdir()} == {"sae"}


def test_the_command_says_what_it_did(encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sae(tmp_path / "sae")
    arguments = ["import", str(tmp_path / "sae"), "--encoder", str(encoder_folder), "--out", str(tmp_path / "bundle")]
    assert main([*arguments, "--block", "99"]) == 2
    assert "99" in capsys.readouterr().err
    assert main([*arguments, "--block", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["event"] == "published"
