"""Kernel time and wall-clock time: the distance between both, measured anew for each batch."""

from __future__ import annotations

import os
import time

from tracer.errors import UsageError

SAMPLES = 5
# For tests of clock skew: this host's clock is taken to be so many ms ahead of what it shows.
OFFSET_VARIABLE = "WIRESPAN_CLOCK_OFFSET_MS"


def unix_offset_ns(samples: int = SAMPLES) -> int:
    """Measure what to add to a CLOCK_MONOTONIC time to get Unix time, in ns.

    Each sample reads CLOCK_REALTIME between two readings of CLOCK_MONOTONIC; the median
    of `samples` discards those in which this thread was preempted. A batch measured after
    the wall clock was stepped carries the new time: spans follow the clock, as logs do.
    """
    return sorted(_sample() for _ in range(samples))[(samples - 1) // 2] + _SKEW_NS


def _sample() -> int:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    unix = time.clock_gettime_ns(time.CLOCK_REALTIME)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return unix - (before + after) // 2


def _skew_ns() -> int:
    text = os.environ.get(OFFSET_VARIABLE) or "0"
    try:
        return int(text) * 1_000_000
    except ValueError:
        raise UsageError(f"{OFFSET_VARIABLE}: {text!r} is not a whole number of ms") from None


_SKEW_NS = _skew_ns()
