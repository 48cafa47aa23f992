"""Measured values by name, one from each round, from which figures are made."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

__all__ = ["Samples"]


@dataclass
class Samples:
    """Measured values by name."""

    values: dict[str, list[float]] = field(default_factory=dict)
    """One from each round."""

    def add(self, name: str, value: float) -> None:
        """Keep a value."""
        self.values.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> float:
        """The median; raises `KeyError` where there is none."""
        return statistics.median(self.values[name])
