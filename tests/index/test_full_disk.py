"""Room or memory runs out while an index grows: the one it grows from serves on, and the same command ends it later."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest

from index import __main__ as command
from index.build import BuildJob, BuildResult, build_index
from index.compact import CompactJob, compact_index
from index.faiss_files import save_faiss
from index.progress import Progress
from index.reader import open_index
from index.take_down import Request, TakeDownJob, take_down
from phosphene.current import load_current, save_current
from phosphene.durable_files import save_array
from tests.full_disk import files_of_at_most, small_disk
from tests.index.conftest import SMALL
from tests.index.quiet import Notes
from tests.index.small_world import write_corpus

Job = Callable[[Path, Progress], BuildResult]


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("more") / "pictures", 20, seed=5)


@pytest.fixture(scope="module")
def down(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Path:
    out = tmp_path_factory.mktemp("down") / "down"
    take_down(TakeDownJob(index=built, out=out, requests=[Request(what="0003.png")]))
    return out


@pytest.fixture(scope="module", params=["append", "compact"])
def job(request: pytest.FixtureRequest, built: Path, bundle: Path, more: Path, down: Path) -> Job:
    def append(out: Path, progress: Progress) -> BuildResult:
        return build_index(BuildJob(corpus=str(more), bundle=bundle, out=out, config=SMALL, earlier=built), progress)

    def compact(out: Path, progress: Progress) -> BuildResult:
        return compact_index(CompactJob(index=built, out=out, tombstones=down), progress)

    return append if request.param == "append" else compact


@pytest.fixture(scope="module")
def due(job: Job, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """What the job gives where nothing runs out."""
    return job(tmp_path_factory.mktemp("due") / "index", Notes())


class Served:
    """The generation that is served meanwhile."""

    def __init__(self, folder: Path, bundle: Path, index: Path, down: Path) -> None:
        self._current, self._index = folder / "CURRENT", index
        save_current(self._current, bundles={"b": bundle}, indexes={"i": index}, tombstones={"i": down})
        self._contents = self._read()

    def check(self) -> None:
        assert self._read() == self._contents
        (member,) = load_current(self._current).indexes
        with open_index(member.path) as index:
            assert index.row_count == 40
            assert index.thumbnail(3)

    def _read(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self._index.rglob("*") if path.is_file()}


@pytest.fixture
def served(tmp_path: Path, bundle: Path, built: Path, down: Path) -> Served:
    return Served(tmp_path, bundle, built, down)


def _checked(job: Job, out: Path, due: BuildResult, served: Served) -> None:
    """What failed left nothing that counts, and the same job ends as if nothing had been."""
    assert not out.exists()
    served.check()
    assert job(out, Notes()).manifest.id == due.manifest.id
    assert sorted(path.name for path in out.parent.iterdir()) == [out.name]


@pytest.mark.parametrize("place", ["last", "directions.faiss", "neurons.parquet", "residuals.faiss", "first"])
def test_a_full_disk_is_an_error_wherever_it_is_met(
    job: Job, due: BuildResult, served: Served, tmp_path: Path, place: str
) -> None:
    """Of a file that the limit cuts, even of its last byte, nothing is published."""
    sizes = sorted(entry.bytes for entry in due.manifest.files.values())
    byte_count = {"last": sizes[-1], "first": sizes[len(sizes) // 2]}.get(place)
    byte_count = due.manifest.files[place].bytes if byte_count is None else byte_count
    out = tmp_path / "out" / "index"
    with files_of_at_most(byte_count - 1), pytest.raises(OSError, match="File too large"):
        job(out, Notes())
    _checked(job, out, due, served)


@pytest.fixture(scope="module")
def needed(job: Job, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Kilobytes that the index takes on a disk of its own."""
    with small_disk(tmp_path_factory.mktemp("measured") / "disk", 64 << 10) as disk:
        job(disk / "index", Notes())
        return shutil.disk_usage(disk).used >> 10


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_disk_that_is_really_full(
    job: Job, due: BuildResult, served: Served, needed: int, tmp_path: Path, share: float
) -> None:
    with small_disk(tmp_path / "disk", int(needed * share)) as disk:
        with pytest.raises(OSError, match="No space left"):
            job(disk / "index", Notes())
        assert not (disk / "index").exists()
        served.check()
        with pytest.raises(OSError, match="No space left"):  # Again, with what lies there.
            job(disk / "index", Notes())
    with small_disk(tmp_path / "larger", needed * 2) as disk:
        _checked(job, disk / "index", due, served)


class Short(Notes):
    """Memory runs out at a step of a stage."""

    def __init__(self, stage: str, steps: int) -> None:
        super().__init__()
        self._stage, self._steps = stage, steps

    def advance(self, count: int) -> None:
        super().advance(count)
        if self.stages[-1] == self._stage:
            self._steps -= 1
            if self._steps == 0:
                raise MemoryError("Unable to allocate 3.00 GiB")


@pytest.mark.parametrize(("stage", "steps"), [("first", 1), ("assemble", 1), ("assemble", 4), ("assemble", 7)])
def test_short_memory_leaves_nothing_half_written(
    job: Job, due: BuildResult, served: Served, tmp_path: Path, stage: str, steps: int
) -> None:
    out = tmp_path / "out" / "index"
    first = "compact" if "tombstones" in due.manifest.inputs else "encode"
    with pytest.raises(MemoryError):
        job(out, Short(first if stage == "first" else stage, steps))
    _checked(job, out, due, served)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "error: memory is short .*--workers: the same command goes on"),
        (OSError(28, "No space left on device", "/x/a.npy"), r"error: No space left on device \(/x/a.npy\); make room"),
        (OSError(24, "Too many open files", "/x/a.jpg"), r"error: Too many open files \(/x/a.jpg\); .*ulimit -n"),
    ],
)
def test_the_command_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, told: str
) -> None:
    def fail(options: object) -> dict[str, object]:
        raise error

    monkeypatch.setattr(command, "run_job", fail)
    assert command.main(["compact", "index", "--out", "out"]) == 2
    assert re.search(told, capsys.readouterr().err)


@pytest.mark.parametrize("missing", [1, 100, 5000])
def test_arrays_and_faiss_indexes_are_whole_or_an_error(tmp_path: Path, missing: int) -> None:
    array = np.arange(4000, dtype=np.float32)
    flat = faiss.IndexFlatIP(40)
    flat.add(array.reshape(100, 40))
    save_array(tmp_path / "due.npy", array)
    save_faiss(tmp_path / "due.faiss", flat)
    for name, save in (
        ("a.npy", lambda path: save_array(path, array)),
        ("a.faiss", lambda path: save_faiss(path, flat)),
    ):
        size_bytes = (tmp_path / f"due{Path(name).suffix}").stat().st_size
        with files_of_at_most(size_bytes - missing), pytest.raises(OSError, match=rf"File too large.*{name}"):
            save(tmp_path / name)


@pytest.mark.parametrize(
    "array",
    [
        np.array(2.5, np.float32),
        np.zeros(0, np.float16),
        np.zeros((0, 3), np.int64),
        np.arange(6, dtype=np.uint16).reshape(2, 3),
        np.ones((3, 2), dtype=bool),
    ],
)
def test_arrays_have_the_bytes_that_numpy_writes(tmp_path: Path, array: np.ndarray) -> None:
    save_array(tmp_path / "ours.npy", array)
    np.save(tmp_path / "due.npy", array)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "due.npy").read_bytes()
    turned = np.asfortranarray(array)
    save_array(tmp_path / "turned.npy", turned)
    assert np.load(tmp_path / "turned.npy").flags.c_contiguous
    assert np.load(tmp_path / "turned.npy").tolist() == turned.tolist()
