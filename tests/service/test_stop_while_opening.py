"""A service that is told to stop while it still opens artefacts ends at once, and leaves nothing behind.

The artefact that takes for ever is a pipe that nobody writes to: whoever opens it waits in the system, where no
exception reaches.
"""

import asyncio
import errno
import os
import select
import signal
from contextlib import contextmanager

import pytest

from benchmarks.service_load.processes import tree_pids
from tests.service.own_process import own_process

_HANG_S = 60


@contextmanager
def watched(processes):
    """Descriptors that say when each process has ended."""
    try:
        descriptors = [os.pidfd_open(process) for process in processes]
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        pytest.skip("the system has no descriptors of processes")
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def has_ended(descriptor):
    return bool(select.select([descriptor], [], [], _HANG_S)[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_service_whose_artefacts_take_for_ever(number, tmp_path):
    current = tmp_path / "CURRENT"
    os.mkfifo(current)
    named = {"PHOSPHENE_BUNDLES": "", "PHOSPHENE_CURRENT": str(current), "PHOSPHENE_DECODE_WORKERS": "2"}
    async with own_process(module="service", keeps_all=True, **named) as process:
        # Returns once the service has the pipe open for reading.
        writing = await asyncio.to_thread(os.open, current, os.O_WRONLY)
        try:
            decoders = tree_pids(process.pid)[1:]
            assert len(decoders) == 2
            with watched(decoders) as ends:
                process.child.send_signal(number)
                assert await process.end() == 0
                assert all([await asyncio.to_thread(has_ended, end) for end in ends])
        finally:
            os.close(writing)
        await process.line("stopped")
        assert "serving" not in process.events
    assert list(tmp_path.iterdir()) == [current]
