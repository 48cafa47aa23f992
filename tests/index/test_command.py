"""The command line, and what it tells while it works."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from index.__main__ import main
from index.dense_clusters import dense_density
from index.metrics import MetricsFile
from index.progress import LineProgress, open_progress
from index.reader import open_index
from index.show import describe_index
from index.stages import MeasuredProgress
from tests.index.quiet import Notes


def test_build_tells_in_json_lines_and_ends_with_the_id(
    corpus: Path, bundle: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--shard-images", "16", "--batch", "4", "--threads", "1", "--top", "10", "--spread", "6"]
    command = ["build", str(corpus), "--bundle", str(bundle), "--out", str(tmp_path / "index"), *options]
    assert main(command) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["stage"] for line in lines if line["event"] == "begin"] == ["digest", "encode", "assemble"]
    assert any("quarantined 1 of 40 images: 0005.png" in line.get("text", "") for line in lines)
    with open_index(built) as index:
        assert json.loads(out)["id"] == index.id
    answer = json.loads(out)
    assert answer["was_finished"] is False
    assert (answer["images"], answer["quarantined_images"], answer["neurons"]) == (39, 1, 96)
    assert answer["size_bytes"] == sum(
        path.stat().st_size
        for path in (tmp_path / "index").rglob("*")
        if path.is_file() and path.name != "manifest.json"
    )
    assert list(answer["stage_s"]) == ["digest", "encode", "assemble"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["was_finished"] is True


def test_a_place_that_cannot_be_written_is_named(
    corpus: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["build", str(corpus), "--bundle", str(bundle), "--out", str(tmp_path / "file" / "index")]) == 2
    assert f"({tmp_path / 'file'})" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "mine"


def test_show_prints_a_summary(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(built), "--names", "3"]) == 0
    text = capsys.readouterr().out
    with open_index(built) as index:
        assert index.id in text
        summary, is_named = index.summary, any(index.neuron(neuron_id).names for neuron_id in range(96))
    for part in ("39 indexed, 1 quarantined", "density of the living neurons", "thumbnails"):
        assert part in text
    assert ("best named neurons" in text) == is_named
    least = dense_density(mean_l0=summary.mean_l0, neuron_count=summary.neuron_count)
    count = len(summary.left_out_neuron_ids)
    assert f"{count} dense neurons, which fire on more than {least:.0%} of the images, are left out" in text


@pytest.mark.parametrize("number", ["-1", "1000001", "nan", "1.5", "9" * 5000])
def test_a_number_of_rows_has_limits(built: Path, capsys: pytest.CaptureFixture[str], number: str) -> None:
    for command in (["show", str(built), "--names"], ["diff", str(built), str(built), "--count"]):
        with pytest.raises(SystemExit, match="2"):
            main([*command, number])
        told = capsys.readouterr().err
        assert f"argument {command[-1]}: {number!r} is not a whole number of rows from 0 to 1,000,000" in told


@pytest.mark.parametrize("place", ["", ".", "..", "/"])
def test_a_place_without_a_name_is_refused_before_any_work(
    corpus: Path,
    bundle: Path,
    built: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    for command in (
        ["build", str(corpus), "--bundle", str(bundle)],
        ["compact", str(built)],
        ["take-down", str(built), "--uri", "0001.png"],
        ["flag", str(built), "--neuron", "3"],
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*command, "--out", place])
        assert f"argument --out: {place!r} names no folder of its own" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [tmp_path / "inside"]


@pytest.mark.parametrize("width", [40, 80])
def test_show_keeps_ids_whole_on_a_terminal(built: Path, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    with open_index(built) as index:
        console.print(describe_index(built, index, name_count=3))
        said = "".join(console.file.getvalue().split())
        assert all(one in said for one in (index.id, index.plan_id, index.code_id))
    assert "…" not in said


def test_show_is_printed_in_any_locale(built: Path, root: Path) -> None:
    command = [sys.executable, "-m", "index", "show", str(built)]
    for encoding in ("ascii", "latin-1"):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        shown = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=True)
        assert "density of the living neurons" in shown.stdout.decode(encoding)


def test_a_list_that_is_not_there_is_named(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "none.txt"
    assert main(["take-down", str(built), "--list", str(listed), "--out", str(tmp_path / "down")]) == 2
    assert f"({listed}); name one that is there" in capsys.readouterr().err
    assert main(["flag", str(built), "--list", str(tmp_path), "--out", str(tmp_path / "flags")]) == 2
    assert f"({tmp_path}); name a file" in capsys.readouterr().err


def test_verify_passes_and_refuses(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(built)]) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == 3
    assert main(["verify", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err


def test_lines_come_at_intervals_with_rate_and_remaining_time() -> None:
    now_s = [0.0]
    stream = io.StringIO()
    progress = LineProgress(stream.write, clock=lambda: now_s[0])
    progress.begin("encode", 100, 20, "images")
    for _ in range(8):
        now_s[0] += 1
        progress.advance(10)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["begin", "progress", "progress"]
    assert (lines[1]["done"], lines[1]["rate_per_s"], lines[1]["eta_s"]) == (70, 10.0, 3.0)
    assert (lines[2]["done"], lines[2]["eta_s"]) == (100, 0.0)


def test_a_terminal_gets_bars() -> None:
    stream = io.StringIO()
    with open_progress(Console(file=stream, force_terminal=True, width=100)) as progress:
        progress.begin("encode", 4, 0, "images")
        progress.advance(4)
        progress.say("one image is odd")
    assert "4/4" in stream.getvalue()
    assert "one image is odd" in stream.getvalue()
    assert "{" not in stream.getvalue()


def test_a_metrics_file_tells_how_far_a_job_is_and_what_came_out(
    corpus: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--shard-images",
        "16",
        "--batch",
        "4",
        "--threads",
        "1",
        "--metrics-file",
        str(tmp_path / "m" / "i.prom"),
    ]
    command = ["build", str(corpus), "--bundle", str(bundle), "--out", str(tmp_path / "index"), *options]
    assert main(command) == 0
    capsys.readouterr()
    text = (tmp_path / "m" / "i.prom").read_text()
    for line in (
        'phosphene_index_stage_done{job="index",stage="encode"} 40.0',
        'phosphene_index_stage_total{job="index",stage="digest"} 40.0',
        'phosphene_index_finished{job="index"} 1.0',
        'phosphene_index_quarantined_images{job="index"} 1.0',
    ):
        assert line in text.splitlines()
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["i.prom"]


def test_stages_are_measured_and_told_at_intervals(tmp_path: Path) -> None:
    now_s = [0.0]
    file = MetricsFile(tmp_path / "job.prom", "photos")
    progress = MeasuredProgress(Notes(), file, clock=lambda: now_s[0])
    progress.begin("encode", 100, 20, "images")
    for _ in range(6):
        now_s[0] += 1
        progress.advance(10)
    assert 'phosphene_index_stage_done{job="photos",stage="encode"} 70.0' in (tmp_path / "job.prom").read_text()
    assert 'phosphene_index_finished{job="photos"} 0.0' in (tmp_path / "job.prom").read_text()
    progress.begin("assemble", 7, 0, "steps")
    now_s[0] += 5
    assert {name: stage.duration_s for name, stage in progress.stages.items()} == {"encode": 6.0, "assemble": 5.0}
    assert progress.stages["encode"].done == 80
