"""What a dashboard sees: Prometheus metrics on their own registry and port; the only user of prometheus_client here.

Base units (seconds, bytes), prefix `phosphene_`, closed label sets that start at zero, so that a rate exists before
the first event and no caller can create a time series.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from phosphene.errors import SettingError
from service.batcher import Drop
from service.settings import ListenAddress

__all__ = ["CODES", "REFUSALS", "STAGES", "Metrics", "MetricsServer"]

STAGES = ("receive", "decode", "queue", "engine", "explain", "serialise")
"""Where the time of a request goes, in order."""

REFUSALS = ("invalid", "not_found", "overloaded", "precondition", "expired", "internal")
"""Why a request got no answer."""

CODES = (
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "INTERNAL",
)
"""Every gRPC code that a method of this service ends with."""

_DURATIONS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_BYTES = tuple(float(4**power * 1024) for power in range(9))
_PIXELS = tuple(float(4**power * 4096) for power in range(8))
_L0 = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_FVU = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)


class Metrics:
    """Every metric of the service, and the events that move them; it also listens to the batcher."""

    def __init__(self, *, methods: Sequence[str], queue_capacity: int) -> None:
        """Register all metrics with their labels at zero.

        Args:
            methods: names of the methods of the service.
            queue_capacity: most images that may wait for the engine.
        """
        here = self.registry = CollectorRegistry()
        self._requests = Counter(
            "phosphene_requests", "Requests answered, by method and gRPC code.", ("method", "code"), registry=here
        )
        self._request_s = Histogram(
            "phosphene_request_duration_seconds",
            "Time from the first byte of the handler to its answer.",
            ("method",),
            buckets=_DURATIONS_S,
            registry=here,
        )
        self._stage_s = Histogram(
            "phosphene_stage_duration_seconds",
            "Time in one stage of an answer.",
            ("stage",),
            buckets=_DURATIONS_S,
            registry=here,
        )
        self._batch_size = Histogram(
            "phosphene_batch_size_items", "Items answered by one run of the engine.", buckets=_SIZES, registry=here
        )
        self._queue_depth = Gauge("phosphene_queue_depth_items", "Items that wait for the engine.", registry=here)
        self._queue_capacity = Gauge(
            "phosphene_queue_capacity_items", "Most items that may wait for the engine.", registry=here
        )
        self._drops = Counter(
            "phosphene_dropped_items", "Items dropped before they cost device time.", ("cause",), registry=here
        )
        self._refusals = Counter(
            "phosphene_refused_requests", "Requests without an answer, by reason.", ("reason",), registry=here
        )
        self._image_bytes = Histogram(
            "phosphene_image_size_bytes", "Bytes of uploaded images.", buckets=_BYTES, registry=here
        )
        self._image_pixels = Histogram(
            "phosphene_image_size_pixels", "Width times height of uploaded images.", buckets=_PIXELS, registry=here
        )
        self._l0 = Histogram(
            "phosphene_answer_l0_neurons", "Active neurons of live image codes.", buckets=_L0, registry=here
        )
        self._fvu = Histogram(
            "phosphene_answer_fvu_ratio",
            "Fraction of variance unexplained of live answers that asked for fidelity.",
            buckets=_FVU,
            registry=here,
        )
        self._artefacts = Gauge(
            "phosphene_artefact_info",
            "1 for each served artefact.",
            ("kind", "name", "id", "code_id"),
            registry=here,
        )
        self._queue_capacity.set(queue_capacity)
        for method in methods:
            self._request_s.labels(method)
            for code in CODES:
                self._requests.labels(method, code)
        for stage in STAGES:
            self._stage_s.labels(stage)
        for reason in REFUSALS:
            self._refusals.labels(reason)
        for cause in (Drop.CANCELLED, Drop.EXPIRED, Drop.CLOSED):
            self._drops.labels(cause)

    def request_done(self, *, method: str, code: str, duration_s: float) -> None:
        """A request ended, with an answer or without."""
        self._requests.labels(method, code).inc()
        self._request_s.labels(method).observe(duration_s)

    def refused(self, reason: str) -> None:
        """A request got no answer; `reason` is one of `REFUSALS`."""
        self._refusals.labels(reason).inc()

    def stage_done(self, stage: str, duration_s: float) -> None:
        """One stage of an answer took `duration_s`; `stage` is one of `STAGES`."""
        self._stage_s.labels(stage).observe(duration_s)

    def image_received(self, *, size_bytes: int, pixel_count: int) -> None:
        """An uploaded image was decoded."""
        self._image_bytes.observe(size_bytes)
        self._image_pixels.observe(pixel_count)

    def image_encoded(self, *, l0: int, fvu: float | None) -> None:
        """A live image has its code; `fvu` where fidelity was asked for."""
        self._l0.observe(l0)
        if fvu is not None:
            self._fvu.observe(fvu)

    def artefact_served(self, *, kind: str, name: str, id: str, code_id: str) -> None:
        """A bundle or an index is being served."""
        self._artefacts.labels(kind, name, id, code_id).set(1)

    def batch_done(self, *, lane: str, size: int, queue_s: Sequence[float], engine_s: float) -> None:
        """From the batcher: one batch was answered."""
        self._batch_size.observe(size)
        self._stage_s.labels("engine").observe(engine_s)
        waited = self._stage_s.labels("queue")
        for wait_s in queue_s:
            waited.observe(wait_s)

    def dropped(self, cause: str) -> None:
        """From the batcher: an item was dropped."""
        self._drops.labels(cause).inc()

    def depth_changed(self, depth: int) -> None:
        """From the batcher: the number of waiting items."""
        self._queue_depth.set(depth)


class MetricsServer:
    """The HTTP page that Prometheus scrapes; an async context manager that owns its thread and port."""

    def __init__(self, metrics: Metrics, listen: ListenAddress) -> None:
        """Keep what to show and where."""
        self._metrics = metrics
        self._listen = listen
        self.address = listen
        """The bound address, once entered."""

    async def __aenter__(self) -> Self:
        """Bind the port and answer scrapes; raises `SettingError` where the port is taken."""
        try:
            self._server, self._thread = prometheus_client.start_http_server(
                self._listen.port, self._listen.host, self._metrics.registry
            )
        except OSError as error:
            raise SettingError(
                f"PHOSPHENE_METRICS_LISTEN is {self._listen}, which cannot be bound ({error.strerror}); "
                "end the process that holds it, or choose another port"
            ) from error
        self.address = ListenAddress(host=self._listen.host, port=self._server.server_port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop answering and free the port."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        self._thread.join()
