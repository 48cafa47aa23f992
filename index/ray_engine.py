"""Shards as Ray Core tasks: one task makes one shard. The only user of Ray, which is loaded when a job asks for it.

A task whose process or machine dies is begun again, by this process and not by Ray, so that attempts have a limit
whatever the cause. Ray's own reports of usage are off in a cluster begun here; one that runs has settings of its own.
Moritz et al. 2018, "Ray: A Distributed Framework for Emerging AI Applications".
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from index.engines import RayEngine
from index.plan import ShardRows
from index.progress import Progress
from index.shard import ShardWork, run_shard
from index.workers import ATTEMPT_LIMIT, DECODER_LIMIT, WorkerSetup
from phosphene.errors import SettingError
from phosphene.freed_memory import keep_freed_memory
from phosphene.pipeline import Pipeline

if TYPE_CHECKING:
    import ray

__all__ = ["require_ray", "run_on_ray", "shortfall"]

_OBJECT_STORE_BYTES = 256 << 20
"""Holds the lists of the shards under way: of 65,536 rows each, about 20 MB."""


def require_ray() -> None:
    """Check that Ray is installed, without loading it.

    Raises:
        SettingError: it is not.
    """
    if find_spec("ray") is None:
        raise SettingError(
            "Ray is not installed, and --engine ray needs it: pip install 'ray==2.60.0', or use --engine local"
        )


def run_on_ray(
    setup: WorkerSetup,
    shards: Sequence[ShardRows],
    cut: Callable[[ShardRows], ShardWork],
    *,
    engine: RayEngine,
    worker_count: int,
    progress: Progress,
    finish: Callable[[ShardRows], None],
) -> None:
    """Run shards as tasks; returns when the last is done.

    Args:
        setup: what every task needs.
        shards: which shards, in the order in which they are begun.
        cut: says what a shard is made from.
        engine: which cluster.
        worker_count: tasks at work at once.
        progress: told of the images of every finished shard, and of deaths.
        finish: told of every finished shard.

    Raises:
        PhospheneError, OSError: what a task met; the others are ended.
        SettingError: no such cluster, the processes that worked on one shard died again and again, or what they wrote
            is not to be seen here.
    """
    if not shards:
        return
    with _open_cluster(engine, cpu_count=worker_count * setup.config.thread_count) as cluster:
        _Tasks(cluster, setup, cut, progress).run(deque(shards), worker_count, finish)


class _Tasks:
    """The tasks, seen from the process that hands them out."""

    def __init__(
        self, cluster: Any, setup: WorkerSetup, cut: Callable[[ShardRows], ShardWork], progress: Progress
    ) -> None:
        self._ray, self._setup, self._cut, self._progress = cluster, setup, cut, progress
        self._deaths: Counter[int] = Counter()
        self._cpu_count, self._gpu_count = setup.config.thread_count, 0 if setup.device == "cpu" else 1
        self._encode = cluster.remote(num_cpus=self._cpu_count, num_gpus=self._gpu_count, max_retries=0)(encode_shard)

    def run(self, waiting: deque[ShardRows], worker_count: int, finish: Callable[[ShardRows], None]) -> None:
        # Ray itself says nothing, and waits: a cluster that grows by itself may yet get such a machine.
        lack = shortfall(self._ray.nodes(), cpu_count=self._cpu_count, gpu_count=self._gpu_count)
        if lack is not None:
            self._progress.say(lack)
        running: dict[ray.ObjectRef[None], ShardRows] = {}
        while waiting or running:
            while waiting and len(running) < worker_count:
                shard = waiting.popleft()
                running[self._encode.remote(self._setup, self._cut(shard))] = shard
            ended, _ = self._ray.wait(list(running))
            for task in ended:
                shard = running.pop(task)
                if not self._is_done(task, shard):
                    waiting.appendleft(shard)
                    continue
                self._progress.advance(shard.stop - shard.start)
                finish(shard)

    def _is_done(self, task: ray.ObjectRef[None], shard: ShardRows) -> bool:
        """Tell whether a task that has ended made its shard; False where its process died."""
        failures = self._ray.exceptions
        try:
            self._ray.get(task)
        except failures.RayTaskError as error:
            raise error.cause from error
        except failures.RayError as error:
            self._count_death(shard, error)
            return False
        if not self._setup.workspace.is_finished(shard):
            raise SettingError(
                f"shard {shard.name} was made, but is not in {self._setup.workspace.draft_index}; every machine of the "
                "cluster has to see --out under this path: put it on a shared file system"
            )
        return True

    def _count_death(self, shard: ShardRows, error: Exception) -> None:
        self._deaths[shard.number] += 1
        if self._deaths[shard.number] == ATTEMPT_LIMIT:
            raise SettingError(
                f"{ATTEMPT_LIMIT} processes that worked on shard {shard.name} died, the last with "
                f"{type(error).__name__}; memory may be short: try fewer --workers, or a smaller --batch"
            ) from error
        self._progress.say(f"a process died that worked on shard {shard.name}; it is begun again")


def shortfall(nodes: Sequence[Mapping[str, Any]], *, cpu_count: int, gpu_count: int) -> str | None:
    """Return what no machine of a cluster has that each task claims; None where some machine has it.

    Args:
        nodes: as `ray.nodes()` gives them.
        cpu_count: processors that a task claims.
        gpu_count: GPUs that it claims.
    """
    machines: list[Mapping[str, float]] = [node["Resources"] for node in nodes if node["Alive"]]
    if any(machine.get("CPU", 0) >= cpu_count and machine.get("GPU", 0) >= gpu_count for machine in machines):
        return None
    most = max((machine.get("CPU", 0) for machine in machines), default=0)
    claim = f"{cpu_count} processors (--threads)" + (f" and {gpu_count} GPU (--device)" if gpu_count else "")
    return (
        f"no machine of the cluster has {claim} for a task: the most is {most:g} processors, and "
        f"{sum(machine.get('GPU', 0) > 0 for machine in machines)} of {len(machines)} have a GPU; the job waits until "
        "one has: stop it, and name fewer, if none will"
    )


def encode_shard(setup: WorkerSetup, work: ShardWork) -> None:
    """Make one shard; nothing is left to do where an attempt before did so and died before it could say it."""
    with setup.workspace.held_by_worker():
        if setup.workspace.is_finished(work.shard):
            return
        with ThreadPoolExecutor(min(DECODER_LIMIT, setup.config.thread_count)) as decoders:
            write = partial(
                run_shard,
                work=work,
                config=setup.config,
                pipeline=_opened(setup),
                decoders=decoders,
                advance=lambda _: None,
            )
            setup.workspace.write_shard(work.shard, write)


@lru_cache(maxsize=1)
def _opened(setup: WorkerSetup) -> Pipeline:
    """Load the bundle once for all tasks that this process runs."""
    keep_freed_memory()
    return setup.open_pipeline()


@contextmanager
def _open_cluster(engine: RayEngine, *, cpu_count: int) -> Iterator[Any]:
    import ray

    common: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    with TemporaryDirectory(prefix="phosphene-ray-", ignore_cleanup_errors=True) as scratch:
        try:
            if engine.address is None:
                ray.init(
                    address="local",
                    num_cpus=cpu_count,
                    include_dashboard=False,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=scratch,
                    **common,
                )
            else:
                ray.init(address=engine.address, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise SettingError(
                f"Ray cluster {engine.address or 'on this machine'} cannot be had ({error}); check --ray-address, or "
                "leave it out to begin one on this machine"
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()
