"""The autoencoder against dense algebra, and its SAELens folder against damage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from phosphene.codes import TokenCodes
from phosphene.errors import ArtefactDamaged, ArtefactMissing, ArtefactRefused, NumericError
from phosphene.sae import SparseAutoencoder, load_sae, save_sae
from phosphene.selection import JumpReLU, Selection, TopK
from tests.full_disk import files_of_at_most

WIDTH, NEURONS = 6, 20


def make_sae(selection: Selection | None = None, *, subtract: bool = True, seed: int = 0) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(seed)
    return SparseAutoencoder(
        encoder_weight=torch.randn(WIDTH, NEURONS, generator=generator),
        encoder_bias=torch.randn(NEURONS, generator=generator),
        directions=torch.randn(NEURONS, WIDTH, generator=generator),
        decoder_bias=torch.randn(WIDTH, generator=generator),
        selection=selection or TopK(4),
        subtract_decoder_bias=subtract,
    )


def dense(codes: TokenCodes) -> Tensor:
    """Spread codes over all neurons; in use slots never name a neuron twice."""
    zeros = torch.zeros(*codes.values.shape[:-1], NEURONS)
    return zeros.scatter_add(-1, codes.neuron_ids, codes.values)


@pytest.mark.parametrize("subtract", [True, False])
def test_topk_equals_dense_algebra(subtract: bool) -> None:
    sae = make_sae(TopK(4), subtract=subtract)
    residuals = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    inner = residuals - sae.decoder_bias if subtract else residuals
    pre = (inner @ sae.encoder_weight + sae.encoder_bias).clamp_min(0)
    kept = torch.topk(pre, 4, dim=-1)
    due = torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)
    codes = sae.encode(residuals, limit=64)
    torch.testing.assert_close(dense(codes), due)
    torch.testing.assert_close(sae.decode(codes), due @ sae.directions + sae.decoder_bias)


def test_jumprelu_equals_dense_algebra() -> None:
    threshold = torch.linspace(-0.5, 1.5, NEURONS)
    sae = make_sae(JumpReLU(threshold))
    residuals = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(1))
    pre = (residuals - sae.decoder_bias) @ sae.encoder_weight + sae.encoder_bias
    due = pre * (pre > threshold) * (pre > 0)
    torch.testing.assert_close(dense(sae.encode(residuals, limit=NEURONS)), due)


@pytest.mark.parametrize("selection", [TopK(3), JumpReLU(torch.full((NEURONS,), 0.25))])
def test_a_folder_gives_back_the_same_codes(tmp_path: Path, selection: Selection) -> None:
    sae = make_sae(selection)
    save_sae(tmp_path, sae, metadata={"note": "x"})
    residuals = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(2))
    saved, loaded = sae.encode(residuals, limit=8), load_sae(tmp_path).encode(residuals, limit=8)
    assert all(torch.equal(left, right) for left, right in zip(saved, loaded, strict=True))


def test_whoever_may_read_one_file_of_a_folder_may_read_the_other(tmp_path: Path) -> None:
    """A service runs as another user than a training."""
    save_sae(tmp_path, make_sae(), metadata={})
    (tmp_path / "anew").write_bytes(b"")
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "anew").stat().st_mode}


def test_a_relu_folder_is_jumprelu_with_threshold_zero(tmp_path: Path) -> None:
    save_sae(tmp_path, make_sae(JumpReLU(torch.zeros(NEURONS))), metadata={})
    residuals = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(2))
    due = load_sae(tmp_path).encode(residuals, limit=NEURONS)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    del weights["threshold"]
    save_file(weights, tmp_path / "sae_weights.safetensors")
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"architecture": "standard"}))
    found = load_sae(tmp_path).encode(residuals, limit=NEURONS)
    assert all(torch.equal(left, right) for left, right in zip(due, found, strict=True))


def test_the_folder_says_which_layout_it_has_and_keeps_its_metadata(tmp_path: Path) -> None:
    save_sae(tmp_path, make_sae(), metadata={"note": "x"})
    metadata = json.loads((tmp_path / "cfg.json").read_text())["metadata"]
    assert metadata == {"note": "x", "sae_lens_version": "6.0.0"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"architecture": "gated"}, ArtefactRefused),
        ({"normalize_activations": "layer_norm"}, ArtefactRefused),
        ({"reshape_activations": "hook_z"}, ArtefactRefused),
        ({"rescale_acts_by_decoder_norm": True}, ArtefactRefused),
        ({"architecture": "standard", "activation_fn_str": "topk"}, ArtefactRefused),
        ({"architecture": "standard", "activation_fn": "tanh-relu"}, ArtefactRefused),
        ({"d_sae": NEURONS + 1}, ArtefactDamaged),
        ({"k": 0}, ArtefactDamaged),
        ({"k": NEURONS + 1}, ArtefactDamaged),
        ({"architecture": "jumprelu"}, ArtefactDamaged),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_refused(
    tmp_path: Path, change: dict[str, object], error: type[Exception]
) -> None:
    save_sae(tmp_path, make_sae(), metadata={})
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(error):
        load_sae(tmp_path)


def test_a_configuration_too_deep_to_be_read_is_damaged(tmp_path: Path) -> None:
    save_sae(tmp_path, make_sae(), metadata={})
    (tmp_path / "cfg.json").write_text("[" * 100_000)
    with pytest.raises(ArtefactDamaged):
        load_sae(tmp_path)


def test_a_full_disk_is_told_as_every_other(tmp_path: Path) -> None:
    with files_of_at_most(1000), pytest.raises(OSError, match=r"sae_weights.safetensors .* cannot be written"):
        save_sae(tmp_path, make_sae(), metadata={})


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    save_sae(tmp_path, make_sae(), metadata={})
    weights = load_file(tmp_path / "sae_weights.safetensors")
    weights["b_enc"][3] = float("nan")
    save_file(weights, tmp_path / "sae_weights.safetensors")
    with pytest.raises(NumericError, match="encoder_bias"):
        load_sae(tmp_path)


def test_a_truncated_file_is_damaged_and_a_missing_one_missing(tmp_path: Path) -> None:
    save_sae(tmp_path, make_sae(), metadata={})
    file = tmp_path / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ArtefactDamaged):
        load_sae(tmp_path)
    file.unlink()
    with pytest.raises(ArtefactMissing, match=r"training import"):
        load_sae(tmp_path)
