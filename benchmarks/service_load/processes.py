"""Processes of the benchmark: started, watched, ended; and the processor time of a process with all its descendants.

Reads Linux's /proc. Imports the standard library alone, because the load generators run in the peers' environments too.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

__all__ = ["free_port", "is_alive", "neighbours", "redis_server", "running", "says", "tree_cpu_s", "tree_pids"]

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_TERM_S, _KILL_S = 4.0, 4.0


def tree_pids(root: int) -> list[int]:
    """Every living process of the tree, the root first."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in _all_processes():
        children.setdefault(parent, []).append(pid)
    found, left = [], [root]
    while left:
        pid = left.pop()
        found.append(pid)
        left += children.get(pid, [])
    return found


def tree_cpu_s(root: int) -> float:
    """Processor seconds, user and system, that the tree has used, children that ended and were waited for included."""
    times = {pid: seconds for pid, (_, seconds) in _all_processes()}
    return sum(times.get(pid, 0.0) for pid in tree_pids(root))


def read_stat(text: str) -> tuple[int, float]:
    """Parent and processor seconds from a line of /proc/PID/stat; the command in it may hold anything."""
    fields = text.rpartition(")")[2].split()
    return int(fields[1]), sum(int(ticks) for ticks in fields[11:15]) / _TICKS_PER_S


def _all_processes() -> Iterator[tuple[int, tuple[int, float]]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                yield int(entry.name), read_stat(Path(entry.path, "stat").read_text())


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str], *, log: Path, variables: Mapping[str, str] | None = None, is_heard: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command with its output in a file; on leaving, ask it to end, and make what is left of the tree.

    Args:
        command: program and arguments.
        log: takes standard output and error.
        variables: added to the environment, from which `PHOSPHENE_*` is taken out.
        is_heard: whether standard output goes into a pipe instead, for `says`.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PHOSPHENE_")}
    environment |= variables or {}
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    # For appending: what is heard goes into the same file.
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if is_heard else output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _end(process)
            if process.stdout is not None:
                process.stdout.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    pids = tree_pids(process.pid)
    process.send_signal(signal.SIGTERM)
    deadline_s = time.monotonic() + _TERM_S
    with suppress(subprocess.TimeoutExpired):
        process.wait(_TERM_S)
    for pid in pids[1:]:
        _await_end(pid, max(deadline_s - time.monotonic(), 0.0))
    for pid in pids:
        if is_alive(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()
    for pid in pids[1:]:
        _await_end(pid, _KILL_S)


def _await_end(pid: int, limit_s: float) -> None:
    """Wait until a process that need not be our child has ended, so long at most."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        ended.poll(1000 * limit_s)
    finally:
        os.close(descriptor)


def says(process: subprocess.Popen[bytes], word: bytes, *, limit_s: float, log: Path) -> bool:
    """Read what a process that is heard says until a line holds a word; False where it ends before, or takes too long.

    Args:
        process: from `running` with `is_heard`.
        word: what is waited for.
        limit_s: seconds after which it is made to end.
        log: takes what was said, behind what is there.
    """
    assert process.stdout is not None
    limit = threading.Timer(limit_s, process.kill)
    limit.start()
    try:
        with log.open("ab") as output:
            for line in process.stdout:
                output.write(line)
                if word in line:
                    return True
        return False
    finally:
        limit.cancel()


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep a number of processors busy with other work, at the same priority as everything else."""
    with ExitStack() as ending:
        for _ in range(count):
            busy = ending.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            ending.callback(busy.kill)
        yield


@contextmanager
def redis_server(log: Path) -> Iterator[str]:
    """Run a Redis that keeps nothing, on a free port; gives its URL.

    Raises:
        FileNotFoundError: there is no `redis-server` on the path.
    """
    port = free_port()
    options = ("--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no")
    with running(("redis-server", *options), log=log):
        yield f"redis://127.0.0.1:{port}/0"
