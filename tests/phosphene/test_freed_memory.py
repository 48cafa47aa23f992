"""What a process frees stays its own: what the C library is asked for, and that it agrees."""

import os
import platform
import subprocess
import sys

import pytest

from phosphene.freed_memory import keep_freed_memory

# Numbers of <malloc.h>, described in mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
MIB = 2**20

PROGRAM = """
import ctypes
from phosphene.freed_memory import keep_freed_memory

answers = []
for limit_bytes in (None, 64 << 20):
    keep_freed_memory(limit_bytes, mallopt=lambda *setting: answers.append(ctypes.CDLL(None).mallopt(*setting)))
    keep_freed_memory(limit_bytes)
print(answers)
"""


@pytest.mark.parametrize(
    ("limit_bytes", "due"),
    [
        # Nothing has a mapping of its own, which would go with it, and nothing is trimmed.
        (None, {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}),
        (64 * MIB, {MMAP_THRESHOLD: 32 * MIB, TRIM_THRESHOLD: 64 * MIB}),
    ],
)
def test_what_the_c_library_is_asked_for(limit_bytes, due):
    asked = []
    keep_freed_memory(limit_bytes, mallopt=lambda *setting: asked.append(setting) or 1)
    assert dict(asked) == due
    assert len(asked) == len(due)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or sys.maxsize < 2**32, reason="what is asked for is meant for glibc on 64 bits"
)
def test_the_c_library_takes_every_setting():
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout == "[1, 1, 1, 1]\n"
