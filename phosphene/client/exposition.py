"""One scrape of a metrics page: fetched, parsed, and summed; knows no metric by name and shows nothing."""

from __future__ import annotations

import math
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urlsplit

from phosphene.client.access import is_on_this_machine
from phosphene.errors import ServiceUnreachable

__all__ = ["Scrape", "Series", "fetch_scrape", "parse_scrape"]

_PAGE_LIMIT_BYTES = 16 * 2**20
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One sample."""

    labels: Mapping[str, str]
    """Its labels."""
    value: float
    """Its value."""


@dataclass(frozen=True, kw_only=True)
class Scrape:
    """Every sample of a page."""

    series: Mapping[str, tuple[Series, ...]]
    """By name, in the page's order."""

    def labelled(self, name: str, **labels: str) -> list[Series]:
        """The samples of this name that have these labels."""
        return [
            one
            for one in self.series.get(name, ())
            if all(one.labels.get(key) == value for key, value in labels.items())
        ]

    def total(self, name: str, **labels: str) -> float:
        """Their sum; 0 where there are none."""
        return sum((one.value for one in self.labelled(name, **labels)), start=0.0)

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Their sums by the values of one label, in the page's order."""
        sums: dict[str, float] = {}
        for one in self.labelled(name, **labels):
            value = one.labels.get(label, "")
            sums[value] = sums.get(value, 0.0) + one.value
        return sums

    def since(self, earlier: Scrape) -> Scrape:
        """What was added since an earlier scrape; a counter that went down has been started anew."""
        before = {
            (name, *sorted(one.labels.items())): one.value for name, many in earlier.series.items() for one in many
        }

        def grown(name: str, one: Series) -> Series:
            was = before.get((name, *sorted(one.labels.items())), 0.0)
            return Series(labels=one.labels, value=one.value - was if one.value >= was else one.value)

        return Scrape(series={name: tuple(grown(name, one) for one in many) for name, many in self.series.items()})

    def quantile(self, name: str, share: float, **labels: str) -> float | None:
        """A quantile of a histogram, as Prometheus works it out; None where it holds nothing."""
        buckets = sorted((float(bound), count) for bound, count in self.by(f"{name}_bucket", "le", **labels).items())
        if not buckets or buckets[-1][1] <= 0:
            return None
        rank = share * buckets[-1][1]
        lower_bound = lower_count = 0.0
        for bound, count in buckets:
            if count >= rank and count > lower_count:
                if math.isinf(bound):
                    return lower_bound
                return lower_bound + (bound - lower_bound) * (rank - lower_count) / (count - lower_count)
            lower_bound, lower_count = (lower_bound if math.isinf(bound) else bound), count
        return lower_bound


def fetch_scrape(url: str, *, timeout_s: float) -> Scrape:
    """Fetch and parse a page.

    Args:
        url: of the page, `http://host:9464/metrics`.
        timeout_s: how long each step of it may take.

    Raises:
        ServiceUnreachable: nobody answers, or what answers is no page of metrics.
    """
    try:
        # As for gRPC: a proxy of the environment is for the world outside.
        proxies: dict[str, str] | None = {} if is_on_this_machine(urlsplit(url).netloc) else None
        with urllib.request.build_opener(urllib.request.ProxyHandler(proxies)).open(url, timeout=timeout_s) as reply:
            page = reply.read(_PAGE_LIMIT_BYTES).decode()
        return parse_scrape(page)
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ServiceUnreachable(
            f"no metrics at {url} ({reason}): is the service running, and is this its PHOSPHENE_METRICS_LISTEN?"
        ) from error
    except ValueError as error:
        raise ServiceUnreachable(
            f"what answers at {url} is no page of metrics ({error}); name the service's, such as "
            "http://127.0.0.1:9464/metrics"
        ) from error


def parse_scrape(page: str) -> Scrape:
    """Parse Prometheus' text format.

    Raises:
        ValueError: a line is not of that format.
    """
    series: dict[str, list[Series]] = {}
    # Only this ends a line: a label may hold what else Python would end one at.
    for number, line in enumerate(page.split("\n"), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _SAMPLE.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"line {number} is no sample")
        name, labels, value = found.groups()
        series.setdefault(name, []).append(
            Series(
                labels={key: _ESCAPE.sub(_unescape, text) for key, text in _LABEL.findall(labels or "")},
                value=float(value),
            )
        )
    if not series:
        raise ValueError("it holds no sample")
    return Scrape(series={name: tuple(many) for name, many in series.items()})


def _unescape(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]
