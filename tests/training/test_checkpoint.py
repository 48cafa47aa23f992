from pathlib import Path

import pytest
import torch

from training.checkpoint import Checkpoint, CheckpointFolder


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step=step, tensors={"a": torch.full((4,), float(step)), "b": torch.tensor([step])})


def test_the_newest_comes_back_and_older_ones_are_dropped(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "c", plan_id="p")
    for step in (5, 10):
        folder.save(checkpoint(step))
    found = folder.load_newest()
    assert found is not None
    assert found.step == 10
    assert torch.equal(found.tensors["a"], torch.full((4,), 10.0))
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-000000010"]


def test_nothing_is_found_where_nothing_was_saved_or_all_was_removed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "c", plan_id="p")
    assert folder.load_newest() is None
    folder.save(checkpoint(1))
    folder.remove()
    assert folder.load_newest() is None
    folder.remove()


def test_a_checkpoint_of_another_plan_is_passed_over(tmp_path: Path) -> None:
    CheckpointFolder(tmp_path / "c", plan_id="p").save(checkpoint(1))
    assert CheckpointFolder(tmp_path / "c", plan_id="q").load_newest() is None


@pytest.mark.parametrize("file", ["state.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("harm", ["cut", "gone", "flipped"])
def test_an_unsound_checkpoint_is_passed_over(tmp_path: Path, file: str, harm: str) -> None:
    folder = CheckpointFolder(tmp_path / "c", plan_id="p")
    folder.save(checkpoint(1))
    path = tmp_path / "c" / "step-000000001" / file
    data = bytearray(path.read_bytes())
    match harm:
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "gone":
            path.unlink()
        case "flipped":
            data[-4] ^= 1
            path.write_bytes(data)
    assert folder.load_newest() is None


def test_a_half_written_checkpoint_blocks_nothing(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "c", plan_id="p")
    folder.save(checkpoint(1))
    partial = tmp_path / "c" / "step-000000002.partial"
    partial.mkdir()
    (partial / "state.safetensors").write_bytes(b"half")
    found = folder.load_newest()
    assert found is not None
    assert found.step == 1
    folder.save(checkpoint(2))
    found = folder.load_newest()
    assert found is not None
    assert found.step == 2
