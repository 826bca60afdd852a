"""Rate, errors and durations of all exchanges, before any span is left out.

`observe` takes each batch once, as it comes from linking; `exemplify` what of it leaves
after sampling, for an exemplar should be a trace that can be looked at. What costs Python
time is done once for each shape, new series and pair of services in a batch.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.columns import I32, U64, unlike
from tracer.red.buckets import I64
from tracer.red.histograms import Histograms, Point
from tracer.red.instruments import (
    GRAPH_CLIENT,
    GRAPH_SERVER,
    connection_type,
    failed,
    measured,
    pair,
    service_of,
)
from tracer.red.pairs import Pairs
from tracer.red.series import MAX_SERIES, Key, Series
from tracer.spans import KIND_CLIENT, KIND_SERVER, Resource, Shape, SpanBatch

# Lists of shapes of which tables are kept: spans held back refer to the one before.
TABLES = 3
# Names of services kept for pairs; what comes beyond them is called OTHER.
MAX_SERVICES, OTHER = 4_096, "_OTHER"
# Bits of a side's kind: error, database; above them the service.
_FAILED, _DATABASE, _KIND_BITS = 1, 2, 2


class Exemplar(NamedTuple):
    """The slowest exchange of a series since the last time, of those that were exported."""

    duration_ns: int
    end_ns: int
    trace_id: bytes
    span_id: bytes


class Measurement(NamedTuple):
    """A series at the moment of collection; start_ns: Unix time."""

    key: Key
    start_ns: int
    point: Point
    exemplar: Exemplar | None


class _Table:
    """By shape index: the series, the kind of span and of side; -1: not known yet."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes = shapes
        self.series = np.full(0, -1, dtype=np.int32)
        self.kind = np.zeros(0, dtype=np.int8)
        self.side = np.zeros(0, dtype=np.int64)

    def grow(self) -> None:
        """Make room for all shapes there are."""
        before, size = len(self.series), len(self.shapes)
        if size > before:
            size += size // 4
            for name in ("series", "kind", "side"):
                old = getattr(self, name)
                column = np.full(size, -1, dtype=old.dtype)
                column[:before] = old
                setattr(self, name, column)


class Red:
    """`observe`, `exemplify` from the worker; `collect`, `settle` from the exporter.

    own: the tracer's resource, which the service graph stands under.
    now_ns: Unix time of the beginning.
    delta: each collection counts from the one before.
    """

    def __init__(
        self, own: Resource, now_ns: int, delta: bool = False, max_series: int = MAX_SERIES
    ) -> None:
        self._own = own
        self._delta = delta
        self._lock = threading.Lock()
        self._series = Series(own, max_series)
        self._histograms = Histograms()
        self._pairs = Pairs()
        self._tables: list[_Table] = []
        self._services: dict[str, int] = {}
        self._names: list[str] = []
        self._last_ns = now_ns
        self._delivered_ns = 0
        self._seen = np.zeros(0, dtype=np.int64)
        # An exemplar for each series: duration (-1: none), end, ids as words.
        self._slowest = np.full(0, -1, dtype=np.int64)
        self._when = np.zeros(0, dtype=np.int64)
        self._ids = np.zeros((0, 3), dtype=np.uint64)
        self._random: np.random.Generator | None = None  # of weights; 7 MB that few need
        self._overflow = self._exchanges = self._paired = 0

    def observe(
        self, batch: SpanBatch, now_ns: int, weights: NDArray[np.float64] | None = None
    ) -> None:
        """Count every span of `batch`; now_ns: CLOCK_MONOTONIC.

        weights: how many exchanges each span stands for, where the kernel had to let some go,
            (n,); None: one. What is no whole number is rounded up or down by chance, so that
            sums are right in the long run.
        """
        if not len(batch):
            return
        with self._lock:
            table = self._table(batch)
            series = table.series.take(batch.shape)
            duration = (batch.end_ns - batch.start_ns).view(np.int64)
            times = np.ones(len(batch), dtype=np.int64)
            if weights is not None:
                self._random = self._random or np.random.default_rng()
                times = (weights + self._random.random(len(batch))).astype(np.int64)
            self._exchanges += int(times.sum())
            pairs = self._pair(table, batch, np.stack((duration, times)), now_ns)
            if pairs is not None:
                # Together, for a batch costs by itself, and not only by what is in it.
                series = np.concatenate((series, pairs[0]))
                duration = np.concatenate((duration, pairs[1]))
                times = np.concatenate((times, pairs[2]))
            single = int(times.max()) == 1
            self._histograms.observe(series, duration, None if single else times)
            if self._series.overflowing.any():
                self._overflow += int(times[self._series.overflowing[series]].sum())

    def exemplify(self, batch: SpanBatch) -> None:
        """Remember the slowest of spans that are exported; those of `observe`, or fewer."""
        if not len(batch):
            return
        with self._lock:
            series = self._table(batch).series[batch.shape]
            duration = (batch.end_ns - batch.start_ns).view(np.int64)
            rows = np.flatnonzero(duration > self._slowest[series])
            if not len(rows):
                return
            order = rows[np.lexsort((duration[rows], series[rows]))]
            last = np.append(series[order][1:] != series[order][:-1], True)
            rows = order[last]
            at = series[rows]
            self._slowest[at] = duration[rows]
            self._when[at] = batch.end_ns[rows]
            self._ids[at, :2] = np.ascontiguousarray(batch.trace_id[rows]).view(np.uint64)
            self._ids[at, 2] = np.ascontiguousarray(batch.span_id[rows]).view(np.uint64)[:, 0]

    def collect(self, now_ns: int) -> list[Measurement]:
        """Take a picture of all series, of those with something new where `delta`; Unix time."""
        with self._lock:
            numbers = self._series.numbers()
            count = self._histograms.count[numbers]
            fresh = count != self._seen[numbers]
            self._series.used_ns[numbers[fresh]] = now_ns
            chosen = numbers[fresh] if self._delta else numbers
            points = self._histograms.points(chosen)
            made = [
                Measurement(
                    self._series.key(number),
                    self._last_ns if self._delta else int(self._series.start_ns[number]),
                    point,
                    self._exemplar(number),
                )
                for number, point in zip(chosen.tolist(), points, strict=True)
            ]
            if self._delta:
                self._histograms.clear(chosen)
            self._seen[numbers] = self._histograms.count[numbers]
            self._slowest[:] = -1
            self._last_ns = now_ns
            return made

    def settle(self, now_ns: int) -> None:
        """Take note that what was last collected arrived; forgets series that are idle."""
        with self._lock:
            # What is as old as the last collection but one was delivered with it, or before.
            idle = self._series.idle(now_ns, self._delivered_ns)
            self._delivered_ns = self._last_ns
            idle = idle[self._histograms.count[idle] == self._seen[idle]]
            if not len(idle):
                return
            gone = np.concatenate((idle, np.flatnonzero(self._series.overflowing)))
            for table in self._tables:
                table.series[np.isin(table.series, gone)] = -1
            self._histograms.clear(idle)
            self._seen[idle] = 0
            self._series.forget(idle)

    def counts(self) -> dict[str, int]:
        """Count what was measured, for `wirespan status`."""
        with self._lock:
            return {
                "red_exchanges": self._exchanges,
                "red_pairs": self._paired,
                "red_series": len(self._series),
                "red_unpaired": self._pairs.forgotten,
            }

    @property
    def overflow(self) -> int:
        """How many exchanges were counted without their attributes."""
        return self._overflow

    def _exemplar(self, number: int) -> Exemplar | None:
        if self._slowest[number] < 0:
            return None
        ids = self._ids[number].tobytes()
        return Exemplar(int(self._slowest[number]), int(self._when[number]), ids[:16], ids[16:])

    def _table(self, batch: SpanBatch) -> _Table:
        """Return the table of a batch's shapes, with all that it uses."""
        for table in self._tables:
            if table.shapes is batch.shapes:
                break
        else:
            table = _Table(batch.shapes)
            self._tables = [table, *self._tables[: TABLES - 1]]
        table.grow()
        series = table.series.take(batch.shape)
        if series.min() < 0:
            for index in unlike(batch.shape[series < 0]).tolist():
                shape = batch.shapes[index]
                table.series[index] = self._number(Key(shape.resource, *measured(shape)))
                table.kind[index] = shape.kind
                kind = self._service(service_of(shape)) << _KIND_BITS
                kind |= _FAILED * failed(shape) | _DATABASE * bool(connection_type(shape))
                table.side[index] = kind
        return table

    def _number(self, key: Key) -> int:
        number = self._series.number(key, self._last_ns)
        if number >= len(self._slowest):
            self._histograms.reserve(number + 1)
            rows = len(self._histograms)
            for name, fill in (("_slowest", -1), ("_when", 0), ("_ids", 0), ("_seen", 0)):
                old = getattr(self, name)
                column = np.full((rows, *old.shape[1:]), fill, dtype=old.dtype)
                column[: len(old)] = old
                setattr(self, name, column)
        return number

    def _service(self, name: str) -> int:
        if len(self._names) >= MAX_SERVICES - 1 and name not in self._services:
            name = OTHER
        if name not in self._services:
            self._services[name] = len(self._names)
            self._names.append(name)
        return self._services[name]

    def _pair(
        self, table: _Table, batch: SpanBatch, measured: I64, now_ns: int
    ) -> tuple[I32, I64, I64] | None:
        """Return series, durations and times of exchanges of which both sides are known now.

        measured: durations and times of the batch's spans, (2, n).
        """
        kind = table.kind.take(batch.shape)
        above = _words(batch.parent_span_id)
        clients = np.flatnonzero(kind == KIND_CLIENT)
        servers = np.flatnonzero((kind == KIND_SERVER) & (above != 0))
        sides = np.stack((measured[0], table.side.take(batch.shape), measured[1]), axis=1)
        client, server = self._pairs.join(
            _words(batch.span_id).take(clients),
            sides.take(clients, axis=0),
            above.take(servers),
            sides.take(servers, axis=0),
            now_ns,
        )
        if not len(client):
            return None
        # Where one side was kept with less likelihood, so were both.
        times = np.maximum(client[:, 2], server[:, 2])
        self._paired += int(times.sum())
        of_client, of_server = client[:, 1], server[:, 1]
        both = (of_client >> _KIND_BITS) << 32 | of_server | of_client & _FAILED
        distinct, place = np.unique(both, return_inverse=True)
        numbers: I32 = np.array(
            [self._pair_series(each) for each in distinct.tolist()], dtype=np.int32
        )
        return (
            numbers.take(place, axis=0).T.reshape(-1),
            np.concatenate((client[:, 0], server[:, 0])),
            np.concatenate((times, times)),
        )

    def _pair_series(self, both: int) -> tuple[int, int]:
        attributes = pair(
            self._names[both >> 32],
            self._names[(both & 0xFFFFFFFF) >> _KIND_BITS],
            "database" if both & _DATABASE else "",
            bool(both & _FAILED),
        )
        return (
            self._number(Key(self._own, GRAPH_CLIENT, attributes)),
            self._number(Key(self._own, GRAPH_SERVER, attributes)),
        )


def _words(cells: NDArray[np.uint8]) -> U64:
    return np.ascontiguousarray(cells).view(np.uint64)[:, 0]
