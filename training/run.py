"""One autoencoder in training: its learner, its checkpoints, its curve, and what happens when a step goes wrong.

A step that would lead to NaN or infinity is skipped by the learner and counted here; ten in a row end the run. One
that does not fit into the device's memory is done again in smaller blocks. Knows nothing of where batches come from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.errors import NumericError
from training.checkpoint import Checkpoint, CheckpointFolder
from training.curve import Curve
from training.journal import JournalLine
from training.learner import Learner, StepReport, learning_rate_at
from training.memory import RowBlocks, step_in_blocks
from training.progress import Progress
from training.ranks import ALONE, Ranks
from training.settings import TrainingSettings

LOOK_EVERY_STEPS = 10
"""Steps between two lines of the curve. Only then are the steps' reports read, which waits for the device."""
SKIPPED_LIMIT = 10
"""Skipped steps in a row that end a run."""
THRESHOLD_DECAY = 0.99
"""Weight of the past in `threshold_ema`, a step."""


class Diverged(NumericError):
    """Training led to NaN or infinity and did not find back."""


def resume(learner: Learner, checkpoints: CheckpointFolder, progress: Progress) -> Checkpoint | None:
    """Put a learner where the newest sound checkpoint left it, and say aloud which ones were not sound.

    Args:
        learner: at step zero.
        checkpoints: of its run.
        progress: where to report.

    Returns:
        The checkpoint; None where the learner stays at step zero.
    """
    checkpoint, damages = checkpoints.load_newest()
    step = 0 if checkpoint is None else checkpoint.step
    for damage in damages:
        progress.event("checkpoint damaged", file=str(damage.file), reason=damage.reason, falls_back_to_step=step)
    if checkpoint is not None:
        learner.restore(checkpoint.step, checkpoint.tensors)
        progress.event("resumed", step=checkpoint.step)
    return checkpoint


class Run:
    """One learner between its first step and its last."""

    def __init__(
        self,
        learner: Learner,
        settings: TrainingSettings,
        *,
        run_id: str,
        variance: float,
        checkpoint: Checkpoint | None,
        checkpoints: CheckpointFolder,
        curve: Curve | None,
        progress: Progress,
        penalty: float | None = None,
        ranks: Ranks = ALONE,
        clock_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Go on with a learner.

        Args:
            learner: where `checkpoint` left it.
            settings: the optimisation.
            run_id: for the curve.
            variance: mean square of a coordinate of the scaled training residuals about their mean.
            checkpoint: what the learner goes on from; None is step zero.
            checkpoints: where to save.
            curve: where to write lines; None where another process writes curve and checkpoints.
            progress: where to report what happens once.
            penalty: weight of what keeps activations few; None where the rule fixes their number.
            ranks: who else learns from a part of each batch, equally large.
            clock_s: monotonic seconds.
        """
        self.learner = learner
        self.settings = settings
        self.newest_line: JournalLine | None = None
        self._run_id = run_id
        self._variance = variance
        self._checkpoints = checkpoints
        self._curve = curve
        self._progress = progress
        self._penalty = penalty
        self._ranks = ranks
        self._clock_s = clock_s
        self._blocks = RowBlocks(settings.batch_rows)
        self._threshold_ema = None if checkpoint is None else checkpoint.averages.get("threshold")
        counts = {} if checkpoint is None else checkpoint.counts
        self._skipped_count = counts.get("skipped", 0)
        self._skipped_in_a_row = counts.get("skipped_in_a_row", 0)
        self._sample_count = counts.get("samples", 0)
        self._unread: list[StepReport] = []
        self._unrated_samples = 0
        self._rated_s = clock_s()

    @property
    def is_over(self) -> bool:
        """Whether the last step is done."""
        return self.learner.step_count >= self.settings.step_count

    @property
    def skipped_count(self) -> int:
        """Steps skipped so far."""
        return self._skipped_count

    def step(self, inputs: Float[Tensor, "rows d"]) -> None:
        """Advance by one batch, or this process's part of it; write a line and a checkpoint where they are due.

        Raises:
            Diverged: too many steps in a row could not be done, or a loss is not finite.
            DeviceOutOfMemory: not even one row fits.
        """
        halved_count = self._blocks.halved_count
        report = step_in_blocks(self.learner, inputs, self._blocks)
        if self._blocks.halved_count > halved_count:
            self._progress.event("out of memory", rows_at_once=self._blocks.limit, batch_rows=len(inputs))
        sample_count = len(inputs) * self._ranks.count
        self._sample_count += sample_count
        self._unrated_samples += sample_count
        self._unread.append(report)
        step = self.learner.step_count
        if step % LOOK_EVERY_STEPS == 0 or self.is_over:
            self._read_reports()
            self._write_line(report)
        if self._curve is not None and (self._checkpoints.is_due(step) or self.is_over):
            self._read_reports()
            self._save(self._curve)

    def _read_reports(self) -> None:
        reports = list(self._unread)
        self._unread.clear()
        skips = [bool(report.is_skipped) for report in reports]
        for is_skipped in skips:
            self._skipped_count += is_skipped
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if is_skipped else 0
            if self._skipped_in_a_row >= SKIPPED_LIMIT:
                raise Diverged(self._why(f"{SKIPPED_LIMIT} steps in a row gave a loss or gradient that is not finite"))
        least = [report.least_active for report, is_skipped in zip(reports, skips, strict=True) if not is_skipped]
        found = [value for value in least if value is not None]
        for value in torch.stack(found).tolist() if found else []:
            self._average_threshold(value)

    def _average_threshold(self, value: float) -> None:
        if not math.isfinite(value):
            return
        past = value if self._threshold_ema is None else self._threshold_ema
        self._threshold_ema = THRESHOLD_DECAY * past + (1 - THRESHOLD_DECAY) * value

    def _write_line(self, report: StepReport) -> None:
        step = self.learner.step_count
        loss = None if report.is_skipped else float(report.loss)
        if loss is not None and not math.isfinite(loss):
            raise Diverged(self._why(f"the loss is {loss}"))
        now_s = self._clock_s()
        self.newest_line = JournalLine(
            run=self._run_id,
            step=step,
            loss=loss,
            fvu=None if loss is None else loss / self._variance,
            l0=None if loss is None else float(report.l0),
            dead_share=int(report.dead_count) / len(self.learner.weights.directions),
            learning_rate=learning_rate_at(step - 1, self.settings),
            skipped_count=self._skipped_count,
            sample_count=self._sample_count,
            samples_per_s=round(self._unrated_samples / max(now_s - self._rated_s, 1e-9), 1),
            threshold_ema=self._threshold_ema,
        )
        if self._curve is not None:
            self._curve.write(self.newest_line)
        self._rated_s, self._unrated_samples = now_s, 0

    def _save(self, curve: Curve) -> None:
        # The curve first: a checkpoint promises every line up to its step.
        curve.sync()
        counts = {
            "skipped": self._skipped_count,
            "skipped_in_a_row": self._skipped_in_a_row,
            "samples": self._sample_count,
        }
        averages = {} if self._threshold_ema is None else {"threshold": self._threshold_ema}
        state = Checkpoint(step=self.learner.step_count, tensors=self.learner.state(), counts=counts, averages=averages)
        self._checkpoints.save(state)

    def _why(self, what: str) -> str:
        kept = self._checkpoints.newest_step()
        where = "no checkpoint had been written" if kept is None else f"the state after step {kept} is kept"
        penalty = "" if self._penalty is None else f", or --sparsity, which is {self._penalty:g}"
        return (
            f"training diverged: {what} at step {self.learner.step_count} of {self.settings.step_count}; {where} in "
            f"{str(self._checkpoints.path)!r}: lower --lr, which is {self.settings.learning_rate:g}{penalty}"
        )
