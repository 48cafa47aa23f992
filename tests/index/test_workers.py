"""Shards in several processes: the same index whatever their number, and whoever of them dies."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from index.build import BuildJob, Sources, build_index, plan_index
from index.contents import digest_images
from index.reader import open_index
from index.workspace import open_workspace
from phosphene.bundle import load_bundle
from phosphene.corpus import open_corpus
from phosphene.errors import CorpusError, SettingError
from tests.index.conftest import SMALL
from tests.index.quiet import Notes
from tests.index.small_world import write_corpus


def _job(corpus: Path, bundle: Path, out: Path, **changes: object) -> BuildJob:
    plain: dict[str, object] = {"corpus": str(corpus), "bundle": bundle, "out": out, "config": SMALL, "worker_count": 2}
    return BuildJob(**plain | changes)  # type: ignore[arg-type]


class Killer(Notes):
    """Kills worker processes when they tell of images."""

    def __init__(self, kills: int) -> None:
        super().__init__()
        self.kills = kills

    def advance(self, count: int) -> None:
        super().advance(count)
        if self.stages[-1] == "encode" and self.kills and count > 0:
            self.kills -= 1
            for process in multiprocessing.active_children():
                process.kill()


def test_two_workers_give_the_same_id(built: Path, bundle: Path, corpus: Path, tmp_path: Path) -> None:
    notes = Notes()
    result = build_index(_job(corpus, bundle, tmp_path / "index"), notes)
    with open_index(built) as index:
        assert (result.manifest.id, result.plan_id) == (index.id, index.plan_id)
    assert notes.encoded == 40
    assert multiprocessing.active_children() == []
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_killed_workers_are_replaced(built: Path, bundle: Path, corpus: Path, tmp_path: Path) -> None:
    killer = Killer(1)
    result = build_index(_job(corpus, bundle, tmp_path / "index"), killer)
    with open_index(built) as index:
        assert result.manifest.id == index.id
    # What a dead process had told of its shard is taken back.
    assert (killer.kills, killer.encoded) == (0, 40)


def test_a_shard_whose_workers_always_die_ends_the_job(bundle: Path, corpus: Path, tmp_path: Path) -> None:
    message = r"3 processes that worked on shard 0000\d died, the last with status -9.*--workers"
    with pytest.raises(SettingError, match=message):
        build_index(_job(corpus, bundle, tmp_path / "index"), Killer(1000))
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "index").exists()


class Changer(Notes):
    """Somebody writes to an image once the corpus has been digested."""

    def __init__(self, image: Path) -> None:
        super().__init__()
        self._image = image

    def begin(self, title: str, total: int, done: int, unit: str) -> None:
        super().begin(title, total, done, unit)
        if title == "encode":
            self._image.write_bytes(self._image.read_bytes() + b"more")


@pytest.mark.parametrize("worker_count", [1, 2])
def test_an_image_that_changes_during_the_run_ends_the_job(bundle: Path, tmp_path: Path, worker_count: int) -> None:
    corpus = write_corpus(tmp_path / "pictures", 20)
    job = _job(corpus, bundle, tmp_path / "index", worker_count=worker_count)
    with pytest.raises(CorpusError, match=r"1 images changed while the corpus was being indexed: 0017\.png"):
        build_index(job, Changer(corpus.parent / "0017.png"))
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "index").exists()


class Second(Notes):
    """Begins the same job again while workers are busy."""

    def __init__(self, job: BuildJob) -> None:
        super().__init__()
        self._job = job
        self.refusals = 0

    def advance(self, count: int) -> None:
        super().advance(count)
        if self.stages[-1] == "encode" and not self.refusals:
            with pytest.raises(SettingError, match="another process"):
                build_index(self._job, Notes())
            self.refusals += 1


def test_a_second_job_on_one_folder_refuses(built: Path, bundle: Path, corpus: Path, tmp_path: Path) -> None:
    job = _job(corpus, bundle, tmp_path / "index")
    second = Second(job)
    result = build_index(job, second)
    assert second.refusals == 1
    with open_index(built) as index:
        assert result.manifest.id == index.id


def test_a_job_waits_for_workers_whose_parent_was_killed(bundle: Path, corpus: Path, tmp_path: Path) -> None:
    opened = open_corpus(str(corpus))
    with ThreadPoolExecutor(1) as readers:
        digests = digest_images(opened, readers, lambda _: None)
    plan = plan_index(Sources(bundle=load_bundle(bundle), corpus=opened), digests, SMALL)

    def begin() -> None:
        with open_workspace(tmp_path / "index", plan, device="cpu", report=lambda _: None):
            pass

    with open_workspace(tmp_path / "index", plan, device="cpu", report=lambda _: None) as workspace:
        orphan = workspace
    with orphan.held_by_worker():
        other = threading.Thread(target=begin)
        other.start()
        other.join(0.3)
        assert other.is_alive()
    other.join(30)
    assert not other.is_alive()


def test_workers_who_have_nothing_to_do_are_told_of(bundle: Path, corpus: Path, tmp_path: Path) -> None:
    notes = Notes()
    job = _job(corpus, bundle, tmp_path / "index")
    build_index(replace(job, config=replace(SMALL, shard_image_count=64), worker_count=4), notes)
    assert [sentence for sentence in notes.sentences if "no more than 1 of 4 workers have work" in sentence]
    more = Notes()
    build_index(replace(job, out=tmp_path / "more", worker_count=2), more)
    assert not [sentence for sentence in more.sentences if "have work" in sentence]


@pytest.mark.parametrize("worker_count", [0, 257])
def test_worker_counts_out_of_bounds_are_refused(worker_count: int) -> None:
    with pytest.raises(SettingError, match="1 to 256"):
        BuildJob(corpus="x", bundle=Path("b"), out=Path("o"), config=SMALL, worker_count=worker_count)
