"""The metrics file of an index job replaces a regular file and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from index.metrics import MetricsFile
from phosphene.errors import SettingError


def test_a_pipe_is_refused_and_a_link_stays_one(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link.prom"
    os.mkfifo(pipe)
    with pytest.raises(SettingError, match="metrics file .* is no regular file"):
        MetricsFile(pipe, "photos")
    assert pipe.is_fifo()
    link.symlink_to("job.prom")
    MetricsFile(link, "photos").write({}, {})
    assert link.is_symlink()
    assert (tmp_path / "job.prom").read_text().startswith("# HELP phosphene_")
