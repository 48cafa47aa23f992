"""Where the files of a corpus lie: a local folder, or a remote one behind fsspec. Names in, bytes out.

Every name is relative to the root and has forward slashes; what the files mean is not known here.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from phosphene.errors import CorpusError

_BROKEN_LINK = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_SHORTAGE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Faults of this process or machine: they say nothing of a file, which must not be taken for a bad one."""
# The last is what s3fs makes of SlowDown and ServiceUnavailable.
_UNANSWERED_ERRNOS = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EBUSY})
_COME_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})
# What storages raise that cannot be reached, or break off: Python and its sockets, requests, aiohttp (http, gcs),
# botocore (s3), azure. Told by name: of their packages those alone are installed whose storages are used.
_UNANSWERED_KINDS = frozenset(
    {
        *("ConnectionError", "TimeoutError", "Timeout", "gaierror"),
        *("ClientConnectionError", "ClientPayloadError", "HTTPClientError"),
        *("ServiceRequestError", "ServiceResponseError"),
    }
)

__all__ = ["Listing", "LocalFolder", "RemoteFolder", "Span", "Storage", "open_storage"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A file, or a part of one."""

    file: str
    offset: int
    byte_count: int | None
    """None: to the end of the file."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What lies in a folder."""

    files: list[str]
    """Names of the regular files, sorted."""
    skipped_counts: Mapping[str, int]
    """What else lies there, folders aside, by why it is left out."""
    unlistable: list[str]
    """Folders, below the root, that cannot be listed, each with a slash at its end; sorted."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine."""

    root: Path

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.root.name

    def files(self) -> Listing:
        """List the regular files below the root; each folder is entered once, whatever links say.

        Raises:
            CorpusError: the root cannot be listed, or names are not UTF-8.
            OSError: this process may open no more files, or memory is short.
        """
        found: list[str] = []
        unlistable: list[str] = []
        skipped: Counter[str] = Counter()
        folders, links = [""], list[str]()
        entered: set[tuple[int, int]] = set()
        while folders or links:
            # Links wait until every real folder has been seen, so that a file goes by its real name.
            prefix = folders.pop() if folders else links.pop()
            try:
                entries = self._enter(prefix, entered)
            except OSError as error:
                if error.errno in _SHORTAGE:
                    raise
                if not prefix:
                    raise CorpusError(
                        f"folder {self.name!r} cannot be listed: {error.strerror}; make it readable, or name another"
                    ) from error
                unlistable.append(prefix)
                continue
            for entry in entries:
                if _is_hidden(entry.name):
                    skipped["hidden"] += 1
                    continue
                try:
                    mode = entry.stat().st_mode
                except OSError as error:
                    if entry.is_symlink() and error.errno in _BROKEN_LINK:
                        skipped["links to nowhere or in a circle"] += 1
                    else:  # Whoever reads it learns why it cannot be.
                        is_folder = entry.is_dir(follow_symlinks=False)
                        (folders if is_folder else found).append(prefix + entry.name + "/" * is_folder)
                    continue
                if stat.S_ISDIR(mode):
                    (links if entry.is_symlink() else folders).append(f"{prefix}{entry.name}/")
                elif stat.S_ISREG(mode):
                    found.append(prefix + entry.name)
                else:
                    skipped["pipes, sockets or devices"] += 1
        unreadable = [name for name in (*found, *unlistable) if not _is_utf8(name)]
        if unreadable:
            raise CorpusError(
                f"{len(unreadable)} names in folder {self.name!r} are not UTF-8, such as {unreadable[0]!a}; rename them"
            )
        return Listing(files=sorted(found), skipped_counts=skipped, unlistable=sorted(unlistable))

    def _enter(self, prefix: str, entered: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
        """List a folder, in reverse order of names; nothing the second time."""
        folder = self.root / prefix
        status = folder.stat()
        if (status.st_dev, status.st_ino) in entered:
            return []
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name, reverse=True)

    def size(self, name: str) -> int | None:
        """Return the bytes of a regular file, None where there is none."""
        try:
            status = (self.root / name).stat()
        except (OSError, ValueError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading."""
        return (self.root / name).open("rb")

    def read(self, span: Span, limit_bytes: int, *, shown: str) -> bytes:
        """Read at most `limit_bytes` of a span.

        Raises:
            CorpusError: the file has gone or cannot be read, or it is a folder that could not be listed.
            OSError: this process may open no more files, or memory is short.
        """
        if span.file.endswith("/"):
            raise self._unlistable(span.file, shown)
        try:
            # What was a file when it was listed may be a pipe now: to open it must not wait for a writer.
            descriptor = os.open(self.root / span.file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
            with open(descriptor, "rb") as stream:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise CorpusError(f"{shown!r} is no regular file any more; put it back, or list it anew")
                stream.seek(span.offset)
                return stream.read(limit_bytes if span.byte_count is None else min(limit_bytes, span.byte_count))
        except OSError as error:
            if error.errno in _SHORTAGE:
                raise
            raise CorpusError(f"{shown!r} cannot be read: {error.strerror}; put it back, or list it anew") from error

    def _unlistable(self, prefix: str, shown: str) -> CorpusError:
        """Say what is wrong with a folder that could not be listed."""
        try:
            with os.scandir(self.root / prefix):
                return CorpusError(f"folder {shown!r} could not be listed, and can be now; list the corpus anew")
        except OSError as error:
            if error.errno in _SHORTAGE:
                raise
            return CorpusError(
                f"folder {shown!r} cannot be listed: {error.strerror}; whatever images it holds are missing: make it "
                "readable, and list the corpus anew"
            )


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of an fsspec file system."""

    filesystem: Any
    root: str
    name: str

    def files(self) -> Listing:
        """List the files below the root.

        Raises:
            CorpusError: the file system does not answer.
        """
        try:
            found = self.filesystem.find(self.root)
        except Exception as error:  # Each file system has errors of its own.
            raise _unreachable(self.name, error) from error
        start = len(self.root.rstrip("/")) + 1
        names = [name for path in found if (name := str(path)[start:])]
        visible = [name for name in names if not any(_is_hidden(part) for part in name.split("/"))]
        hidden_count = len(names) - len(visible)
        return Listing(
            files=sorted(visible), skipped_counts={"hidden": hidden_count} if hidden_count else {}, unlistable=[]
        )

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, None where there is none."""
        try:
            facts = self.filesystem.info(self._path(name))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise _unreachable(name, error) from error
        return int(facts["size"]) if facts["type"] == "file" else None

    def open(self, name: str) -> Any:
        """Open a file for reading; what comes back is a binary file by its methods, of a class of its own."""
        return self.filesystem.open(self._path(name), "rb")

    def read(self, span: Span, limit_bytes: int, *, shown: str) -> bytes:
        """Read at most `limit_bytes` of a span.

        Raises:
            CorpusError: the file has gone or cannot be read.
            OSError: the storage does not answer, this process may open no more files, or memory is short.
        """
        byte_count = limit_bytes if span.byte_count is None else min(limit_bytes, span.byte_count)
        try:
            data = self.filesystem.cat_file(self._path(span.file), start=span.offset, end=span.offset + byte_count)
        except Exception as error:
            kind = type(error).__name__
            if _is_unanswered(error):
                raise OSError(
                    errno.EIO, f"the storage does not answer ({kind}); run it again once it does", shown
                ) from error
            if isinstance(error, OSError) and error.errno in _SHORTAGE:
                raise
            raise CorpusError(f"{shown!r} cannot be read ({kind}); put it back, or list it anew") from error
        return bytes(data)

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"


Storage = LocalFolder | RemoteFolder


def open_storage(source: str) -> tuple[Storage, str]:
    """Split a source into the folder that its names are relative to and the file (or pattern) in it.

    Args:
        source: a local path or an fsspec URL; of a folder, or of a file or pattern in one.

    Returns:
        The folder, and the file's name; "" where the source is the folder itself.

    Raises:
        CorpusError: nothing there, or no way to reach it.
    """
    if not source:
        raise CorpusError("corpus is not named; name a folder, a .csv or .parquet list, or WebDataset tars")
    if "://" in source and not source.startswith("file://"):
        return _open_remote(source)
    path = Path(source.removeprefix("file://")).expanduser()
    if path.is_dir():
        return LocalFolder(path.resolve()), ""
    if not path.exists() and "{" not in path.name:
        raise CorpusError(
            f"corpus {source!r} does not exist; name a folder, a .csv or .parquet list, or WebDataset tars"
        )
    if path.exists() and not path.is_file():
        raise CorpusError(f"corpus {source!r} is neither a folder nor a regular file; name one of them")
    return LocalFolder(path.parent.resolve()), path.name


def _open_remote(source: str) -> tuple[Storage, str]:
    import fsspec  # Only remote corpora need it, and its file systems take their time to load.

    # A URL may carry a password: only its scheme and last name are shown.
    shown = f"{urlsplit(source).scheme}://.../{PurePosixPath(urlsplit(source).path).name}"
    try:
        filesystem, path = fsspec.core.url_to_fs(source)
        path = str(path).rstrip("/")
        is_folder = "{" not in path and filesystem.isdir(path)
        is_there = is_folder or "{" in path or filesystem.exists(path)
    except Exception as error:
        raise _unreachable(shown, error) from error
    if not is_there:
        raise CorpusError(f"corpus {shown} does not exist; name a folder, a list, or WebDataset tars")
    if is_folder:
        return RemoteFolder(filesystem, path, PurePosixPath(path).name), ""
    folder, _, name = path.rpartition("/")
    return RemoteFolder(filesystem, folder, PurePosixPath(folder).name), name


def _unreachable(shown: str, error: Exception) -> CorpusError:
    return CorpusError(
        f"{shown} cannot be reached ({type(error).__name__}: {error}); check the address, the credentials, and that "
        "the fsspec package of its scheme (s3fs, gcsfs, ...) is installed"
    )


def _is_unanswered(error: Exception) -> bool:
    """Whether a storage gave no answer, or said to come again, which tells nothing of the file that was asked for."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if not names.isdisjoint(_UNANSWERED_KINDS) or (isinstance(error, OSError) and error.errno in _UNANSWERED_ERRNOS):
        return True
    status = getattr(error, "status", None)  # Of aiohttp's errors: what HTTP answered.
    return isinstance(status, int) and (status in _COME_AGAIN or status >= HTTPStatus.INTERNAL_SERVER_ERROR)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.endswith(".partial")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
