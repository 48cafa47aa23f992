"""Pooling token codes into an image code, against a dictionary."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from phosphene.codes import ImageCode, TokenCodes, image_codes

tokens = st.lists(st.dictionaries(st.integers(0, 9), st.integers(1, 4), min_size=0, max_size=4), min_size=1, max_size=5)


def as_token_codes(images: list[list[dict[int, int]]]) -> TokenCodes:
    values = torch.zeros(len(images), len(images[0]), 4)
    neuron_ids = torch.zeros(len(images), len(images[0]), 4, dtype=torch.int64)
    for image, image_tokens in enumerate(images):
        for token, code in enumerate(image_tokens):
            for slot, (neuron, value) in enumerate(sorted(code.items(), key=lambda pair: (-pair[1], pair[0]))):
                values[image, token, slot], neuron_ids[image, token, slot] = value, neuron
    return TokenCodes(values, neuron_ids, torch.ones(values.shape[:2], dtype=torch.int64))


@given(tokens, st.integers(1, 12))
def test_the_image_code_is_the_maximum_over_tokens_cut_to_the_largest(code: list[dict[int, int]], limit: int) -> None:
    (pooled,) = image_codes(as_token_codes([code]), limit=limit)
    largest: dict[int, int] = {}
    for token in code:
        for neuron, value in token.items():
            largest[neuron] = max(largest.get(neuron, 0), value)
    due = sorted(largest.items(), key=lambda pair: (-pair[1], pair[0]))
    assert list(zip(pooled.neuron_ids.tolist(), pooled.values.tolist(), strict=True)) == due[:limit]
    assert pooled.cut_count == len(code) + len(due) - len(due[:limit])


@given(st.lists(tokens.filter(lambda code: len(code) == 3), min_size=2, max_size=3))
def test_images_of_a_batch_do_not_mix(batch: list[list[dict[int, int]]]) -> None:
    together = image_codes(as_token_codes(batch), limit=64)
    for code, pooled in zip(batch, together, strict=True):
        (alone,) = image_codes(as_token_codes([code]), limit=64)
        assert np.array_equal(alone.neuron_ids, pooled.neuron_ids)
        assert np.array_equal(alone.values, pooled.values)


def test_length_is_the_number_of_firing_neurons() -> None:
    code = ImageCode(neuron_ids=np.array([4, 2], np.int32), values=np.array([2.0, 1.0], np.float32))
    assert len(code) == 2
