"""From what was measured to the figures that have a bar; pure.

Samples are kept by name, one from each round; a figure is made of their medians, unless it says otherwise. A figure
whose samples are missing is left out: what could not be measured neither holds nor fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.record import Must
from benchmarks.samples import Samples

__all__ = ["Figure", "musts", "not_measured"]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A line of the table of bars."""

    name: str
    """What it is."""
    value: Callable[[Samples], float]
    """How it follows from the samples; raises `KeyError` where one is missing."""
    bar: float
    """Must be reached."""
    aim: str
    """Should be reached."""
    sense: Literal[">=", "<="]
    """On which side of the bar the value belongs."""
    bound: Callable[[Samples], float] | None = None
    """The most that anybody could reach, where something outside sets a limit; told beside a miss, excuses none."""

    @property
    def title(self) -> str:
        """Its name in a record, which tells the aim."""
        return f"{self.name} (aim {self.aim})"


def musts(figures: Iterable[Figure], samples: Samples) -> dict[str, Must]:
    """Every figure that can be made of the samples, by title."""
    found: dict[str, Must] = {}
    for figure in figures:
        try:
            value = figure.value(samples)
        except KeyError:
            continue
        bound = None if figure.bound is None else figure.bound(samples)
        found[figure.title] = Must(value=value, bar=figure.bar, sense=figure.sense, bound=bound)
    return found


def not_measured(figures: Iterable[Figure], samples: Samples) -> list[str]:
    """Names of the figures whose samples are missing."""
    asked = list(figures)
    found = musts(asked, samples)
    return [figure.name for figure in asked if figure.title not in found]
