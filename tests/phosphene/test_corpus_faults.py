"""Folders that cannot be listed and files that cannot be opened: what is the corpus's fault, and what is not."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phosphene.corpus import open_corpus
from phosphene.corpus_storage import RemoteFolder, Span
from phosphene.errors import CorpusError

NOBODY = 65534
NOT_HERE = 77


def refuse(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int = errno.EACCES) -> None:
    """Let nobody list a folder; to root nothing is forbidden."""
    scandir = os.scandir

    def scan(path: str | Path | int) -> Iterator[os.DirEntry[str]]:
        if str(path) == str(folder):
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)


def photos(root: Path) -> Path:
    for name in ("a.jpg", "k/b.jpg", "locked/c.jpg", "locked/deep/d.jpg", "z.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_a_folder_that_cannot_be_listed_is_a_row_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_corpus(str(photos(tmp_path)))
    refuse(monkeypatch, tmp_path / "locked")
    corpus = open_corpus(str(tmp_path))
    assert [(row.uri, row.label) for row in corpus.rows] == [
        ("a.jpg", None),
        ("k/b.jpg", "k"),
        ("locked/", None),
        ("z.jpg", None),
    ]
    assert corpus.digest != whole.digest
    assert (whole.unlistable_folders, corpus.unlistable_folders) == ((), ("locked/",))
    with pytest.raises(CorpusError, match=r"folder 'locked/' cannot be listed: Permission denied; .*make it readable"):
        corpus.read(2)
    assert corpus.read(3) == b"z.jpg"
    monkeypatch.undo()
    with pytest.raises(CorpusError, match="could not be listed, and can be now"):
        corpus.read(2)


def test_beside_tars_such_a_folder_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "s.tar").write_bytes(bytes(10240))
    refuse(monkeypatch, tmp_path / "locked")
    with pytest.raises(CorpusError, match="holds no image"):
        open_corpus(str(tmp_path))


def test_the_corpus_itself_has_to_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, photos(tmp_path / "photos"))
    with pytest.raises(CorpusError, match="folder 'photos' cannot be listed: Permission denied; make it readable"):
        open_corpus(str(tmp_path / "photos"))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_shortage_is_not_the_folders_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    refuse(monkeypatch, photos(tmp_path) / "locked", number)
    with pytest.raises(OSError, match="locked") as caught:
        open_corpus(str(tmp_path))
    assert caught.value.errno == number


def test_too_many_open_files_are_not_the_images_fault(tmp_path: Path) -> None:
    corpus = open_corpus(str(photos(tmp_path)))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            corpus.read(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert corpus.read(0) == b"a.jpg"


class Failing:
    """A remote file system that reads nothing."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def cat_file(self, path: str, *, start: int, end: int) -> bytes:
        raise self._error


class ClientConnectionError(Exception):
    """As aiohttp calls the base of what `http://` and `gs://` raise where nobody answers; no `ConnectionError`."""


class ClientConnectorError(ClientConnectionError, OSError):
    """As aiohttp calls a refused connection."""


class ClientResponseError(Exception):
    """As aiohttp calls what a server answered but 200."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def of_botocore() -> Exception:
    """What `s3://` raises where nobody answers: botocore has a `ConnectionError` of its own."""
    base = type("ConnectionError", (Exception,), {})
    error: Exception = type("EndpointConnectionError", (base,), {})("could not connect to the endpoint")
    return error


@pytest.mark.parametrize(
    ("error", "due"),
    [
        (FileNotFoundError(2, "gone"), CorpusError),
        (PermissionError(13, "no"), CorpusError),
        (ValueError("this object alone"), CorpusError),
        (TimeoutError(), OSError),
        (ConnectionResetError(104, "reset"), OSError),
        (ClientConnectorError(errno.ECONNREFUSED, "refused"), OSError),
        (of_botocore(), OSError),
        (OSError(errno.EHOSTUNREACH, "No route to host"), OSError),
        (OSError(errno.EBUSY, "Please reduce your request rate"), OSError),
        (ClientResponseError(403), CorpusError),
        (ClientResponseError(429), OSError),
        (ClientResponseError(503), OSError),
        (OSError(errno.EMFILE, "Too many open files"), OSError),
    ],
)
def test_a_storage_that_does_not_answer_is_not_the_images_fault(error: Exception, due: type[Exception]) -> None:
    folder = RemoteFolder(Failing(error), "bucket/photos", "photos")
    with pytest.raises(due, match=r"a\.jpg.* cannot be read|does not answer|Too many open files"):
        folder.read(Span(file="a.jpg", offset=0, byte_count=None), 100, shown="a.jpg")


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user reaches, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def as_nobody(folder: Path, ask: Callable[[], object]) -> object:
    """Return what is answered about a folder in a process that has no more rights than anybody."""
    if os.getuid() != 0:
        return ask()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Newer Pythons warn of threads: the child calls nothing of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:  # pragma: no cover - another process
        status = 1
        try:
            if becomes_nobody() and os.access(folder, os.R_OK | os.X_OK):
                os.write(writer, json.dumps(ask()).encode())
                status = 0
            else:
                status = NOT_HERE
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as stream:
        answer = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == NOT_HERE:
        pytest.skip("root may not become another user here, or no other user reaches temporary files")
    assert status == 0
    return json.loads(answer)


def becomes_nobody() -> bool:
    """Let go of all rights; tells whether that was allowed: in a container it need not be."""
    try:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("mode", [0o000, 0o111, 0o444])
def test_without_rights_for_real(public: Path, mode: int) -> None:
    photos(public)
    (public / "locked").chmod(mode)

    def ask() -> list[list[str]]:
        corpus = open_corpus(str(public))
        return [[row.uri, read(corpus.read, row.row)] for row in corpus.rows]

    def read(ask: Callable[[int], bytes], row: int) -> str:
        try:
            return ask(row).decode()
        except CorpusError as error:
            return str(error).partition(";")[0]

    found = as_nobody(public, ask)
    # A folder that may be listed and not entered tells its names, of which no file can be opened.
    locked = (
        [
            ["locked/c.jpg", "'locked/c.jpg' cannot be read: Permission denied"],
            ["locked/deep/", "folder 'locked/deep/' cannot be listed: Permission denied"],
        ]
        if mode == 0o444
        else [["locked/", "folder 'locked/' cannot be listed: Permission denied"]]
    )
    assert found == [["a.jpg", "a.jpg"], ["k/b.jpg", "k/b.jpg"], *locked, ["z.jpg", "z.jpg"]]
