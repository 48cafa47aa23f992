"""Processes of a job killed again and again, at random points: what was finished stays, and the end is the same."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from index.build import BuildJob, build_index
from index.plan import IndexConfig
from phosphene.manifest import open_artefact
from tests.index.quiet import Notes

TWOS = IndexConfig(shard_image_count=2, batch_images=1, thread_count=1, top_count=10, spread_count=6)
# Three deaths over one shard end a job, as they should.
_WORKER_KILLS = 2
OPTIONS = "--shard-images 2 --batch 1 --threads 1 --top 10 --spread 6 --workers 2"


def _finished(partial: Path) -> dict[str, int]:
    """Return the finished shards that lie in a workspace, and the inode of each, which tells whether it is the same."""
    return {record.parent.name: record.stat().st_ino for record in partial.glob("index/shards/*/record.json")}


def _workers(job: int) -> list[int]:
    """Return the worker processes of a job."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # It may end meanwhile.
            if entry.name.isdigit() and b"spawn_main" in (entry / "cmdline").read_bytes():
                status = (entry / "status").read_text()
                found += [int(entry.name)] if f"\nPPid:\t{job}\n" in status else []
    return found


class Kills:
    """Kills the job, or one of its workers, after a random time; again and again."""

    def __init__(self, command: list[str], root: Path, partial: Path) -> None:
        self._command, self._root, self._partial = command, root, partial
        self._chance = random.Random(0)
        self.of_jobs = self.of_workers = self.finished_runs = 0

    @property
    def count(self) -> int:
        return self.of_jobs + self.of_workers

    def run(self) -> bool:
        """Begin the job, and kill until it is dead; tells whether it came to its end instead."""
        before = _finished(self._partial)
        with subprocess.Popen([*self._command, *OPTIONS.split()], cwd=self._root, stderr=subprocess.PIPE) as job:
            assert job.stderr is not None
            for line in job.stderr:  # Up to the encoding nothing is at stake; most kills come after.
                if b'"encode"' in line or (self._chance.random() < 0.1 and self.count % 5 == 0):
                    break
            spared = _WORKER_KILLS
            while True:
                try:
                    job.wait(self._chance.uniform(0, 6))
                    assert job.returncode == 0, job.stderr.read()
                    self.finished_runs += 1
                    job.stderr.close()
                    return True
                except subprocess.TimeoutExpired:
                    workers = _workers(job.pid)
                    if spared and workers and self._chance.random() < 0.5:
                        with suppress(ProcessLookupError):
                            spared -= 1
                            os.kill(self._chance.choice(workers), signal.SIGKILL)
                            self.of_workers += 1
                        continue
                    job.send_signal(signal.SIGKILL)
                    self.of_jobs += 1
                    break
            job.stderr.close()
        if self._partial.exists():
            # What was finished is finished for good: a kill costs each worker the shard that it was about.
            assert before.items() <= _finished(self._partial).items()
            assert len(list((self._partial / "drafts").glob("*"))) <= 2
        return False


@pytest.mark.slow
@pytest.mark.parametrize("kill_count", [50])
def test_killed_at_fifty_random_points_with_two_workers(
    bundle: Path, corpus: Path, tmp_path: Path, root: Path, kill_count: int
) -> None:
    job = BuildJob(corpus=str(corpus), bundle=bundle, out=tmp_path / "due", config=TWOS)
    due = build_index(job, Notes()).manifest.id
    out, partial = tmp_path / "index", tmp_path / "index.partial"
    command = [sys.executable, "-m", "index", "build", str(corpus), "--bundle", str(bundle), "--out", str(out)]
    kills = Kills(command, root, partial)
    while kills.count < kill_count:
        was_whole = kills.run()
        # Whatever lies there at any time is whole; nothing is there half.
        assert out.exists() or not was_whole
        if out.exists():
            assert open_artefact(out, kind="index").id == due
            shutil.rmtree(out)
    assert kills.of_jobs
    assert kills.of_workers
    sys.stdout.write(
        f"kills: {kills.of_jobs} of jobs, {kills.of_workers} of workers; {kills.finished_runs} runs ended\n"
    )
    final = BuildJob(corpus=str(corpus), bundle=bundle, out=out, config=TWOS, worker_count=2)
    assert build_index(final, Notes()).manifest.id == due
    assert sorted(path.name for path in tmp_path.iterdir()) == ["due", "index"]
