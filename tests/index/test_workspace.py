"""The folder in which an index grows: whose work it holds, whatever comes between two looks at it."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from index.plan import IndexConfig, Plan
from index.workspace import open_workspace
from phosphene.errors import SettingError
from phosphene.manifest import canonical_json, partial_path


def _plan(corpus: str) -> Plan:
    config = IndexConfig(shard_image_count=4)
    return Plan(corpus_digest=corpus, row_count=8, bundle_id="b", code_id="c", config=config)


def _comes_between(out: Path, plan: Plan) -> Callable[[str], None]:
    """Another job takes the folder while this one says what it found there, and is killed."""

    def report(sentence: str) -> None:
        folder = partial_path(out)
        folder.mkdir()
        (folder / "plan.json").write_bytes(canonical_json(plan.to_config()))

    return report


def test_another_plan_that_comes_between_two_locks_is_not_worked_on(tmp_path: Path) -> None:
    out = tmp_path / "index"
    first, mine, other = _plan("first"), _plan("mine"), _plan("other")
    with open_workspace(out, first, device="cpu", report=print) as workspace:
        workspace.write_shard(first.shards[0], lambda folder: (folder / "x").write_bytes(b"first") and None)
    with (
        pytest.raises(SettingError, match=r"another plan came into 'index\.partial' meanwhile; run this one again"),
        open_workspace(out, mine, device="cpu", report=_comes_between(out, other)),
    ):
        pytest.fail("the folder is another plan's")
    # Run again, it sets that plan's work aside, as any other's.
    with open_workspace(out, mine, device="cpu", report=lambda sentence: None) as workspace:
        assert not workspace.is_finished(mine.shards[0])
    assert len(list(tmp_path.glob("index.partial-*"))) == 2


@pytest.mark.parametrize("is_late", [False, True])
def test_a_draft_that_another_part_removes_before_it_is_held_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    plan = _plan("mine")
    with open_workspace(tmp_path / "index", plan, device="cpu", report=print) as workspace:
        flock, left = fcntl.flock, [1, 1]

        def remove() -> None:
            if left:
                left.pop()
                for draft in workspace.drafts.iterdir():
                    shutil.rmtree(draft)

        def opened_before(descriptor: int, operation: int) -> None:
            if is_late:
                remove()
            flock(descriptor, operation)

        mkdir = Path.mkdir

        def removed_at_once(path: Path, *arguments: object, **options: object) -> None:
            mkdir(path, *arguments, **options)  # type: ignore[arg-type]
            if not is_late and path.parent == workspace.drafts:
                remove()

        monkeypatch.setattr(fcntl, "flock", opened_before)
        monkeypatch.setattr(Path, "mkdir", removed_at_once)
        workspace.write_shard(plan.shards[0], lambda folder: (folder / "x").write_bytes(b"mine") and None)
        assert left == []
        assert workspace.is_finished(plan.shards[0])
        assert list(workspace.drafts.iterdir()) == []
