"""Whether a trained autoencoder may be published; knows nothing of files.

A dead or diverged autoencoder loads and answers like a good one, so it must not get a bundle.
"""

from __future__ import annotations

from phosphene.errors import PhospheneError
from training.calibration import Calibration
from training.quality import Quality

DEAD_SHARE_LIMIT = 0.9
"""Largest share of neurons that may fire on none of the training residuals measured."""
FVU_LIMIT = 1.0
"""At this fraction of variance unexplained the mean residual does as well as the autoencoder."""
CUT_SHARE_LIMIT = 0.1
"""Largest share of codes of a variant without k that `token_code_limit` may cut."""
_L0_DEVIATION_LIMIT = 0.25


class NotPublished(PhospheneError):
    """The autoencoder failed the gate; its text gives every reason."""


def check_publishable(
    *,
    training: Quality,
    held_out: Quality,
    calibration: Calibration | None,
    k: int | None,
    token_code_limit: int,
) -> None:
    """Refuse one that explains nothing, is mostly dead, fires too much, or whose threshold does not carry over.

    Args:
        training: the inference rule on training residuals.
        held_out: the same on held-out ones.
        calibration: for BatchTopK.
        k: active neurons asked for; None where the variant fixes none but has a penalty for them.
        token_code_limit: active neurons that a code may hold.

    Raises:
        NotPublished: with every reason and its remedy.
    """
    reasons = []
    more_active = "a higher --k" if k is not None else "a lower --sparsity"
    if training.l0 == 0:
        reasons.append(f"no neuron ever fires: its L0 on training images is 0; use {more_active}, or a lower --lr")
    elif not training.fvu < FVU_LIMIT:
        reasons.append(
            f"it diverged: its FVU on training images is {training.fvu:.3g} (limit {FVU_LIMIT}); lower --lr"
            + (" or --sparsity" if k is None else "")
        )
    elif not held_out.fvu < FVU_LIMIT:
        reasons.append(
            f"it does not generalise: its FVU is {held_out.fvu:.3g} on held-out images (limit {FVU_LIMIT}) and "
            f"{training.fvu:.3g} on training images; use more images, fewer --neurons or fewer --steps"
        )
    if training.l0 > 0 and training.dead_share > DEAD_SHARE_LIMIT:
        reasons.append(
            f"{training.dead_share:.0%} of its neurons never fire (limit {DEAD_SHARE_LIMIT:.0%}); "
            f"use fewer --neurons, more --steps, or {more_active}"
        )
    if k is None and held_out.cut_share > CUT_SHARE_LIMIT:
        reasons.append(
            f"{held_out.cut_share:.0%} of its codes are cut (limit {CUT_SHARE_LIMIT:.0%}): they have more than "
            f"{token_code_limit} active neurons, which no code may; use a higher --sparsity, or --variant batchtopk"
        )
    if calibration is not None and k is not None and _is_far(calibration, k):
        reasons.append(
            f"its threshold does not carry over: mean L0 {calibration.l0_checked:.1f} on the other held-out half, "
            f"k is {k}; use more images or --variant topk"
        )
    if reasons:
        raise NotPublished("the autoencoder is not published: " + "; ".join(reasons))


def _is_far(calibration: Calibration, k: int) -> bool:
    # A small held-out half measures L0 badly: only more than four standard errors speak against the threshold.
    deviation = abs(calibration.l0_checked - k)
    return deviation > max(_L0_DEVIATION_LIMIT * k, 4 * calibration.l0_error)
