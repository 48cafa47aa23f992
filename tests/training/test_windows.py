import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from training.windows import Window, cut_batches


def windows(lengths: list[int]) -> Iterator[Window]:
    """Rows that hold their own number, in a shuffled order."""
    start = 0
    for length in lengths:
        order = torch.from_numpy(np.random.default_rng(length).permutation(length))
        yield Window(torch.arange(start, start + length).float()[:, None], order)
        start += length


@pytest.mark.parametrize("lengths", [[10], [3, 3, 3, 1], [4, 4], [1] * 9, [7, 0, 5]])
@pytest.mark.parametrize("batch_rows", [1, 2, 4])
def test_batches_are_the_windows_in_a_row_cut_anew(lengths: list[int], batch_rows: int) -> None:
    due = torch.cat([window.rows[window.order] for window in windows(lengths)])
    count = len(due) // batch_rows
    batches = list(cut_batches(windows(lengths), batch_rows, count))
    assert [len(batch) for batch in batches] == [batch_rows] * count
    assert torch.equal(torch.cat(batches), due[: count * batch_rows])
    assert len(list(cut_batches(windows(lengths), batch_rows, 1))) == 1


def test_a_window_is_let_go_of_before_the_next_is_asked_for() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def make() -> Window:
        assert all(reference() is None for reference in alive)
        rows = torch.zeros(10, 1)
        alive.append(weakref.ref(rows))
        return Window(rows, torch.arange(10))

    assert sum(map(len, cut_batches((make() for _ in range(5)), 4, 12))) == 48
    assert len(alive) == 5
