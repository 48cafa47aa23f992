"""What trains one autoencoder, a batch at a time; knows nothing of data, checkpoints or bundles.

What a step computes follows from (settings, step, data) alone, so that a run killed anywhere and resumed ends in the
same bits on one machine with one thread count.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from phosphene.selection import Selection
from training.settings import TrainingSettings
from training.weights import Weights


class StepReport(NamedTuple):
    """What one step saw; tensors where reading them waits for the device, which is the caller's choice."""

    loss: Float[Tensor, ""]
    """Mean squared error per coordinate: about the FVU, since inputs have a mean square of one."""
    l0: Float[Tensor, ""]
    """Mean number of active neurons per row."""
    dead_count: int | Int[Tensor, ""]
    """Neurons that were dead before the step."""
    is_skipped: bool | Bool[Tensor, ""] = False
    """Whether the step would have led to NaN or infinity, so that it changed nothing but the count of steps."""
    least_active: Float[Tensor, ""] | None = None
    """Smallest activation that was selected from the batch, infinity where none was; None where the rule selects
    nothing over a batch."""


@runtime_checkable
class Learner(Protocol):
    """One autoencoder in training."""

    @property
    def weights(self) -> Weights:
        """Its weights, on its device; they change with every step."""

    step_count: int
    """Steps done, skipped ones included."""

    def step(self, inputs: Float[Tensor, "rows d"]) -> StepReport:
        """Advance by one batch of scaled residuals on its device."""

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name; live tensors, to be written before the next step."""

    def restore(self, step_count: int, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave after so many steps."""

    def own_selection(self) -> Selection | None:
        """The inference rule, where it follows from the variant and the weights; None where it must be calibrated."""


def learning_rate_at(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, a plateau, linear decay to zero.

    Args:
        step: steps done so far.
        settings: peak and shares.
    """
    warmup = max(1, round(settings.step_count * settings.warmup_share))
    decay = max(1, round(settings.step_count * settings.decay_share))
    rising = (step + 1) / warmup
    falling = (settings.step_count - step) / decay
    return settings.learning_rate * min(1.0, rising, falling)
