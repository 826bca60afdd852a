"""Exponential histograms of many series in columns: row i of each array is series i's.

Buckets lie in a ring: bucket b is in cell b modulo BUCKETS, so that none needs to move
when smaller or greater values come. What is to be in one histogram spans less than BUCKETS
buckets; where it doesn't any more, neighbours are put together, and its scale is one less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.red.buckets import I64, SCALE, indices

Ids = NDArray[np.intp]

# As many as the SDKs keep by default.
BUCKETS = 160
# `indices` of any duration of 63 bits lie between -_KEY_ZERO and 2 * _KEY_ZERO.
_KEY_BITS = 15
_KEY_ZERO = 1 << 13
_LOW, _HIGH = 2 * _KEY_ZERO, -_KEY_ZERO
MAX_SERIES = 1 << (31 - _KEY_BITS)
_NEVER = np.iinfo(np.int64).max


class Point(NamedTuple):
    """One series at one moment. Times are ns; counts[0] is that of bucket `offset`."""

    total: int
    zero: int
    sum_ns: int
    min_ns: int
    max_ns: int
    scale: int
    offset: int
    counts: list[int]


class Histograms:
    """`reserve` rows, `observe` into them, take their `point`s, `clear` them."""

    def __init__(self) -> None:
        self._allocate(64)

    def _allocate(self, rows: int) -> None:
        self.count = np.zeros(rows, dtype=np.int64)
        self._zero = np.zeros(rows, dtype=np.int64)
        self._sum = np.zeros(rows, dtype=np.int64)
        self._min = np.full(rows, _NEVER, dtype=np.int64)
        self._max = np.zeros(rows, dtype=np.int64)
        # The lowest and highest bucket at SCALE; none where low is above high.
        self._low = np.full(rows, _LOW, dtype=np.int64)
        self._high = np.full(rows, _HIGH, dtype=np.int64)
        # How much coarser than SCALE.
        self._shift = np.zeros(rows, dtype=np.int64)
        self._cells = np.zeros((rows, BUCKETS), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.count)

    def reserve(self, rows: int) -> None:
        """Make sure that there are so many; raises ValueError above MAX_SERIES."""
        if rows > MAX_SERIES:
            raise ValueError(f"more than {MAX_SERIES} series")
        old = self.__dict__.copy()
        used = len(self)
        if rows > used:
            self._allocate(max(rows, 2 * used))
            for name, column in old.items():
                getattr(self, name)[:used] = column

    def observe(
        self, series: NDArray[np.int32], duration_ns: I64, times: I64 | None = None
    ) -> None:
        """Add durations, (n,), each to the row that `series` says, (n,), once or so many `times`.

        A duration below 0 counts as 0. Costs some ns for each, and little more for each
        bucket that is met; what is longer in Python happens some dozen times in a row's life.
        """
        duration_ns = np.maximum(duration_ns, 0)
        np.add.at(self.count, series, 1 if times is None else times)
        np.add.at(self._sum, series, duration_ns if times is None else duration_ns * times)
        np.minimum.at(self._min, series, duration_ns)
        np.maximum.at(self._max, series, duration_ns)
        above = duration_ns > 0
        if not above.all():
            np.add.at(self._zero, series[~above], 1 if times is None else times[~above])
            series, duration_ns = series[above], duration_ns[above]
            times = None if times is None else times[above]
            if not len(series):
                return
        keys = indices(duration_ns) + _KEY_ZERO
        keys |= series.astype(np.int64) << _KEY_BITS
        # Half as wide, twice as quickly sorted.
        narrow = keys.astype(np.int32)
        if times is None:
            sorted_ = np.sort(narrow)
            begin, end = _runs(sorted_)
            counts = end - begin
        else:
            order = np.argsort(narrow)
            sorted_ = narrow[order]
            begin, _ = _runs(sorted_)
            counts = np.add.reduceat(times[order], begin)
        distinct = sorted_[begin].astype(np.int64)
        rows = distinct >> _KEY_BITS
        bucket = (distinct & ((1 << _KEY_BITS) - 1)) - _KEY_ZERO
        self._make_room(rows, bucket)
        bucket >>= self._shift[rows]
        np.add.at(self._cells, (rows, bucket % BUCKETS), counts)

    def _make_room(self, rows: I64, bucket: I64) -> None:
        """Make histograms coarse enough for buckets at SCALE; both (m,), sorted by row, bucket."""
        first, end = _runs(rows)
        last = end - 1
        at = rows[first]
        old_low, old_high, old_shift = self._low[at], self._high[at], self._shift[at]
        low = np.minimum(old_low, bucket[first])
        high = np.maximum(old_high, bucket[last])
        shift = old_shift.copy()
        while (wide := (high >> shift) - (low >> shift) >= BUCKETS).any():
            shift[wide] += 1
        for i in np.flatnonzero((shift > old_shift) & (old_low <= old_high)).tolist():
            by = int(shift[i] - old_shift[i])
            buckets = np.arange(old_low[i] >> old_shift[i], (old_high[i] >> old_shift[i]) + 1)
            cells = np.zeros(BUCKETS, dtype=np.int64)
            np.add.at(cells, (buckets >> by) % BUCKETS, self._cells[at[i], buckets % BUCKETS])
            self._cells[at[i]] = cells
        self._low[at], self._high[at], self._shift[at] = low, high, shift

    def points(self, rows: Ids) -> list[Point]:
        """Take a picture of some rows."""
        made = []
        columns = (self.count, self._zero, self._sum, self._min, self._max)
        numbers = np.stack([column[rows] for column in columns], axis=1).tolist()
        for row, (count, zero, sum_ns, least, most) in zip(rows.tolist(), numbers, strict=True):
            shift = int(self._shift[row])
            low, high = int(self._low[row]) >> shift, int(self._high[row]) >> shift
            cells = self._cells[row, np.arange(low, high + 1) % BUCKETS].tolist()
            offset = low if cells else 0
            made.append(Point(count, zero, sum_ns, least, most, SCALE - shift, offset, cells))
        return made

    def clear(self, rows: Ids) -> None:
        """Begin some rows anew."""
        for column in (self.count, self._zero, self._sum, self._max, self._shift, self._cells):
            column[rows] = 0
        self._min[rows] = _NEVER
        self._low[rows], self._high[rows] = _LOW, _HIGH


def _runs(values: NDArray[np.int32] | I64) -> tuple[Ids, Ids]:
    """Return where each run of equal values begins and ends, both (m,); there are some."""
    bounds = np.empty(len(values) + 1, dtype=np.bool_)
    bounds[0] = bounds[-1] = True
    np.not_equal(values[1:], values[:-1], out=bounds[1:-1])
    at = np.flatnonzero(bounds)
    return at[:-1], at[1:]
