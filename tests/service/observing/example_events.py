"""One of every event that the service can tell its metrics, with figures that tests can check."""

import numpy as np

from phosphene.codes import ImageCode
from service.observing.metric_labels import (
    ADMISSION_REASONS,
    CACHE_RESULTS,
    CODES,
    DROP_CAUSES,
    DROP_STAGES,
    KILL_CAUSES,
    OUTCOMES,
    REFUSALS,
    RELOAD_RESULTS,
    STAGES,
)
from service.observing.model_health import IndexReference, ModelHealth

NEURON_COUNT = 16


def example_health(image_count=300, fvu=0.2):
    """The health of a model whose live codes are as its index's."""
    random = np.random.default_rng(7)
    densities = np.linspace(0.05, 0.9, NEURON_COUNT)
    health = ModelHealth(reference=IndexReference(densities=densities, image_count=5000), drift_images=50)
    for _ in range(image_count):
        neuron_ids = np.flatnonzero(random.random(NEURON_COUNT) < densities).astype(np.int32)
        health.observe(ImageCode(neuron_ids=neuron_ids, values=np.ones(len(neuron_ids), np.float32)), fvu)
    health.nonfinite()
    return health


def example_artefacts(metrics):
    """What is told once, when a generation is served."""
    metrics.generation_served("g" * 64)
    metrics.artefact_served(kind="bundle", name="scenes", id="1" * 64, code_id="c" * 64)
    metrics.artefact_served(kind="index", name="photos", id="2" * 64, code_id="c" * 64)
    metrics.model_served("scenes", example_health())
    metrics.admission_limits(image_count=256, size_bytes=2**28, pixel_count=10**9)
    metrics.oldest_read_from(lambda: 0.25)
    metrics.device_memory_read_from(lambda: 2.0**30)
    metrics.batch_limit_changed(32)


def example_events(metrics, method="Explain"):
    """A little traffic with everything in it: one request of each code and each outcome, and all that goes wrong."""
    for code in CODES:
        metrics.request_received(method)
        metrics.request_done(method=method, code=code, duration_s=0.03)
    for outcome in OUTCOMES:
        metrics.request_received(method)
        metrics.request_done(method=method, code="OK", duration_s=0.3, outcome=outcome)
    for reason in REFUSALS:
        metrics.refused(reason)
    for stage in STAGES:
        metrics.stage_done(stage, 0.004)
    for stage in ("encode", "sae"):
        metrics.engine_stage(stage, 0.02)
    metrics.stream_opened()
    metrics.stream_opened()
    metrics.stream_closed()
    for code in ("OK", "INVALID_ARGUMENT", "INTERNAL"):
        metrics.stream_item_done(code)
    for reason in ADMISSION_REASONS:
        metrics.admission_refused(reason)
    metrics.admitted_changed(image_count=3, size_bytes=300_000, pixel_count=3_000_000)
    metrics.decode_done(duration_s=0.012, size_bytes=100_000, pixel_count=1_000_000)
    metrics.image_received(size_bytes=100_000, pixel_count=1_000_000)
    metrics.decode_depth_changed(2)
    for cause in KILL_CAUSES:
        metrics.decode_killed(cause)
    # Twelve block-passes an image, 1 ms a pass and 8 ms a batch.
    for size in (1, 4, 8):
        cost = 12.0 * size
        metrics.batch_done(
            operation="encode", size=size, queue_s=[0.01] * size, engine_s=0.001 * cost + 0.008, cost=cost
        )
    metrics.batch_done(operation="text", size=1, queue_s=[0.001], engine_s=0.002, cost=1.0)
    metrics.depth_changed(5, "interactive")
    metrics.depth_changed(9, "bulk")
    for cause in DROP_CAUSES:
        for stage in DROP_STAGES:
            metrics.dropped(cause, stage)
    metrics.device_succeeded()
    metrics.out_of_memory(16)
    metrics.image_encoded(l0=12, fvu=0.2)
    for result in CACHE_RESULTS:
        metrics.cache_result(result)
    metrics.circuit_changed("open")
    metrics.circuit_changed("half_open")
    metrics.circuit_changed("closed")
    for result in RELOAD_RESULTS:
        metrics.reload_done(result)
