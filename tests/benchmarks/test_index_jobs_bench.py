"""The parts of `make bench-index` that measure shards and jobs."""

import numpy as np
import pytest

from benchmarks.figures import musts, not_measured
from benchmarks.index_load.finalisation import encoded_rows
from benchmarks.index_load.jobs import JOB_FIGURES, JobPlan, measure_jobs
from benchmarks.index_load.synthetic import Recipe, make_rows
from benchmarks.index_load.whole_job import write_photos
from benchmarks.samples import Samples
from index.codes_store import CodesStore
from index.shard import write_rows
from phosphene.images import thumbnail


def test_what_is_finished_is_a_shard(tmp_path):
    images, _ = make_rows(Recipe(image_count=300, query_count=5, neuron_count=1_024, class_count=20))
    rows = encoded_rows(images)
    assert {len(rows.records), len(rows.codes), len(rows.thumbnails)} == {300}
    write_rows(tmp_path, rows, neuron_count=1_024)
    codes = CodesStore(tmp_path)
    for row in (0, 150, 299):
        part = images.part(row, row + 1)
        assert sorted(codes.code(row).neuron_ids.tolist()) == sorted(part.neuron_ids.tolist())
    assert np.load(tmp_path / "embeddings.npy").shape == (300, 512)


def test_photos_differ_and_decode(tmp_path):
    write_photos(tmp_path / "photos", 70, size=(60, 40), quality=80)
    contents = {path.read_bytes() for path in (tmp_path / "photos").iterdir()}
    assert len(contents) == 70
    assert thumbnail(contents.pop(), size_px=32)


def test_figures_are_made_of_what_was_run(tmp_path):
    answers = {
        "finalisation": {"shard_cpu_s": 9.0, "score_cpu_s": 7.0},
        "share": {"bare_cpu_s": 19.0, "kept_bare_cpu_s": 18.0, "job_cpu_s": 20.0},
        "1000": {"peak_bytes": 500e6},
        "10000": {"peak_bytes": 520e6},
    }

    def run_once(module, *arguments):
        for key in (*arguments, module):
            if key in answers:
                return answers[key]
        raise KeyError(module)

    samples, said = Samples(), []
    plan = JobPlan(round_count=2, shard_images=100, job_images=10, memory_images=1_000)
    measure_jobs(plan, tmp_path, run_once, samples, said.append)
    assert not_measured(JOB_FIGURES, samples) == []
    found = {title.partition(" (aim")[0]: must.value for title, must in musts(JOB_FIGURES, samples).items()}
    assert found == {
        "whole shard finalisation, CPU-s per million images": 9.0,
        "whole job, (encoder + decode CPU, bare) / job CPU": 0.95,
        "whole job, memory with 10x more images / memory": pytest.approx(1.04),
    }
    assert "0.90 of its CPU" in said[-2]
    assert "2222 bytes for each more" in said[-1]
