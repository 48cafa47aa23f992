"""The demo on one's own photos: one of them is held out, and the rest become the corpus."""

import csv
import io
import os
import tarfile
from pathlib import Path

import pytest

from examples.demo import hold_one_out
from phosphene.corpus import open_corpus
from phosphene.errors import CorpusError
from tests.fakes import CORPUS


def test_one_photo_is_held_out_and_the_others_are_the_corpus(tmp_path: Path) -> None:
    photos, folder = tmp_path / "photos", tmp_path / "demo"
    names = [f"{label}/{place}.png" for label in ("cat", "dog") for place in range(3)]
    for name, data in zip(names, CORPUS.values(), strict=False):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(data)
    (photos / "dog" / "0.png").write_bytes(b"no image")  # the first that may be held out
    listing, query = hold_one_out(str(photos), folder)
    assert query.read_bytes() == (photos / "dog" / "1.png").read_bytes()
    corpus = open_corpus(listing)
    assert [(row.uri.rsplit("photos/")[-1], row.label) for row in corpus.rows] == [
        (name, name[:3]) for name in names if name != "dog/1.png"
    ]
    assert corpus.read(0) == (photos / names[0]).read_bytes()


def test_a_list_of_photos_keeps_its_captions(tmp_path: Path) -> None:
    for place, data in enumerate(list(CORPUS.values())[:3]):
        (tmp_path / f"{place}.png").write_bytes(data)
    rows = "\n".join(f'{place}.png,,"a photo, number {place}"' for place in range(3))
    (tmp_path / "photos.csv").write_text(f"file,label,caption\n{rows}\n")
    listing, query = hold_one_out(str(tmp_path / "photos.csv"), tmp_path / "demo")
    assert query.name == "1.png"
    with Path(listing).open(newline="", encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    assert captions == ["a photo, number 0", "a photo, number 2"]


def test_a_folder_that_cannot_be_listed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, scandir = tmp_path / "photos", os.scandir
    (photos / "locked").mkdir(parents=True)
    for place, data in enumerate(list(CORPUS.values())[:3]):
        (photos / f"{place}.png").write_bytes(data)

    def scan(path: str | Path | int) -> object:
        if str(path) == str(photos / "locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    listing, query = hold_one_out(str(photos), tmp_path / "demo")
    named = [row.uri.rsplit("/")[-1] for row in open_corpus(listing).rows]
    assert sorted([*named, query.name]) == ["0.png", "1.png", "2.png"]


def test_a_url_is_refused_in_words(tmp_path: Path) -> None:
    for place, data in enumerate(list(CORPUS.values())[:3]):
        (tmp_path / f"{place}.png").write_bytes(data)
    with pytest.raises(CorpusError, match="at least 2 image files"):
        hold_one_out(f"file://{tmp_path}", tmp_path / "demo")


def test_tars_are_refused_in_words(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for name, data in list(CORPUS.items())[:3]:
            entry = tarfile.TarInfo(f"{name}.png")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with pytest.raises(CorpusError, match="at least 2 image files"):
        hold_one_out(str(tmp_path / "photos.tar"), tmp_path / "demo")
