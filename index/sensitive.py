"""Which neurons and images are sensitive: those that a user listed, and those whose words match a pattern.

An operator's list, not a classifier: nothing here looks at pictures. Patterns are those of the shell (`*`, `?`, `[ab]`)
against the whole word, letter case aside: `*nude*` matches a label that contains the word. A sensitive neuron or image
is hidden from answers unless it is asked for; who answers does the hiding. Knows nothing of files.

    config = SensitiveConfig(neuron_ids=(12,), label_patterns=("*weapon*",))
    sensitive_neurons(config, neuron_names=...); sensitive_images(config, labels=..., uris=..., digests=...)

    unmatched = Unmatched(config.label_patterns)
    unmatched.hear(labels); unmatched.patterns
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate

import numpy as np
from jaxtyping import Bool

from phosphene.errors import SettingError
from phosphene.manifest import is_digest

__all__ = ["SensitiveConfig", "Unmatched", "sensitive_images", "sensitive_neurons"]

_PATTERN_LIMIT = 1000
_LENGTH_LIMIT = 256


@dataclass(frozen=True, kw_only=True)
class SensitiveConfig:
    """What a user calls sensitive; as it stands, nothing."""

    neuron_ids: tuple[int, ...] = ()
    """Neurons, by id."""
    name_patterns: tuple[str, ...] = ()
    """Neurons with a matching name, first or later."""
    image_digests: tuple[str, ...] = ()
    """Images, by the sha256 of their bytes, 64 hexadecimal digits."""
    label_patterns: tuple[str, ...] = ()
    """Images with a matching label."""
    uri_patterns: tuple[str, ...] = ()
    """Images with a matching uri, as the image table has it."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            SettingError: one or more entries are out of bounds; all of them in one error.
        """
        wrong = [f"neuron {neuron_id} is below 0" for neuron_id in self.neuron_ids if neuron_id < 0]
        wrong += [
            f"{digest!r} is no sha256 of 64 hexadecimal digits"
            for digest in self.image_digests
            if not is_digest(digest.lower())
        ]
        for name in ("name_patterns", "label_patterns", "uri_patterns"):
            patterns: tuple[str, ...] = getattr(self, name)
            if len(patterns) > _PATTERN_LIMIT:
                wrong.append(f"{name} has {len(patterns)} patterns; the limit is {_PATTERN_LIMIT}")
            wrong += [
                f"a pattern of {name} has {len(pattern)} characters; the limits are 1 to {_LENGTH_LIMIT}"
                for pattern in patterns
                if not 1 <= len(pattern) <= _LENGTH_LIMIT
            ]
        if wrong:
            raise SettingError("; ".join(wrong))


def sensitive_neurons(config: SensitiveConfig, neuron_names: Sequence[Sequence[str]]) -> Bool[np.ndarray, " neurons"]:
    """Tell which neurons are sensitive.

    Args:
        config: what the user calls sensitive.
        neuron_names: every neuron's names.

    Raises:
        SettingError: a listed neuron does not exist.
    """
    beyond = sorted({neuron_id for neuron_id in config.neuron_ids if neuron_id >= len(neuron_names)})
    if beyond:
        raise SettingError(f"no neurons {beyond}; neurons are 0 to {len(neuron_names) - 1}: take them off the list")
    matches = _matcher(config.name_patterns)
    flags = np.array([any(matches.fullmatch(name.casefold()) for name in names) for names in neuron_names], dtype=bool)
    flags[list(config.neuron_ids)] = True
    return flags


def sensitive_images(
    config: SensitiveConfig, *, labels: Sequence[str | None], uris: Sequence[str], digests: Sequence[str]
) -> Bool[np.ndarray, " rows"]:
    """Tell which images are sensitive; a listed digest that no row has is no error.

    Args:
        config: what the user calls sensitive.
        labels: every row's label; None where it has none.
        uris: every row's uri.
        digests: sha256 of every row's bytes, lower case; empty where they could not be read.
    """
    by_label, by_uri = _matcher(config.label_patterns), _matcher(config.uri_patterns)
    listed = {digest.lower() for digest in config.image_digests}
    return np.array(
        [
            digest in listed
            or by_uri.fullmatch(uri.casefold()) is not None
            or (label is not None and by_label.fullmatch(label.casefold()) is not None)
            for label, uri, digest in zip(labels, uris, digests, strict=True)
        ],
        dtype=bool,
    )


class Unmatched:
    """Patterns that no word has matched so far."""

    patterns: list[str]
    """They, each once, in the order in which they were given."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Begin with all of them."""
        self.patterns = list(dict.fromkeys(patterns))
        self._matcher = _matcher(self.patterns)

    def hear(self, words: Iterable[str | None]) -> None:
        """Drop the patterns that match one of the words; None is no word."""
        for word in words:
            if word is not None and self._matcher.fullmatch(word.casefold()):
                self.patterns = [each for each in self.patterns if not _matcher([each]).fullmatch(word.casefold())]
                self._matcher = _matcher(self.patterns)


def _matcher(patterns: Sequence[str]) -> re.Pattern[str]:
    """Return one expression for all patterns; of none, one that matches nothing."""
    return re.compile("|".join(f"(?:{translate(pattern.casefold())})" for pattern in patterns) or "(?!)")
