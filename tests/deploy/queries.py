"""What the dashboards and rules ask of Prometheus, read from their files."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOK = ROOT / "docs" / "operations.md"
# What Grafana puts in the place of its variables.
_VARIABLES = {"$__rate_interval": "1m", "$__interval": "1m", "$job": ".*", "$instance": ".*"}
_SELECTOR = re.compile(r"\b(phosphene_[a-z0-9_]+)(?:\{([^}]*)\})?")
_RECORDED = re.compile(r"\bphosphene:[a-z0-9_:]+")
_RANGE = re.compile(r"\[(\d+)([smhd])[\]:]")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MATCHER = re.compile(r'(\w+)\s*(=~|=|!=|!~)\s*"([^"]*)"')


@dataclass(frozen=True)
class Query:
    """An expression and where it stands."""

    place: str
    expression: str


def dashboard(path):
    """A dashboard's file, parsed."""
    return json.loads(path.read_text())


def panels(path):
    """Its panels that show something."""
    return [panel for panel in dashboard(path)["panels"] if panel["type"] != "row"]


def panel_queries(path):
    """Every query of a dashboard's panels, with Grafana's variables filled in."""
    return [
        Query(f"{path.stem}: {panel['title']}, {target['refId']}", _filled(target["expr"]))
        for panel in panels(path)
        for target in panel["targets"]
    ]


def other_queries(path):
    """The queries of a dashboard's annotations."""
    return [
        Query(f"{path.stem}: {annotation['name']}", _filled(annotation["expr"]))
        for annotation in dashboard(path)["annotations"]["list"]
    ]


def rules(name):
    """The rules of one file of rules, in order."""
    groups = yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts():
    """The alerts."""
    return rules("alert-rules.yaml")


def recordings():
    """The recording rules."""
    return rules("recording-rules.yaml")


def rule_queries():
    """The expression of every rule."""
    return [Query(rule.get("alert") or rule["record"], rule["expr"]) for rule in (*alerts(), *recordings())]


def metric_names(text):
    """Every metric of the service that a text names."""
    return {name for name, _ in _SELECTOR.findall(text)}


def recorded_names(text):
    """Every recorded series that a text names."""
    return set(_RECORDED.findall(text))


def matchers(expression):
    """(metric, label, operator, value) of every matcher that names values of the service's own labels."""
    return [
        (name, label, operator, value)
        for name, inside in _SELECTOR.findall(expression)
        for label, operator, value in _MATCHER.findall(inside)
        if label not in ("job", "instance", "namespace")
    ]


def longest_range_s(expression):
    """How far an expression looks back, in seconds; 0: not at all."""
    return max((int(number) * _UNIT_S[unit] for number, unit in _RANGE.findall(expression)), default=0)


def _filled(expression):
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, expression
    return expression
