"""Keeps the tracer's CPU under a cap: by letting traces go, and at the worst by pausing.

Every PERIOD_S, or half as often where nothing comes, it looks at what the process used of late
and what came meanwhile. If that is more than the cap, or the buffer behind the ring fills, the
kernel is told to let go of every other trace more (ebpf/shed.bpf.h): these cost the tracer
nothing. When there is much room, it takes one step back. Until that has worked, and where it
can't (what is left costs too much all the same), the worker pauses, so that the buffer and then
the ring fill, which is counted.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

PERIOD_S, IDLE_PERIOD_S = 0.25, 0.5
# Looks that are taken together: a burst of less than a second is the buffer's.
WINDOW = 4
MAX_LEVEL = 16
# Levels at most at once: what was measured under one load is a guess for another.
MAX_RISE = 4
# Of the cap: above it the kernel begins to note fates, so that no trace is cut as it sheds;
# below it a level may be taken back, which doubles what comes.
ARM, CALM = 0.5, 0.4
# Looks with much room before a level is taken back; more where that was wrong the last times.
CALM_LOOKS, MOST_CALM_LOOKS = 8, 256
# Fill of the buffer, above which it will overflow if more comes than leaves.
FULL = 0.5
# Records a look, below which CPU isn't spent on records.
FEW_RECORDS = 256
# The worker's pauses: at most so long at a time, when more than this was used ahead, seconds.
MAX_PAUSE_S, CREDIT_S = 2.0, 1.0


class Look(NamedTuple):
    """Totals so far.

    arrived, worked, lost: records taken from the ring, made into spans, and those that found no
    room in the ring or behind it.
    """

    time_s: float
    cpu_s: float
    arrived: int
    worked: int
    lost: int = 0


class Governor:
    """`start` and `close`; `pause` is the worker's.

    cores: the cap. look: totals so far. fill: of the buffer, 0 to 1.
    shed: is told what the kernel is to do: 0 nothing, n to keep one trace in 2 ** (n - 1).
    """

    def __init__(
        self,
        cores: float,
        look: Callable[[], Look],
        fill: Callable[[], float],
        shed: Callable[[int], None],
    ) -> None:
        self._cores = cores
        self._look = look
        self._fill = fill
        self._shed = shed
        self._looks: deque[Look] = deque(maxlen=WINDOW + 1)
        self._calm = 0
        self._patience = CALM_LOOKS
        self._fell = False
        self._armed = False
        self.level = 0
        self._paid: tuple[float, float] | None = None
        self._debt = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="governor", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2 * PERIOD_S)

    def words(self) -> str:
        """Say what is let go of at the moment, "" for nothing."""
        if not self.level:
            return ""
        return f"one trace in {1 << self.level}, to stay within --max-cpu {self._cores:g}"

    def pause(self) -> None:
        """Wait, if more CPU was used than there is; called before each batch."""
        if (seconds := self.owed(time.monotonic(), time.process_time())) > 0:
            self._ended.wait(seconds)

    def owed(self, now_s: float, cpu_s: float) -> float:
        """Return for how long the worker should wait, seconds."""
        if self._paid is not None:
            then_s, used_s = self._paid
            self._debt += cpu_s - used_s - self._cores * (now_s - then_s)
            self._debt = max(self._debt, -self._cores * CREDIT_S)
        self._paid = now_s, cpu_s
        return min(MAX_PAUSE_S, max(0.0, self._debt / self._cores))

    def _run(self) -> None:
        period = PERIOD_S
        while not self._ended.wait(period):
            before = self._looks[-1].arrived if self._looks else -1
            now = self._look()
            self.step(now, self._fill())
            # Where nothing comes there is nothing to govern.
            period = PERIOD_S if self._armed or now.arrived != before else IDLE_PERIOD_S

    def step(self, now: Look, fill: float) -> None:
        """Look, and raise or lower the level."""
        self._looks.append(now)
        if len(self._looks) <= WINDOW // 2:
            return
        first = self._looks[0]
        arrived, worked = now.arrived - first.arrived, now.worked - first.worked
        lost = now.lost - first.lost
        busy = arrived + lost >= FEW_RECORDS * (len(self._looks) - 1)
        # Of what waits, the cost is yet to come.
        share = arrived / worked if worked else 1.0
        used = (now.cpu_s - first.cpu_s) / (now.time_s - first.time_s)
        wanted = used / self._cores * share
        full = lost > 0 or (fill > FULL and arrived > worked)
        if full:
            wanted = max(wanted, 2.0, (arrived + lost) / max(1, arrived))
        if not self._armed and busy and wanted > ARM:
            self._set(self.level, True)
        elif busy and wanted > 1 and (full or len(self._looks) > WINDOW):
            rise = min(MAX_RISE, max(1, math.ceil(math.log2(wanted))))
            self._set(min(MAX_LEVEL, self.level + rise), True)
        elif self._armed and wanted < CALM and fill < FULL / 4:
            self._calm += 1
            if self._calm >= self._patience:
                self._set(max(0, self.level - 1), self.level > 0)
        else:
            self._calm = 0

    def _set(self, level: int, armed: bool) -> None:
        """Tell the kernel, and look afresh: what was seen before was under another level."""
        if level != self.level:
            self._looks.clear()
            fell = level < self.level
            if self._fell:
                self._patience = CALM_LOOKS if fell else min(2 * self._patience, MOST_CALM_LOOKS)
            self._fell = fell
        self.level, self._armed = level, armed
        self._calm = 0
        self._shed(level + 1 if armed else 0)
