"""Every metric of the service, and the events that move them: what a dashboard sees.

Base units (seconds, bytes), prefix `phosphene_`, closed label sets (`metric_labels`) that start at zero, so that a rate
exists before the first event and no caller can create a time series. Events come from the event loop, the engine thread
and others; each costs about a microsecond, because every labelled child is looked up once, here. Prometheus itself is
behind `metrics`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import isfinite
from wsgiref.types import WSGIApplication

from service.observing.metric_labels import (
    ADMISSION_REASONS,
    CACHE_RESULTS,
    CIRCUIT_STATES,
    CODES,
    DROP_CAUSES,
    DROP_STAGES,
    KILL_CAUSES,
    LANES,
    OPERATIONS,
    OUTCOMES,
    REFUSALS,
    RELOAD_RESULTS,
    STAGES,
    outcome_of_code,
)
from service.observing.metrics import Families
from service.observing.model_health import ModelHealth

__all__ = ["Metrics"]

_DURATIONS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = tuple(float(2**power) for power in range(9))
_BYTES = tuple(float(4**power * 1024) for power in range(9))
_PIXELS = tuple(float(4**power * 4096) for power in range(8))
_L0 = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0)
_FVU = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
_UNITS = ("items", "bytes", "pixels")


class Metrics:
    """Every metric of the service, by subject; it also listens to the queues, the workers and the cache."""

    def __init__(
        self, *, methods: Sequence[str], queue_capacity: int, unix_time_s: Callable[[], float] = time.time
    ) -> None:
        """Register all metrics with their labels at zero.

        Args:
            methods: names of the methods of the service.
            queue_capacity: most images that may wait for the engine.
            unix_time_s: seconds since 1970, for timestamps.
        """
        self._families = Families()
        self.registry = self._families.registry
        """Of Prometheus, for whoever reads metrics without a page."""
        self._unix_time_s = unix_time_s
        self._register_requests(methods)
        self._register_admission()
        self._register_decoding()
        self._register_batches(queue_capacity)
        self._register_device()
        self._register_answers()
        self._register_cache()
        self._register_artefacts()

    @property
    def page(self) -> WSGIApplication:
        """Writes all metrics, in the form that the scraper asks for."""
        return self._families.page

    # -- requests

    def _register_requests(self, methods: Sequence[str]) -> None:
        received = self._families.counter("requests_received", "Requests whose message arrived, by method.", "method")
        done = self._families.counter("requests", "Requests that ended, by method and gRPC code.", "method", "code")
        duration = self._families.histogram(
            "request_duration_seconds",
            "Time from the arrival of a request to its end, by method and by how it ended.",
            _DURATIONS_S,
            "method",
            "outcome",
        )
        refused = self._families.counter("refused_requests", "Requests that got no answer, by reason.", "reason")
        stage = self._families.histogram(
            "stage_duration_seconds", "Time in one stage of an answer.", _DURATIONS_S, "stage"
        )
        self._streams = self._families.gauge("open_streams", "Streams of many images that are open now.")
        items = self._families.counter(
            "stream_items", "Images of streams that were answered, by how each ended.", "outcome"
        )
        self._stream_items = {end: items.labels(end) for end in OUTCOMES}
        self._received = {method: received.labels(method) for method in methods}
        self._done = {(method, code): done.labels(method, code) for method in methods for code in CODES}
        self._duration_s = {(method, end): duration.labels(method, end) for method in methods for end in OUTCOMES}
        self._refused = {reason: refused.labels(reason) for reason in REFUSALS}
        self._stage_s = {name: stage.labels(name) for name in STAGES}

    def request_received(self, method: str) -> None:
        """The message of a request arrived."""
        self._received[method].inc()

    def request_done(self, *, method: str, code: str, duration_s: float, outcome: str | None = None) -> None:
        """A request ended, with an answer or without; `outcome` is of `OUTCOMES`, None derives it from the code."""
        self._done[method, code].inc()
        self._duration_s[method, outcome or outcome_of_code(code)].observe(duration_s)

    def refused(self, reason: str) -> None:
        """A request got no answer; `reason` is one of `REFUSALS`."""
        self._refused[reason].inc()

    def stage_done(self, stage: str, duration_s: float) -> None:
        """One stage of an answer took `duration_s`; `stage` is one of `STAGES`."""
        self._stage_s[stage].observe(duration_s)

    def stream_opened(self) -> None:
        """A stream of many images began."""
        self._streams.inc()

    def stream_item_done(self, code: str) -> None:
        """One image of a stream was answered, with this gRPC code."""
        self._stream_items[outcome_of_code(code)].inc()

    def stream_closed(self) -> None:
        """A stream of many images ended."""
        self._streams.dec()

    # -- admission

    def _register_admission(self) -> None:
        refused = self._families.counter(
            "admission_refused_items", "Items that admission turned away, by bound.", "reason"
        )
        self._admission_refused = {reason: refused.labels(reason) for reason in ADMISSION_REASONS}
        self._items, self._bytes, self._pixels = (
            self._families.level(f"admitted_{unit}", f"{unit.capitalize()} of images admitted and not yet answered.")
            for unit in _UNITS
        )
        self._admission_limits = [
            self._families.gauge(
                f"admission_limit_{unit}", f"Most {unit} of images that may be in hand at once; 0: not known."
            )
            for unit in _UNITS
        ]

    def admission_limits(self, *, image_count: int, size_bytes: int, pixel_count: int) -> None:
        """Tell the bounds of admission."""
        for gauge, limit in zip(self._admission_limits, (image_count, size_bytes, pixel_count), strict=True):
            gauge.set(limit)

    def admitted_changed(self, *, image_count: int, size_bytes: int, pixel_count: int) -> None:
        """What is admitted and unfinished changed to this."""
        self._items.value, self._bytes.value, self._pixels.value = image_count, size_bytes, pixel_count

    def admission_refused(self, reason: str) -> None:
        """Admission turned work away; `reason` is one of `ADMISSION_REASONS`."""
        self._admission_refused[reason].inc()

    # -- decoding

    def _register_decoding(self) -> None:
        self._decode_s = self._families.histogram(
            "decode_worker_duration_seconds", "Time of a decode worker over one image, without waiting.", _DURATIONS_S
        ).labels()
        self._decoded_bytes = self._families.counter("decoded_bytes", "Bytes of images that decode workers decoded.")
        self._decoded_pixels = self._families.counter("decoded_pixels", "Pixels of images that decode workers decoded.")
        killed = self._families.counter(
            "decode_killed_items", "Images whose decode worker was replaced, by cause.", "cause"
        )
        self._killed = {cause: killed.labels(cause) for cause in KILL_CAUSES}
        self._decode_depth = self._families.level("decode_depth_items", "Images that wait for a decode worker.")
        self._image_bytes = self._families.histogram("image_size_bytes", "Bytes of uploaded images.", _BYTES).labels()
        self._image_pixels = self._families.histogram(
            "image_size_pixels", "Width times height of uploaded images.", _PIXELS
        ).labels()

    def decode_done(self, *, duration_s: float, size_bytes: int, pixel_count: int) -> None:
        """A decode worker answered an image."""
        self._decode_s.observe(duration_s)
        self._decoded_bytes.inc(size_bytes)
        self._decoded_pixels.inc(pixel_count)

    def decode_killed(self, cause: str) -> None:
        """A decode worker was replaced; `cause` is one of `KILL_CAUSES`."""
        self._killed[cause].inc()

    def decode_depth_changed(self, depth: int) -> None:
        """The number of images that wait for a decode worker changed."""
        self._decode_depth.value = depth

    def image_received(self, *, size_bytes: int, pixel_count: int) -> None:
        """An uploaded image was decoded."""
        self._image_bytes.observe(float(size_bytes))
        self._image_pixels.observe(float(pixel_count))

    # -- batches

    def _register_batches(self, queue_capacity: int) -> None:
        size = self._families.histogram("batch_size_items", "Items answered by one batch.", _SIZES, "operation")
        duration = self._families.histogram(
            "batch_duration_seconds", "Time of the engine over one batch.", _DURATIONS_S, "operation"
        )
        # Sums for a least-squares fit of duration = a·cost + b over any window, in the recording rules.
        cost = self._families.counter(
            "batch_cost_passes", "Cost of batches, in block-passes of one image.", "operation"
        )
        squared = self._families.counter(
            "batch_cost_squared_passes", "Sum of the squared costs of batches.", "operation"
        )
        weighted = self._families.counter(
            "batch_cost_weighted_seconds", "Sum over batches of cost times duration.", "operation"
        )
        self._batch_size = {name: size.labels(name) for name in OPERATIONS}
        self._batch_s = {name: duration.labels(name) for name in OPERATIONS}
        self._batch_cost = {
            name: (cost.labels(name), squared.labels(name), weighted.labels(name)) for name in OPERATIONS
        }
        self._depth = self._families.levels(
            "queue_depth_items", "Items that wait for the engine, by lane.", "lane", LANES
        )
        self._families.gauge("queue_capacity_items", "Most items that may wait for the engine.").set(queue_capacity)
        self._oldest_s = self._families.gauge("queue_oldest_seconds", "How long the oldest waiting item has waited.")
        self._batch_limit = self._families.gauge(
            "batch_limit_items", "Most items of a batch; lower after the device ran out of memory. 0: not known."
        )
        dropped = self._families.counter(
            "dropped_items",
            "Items dropped before they cost time, by cause and by what they waited for.",
            "cause",
            "stage",
        )
        self._dropped = {(cause, name): dropped.labels(cause, name) for cause in DROP_CAUSES for name in DROP_STAGES}

    def batch_done(self, *, operation: str, size: int, queue_s: Sequence[float], engine_s: float, cost: float) -> None:
        """From the batcher: one batch was answered.

        Args:
            operation: one of `OPERATIONS`.
            size: items.
            queue_s: how long each had waited.
            engine_s: how long the engine worked.
            cost: block-passes.
        """
        self._batch_size[operation].observe(float(size))
        self._batch_s[operation].observe(engine_s)
        total, squared, weighted = self._batch_cost[operation]
        total.inc(cost)
        squared.inc(cost * cost)
        weighted.inc(cost * engine_s)
        self._stage_s["queue"].observe_all(queue_s)

    def engine_stage(self, stage: str, duration_s: float) -> None:
        """From the engine: a batch spent this long in `encode` or `sae`."""
        self._stage_s[stage].observe(duration_s)

    def dropped(self, cause: str, stage: str = "queue") -> None:
        """An item was dropped; `cause` is one of `DROP_CAUSES`, `stage` one of `DROP_STAGES`."""
        self._dropped[cause, stage].inc()

    def depth_changed(self, depth: int, lane: str) -> None:
        """From the batcher: how many items wait in a lane."""
        self._depth[lane].value = depth

    def oldest_read_from(self, oldest_s: Callable[[], float]) -> None:
        """Ask this, at each scrape and from another thread, how long the oldest item has waited; must not raise."""
        self._oldest_s.set_function(oldest_s)

    def batch_limit_changed(self, batch_limit: int) -> None:
        """From the batcher: most items of a batch."""
        self._batch_limit.set(batch_limit)

    # -- the device

    def _register_device(self) -> None:
        self._out_of_memory = self._families.counter(
            "device_out_of_memory", "Batches that did not fit into the device."
        )
        self._succeeded = self._families.level(
            "device_last_success_timestamp_seconds", "When the device last answered; 0 before it ever did."
        )
        self._device_memory = self._families.gauge("device_memory_bytes", "Bytes of device memory in use; 0 on a CPU.")

    def device_succeeded(self) -> None:
        """The device answered a batch."""
        self._succeeded.value = self._unix_time_s()

    def out_of_memory(self, batch_limit: int) -> None:
        """A batch did not fit into the device; `batch_limit` is the limit from now on."""
        self._out_of_memory.inc()
        self._batch_limit.set(batch_limit)

    def device_memory_read_from(self, used_bytes: Callable[[], float]) -> None:
        """Ask this, at each scrape and from another thread, how much device memory is in use; must not raise."""
        self._device_memory.set_function(used_bytes)

    # -- answers and the model

    def _register_answers(self) -> None:
        self._l0 = self._families.histogram("answer_l0_neurons", "Active neurons of live image codes.", _L0).labels()
        self._fvu = self._families.histogram(
            "answer_fvu_ratio", "Fraction of variance unexplained of live answers that asked for fidelity.", _FVU
        ).labels()

    def image_encoded(self, *, l0: int, fvu: float | None) -> None:
        """A live image has its code; `fvu` where fidelity was asked for."""
        self._l0.observe(float(l0))
        # One NaN would make the sum of all of them NaN for ever; the model's health counts it.
        if fvu is not None and isfinite(fvu):
            self._fvu.observe(fvu)

    def model_served(self, bundle: str, health: ModelHealth) -> None:
        """Show this bundle's health from now on, in the place of what it had before."""
        self._families.models[bundle] = health

    # -- the cache

    def _register_cache(self) -> None:
        results = self._families.counter("cache_results", "Look-ups in the cache, by what came of them.", "result")
        self._cache = {result: results.labels(result) for result in CACHE_RESULTS}
        circuit = self._families.gauge("circuit_state", "1 for the state of the circuit breaker before Redis.", "state")
        self._circuit = {state: circuit.labels(state) for state in CIRCUIT_STATES}
        self.circuit_changed("closed")

    def cache_result(self, result: str) -> None:
        """The cache was asked; `result` is one of `CACHE_RESULTS`."""
        self._cache[result].inc()

    def circuit_changed(self, state: str) -> None:
        """The circuit breaker changed to one of `CIRCUIT_STATES`."""
        for name, gauge in self._circuit.items():
            gauge.set(name == state)

    # -- artefacts

    def _register_artefacts(self) -> None:
        reloads = self._families.counter("reloads", "Reloads of a generation, by how they ended.", "result")
        self._reloads = {result: reloads.labels(result) for result in RELOAD_RESULTS}
        self._artefacts = self._families.gauge(
            "artefact_info", "1 for each served artefact.", "kind", "name", "id", "code_id"
        )
        self._generation = self._families.gauge("generation_info", "1 for the generation that answers.", "generation")
        self._switched = self._families.gauge(
            "generation_timestamp_seconds", "When the generation that answers took over; 0 before the first one."
        )

    def generation_served(self, generation: str) -> None:
        """Another generation answers from now on; its artefacts and models are told after this."""
        self._generation.clear()
        self._artefacts.clear()
        self._families.models.clear()
        self._generation.labels(generation).set(1)
        self._switched.set(self._unix_time_s())

    def artefact_served(self, *, kind: str, name: str, id: str, code_id: str) -> None:
        """A bundle or an index is being served."""
        self._artefacts.labels(kind, name, id, code_id).set(1)

    def reload_done(self, result: str) -> None:
        """A reload ended; `result` is one of `RELOAD_RESULTS`."""
        self._reloads[result].inc()
