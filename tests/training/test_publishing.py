from pathlib import Path

import pytest
import torch

from phosphene.encoder import Site, Tokens
from phosphene.sae import SparseAutoencoder
from phosphene.selection import JumpReLU
from training.plan import FitPlan, FitRequest, Sources, plan_fit
from training.publishing import choose_limits
from training.requests import SaeRequest
from training.variants import VariantName


def plan(corpus: Path, encoder: Path, out: Path, sae: SaeRequest) -> FitPlan:
    sources = Sources(corpus=str(corpus), encoder=str(encoder))
    return plan_fit(FitRequest(sources=sources, site=Site(block=1, tokens=Tokens.CLS), sae=sae, out=out))


def counting(neuron_count: int) -> SparseAutoencoder:
    """On the residual (n, 0, ..., 0) the first n neurons fire."""
    encoder_weight = torch.zeros(32, neuron_count)
    encoder_weight[0] = 1
    return SparseAutoencoder(
        encoder_weight=encoder_weight,
        encoder_bias=0.5 - torch.arange(1.0, neuron_count + 1),
        directions=torch.zeros(neuron_count, 32),
        decoder_bias=torch.zeros(32),
        selection=JumpReLU(torch.zeros(neuron_count)),
    )


def residuals(*active_counts: int) -> torch.Tensor:
    rows = torch.zeros(len(active_counts), 32)
    rows[:, 0] = torch.tensor(active_counts, dtype=torch.float32)
    return rows


@pytest.mark.parametrize(
    ("active_counts", "image_limit", "token_limit"),
    [((3, 5), 64, 64), ((100, 0), 64, 128), ((512, 129), 512, 512), ((5000, 5000), 1024, 4096)],
)
def test_codes_of_a_variant_without_k_are_as_wide_as_they_need_be(
    corpus_folder: Path,
    encoder_folder: Path,
    tmp_path: Path,
    active_counts: tuple[int, ...],
    image_limit: int,
    token_limit: int,
) -> None:
    relu = plan(corpus_folder, encoder_folder, tmp_path / "b", SaeRequest(neuron_count=6000, variant=VariantName.RELU))
    limits = choose_limits(relu, counting(6000), residuals(*active_counts))
    assert (limits.image_code_limit, limits.token_code_limit) == (image_limit, token_limit)


def test_k_fixes_them_otherwise(corpus_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    batch = plan(corpus_folder, encoder_folder, tmp_path / "b", SaeRequest(neuron_count=6000, k=40))
    limits = choose_limits(batch, counting(6000), residuals(500))
    assert (limits.image_code_limit, limits.token_code_limit) == (64, 80)
