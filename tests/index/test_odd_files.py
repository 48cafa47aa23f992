"""What lies in real folders: odd names, things that are no files, files that go; every image is counted once."""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import re
import socket
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.__main__ import main
from index.build import BuildJob, build_index
from index.outcome import outcome_figures
from index.reader import open_index
from phosphene.errors import ArtefactMismatch, CorpusError
from phosphene.manifest import open_artefact
from tests.full_disk import files_of_at_most
from tests.index.conftest import SMALL
from tests.index.quiet import Notes
from tests.index.small_world import draw, write_corpus


class Remover(Notes):
    """An image goes after the folder has been listed, before it is read."""

    def __init__(self, image: Path) -> None:
        super().__init__()
        self._image = image

    def begin(self, title: str, total: int, done: int, unit: str) -> None:
        super().begin(title, total, done, unit)
        if title == "digest":
            self._image.unlink()


@pytest.mark.parametrize("worker_count", [1, 2])
def test_a_folder_of_odd_things_is_indexed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker_count: int
) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for row in range(20):
        (folder / f"{row:02d}.png").write_bytes(draw("red", "circle", generator))
    (folder / "a\nb.png").write_bytes(draw("blue", "bar", generator))
    (folder / "twice.png").write_bytes((folder / "03.png").read_bytes())
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")
    (folder / "empty.jpg").write_bytes(b"")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(draw("red", "bar", generator))
    # A regular file that opens, and cannot be read, whoever asks.
    (folder / "unreadable.png").symlink_to("/proc/self/mem")
    monkeypatch.chdir(folder)  # A socket's path has 108 bytes at most.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.png")
        job = BuildJob(
            corpus=str(folder),
            bundle=bundle,
            out=tmp_path / "index",
            config=SMALL,
            max_bad_ratio=0.2,
            worker_count=worker_count,
        )
        notes = Remover(folder / "19.png")
        result = build_index(job, notes)
    # Whatever lies there is indexed, quarantined or skipped: 20 photos, 5 files beside them, 5 things that are none.
    figures = outcome_figures(result)
    counts = [figures[name] for name in ("images", "quarantined_images", "skipped_files", "seen_files")]
    assert counts == [21, 4, 5, 30]
    assert sum(counts[:3]) == counts[3] == sum(len(names) for _, _, names in os.walk(folder)) + 1
    assert result.skipped_counts == {
        "hidden": 1,
        "links to nowhere or in a circle": 1,
        "of other kinds": 1,
        "pipes, sockets or devices": 2,
    }
    assert "skipped 5 of 30 files: 1 hidden, 1 links to nowhere" in notes.sentences[0]
    with open_index(tmp_path / "index") as index:
        assert (index.row_count, index.image_count, index.quarantined_count) == (25, 21, 4)
        rows = {index.image(row).uri: row for row in range(index.row_count)}
        assert index.image(rows["a\nb.png"]).quarantine_reason is None
        assert index.row_of(index.image(rows["twice.png"]).sha256) == rows["03.png"]
    with (tmp_path / "index" / "quarantine.csv").open(newline="", encoding="utf-8") as file:
        listed = {row["uri"]: row for row in csv.DictReader(file)}
    assert set(listed) == {"19.png", "broken.png", "empty.jpg", "unreadable.png"}
    assert all(rows[uri] == int(row["row"]) and row["reason"] for uri, row in listed.items())
    assert "cannot be read: No such file" in listed["19.png"]["reason"]
    assert "cannot be read: Input/output error" in listed["unreadable.png"]["reason"]


def photos_and_a_locked_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, bad_count: int = 0) -> Path:
    folder, generator = tmp_path / "photos", np.random.default_rng(0)
    (folder / "locked").mkdir(parents=True)
    for row in range(20):
        (folder / f"{row:02d}.png").write_bytes(b"" if row < bad_count else draw("red", "circle", generator))
    scandir = os.scandir

    def scan(path: str | Path | int) -> object:
        if str(path) == str(folder / "locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    return folder


def test_a_folder_that_cannot_be_listed_is_told_of_as_a_folder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photos_and_a_locked_folder(tmp_path, monkeypatch)
    job = BuildJob(corpus=str(folder), bundle=bundle, out=tmp_path / "index", config=SMALL)
    notes = Notes()
    figures = outcome_figures(build_index(job, notes))
    names = ("images", "quarantined_images", "skipped_files", "seen_files", "unlisted_folders")
    assert [figures[name] for name in names] == [20, 0, 0, 20, 1]
    assert notes.sentences == [
        "1 folders of the corpus cannot be listed: 'locked/'; whatever images they hold are missing from the index"
    ]
    # A finished index says the same of itself.
    again = outcome_figures(build_index(job, Notes()))
    assert [again[name] for name in names] == [20, 0, 0, 20, 1]
    assert main(["show", str(job.out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "20 indexed, 0 quarantined" in shown
    assert "folders 1 could not be listed" in shown
    lines = (job.out / "quarantine.csv").read_text().splitlines()
    assert lines[1].startswith("20,locked/,\"folder 'locked/' cannot be listed: Permission denied")
    # Made readable, it is another corpus, which is not taken for this one.
    monkeypatch.undo()
    (folder / "locked" / "more.png").write_bytes(draw("blue", "bar", np.random.default_rng(1)))
    with pytest.raises(ArtefactMismatch, match="another plan"):
        build_index(job, Notes())


def test_such_a_folder_is_no_bad_image_and_refused_where_nothing_may_be_missing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos_and_a_locked_folder(tmp_path, monkeypatch, bad_count=2)
    job = BuildJob(corpus=str(folder), bundle=bundle, out=tmp_path / "index", config=SMALL)
    with pytest.raises(CorpusError, match=r"1 folders .* cannot be listed: 'locked/'; with --max-bad-ratio 0 nothing"):
        build_index(replace(job, max_bad_ratio=0.0), Notes())
    assert not job.out.exists()
    with pytest.raises(CorpusError, match="2 of 20 images cannot be used, 10.0% so far"):
        build_index(replace(job, max_bad_ratio=0.09), Notes())
    # Two of twenty images are a tenth of them; with the folder there would be three of 21.
    notes = Notes()
    figures = outcome_figures(build_index(replace(job, max_bad_ratio=0.1), notes))
    assert (figures["quarantined_images"], figures["unlisted_folders"]) == (2, 1)
    assert any(each.startswith("quarantined 2 of 20 images: 00.png: ") for each in notes.sentences)


def test_a_corpus_of_nothing_but_such_folders_is_refused_before_any_work(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos_and_a_locked_folder(tmp_path, monkeypatch)
    for image in folder.glob("*.png"):
        image.unlink()
    job = BuildJob(corpus=str(folder), bundle=bundle, out=tmp_path / "index", config=SMALL)
    with pytest.raises(CorpusError, match="'locked/'; there is no image beside them: make them readable"):
        build_index(job, Notes())
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


def test_members_of_tars_and_rows_of_lists_are_counted_too(bundle: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures = {f"{row:02d}.png": draw("red", "circle", generator) for row in range(18)}
    members = pictures | {
        "bad.jpg": b"no image",
        "00.txt": b"a circle",
        "stray.txt": b"",
        "notes.md": b"",
        ".h.png": b"",
    }
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["file", *pictures, "bad.jpg", ""]))
    for name, data in (pictures | {"bad.jpg": b"no image"}).items():
        (tmp_path / name).write_bytes(data)
    for source, skipped_count in (("s.tar", 3), ("list.csv", 0)):
        job = BuildJob(corpus=str(tmp_path / source), bundle=bundle, out=tmp_path / f"{source}-index", config=SMALL)
        figures = outcome_figures(build_index(job, Notes()))
        counts = [figures[name] for name in ("images", "quarantined_images", "skipped_files", "seen_files")]
        assert counts == [18, 1, skipped_count, 19 + skipped_count]
    # All members are seen, but the text that belongs to an image.
    assert len(members) - 1 == 19 + 3


def test_a_job_that_ends_for_bad_images_lists_them_all(bundle: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "pictures", 20, corrupt=tuple(range(20)))
    job = BuildJob(corpus=str(corpus), bundle=bundle, out=tmp_path / "index", config=SMALL, max_bad_ratio=0.5)
    with pytest.raises(CorpusError, match=r"--max-bad-ratio.*index\.partial/quarantine\.csv"):
        build_index(job, Notes())
    with (tmp_path / "index.partial" / "quarantine.csv").open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert [row["uri"] for row in listed] == [f"{row:04d}.png" for row in range(16)]  # The first shard.
    # Mended, the job goes on, and the list goes with its folder.
    build = BuildJob(corpus=str(corpus), bundle=bundle, out=tmp_path / "index", config=SMALL, max_bad_ratio=1.0)
    with pytest.raises(CorpusError, match="none of the 20"):
        build_index(build, Notes())


class Piper(Notes):
    """An image becomes a pipe at the beginning of a stage; nobody will ever write to it."""

    def __init__(self, image: Path, stage: str) -> None:
        super().__init__()
        self._image, self._stage = image, stage

    def begin(self, title: str, total: int, done: int, unit: str) -> None:
        super().begin(title, total, done, unit)
        if title == self._stage:
            self._image.unlink()
            os.mkfifo(self._image)


def test_an_image_that_becomes_a_pipe_does_not_stop_the_job(bundle: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "pictures", 20)
    job = BuildJob(corpus=str(corpus), bundle=bundle, out=tmp_path / "index", config=SMALL)
    build_index(job, Piper(corpus.parent / "0003.png", "digest"))
    with open_index(job.out) as index:
        assert index.quarantined_count == 1
        assert "no regular file any more" in str(index.image(3).quarantine_reason)


def test_an_image_that_becomes_a_pipe_while_it_is_indexed_has_changed(bundle: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "pictures", 20)
    job = BuildJob(corpus=str(corpus), bundle=bundle, out=tmp_path / "index", config=SMALL)
    with pytest.raises(CorpusError, match=r"1 images changed.*0003\.png"):
        build_index(job, Piper(corpus.parent / "0003.png", "encode"))


def test_one_bad_image_in_a_hundred_is_put_up_with(bundle: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "pictures", 100, corrupt=(57,))
    job = BuildJob(corpus=str(corpus), bundle=bundle, out=tmp_path / "index", config=SMALL)
    figures = outcome_figures(build_index(job, Notes()))
    assert (figures["images"], figures["quarantined_images"], figures["seen_files"]) == (99, 1, 100)
    with pytest.raises(CorpusError, match="1 of 100 images cannot be used"):
        build_index(replace(job, out=tmp_path / "strict", max_bad_ratio=0.005), Notes())


@pytest.mark.parametrize(
    ("worker_count", "byte_count"), [(1, 1_000), (1, 12_000), pytest.param(2, 1_000, marks=pytest.mark.slow)]
)
def test_a_full_disk_ends_the_job_which_goes_on_once_there_is_room(
    built: Path, bundle: Path, corpus: Path, tmp_path: Path, worker_count: int, byte_count: int
) -> None:
    job = BuildJob(corpus=str(corpus), bundle=bundle, out=tmp_path / "index", config=SMALL, worker_count=worker_count)
    with files_of_at_most(byte_count), pytest.raises(OSError, match="File too large"):
        build_index(job, Notes())
    assert multiprocessing.active_children() == []
    assert not job.out.exists()
    assert build_index(job, Notes()).manifest.id == open_artefact(built, kind="index").id
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no file system here that takes no folders from anybody")
def test_a_place_that_takes_no_folders_is_named(corpus: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(corpus), "--bundle", str(bundle), "--out", "/sys/kernel/phosphene-index"]) == 2
    assert re.search(r"error: .*/sys/kernel/phosphene-index.*; .*choose another place", capsys.readouterr().err)
