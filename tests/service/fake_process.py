"""`python -m service` over fakes, for tests that need a process: `python -m tests.service.fake_process HOLD_S`.

The engine holds each batch for HOLD_S seconds, so that a signal finds work in hand.
"""

import sys
import threading
from contextlib import asynccontextmanager

from service.__main__ import main
from service.catalogue import Catalogue
from service.observing.logs import log_event
from tests.fakes import FakeEngine, fake_entry


class SlowEngine(FakeEngine):
    """Takes its time over every batch after the first, which warms it."""

    def __init__(self, hold_s):
        super().__init__()
        self._hold_s = hold_s

    def run(self, pixels, want):
        if self.batch_sizes:
            log_event("holding")
            threading.Event().wait(self._hold_s)
        return super().run(pixels, want)


def fakes(settings, on_stage):
    @asynccontextmanager
    async def open_fakes(before):
        yield Catalogue([fake_entry(SlowEngine(float(sys.argv[1])))])

    return open_fakes


if __name__ == "__main__":
    raise SystemExit(main(fakes))
