"""Weights to train on from, against the folding at export: one undoes the other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from phosphene.errors import ArtefactMismatch
from phosphene.sae import SparseAutoencoder
from phosphene.selection import JumpReLU, Selection, TopK
from training.exchange import as_selection, as_weights, read_foreign
from training.export import as_trained, fold
from training.scaling import Scaling
from training.weights import Weights

GOLDEN = Path(__file__).parents[2] / "golden" / "exchange"
WIDTH, NEURONS = 16, 48


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scaling() -> Scaling:
    return Scaling(mean=noise(WIDTH, seed=1), scale=2.5)


def dense(sae: SparseAutoencoder, residuals: Tensor) -> Tensor:
    codes = sae.encode(residuals, limit=sae.neuron_count)
    return torch.zeros(len(residuals), sae.neuron_count).scatter_add(1, codes.neuron_ids, codes.values)


@pytest.mark.parametrize("selection", [TopK(4), JumpReLU(torch.linspace(0.0, 0.6, NEURONS))])
def test_weights_survive_export_and_start(selection: Selection) -> None:
    directions = noise(NEURONS, WIDTH, seed=2)
    weights = Weights(
        encoder_weight=noise(WIDTH, NEURONS, seed=3),
        encoder_bias=noise(NEURONS, seed=4),
        directions=directions / directions.norm(dim=1, keepdim=True),
        decoder_bias=noise(WIDTH, seed=5),
    )
    published = fold(weights, selection, scaling())
    found = as_weights(published, scaling())
    for name, due in weights.tensors().items():
        torch.testing.assert_close(found.tensors()[name], due, rtol=1e-5, atol=2e-6)
    match selection, as_selection(published, scaling()):
        case TopK(k=k), TopK(k=found_k):
            assert found_k == k
        case JumpReLU(threshold=threshold), JumpReLU(threshold=found_threshold):
            torch.testing.assert_close(found_threshold, threshold, rtol=1e-5, atol=1e-7)
        case _:
            pytest.fail("another rule came back")


@pytest.mark.parametrize(
    "name",
    [
        "saelens/standard",
        "saelens/standard_uncentred",
        "saelens/gated_uncentred",
        "dictionary_learning/auto_encoder_new",
        "dictionary_learning/matryoshka",
        "overcomplete/jump",
        "overcomplete/topk",
        "saelens/topk_rescaled",
    ],
)
def test_a_foreign_sae_goes_on_from_where_it_was(name: str) -> None:
    sae = read_foreign(GOLDEN / name)
    weights, selection = as_weights(sae, scaling()), as_selection(sae, scaling())
    residuals = 1.5 * noise(40, WIDTH, seed=6)
    # Activations take over the norms of their directions; reconstructions stay.
    due = dense(sae, residuals) * sae.directions.norm(dim=1)
    in_training = dense(as_trained(weights, selection), scaling().apply(residuals)) * scaling().scale
    torch.testing.assert_close(in_training, due, rtol=1e-4, atol=1e-4)
    again = fold(weights, selection, scaling())
    torch.testing.assert_close(dense(again, residuals), due, rtol=1e-4, atol=1e-4)
    reconstructions = (m.decode(m.encode(residuals, limit=NEURONS)) for m in (again, sae))
    torch.testing.assert_close(*reconstructions, rtol=1e-4, atol=1e-4)
    norms = weights.directions.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(NEURONS), rtol=0, atol=1e-6)


def test_residuals_of_another_width_are_refused() -> None:
    sae = read_foreign(GOLDEN / "saelens" / "standard")
    with pytest.raises(ArtefactMismatch, match=r"width 16, .* have 17"):
        as_weights(sae, Scaling(mean=torch.zeros(17), scale=1.0))
