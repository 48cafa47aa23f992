import dataclasses
import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from phosphene.errors import SettingError
from tests.training.test_journal import line
from training.metrics import MetricsFile


def samples(path: Path) -> dict[tuple[str, str], float]:
    families = list(text_string_to_metric_families(path.read_text()))
    assert all(family.documentation for family in families)
    return {(sample.name, sample.labels["run"]): sample.value for family in families for sample in family.samples}


def test_the_file_holds_the_newest_figures_of_every_run(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "training.prom"
    metrics = MetricsFile(path)
    metrics.write("first", line(10))
    metrics.write("second", line(10))
    metrics.write("first", line(20))
    found = samples(path)
    assert found[("phosphene_training_step", "first")] == 20
    assert found[("phosphene_training_step", "second")] == 10
    assert found[("phosphene_training_loss_ratio", "first")] == 0.5
    assert found[("phosphene_training_fvu_ratio", "first")] == 0.5
    assert found[("phosphene_training_l0_neurons", "first")] == 32
    assert found[("phosphene_training_dead_ratio", "first")] == 0.25
    assert found[("phosphene_training_learning_rate", "first")] == 1e-3
    assert found[("phosphene_training_threshold_ema", "first")] == 0.75
    assert found[("phosphene_training_samples_total", "first")] == 1280
    assert found[("phosphene_training_skipped_steps_total", "first")] == 0
    assert [entry.name for entry in path.parent.iterdir()] == ["training.prom"]


def test_a_figure_that_a_run_does_not_have_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "training.prom"
    MetricsFile(path).write("first", dataclasses.replace(line(10), threshold_ema=None))
    assert ("phosphene_training_threshold_ema", "first") not in samples(path)


def test_types_are_told(tmp_path: Path) -> None:
    path = tmp_path / "training.prom"
    MetricsFile(path).write("first", line(10))
    text = path.read_text()
    assert "# TYPE phosphene_training_step gauge" in text
    assert "# TYPE phosphene_training_skipped_steps_total counter" in text


def test_a_pipe_is_refused_and_a_link_stays_one(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link.prom"
    os.mkfifo(pipe)
    with pytest.raises(SettingError, match="metrics file .* is no regular file"):
        MetricsFile(pipe)
    assert pipe.is_fifo()
    link.symlink_to("training.prom")
    MetricsFile(link).write("run", line(10))
    assert link.is_symlink()
    assert samples(tmp_path / "training.prom")
