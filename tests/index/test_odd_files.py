"""What lies in real folders: odd names, things that are no files, files that go; every image is counted once."""

from __future__ import annotations

import csv
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from index.build import BuildJob, build_index
from index.reader import open_index
from phosphene.errors import CorpusError
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
        build_index(job, Remover(folder / "19.png"))
    with open_index(tmp_path / "index") as index:
        # Seen are the 20 and the four files beside them; one of the 20 has gone.
        assert (index.row_count, index.image_count, index.quarantined_count) == (24, 21, 3)
        rows = {index.image(row).uri: row for row in range(index.row_count)}
        assert index.image(rows["a\nb.png"]).quarantine_reason is None
        assert index.row_of(index.image(rows["twice.png"]).sha256) == rows["03.png"]
    with (tmp_path / "index" / "quarantine.csv").open(newline="", encoding="utf-8") as file:
        listed = {row["uri"]: row for row in csv.DictReader(file)}
    assert set(listed) == {"19.png", "broken.png", "empty.jpg"}
    assert all(rows[uri] == int(row["row"]) and row["reason"] for uri, row in listed.items())
    assert "cannot be read" in listed["19.png"]["reason"]


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
