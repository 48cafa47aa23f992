"""Alert rules: valid, each with a runbook, and each with a case in which it fires and one in which it does not."""

import re
import subprocess

import pytest
import yaml

from service.batching.shares import share_of
from tests.deploy.prometheus_process import needs_promtool
from tests.deploy.queries import PROMETHEUS, ROOT, RUNBOOK, alerts, recordings

CASES = sorted((PROMETHEUS / "tests").glob("*.yaml"))


def checks():
    """(alert, whether it is to fire) of every check in the rule tests."""
    return [
        (check["alertname"], bool(check["exp_alerts"]))
        for path in CASES
        for case in yaml.safe_load(path.read_text())["tests"]
        for check in case.get("alert_rule_test", ())
    ]


def anchors():
    """The anchors of the runbook's headings, as Markdown renderers make them."""
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_alerts_cover_what_can_go_wrong():
    assert {alert["alert"] for alert in alerts()} >= {
        "PhospheneAvailabilityBurnFast",
        "PhospheneAvailabilityBurnSlow",
        "PhospheneLatencyBurnFast",
        "PhospheneLatencyBurnSlow",
        "PhospheneDown",
        "PhospheneDeviceStalled",
        "PhospheneQueueSaturated",
        "PhospheneCircuitOpen",
        "PhospheneDecodeKills",
        "PhospheneModelDrift",
        "PhospheneModelNonFinite",
    }


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_what_to_do(alert):
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert page == "docs/operations.md"
    assert anchor in anchors()


@pytest.mark.parametrize("name", [alert["alert"] for alert in alerts()])
def test_an_alert_has_a_case_that_fires_and_one_that_does_not(name):
    assert {fires for checked, fires in checks() if checked == name} == {True, False}


def test_every_recording_is_used():
    text = "".join(path.read_text() for path in PROMETHEUS.glob("*.yaml")) + RUNBOOK.read_text()
    text += "".join(path.read_text() for path in (PROMETHEUS.parent / "grafana" / "dashboards").glob("*.json"))
    for rule in recordings():
        assert len(re.findall(rf"{re.escape(rule['record'])}\b", text)) > 1, rule["record"]


def test_the_runbook_says_whether_one_caller_alone_saturates_a_replica():
    (saturated,) = [alert for alert in alerts() if alert["alert"] == "PhospheneQueueSaturated"]
    threshold = float(saturated["expr"].rpartition("> ")[2])
    limit = 256
    assert share_of(share_of(limit)) < threshold * limit < share_of(limit)
    assert "One caller alone gets there, though not with streams" in RUNBOOK.read_text()


def test_the_runbook_says_how_long_a_stream_may_last():
    """gRPC ends it that long after it has asked the connection to come anew; callers saw that and found it nowhere."""
    (grace_ms,) = re.findall(r"^_AGE_GRACE_MS = ([\d_]+)$", (ROOT / "service/server.py").read_text(), re.MULTILINE)
    grace_s = int(grace_ms) // 1000
    runbook = " ".join(RUNBOOK.read_text().split())
    assert f"about `PHOSPHENE_CONNECTION_AGE_S` (300 in `deploy/kubernetes`) and {grace_s} s after that" in runbook
    assert "PHOSPHENE_CONNECTION_AGE_S=300" in (ROOT / "deploy/kubernetes/base/settings.env").read_text().splitlines()


@needs_promtool
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_rules_fire_when_they_should(path):
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize(
    ("verb", "name"), [("rules", "alert-rules.yaml"), ("rules", "recording-rules.yaml"), ("config", "prometheus.yaml")]
)
def test_promtool_accepts(verb, name):
    done = subprocess.run(["promtool", "check", verb, PROMETHEUS / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
