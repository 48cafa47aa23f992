import json
import os
from pathlib import Path

import pytest

from phosphene.errors import SettingError
from training.journal import Journal, JournalLine, read_journal


def line(step: int, run: str = "r1") -> JournalLine:
    return JournalLine(
        run=run,
        step=step,
        loss=0.5,
        fvu=0.5,
        l0=32.0,
        dead_share=0.25,
        learning_rate=1e-3,
        skipped_count=0,
        sample_count=step * 64,
        samples_per_s=1000.0,
        threshold_ema=0.75,
    )


def steps(path: Path) -> list[int]:
    return [entry["step"] for entry in read_journal(path, run="r1")]


def test_lines_are_json_and_readable_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.jsonl"
    with Journal(path, run="r1", step=0) as journal:
        journal.write(line(10))
        assert json.loads(path.read_text()) == {
            "run": "r1",
            "step": 10,
            "loss": 0.5,
            "fvu": 0.5,
            "l0": 32.0,
            "dead_share": 0.25,
            "learning_rate": 1e-3,
            "skipped_count": 0,
            "sample_count": 640,
            "samples_per_s": 1000.0,
            "threshold_ema": 0.75,
        }


def test_a_pipe_is_refused_and_a_link_stays_one(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(SettingError, match="journal .* is no regular file"):
        Journal(pipe, run="r1", step=0)
    assert pipe.is_fifo()
    link.symlink_to("journal.jsonl")
    with Journal(link, run="r1", step=0) as journal:
        journal.write(line(10))
    assert link.is_symlink()
    assert steps(tmp_path / "journal.jsonl") == [10]


def test_what_came_after_the_checkpoint_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, run="r1", step=0) as journal:
        for step in (10, 20, 30, 40):
            journal.write(line(step))
    with Journal(path, run="r1", step=25) as journal:
        assert steps(path) == [10, 20]
        journal.write(line(30))
        journal.sync()
    assert steps(path) == [10, 20, 30]
    with Journal(path, run="r1", step=0):
        assert steps(path) == []


def test_a_line_that_a_kill_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, run="r1", step=0) as journal:
        for step in (10, 20):
            journal.write(line(step))
    path.write_bytes(path.read_bytes()[:-7])
    with Journal(path, run="r1", step=20) as journal:
        journal.write(line(20))
    assert steps(path) == [10, 20]


@pytest.mark.parametrize("content", [b"my thesis\n", b'{"run": "r2", "step": 10}\n', b"[1]\n", b'{"run": "r1"}\n'])
def test_what_is_not_this_runs_curve_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    with pytest.raises(SettingError, match="--journal .* holds the curve of another run, or something else"):
        Journal(path, run="r1", step=0)
    assert path.read_bytes() == content
