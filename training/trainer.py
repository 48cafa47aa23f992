"""The training loop: one pass over the batches through one learner or several. Knows nothing of encoders or bundles."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.device_errors import device_errors
from phosphene.errors import SettingError
from phosphene.sae import SparseAutoencoder
from phosphene.selection import JumpReLU, Selection
from training.checkpoint import CheckpointFolder
from training.curve import Curve
from training.dense_learner import DenseLearner
from training.exchange import as_selection, as_weights
from training.journal import JournalLine
from training.learner import Learner
from training.metrics import MetricsFile
from training.offset import warn_of_offset
from training.progress import Progress
from training.ranks import ALONE, Ranks
from training.reports import RunReports
from training.run import LOOK_EVERY_STEPS, Diverged, Run, resume
from training.scaling import Scaling, make_scaling
from training.settings import InputScaling, SaeSettings, TrainingSettings
from training.source import ActivationSource
from training.sparse.learner import CpuSparseLearner
from training.sparse.torch_learner import TorchSparseLearner
from training.sparse.torch_sums import why_plain
from training.variants import (
    FIXED_L0,
    BatchTopKTraining,
    JumpReluTraining,
    MatryoshkaTraining,
    ReluTraining,
    TopKTraining,
    name_of,
    penalty_of,
)
from training.weights import Weights, initial_weights, on_cpu

__all__ = ["Diverged", "Trained", "Trainee", "choose_scaling", "make_learner", "start", "train", "train_many"]

_SAMPLE_LIMIT_ROWS = 16_384


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainee:
    """One autoencoder to train."""

    name: str
    """For people."""
    run_id: str
    """Stands in every line of its curve."""
    sae: SaeSettings
    """Size and rule."""
    settings: TrainingSettings
    """The optimisation."""
    checkpoints: CheckpointFolder
    """Where to save and resume."""
    journal: Path
    """Where its curve goes."""
    reports: RunReports = RunReports()
    """Where else its curve goes."""
    initial: SparseAutoencoder | None = None
    """What to go on from instead of random weights, on residuals as the encoder gives them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """One autoencoder after its last step."""

    weights: Weights
    """On the CPU, in units of the scaled residual."""
    own_selection: Selection | None
    """Its inference rule, where that follows from variant and weights; None where it must be calibrated."""
    scaling: Scaling
    """What residuals went through before it learnt from them."""
    mean: Float[Tensor, " d"]
    """Mean of the training residuals, as the encoder gives them."""
    skipped_count: int
    """Steps skipped because they would have led to NaN or infinity."""


def train(
    activations: ActivationSource, trainee: Trainee, *, device: torch.device, progress: Progress, ranks: Ranks = ALONE
) -> Trained:
    """Train one autoencoder; arguments and errors as `train_many`.

    Raises:
        Diverged: training led to NaN or infinity.
    """
    (outcome,) = train_many(activations, [trainee], device=device, progress=progress, ranks=ranks)
    if isinstance(outcome, Diverged):
        raise outcome
    return outcome


def train_many(
    activations: ActivationSource,
    trainees: Sequence[Trainee],
    *,
    device: torch.device,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> list[Trained | Diverged]:
    """Train several autoencoders in one pass over the same batches, each from its newest checkpoint.

    What one becomes does not depend on the others: alone, on the same activations, it ends in the same bits. One that
    is ahead waits for the others; one that diverges stops alone.

    Args:
        activations: the data, in the order of their own seed.
        trainees: at least one, all with equally many rows per batch.
        device: where to compute.
        progress: where to report.
        ranks: who else trains them, each on its part of every batch; the first writes curves and checkpoints.

    Returns:
        What became of each, in order.

    Raises:
        NumericError: the residuals do not vary.
        SettingError: the batches differ or cannot be shared out evenly, or a journal holds something else.
        DeviceOutOfMemory: not even one row fits.
        DeviceFailed: the device is lost to this process.
    """
    batch_rows = {trainee.settings.batch_rows for trainee in trainees}
    if len(batch_rows) != 1:
        raise SettingError(f"autoencoders trained in one pass share one --batch; these ask for {sorted(batch_rows)}")
    _refuse_unequal_parts(min(max(batch_rows), activations.training_count), max(batch_rows), ranks)
    centred = make_scaling(*activations.moments())
    if any(trainee.sae.inputs is InputScaling.SCALED for trainee in trainees):
        warn_of_offset(centred.mean, centred.scale, progress)
    metrics_files = _metrics_files(trainees)
    # What a step lacks in memory, `training.memory` has met already.
    with device_errors(device, remedy="use a smaller --batch or fewer --neurons"), ExitStack() as stack:
        _warn_of_plain_sums(trainees, device, progress)
        lanes = [
            _open_lane(
                stack, activations, trainee, centred, metrics_files, device=device, progress=progress, ranks=ranks
            )
            for trainee in trainees
        ]
        _pass(lanes, activations, batch_rows.pop(), device=device, progress=progress, ranks=ranks)
    return [_outcome(lane, centred) for lane in lanes]


def _refuse_unequal_parts(row_count: int, batch_rows: int, ranks: Ranks) -> None:
    if not row_count % ranks.count:
        return
    found = "" if row_count == batch_rows else f", and there are {row_count} activations to learn from"
    raise SettingError(
        f"--batch is {batch_rows}{found}; a batch must be a multiple of the {ranks.count} processes that torchrun "
        "started: choose a smaller one that is",
        field="batch",
    )


def choose_scaling(inputs: InputScaling, centred: Scaling) -> Scaling:
    """What residuals go through.

    Args:
        inputs: as asked for.
        centred: what centres them and scales them to a mean square of one.
    """
    match inputs:
        case InputScaling.SCALED:
            return centred
        case InputScaling.RAW:
            return Scaling(mean=torch.zeros_like(centred.mean), scale=1.0)
        case _:
            assert_never(inputs)


def start(
    activations: ActivationSource,
    scaling: Scaling,
    sae: SaeSettings,
    settings: TrainingSettings,
    initial: SparseAutoencoder | None = None,
) -> Weights:
    """The weights at step zero: those of `initial`, or random ones fitted to a sample of the training rows."""
    if initial is not None:
        return as_weights(initial, scaling)
    sample = scaling.apply(activations.sample(_SAMPLE_LIMIT_ROWS))
    return initial_weights(sample, sae, bias_init=settings.bias_init, seed=settings.seed)


def make_learner(
    weights: Weights,
    sae: SaeSettings,
    settings: TrainingSettings,
    *,
    device: torch.device,
    ranks: Ranks = ALONE,
    initial: Selection | None = None,
) -> Learner:
    """What trains this variant, at step zero.

    Args:
        weights: to begin with, copied.
        sae: size and rule.
        settings: the optimisation.
        device: where to compute.
        ranks: who else trains it.
        initial: the rule that goes with weights that were trained before; JumpReLU goes on from its thresholds.
    """
    match sae.variant:
        case TopKTraining() | BatchTopKTraining() | MatryoshkaTraining() as variant:
            if device.type == "cpu":
                return CpuSparseLearner(weights, variant, settings, thread_count=torch.get_num_threads(), ranks=ranks)
            return TorchSparseLearner(weights, variant, settings, device=device, ranks=ranks)
        case ReluTraining() | JumpReluTraining() as variant:
            threshold = None
            if isinstance(variant, JumpReluTraining) and isinstance(initial, JumpReLU):
                # A threshold of 0 has no gradient on one side: ReLU's start where the variant says.
                threshold = initial.threshold if bool((initial.threshold > 0).all()) else None
            return DenseLearner(weights, variant, settings, device=device, ranks=ranks, threshold=threshold)
        case _:
            assert_never(sae.variant)


@dataclass(kw_only=True, eq=False)
class _Lane:
    trainee: Trainee
    run: Run
    scaling: Scaling  # On the device.
    failure: Diverged | None = None

    def is_due(self, step: int) -> bool:
        return self.failure is None and not self.run.is_over and self.run.learner.step_count == step


def _open_lane(
    stack: ExitStack,
    activations: ActivationSource,
    trainee: Trainee,
    centred: Scaling,
    metrics_files: dict[Path, MetricsFile],
    *,
    device: torch.device,
    progress: Progress,
    ranks: Ranks,
) -> _Lane:
    scaling = choose_scaling(trainee.sae.inputs, centred)
    weights = start(activations, scaling, trainee.sae, trainee.settings, trainee.initial)
    initial = None if trainee.initial is None else as_selection(trainee.initial, scaling)
    learner = make_learner(weights, trainee.sae, trainee.settings, device=device, ranks=ranks, initial=initial)
    if not ranks.is_first:
        # The first puts damaged checkpoints aside before the others look.
        ranks.wait()
    checkpoint = resume(learner, trainee.checkpoints, progress)
    if ranks.is_first:
        ranks.wait()
    reports = trainee.reports
    curve = None
    if ranks.is_first:
        curve = stack.enter_context(
            Curve(
                trainee.name,
                run=trainee.run_id,
                step=learner.step_count,
                journal=trainee.journal,
                tensorboard=reports.tensorboard,
                metrics_file=None if reports.metrics_file is None else metrics_files[reports.metrics_file],
                progress=progress,
            )
        )
    run = Run(
        learner,
        trainee.settings,
        run_id=trainee.run_id,
        variance=(centred.scale / scaling.scale) ** 2,
        checkpoint=checkpoint,
        checkpoints=trainee.checkpoints,
        curve=curve,
        progress=progress,
        penalty=penalty_of(trainee.sae.variant),
        ranks=ranks,
    )
    return _Lane(trainee=trainee, run=run, scaling=scaling.to(device))


def _warn_of_plain_sums(trainees: Sequence[Trainee], device: torch.device, progress: Progress) -> None:
    """Report an event where the top-k family trains without Triton's kernels on a device that could have them."""
    is_summed = any(name_of(trainee.sae.variant) in FIXED_L0 for trainee in trainees)
    reason = why_plain(device) if is_summed else None
    if reason is not None:
        progress.event(
            "Triton's kernels do not run here; plain torch sums instead, which is slower and differs in the last bits",
            reason=reason,
            remedy="install a C compiler, or name one with CC",
        )


def _pass(
    lanes: Sequence[_Lane],
    activations: ActivationSource,
    batch_rows: int,
    *,
    device: torch.device,
    progress: Progress,
    ranks: Ranks,
) -> None:
    first = min(lane.run.learner.step_count for lane in lanes)
    last = max(lane.trainee.settings.step_count for lane in lanes)
    with ExitStack() as stack:
        batches = activations.batches(batch_rows, first_step=first)
        if isinstance(batches, Generator):  # It may have images on their way.
            stack.enter_context(closing(batches))
        advance = stack.enter_context(progress.stage("train", last, "steps"))
        advance(first, "")
        for step in range(first, last):
            batch = next(batches)
            _advance(lanes, step, _moved(batch[ranks.part(len(batch))], device), progress)
            if (step + 1) % LOOK_EVERY_STEPS == 0 or step + 1 == last:
                advance(step + 1, _status([lane.run.newest_line for lane in lanes]))
            if all(lane.failure is not None or lane.run.is_over for lane in lanes):
                break


def _advance(lanes: Sequence[_Lane], step: int, batch: Float[Tensor, "rows d"], progress: Progress) -> None:
    scaled: dict[InputScaling, Float[Tensor, "rows d"]] = {}
    for lane in lanes:
        if not lane.is_due(step):
            continue
        inputs = lane.trainee.sae.inputs
        if inputs not in scaled:
            scaled[inputs] = lane.scaling.apply(batch)
        try:
            lane.run.step(scaled[inputs])
        except Diverged as error:
            lane.failure = error
            progress.event("diverged", run=lane.trainee.name, reason=str(error))


def _moved(batch: Float[Tensor, "rows d"], device: torch.device) -> Float[Tensor, "rows d"]:
    # From pinned memory the copy does not hold up the loop.
    return batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)


def _outcome(lane: _Lane, centred: Scaling) -> Trained | Diverged:
    if lane.failure is not None:
        return lane.failure
    learner = lane.run.learner
    return Trained(
        weights=on_cpu(learner.weights),
        own_selection=learner.own_selection(),
        scaling=choose_scaling(lane.trainee.sae.inputs, centred),
        mean=centred.mean,
        skipped_count=lane.run.skipped_count,
    )


def _metrics_files(trainees: Sequence[Trainee]) -> dict[Path, MetricsFile]:
    paths = {trainee.reports.metrics_file for trainee in trainees}
    return {path: MetricsFile(path) for path in paths if path is not None}


def _status(lines: Sequence[JournalLine | None]) -> str:
    """Where the runs stand, what matters most first: a narrow terminal cuts the end off."""
    seen = [line for line in lines if line is not None]
    skipped = sum(line.skipped_count for line in seen)
    skips = [f"skipped {skipped}"] if skipped else []
    match seen:
        case []:
            return ""
        case [line]:
            figures = [_figure("loss", line.loss, ".4f"), f"dead {line.dead_share:.1%}"]
            more = [_figure("L0", line.l0, ".1f"), _figure("FVU", line.fvu, ".4f")]
            more.append(_figure("threshold", line.threshold_ema, ".3f"))
            return ", ".join(filter(None, [*figures, *skips, *more]))
        case _:
            losses = [line.loss for line in seen if line.loss is not None]
            mean = sum(losses) / len(losses) if losses else None
            worst = f"dead <= {max(line.dead_share for line in seen):.1%}"
            return ", ".join(filter(None, [f"{len(seen)} runs", _figure("mean loss", mean, ".4f"), worst, *skips]))


def _figure(name: str, value: float | None, form: str) -> str:
    return "" if value is None else f"{name} {value:{form}}"
