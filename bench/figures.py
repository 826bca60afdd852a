"""Figures out of samples: median and spread, never a mean alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A median with the lowest and the highest sample, all in one unit."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Figure:
        """Sum samples up. Raises ValueError where there are none."""
        values = sorted(samples)
        if not values:
            raise ValueError("a figure needs a sample")
        return cls(statistics.median(values), values[0], values[-1])

    def text(self, digits: int = 2) -> str:
        """Write it as `median (low to high)`."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: a sample that `percent` % of all do not exceed.

    Raises ValueError where there are none.
    """
    if not samples:
        raise ValueError("a percentile needs a sample")
    rank = max(1, math.ceil(percent / 100 * len(samples)))
    return sorted(samples)[rank - 1]
