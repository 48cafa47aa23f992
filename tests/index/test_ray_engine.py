"""Shards as Ray tasks: the same index as from local processes, also when a worker is killed; nothing stays behind."""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from index.build import BuildJob, build_index
from index.engines import RayEngine
from index.plan import IndexConfig
from index.ray_engine import require_ray, shortfall
from phosphene.errors import SettingError
from tests.index.quiet import Notes

pytest.importorskip("ray", reason="no Ray in this environment; requirements/dev.txt has it")

TINY = IndexConfig(shard_image_count=4, batch_images=1, thread_count=1, top_count=10, spread_count=6)


def _job(corpus: Path, bundle: Path, out: Path, **changes: object) -> BuildJob:
    plain: dict[str, object] = {"corpus": str(corpus), "bundle": bundle, "out": out, "config": TINY}
    return BuildJob(**plain | changes)  # type: ignore[arg-type]


def _descendants() -> dict[int, str]:
    """Return the names of the processes below this one, by id."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = dict(
                    line.split(":\t", 1) for line in (entry / "status").read_text().splitlines() if ":\t" in line
                )
            except OSError:
                continue  # It has just ended.
            if not status["State"].startswith("Z"):
                parents[int(entry.name)], names[int(entry.name)] = int(status["PPid"]), status["Name"]
    found, new = set(), {os.getpid()}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return {pid: names[pid] for pid in found}


def _kill(pid: int) -> None:
    """Kill a process that need not be a child of this one, and wait until it is dead."""
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        select.select([descriptor], [], [])
    finally:
        os.close(descriptor)


class Killer(Notes):
    """When a shard is finished, kills one process that is in the middle of another."""

    def __init__(self, drafts: Path) -> None:
        super().__init__()
        self._drafts = drafts
        self.killed: list[int] = []
        self.before: dict[str, int] = {}

    def advance(self, count: int) -> None:
        super().advance(count)
        if self.stages[-1] != "encode" or self.killed:
            return
        workers = [pid for pid, name in _descendants().items() if name.startswith("ray::encode_sh")]
        if workers:
            self.before = _finished(self._drafts.parent)
            _kill(workers[0])
            self.killed = [workers[0]]


def _finished(partial: Path) -> dict[str, int]:
    """Return the finished shards, and the inode of each, which tells whether it is the same."""
    return {record.parent.name: record.stat().st_ino for record in partial.rglob("shards/*/record.json")}


@pytest.mark.slow
def test_a_killed_worker_costs_its_shard_alone_and_nothing_stays_behind(
    bundle: Path, corpus: Path, tmp_path: Path
) -> None:
    due = build_index(_job(corpus, bundle, tmp_path / "due"), Notes())
    before, scratch = _descendants().keys(), set(Path(tempfile.gettempdir()).glob("phosphene-ray-*"))
    killer = Killer(tmp_path / "index.partial" / "drafts")
    result = build_index(_job(corpus, bundle, tmp_path / "index", worker_count=2, engine=RayEngine()), killer)
    assert (result.manifest.id, result.plan_id) == (due.manifest.id, due.plan_id)
    assert killer.killed
    assert not [sentence for sentence in killer.sentences if "no machine" in sentence]
    assert [sentence for sentence in killer.sentences if "a process died that worked on shard" in sentence]
    assert killer.encoded == 40
    # What was finished when the kill came is finished for good.
    after = {record.parent.name: record.stat().st_ino for record in (tmp_path / "index").rglob("shards/*/record.json")}
    assert killer.before
    assert killer.before.items() <= after.items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["due", "index"]
    assert _descendants().keys() <= before
    assert set(Path(tempfile.gettempdir()).glob("phosphene-ray-*")) <= scratch


def test_what_no_machine_of_a_cluster_has_is_said() -> None:
    """Ray would wait for such a machine without a word."""
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "memory": 9.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        {"Alive": True, "Resources": {"object_store_memory": 1.0}},
    ]
    assert shortfall(nodes, cpu_count=4, gpu_count=0) is None
    assert shortfall(nodes, cpu_count=2, gpu_count=1) is None
    assert "5 processors (--threads) for a task: the most is 4" in str(shortfall(nodes, cpu_count=5, gpu_count=0))
    assert "4 processors (--threads) and 1 GPU (--device)" in str(shortfall(nodes, cpu_count=4, gpu_count=1))
    assert "1 of 3 have a GPU" in str(shortfall(nodes, cpu_count=4, gpu_count=1))
    assert "the most is 0 processors" in str(shortfall([], cpu_count=1, gpu_count=0))


def test_without_ray_the_remedy_is_named(
    bundle: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingError, match="pip install"):
        require_ray()
    with pytest.raises(SettingError, match="--engine local"):
        build_index(_job(corpus, bundle, tmp_path / "index", engine=RayEngine()), Notes())
    assert list(tmp_path.iterdir()) == []
