"""Where a page is written to: what is there already stays what it is."""

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phosphene.client.command import main
from phosphene.client.page_file import check_page_path, write_page
from phosphene.client.paths import kind_of
from phosphene.errors import SettingError
from tests.client.fake_service import FakeService, serving
from tests.client.test_older_service import OlderService


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


def ran(arguments: str, redirection: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m phosphene.client {arguments} {redirection}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **variables},
    )


def is_page(text: str) -> bool:
    return text.startswith("<!doctype html>") and text.endswith("</html>\n") and text.count("<!doctype") == 1


STREAMS = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "page.html", "link")


@pytest.mark.parametrize("path", STREAMS)
def test_a_page_to_standard_output_is_all_that_is_printed(service: FakeService, tmp_path: Path, path: str) -> None:
    (tmp_path / "link").symlink_to("page.html")
    done = ran(f"neuron 3 --html {path} --server {service.address}", "> page.html", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert is_page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "page.html"]


@pytest.mark.parametrize("path", ["/dev/stdout", "page.html"])
def test_a_page_goes_behind_what_standard_output_holds(service: FakeService, tmp_path: Path, path: str) -> None:
    (tmp_path / "page.html").write_text("before\n")
    command = f"neuron 3 --html {path} --server {service.address}"
    assert ran(command, ">> page.html 2>&1; echo after >> page.html", tmp_path).returncode == 0
    before, page = (tmp_path / "page.html").read_text(encoding="utf-8").split("\n", 1)
    assert before == "before"
    assert is_page(page.removesuffix("after\n"))


def test_a_page_goes_down_a_pipe_alone_and_is_utf_8(service: FakeService, tmp_path: Path) -> None:
    command = f"neuron 3 --html /dev/stdout --server {service.address}"
    done = ran(command, "| cat > page.html", tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "±" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert is_page((tmp_path / "page.html").read_text(encoding="utf-8"))
    # More than a pipe holds, so that the reader goes while it is written.
    done = ran(f"neuron 3 --exemplars 128 --html /dev/stdout --server {service.address}", "| head -n 1", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "<!doctype html>\n", "")


def test_a_page_to_standard_error_is_all_that_is_said_there(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("before\n")
    with serving(OlderService()) as older:
        done = ran(f"neuron 3 --html /dev/stderr --server {older.address}", "2>> page.html", tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("Neuron 3")
    before, page = (tmp_path / "page.html").read_text(encoding="utf-8").split("\n", 1)
    assert before == "before"
    assert is_page(page)


def test_json_and_a_page_do_not_share_standard_output(service: FakeService, tmp_path: Path) -> None:
    done = ran(f"neuron 3 --json --html /dev/stdout --server {service.address}", "> page.html", tmp_path)
    assert done.returncode == 2
    assert "argument --html: not allowed with argument --json where both go to standard output" in done.stderr
    assert not service.requests
    done = ran(f"neuron 3 --json --html page.html --server {service.address}", "> neuron.json", tmp_path)
    assert (done.returncode, done.stderr) == (0, "phosphene: wrote page.html\n")
    assert json.loads((tmp_path / "neuron.json").read_text())["neuron"]["neuronId"] == 3
    assert is_page((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_an_answer_whose_page_cannot_be_written_is_shown(
    service: FakeService, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    page.write_text("before")
    full(monkeypatch)
    assert main(["neuron", "3", "--html", str(page), "--server", service.address]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("Neuron 3")
    assert err == f"phosphene: no page can be written to '{page}': No space left on device; name another file\n"
    assert page.read_text() == "before"
    assert list(tmp_path.iterdir()) == [page]


def test_two_commands_that_write_one_page_leave_one_whole_page(tmp_path: Path) -> None:
    program = "from pathlib import Path; from phosphene.client.page_file import write_page; import sys\n"
    program += "for _ in range(200): write_page(sys.argv[1] * 200_000, Path(sys.argv[2]))"
    place = tmp_path / "page.html"
    writers = [subprocess.Popen([sys.executable, "-c", program, letter, str(place)]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert place.read_text() in ("a" * 200_000, "b" * 200_000)
    assert list(tmp_path.iterdir()) == [place]


def test_a_page_that_few_may_read_stays_so(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("before")
    page.chmod(0o600)
    write_page("after", page)
    assert page.read_text() == "after"
    assert page.stat().st_mode & 0o777 == 0o600


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on files are on a full disk."""
    real = Path.open

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(path: Path, mode: str = "r", *options, **named):
        if "w" not in mode:
            return real(path, mode, *options, **named)
        real(path, mode, *options, **named).close()
        return Full()

    monkeypatch.setattr(Path, "open", opened)
