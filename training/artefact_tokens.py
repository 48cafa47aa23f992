"""High-norm artefact tokens: patches on whose places a ViT keeps global information instead of the image.

Darcet et al., "Vision transformers need registers" (2024). A patch token is marked where the norm of its residual lies
above median + 6 MAD (the median distance from the median) of all patch tokens that were harvested. Both medians are
exact order statistics over the whole corpus, found in bounded memory: they do not depend on shards, threads or time.
Class, register and distillation tokens, means and embeddings are never marked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
from jaxtyping import Float32, UInt32

from phosphene.site import Site, Tokens

DEVIATIONS = 6.0
"""How many MAD above the median a norm must lie."""

Norms = Callable[[], Iterable[Float32[np.ndarray, " rows"]]]
"""Gives all norms, part by part; called once per pass, with the same parts every time."""


@dataclass(frozen=True, kw_only=True)
class ArtefactTokens:
    """Where the limit lies and how many tokens exceed it."""

    median: float
    """Median norm of the patch tokens; unit: residual."""
    mad: float
    """Median distance of a norm from the median; unit: residual."""
    norm_limit: float | None
    """A patch token of a larger norm is an artefact; None where no token is one: no patches, or half of them alike."""
    patch_count: int
    """Patch tokens."""
    artefact_count: int
    """Those of them that are artefacts."""

    @property
    def share(self) -> float:
        """Share of the patch tokens that are artefacts."""
        return self.artefact_count / max(self.patch_count, 1)


def first_patch_place(site: Site, prefix_token_count: int) -> int | None:
    """Place of the first patch among the tokens that a site reads of an image; None where it reads no patches."""
    match site.tokens:
        case Tokens.PATCHES:
            return 0
        case Tokens.ALL:
            return prefix_token_count
        case Tokens.CLS | Tokens.MEAN | Tokens.EMBEDDING:
            return None
        case _:
            assert_never(site.tokens)


def find_artefact_tokens(norms: Norms) -> ArtefactTokens:
    """Find the limit over all patch tokens.

    Args:
        norms: of the patch tokens alone.
    """
    count = sum(len(part) for part in norms())
    if count == 0:
        return ArtefactTokens(median=0.0, mad=0.0, norm_limit=None, patch_count=0, artefact_count=0)
    median = lower_median(norms)
    mad = lower_median(lambda: (np.abs(part - median) for part in norms()))
    limit = float(median) + DEVIATIONS * float(mad) if mad > 0 else None
    above = 0 if limit is None else sum(int((part > limit).sum()) for part in norms())
    return ArtefactTokens(
        median=float(median), mad=float(mad), norm_limit=limit, patch_count=count, artefact_count=above
    )


def lower_median(values: Norms) -> np.float32:
    """The exact median of non-negative float32 values (the lower one of two), in 512 KiB and two passes.

    The bits of a non-negative float, read as an integer, order like the float: one pass counts its upper half, one the
    lower half of those that share the median's upper half.
    """
    upper = _counts(bits >> 16 for bits in _bits(values))
    rank = (int(upper.sum()) - 1) // 2
    high = int(np.searchsorted(np.cumsum(upper), rank, side="right"))
    rank -= int(upper[:high].sum())
    lower = _counts(bits[bits >> 16 == high] & 0xFFFF for bits in _bits(values))
    low = int(np.searchsorted(np.cumsum(lower), rank, side="right"))
    return np.uint32(high << 16 | low).view(np.float32)


def _bits(values: Norms) -> Iterable[UInt32[np.ndarray, " rows"]]:
    return (np.ascontiguousarray(part, dtype=np.float32).view(np.uint32) for part in values())


def _counts(halves: Iterable[UInt32[np.ndarray, " rows"]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    counts = np.zeros(1 << 16, dtype=np.int64)
    for part in halves:
        counts += np.bincount(part, minlength=1 << 16)
    return counts
