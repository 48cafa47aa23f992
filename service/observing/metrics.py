"""Prometheus's side of the metrics: their families, the page, and what is worked out only when it is scraped.

The only user of prometheus_client here. Which metrics there are is `metric_events`'s matter, but for the figures of the
models, which nothing but a scrape asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import inf
from wsgiref.types import WSGIApplication

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service.observing.distribution import Distribution
from service.observing.model_health import ModelFigures, ModelHealth

__all__ = ["Families", "Histogram", "Level"]

_PREFIX = "phosphene_"


class Families:
    """The families of one registry, and the page that shows them."""

    def __init__(self) -> None:
        """Begin with what is known of the process and, once they are served, of the models."""
        # One more series for each of hundreds, which nobody reads.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.models: dict[str, ModelHealth] = {}
        """What is served, by the name of its bundle; read at each scrape."""
        self.registry.register(_ModelCollector(self.models))
        ProcessCollector(namespace=_PREFIX.removesuffix("_"), registry=self.registry)

    @property
    def page(self) -> WSGIApplication:
        """Writes all metrics, in the form that the scraper asks for."""
        app: WSGIApplication = prometheus_client.make_wsgi_app(self.registry)
        return app

    def counter(self, name: str, meaning: str, *labels: str) -> Counter:
        """A new family of counters."""
        return Counter(f"{_PREFIX}{name}", meaning, labels, registry=self.registry)

    def gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        """A new family of gauges."""
        return Gauge(f"{_PREFIX}{name}", meaning, labels, registry=self.registry)

    def level(self, name: str, meaning: str) -> Level:
        """A new gauge that changes with every request."""
        return Level(self.gauge(name, meaning))

    def levels(self, name: str, meaning: str, label: str, values: Sequence[str]) -> dict[str, Level]:
        """Such gauges, one for each value of a label."""
        family = self.gauge(name, meaning, label)
        return {value: Level(family.labels(value)) for value in values}

    def histogram(self, name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
        """A new family of histograms."""
        histogram = Histogram(f"{_PREFIX}{name}", meaning, buckets, labels)
        self.registry.register(histogram)
        return histogram


class Level:
    """The value of a gauge that is read when it is scraped, so that to change it costs no more than an assignment."""

    __slots__ = ("value",)

    def __init__(self, gauge: Gauge) -> None:
        """Begin at 0."""
        self.value: float = 0.0
        gauge.set_function(lambda: self.value)


class Histogram(Collector):
    """A histogram of distributions, which cost a third of prometheus_client's own to tell."""

    def __init__(self, name: str, meaning: str, bounds: Sequence[float], labels: Sequence[str]) -> None:
        """Begin without a child."""
        self._name, self._meaning, self._bounds, self._labels = name, meaning, bounds, labels
        self._children: dict[tuple[str, ...], Distribution] = {}

    def labels(self, *values: str) -> Distribution:
        """A new child with these values, one for each label."""
        return self._children.setdefault(values, Distribution(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The family, with a sample for each bucket of each child."""
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        bounds = [floatToGoString(bound) for bound in (*self._bounds, inf)]  # type: ignore[no-untyped-call]
        for values, child in self._children.items():
            counts, total = child.read()
            family.add_metric(values, list(zip(bounds, accumulate(counts), strict=True)), total)
        yield family


class _ModelCollector(Collector):
    """Works out the models' figures when they are scraped, and only then; a figure without a value is left out."""

    _GAUGES: tuple[tuple[str, str, Callable[[ModelFigures], float | None]], ...] = (
        ("window_images", "Live images that the other figures are over.", lambda of: of.image_count),
        ("l0_neurons", "Mean active neurons of recent live codes.", lambda of: of.l0_neurons),
        ("index_l0_neurons", "Mean active neurons of the index's codes.", lambda of: of.index_l0_neurons),
        ("fvu_ratio", "Mean fraction of variance unexplained of recent live images.", lambda of: of.fvu_ratio),
        ("drift_ratio", "Drift of firing densities from the index's, beyond chance.", lambda of: of.drift_ratio),
        ("drift_floor_ratio", "Drift that chance alone explains, taken off already.", lambda of: of.drift_floor_ratio),
    )

    def __init__(self, served: Mapping[str, ModelHealth]) -> None:
        self._served = served

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """One family for each figure, one sample for each bundle."""
        figures = {bundle: health.figures() for bundle, health in list(self._served.items())}
        for name, meaning, read in self._GAUGES:
            family = GaugeMetricFamily(f"{_PREFIX}model_{name}", meaning, labels=["bundle"])
            for bundle, of in figures.items():
                if (value := read(of)) is not None:
                    family.add_metric([bundle], value)
            yield family
        nonfinite = CounterMetricFamily(
            f"{_PREFIX}model_nonfinite_images", "Live images whose code was not a number.", labels=["bundle"]
        )
        for bundle, of in figures.items():
            nonfinite.add_metric([bundle], of.nonfinite_count)
        yield nonfinite
