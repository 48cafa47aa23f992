"""Windows of rows -> batches: every row of a window once, in a given order. Knows nothing of files or encoders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class Window(NamedTuple):
    """Rows that are in memory together."""

    rows: Float[Tensor, "rows d"]
    """In float32."""
    order: Int64[Tensor, " shown"]
    """Which of them are shown, in this order."""


def cut_batches(windows: Iterator[Window], batch_rows: int, batch_count: int) -> Iterator[Float[Tensor, "rows d"]]:
    """Cut windows into so many batches; one batch may cross from a window into the next.

    A window is let go of before the next one is asked for: one at a time is in memory, beside one batch.
    """
    carried: Tensor | None = None
    while batch_count > 0:
        window = next(windows, None)
        if window is None:
            return
        rows, order = window
        if carried is not None:
            missing = batch_rows - len(carried)
            carried, order = torch.cat([carried, rows[order[:missing]]]), order[missing:]
            if len(carried) < batch_rows:
                continue
            yield carried
            batch_count -= 1
        whole = min(len(order) // batch_rows, batch_count)
        for index in range(whole):
            yield rows.index_select(0, order[index * batch_rows : (index + 1) * batch_rows])
        batch_count -= whole
        carried = rows.index_select(0, order[whole * batch_rows :]) if batch_count else None
        del window, rows, order
