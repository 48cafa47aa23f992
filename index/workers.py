"""Shards in several processes, each of which loads the bundle once; knows nothing of what an index is made of.

A process that dies is replaced, and its shard is begun again. A process whose parent dies ends at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from index.plan import IndexConfig, ShardRows
from index.shard import ShardWork, run_shard
from index.workspace import Workspace
from phosphene.bundle import load_bundle
from phosphene.engine_torch import TorchEngine
from phosphene.errors import ArtefactMismatch, SettingError
from phosphene.freed_memory import keep_freed_memory
from phosphene.pipeline import Pipeline

__all__ = ["ATTEMPT_LIMIT", "DECODER_LIMIT", "WorkerSetup", "open_decoders", "run_in_processes"]

DECODER_LIMIT = 8
"""Threads that read and decode for one process, at most."""
ATTEMPT_LIMIT = 3
"""Processes that may die over one shard, until the job gives up."""
_LOADING = -1
"""In place of the number of a shard."""


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """What every process needs, whatever shard it works on."""

    bundle: Path
    """Folder of the bundle."""
    bundle_id: str
    """Its id, as the plan knows it."""
    device: str
    """Torch device."""
    config: IndexConfig
    """What the plan fixes."""
    workspace: Workspace = field(compare=False)
    """Where finished shards go."""

    def open_pipeline(self) -> Pipeline:
        """Load the bundle.

        Raises:
            ArtefactMismatch: another one lies there now.
        """
        bundle = load_bundle(self.bundle)
        if bundle.id != self.bundle_id:
            raise ArtefactMismatch(
                f"bundle {self.bundle.name!r} changed while the job ran: it is {bundle.id} now instead of "
                f"{self.bundle_id}; put it back"
            )
        return Pipeline(TorchEngine(bundle, device=self.device, thread_count=self.config.thread_count))


def open_decoders(worker_count: int = 1) -> ThreadPoolExecutor:
    """Return the threads that read and decode for one of so many processes; close them."""
    share = max(1, (os.cpu_count() or 1) // worker_count)
    return ThreadPoolExecutor(min(DECODER_LIMIT, share), thread_name_prefix="decode")


def run_in_processes(
    setup: WorkerSetup,
    shards: Sequence[ShardRows],
    cut: Callable[[ShardRows], ShardWork],
    *,
    worker_count: int,
    advance: Callable[[int], None],
    finish: Callable[[ShardRows], None],
) -> None:
    """Run shards in processes; returns when the last is done.

    Args:
        setup: what every process needs.
        shards: which shards, in the order in which they are begun.
        cut: says what a shard is made from.
        worker_count: processes.
        advance: told the number of images finished; fewer than none where a process died within a shard.
        finish: told of every finished shard.

    Raises:
        PhospheneError, OSError: what a process met; the others are ended.
        SettingError: the processes that worked on one shard died again and again.
    """
    pool = _Pool(setup, cut, worker_count=min(worker_count, len(shards)), advance=advance, finish=finish)
    try:
        pool.run(shards)
    finally:
        pool.close()


@dataclass(kw_only=True, eq=False)
class _Worker:
    """A process and what it does."""

    process: SpawnProcess
    connection: Connection
    shard: ShardRows | None = None
    """None: it loads the bundle, or waits."""
    is_ready: bool = False
    image_count: int = 0
    """Images of the shard that it has finished."""


@dataclass(frozen=True, kw_only=True)
class _Advance:
    image_count: int


@dataclass(frozen=True)
class _Ready:
    """The process waits for a shard; it has finished the one it had."""


@dataclass(kw_only=True, eq=False)
class _Failed:
    error: Exception = field()


class _Pool:
    """The processes, seen from their parent."""

    def __init__(
        self,
        setup: WorkerSetup,
        cut: Callable[[ShardRows], ShardWork],
        *,
        worker_count: int,
        advance: Callable[[int], None],
        finish: Callable[[ShardRows], None],
    ) -> None:
        self._setup, self._cut = setup, cut
        self._advance, self._finish = advance, finish
        self._worker_count = worker_count
        self._workers: list[_Worker] = []
        self._deaths: Counter[int] = Counter()

    def run(self, shards: Iterable[ShardRows]) -> None:
        waiting = deque(shards)
        while waiting or any(worker.shard for worker in self._workers):
            while len(self._workers) < self._worker_count and len(self._unready()) < len(waiting):
                self._workers.append(_start(self._setup, self._worker_count))
            for worker in self._workers:
                if waiting and worker.is_ready and worker.shard is None:
                    worker.shard = waiting.popleft()
                    self._send(worker)
            ready = wait([worker.connection for worker in self._workers])
            for worker in [worker for worker in self._workers if worker.connection in ready]:
                self._hear(worker, waiting)

    def _unready(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.shard is None]

    def _send(self, worker: _Worker) -> None:
        assert worker.shard is not None
        try:
            worker.connection.send(self._cut(worker.shard))
        except OSError:
            return  # It has died; its connection says so next.

    def _hear(self, worker: _Worker, waiting: deque[ShardRows]) -> None:
        try:
            message: object = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker, waiting)
            return
        match message:
            case _Advance():
                worker.image_count += message.image_count
                self._advance(message.image_count)
            case _Ready():
                worker.is_ready = True
                self._deaths[_LOADING] = 0
                if worker.shard is not None:
                    self._finish(worker.shard)
                worker.shard, worker.image_count = None, 0
            case _Failed():
                raise message.error
            case _:
                raise TypeError(type(message).__name__)

    def _bury(self, worker: _Worker, waiting: deque[ShardRows]) -> None:
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join()
        number = _LOADING if worker.shard is None else worker.shard.number
        self._deaths[number] += 1
        if worker.shard is not None:
            self._advance(-worker.image_count)
            waiting.appendleft(worker.shard)
        if self._deaths[number] == ATTEMPT_LIMIT:
            what = "loaded the bundle" if worker.shard is None else f"worked on shard {worker.shard.name}"
            raise SettingError(
                f"{ATTEMPT_LIMIT} processes that {what} died, the last with status {worker.process.exitcode}; memory "
                "may be short: try fewer --workers, or a smaller --batch"
            )

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()


def _start(setup: WorkerSetup, worker_count: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, setup, worker_count), name="index worker", daemon=True)
    process.start()
    # Only the process may keep its end open: so its death is heard.
    theirs.close()
    return _Worker(process=process, connection=ours)


def _work(connection: Connection, setup: WorkerSetup, worker_count: int) -> None:
    """Be a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent hears it and ends its workers.
    keep_freed_memory()
    with setup.workspace.held_by_worker():
        _end_with_parent()
        try:
            pipeline = setup.open_pipeline()
            with open_decoders(worker_count) as decoders:
                connection.send(_Ready())
                while True:
                    work: ShardWork = connection.recv()
                    write = partial(
                        run_shard,
                        work=work,
                        config=setup.config,
                        pipeline=pipeline,
                        decoders=decoders,
                        advance=lambda image_count: connection.send(_Advance(image_count=image_count)),
                    )
                    setup.workspace.write_shard(work.shard, write)
                    connection.send(_Ready())
        except EOFError:
            return  # The parent has all it wants.
        except Exception as error:
            connection.send(_Failed(error=error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
    # The lock may have been had only after the parent had gone and another job had begun.
    if not parent.is_alive():
        os._exit(1)
