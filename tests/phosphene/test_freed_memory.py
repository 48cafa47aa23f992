"""What a process frees stays its own; on Linux with glibc, elsewhere nothing changes."""

import ctypes
import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from phosphene.freed_memory import keep_freed_memory

def faults_of_a_batch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [torch.ones(MIB << 18) for _ in range(COUNT)]
    del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

COUNT, MIB, LIMIT = (int(word) for word in sys.argv[1:])
plain = min(faults_of_a_batch() for _ in range(5))
keep_freed_memory(LIMIT or None)
# Pieces are aligned, and it takes the C library some batches to find a place for them.
print(plain, min(faults_of_a_batch() for _ in range(30)))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")
@pytest.mark.parametrize(("count", "mib", "limit_bytes"), [(1, 64, 0), (3, 10, 64 * 2**20)])
def test_batches_take_the_memory_of_those_before(count, mib, limit_bytes):
    command = [sys.executable, "-c", PROGRAM, str(count), str(mib), str(limit_bytes)]
    # Left alone, the C library moves its thresholds by what was freed before; held, it gives every piece back.
    held = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(command, env=os.environ | held, capture_output=True, text=True, timeout=120, check=True)
    plain, kept = map(int, done.stdout.split())
    assert plain > count * mib / 4  # A page may have 2 MiB.
    assert kept < count * mib / 8
