"""One replica as operators see it: reload, drain, status; knows no protobuf."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from phosphene.errors import ArtefactError, PhospheneError, ReloadUnderWay, Unavailable
from service.batching.admission import Admission
from service.batching.batcher import Batcher
from service.claims import Lane
from service.generations import Generations
from service.observing.logs import log_event
from service.observing.metric_events import Metrics

__all__ = ["Replica", "ReplicaStatus"]


@dataclass(frozen=True, kw_only=True)
class ReplicaStatus:
    """How a replica is."""

    generation: str
    """Names everything that is served."""
    is_serving: bool
    """What health checks are told."""
    image_count: int
    """Images in hand."""
    size_bytes: int
    """Bytes of theirs."""
    wait_s: float
    """Estimated seconds that an interactive image would wait for the device."""


class Replica:
    """What operators can ask of this process."""

    def __init__(
        self,
        *,
        generations: Generations,
        admission: Admission,
        batcher: Batcher,
        metrics: Metrics,
        is_serving: Callable[[], bool],
        stop: asyncio.Event,
        drain_s: float,
    ) -> None:
        """Join what is operated.

        Args:
            generations: what is reloaded.
            admission: knows what is in hand.
            batcher: knows how long work waits.
            metrics: told of reloads.
            is_serving: what health checks are told.
            stop: set to drain the replica.
            drain_s: seconds that accepted work may take then.
        """
        self._generations = generations
        self._admission = admission
        self._batcher = batcher
        self._metrics = metrics
        self._is_serving = is_serving
        self._stop = stop
        self._drain_s = drain_s

    async def reload(self) -> bool:
        """Switch to what the settings name now; tells whether that is another generation.

        A reload once begun goes on when whoever asked for it leaves: what opens files in a thread cannot be stopped.

        Raises:
            ReloadUnderWay: another reload has not ended.
            PhospheneError: nothing was switched, and why.
        """
        return await asyncio.shield(asyncio.create_task(self._reload()))

    async def _reload(self) -> bool:
        try:
            switched = await self._generations.load()
        except ReloadUnderWay as error:
            # Not counted, for it never began; whoever asked by a signal reads of it here alone.
            log_event("reload refused", level=logging.WARNING, reason=str(error))
            raise
        except PhospheneError as error:
            self._metrics.reload_done("refused")
            log_event("reload refused", level=logging.WARNING, reason=str(error))
            raise
        except Exception as error:
            self._metrics.reload_done("refused")
            log_event("reload refused", level=logging.ERROR, error=error)
            raise ArtefactError(
                f"what the settings name breaks on opening ({type(error).__name__}), and nothing was switched; the "
                "service's log says where"
            ) from error
        self._metrics.reload_done("switched" if switched else "unchanged")
        return switched

    def drain(self) -> float:
        """Leave once accepted work has ended; returns the seconds that it may take."""
        self._stop.set()
        return self._drain_s

    def status(self) -> ReplicaStatus:
        """How the replica is; raises `Unavailable` before the first generation is loaded."""
        catalogue = self._generations.current
        if catalogue is None:
            raise Unavailable("the service is loading what it serves; try again")
        return ReplicaStatus(
            generation=catalogue.id,
            is_serving=self._is_serving(),
            image_count=self._admission.image_count,
            size_bytes=self._admission.size_bytes,
            wait_s=self._batcher.backlog_s(Lane.INTERACTIVE),
        )
