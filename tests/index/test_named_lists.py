"""Lists of images and of words as editors save them: line ends, byte order marks, carriage returns within names."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.flags import read_flag_list
from index.sensitive import SensitiveConfig
from index.take_down import Request, read_requests
from index.vocabulary import read_vocabulary
from phosphene.errors import SettingError

MARK = b"\xef\xbb\xbf"


def _file(folder: Path, content: bytes) -> Path:
    (folder / "list.txt").write_bytes(content)
    return folder / "list.txt"


def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path: Path) -> None:
    assert read_vocabulary(_file(tmp_path, MARK + b"sea\r\nmoss\r\nsea\r\n")) == ("sea", "moss")


@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_of_a_take_down_end_as_on_either_system(tmp_path: Path, mark: bytes, end: bytes) -> None:
    lines = [b"a.png", b"", b"b\rc.png\twhy", b"AB" * 32, b" d.png"]
    due = [
        Request(what="a.png"),
        Request(what="b\rc.png", reason="why"),
        Request(what="AB" * 32),
        Request(what=" d.png"),
    ]
    assert read_requests(_file(tmp_path, mark + end.join(lines))) == due
    assert read_requests(_file(tmp_path, mark + end.join([*lines, b""]))) == due


def test_a_name_may_end_in_a_carriage_return(tmp_path: Path) -> None:
    """Of two images whose names differ in one, the one that is named goes down."""
    assert read_requests(_file(tmp_path, b"a.png\nb.png\r\n")) == [Request(what="a.png"), Request(what="b.png\r")]
    assert read_requests(_file(tmp_path, b"a.png\r\nb.png\r\r\n")) == [Request(what="a.png"), Request(what="b.png\r")]


@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_patterns_of_flags_may_hold_carriage_returns(tmp_path: Path, mark: bytes, end: bytes) -> None:
    lines = [b"uri: a\rb*", b"neuron:12 ", b"", b"label:x"]
    assert read_flag_list(_file(tmp_path, mark + end.join(lines) + end)) == SensitiveConfig(
        neuron_ids=(12,), label_patterns=("x",), uri_patterns=("a\rb*",)
    )


@pytest.mark.parametrize("read", [read_requests, read_flag_list, read_vocabulary])
def test_what_is_no_utf8_is_refused(tmp_path: Path, read: object) -> None:
    with pytest.raises(SettingError, match="UTF-8"):
        read(_file(tmp_path, b"uri:\xff\n"))  # type: ignore[operator]
