"""Dashboards: well-formed, about metrics that exist, and answered in full by a real Prometheus over a real scrape."""

import re
import subprocess
from itertools import combinations

import grpc.aio
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from phosphene.v1 import explain_pb2, models_pb2, values_pb2
from service.observing.metric_events import Metrics
from service.observing.metrics_server import MetricsServer
from service.server import METHODS
from tests.deploy.prometheus_process import CountedPage, needs_prometheus, needs_promtool, prometheus
from tests.deploy.queries import (
    DASHBOARDS,
    PROMETHEUS,
    ROOT,
    RUNBOOK,
    dashboard,
    matchers,
    metric_names,
    other_queries,
    panel_queries,
    panels,
    recorded_names,
    recordings,
    rule_queries,
)
from tests.fakes import CORPUS
from tests.service.conftest import ANY_PORT, serving
from tests.service.observing.example_events import example_artefacts, example_events

EXPLAIN_COUNT = 3
each_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def samples():
    """Every sample of the page, after one of every event."""
    metrics = Metrics(methods=METHODS, queue_capacity=64)
    example_artefacts(metrics)
    example_events(metrics)
    page = b"".join(metrics.page({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda status, headers: None)).decode()
    return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


def test_there_is_a_dashboard_for_each_question():
    assert {path.stem for path in DASHBOARDS} == {"overview", "stages", "inputs", "cache", "model", "jobs"}
    assert len({dashboard(path)["uid"] for path in DASHBOARDS}) == len(DASHBOARDS)


@each_dashboard
def test_every_panel_says_what_it_shows(path):
    shown = panels(path)
    assert shown
    for panel in shown:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert len({panel["title"] for panel in shown}) == len(shown)


def test_the_batch_limit_is_that_of_the_replica_that_ran_out_of_memory():
    """The runbook of PhospheneOutOfMemory sends there for the limit to set; other replicas have not halved theirs."""
    asked = [query.expression for path in DASHBOARDS for query in panel_queries(path)]
    assert [query for query in asked if "batch_limit" in query] == [
        'min(phosphene_batch_limit_items{job=~".*", instance=~".*"} > 0)'
    ]


def promql_holds(folder, series, cases):
    """Whether promtool gets these values, each one sample without labels, of (expression, time, value) over series."""
    tests = {
        "interval": "5s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": expression, "eval_time": time, "exp_samples": [{"labels": "{}", "value": value}]}
            for expression, time, value in cases
        ],
    }
    path = folder / "cases.yaml"
    path.write_text(yaml.safe_dump({"evaluation_interval": "5s", "tests": [tests]}))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_replicas_are_counted_without_what_else_prometheus_scrapes(tmp_path):
    """All jobs are those that show the service's metrics; as `.*` they took every node and exporter for a replica."""
    (path,) = [path for path in DASHBOARDS if path.stem == "overview"]
    every = {variable["name"]: variable.get("allValue") for variable in dashboard(path)["templating"]["list"]}
    (panel,) = [panel for panel in panels(path) if panel["title"] == "Replicas"]
    up, known = (
        target["expr"].replace("$job", every["job"] or "(phosphene)").replace("$instance", every["instance"])
        for target in panel["targets"]
    )
    series = {
        'up{job="phosphene", instance="a:9464"}': "1x60",
        'up{job="phosphene", instance="b:9464"}': "0x60",
        'up{job="node", instance="a:9100"}': "1x60",
    }
    promql_holds(tmp_path, series, [(up, "4m", 1), (known, "4m", 2)])


@needs_promtool
def test_the_runbook_s_share_of_time_counts_all_that_a_device_does(tmp_path):
    (asked,) = re.findall(r"near a replica is to its bound: `([^`]+)`", RUNBOOK.read_text())
    replica = 'job="phosphene", instance="a:9464"'
    series = {
        f'phosphene_batch_duration_seconds_sum{{{replica}, operation="encode"}}': "0+2.5x120",
        f'phosphene_batch_duration_seconds_sum{{{replica}, operation="text"}}': "0+1.25x120",
    }
    promql_holds(tmp_path, series, [(f"count({asked})", "10m", 1), (f"sum({asked})", "10m", 0.75)])


@needs_promtool
@pytest.mark.parametrize("interval_s", [15, 30, 60, 900])
def test_a_switch_of_generations_is_marked_at_every_zoom(interval_s, tmp_path):
    """`$__interval` alone is one scrape, in which nothing changes, or loses what changes between two of its windows."""
    # As Grafana fills them in, where Prometheus scrapes every 15 s; scrapes are not in step with what it asks.
    rate_interval_s = max(interval_s + 15, 60)
    (asked,) = {query["expr"] for path in DASHBOARDS for query in dashboard(path)["annotations"]["list"]}
    for name, value in (
        ("$__rate_interval", f"{rate_interval_s}s"),
        ("$__interval", f"{interval_s}s"),
        ("$job", ".*"),
        ("$instance", ".*"),
    ):
        asked = asked.replace(name, value)
    marked = f"count(count_over_time(({asked})[2h:{interval_s}s]))"
    metric = "phosphene_generation_timestamp_seconds"
    series = {
        f'{metric}{{instance="{first}"}}': " ".join(["_ 100 _"] * first + ["_ 200 _"] * (480 - first))
        for first in range(120, 130)
    }
    promql_holds(tmp_path, series, [(marked, "2h", len(series))])


@each_dashboard
def test_panels_fill_the_grid_without_overlap(path):
    places = dashboard(path)["panels"]
    assert len({panel["id"] for panel in places}) == len(places)
    boxes = [panel["gridPos"] for panel in places]
    assert all(box["x"] + box["w"] <= 24 for box in boxes)
    for one, other in combinations(boxes, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


@each_dashboard
def test_colours_are_given_to_series_that_exist(path, samples):
    for panel in panels(path):
        for override in panel["fieldConfig"]["overrides"]:
            (label,) = {target["legendFormat"].strip("{}") for target in panel["targets"]}
            assert override["matcher"]["id"] == "byName"
            assert override["matcher"]["options"] in {sample.labels.get(label) for sample in samples}, panel["title"]


@each_dashboard
def test_a_cell_of_a_heatmap_has_the_unit_of_a_rate(path):
    """Without one of its own it takes the panel's, which is that of the buckets: "3 KiB" where three images came."""
    for panel in panels(path):
        if panel["type"] == "heatmap":
            assert panel["options"]["cellValues"]["unit"] in ("reqps", "cps")
            assert panel["options"]["yAxis"]["unit"] == panel["fieldConfig"]["defaults"]["unit"]


def test_provisioning_names_where_compose_puts_things():
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "phosphene.yaml").read_text())["providers"]
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())["global"]
    assert (source["type"], source["jsonData"]["timeInterval"]) == ("prometheus", scraped["scrape_interval"])
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    mounted = {volume["target"] for volume in compose["services"]["grafana"]["volumes"]}
    assert provider["options"]["path"] in mounted
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]


def test_every_metric_that_is_named_exists(samples):
    known = {sample.name for sample in samples}
    # A histogram goes by its own name in prose.
    known |= {name.removesuffix("_bucket") for name in known if name.endswith("_bucket")}
    recorded = {rule["record"] for rule in recordings()}
    places = {path.name: path.read_text() for path in (*DASHBOARDS, *PROMETHEUS.glob("**/*.yaml"), RUNBOOK)}
    for file in (ROOT / "deploy" / "kubernetes").glob("**/*.yaml"):
        places[file.name] = file.read_text()
    for place, text in places.items():
        assert metric_names(text) - known == set(), place
        assert recorded_names(text) - recorded == set(), place


def test_every_label_value_that_is_asked_for_exists(samples):
    queries = rule_queries() + [query for path in DASHBOARDS for query in panel_queries(path)]
    asked = [(query.place, *matcher) for query in queries for matcher in matchers(query.expression)]
    assert len(asked) > 50
    for place, name, label, operator, value in asked:
        values = {sample.labels.get(label) for sample in samples if sample.name == name}
        wanted = value.split("|") if operator in ("=~", "!~") else [value]
        for one in wanted:
            # The page writes le as "1.0"; so do the rules.
            assert one in values, (place, name, label, value)


def test_every_family_is_on_a_dashboard_or_in_a_rule(samples):
    """What nobody can see need not be measured."""
    named = set().union(*(metric_names(path.read_text()) for path in (*DASHBOARDS, *PROMETHEUS.glob("*.yaml"))))

    def family(name):
        return re.sub(r"_(bucket|sum|count)$", "", name)

    unseen = {family(sample.name) for sample in samples} - {family(name) for name in named}
    assert {name for name in unseen if not name.startswith("phosphene_process_")} == set()


@needs_prometheus
async def test_a_real_prometheus_answers_every_query_with_data(tmp_path):
    """Two replicas: the service over fakes with real requests, and a page on which everything has happened."""
    events = Metrics(methods=METHODS, queue_capacity=64)
    example_artefacts(events)
    page = CountedPage(events)
    async with (
        serving() as running,
        MetricsServer(page, ANY_PORT) as second,
        prometheus(tmp_path, [running.metrics_address, second.address]) as api,
    ):
        # Prometheus sees an increase only from a first scrape to a later one.
        await page.scraped()
        await page.scraped()
        request = explain_pb2.ExplainRequest(image=values_pb2.ImageQuery(data=CORPUS["red-1"]))
        for _ in range(EXPLAIN_COUNT):
            await running.stub.Explain(request)
        with pytest.raises(grpc.aio.AioRpcError):
            await running.stub.GetModel(models_pb2.GetModelRequest(bundle="nope"))
        example_events(events)

        waiting = [query for path in DASHBOARDS for query in panel_queries(path)]
        for _ in range(40):
            await page.scraped()
            waiting = [query for query in waiting if not await _has_data(api, query)]
            if not waiting:
                break
        assert [query.place for query in waiting] == []

        for query in rule_queries() + [query for path in DASHBOARDS for query in other_queries(path)]:
            await api.query(query.expression)
        groups = (await api.get("rules"))["groups"]
        assert {(rule["health"], rule.get("lastError")) for group in groups for rule in group["rules"]} == {
            ("ok", None)
        }

        address = running.metrics_address
        answered = f'phosphene_requests_total{{instance="{address}", method="Explain", code="OK"}}'
        assert [sample["value"][1] for sample in await api.query(answered)] == [str(EXPLAIN_COUNT)]
        missing = f'phosphene_requests_total{{instance="{address}", code="NOT_FOUND", method="GetModel"}}'
        assert [sample["value"][1] for sample in await api.query(missing)] == ["1"]


async def _has_data(api, query):
    return any(sample["value"][1] != "NaN" for sample in await api.query(query.expression))
