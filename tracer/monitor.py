"""What the tracer knows of itself, by name: counts, losses, rates, fills, its own cost.

One place that `wirespan status`, the tracer's own metrics and the closing line all read.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Samples, and how many rates reach back to: 10 s.
SAMPLE_S, SAMPLES = 2.0, 5


@dataclass(frozen=True, slots=True)
class Rate:
    """How much a count grew per second over the last `window_s` seconds."""

    per_second: float
    window_s: float


@dataclass(frozen=True, slots=True)
class Gauges:
    """How full buffers are (0 to 1), how large (bytes), and what waits for export (spans)."""

    ring_bytes: int
    ring_fill: float
    buffer_bytes: int
    buffer_fill: float
    export_queued: int


class Rates:
    """Growth of counts over a sliding window of SAMPLES samples, one each SAMPLE_S."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Mapping[str, float]]] = deque(maxlen=SAMPLES + 1)

    def sample(self, now: float, values: Mapping[str, float]) -> None:
        """Note what the counts are at `now` (seconds of any steady clock)."""
        self._samples.append((now, values))

    def rates(self, now: float, values: Mapping[str, float]) -> dict[str, Rate]:
        """Rates from the oldest sample to `now`; zero until time has passed."""
        then, before = self._samples[0] if self._samples else (now, values)
        window = now - then
        return {
            name: Rate(max(0.0, value - before.get(name, 0)) / window if window else 0.0, window)
            for name, value in values.items()
        }


class Monitor:
    """Gathers numbers from whoever has them; safe to ask from any thread.

    counts, losses, gauges: called for each answer; keys of `counts` and `losses` stay.
    """

    def __init__(
        self,
        counts: Callable[[], dict[str, int]],
        losses: Callable[[], dict[str, int]],
        gauges: Callable[[], Gauges],
    ) -> None:
        self.counts = counts
        self.losses = losses
        self.gauges = gauges
        self._rates = Rates()
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def uptime_s(self) -> float:
        """Seconds since this tracer started."""
        return time.monotonic() - self._started

    def sample(self) -> None:
        """Note the counts; to be called each SAMPLE_S."""
        values = self._values()
        with self._lock:
            self._rates.sample(time.monotonic(), values)

    def rates(self) -> dict[str, Rate]:
        """Growth per second of every count, of `lost` (all losses) and of `cpu_seconds`."""
        values = self._values()
        with self._lock:
            return self._rates.rates(time.monotonic(), values)

    def _values(self) -> dict[str, float]:
        values: dict[str, float] = dict(self.counts())
        values["lost"] = sum(self.losses().values())
        values["cpu_seconds"] = sum(cpu_seconds())
        return values


def cpu_seconds() -> tuple[float, float]:
    """CPU time of this process so far: in user space, in the kernel."""
    times = os.times()
    return times.user, times.system


def rss_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Memory of this process that is resident, in bytes; proc_pid_statm(5)."""
    return int(statm.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
