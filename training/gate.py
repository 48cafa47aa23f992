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
_L0_DEVIATION_LIMIT = 0.25


class NotPublished(PhospheneError):
    """The autoencoder failed the gate; its text gives every reason."""


def check_publishable(*, training: Quality, held_out: Quality, calibration: Calibration | None, k: int) -> None:
    """Refuse an autoencoder that explains nothing, is mostly dead, or whose threshold does not carry over.

    Args:
        training: the inference rule on training residuals.
        held_out: the same on held-out ones.
        calibration: for BatchTopK.
        k: active neurons asked for.

    Raises:
        NotPublished: with every reason and its remedy.
    """
    reasons = []
    if not training.fvu < FVU_LIMIT:
        reasons.append(f"it diverged: its FVU on training images is {training.fvu:.3g} (limit {FVU_LIMIT}); lower --lr")
    elif not held_out.fvu < FVU_LIMIT:
        reasons.append(
            f"it does not generalise: its FVU is {held_out.fvu:.3g} on held-out images (limit {FVU_LIMIT}) and "
            f"{training.fvu:.3g} on training images; use more images, fewer --neurons or fewer --steps"
        )
    if training.dead_share > DEAD_SHARE_LIMIT:
        reasons.append(
            f"{training.dead_share:.0%} of its neurons never fire (limit {DEAD_SHARE_LIMIT:.0%}); "
            "use fewer --neurons, more --steps, or a higher --k"
        )
    if calibration is not None and _is_far(calibration, k):
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
