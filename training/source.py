"""What training reads its data from: residuals of a corpus at a site, split by image; knows nothing of where they are.

`Activations` reads a harvest on disk, `StreamedActivations` runs the encoder anew. Whatever they give follows from
(data, seed, step) alone, so that a resumed run sees the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

MIN_IMAGE_COUNT = 16
"""Images that a corpus must yield: fewer leave nothing to hold out."""

_HELD_OUT_LIMIT_ROWS = 65_536


@runtime_checkable
class ActivationSource(Protocol):
    """Residuals to train on, and two held-out halves that are never trained on."""

    id: str
    """Digest of everything that decides the residuals, the seed of split and order aside."""
    width: int
    """Length of a residual."""
    image_count: int
    """Images that are used."""
    held_out_image_count: int
    """Those of them that are never trained on."""
    training_count: int
    """Residuals of one epoch."""

    def quarantined(self) -> list[dict[str, Any]]:
        """The unreadable images that are known of: corpus row and error class, in corpus order."""

    def moments(self) -> tuple[Float[Tensor, " d"], float]:
        """Mean of the training rows, and their mean square about it, per coordinate."""

    def held_out(self, half: int) -> Float[Tensor, "rows d"]:
        """Residuals of one half (0 or 1) of the held-out images."""

    def sample(self, limit: int) -> Float[Tensor, "rows d"]:
        """At most `limit` training rows, spread evenly, the same in every run."""

    def batches(self, batch_rows: int, *, first_step: int) -> Iterator[Float[Tensor, "rows d"]]:
        """Batches from step `first_step` on, without end; every epoch drops its last incomplete batch.

        Args:
            batch_rows: rows per batch; `training_count`, where that is less.
            first_step: how many batches an earlier run has used.
        """


def held_out_count(image_count: int, tokens_per_image: int) -> int:
    """How many images are held out: a tenth, but at least 64 or a quarter, and at most 65,536 tokens; always even."""
    wanted = max(image_count // 10, min(image_count // 4, 64))
    limit = max(_HELD_OUT_LIMIT_ROWS // tokens_per_image, 4)
    return min(wanted, limit) // 2 * 2
