"""The page of metrics: complete from the start, clean by Prometheus' own rules, right in its arithmetic, and cheap."""

import asyncio
import contextlib
import gzip
import math
import shutil
import subprocess
import threading
import urllib.request
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from phosphene.errors import SettingError
from service.batching.admission import Refusal
from service.batching.batch_events import Drop
from service.caching.cache import CacheResult
from service.caching.circuit import CircuitState
from service.claims import Lane
from service.observing.distribution import Distribution
from service.observing.metric_events import Metrics
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
from service.observing.metrics_server import MetricsServer
from service.observing.model_health import ModelHealth
from service.settings import ListenAddress
from tests.service.observing.example_events import example_artefacts, example_events

METHODS = ("Explain", "GetNeuron")
ANY_PORT = ListenAddress(host="127.0.0.1", port=0)


@pytest.fixture
def metrics():
    return Metrics(methods=METHODS, queue_capacity=64, unix_time_s=lambda: 1000.0)


def page(metrics):
    """The page as Prometheus' text format, through the same application as a scrape."""
    collected = metrics.page({"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}, lambda status, headers: None)
    return b"".join(collected).decode()


def samples(metrics):
    """Every sample by name and sorted labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page(metrics))
        for sample in family.samples
    }


def one(metrics, name, **labels):
    return samples(metrics)[(f"phosphene_{name}", *sorted(labels.items()))]


LABELLED = {
    "phosphene_requests_total": {"method": METHODS, "code": CODES},
    "phosphene_requests_received_total": {"method": METHODS},
    "phosphene_request_duration_seconds_count": {"method": METHODS, "outcome": OUTCOMES},
    "phosphene_stage_duration_seconds_count": {"stage": STAGES},
    "phosphene_refused_requests_total": {"reason": REFUSALS},
    "phosphene_admission_refused_items_total": {"reason": ADMISSION_REASONS},
    "phosphene_decode_killed_items_total": {"cause": KILL_CAUSES},
    "phosphene_dropped_items_total": {"cause": DROP_CAUSES, "stage": DROP_STAGES},
    "phosphene_queue_depth_items": {"lane": LANES},
    "phosphene_batch_size_items_count": {"operation": OPERATIONS},
    "phosphene_cache_results_total": {"result": CACHE_RESULTS},
    "phosphene_circuit_state": {"state": CIRCUIT_STATES},
    "phosphene_reloads_total": {"result": RELOAD_RESULTS},
}


def test_every_label_set_is_complete_before_the_first_event(metrics):
    found = samples(metrics)
    for name, labels in LABELLED.items():
        count = math.prod(len(values) for values in labels.values())
        assert len([key for key in found if key[0] == name]) == count, name
    started = ("phosphene_process", "phosphene_queue_capacity_items")
    nonzero = [key for key, value in found.items() if value and not key[0].startswith(started)]
    assert nonzero == [("phosphene_circuit_state", ("state", "closed"))]
    assert all(key[0].startswith("phosphene_") for key in found)


def test_events_create_no_series_but_those_of_artefacts(metrics):
    example_artefacts(metrics)
    before = set(samples(metrics))
    example_events(metrics)
    assert set(samples(metrics)) == before


def test_a_value_outside_its_set_is_a_defect(metrics):
    for event in (
        lambda: metrics.refused("because"),
        lambda: metrics.stage_done("lunch", 1.0),
        lambda: metrics.dropped("cancelled", "lunch"),
        lambda: metrics.cache_result("maybe"),
        lambda: metrics.request_received("Nope"),
    ):
        with pytest.raises(KeyError):
            event()


@pytest.mark.parametrize(
    ("told", "known"),
    [
        (Refusal, ADMISSION_REASONS),
        (Drop, DROP_CAUSES),
        (CacheResult, CACHE_RESULTS),
        (CircuitState, CIRCUIT_STATES),
        (Lane, LANES),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_the_service_tells_is_in_the_sets(told, known):
    values = {str(value) for name, value in vars(told).items() if name.isupper()}
    assert values == set(known)


def test_what_was_received_is_what_ended(metrics):
    example_events(metrics)
    found = samples(metrics)

    def total(name):
        return sum(value for key, value in found.items() if key[0] == f"phosphene_{name}")

    assert total("requests_received_total") == len(CODES) + len(OUTCOMES)
    assert total("requests_total") == total("requests_received_total")
    assert total("request_duration_seconds_count") == total("requests_received_total")


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("OK", "ok"),
        ("CANCELLED", "cancelled"),
        ("DEADLINE_EXCEEDED", "expired"),
        ("INTERNAL", "failed"),
        ("UNKNOWN", "failed"),
        ("UNAVAILABLE", "failed"),
        ("RESOURCE_EXHAUSTED", "refused"),
        ("INVALID_ARGUMENT", "refused"),
    ],
)
def test_a_code_stands_for_an_outcome_unless_one_is_told(metrics, code, outcome):
    assert outcome_of_code(code) == outcome
    metrics.request_done(method="Explain", code=code, duration_s=0.5)
    assert one(metrics, "request_duration_seconds_sum", method="Explain", outcome=outcome) == 0.5
    metrics.request_done(method="Explain", code=code, duration_s=0.25, outcome="cancelled")
    assert one(metrics, "request_duration_seconds_count", method="Explain", outcome="cancelled") >= 1


def test_every_code_has_an_outcome():
    assert {outcome_of_code(code) for code in CODES} == set(OUTCOMES)


def test_the_sums_of_batches_give_back_the_latency_model(metrics):
    example_events(metrics)
    count, cost, squared, weighted, seconds = (
        one(metrics, name, operation="encode")
        for name in (
            "batch_duration_seconds_count",
            "batch_cost_passes_total",
            "batch_cost_squared_passes_total",
            "batch_cost_weighted_seconds_total",
            "batch_duration_seconds_sum",
        )
    )
    slope_s = (count * weighted - cost * seconds) / (count * squared - cost * cost)
    assert slope_s == pytest.approx(0.001)
    assert (seconds - slope_s * cost) / count == pytest.approx(0.008)


BOUNDS = (0.1, 1.0, 10.0)


@given(st.lists(st.one_of(st.floats(0, 20), st.sampled_from(BOUNDS))), st.booleans())
def test_a_distribution_counts_as_prometheus_own_histogram(values, at_once):
    ours, registry = Distribution(BOUNDS), CollectorRegistry()
    theirs = Histogram("x", "x", buckets=BOUNDS, registry=registry)
    for value in values:
        theirs.observe(value)
    if at_once:
        ours.observe_all(values)
    else:
        for value in values:
            ours.observe(value)
    counts, total = ours.read()
    expected = [registry.get_sample_value("x_bucket", {"le": bound}) for bound in ("0.1", "1.0", "10.0", "+Inf")]
    assert list(accumulate(counts)) == expected
    assert total == pytest.approx(registry.get_sample_value("x_sum"))


def test_threads_lose_no_value():
    shared = Distribution(BOUNDS)
    threads = [threading.Thread(target=lambda: [shared.observe(1.0) for _ in range(5000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.read() == ([0, 20000, 0, 0], 20000.0)


def test_an_error_that_is_no_number_does_not_spoil_the_sum(metrics):
    for fvu in (0.25, math.nan, math.inf):
        metrics.image_encoded(l0=4, fvu=fvu)
    assert one(metrics, "answer_fvu_ratio_sum") == 0.25
    assert one(metrics, "answer_l0_neurons_count") == 3


def test_each_lane_has_its_depth(metrics):
    metrics.depth_changed(3, "interactive")
    assert one(metrics, "queue_depth_items", lane="interactive") == 3
    metrics.depth_changed(2, "bulk")
    assert one(metrics, "queue_depth_items", lane="bulk") == 2


def test_the_circuit_is_in_one_state(metrics):
    for state in CIRCUIT_STATES:
        metrics.circuit_changed(state)
        shown = {name: one(metrics, "circuit_state", state=name) for name in CIRCUIT_STATES}
        assert shown == {name: float(name == state) for name in CIRCUIT_STATES}


def test_a_switch_forgets_the_generation_before(metrics):
    example_artefacts(metrics)
    metrics.generation_served("new")
    metrics.artefact_served(kind="bundle", name="scenes", id="9", code_id="8")
    shown = {key for key in samples(metrics) if key[0] in ("phosphene_artefact_info", "phosphene_generation_info")}
    assert shown == {
        ("phosphene_artefact_info", ("code_id", "8"), ("id", "9"), ("kind", "bundle"), ("name", "scenes")),
        ("phosphene_generation_info", ("generation", "new")),
    }
    assert one(metrics, "generation_timestamp_seconds") == 1000.0
    assert not [key for key in samples(metrics) if key[0].startswith("phosphene_model_")]


def test_callbacks_are_read_at_each_scrape(metrics):
    ages_s = iter([1.0, 2.0])
    metrics.oldest_read_from(lambda: next(ages_s))
    assert [one(metrics, "queue_oldest_seconds") for _ in range(2)] == [1.0, 2.0]


def test_the_models_figures_are_shown_and_missing_ones_left_out(metrics):
    example_artefacts(metrics)
    assert one(metrics, "model_nonfinite_images_total", bundle="scenes") == 1
    assert one(metrics, "model_window_images", bundle="scenes") == 300
    assert one(metrics, "model_fvu_ratio", bundle="scenes") == pytest.approx(0.2)
    metrics.model_served("bare", ModelHealth(reference=None))
    shown = {key[0] for key in samples(metrics) if ("bundle", "bare") in key}
    assert shown == {"phosphene_model_window_images", "phosphene_model_nonfinite_images_total"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on PATH (Debian: apt install prometheus)")
def test_promtool_finds_nothing_to_say_of_the_page(metrics):
    example_artefacts(metrics)
    example_events(metrics)
    done = subprocess.run(["promtool", "check", "metrics"], input=page(metrics), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


async def test_the_server_shows_the_page_and_frees_its_port(metrics):
    def get(address, **headers):
        request = urllib.request.Request(f"http://{address}/metrics", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.headers, reply.read()

    async with MetricsServer(metrics, ANY_PORT) as server:
        metrics.refused("invalid")
        headers, body = await asyncio.to_thread(get, server.address)
        assert headers["Content-Type"].startswith("text/plain")
        assert b'phosphene_refused_requests_total{reason="invalid"} 1.0' in body
        headers, body = await asyncio.to_thread(get, server.address, **{"Accept-Encoding": "gzip"})
        assert b"phosphene_requests_total" in gzip.decompress(body)
        with pytest.raises(SettingError, match="PHOSPHENE_METRICS_LISTEN"):
            await MetricsServer(metrics, server.address).__aenter__()
    async with MetricsServer(metrics, server.address) as again:
        assert again.address == server.address


async def closed(writer):
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def scraped(address):
    """The page, or nothing where the server hangs up."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        await closed(writer)


async def test_no_more_connections_are_held_than_there_may_be(metrics):
    async with MetricsServer(metrics, ANY_PORT, connection_limit=2) as server:
        held = [await asyncio.open_connection(server.address.host, server.address.port) for _ in range(2)]
        assert await scraped(server.address) == b""
        for _, writer in held:
            await closed(writer)
        async with asyncio.timeout(60):
            while not (answer := await scraped(server.address)):
                await asyncio.sleep(0.01)
        assert b"phosphene_requests_received_total" in answer


async def test_a_connection_that_sends_a_byte_now_and_then_is_not_held_for_ever(metrics):
    async def drip(writer):
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)

    async with MetricsServer(metrics, ANY_PORT, connection_limit=1, connection_limit_s=0.2) as server:
        _, writer = await asyncio.open_connection(server.address.host, server.address.port)
        dripping = asyncio.create_task(drip(writer))
        try:
            async with asyncio.timeout(30):
                while not (answer := await scraped(server.address)):
                    await asyncio.sleep(0.05)
        finally:
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
            await closed(writer)
        assert b"phosphene_requests_received_total" in answer
