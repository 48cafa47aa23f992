import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from phosphene.bundle import load_bundle
from training.__main__ import main


def arguments(corpus: Path, encoder: Path, out: Path, *more: str) -> list[str]:
    options: dict[str, object] = {
        "--encoder": encoder,
        "--block": 1,
        "--neurons": 48,
        "--k": 4,
        "--steps": 300,
        "--threads": 1,
        "--out": out,
    }
    return ["fit", str(corpus), *(str(part) for pair in options.items() for part in pair), *more]


def test_the_command_publishes_and_says_so_and_the_second_time_finds_it_finished(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(corpus_folder, encoder_folder, tmp_path / "b")
    assert main(command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    events = list(dict.fromkeys(line["event"] for line in lines))
    assert events == ["digest", "harvest", "train", "calibrated", "published"]
    assert lines[-1]["id"] == load_bundle(tmp_path / "b").id
    assert main(command) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(dict.fromkeys(line["event"] for line in lines)) == ["digest", "already finished"]


def test_a_refusal_is_one_message_and_leaves_nothing(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(corpus_folder, encoder_folder, tmp_path / "b", "--block", "9")) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: block 9 does not exist")
    assert "Traceback" not in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_at_random_moments_and_run_again_publishes_the_same_bundle(
    corpus_folder: Path, encoder_folder: Path, tmp_path: Path, root: Path
) -> None:
    whole, killed = tmp_path / "whole" / "b", tmp_path / "killed" / "b"
    commands = {
        out: [sys.executable, "-m", "training", *arguments(corpus_folder, encoder_folder, out)]
        for out in (whole, killed)
    }
    begun_s = time.monotonic()
    subprocess.run(commands[whole], cwd=root, stdout=subprocess.DEVNULL, check=True)
    whole_s = time.monotonic() - begun_s
    random_share = random.Random(0)
    shares = (0.4, *(random_share.uniform(0.3, 0.9) for _ in range(9)))
    kill_count = 0
    # Shares of a whole run, so that they fall into it on a fast machine as on a slow one.
    for limit_s in (*(share * whole_s for share in shares), 600):
        process = subprocess.Popen(commands[killed], cwd=root, stdout=subprocess.DEVNULL)
        try:
            assert process.wait(timeout=limit_s) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kill_count += 1
    assert kill_count > 0
    assert load_bundle(killed).id == load_bundle(whole).id
