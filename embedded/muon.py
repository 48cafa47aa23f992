"""Muon (Jordan et al. 2024): momentum whose matrix updates are orthogonalised, in float32 and batched by shape.

Scaled to the step size of AdamW as in Liu et al. 2025, "Muon is scalable for LLM training". Knows nothing of models.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def orthogonalise(matrices: Float[Tensor, "stack rows columns"]) -> Float[Tensor, "stack rows columns"]:
    """Nearest semi-orthogonal matrices, roughly: five Newton-Schulz steps of the quintic of Jordan et al."""
    turned = matrices.shape[1] > matrices.shape[2]
    work = matrices.transpose(1, 2) if turned else matrices
    work = work / (work.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        gram = work @ work.transpose(1, 2)
        work = 3.4445 * work + (-4.7750 * gram + 2.0315 * gram @ gram) @ work
    result: Tensor = work.transpose(1, 2) if turned else work
    return result


class Muon(torch.optim.Optimizer):
    """Optimises the matrices of a network's blocks; everything else wants AdamW."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append((parameter, parameter.grad))
            for shape, pairs in by_shape.items():
                updates = []
                for parameter, gradient in pairs:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(state["momentum"], group["momentum"]))
                steps = orthogonalise(torch.stack(updates)) * (0.2 * max(shape) ** 0.5 * group["lr"])
                for (parameter, _), change in zip(pairs, steps, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change)
