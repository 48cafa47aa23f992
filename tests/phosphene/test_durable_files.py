"""Files are whole or absent, and one process at a time works in a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from phosphene.durable_files import hold_folder, replaceable_file, write_durably
from phosphene.errors import SettingError


def test_a_file_is_replaced_whole_and_nothing_is_left_over(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    write_durably(file, b"a longer text")
    write_durably(file, b"short")
    assert file.read_bytes() == b"short"
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    write_durably(file, b"before")
    (tmp_path / "plan.json.draft").mkdir()  # Where the new text would grow.
    with pytest.raises(IsADirectoryError):
        write_durably(file, b"after")
    assert file.read_bytes() == b"before"


def test_a_folder_is_held_by_one_at_a_time_and_let_go_of(tmp_path: Path) -> None:
    with hold_folder(tmp_path), pytest.raises(SettingError, match="another process"), hold_folder(tmp_path):
        pass
    with hold_folder(tmp_path):
        pass


def test_a_folder_that_was_renamed_meanwhile_is_not_held(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="another process"), hold_folder(tmp_path / "gone"):
        pass


def test_only_a_regular_file_is_replaced_over_and_over(tmp_path: Path) -> None:
    pipe, to_pipe, link, deep = tmp_path / "pipe", tmp_path / "to_pipe", tmp_path / "link", tmp_path / "deep" / "file"
    os.mkfifo(pipe)
    to_pipe.symlink_to(pipe)
    link.symlink_to(Path("deep") / "file")
    for path in (pipe, to_pipe, tmp_path):
        with pytest.raises(SettingError, match=f"the figures '{path}' is no regular file"):
            replaceable_file(path, what="figures")
    for _ in range(2):
        assert replaceable_file(link, what="figures") == replaceable_file(deep, what="figures") == deep.resolve()
        deep.write_text("before")
    assert link.is_symlink()
