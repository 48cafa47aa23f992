"""Keeps the memory that a process frees for its next image or batch, instead of giving it back; Linux with glibc.

The C library hands large pieces back to the system as they are freed and asks for them anew, and every page of them is
then zeroed again: up to half of a decode, and a tenth of all the time of a small encoder on a CPU. For processes of our
own, never for a library's caller: what a process keeps, no other can have.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

__all__ = ["keep_freed_memory"]

# Names and numbers of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_MOST_BYTES = 2**31 - 1
# The largest that the C library takes.
_OWN_MAPPING_BYTES = 32 * 2**20


def keep_freed_memory(limit_bytes: int | None = None, *, mallopt: Callable[[int, int], int] | None = None) -> None:
    """Keep what this process frees from now on; changes no result, and does nothing where the C library is another.

    Args:
        limit_bytes: about how much of it, at most 2 GiB, and no piece of more than 32 MiB; None: all.
        mallopt: takes the settings, as described in mallopt(3); None: the C library of this process.
    """
    mallopt = mallopt or getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # What has a mapping of its own goes as it is freed.
    if limit_bytes is None:
        mallopt(_M_MMAP_MAX, 0)
    else:
        mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _MOST_BYTES if limit_bytes is None else limit_bytes)
