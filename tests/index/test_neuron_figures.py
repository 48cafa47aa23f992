"""Figures of a neuron that need other neurons or embeddings: put into its row, and through the table."""

from pathlib import Path

import numpy as np

from index.co_activation import CoActivation
from index.neuron_rows import completed_rows
from index.neuron_table import NeuronTable, write_neurons
from index.values import NeuronRow

NEIGHBOURS = CoActivation(
    ids=np.array([[1], [0], [0], [-1]], dtype=np.int32),
    npmi=np.array([[0.5], [0.5], [0.1], [0]], dtype=np.float32),
    counts=np.array([[9], [9], [5], [0]]),
)


def _row(neuron_id: int, density: float) -> NeuronRow:
    return NeuronRow(
        neuron_id=neuron_id,
        firing_count=int(100 * density),
        density=density,
        mean=1.0,
        std=0.5,
        maximum=2.0,
        quantiles=(0.5, 2.0),
        label_entropy=None,
        names=(),
    )


ROWS = [_row(0, 0.5), _row(1, 0.4), _row(2, 0.02), _row(3, 0.3)]


def test_rows_are_completed_and_come_back(tmp_path: Path) -> None:
    scores = np.array([0.25, np.nan, -0.5, 1.0])
    rows = completed_rows(ROWS, monosemanticity=scores, mean_l0=0.05, neighbours=NEIGHBOURS)
    assert [row.monosemanticity for row in rows] == [0.25, None, -0.5, 1.0]
    assert [row.is_dense for row in rows] == [True, True, False, True]
    assert [row.in_dense_cluster for row in rows] == [True, True, False, False]
    assert [row.density for row in rows] == [row.density for row in ROWS]
    write_neurons(tmp_path, rows)
    table = NeuronTable(tmp_path)
    assert [table.neuron(neuron_id) for neuron_id in range(4)] == rows
