"""Seeded sparse codes with structure: images of one class share neurons, as real codes do."""

import numpy as np

from phosphene.codes import ImageCode

NEURON_COUNT = 300


def random_codes(
    image_count: int, *, seed: int = 0, neuron_count: int = NEURON_COUNT, active: int = 12
) -> list[ImageCode]:
    generator = np.random.default_rng(seed)
    class_count = 20
    classes = [generator.choice(neuron_count, 2 * active, replace=False) for _ in range(class_count)]
    codes = []
    for image in range(image_count):
        own = generator.choice(classes[image % class_count], active - active // 4, replace=False)
        stray = generator.choice(neuron_count, active // 4, replace=False)
        codes.append(make_code(np.unique(np.concatenate([own, stray])), generator))
    return codes


def make_code(neuron_ids: np.ndarray, generator: np.random.Generator) -> ImageCode:
    values = generator.gamma(2.0, 1.0, len(neuron_ids)).astype(np.float32) + np.float32(0.01)
    order = np.lexsort((neuron_ids, -values))
    return ImageCode(neuron_ids=neuron_ids[order].astype(np.int32), values=values[order])


def dense(codes: list[ImageCode], neuron_count: int = NEURON_COUNT) -> np.ndarray:
    out = np.zeros((len(codes), neuron_count))
    for row, code in enumerate(codes):
        out[row, code.neuron_ids] = code.values.astype(np.float16)
    return out
