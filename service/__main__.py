"""`python -m service`: answers phosphene.v1 over gRPC until SIGTERM or SIGINT; SIGHUP reloads what it serves.

    PHOSPHENE_BUNDLES=scenes=build/demo/bundle PHOSPHENE_INDEXES=scenes=build/demo/index python -m service

Exit status: 0 after a drain, or told to stop before it served; 1 where the device failed; 2 where settings, artefacts
or ports are at fault.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Literal, NoReturn

import uvloop

import phosphene
from phosphene.errors import DeviceFailed, PhospheneError
from phosphene.open_files import allow_open_files
from service.assembly import OpenerFactory, Running, catalogue_opener, open_service
from service.observing.logs import log_event, open_logs
from service.settings import Settings, load_settings
from service.variables import VARIABLES, describe, to_markdown

__all__ = ["end", "main"]

_COLLECT_AFTER_OBJECTS = (50_000, 20, 50)
_LEAST_USAGE_WIDTH = 40


def main(make_opener: OpenerFactory = catalogue_opener) -> int:
    """Run the service until it is told to stop.

    Args:
        make_opener: makes what opens the catalogue.

    Returns:
        The exit status.
    """
    open_logs("info")
    allow_open_files()
    # Nothing to reload yet; left alone, a hang-up would end the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        settings = load_settings()
        open_logs(settings.log_level)
        log_event("starting", version=phosphene.__version__, settings=settings.to_log())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, make_opener))
    except DeviceFailed as error:
        log_event("device failed", level=logging.ERROR, reason=str(error))
        return 1
    except PhospheneError as error:
        log_event("cannot serve", level=logging.ERROR, reason=str(error))
        sys.stderr.write(f"service: {error}\n")
        return 2
    log_event("stopped")
    return 0


async def _serve(settings: Settings, make_opener: OpenerFactory) -> None:
    stop, hangup = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    opening = open_service(settings, make_opener, stop=stop, clock=time.monotonic)
    async with _unless_stopped(opening, stop) as running:
        if running is None:
            return
        _spare_long_lived()
        async with asyncio.TaskGroup() as waits:
            reloads = waits.create_task(_reload_on_hangup(running, hangup))
            failing = waits.create_task(running.batcher.failed())
            stopping = waits.create_task(stop.wait())
            log_event(
                "serving",
                address=str(running.address),
                metrics=str(running.metrics_address),
                admin=None if running.admin_address is None else str(running.admin_address),
            )
            await asyncio.wait((failing, stopping), return_when=asyncio.FIRST_COMPLETED)
            for task in (reloads, failing, stopping):
                task.cancel()
        if failing.done() and not failing.cancelled():
            await running.server.say_serving(False)
            raise failing.result()
        log_event("draining", limit_s=settings.network.drain_s)


@asynccontextmanager
async def _unless_stopped(
    opening: AbstractAsyncContextManager[Running], stop: asyncio.Event
) -> AsyncIterator[Running | None]:
    """What opens; None where the service is told to stop first, and then all that was open by then is closed."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as lifetimes:
        running: Running | None = None
        stopping = asyncio.create_task(stop.wait())
        try:
            async with asyncio.timeout(None) as patience:

                def give_up(_: asyncio.Task[Literal[True]]) -> None:
                    # All may be open by now.
                    with suppress(RuntimeError):
                        patience.reschedule(loop.time())

                stopping.add_done_callback(give_up)
                running = await lifetimes.enter_async_context(opening)
        except TimeoutError:
            if not patience.expired():
                raise
            log_event("stopping", reason="told to before all was open")
        finally:
            stopping.cancel()
        yield running


def _spare_long_lived() -> None:
    """Have the garbage collector look at what requests leave, and not again and again at what stays until the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER_OBJECTS)


async def _reload_on_hangup(running: Running, hangup: asyncio.Event) -> None:
    while True:
        await hangup.wait()
        hangup.clear()
        try:
            await running.replica.reload()
        except PhospheneError:
            # Said in the log and in the metrics; what was served is served on.
            continue


def _command() -> int:
    """Run, or do what the one argument says."""
    match sys.argv[1:]:
        case []:
            return main()
        case ["--help" | "-h"]:
            sys.stdout.write(_usage())
            return 0
        case ["configuration"]:
            sys.stdout.write(to_markdown())
            return 0
        case ["check"]:
            from service.check import check

            return check()
        case unknown:
            told = f"{' '.join(unknown)!r} is not one of check, configuration and --help"
            sys.stderr.write(f"{_usage()}\nservice: {told}\n")
            return 2


def end(status: int) -> NoReturn:
    """End the process, whatever threads are left behind.

    Args:
        status: the exit status.
    """
    if any(thread.daemon and thread.name.startswith("phosphene-") for thread in threading.enumerate()):
        # One that comes back from C++ while the interpreter is taken down aborts the process.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)


def _usage() -> str:
    width = max(_LEAST_USAGE_WIDTH, shutil.get_terminal_size().columns)

    def folded(words: str, margin: str = "") -> str:
        lines = textwrap.wrap(
            words,
            width,
            initial_indent=margin,
            subsequent_indent=margin,
            break_long_words=False,
            break_on_hyphens=False,
        )
        return "\n".join(lines)

    said = folded(
        "Without an argument: serve. check: try the settings and say what would be served. configuration: print "
        "docs/configuration.md. The service is set by variables:"
    )
    known = "\n".join(f"  {name}\n{folded(describe(name), ' ' * 6)}" for name in VARIABLES)
    return f"usage: python -m service [check | configuration]\n\n{said}\n{known}\n"


if __name__ == "__main__":
    end(_command())
