"""Shards, exemplars and figures against a plain dense reference, however the rows are cut."""

from pathlib import Path

import numpy as np
import pytest

from index.exemplars import ExemplarStore, write_exemplars
from index.postings import count_below, exact_values
from index.shards import Shards, open_shards
from index.spread import spread_places, spread_ranks
from index.values import ExemplarKind
from phosphene.errors import ArtefactDamaged
from tests.index.random_codes import NEURON_COUNT, dense, random_codes
from tests.index.shard_folders import image_record, write_shards

CODES = random_codes(150)
DENSE = dense(CODES, NEURON_COUNT + 1)  # The last neuron never fires.


@pytest.fixture(params=[64, 150, 7])
def shards(tmp_path: Path, request: pytest.FixtureRequest) -> Shards:
    return write_shards(tmp_path, CODES, neuron_count=NEURON_COUNT + 1, size=request.param)


def test_rows_are_found_in_their_shard(shards: Shards) -> None:
    assert (shards.row_count, shards.neuron_count) == (150, NEURON_COUNT + 1)
    assert shards.entry_count == int((DENSE > 0).sum())
    for row in (0, 63, 64, 149):
        assert sorted(shards.code(row).neuron_ids) == np.flatnonzero(DENSE[row]).tolist()
    rows = np.array([149, 3, 70, 3])
    parts = list(shards.parts(rows))
    assert sorted(place for _, places in parts for place in places) == [0, 1, 2, 3]
    for number, places in parts:
        each = shards[number].rows
        assert ((rows[places] >= each.start) & (rows[places] < each.stop)).all()


def test_exact_values_are_the_codes_turned_round(shards: Shards) -> None:
    for shard in shards:
        part = DENSE[shard.rows.start : shard.rows.stop]
        for neuron_id in range(shards.neuron_count):
            rows, values = exact_values(shard.postings, shard.codes, neuron_id)
            np.testing.assert_array_equal(rows, np.flatnonzero(part[:, neuron_id]))
            np.testing.assert_array_equal(values, part[rows, neuron_id])


def test_the_count_of_smaller_activations_is_exact(shards: Shards) -> None:
    generator = np.random.default_rng(0)
    parts = [(shard.postings, shard.codes) for shard in shards]
    for neuron_id in range(shards.neuron_count):
        values = DENSE[DENSE[:, neuron_id] > 0, neuron_id]
        for value in [*generator.gamma(2.0, 1.0, 3), *values[:3], 0.0, 1e9]:
            rounded = float(np.float16(min(value, 65504)))
            due = (int((values < rounded).sum()), len(values))
            assert count_below(parts, neuron_id, float(value)) == due


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("size", [7, 64, 150])
def test_exemplars_are_the_strongest_images_each_once(tmp_path: Path, repeats: int, size: int) -> None:
    # The same bytes have the same code.
    codes = [CODES[row // repeats] for row in range(len(CODES))]
    digests = [f"{row // repeats:064x}" for row in range(len(CODES))]
    records = [image_record(row, sha256=digest) for row, digest in enumerate(digests)]
    shards = write_shards(tmp_path, codes, neuron_count=NEURON_COUNT + 1, size=size, records=records)
    first = np.arange(len(CODES)) % repeats == 0
    write_exemplars(tmp_path, shards, first, top_count=8, spread_count=5)
    store, activations = ExemplarStore(tmp_path), dense(codes, NEURON_COUNT + 1)
    for neuron_id in range(shards.neuron_count):
        values = activations[:, neuron_id]
        best = [row for row in np.argsort(-values, kind="stable") if values[row] > 0 and first[row]]
        top = store.exemplars(neuron_id, ExemplarKind.TOP, 100)
        assert [exemplar.row for exemplar in top] == best[:8]
        assert store.exemplars(neuron_id, ExemplarKind.TOP, 3) == top[:3]
        spread = store.exemplars(neuron_id, ExemplarKind.SPREAD, 100)
        ordered, counts = np.unique(-values[best], return_counts=True)
        ranks = spread_ranks(-ordered, counts.astype(np.int64), 5)
        assert [exemplar.row for exemplar in spread] == [best[rank] for rank in ranks]
        for exemplar in top + spread:
            assert exemplar.value == values[exemplar.row]
            assert exemplar.quantile == (values[values > 0] < exemplar.value).mean()


def test_spread_takes_both_ends_and_never_repeats() -> None:
    for available in range(40):
        for wanted in range(1, 20):
            places = spread_places(available, wanted)
            assert len(set(places)) == min(available, wanted)
            if available and wanted > 1:
                assert (places[0], places[-1]) == (0, available - 1)


def test_files_of_a_shard_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, CODES, neuron_count=NEURON_COUNT, size=64)
    rows = [shard.rows for shard in shards]
    np.save(tmp_path / "shards" / "00001" / "row_norms.npy", np.zeros(63, dtype=np.float32))
    with pytest.raises(ArtefactDamaged, match=r"00001: due are 64 rows.*row_norms.npy 63 rows"):
        open_shards(tmp_path, rows)
    np.save(tmp_path / "shards" / "00000" / "postings" / "words.npy", np.zeros(3, dtype=np.uint32))
    with pytest.raises(ArtefactDamaged, match=r"words.npy has 3"):
        open_shards(tmp_path, rows)
