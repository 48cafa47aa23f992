import pytest
import torch

from phosphene.sae import SparseAutoencoder
from phosphene.selection import TopK
from training.quality import measure_quality


def test_figures_equal_a_plain_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(10, 6, generator=generator), dim=1)
    sae = SparseAutoencoder(
        encoder_weight=directions.T.clone(),
        encoder_bias=torch.cat([torch.zeros(9), torch.tensor([-100.0])]),
        directions=directions,
        decoder_bias=torch.full((6,), 2.0),
        selection=TopK(3),
        subtract_decoder_bias=True,
    )
    rows = torch.randn(5000, 6, generator=generator) + 2
    mean = rows.mean(dim=0) + 0.1
    pre = (rows - 2) @ directions.T + sae.encoder_bias
    kept = torch.zeros_like(pre).scatter(1, pre.topk(3).indices, 1.0) * pre.clamp_min(0)
    error = rows - (kept @ directions + 2)
    quality = measure_quality(sae, rows, mean=mean, token_code_limit=64)
    assert quality.fvu == pytest.approx(float(error.square().sum() / (rows - mean).square().sum()), rel=1e-4)
    variances = error.var(dim=0, correction=0).sum() / rows.var(dim=0, correction=0).sum()
    assert quality.explained_variance == pytest.approx(1 - float(variances), rel=1e-4)
    assert quality.l0 == pytest.approx(float((kept > 0).sum()) / 5000)
    assert quality.dead_share == pytest.approx(0.1)
    assert quality.row_count == 5000
