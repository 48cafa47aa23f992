"""The metrics file of an index job, and of a training: replaces a regular file and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import training.metrics
from index.metrics import MetricsFile
from phosphene.errors import SettingError
from tests.training.test_journal import line


def keep_index(path: Path) -> None:
    MetricsFile(path, "photos").write({}, {})


def keep_training(path: Path) -> None:
    training.metrics.MetricsFile(path).write("run", line(10))


keepers = pytest.mark.parametrize("keep", [keep_index, keep_training])


@keepers
def test_a_pipe_or_a_folder_is_refused_and_stays(tmp_path: Path, keep: Callable[[Path], None]) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link, tmp_path):
        with pytest.raises(SettingError, match=f"metrics file '{path}' is no regular file"):
            keep(path)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "pipe"]


@keepers
@pytest.mark.parametrize("there_is_one", [True, False])
def test_a_link_stays_a_link(tmp_path: Path, keep: Callable[[Path], None], there_is_one: bool) -> None:
    link, file = tmp_path / "link.prom", tmp_path / "deep" / "job.prom"
    link.symlink_to(Path("deep") / "job.prom")
    if there_is_one:
        file.parent.mkdir()
        file.write_text("before")
    keep(link)
    assert link.is_symlink()
    assert file.read_text().startswith("# HELP phosphene_")
    assert [each.name for each in file.parent.iterdir()] == ["job.prom"]
