"""Trained weights -> a published bundle, step by step: calibrate -> fold -> limit -> measure -> gate -> write.

Knows nothing of training runs or of other autoencoders.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from phosphene.bundle import Bundle, save_bundle
from phosphene.codes import CodeLimits
from phosphene.errors import CorpusError
from phosphene.readout import SimilarityReadout, Vocabulary, load_readout
from phosphene.sae import SparseAutoencoder
from phosphene.selection import Selection
from training.calibration import Calibration, calibrate
from training.export import as_trained, check_folding, fold
from training.gate import check_publishable
from training.plan import FitPlan
from training.progress import Progress
from training.quality import Quality, measure_quality
from training.settings import config_of
from training.source import ActivationSource
from training.trainer import Trained
from training.variants import BatchTopKTraining, MatryoshkaTraining

_MEASURED_LIMIT_ROWS = 65_536
_BLOCK_ROWS = 2048
_WIDEST_IMAGE_CODE = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """An autoencoder as it would ship, and what it is worth."""

    sae: SparseAutoencoder
    """On residuals as the encoder gives them."""
    limits: CodeLimits
    """How many neurons its codes may hold."""
    training: Quality
    """The shipped rule on training residuals."""
    held_out: Quality
    """The same on held-out ones."""
    calibration: Calibration | None
    """How its threshold was found; None where the variant has a rule of its own."""


def finish(plan: FitPlan, trained: Trained, source: ActivationSource, progress: Progress) -> Finished:
    """Find the inference rule, fold, and measure.

    Args:
        plan: what was asked for.
        trained: what training made of it.
        source: the data.
        progress: where to report.

    Raises:
        CorpusError: a held-out half gives no residuals.
        NumericError: too few neurons fire for a threshold, or folding changed a code.
    """
    _refuse_empty_half(source)
    selection, calibration = choose_selection(plan, trained, source)
    if calibration is not None:
        progress.event("calibrated", k=plan.sae.k, **asdict(calibration))
    sae = fold(trained.weights, selection, trained.scaling)
    held_out = torch.cat([source.held_out(0), source.held_out(1)])
    limits = choose_limits(plan, sae, held_out)
    check_folding(
        as_trained(trained.weights, selection),
        sae,
        trained.scaling,
        source.held_out(1),
        token_code_limit=limits.token_code_limit,
    )

    def quality(residuals: Float[Tensor, "rows d"]) -> Quality:
        return measure_quality(sae, residuals, mean=trained.mean, token_code_limit=limits.token_code_limit)

    finished = Finished(
        sae=sae,
        limits=limits,
        training=quality(source.sample(_MEASURED_LIMIT_ROWS)),
        held_out=quality(held_out),
        calibration=calibration,
    )
    if finished.held_out.cut_share > 0:
        progress.event("codes cut", share=finished.held_out.cut_share, token_code_limit=limits.token_code_limit)
    return finished


def _refuse_empty_half(source: ActivationSource) -> None:
    # A stream holds out images whose bytes can be read: whether they decode shows only now.
    if not all(len(source.held_out(half)) for half in (0, 1)):
        raise CorpusError(
            f"not one of the images of a held-out half, {source.held_out_image_count // 2} of {source.image_count}, "
            "can be used, so that nothing can be measured: mend the images, add some, or choose another --seed",
            field="corpus",
        )


def publish(plan: FitPlan, finished: Finished, trained: Trained, source: ActivationSource) -> Bundle:
    """Write the bundle, whole or not at all.

    Raises:
        NotPublished: it is dead or has diverged.
    """
    check_publishable(
        training=finished.training,
        held_out=finished.held_out,
        calibration=finished.calibration,
        k=plan.sae.k,
        token_code_limit=finished.limits.token_code_limit,
    )
    return save_bundle(
        plan.request.out,
        encoder=plan.encoder,
        encoder_source=plan.request.sources.encoder,
        site=plan.request.site,
        sae=finished.sae,
        limits=finished.limits,
        training=_facts(plan, finished, trained, source),
        vocabulary=_vocabulary(plan),
    )


def choose_selection(plan: FitPlan, trained: Trained, source: ActivationSource) -> tuple[Selection, Calibration | None]:
    """The rule in units of the scaled residual: the variant's own, or JumpReLU with a threshold found here."""
    if trained.own_selection is not None:
        return trained.own_selection, None
    variant = plan.sae.variant
    assert isinstance(variant, BatchTopKTraining | MatryoshkaTraining), "every other variant has a rule of its own"
    fitted, checked = (trained.scaling.apply(source.held_out(half)) for half in (0, 1))
    calibration = calibrate(trained.weights.pre_activations, fitted, checked, variant.k)
    threshold = torch.full((plan.sae.neuron_count,), calibration.threshold)
    return variant.for_inference(threshold), calibration


def choose_limits(plan: FitPlan, sae: SparseAutoencoder, residuals: Float[Tensor, "rows d"]) -> CodeLimits:
    """The code limits: the plan's where k fixes them, otherwise what the residuals need, in powers of two.

    Args:
        plan: what was asked for; its limits are the widest.
        sae: as it ships.
        residuals: held-out ones.
    """
    widest = plan.limits
    if plan.sae.k is not None:
        return widest
    counts = _active_counts(sae, residuals, limit=widest.token_code_limit)
    default = CodeLimits()
    token_limit = min(_power_of_two_above(int(counts.max())), widest.token_code_limit)
    image_limit = min(_power_of_two_above(round(float(counts.double().mean()))), _WIDEST_IMAGE_CODE)
    return CodeLimits(
        image_code_limit=max(default.image_code_limit, image_limit),
        token_code_limit=max(default.token_code_limit, token_limit),
    )


def _active_counts(sae: SparseAutoencoder, residuals: Float[Tensor, "rows d"], *, limit: int) -> Int[Tensor, " rows"]:
    counts = []
    for start in range(0, len(residuals), _BLOCK_ROWS):
        codes = sae.encode(residuals[start : start + _BLOCK_ROWS], limit=limit)
        counts.append((codes.values > 0).sum(dim=-1) + codes.cut_counts)
    return torch.cat(counts)


def _power_of_two_above(value: int) -> int:
    return 1 << max(value - 1, 0).bit_length()


def _vocabulary(plan: FitPlan) -> Vocabulary | None:
    if not plan.vocabulary:
        return None
    sources = plan.request.sources
    readout = load_readout(sources.encoder, plan.encoder, revision=sources.revision)
    assert isinstance(readout, SimilarityReadout), "a plan has names only for an encoder with a text tower"
    return Vocabulary(plan.vocabulary, readout.text_vectors(plan.vocabulary))


def _facts(plan: FitPlan, finished: Finished, trained: Trained, source: ActivationSource) -> dict[str, Any]:
    return {
        "plan": plan.config,
        "execution": config_of(plan.request.execution),
        "activations": source.id,
        "image_count": source.image_count,
        "held_out_image_count": source.held_out_image_count,
        "quarantined": source.quarantined(),
        "skipped_step_count": trained.skipped_count,
        "training_quality": asdict(finished.training),
        "held_out_quality": asdict(finished.held_out),
        "calibration": None if finished.calibration is None else asdict(finished.calibration),
    }
