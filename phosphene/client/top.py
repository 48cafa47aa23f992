"""`phosphene top`: a service's metrics as a live view in a terminal, or once.

Reads the metrics page alone, so it needs neither Prometheus nor the gRPC port. Rates are over the time between two
scrapes; the first view has only one, and shows the means since the service began.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from phosphene.client.exposition import Scrape, fetch_scrape
from phosphene.client.words import number, percent, plain
from phosphene.errors import ServiceUnreachable

__all__ = ["Window", "run_top", "top_view"]

_STAGES = "phosphene_stage_duration_seconds"
_REQUESTS = "phosphene_request_duration_seconds"
_BATCHES = "phosphene_batch_size_items"
_BAR_WIDTH = 20
_DRIFT_LIMIT = 0.3


@dataclass(frozen=True, kw_only=True)
class Window:
    """What was scraped, and what came since the scrape before."""

    now: Scrape
    """The last scrape."""
    grown: Scrape
    """What was added in the window."""
    length_s: float
    """How long the window is."""
    is_since_start: bool = False
    """Whether it is the whole life of the service."""

    def rate(self, name: str, **labels: str) -> float:
        """What was added each second."""
        return self.grown.total(name, **labels) / self.length_s

    def mean(self, name: str, **labels: str) -> float | None:
        """Mean of a histogram in the window; None where nothing came."""
        count = self.grown.total(f"{name}_count", **labels)
        return self.grown.total(f"{name}_sum", **labels) / count if count else None


def run_top(
    console: Console,
    url: str,
    *,
    once: bool,
    interval_s: float,
    timeout_s: float,
    stop: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
    unix_time_s: Callable[[], float] = time.time,
) -> None:
    """Show a service's metrics until interrupted.

    Args:
        console: where to.
        url: the metrics page.
        once: whether to show one view and return.
        interval_s: seconds between scrapes.
        timeout_s: how long a scrape may take.
        stop: ends the view once set.
        clock: monotonic seconds, between scrapes.
        unix_time_s: seconds since 1970, for the service's age.

    Raises:
        ServiceUnreachable: the first scrape failed; later ones are told in the view, which goes on.
    """
    scrape, scraped_s = fetch_scrape(url, timeout_s=timeout_s), clock()
    window = _since_start(scrape, unix_time_s())
    if once:
        console.print(top_view(window, url))
        return
    ended = stop or threading.Event()
    with _showing(console) as show:
        show(top_view(window, url))
        while not ended.wait(interval_s):
            try:
                following, now_s = fetch_scrape(url, timeout_s=timeout_s), clock()
            except ServiceUnreachable as error:
                show(Group(Text(plain(str(error)), style="bold red"), top_view(window, url)))
                continue
            window = Window(now=following, grown=following.since(scrape), length_s=max(now_s - scraped_s, 1e-3))
            scrape, scraped_s = following, now_s
            show(top_view(window, url))


@contextmanager
def _showing(console: Console) -> Iterator[Callable[[RenderableType], None]]:
    """Give what shows a view: in place of the one before on a terminal, behind it in a file or a pipe."""
    if not console.is_terminal:
        yield console.print
        return
    with Live(console=console, auto_refresh=False, screen=True) as live:
        yield lambda view: live.update(_Fitted(view), refresh=True)


@dataclass(frozen=True)
class _Fitted:
    """A view that says so where a terminal is too low for all of it."""

    view: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        lines = console.render_lines(self.view, options.update(height=None), pad=False)
        missing = len(lines) - console.height
        shown = lines if missing <= 0 else lines[: console.height - 1]
        yield Segments(segment for line in shown for segment in (*line, Segment.line()))
        if missing > 0:
            yield Text(f"{missing + 1} more lines: make the terminal higher to see them", style="reverse", end="")


def _since_start(scrape: Scrape, unix_time_s: float) -> Window:
    started_s = scrape.total("phosphene_process_start_time_seconds")
    length_s = unix_time_s - started_s if 0 < started_s < unix_time_s else 1.0
    return Window(now=scrape, grown=scrape, length_s=length_s, is_since_start=True)


def top_view(window: Window, url: str) -> RenderableType:
    """The whole view of one window."""
    span = "since the start" if window.is_since_start else f"over {window.length_s:.1f} s"
    title = Text.assemble(("phosphene top", "bold"), f"  {plain(url)}  {span}")
    # What is wanted at a glance first: a terminal of 24 lines has no room for more than the stages.
    views = (_Beside(_device(window), _cache(window)), _requests(window), _stages(window))
    rest = (_models(window), _artefacts(window))
    return Group(title, *(view for view in (*views, *rest) if view is not None))


@dataclass(frozen=True)
class _Beside:
    """Two tables beside each other on a terminal that has room; elsewhere a line says one thing."""

    left: Table
    right: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        needed = sum(Measurement.get(console, options, table).maximum for table in (self.left, self.right))
        if needed > options.max_width or not console.is_terminal:
            yield from (self.left, self.right)
            return
        grid = Table.grid()
        grid.add_row(self.left, self.right)
        yield grid


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        show_header=any(columns),
    )
    for position, column in enumerate(columns):
        is_figure = position > 0 and any(columns)
        table.add_column(column, justify="right" if is_figure else "left", no_wrap=True)
    return table


def _add(table: Table, *cells: str | Text) -> None:
    # A string would be read as markup; a label may hold anything.
    table.add_row(*(Text(plain(cell)) if isinstance(cell, str) else cell for cell in cells))


def _requests(window: Window) -> RenderableType:
    table = _table("Requests", "method", "each s", "ok", "refused", "expired", "cancelled", "failed", "p50", "p95")
    called = window.now.by(f"{_REQUESTS}_count", "method")
    for method, count in window.grown.by(f"{_REQUESTS}_count", "method").items():
        if not called.get(method):
            continue
        ends = window.grown.by(f"{_REQUESTS}_count", "outcome", method=method)
        _add(
            table,
            method,
            number(count / window.length_s),
            *(
                Text(number(ends.get(outcome, 0.0)), style="red" if outcome == "failed" and ends.get(outcome) else "")
                for outcome in ("ok", "refused", "expired", "cancelled", "failed")
            ),
            *(_seconds(window.grown.quantile(_REQUESTS, share, method=method, outcome="ok")) for share in (0.5, 0.95)),
        )
    return table if table.row_count else Text.assemble(("Requests", "bold"), "\nnone so far")


def _stages(window: Window) -> RenderableType | None:
    stages = [stage for stage, count in window.now.by(f"{_STAGES}_count", "stage").items() if count]
    means = {stage: window.mean(_STAGES, stage=stage) for stage in stages}
    longest = max((mean for mean in means.values() if mean), default=0.0)
    table = _table("Stages", "stage", "mean", "p95", "")
    table.columns[-1].justify = "left"
    for stage in stages:
        filled = round(_BAR_WIDTH * (means[stage] or 0.0) / longest) if longest else 0
        p95 = window.grown.quantile(_STAGES, 0.95, stage=stage)
        _add(table, stage, _seconds(means[stage]), _seconds(p95), Text("█" * filled, style="cyan"))
    return table if table.row_count else None


def _device(window: Window) -> Table:
    now = window.now
    waiting = now.by("phosphene_queue_depth_items", "lane")
    capacity = now.total("phosphene_queue_capacity_items")
    size = window.mean(_BATCHES, operation="encode")
    refused = {
        reason: count for reason, count in _grown_by(window, "phosphene_admission_refused_items_total", "reason")
    }
    lost = window.grown.total("phosphene_decode_killed_items_total")
    table = _table("Device and queues", "", "")
    busy = window.rate("phosphene_batch_duration_seconds_sum")
    _add(table, "images each s", number(window.rate(f"{_BATCHES}_sum", operation="encode")))
    _add(table, "device busy", percent(min(busy, 1.0)))
    _add(table, "images in a batch", "-" if size is None else number(size))
    lanes = ", ".join(f"{lane} {depth:.0f}" for lane, depth in waiting.items())
    _add(table, "waiting", f"{lanes} of {capacity:.0f}")
    _add(table, "oldest waits", _seconds(now.total("phosphene_queue_oldest_seconds")))
    _add(table, "turned away", ", ".join(f"{why} {count:.0f}" for why, count in refused.items()) or "none")
    _add(table, "decode workers lost", Text(f"{lost:.0f}", style="red" if lost else ""))
    if memory := now.total("phosphene_device_memory_bytes"):
        _add(table, "device memory", f"{memory / 2**30:.2f} GiB")
    return table


def _cache(window: Window) -> Table:
    results = dict(_grown_by(window, "phosphene_cache_results_total", "result"))
    asked = sum(results.values())
    states = [state for state, is_on in window.now.by("phosphene_circuit_state", "state").items() if is_on]
    table = _table("Cache", "", "")
    hits = results.get("hit", 0.0) + results.get("coalesced", 0.0)
    _add(table, "hits", percent(hits / asked) if asked else "-")
    _add(table, "look-ups", ", ".join(f"{name} {count:.0f}" for name, count in results.items()) or "none")
    _add(table, "circuit", Text(plain(", ".join(states)), style="" if states == ["closed"] else "yellow"))
    return table


def _models(window: Window) -> RenderableType | None:
    now = window.now
    table = _table("Models", "bundle", "images", "neurons", "index's", "FVU", "drift", "not finite")

    def figure(name: str, bundle: str) -> float | None:
        found = now.labelled(f"phosphene_model_{name}", bundle=bundle)
        return found[0].value if found else None

    for bundle, image_count in now.by("phosphene_model_window_images", "bundle").items():
        drift, broken = figure("drift_ratio", bundle), figure("nonfinite_images_total", bundle)
        _add(
            table,
            bundle,
            f"{image_count:.0f}",
            *(_figure(figure(name, bundle)) for name in ("l0_neurons", "index_l0_neurons", "fvu_ratio")),
            Text(_figure(drift), style="red" if (drift or 0.0) > _DRIFT_LIMIT else ""),
            Text(_figure(broken), style="red" if broken else ""),
        )
    return table if table.row_count else None


def _artefacts(window: Window) -> RenderableType | None:
    table = _table("Artefacts", "kind", "name", "id", "code_id")
    for one in window.now.labelled("phosphene_artefact_info"):
        labels = one.labels
        shown = (
            labels.get("kind", ""),
            labels.get("name", ""),
            labels.get("id", "")[:12],
            labels.get("code_id", "")[:12],
        )
        _add(table, *shown)
    return table if table.row_count else None


def _grown_by(window: Window, name: str, label: str) -> list[tuple[str, float]]:
    return [(value, count) for value, count in window.grown.by(name, label).items() if count]


def _figure(value: float | None) -> str:
    return "-" if value is None else number(value)


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{number(1000 * value)} ms" if value < 1 else f"{number(value)} s"
