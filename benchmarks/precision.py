"""Average precision of many scores for many concepts, ties counted fairly."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def average_precision(
    scores: Float[np.ndarray, "images units"], shown: Bool[np.ndarray, "images concepts"]
) -> Float[np.ndarray, "units concepts"]:
    """Return the area under each precision-recall curve, as the sum of precision x gain in recall.

    Images of equal score enter together, so a unit that is zero on most images earns nothing from their order.

    Args:
        scores: how strongly each unit responds to each image.
        shown: whether each image shows each concept; every concept is shown at least once.
    """
    image_count, unit_count = scores.shape
    positives = shown.sum(axis=0)
    areas = np.empty((unit_count, shown.shape[1]))
    for unit in range(unit_count):
        order = np.argsort(-scores[:, unit], kind="stable")
        ranked = scores[order, unit]
        ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), image_count - 1)
        hits = np.cumsum(shown[order], axis=0)[ends]
        precision = hits / (ends + 1)[:, None]
        gain = np.diff(hits, axis=0, prepend=0) / positives
        areas[unit] = (precision * gain).sum(axis=0)
    return areas
