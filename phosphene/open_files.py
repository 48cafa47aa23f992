"""How many files a process may hold open: an index holds about a dozen for each of its shards, 65,536 images."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from phosphene.errors import SettingError

__all__ = ["allow_open_files", "shortage_explained"]

_MOST = 1 << 20
"""Asked for where the system sets no limit of its own."""


def allow_open_files() -> None:
    """Let this process, and those it starts, open as many files as the system lets it; for the edge of a program."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # Windows has none, and no such limit.

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _MOST if hard == resource.RLIM_INFINITY else hard
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextmanager
def shortage_explained(what: str) -> Iterator[None]:
    """Say what to do where a process may open no more files.

    Args:
        what: is being opened, for people.

    Raises:
        SettingError: it may open no more.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise SettingError(
            f"{what} needs more open files than the {limit} that this process may hold, about 12 a shard; raise the "
            "limit (ulimit -n, LimitNOFILE=), or build the index with larger shards (--shard-images)"
        ) from error
