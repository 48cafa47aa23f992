"""What the tiny CLIP is trained on: pure functions from model outputs and labels to losses.

* contrastive: InfoNCE (Radford et al. 2021) in which other captions that happen to be true are left out, and half of
  the images see one near-miss caption more.
* zero-shot: the image against the prompts of every factor, as it is used after training.
* dense: what covers each patch. Thrown away after training; it teaches shapes far faster than captions do.

Knows nothing of the model's inside, of rendering or of optimisation.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from embedded.concepts import FACTORS, OBJECT_FACTORS, Factor, values_of

FACTOR_WEIGHTS: dict[Factor, float] = {
    "shape": 1.5,
    "colour": 1.0,
    "texture": 2.5,
    "size": 1.0,
    "position": 0.5,
    "background": 1.0,
    "count": 0.5,
}


class DenseTargets(NamedTuple):
    """Per-patch ground truth."""

    labels: dict[Factor, Int[Tensor, "batch patches"]]
    """For each object factor the value's number plus one, or 0 where a patch is background."""
    silhouette: Float[Tensor, "batch patches pixels"]
    """1 where an object covers the pixel."""


def claims_truth(
    claims: Int[Tensor, "captions facts"], claim_objects: int, scenes: Int[Tensor, "images facts"]
) -> Bool[Tensor, "images captions"]:
    """Whether each caption is true of each image.

    Args:
        claims: rows of (background, count, then five factors for each of `claim_objects` objects); -1 is left open.
        claim_objects: how many objects a row has room for.
        scenes: the same rows for the images; -1 where there is no such object.
    """
    globals_true = ((claims[None, :, :2] == -1) | (claims[None, :, :2] == scenes[:, None, :2])).all(-1)
    claimed = claims[:, 2:].view(1, -1, claim_objects, 1, len(OBJECT_FACTORS))
    shown = scenes[:, 2:].view(-1, 1, 1, claim_objects, len(OBJECT_FACTORS))
    matches = ((claimed == -1) | (claimed == shown)).all(-1).any(-1).all(-1)
    return globals_true & matches


def contrastive_loss(
    image: Float[Tensor, "batch width"],
    text: Float[Tensor, "batch width"],
    near_miss: Float[Tensor, "half width"],
    scale: Float[Tensor, ""],
    truth: Bool[Tensor, "batch batch"],
) -> Float[Tensor, ""]:
    """InfoNCE both ways over unit vectors.

    Args:
        image: image embeddings.
        text: embeddings of each image's own caption.
        near_miss: for the first images, embeddings of a caption that is false of the image by one word.
        scale: multiplies cosines.
        truth: whether caption j is true of image i; such pairs off the diagonal are no negatives.
    """
    logits = scale * image @ text.T
    ignored = truth & ~torch.eye(len(image), dtype=torch.bool, device=image.device)
    logits = logits.masked_fill(ignored, -1e4)
    extra = scale * (image[: len(near_miss)] * near_miss).sum(-1, keepdim=True)
    extra = functional.pad(extra, (0, 0, 0, len(image) - len(near_miss)), value=-1e4)
    target = torch.arange(len(image), device=image.device)
    image_to_text = functional.cross_entropy(torch.cat([logits, extra], dim=1), target)
    return 0.5 * (image_to_text + functional.cross_entropy(logits.T, target))


def zero_shot_loss(
    image: Float[Tensor, "batch width"],
    prompt: Float[Tensor, "prompts width"],
    scale: Float[Tensor, ""],
    presence: Float[Tensor, "batch prompts"],
) -> Float[Tensor, ""]:
    """Soft cross-entropy of each factor's prompts against the values that the scene shows, in equal shares."""
    logits = scale * image @ prompt.T
    total, start = logits.new_zeros(()), 0
    for factor in FACTORS:
        stop = start + len(values_of(factor))
        shown = presence[:, start:stop]
        target = shown / shown.sum(1, keepdim=True)
        log_share = functional.log_softmax(logits[:, start:stop], dim=1)
        loss = functional.kl_div(log_share, target, reduction="batchmean")
        total = total + FACTOR_WEIGHTS[factor] * loss
        start = stop
    return total / sum(FACTOR_WEIGHTS.values())


def dense_loss(
    labels: dict[Factor, Float[Tensor, "batch patches values"]],
    silhouette: Float[Tensor, "batch patches pixels"],
    targets: DenseTargets,
) -> Float[Tensor, ""]:
    """Cross-entropy of what covers each patch, covered patches counting four times, plus the silhouette's pixels."""
    total = silhouette.new_zeros(())
    covered = targets.labels["shape"] > 0
    weight = 1.0 + 3.0 * covered.float()
    weight = weight / weight.sum()
    for factor, logits in labels.items():
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.labels[factor].flatten(), reduction="none")
        total = total + FACTOR_WEIGHTS[factor] * (loss * weight.flatten()).sum()
    return total + functional.binary_cross_entropy_with_logits(silhouette, targets.silhouette)
