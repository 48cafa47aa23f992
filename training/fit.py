"""The training job, step by step: harvest -> train -> calibrate -> check -> publish.

Running it again does what is missing: a finished bundle is left alone, finished activations are used again, training
goes on from its newest checkpoint, and the ids come out the same. Knows nothing of the command line.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from phosphene.bundle import Bundle, load_bundle, save_bundle
from phosphene.errors import ArtefactMismatch
from phosphene.manifest import MANIFEST_NAME, differences, digest_of, hold_folder
from phosphene.readout import SimilarityReadout, Vocabulary, load_readout
from phosphene.sae import SparseAutoencoder
from phosphene.selection import Selection
from training.activations import Activations
from training.calibration import Calibration, calibrate
from training.checkpoint import CheckpointFolder
from training.export import as_trained, check_folding, fold
from training.gate import check_publishable
from training.harvest import harvest, quarantined_images
from training.plan import FitPlan, FitRequest, plan_fit
from training.progress import Progress
from training.quality import Quality, measure_quality
from training.scaling import Scaling, make_scaling
from training.settings import config_of
from training.trainer import train
from training.variants import BatchTopKTraining, TopKTraining, make_variant
from training.weights import Weights

_MEASURED_LIMIT_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What `fit` ends with."""

    bundle: Bundle
    """The published bundle."""
    is_new: bool
    """False where it had been finished before."""


def fit(request: FitRequest, progress: Progress) -> FitResult:
    """Make and publish a bundle, or find it finished.

    Args:
        request: what to do.
        progress: where to report.

    Raises:
        PhospheneError: see `plan_fit`, `harvest`, `train` and `check_publishable`; nothing is published then.
        ArtefactMismatch: `out` holds something else.
        SettingError: another process makes the same bundle.
    """
    plan = plan_fit(request, progress)
    torch.set_num_threads(request.execution.thread_count)
    finished = find_finished(plan)
    if finished is not None:
        return FitResult(bundle=finished, is_new=False)
    plan.work.mkdir(parents=True, exist_ok=True)
    with hold_folder(plan.work):
        finished = find_finished(plan)  # Another process may have ended meanwhile.
        return FitResult(bundle=finished or make_bundle(plan, progress), is_new=finished is None)


def make_bundle(plan: FitPlan, progress: Progress) -> Bundle:
    """Harvest, train, calibrate, check and publish, or what an earlier run has left to do; errors as `fit`."""
    device = torch.device(plan.request.execution.device)
    path = harvest(plan.harvest, plan.work / "activations", progress)
    activations = Activations(path, seed=plan.training.seed)
    scaling = make_scaling(*activations.moments())
    checkpoints = CheckpointFolder(
        plan.work / "training" / _training_id(plan, activations)[:16], plan_id=_training_id(plan, activations)
    )
    weights = train(
        activations, scaling, plan.sae, plan.training, checkpoints=checkpoints, device=device, progress=progress
    )
    selection, calibration = choose_selection(plan, weights, scaling, activations)
    if calibration is not None:
        progress.event("calibrated", k=plan.sae.k, **asdict(calibration))
    sae = export(plan, weights, selection, scaling, activations)
    training, held_out = measure(plan, sae, scaling, activations)
    check_publishable(training=training, held_out=held_out, calibration=calibration, k=plan.sae.k)
    facts = _facts(plan, activations, path, training, held_out, calibration)
    bundle = publish(plan, sae, facts)
    checkpoints.remove()
    return bundle


def find_finished(plan: FitPlan) -> Bundle | None:
    """The bundle at `out` where it is the one that this plan makes; None where nothing lies there.

    Raises:
        ArtefactMismatch: it is another bundle, or no bundle at all.
        ArtefactDamaged: it is not sound.
    """
    out = plan.request.out
    if not out.exists():
        return None
    if not (out / MANIFEST_NAME).is_file():
        raise ArtefactMismatch(f"{str(out)!r} exists and is no bundle: choose another --out, or remove it")
    bundle = load_bundle(out)
    found = bundle.training.get("plan", {})
    if found != plan.config:
        lines = "".join(f"\n  {line}" for line in differences(plan.config, found))
        raise ArtefactMismatch(
            f"{str(out)!r} holds a bundle of another configuration (there -> asked for):{lines}\n"
            "choose another --out, or remove it"
        )
    return bundle


def choose_selection(
    plan: FitPlan, weights: Weights, scaling: Scaling, activations: Activations
) -> tuple[Selection, Calibration | None]:
    """The inference rule of the variant, in units of the scaled residual; BatchTopK's threshold is calibrated."""
    variant = make_variant(plan.sae.variant, plan.sae.k)
    match variant:
        case TopKTraining():
            return variant.for_inference(), None
        case BatchTopKTraining():
            fitted, checked = (scaling.apply(activations.held_out(half)) for half in (0, 1))
            calibration = calibrate(weights.pre_activations, fitted, checked, variant.k)
            threshold = torch.full((plan.sae.neuron_count,), calibration.threshold)
            return variant.for_inference(threshold), calibration
        case _:
            assert_never(variant)


def export(
    plan: FitPlan, weights: Weights, selection: Selection, scaling: Scaling, activations: Activations
) -> SparseAutoencoder:
    """The autoencoder on residuals as the encoder gives them, once its codes have been compared.

    Raises:
        NumericError: folding changed a code.
    """
    sae = fold(weights, selection, scaling)
    check_folding(
        as_trained(weights, selection),
        sae,
        scaling,
        activations.held_out(1),
        token_code_limit=plan.limits.token_code_limit,
    )
    return sae


def measure(
    plan: FitPlan, sae: SparseAutoencoder, scaling: Scaling, activations: Activations
) -> tuple[Quality, Quality]:
    """The shipped rule on training residuals (a sample, where they are many) and on all held-out ones."""

    def quality(residuals: Float[Tensor, "rows d"]) -> Quality:
        return measure_quality(sae, residuals, mean=scaling.mean, token_code_limit=plan.limits.token_code_limit)

    held_out = torch.cat([activations.held_out(0), activations.held_out(1)])
    return quality(activations.sample(_MEASURED_LIMIT_ROWS)), quality(held_out)


def publish(plan: FitPlan, sae: SparseAutoencoder, facts: dict[str, Any]) -> Bundle:
    """Write the bundle, whole or not at all."""
    sources = plan.request.sources
    return save_bundle(
        plan.request.out,
        encoder=plan.encoder,
        encoder_source=sources.encoder,
        site=plan.request.site,
        sae=sae,
        limits=plan.limits,
        training=facts,
        vocabulary=_vocabulary(plan),
    )


def _vocabulary(plan: FitPlan) -> Vocabulary | None:
    if not plan.vocabulary:
        return None
    sources = plan.request.sources
    readout = load_readout(sources.encoder, plan.encoder, revision=sources.revision)
    assert isinstance(readout, SimilarityReadout), "a plan has names only for an encoder with a text tower"
    return Vocabulary(plan.vocabulary, readout.text_vectors(plan.vocabulary))


def _training_id(plan: FitPlan, activations: Activations) -> str:
    return digest_of(
        {
            "activations": activations.manifest.id,
            "sae": config_of(plan.sae),
            "training": config_of(plan.training),
            "execution": config_of(plan.request.execution),
        }
    )


def _facts(
    plan: FitPlan,
    activations: Activations,
    path: Path,
    training: Quality,
    held_out: Quality,
    calibration: Calibration | None,
) -> dict[str, Any]:
    return {
        "plan": plan.config,
        "execution": config_of(plan.request.execution),
        "activations": activations.manifest.id,
        "image_count": activations.image_count,
        "held_out_image_count": activations.held_out_image_count,
        "quarantined": quarantined_images(path),
        "training_quality": asdict(training),
        "held_out_quality": asdict(held_out),
        "calibration": None if calibration is None else asdict(calibration),
    }
