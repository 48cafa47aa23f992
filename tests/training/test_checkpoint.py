import os
import resource
from pathlib import Path

import pytest
import torch

from training.checkpoint import Checkpoint, CheckpointFolder


def checkpoint(step: int, value_count: int = 4) -> Checkpoint:
    tensors = {"a": torch.full((value_count,), float(step)), "b": torch.tensor([step])}
    return Checkpoint(step=step, tensors=tensors, counts={"skipped": step // 5}, averages={"a": step / 7})


def saved(path: Path, *steps: int) -> CheckpointFolder:
    folder = CheckpointFolder(path, plan_id="p")
    for step in steps:
        folder.save(checkpoint(step))
    return folder


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_the_newest_comes_back_and_the_last_two_are_kept(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", 5, 10, 15)
    found, damages = folder.load_newest()
    assert found is not None
    assert (found.step, dict(found.counts), damages) == (15, {"skipped": 3}, ())
    assert found.averages == {"a": 15 / 7}
    assert torch.equal(found.tensors["a"], torch.full((4,), 15.0))
    assert names(tmp_path / "c") == ["step-000000010", "step-000000015"]
    assert folder.newest_step() == 15


def test_nothing_is_found_where_nothing_was_saved(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "c", plan_id="p")
    assert folder.load_newest() == (None, ())
    assert folder.newest_step() is None


def test_a_checkpoint_of_another_plan_is_named_and_passed_over(tmp_path: Path) -> None:
    saved(tmp_path / "c", 1)
    found, damages = CheckpointFolder(tmp_path / "c", plan_id="q").load_newest()
    assert found is None
    assert [damage.reason for damage in damages] == ["it belongs to another run"]


@pytest.mark.parametrize("file", ["state.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "flipped"])
def test_a_damaged_newest_one_is_named_and_the_one_before_it_is_used(tmp_path: Path, file: str, harm: str) -> None:
    folder = saved(tmp_path / "c", 5, 10)
    path = tmp_path / "c" / "step-000000010" / file
    data = bytearray(path.read_bytes())
    match harm:
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case "flipped":
            data[-4] ^= 1
            path.write_bytes(data)
    found, (damage,) = folder.load_newest()
    assert found is not None
    assert found.step == 5
    assert damage.file == path
    assert damage.reason.startswith("it")
    # Put aside, it stands in no later checkpoint's way.
    assert names(tmp_path / "c") == ["step-000000005", "step-000000010.damaged"]
    folder.save(checkpoint(10))
    assert folder.load_newest().damages == ()


def test_every_flipped_bit_of_a_record_is_seen(tmp_path: Path) -> None:
    record = tmp_path / "c" / "step-000000010" / "checkpoint.json"
    saved(tmp_path / "c", 5, 10)
    whole = record.read_bytes()
    for place in range(len(whole)):
        folder = saved(tmp_path / "c", 10)
        harmed = bytearray(whole)
        harmed[place] ^= 1 << place % 8
        record.write_bytes(harmed)
        found, damages = folder.load_newest()
        assert found is not None
        assert found.step == 5
        assert len(damages) == 1


def test_a_half_written_checkpoint_blocks_nothing(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", 1)
    partial = tmp_path / "c" / "step-000000002.partial"
    partial.mkdir()
    (partial / "state.safetensors").write_bytes(b"half")
    found, damages = folder.load_newest()
    assert found is not None
    assert (found.step, damages) == (1, ())
    folder.save(checkpoint(2))
    found, _ = folder.load_newest()
    assert found is not None
    assert found.step == 2


def test_a_half_removed_checkpoint_is_no_damage_and_goes_with_the_next(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", 1, 2)
    going = tmp_path / "c" / "step-000000000.going"
    going.mkdir()
    (going / "checkpoint.json").write_bytes(b"{}")
    assert folder.load_newest().damages == ()
    folder.save(checkpoint(3))
    assert names(tmp_path / "c") == ["step-000000002", "step-000000003"]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c", 1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # What a disk with 4 kB left does to a longer file.
    try:
        with pytest.raises(OSError, match="step-000000002' cannot be written"):
            folder.save(checkpoint(2, value_count=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    found, damages = folder.load_newest()
    assert found is not None
    assert (found.step, damages) == (1, ())
    folder.save(checkpoint(2))
    assert os.listdir(tmp_path / "c" / "step-000000002")


def test_the_next_one_waits_until_writing_has_kept_to_its_share_of_the_time(tmp_path: Path) -> None:
    now_s = 0.0
    seconds_of_a_write = iter([2.0, 0.0])

    def clock_s() -> float:
        return now_s

    class Slow(CheckpointFolder):
        def _newest_first(self) -> list[Path]:
            nonlocal now_s
            now_s += next(seconds_of_a_write, 0.0)
            return super()._newest_first()

    folder = Slow(tmp_path / "c", plan_id="p", every_steps=10, time_share=0.1, clock_s=clock_s)
    assert [folder.is_due(step) for step in (9, 10, 11, 20)] == [False, True, False, True]
    folder.save(checkpoint(10))
    now_s += 17.9
    assert not folder.is_due(20)
    now_s += 0.2
    assert folder.is_due(20)
    assert not folder.is_due(21)
