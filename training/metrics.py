"""Running trainings as a Prometheus textfile, for a node exporter to pick up; the only user of prometheus_client here.

Base units, prefix `phosphene_training_`, one label `run`: the name of the autoencoder. The file is replaced whole, so
that no scrape sees half of it. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from phosphene.durable_files import replaceable_file
from training.journal import JournalLine

_GAUGES: dict[str, tuple[str, Callable[[JournalLine], float | None]]] = {
    "step": ("Steps done, skipped ones included.", lambda line: line.step),
    "loss_ratio": ("Mean squared error per coordinate of the scaled batch.", lambda line: line.loss),
    "fvu_ratio": ("Fraction of the variance of the training residuals that is unexplained.", lambda line: line.fvu),
    "l0_neurons": ("Mean number of active neurons per residual.", lambda line: line.l0),
    "dead_ratio": ("Share of neurons that have not fired for long.", lambda line: line.dead_share),
    "learning_rate": ("Learning rate of the last step.", lambda line: line.learning_rate),
    "threshold_ema": (
        "Moving average of the smallest activation selected from a batch, in units of the scaled residual.",
        lambda line: line.threshold_ema,
    ),
}
_COUNTERS: dict[str, tuple[str, Callable[[JournalLine], float]]] = {
    "samples": ("Residuals seen.", lambda line: line.sample_count),
    "skipped_steps": ("Steps skipped because they would have led to NaN or infinity.", lambda line: line.skipped_count),
}


class MetricsFile(Collector):
    """One textfile with the newest figures of every run that writes to it."""

    def __init__(self, path: Path) -> None:
        """Write to `path`, or to what it points to; its folder is made where it is missing.

        Raises:
            SettingError: a folder, a device or a pipe is there.
        """
        self._path = replaceable_file(path, what="metrics file")
        self._newest: dict[str, JournalLine] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def write(self, run_name: str, line: JournalLine) -> None:
        """Replace the file by one in which this run stands here.

        Raises:
            OSError: the folder takes no files any more.
        """
        self._newest[run_name] = line
        write_to_textfile(str(self._path), self._registry)

    def collect(self) -> Iterator[Metric]:
        """See `Collector.collect`."""
        for name, (help_text, read) in _GAUGES.items():
            gauge = GaugeMetricFamily(f"phosphene_training_{name}", help_text, labels=["run"])
            for run_name, line in self._newest.items():
                value = read(line)
                if value is not None:
                    gauge.add_metric([run_name], value)
            yield gauge
        for name, (help_text, count) in _COUNTERS.items():
            counter = CounterMetricFamily(f"phosphene_training_{name}", help_text, labels=["run"])
            for run_name, line in self._newest.items():
                counter.add_metric([run_name], count(line))
            yield counter
