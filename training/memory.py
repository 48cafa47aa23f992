"""What a learner does when a batch does not fit into the device's memory: the same step in smaller blocks of rows.

The batch stays whole: selection is over all of it, losses and gradients are summed over its blocks. Knows nothing of
losses or optimisers.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.device_errors import is_out_of_memory
from phosphene.errors import DeviceOutOfMemory
from training.learner import Learner, StepReport


@runtime_checkable
class WorksInBlocks(Protocol):
    """A learner whose step needs memory for `block_rows` rows, not for the whole batch.

    A step of it that finds no memory (`is_out_of_memory`) has changed nothing, so that it can be done again.
    """

    block_rows: int
    """Rows that are worked on at once; changing it changes no result but in the last bits."""


class RowBlocks:
    """How many rows of a batch fit at once: halved whenever they do not."""

    def __init__(self, limit: int) -> None:
        """Begin with blocks of `limit` rows."""
        self.limit = limit
        self.halved_count = 0

    def halve(self, device: torch.device) -> None:
        """Go on with half as many.

        Args:
            device: where they did not fit.

        Raises:
            DeviceOutOfMemory: one row is too many already.
        """
        if self.limit <= 1:
            raise DeviceOutOfMemory(
                "one row of a batch does not fit into the device's memory beside weights and optimiser: use fewer "
                f"--neurons, or {_elsewhere(device)}"
            )
        self.limit //= 2
        self.halved_count += 1


def step_in_blocks(learner: Learner, inputs: Float[Tensor, "rows d"], blocks: RowBlocks) -> StepReport:
    """A learner's step, in blocks small enough for the device.

    Args:
        learner: in smaller blocks only where it is `WorksInBlocks`.
        inputs: the whole batch.
        blocks: how many rows fitted until now.

    Raises:
        DeviceOutOfMemory: not even the smallest block fits.
    """
    while True:
        try:
            return learner.step(inputs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Only here, where the traceback and the tensors that it holds are gone, can memory be given back.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if not isinstance(learner, WorksInBlocks):
            raise DeviceOutOfMemory(
                f"a step over {len(inputs)} rows does not fit into the device's memory: use a smaller --batch, fewer "
                f"--neurons, or {_elsewhere(inputs.device)}"
            )
        blocks.limit = min(blocks.limit, learner.block_rows, len(inputs))
        blocks.halve(inputs.device)
        learner.block_rows = blocks.limit


def _elsewhere(device: torch.device) -> str:
    return "a machine with more memory" if device.type == "cpu" else "a larger device, or --device cpu"
