"""Sensitive neurons and images: what is listed or matches, and nothing else."""

import numpy as np
import pytest

from index.sensitive import SensitiveConfig, Unmatched, sensitive_images, sensitive_neurons
from phosphene.errors import SettingError

NAMES = [("red", "Fire Arm"), (), ("arm",), ("[x]",)]
LABELS = ["weapon", None, "Water Weapons", "", "cat"]
URIS = ["a/1.jpg", "a/2.jpg", "b/3.jpg", "b\n/4.jpg", "B/5.JPG"]
DIGESTS = [f"{row:064x}" for row in range(4)] + [""]


def _images(config: SensitiveConfig) -> list[int]:
    return np.flatnonzero(sensitive_images(config, labels=LABELS, uris=URIS, digests=DIGESTS)).tolist()


@pytest.mark.parametrize(
    ("config", "due"),
    [
        (SensitiveConfig(), []),
        (SensitiveConfig(label_patterns=("weapon",)), [0]),
        (SensitiveConfig(label_patterns=("*WEAPON*",)), [0, 2]),
        (SensitiveConfig(label_patterns=("*",)), [0, 2, 3, 4]),
        (SensitiveConfig(uri_patterns=("b*",)), [2, 3, 4]),
        (SensitiveConfig(uri_patterns=("a/[12].jpg", "*5*")), [0, 1, 4]),
        (SensitiveConfig(image_digests=(f"{2:064X}", "f" * 64)), [2]),
        (SensitiveConfig(image_digests=(DIGESTS[1],), label_patterns=("cat",), uri_patterns=("b/3.jpg",)), [1, 2, 4]),
    ],
)
def test_images_that_are_listed_or_match(config: SensitiveConfig, due: list[int]) -> None:
    assert _images(config) == due


@pytest.mark.parametrize(
    ("config", "due"),
    [
        (SensitiveConfig(), []),
        (SensitiveConfig(neuron_ids=(3, 1)), [1, 3]),
        (SensitiveConfig(name_patterns=("*arm",)), [0, 2]),
        (SensitiveConfig(name_patterns=("ARM",), neuron_ids=(0,)), [0, 2]),
        (SensitiveConfig(name_patterns=("[[]x]",)), [3]),
    ],
)
def test_neurons_that_are_listed_or_match(config: SensitiveConfig, due: list[int]) -> None:
    assert np.flatnonzero(sensitive_neurons(config, NAMES)).tolist() == due


def test_neurons_that_do_not_exist_are_all_named() -> None:
    with pytest.raises(SettingError, match=r"no neurons \[4, 9\]; neurons are 0 to 3"):
        sensitive_neurons(SensitiveConfig(neuron_ids=(9, 1, 4)), NAMES)


def test_patterns_that_nothing_matches_are_left() -> None:
    unmatched = Unmatched(("*ARM*", "x", "[ab]", "cat", "x", "dog"))
    unmatched.hear(["Water", None, "firearm"])
    assert unmatched.patterns == ["x", "[ab]", "cat", "dog"]
    unmatched.hear(["B", "cat"])
    unmatched.hear(["cats", "xx", ""])
    assert unmatched.patterns == ["x", "dog"]


def test_what_is_out_of_bounds_is_named_all_at_once() -> None:
    with pytest.raises(SettingError, match=r"neuron -1 is below 0; 'ab' is no sha256.*label_patterns has 1001.*0 char"):
        SensitiveConfig(neuron_ids=(-1,), image_digests=("ab",), label_patterns=("x",) * 1001, uri_patterns=("",))
