"""A real `python -m training fit` on the embedded encoder, killed by the system at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phosphene.bundle import load_bundle
from training.journal import read_journal

pytestmark = pytest.mark.slow


def command(root: Path, corpus: Path, out: Path) -> list[str]:
    options: dict[str, object] = {
        "--encoder": root / "embedded" / "tiny-clip",
        "--block": 2,
        "--tokens": "patches",
        "--neurons": 256,
        "--k": 8,
        "--steps": 1500,
        "--batch": 64,
        "--threads": 1,
        "--out": out,
    }
    return [
        sys.executable,
        "-m",
        "training",
        "fit",
        str(corpus),
        *(str(part) for pair in options.items() for part in pair),
    ]


def curve(out: Path) -> list[dict[str, Any]]:
    (run,) = (out.with_name(f"{out.name}.work") / "training").iterdir()
    lines = read_journal(run / "journal.jsonl", run=run.name)
    return [{key: value for key, value in line.items() if key != "samples_per_s"} for line in lines]


def killed(arguments: list[str], root: Path, is_due: Callable[[], bool]) -> bool:
    """Run the command and kill it once it is due; False where it ended before."""
    with subprocess.Popen(arguments, cwd=root, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if is_due():
                process.send_signal(signal.SIGKILL)
                process.wait()
                return True
            time.sleep(0.001)
    assert process.returncode == 0
    return False


def test_killed_at_random_and_within_checkpoints_it_ends_in_the_same_bits_and_curve(
    corpus_folder: Path, tmp_path: Path, root: Path
) -> None:
    whole, out = tmp_path / "whole" / "b", tmp_path / "killed" / "b"
    subprocess.run(command(root, corpus_folder, whole), cwd=root, stdout=subprocess.DEVNULL, check=True)
    work = out.with_name("b.work")

    def writes_checkpoint() -> bool:
        return any(work.glob("training/*/checkpoints/*.partial"))

    def after(step: int) -> Callable[[], bool]:
        """Once the curve has a line of the step: on a fast machine as on a slow one."""
        return lambda: any(
            path.read_bytes().count(b"\n") * 10 >= step for path in work.glob("training/*/journal.jsonl")
        )

    generator = random.Random(0)
    moments = [after(generator.randrange(*bounds)) for bounds in ((100, 400), (600, 1000))]
    arguments = command(root, corpus_folder, out)
    kill_count = 0
    # A checkpoint is soon written: a fast disk may never be seen at it.
    for is_due in (*moments, writes_checkpoint, writes_checkpoint, writes_checkpoint):
        if not killed(arguments, root, is_due):
            break
        kill_count += 1
    assert kill_count > 1
    subprocess.run(arguments, cwd=root, stdout=subprocess.DEVNULL, check=True)
    assert load_bundle(out).id == load_bundle(whole).id
    assert curve(out) == curve(whole)
    assert [line["step"] for line in curve(out)] == list(range(10, 1501, 10))


def test_two_processes_do_not_train_one_bundle(corpus_folder: Path, tmp_path: Path, root: Path) -> None:
    arguments = command(root, corpus_folder, tmp_path / "b")
    with subprocess.Popen(arguments, cwd=root, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        try:
            for line in first.stdout:
                if '"train"' in line:
                    break
            first.send_signal(signal.SIGSTOP)  # It must not end before the second has begun.
            second = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=False)
        finally:
            first.kill()
    assert second.returncode == 2
    assert "another process works in 'b.work'" in second.stderr
