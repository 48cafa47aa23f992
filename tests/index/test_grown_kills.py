"""Appends and compactions killed for real at the beginning of each stage, and run again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from index.build import BuildJob, build_index
from index.compact import CompactJob, compact_index
from index.plan import IndexConfig
from phosphene.manifest import read_manifest
from tests.index.quiet import Notes
from tests.index.small_world import write_corpus


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["append", "compact"])
def test_killed_at_each_stage_it_ends_with_the_same_id(
    built: Path, bundle: Path, tmp_path: Path, root: Path, verb: str
) -> None:
    more = write_corpus(tmp_path / "more", 20, seed=4)
    due, out = tmp_path / "due", tmp_path / "out"
    job = BuildJob(corpus=str(more), bundle=bundle, out=due, config=IndexConfig(), earlier=built)
    if verb == "append":
        stages, id_due = ("digest", "take over", "encode", "assemble"), build_index(job, Notes()).manifest.id
        command = ["append", str(more), "--index", str(built), "--bundle", str(bundle), "--workers", "2"]
    else:
        stages, id_due = ("compact", "assemble"), compact_index(CompactJob(index=built, out=due), Notes()).manifest.id
        command = ["compact", str(built)]
    for stage in stages:
        assert _run(root, [*command, "--out", str(out)], kill_at=stage) == -signal.SIGKILL
        assert not out.exists()
    assert _run(root, [*command, "--out", str(out)], kill_at=None) == 0
    assert read_manifest(out).id == id_due
    assert sorted(path.name for path in tmp_path.iterdir()) == ["due", "more", "out"]


def _run(root: Path, command: list[str], *, kill_at: str | None) -> int:
    arguments = [sys.executable, "-m", "index", *command]
    with subprocess.Popen(arguments, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if kill_at is not None and '"begin"' in line and f'"{kill_at}"' in line:
                process.kill()
                break
        process.stderr.read()
    return process.returncode
