"""What the command line refuses of names and places, before a job reads or writes anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from index.__main__ import main
from phosphene.manifest import open_artefact

NOT_UTF8 = b"a\xff".decode(errors="surrogateescape")


def test_texts_that_are_not_utf8_are_named(
    corpus: Path, bundle: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / NOT_UTF8
    for command in (
        ["build", str(corpus), "--bundle", str(bundle), "--out", str(odd)],
        ["compact", str(built), "--out", str(odd)],
        ["take-down", str(built), "--uri", "0001.png", "--out", str(odd)],
        ["take-down", str(built), "--uri", "0001.png", "--reason", NOT_UTF8, "--out", str(tmp_path / "down")],
        ["show", str(odd)],
    ):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.endswith(r"a\udcff' is not UTF-8; rename the file or folder, or write it so" + "\n")
    assert list(tmp_path.iterdir()) == []


def test_a_job_does_not_begin_in_a_folder_that_is_not_utf8(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / NOT_UTF8).mkdir()
    monkeypatch.chdir(tmp_path / NOT_UTF8)
    assert main(["compact", str(built), "--out", "compacted"]) == 2
    assert r"a\udcff/compacted' is not UTF-8" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_the_file_of_a_generation_does_not_damage_an_artefact(
    built: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = Path(shutil.copytree(built, tmp_path / "index"))
    command = ["activate", str(index / "CURRENT"), "--bundle", f"b={bundle}", "--index", f"photos={index}"]
    assert main(command) == 2
    assert f"would lie in {str(index)!r}, an artefact" in capsys.readouterr().err
    open_artefact(index, kind="index")


@pytest.mark.parametrize("place", ["index/deep/job.prom", "out/job.prom", "out.partial/job.prom"])
def test_metrics_are_not_kept_in_an_artefact_or_one_to_be(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    index, file = Path(shutil.copytree(built, tmp_path / "index")), tmp_path / place
    assert main(["compact", str(index), "--out", str(tmp_path / "out"), "--metrics-file", str(file)]) == 2
    assert f"the metrics file {str(file)!r} would lie in" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    open_artefact(index, kind="index")


@pytest.mark.parametrize("command", ["build", "plan"])
def test_a_device_and_a_place_that_cannot_serve_are_refused_before_the_corpus_is_read(
    corpus: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for out, device, fault in (
        (tmp_path / "index", "gpu", "device 'gpu' is not one"),
        (tmp_path / "mine", "cpu", "exists and is no index"),
        (bundle / "index", "cpu", "which is an artefact of kind 'bundle'"),
    ):
        assert main([command, str(corpus), "--bundle", str(bundle), "--out", str(out), "--device", device]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert fault in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
