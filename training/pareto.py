"""Which autoencoders are on the Pareto front of reconstruction and sparsity, and the picture of it.

The only user of matplotlib. Knows nothing of training: it gets points. The picture is readable without colour: curves
differ by marker and dash, the front is a thick line with rings.
"""

from __future__ import annotations

import io
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

__all__ = ["Point", "draw_pareto", "pareto_front"]

_INKS = ("#1b1b1b", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f7f7f")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":", "-.")
_LOG_FROM_RATIO = 8.0
# Inches. What the legend needs is added to the axes, not taken from them.
_AXES_WIDTH, _LEAST_HEIGHT = 6.4, 5.6
_SAMPLE_WIDTH, _LETTER_WIDTH, _ENTRY_HEIGHT = 0.8, 0.08, 0.2
_TITLE_LETTERS = 72


@dataclass(frozen=True, kw_only=True)
class Point:
    """One autoencoder."""

    curve: str
    """Which curve it belongs to."""
    setting: str
    """What it shares with the runs that differ in seed and learning rate alone; a curve has one knot for each."""
    rate: float
    """Its learning rate."""
    l0: float
    """Mean number of active neurons per residual, held out."""
    fvu: float
    """Fraction of variance unexplained, held out."""


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other point beats: none has both values as small and one of them smaller.

    Args:
        points: (L0, FVU) of each.
    """
    return [
        not any(
            other[0] <= point[0] and other[1] <= point[1] and (other[0] < point[0] or other[1] < point[1])
            for other in points
        )
        for point in points
    ]


def draw_pareto(points: Sequence[Point], title: str) -> bytes:
    """FVU against L0 as a PNG.

    Each run is a small dot. A curve goes through one knot per setting: the mean over seeds at the learning rate that
    explains most.

    Args:
        points: at least one.
        title: above the picture.
    """
    curves: defaultdict[str, list[Point]] = defaultdict(list)
    for point in points:
        curves[point.curve].append(point)
    legend_width = _SAMPLE_WIDTH + _LETTER_WIDTH * max(map(len, curves))
    size = (_AXES_WIDTH + legend_width, max(_LEAST_HEIGHT, _ENTRY_HEIGHT * (len(curves) + 2)))
    figure = Figure(figsize=size, dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles = zip(cycle(_INKS), cycle(_MARKERS), cycle(_DASHES), strict=False)
    for (name, members), (ink, marker, dash) in zip(curves.items(), styles, strict=False):
        knots = _knots(members)
        axes.scatter([p.l0 for p in members], [p.fvu for p in members], s=9, color=ink, alpha=0.45, linewidths=0)
        axes.plot(
            *zip(*knots, strict=True),
            color=ink,
            marker=marker,
            linestyle=dash,
            ms=6,
            lw=1.5,
            label=name,
            mfc="white",
            mew=1.4,
        )
    _mark_front(axes, points)
    _label(axes, points, title)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, handlelength=3.2)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _knots(members: Sequence[Point]) -> list[tuple[float, float]]:
    by_setting: defaultdict[str, defaultdict[float, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in members:
        by_setting[point.setting][point.rate].append(point)
    knots = []
    for by_rate in by_setting.values():
        means = [(fmean(p.fvu for p in alike), fmean(p.l0 for p in alike)) for alike in by_rate.values()]
        fvu, l0 = min(means)
        knots.append((l0, fvu))
    return sorted(knots)


def _mark_front(axes: Axes, points: Sequence[Point]) -> None:
    pairs = [(point.l0, point.fvu) for point in points]
    front = sorted({pair for pair, is_best in zip(pairs, pareto_front(pairs), strict=True) if is_best})
    l0s, fvus = zip(*front, strict=True)
    axes.step(l0s, fvus, where="post", color="#000000", alpha=0.3, linewidth=3.5, zorder=0)
    axes.scatter(
        l0s,
        fvus,
        s=130,
        facecolors="none",
        edgecolors="#000000",
        linewidths=1.3,
        label="Pareto front",
        zorder=4,
    )


def _label(axes: Axes, points: Sequence[Point], title: str) -> None:
    axes.set_title(textwrap.fill(title, _TITLE_LETTERS), loc="left", fontsize=11, parse_math=False)
    axes.set_xlabel("L0: active neurons per residual (held out)")
    axes.set_ylabel("FVU: fraction of variance unexplained (held out)")
    l0s, fvus = [point.l0 for point in points], [point.fvu for point in points]
    if min(l0s) > 0 and max(l0s) / min(l0s) >= _LOG_FROM_RATIO:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    if min(fvus) > 0 and max(fvus) / min(fvus) >= _LOG_FROM_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(visible=True, color="#000000", alpha=0.12)
    axes.spines[["top", "right"]].set_visible(False)
