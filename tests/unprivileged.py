"""What a user without rights may read, also where root runs the tests: to root nothing is forbidden."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_NOBODY = 65534


@contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that every user may look into, as pytest's own are not; removed in the end."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """Root is nobody meanwhile, whom a file's mode binds; skips where that is not allowed, or nobody gets there.

    Args:
        folder: what nobody has to get to.
    """
    user = os.geteuid()
    if user == 0:
        try:
            os.seteuid(_NOBODY)
        except OSError as error:
            pytest.skip(f"root may not become another user here: {error}")
    try:
        if not os.access(folder, os.X_OK, effective_ids=True):
            pytest.skip(f"no other user reaches {folder}")
        yield
    finally:
        os.seteuid(user)
