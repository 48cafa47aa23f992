"""The list of bad images: whatever they are called, it is read back as it was written."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.build import BuildJob, build_index
from index.image_table import ImageRecord, write_images
from index.quarantine import read_quarantine, unlisted_folders, write_quarantine
from index.reader import open_index
from index.verify import verify_index
from phosphene.errors import ArtefactDamaged
from tests.index.conftest import SMALL
from tests.index.quiet import Notes
from tests.index.shard_folders import image_record
from tests.index.small_world import draw

CELLS = st.text(st.sampled_from('a ,"\r\n\t\0ä\u2028') | st.characters(exclude_categories=["Cs"]), max_size=8)


def _record(row: int, uri: str, reason: str | None) -> ImageRecord:
    return image_record(row, uri=uri, quarantine_reason=reason)


def _written(folder: Path, bad: list[tuple[str, str]]) -> Path:
    shard = folder / "shard"
    shard.mkdir()
    write_images(shard, [_record(row, uri, reason) for row, (uri, reason) in enumerate(bad)])
    write_quarantine(folder / "bad.csv", [shard])
    return folder / "bad.csv"


@given(bad=st.lists(st.tuples(CELLS, CELLS), max_size=4))
def test_any_name_and_reason_come_back(tmp_path_factory: pytest.TempPathFactory, bad: list[tuple[str, str]]) -> None:
    path = _written(tmp_path_factory.mktemp("list"), bad)
    due = [(row, uri, reason) for row, (uri, reason) in enumerate(bad)]
    assert read_quarantine(path) == due
    with path.open(encoding="utf-8", newline="") as file:
        assert [(int(row), uri, reason) for row, uri, reason in [*csv.reader(file)][1:]] == due


@given(bad=st.lists(st.tuples(CELLS, CELLS).filter(lambda cells: "\r" not in "".join(cells)), max_size=4))
def test_the_bytes_are_those_of_the_csv_module(
    tmp_path_factory: pytest.TempPathFactory, bad: list[tuple[str, str]]
) -> None:
    """Indexes have been named by them."""
    due = io.StringIO(newline="")
    writer = csv.writer(due, lineterminator="\n")
    writer.writerows([("row", "uri", "reason"), *((row, *cells) for row, cells in enumerate(bad))])
    assert _written(tmp_path_factory.mktemp("list"), bad).read_bytes().decode() == due.getvalue()


def test_a_cell_longer_than_the_csv_module_reads_comes_back(tmp_path: Path) -> None:
    name = 'n"' * 100_000
    assert read_quarantine(_written(tmp_path, [(name, "no image")])) == [(0, name, "no image")]


def test_a_carriage_return_that_was_written_without_quotes_is_read(tmp_path: Path) -> None:
    """Such lists lie in indexes that were published before."""
    path = tmp_path / "quarantine.csv"
    path.write_bytes(b'row,uri,reason\n3,b\rc.png,"no, image"\n4,locked/,closed\n')
    assert read_quarantine(path) == [(3, "b\rc.png", "no, image"), (4, "locked/", "closed")]
    assert unlisted_folders(tmp_path) == ["locked/"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"uri\n",
        b"row,uri,reason\n1,a\n",
        b"row,uri,reason\n1,a,b",
        b'row,uri,reason\n1,"a,b\n',
        b"row,uri,reason\n\xff",
    ],
)
def test_what_is_no_such_list_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.csv").write_bytes(content)
    with pytest.raises(ArtefactDamaged, match="is no list of rows .* build the index again"):
        read_quarantine(tmp_path / "bad.csv")


def test_an_index_with_a_bad_image_of_an_odd_name_opens(bundle: Path, tmp_path: Path) -> None:
    folder, generator = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for row in range(4):
        (folder / f"{row}.png").write_bytes(draw("red", "circle", generator))
    (folder / "b\rc.png").write_bytes(b"no image")
    job = BuildJob(corpus=str(folder), bundle=bundle, out=tmp_path / "index", config=SMALL)
    result = build_index(replace(job, max_bad_ratio=0.5), Notes())
    with open_index(job.out) as index:
        assert index.quarantined_count == 1
        assert index.image(4).uri == "b\rc.png"
    verify_index(job.out, advance=lambda count: None)
    assert build_index(replace(job, max_bad_ratio=0.5), Notes()).manifest.id == result.manifest.id
