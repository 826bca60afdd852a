"""Which series there are: at most so many, the rest in one per service and metric.

A number is given to each combination of resource, instrument and attributes. When none is
left, what is new is counted under `otel.metric.overflow=true` of its resource and
instrument, and if there are too many of those as well, of the tracer's own resource.

A process that has ended leaves its series behind: each that nothing was added to for
IDLE_NS is forgotten, and, where more than half of the numbers are given, those that nothing
was added to for longest, as soon as what they hold has been delivered. One that comes back
begins anew, with a start time of its own, as OTLP provides for.

Source: https://opentelemetry.io/docs/specs/otel/metrics/sdk/#cardinality-limits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.red.instruments import INSTRUMENTS, OVERFLOW, Attributes, Instrument
from tracer.spans import Resource

MAX_SERIES = 4_096
IDLE_NS = 15 * 60 * 10**9


class Key(NamedTuple):
    """What makes a series."""

    resource: Resource
    instrument: Instrument
    attributes: Attributes


class Series:
    """Numbers of series, from 0 on and below `capacity`; free ones are given again.

    own: the tracer's resource. max_series: besides those of overflow.
    """

    def __init__(self, own: Resource, max_series: int = MAX_SERIES) -> None:
        self._own = own
        self._max_series = max_series
        self._max_overflows = max_series // 8
        self.capacity = max_series + self._max_overflows + len(INSTRUMENTS)
        self._numbers: dict[Key, int] = {}
        self._keys: dict[int, Key] = {}
        self._free: list[int] = []
        self._overflows = 0
        self.overflowing: NDArray[np.bool_] = np.zeros(self.capacity, dtype=np.bool_)
        self.start_ns = np.zeros(self.capacity, dtype=np.int64)
        # When something was last found to have been added.
        self.used_ns = np.zeros(self.capacity, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def used(self) -> int:
        """One more than the highest number ever given."""
        return len(self._numbers) + len(self._free)

    def number(self, key: Key, start_ns: int) -> int:
        """Return the number of a series; a new one begins at start_ns (Unix time)."""
        found = self._numbers.get(key)
        if found is not None:
            return found
        if len(self._numbers) - self._overflows < self._max_series:
            return self._give(key, start_ns, False)
        for resource in (key.resource, self._own):
            coarse = Key(resource, key.instrument, OVERFLOW)
            found = self._numbers.get(coarse)
            if found is not None:
                return found
            if self._overflows < self._max_overflows or resource is self._own:
                self._overflows += 1
                return self._give(coarse, start_ns, True)
        raise AssertionError("the tracer's own overflow has room")

    def _give(self, key: Key, start_ns: int, overflow: bool) -> int:
        number = self._free.pop() if self._free else len(self._numbers)
        self._numbers[key] = number
        self._keys[number] = key
        self.overflowing[number] = overflow
        self.start_ns[number] = self.used_ns[number] = start_ns
        return number

    def key(self, number: int) -> Key:
        """Return what a number was given to."""
        return self._keys[number]

    def numbers(self) -> NDArray[np.intp]:
        """Return all that are given, ascending."""
        return np.array(sorted(self._keys), dtype=np.intp)

    def idle(self, now_ns: int, since_ns: int) -> NDArray[np.intp]:
        """Return which to forget, of those that nothing was added to since since_ns."""
        numbers = self.numbers()
        used = self.used_ns[numbers]
        numbers = numbers[used <= since_ns]
        numbers = numbers[np.argsort(self.used_ns[numbers], kind="stable")]
        crowded = len(self._numbers) - self._max_series // 2
        old = int(np.count_nonzero(self.used_ns[numbers] <= now_ns - IDLE_NS))
        return numbers[: max(old, crowded, 0)]

    def forget(self, numbers: NDArray[np.intp]) -> None:
        """Take numbers back."""
        for number in numbers.tolist():
            del self._numbers[self._keys.pop(number)]
            self._overflows -= bool(self.overflowing[number])
            self.overflowing[number] = False
            self._free.append(number)
