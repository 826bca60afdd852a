"""Kernel time and wall-clock time: the distance between both, measured anew for each batch."""

from __future__ import annotations

import time
from statistics import median_low

SAMPLES = 5


def unix_offset_ns(samples: int = SAMPLES) -> int:
    """Measure what to add to a CLOCK_MONOTONIC time to get Unix time, in ns.

    Each sample reads CLOCK_REALTIME between two readings of CLOCK_MONOTONIC; the median
    of `samples` discards those in which this thread was preempted. A batch measured after
    the wall clock was stepped carries the new time: spans follow the clock, as logs do.
    """
    return median_low(_sample() for _ in range(samples))


def _sample() -> int:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    unix = time.clock_gettime_ns(time.CLOCK_REALTIME)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return unix - (before + after) // 2
