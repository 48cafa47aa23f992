import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.objectives import auxiliary_loss, auxiliary_width, reconstruction_loss


def draw(seed: int, rows: int = 6, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator), torch.randn(rows, width, generator=generator)


@given(st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_losses_equal_a_plain_reference(seed: int) -> None:
    inputs, others = draw(seed)
    squared = sum((float(a) - float(b)) ** 2 for a, b in zip(inputs.flatten(), others.flatten(), strict=True))
    assert torch.isclose(reconstruction_loss(inputs, others), torch.tensor(squared / inputs.numel()))
    variance = float(inputs.var(dim=0, correction=0).mean())
    assert torch.isclose(auxiliary_loss(inputs, others), torch.tensor(squared / inputs.numel() / variance), rtol=1e-4)


def test_a_perfect_reconstruction_costs_nothing() -> None:
    inputs, _ = draw(0)
    assert float(reconstruction_loss(inputs, inputs)) == 0
    assert float(auxiliary_loss(inputs, inputs)) == 0


def test_auxiliary_loss_sends_no_gradient_into_the_residual() -> None:
    residual, dead = (tensor.requires_grad_() for tensor in draw(1))
    auxiliary_loss(residual, dead).backward()
    assert residual.grad is None
    assert dead.grad is not None
    assert bool((dead.grad != 0).any())


def test_auxiliary_loss_is_zero_and_differentiable_where_nothing_is_left_to_explain() -> None:
    dead = draw(2)[1].requires_grad_()
    loss = auxiliary_loss(torch.zeros(6, 5), dead)
    loss.backward()
    assert float(loss.detach()) == 0
    assert dead.grad is not None
    assert bool(torch.isfinite(dead.grad).all())


def test_auxiliary_width_is_half_the_residual_width_or_all_dead_neurons() -> None:
    assert auxiliary_width(1000, 128) == 64
    assert auxiliary_width(10, 128) == 10
    assert auxiliary_width(3, 1) == 1
