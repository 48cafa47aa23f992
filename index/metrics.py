"""A running index job as a Prometheus textfile, for a node exporter to pick up; only this file uses prometheus_client.

Base units, prefix `phosphene_index_`, one label `job`: the name of the index. The file is replaced whole, so that no
scrape sees half of it. Knows nothing of indexing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from phosphene.durable_files import replaceable_file

__all__ = ["MetricsFile", "StageFigures"]


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """How far one stage of a job is."""

    done: int
    """Steps done: images, or steps of putting the index together."""
    total: int
    """Steps in all."""
    duration_s: float
    """Since it began; in the end, what it took."""


class MetricsFile(Collector):
    """One textfile with the newest figures of one job."""

    def __init__(self, path: Path, job_name: str) -> None:
        """Write to `path`, or to what it points to; its folder is made where it is missing.

        Raises:
            SettingError: a folder, a device or a pipe is there.
        """
        self._path, self._job_name = replaceable_file(path, what="metrics file"), job_name
        self._stages: Mapping[str, StageFigures] = {}
        self._outcome: Mapping[str, int | float] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def write(self, stages: Mapping[str, StageFigures], outcome: Mapping[str, int | float]) -> None:
        """Replace the file.

        Args:
            stages: every stage that has begun.
            outcome: figures of the finished index, by name; empty before.

        Raises:
            OSError: the folder takes no files any more.
        """
        self._stages, self._outcome = dict(stages), dict(outcome)
        write_to_textfile(str(self._path), self._registry)

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        labels = ["job", "stage"]
        done = GaugeMetricFamily("phosphene_index_stage_done", "Steps of the stage that are done.", labels=labels)
        total = GaugeMetricFamily("phosphene_index_stage_total", "Steps of the stage.", labels=labels)
        took = GaugeMetricFamily("phosphene_index_stage_duration_seconds", "Time in the stage.", labels=labels)
        for name, stage in self._stages.items():
            done.add_metric([self._job_name, name], stage.done)
            total.add_metric([self._job_name, name], stage.total)
            took.add_metric([self._job_name, name], stage.duration_s)
        yield from (done, total, took)
        finished = GaugeMetricFamily("phosphene_index_finished", "1 once the index is whole.", labels=["job"])
        finished.add_metric([self._job_name], 1 if self._outcome else 0)
        yield finished
        for name, value in self._outcome.items():
            gauge = GaugeMetricFamily(f"phosphene_index_{name}", "See the index's summary.", labels=["job"])
            gauge.add_metric([self._job_name], value)
            yield gauge
