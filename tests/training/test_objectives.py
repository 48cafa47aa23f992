import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from training.objectives import (
    auxiliary_loss,
    auxiliary_width,
    ghost_loss,
    jump_relu,
    l1_penalty,
    reconstruction_loss,
    squared_errors,
)


def draw(seed: int, rows: int = 6, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator), torch.randn(rows, width, generator=generator)


def slope(loss: Callable[[Tensor], float], at: Tensor, step: float = 1e-6) -> Tensor:
    """The gradient of a plain function by central differences, an element at a time."""
    gradient = torch.zeros_like(at)
    for index in range(at.numel()):
        nudge = torch.zeros_like(at)
        nudge.view(-1)[index] = step
        gradient.view(-1)[index] = (loss(at + nudge) - loss(at - nudge)) / (2 * step)
    return gradient


@given(st.integers(0, 2**16))
@settings(max_examples=20)
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
    assert float(squared_errors(inputs, inputs, is_normalised=True).sum()) == 0


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


def plain_errors(inputs: Tensor, reconstruction: Tensor, *, is_normalised: bool) -> list[list[float]]:
    errors = []
    for x, guess in zip(inputs.tolist(), reconstruction.tolist(), strict=True):
        norm = math.sqrt(sum(a * a for a in x)) if is_normalised else 1.0
        errors.append([(a - b) ** 2 / norm for a, b in zip(x, guess, strict=True)])
    return errors


def mean_of(rows: list[list[float]]) -> float:
    return sum(map(sum, rows)) / sum(map(len, rows))


@pytest.mark.parametrize("is_normalised", [True, False])
def test_squared_errors_and_their_gradient_equal_a_plain_reference(is_normalised: bool) -> None:
    inputs, guess = (tensor.double() for tensor in draw(3))
    guess.requires_grad_()
    errors = squared_errors(inputs, guess, is_normalised=is_normalised)
    torch.testing.assert_close(
        errors, torch.tensor(plain_errors(inputs, guess, is_normalised=is_normalised)).double(), rtol=1e-6, atol=1e-7
    )
    (gradient,) = torch.autograd.grad(errors.mean(), guess)
    expected = slope(lambda x: mean_of(plain_errors(inputs, x, is_normalised=is_normalised)), guess.detach())
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


def test_a_row_of_zeros_costs_something_finite() -> None:
    guess = torch.ones(2, 3, requires_grad=True)
    loss = squared_errors(torch.zeros(2, 3), guess, is_normalised=True).mean()
    (gradient,) = torch.autograd.grad(loss, guess)
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(gradient).all())


def test_the_l1_penalty_is_the_mean_over_rows_of_the_sum_over_neurons() -> None:
    activations = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 4.0]], requires_grad=True)
    penalty = l1_penalty(activations)
    (gradient,) = torch.autograd.grad(penalty, activations)
    assert float(penalty.detach()) == (3 + 4) / 2
    assert torch.equal(gradient, torch.full((2, 3), 1 / 2))


def plain_ghost_terms(h: Tensor, directions: Tensor, residual: Tensor) -> tuple[list[float], list[list[float]]]:
    """For each row: the scale, and the cost of each coordinate; from the definition, one number at a time."""
    scales, costs = [], []
    for pre_activations, r in zip(h.tolist(), residual.tolist(), strict=True):
        g = [0.0] * len(r)
        for pre_activation, direction in zip(pre_activations, directions.tolist(), strict=True):
            g = [value + math.exp(pre_activation) * part for value, part in zip(g, direction, strict=True)]
        length = math.sqrt(sum(value * value for value in r))
        scales.append(length / (1e-6 + 2 * math.sqrt(sum(value * value for value in g))))
        costs.append([(value * scales[-1] - target) ** 2 / length for value, target in zip(g, r, strict=True)])
    return scales, costs


def ghosts(seed: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    residual, h, directions, errors = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 5), (6, 3), (3, 5), (6, 5))
    )
    return errors.square(), residual, h, directions


def test_the_ghost_loss_is_as_large_as_the_error() -> None:
    errors, residual, h, directions = ghosts()
    loss = ghost_loss(errors, residual, h, directions)
    torch.testing.assert_close(loss, errors.mean(), rtol=1e-3, atol=0)


def test_the_ghost_gradient_equals_that_of_the_definition_with_its_constants_held() -> None:
    errors, residual, h, directions = ghosts()
    scales, costs = plain_ghost_terms(h, directions, residual)
    ratios = [[e / (c + 1e-6) for e, c in zip(*row, strict=True)] for row in zip(errors.tolist(), costs, strict=True)]

    def loss_with_constants_held(h: Tensor, directions: Tensor) -> float:
        g = h.exp() @ directions * torch.tensor(scales).double()[:, None]
        total = 0.0
        for row, r in enumerate(residual):
            length = math.sqrt(float(r @ r))
            total += sum(ratios[row][i] * (float(g[row, i]) - float(r[i])) ** 2 / length for i in range(len(r)))
        return total / residual.numel()

    h.requires_grad_(), directions.requires_grad_()
    loss = ghost_loss(errors, residual, h, directions)
    of_h, of_directions = torch.autograd.grad(loss, (h, directions))
    h, directions = h.detach(), directions.detach()
    assert float(loss.detach()) == pytest.approx(loss_with_constants_held(h, directions), rel=1e-5)
    expected = slope(lambda x: loss_with_constants_held(x, directions), h)
    torch.testing.assert_close(of_h, expected, rtol=1e-4, atol=1e-7)
    expected = slope(lambda x: loss_with_constants_held(h, x), directions)
    torch.testing.assert_close(of_directions, expected, rtol=1e-4, atol=1e-7)


def test_the_ghost_loss_sends_no_gradient_into_the_residual_or_the_error() -> None:
    errors, residual, h, directions = (tensor.requires_grad_() for tensor in ghosts())
    ghost_loss(errors, residual, h, directions).backward()
    assert errors.grad is None
    assert residual.grad is None
    assert bool((h.grad != 0).all())
    assert bool((directions.grad != 0).all())


def test_the_ghost_loss_survives_an_exponential_beyond_the_number_format() -> None:
    errors, residual, h, directions = (tensor.float() for tensor in ghosts())
    h[0, 0] = 500
    h.requires_grad_()
    (gradient,) = torch.autograd.grad(ghost_loss(errors, residual, h, directions), h)
    assert bool(torch.isfinite(gradient).all())
    moderate = h.detach().double()
    moderate[0] = torch.tensor([50.0, -400, -400])
    expected = ghost_loss(errors.double(), residual.double(), moderate, directions.double())
    torch.testing.assert_close(ghost_loss(errors, residual, h, directions).double(), expected, rtol=1e-4, atol=0)


def test_the_ghost_loss_of_a_row_without_residual_is_nothing() -> None:
    errors, residual, h, directions = ghosts()
    residual[2] = errors[2] = 0
    h.requires_grad_()
    loss = ghost_loss(errors, residual, h, directions)
    (gradient,) = torch.autograd.grad(loss, h)
    torch.testing.assert_close(loss, errors.mean(), rtol=1e-3, atol=0)
    assert torch.equal(gradient[2], torch.zeros(3).double())


def test_jump_relu_lets_through_what_exceeds_the_threshold() -> None:
    pre_activations = torch.tensor([[-1.0, 0.2, 0.5, 2.0], [0.6, 0.5, 0.4, -3.0]])
    jumped = jump_relu(pre_activations, torch.tensor([0.0, 0.5, 0.4, 1.0]), bandwidth=0.1)
    assert torch.equal(jumped.activations, torch.tensor([[0.0, 0.0, 0.5, 2.0], [0.6, 0.0, 0.0, 0.0]]))
    assert float(jumped.l0) == (2 + 1) / 2


def test_the_pseudo_derivatives_are_those_of_the_paper_by_hand() -> None:
    # Bandwidth 0.2 around the threshold 0.5: rows inside the kernel are 0.45 (inactive) and 0.55 (active).
    pre_activations = torch.tensor([[0.45], [0.55], [0.39], [0.61], [-2.0]], requires_grad=True)
    threshold = torch.tensor([0.5], requires_grad=True)
    weights = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])

    activations, l0 = jump_relu(pre_activations, threshold, bandwidth=0.2)
    of_inputs, of_threshold = torch.autograd.grad((activations * weights).sum(), (pre_activations, threshold))
    assert torch.equal(of_inputs, torch.tensor([[0.0], [2.0], [0.0], [8.0], [0.0]]))
    torch.testing.assert_close(of_threshold, torch.tensor([-(0.5 / 0.2) * (1 + 2)]))

    activations, l0 = jump_relu(pre_activations, threshold, bandwidth=0.2)
    of_inputs, of_threshold = torch.autograd.grad(l0, (pre_activations, threshold))
    assert torch.equal(of_inputs, torch.zeros(5, 1))
    torch.testing.assert_close(of_threshold, torch.tensor([-(1 / 0.2) * 2 / 5]))


@given(st.integers(0, 2**16))
@settings(max_examples=20)
def test_the_jump_relu_gradient_equals_a_plain_loop(seed: int) -> None:
    pre_activations, weights = (tensor.double() for tensor in draw(seed))
    threshold = weights[0].abs().clone().requires_grad_()
    pre_activations.requires_grad_()
    bandwidth, penalty = 0.7, 0.3
    activations, l0 = jump_relu(pre_activations, threshold, bandwidth=bandwidth)
    loss = (activations * weights).sum() + penalty * l0
    of_inputs, of_threshold = torch.autograd.grad(loss, (pre_activations, threshold))
    expected_inputs, expected_threshold = torch.zeros(6, 5).double(), torch.zeros(5).double()
    for row in range(6):
        for neuron in range(5):
            h, bar = pre_activations[row, neuron].item(), threshold[neuron].item()
            if h > bar:
                expected_inputs[row, neuron] = weights[row, neuron]
            if abs(h - bar) < bandwidth / 2:
                expected_threshold[neuron] -= (bar * weights[row, neuron] + penalty / 6) / bandwidth
    torch.testing.assert_close(of_inputs, expected_inputs)
    torch.testing.assert_close(of_threshold, expected_threshold)
