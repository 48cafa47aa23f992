"""Where a page is written to: what is there already stays what it is."""

import os
from pathlib import Path

import pytest

from phosphene.client.page_file import check_page_path, write_page
from phosphene.client.paths import kind_of
from phosphene.errors import SettingError


@pytest.mark.parametrize("there_is_one", [True, False])
def test_a_link_stays_a_link(tmp_path: Path, there_is_one: bool) -> None:
    link, page = tmp_path / "link", tmp_path / "deep" / "page.html"
    page.parent.mkdir()
    link.symlink_to(Path("deep") / "page.html")
    if there_is_one:
        page.write_text("before")
    check_page_path(link)
    write_page("after", link)
    assert link.is_symlink()
    assert page.read_text() == "after"
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["deep", "link", "page.html"]


def test_a_link_to_a_pipe_leaves_both(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_page_path(link)
        write_page("page", link)
        assert os.read(reader, 10) == b"page"
    finally:
        os.close(reader)
    assert link.is_symlink()
    assert pipe.is_fifo()


def test_what_cannot_be_written_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("no/such/page.html")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(SettingError, match="there is no folder '.*no/such' to write 'page.html' to"):
        check_page_path(tmp_path / "link")
    with pytest.raises(SettingError, match="circle': Too many levels of symbolic links; name another file"):
        check_page_path(tmp_path / "circle")
    with pytest.raises(SettingError, match="x.html': No such file or directory; name another file"):
        write_page("page", tmp_path / "gone" / "x.html")


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    paths = (tmp_path, tmp_path / "file", tmp_path / "pipe", tmp_path / "none", tmp_path / "file" / "x", Path("a\0b"))
    assert [kind_of(path) for path in paths] == ["folder", "file", "other", "nothing", "nothing", "nothing"]
    with pytest.raises(OSError, match="too long"):
        kind_of(tmp_path / ("a" * 300))
