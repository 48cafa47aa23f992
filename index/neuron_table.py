"""What the index knows of every neuron, in one table; sorts and filters it; knows nothing of images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import assert_never

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float64, Int64

from index.tables import read_table, write_table
from index.values import NameSource, NeuronFilter, NeuronName, NeuronOrder, NeuronRow

__all__ = ["NAMES_FIELD", "NeuronTable", "name_records", "write_neurons"]

_FILE = "neurons.parquet"
_GROUP_NEURONS = 16384
_NAME = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("margin", pa.float64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
    ]
)
NAMES_FIELD = pa.field("names", pa.list_(pa.field("element", _NAME)), nullable=False)
"""The column of a neuron's names."""
_SCHEMA = pa.schema(
    [
        pa.field("neuron_id", pa.int32(), nullable=False),
        pa.field("firing_count", pa.int64(), nullable=False),
        pa.field("density", pa.float64(), nullable=False),
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("std", pa.float64(), nullable=False),
        pa.field("maximum", pa.float64(), nullable=False),
        pa.field("quantiles", pa.list_(pa.field("element", pa.float64())), nullable=False),
        pa.field("label_entropy", pa.float64()),
        NAMES_FIELD,
        pa.field("monosemanticity", pa.float64()),
        pa.field("is_dense", pa.bool_(), nullable=False),
        pa.field("in_dense_cluster", pa.bool_(), nullable=False),
    ]
)


def write_neurons(folder: Path, neurons: Sequence[NeuronRow]) -> None:
    """Write `neurons.parquet`: one row per neuron, ascending."""
    starts = range(0, len(neurons), _GROUP_NEURONS)
    groups = ([_to_record(neuron) for neuron in neurons[start : start + _GROUP_NEURONS]] for start in starts)
    write_table(folder / _FILE, _SCHEMA, groups)


def name_records(names: Sequence[NeuronName]) -> list[dict[str, object]]:
    """Return names as `NAMES_FIELD` holds them."""
    return [
        {"name": name.name, "score": name.score, "margin": name.margin, "source": name.source.value} for name in names
    ]


def _to_record(neuron: NeuronRow) -> dict[str, object]:
    return {
        "neuron_id": neuron.neuron_id,
        "firing_count": neuron.firing_count,
        "density": neuron.density,
        "mean": neuron.mean,
        "std": neuron.std,
        "maximum": neuron.maximum,
        "quantiles": list(neuron.quantiles),
        "label_entropy": neuron.label_entropy,
        "names": name_records(neuron.names),
        "monosemanticity": neuron.monosemanticity,
        "is_dense": neuron.is_dense,
        "in_dense_cluster": neuron.in_dense_cluster,
    }


class NeuronTable:
    """Every neuron's figures and names."""

    firing_count: Int64[np.ndarray, " neurons"]
    """Images on which each neuron fires."""
    density: Float64[np.ndarray, " neurons"]
    """Share of the readable images on which each neuron fires."""
    maximum: Float64[np.ndarray, " neurons"]
    """Each neuron's largest activation; 0 for a dead one."""

    def __init__(self, folder: Path, names: pa.ChunkedArray | None = None) -> None:
        """Read `neurons.parquet`.

        Args:
            folder: the index.
            names: a `NAMES_FIELD` of every neuron, in place of the table's own.

        Raises:
            ArtefactDamaged: the file is not what it should be.
        """
        self._table = read_table(folder / _FILE, _SCHEMA)
        if names is not None:
            self._table = self._table.set_column(_SCHEMA.get_field_index(NAMES_FIELD.name), NAMES_FIELD, names)
        self.firing_count = self._table["firing_count"].to_numpy()
        self.density = self._table["density"].to_numpy()
        self._mean: Float64[np.ndarray, " neurons"] = self._table["mean"].to_numpy()
        self.maximum = self._table["maximum"].to_numpy()
        # Arrow gives NaN where there is none; it sorts last.
        self._label_entropy: Float64[np.ndarray, " neurons"] = self._table["label_entropy"].to_numpy()
        self._monosemanticity: Float64[np.ndarray, " neurons"] = self._table["monosemanticity"].to_numpy()
        called = self._table["names"].to_pylist()
        best = [row[0]["score"] if row else 0.0 for row in called]
        self._best_score: Float64[np.ndarray, " neurons"] = np.array(best)
        self._names_folded: list[list[str]] = [[name["name"].casefold() for name in row] for row in called]
        self._in_dense_cluster: Bool[np.ndarray, " neurons"] = self._table["in_dense_cluster"].to_numpy()

    @property
    def neuron_count(self) -> int:
        """Neurons of the sparse autoencoder, dead ones included."""
        return int(self._table.num_rows)

    def neuron(self, neuron_id: int) -> NeuronRow:
        """Return a neuron (0 <= neuron_id < neuron_count)."""
        record = self._table.slice(neuron_id, 1).to_pylist()[0]
        names = tuple(
            NeuronName(name=name["name"], score=name["score"], margin=name["margin"], source=NameSource(name["source"]))
            for name in record.pop("names")
        )
        return NeuronRow(**record | {"names": names, "quantiles": tuple(record["quantiles"])})

    def in_order(
        self, order: NeuronOrder, filter: NeuronFilter, *, sensitive_neuron_ids: Collection[int] = ()
    ) -> list[int]:
        """Return the ids of the neurons that pass a filter, sorted; ties by ascending id.

        Args:
            order: by what.
            filter: which.
            sensitive_neuron_ids: those that are.
        """
        passing: Bool[np.ndarray, " neurons"] = np.ones(self.neuron_count, dtype=bool)
        density = self.density.astype(np.float32)
        if filter.min_density is not None:
            passing &= density >= np.float32(filter.min_density)
        if filter.max_density is not None:
            passing &= density <= np.float32(filter.max_density)
        if filter.alive_only:
            passing &= self.firing_count > 0
        if filter.name_contains:
            wanted = filter.name_contains.casefold()
            passing &= np.array([any(wanted in name for name in names) for names in self._names_folded], dtype=bool)
        if filter.in_dense_cluster is not None:
            passing &= self._in_dense_cluster == filter.in_dense_cluster
        if filter.is_sensitive is not None:
            is_sensitive = np.isin(np.arange(self.neuron_count), list(sensitive_neuron_ids))
            passing &= is_sensitive == filter.is_sensitive
        sorted_ids = np.argsort(self._sort_key(order), kind="stable")
        return [int(neuron_id) for neuron_id in sorted_ids[passing[sorted_ids]]]

    def _sort_key(self, order: NeuronOrder) -> np.ndarray:
        match order:
            case NeuronOrder.NEURON_ID:
                return np.arange(self.neuron_count)
            case NeuronOrder.DENSITY:
                return -self.density
            case NeuronOrder.MAXIMUM:
                return -self.maximum
            case NeuronOrder.MEAN:
                return -self._mean
            case NeuronOrder.LABEL_ENTROPY:
                return self._label_entropy
            case NeuronOrder.NAME_SCORE:
                return -self._best_score
            case NeuronOrder.MONOSEMANTICITY:
                return -self._monosemanticity
            case _:
                assert_never(order)
