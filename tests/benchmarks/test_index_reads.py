"""The part of `make bench-index` that reads random rows."""

import numpy as np
import pytest

from benchmarks.figures import musts, not_measured
from benchmarks.index_load.reads import READ_FIGURES, measure, measure_reads, read_codes, store
from benchmarks.index_load.synthetic import Recipe, make_rows
from benchmarks.samples import Samples
from index.thumbnails import ThumbnailStore


@pytest.fixture(scope="module")
def images():
    return make_rows(Recipe(image_count=300, query_count=5, neuron_count=1_024, class_count=20))[0]


@pytest.fixture(scope="module")
def shards(images, tmp_path_factory):
    return store(images, tmp_path_factory.mktemp("shards"), neuron_count=1_024)


def test_what_is_read_is_what_was_stored(images, shards):
    assert [shard.rows.start for shard in shards] == [0, 75, 150, 225]
    rows = np.array([299, 0, 74, 75, 150, 3])
    found = read_codes(shards, rows)
    assert sorted(found) == sorted(rows.tolist())
    for row, (neuron_ids, values) in found.items():
        code, part = shards.code(row), images.part(row, row + 1)
        assert neuron_ids.tolist() == code.neuron_ids.tolist()
        assert values.astype(np.float32).tolist() == code.values.tolist()
        assert sorted(neuron_ids.tolist()) == sorted(part.neuron_ids.tolist())
    assert {len(ThumbnailStore(shards).thumbnail(row)) for row in rows.tolist()} == {3_000}


def test_every_read_is_timed(shards):
    answer = measure(shards)
    assert answer.keys() == {"codes_ms", "single_codes_ms", "thumbnails_ms"}
    assert min(answer.values()) > 0


def test_figures_are_made_of_what_was_run(tmp_path):
    asked, samples, said = [], Samples(), []

    def run_once(module, *arguments):
        asked.append((module, *arguments))
        return {"codes_ms": float(len(asked)), "single_codes_ms": 3.0, "thumbnails_ms": 0.25}

    measure_reads(tmp_path, run_once, samples, said.append, 3)
    assert asked == [("reads", str(tmp_path), "16384", "65536")] * 3
    assert not_measured(READ_FIGURES, samples) == []
    found = {
        title.partition(" (aim")[0]: (must.value, must.holds) for title, must in musts(READ_FIGURES, samples).items()
    }
    assert found == {"codes of 100 random rows, ms": (2.0, False), "24 random thumbnails, ms": (0.25, True)}
    assert said == ["random rows: 100 codes in 2.000 ms, one by one in 3.000 ms; 24 thumbnails in 0.250 ms"]
