"""An index holds files open for each shard: more than a shell allows by default, but not more than the system does."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from index.__main__ import main
from index.build import BuildJob, build_index
from index.plan import IndexConfig
from index.reader import open_index
from phosphene.errors import SettingError
from phosphene.open_files import allow_open_files
from tests.index.quiet import Notes

SHARDS_OF_TWO = IndexConfig(shard_image_count=2, batch_images=2, thread_count=1, top_count=10, spread_count=6)


@pytest.fixture
def few_files() -> Iterator[int]:
    """Let this process open 100 files more than it has, whichever numbers those have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    # The limit is on numbers, and whoever started this process may have left it one far from the others.
    few = [number for number in range(len(taken) + 101) if number not in taken][100]
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    yield few
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_many_shards_open_once_the_limit_is_raised(
    bundle: Path, corpus: Path, tmp_path: Path, few_files: int, capsys: pytest.CaptureFixture[str]
) -> None:
    job = BuildJob(corpus=str(corpus), bundle=bundle, out=tmp_path / "index", config=SHARDS_OF_TWO)
    message = rf"index 'index' needs more open files than the {few_files} .*ulimit -n.*--shard-images"
    with pytest.raises(SettingError, match=message):
        build_index(job, Notes())
    # The command allows itself what the system does, and goes on from there.
    options = ["--shard-images", "2", "--batch", "2", "--threads", "1", "--top", "10", "--spread", "6"]
    assert main(["build", str(corpus), "--bundle", str(bundle), "--out", str(job.out), *options]) == 0
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_NOFILE, (few_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with pytest.raises(SettingError, match=message):
        open_index(job.out)
    allow_open_files()
    with open_index(job.out) as index:
        assert index.image_count == 39


def test_a_limit_is_never_lowered() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    allow_open_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= limits[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
