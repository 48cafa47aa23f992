"""Small bundles at every kind of site, and how two answers are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from phosphene.bundle import Bundle, save_bundle
from phosphene.codes import CodeLimits, ImageCode
from phosphene.encoder import Site, load_encoder
from phosphene.engine import EngineBatch, EngineRow, Want
from phosphene.readout import Vocabulary
from phosphene.sae import SparseAutoencoder
from phosphene.selection import JumpReLU, TopK
from tests.families import IMAGE_PX, PROJECTION_WIDTH

NEURON_COUNT = 48


def make_bundle(
    path: Path, encoder_folder: Path, site: Site, *, jump: bool = False, twins: bool = False, scale: float = 1.0
) -> Bundle:
    """A bundle with random directions; with `twins` every neuron has a double, so that every place is tied."""
    encoder = load_encoder(encoder_folder)
    width = encoder.site_width(site)
    generator = torch.Generator().manual_seed(width + (site.block or 0))
    directions = torch.nn.functional.normalize(torch.randn(NEURON_COUNT, width, generator=generator), dim=1)
    if twins:
        directions = directions[: NEURON_COUNT // 2].repeat(2, 1)
    sae = SparseAutoencoder(
        encoder_weight=scale * directions.T.contiguous(),
        encoder_bias=torch.zeros(NEURON_COUNT),
        directions=directions,
        decoder_bias=torch.randn(width, generator=generator) * 0.1,
        selection=JumpReLU(torch.full((NEURON_COUNT,), 0.1)) if jump else TopK(7),
    )
    return save_bundle(
        path,
        encoder=encoder,
        encoder_source=encoder_folder,
        site=site,
        sae=sae,
        limits=CodeLimits(image_code_limit=20, token_code_limit=5),
        training={},
        vocabulary=_vocabulary() if encoder.spec.embedding_width == PROJECTION_WIDTH else None,
    )


def random_pixels(count: int, seed: int, size_px: int = IMAGE_PX) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size_px, size_px), dtype=np.uint8)


def assert_row(row: EngineRow, alone: EngineBatch, want: Want, *, tolerance: float = 1e-5) -> None:
    """The row is what its image gives alone, and holds nothing that was not wanted."""
    assert_code(row.code, alone.codes[0], tolerance=tolerance)
    assert (row.token_values is not None) == (row.token_neuron_ids is not None) == want.token_codes
    if row.token_values is not None and row.token_neuron_ids is not None and alone.token_codes is not None:
        largest = float(alone.token_codes.values.max())
        np.testing.assert_allclose(row.token_values, alone.token_codes.values[0].numpy(), atol=tolerance * largest)
        clear = row.token_values > 0
        same = row.token_neuron_ids == alone.token_codes.neuron_ids[0].numpy()
        assert same[clear].mean() > 0.99
    assert (row.fidelity is not None) == want.fidelity
    if row.fidelity is not None and alone.fidelity is not None:
        for name in ("fvu", "cosine", "l0", "residual_norm", "cut_count"):
            np.testing.assert_allclose(getattr(row.fidelity, name), getattr(alone.fidelity[0], name), rtol=1e-4)
    for found, batch, wanted in (
        (row.residual, alone.residuals, want.residuals),
        (row.scores, alone.scores, want.scores),
        (row.embedding, alone.embeddings, want.embeddings),
    ):
        assert (found is not None) == wanted
        if found is not None and batch is not None:
            np.testing.assert_allclose(found, batch[0], atol=tolerance * float(np.abs(batch).max()))


def assert_code(found: ImageCode, due: ImageCode, *, tolerance: float = 1e-5) -> None:
    slack = tolerance * float(due.values.max(initial=0))
    left, right = (dict(zip(code.neuron_ids.tolist(), code.values.tolist(), strict=True)) for code in (found, due))
    edge = min(right.values(), default=0.0) + 2 * slack
    for neuron in left.keys() | right.keys():
        if neuron in left and neuron in right:
            assert abs(left[neuron] - right[neuron]) <= slack
        else:
            assert left.get(neuron, right.get(neuron, 0.0)) <= edge
    assert found.cut_count == due.cut_count


def _vocabulary() -> Vocabulary:
    vectors = np.random.default_rng(1).normal(size=(5, PROJECTION_WIDTH))
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return Vocabulary(tuple("abcde"), unit)
