from pathlib import Path
from typing import Any

import pytest

from phosphene.errors import ArtefactMismatch
from training.run_folder import PUBLISHED, RunFolder, begin_run


def begin(tmp_path: Path, out: str = "b", **config: Any) -> RunFolder:
    return begin_run(tmp_path / "b.work" / "training", out=tmp_path / out, config={"k": 4} | config)


def test_the_same_configuration_finds_its_folder_again(tmp_path: Path) -> None:
    first = begin(tmp_path)
    first.journal.write_text("line\n")
    assert begin(tmp_path).path == first.path
    assert first.journal.read_text() == "line\n"
    assert first.path.name == first.id


def test_another_configuration_for_the_same_bundle_is_refused_with_the_difference(tmp_path: Path) -> None:
    begin(tmp_path, lr=0.1)
    due = r"unfinished run .* for 'b' \(there -> asked for\):\n  k: 4 -> 8\n  lr: 0.1 -> None\n.*choose another --work"
    with pytest.raises(ArtefactMismatch, match=due):
        begin(tmp_path, k=8)


def test_other_bundles_may_grow_beside_it(tmp_path: Path) -> None:
    begin(tmp_path)
    begin(tmp_path, out="c", k=8)


@pytest.mark.parametrize("outcome", [PUBLISHED, "training diverged: lower --lr"])
def test_a_run_that_has_ended_stands_in_no_ones_way(tmp_path: Path, outcome: str) -> None:
    begin(tmp_path).end(outcome)
    begin(tmp_path, k=8)


def test_a_published_bundle_needs_no_checkpoints_of_any_try(tmp_path: Path) -> None:
    failed, other = begin(tmp_path), begin(tmp_path, out="c")
    failed.end("training diverged: lower --lr")
    last = begin(tmp_path, k=8)
    for run in (failed, other, last):
        run.checkpoints.mkdir()
        run.journal.write_text("line\n")
    last.end(PUBLISHED)
    assert [run.checkpoints.exists() for run in (failed, other, last)] == [False, True, False]
    assert all(run.journal.exists() for run in (failed, other, last))


def test_a_moved_folder_is_the_same_run(tmp_path: Path) -> None:
    begin(tmp_path / "a", k=8)
    (tmp_path / "a").rename(tmp_path / "z")
    with pytest.raises(ArtefactMismatch, match="unfinished run"):
        begin(tmp_path / "z")
