"""From the ring to the sinks: one thread empties the ring, another makes spans.

The reader only copies, so that a slow moment of the worker fills a buffer of this process
and not the kernel's ring, which loses what finds no room. Numpy releases the interpreter's
lock while it copies and computes; both threads then make progress on two cores.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tracer.queues import BoundedQueue
from tracer.records import copy_used, join
from tracer.sinks import Sink
from tracer.spans import KIND_CLIENT, KIND_SERVER, Shape, SpanBatch

Records = NDArray[np.void]

# A burst of 100,000 exchanges, both sides traced, waits here at worst.
BUFFER_BYTES = 128 * 1024 * 1024
# Above this fill of the buffer the worker lags.
BUSY_FILL = 0.05
# Records per copy: the ring's space is free again after each.
READ_RECORDS = 1_024
# Records per batch of spans: beyond this, larger batches save little and take more memory.
# Twice as many where a span takes several: what counts is the spans a batch has.
BATCH_RECORDS = 4_096
# How long to wait for so many where there is much traffic, in seconds: a batch of half the size
# costs a fifth more a span, for each takes about a millisecond before its first one.
LINGER_S = 0.06
# How often, at least, spans that wait for their trace are looked at, in seconds: few, or
# more than FEW_RECORDS, for a look costs some ns a span. For none, nobody wakes up.
FLUSH_S, FLUSH_MANY_S = 0.03, 0.1
# How long to leave the ring alone. Each visit costs about as much as a hundred records,
# so little traffic is visited seldom and much traffic often.
MIN_WAIT, START_WAIT, MAX_WAIT = 0.001, 0.02, 0.1
# Where nothing comes at all the kernel is asked to wake the reader. So long, if it doesn't.
IDLE_WAIT = 1.0
FEW_RECORDS, MANY_RECORDS = 1_024, 4_096
# So long after the last batch of many, memory that is free is given back, in seconds.
REST_S, MUCH_RECORDS = 1.0, 256


class RingLike(Protocol):
    """What of tracer.kernel.ring.Ring is used here."""

    def fileno(self) -> int:
        """A descriptor that epoll finds readable when the kernel asks to be read."""

    def read(self, max_records: int) -> NDArray[Any]:
        """Records in place, oldest first, valid until `release`."""

    def release(self) -> None:
        """Give what was read back to the kernel."""

    def wake_me(self) -> None:
        """Ask the kernel to make that readable with the next record."""

    def fill(self) -> float:
        """How full the ring is, from 0 to 1."""


class Stitch(Protocol):
    """What of tracer.link.stitch.Stitcher is used here; times are CLOCK_MONOTONIC ns."""

    def __len__(self) -> int:
        """How many spans wait."""

    @property
    def since_ns(self) -> int:
        """When the one that has waited longest came, 0 for none."""

    def feed(self, batch: SpanBatch, now_ns: int) -> Sequence[SpanBatch]:
        """Take in spans; return those that need wait no more."""

    def flush(self, now_ns: int, all: bool = False) -> Sequence[SpanBatch]:
        """Return the spans that have waited for too long, or all that wait."""


class Sample(Protocol):
    """What of tracer.sampling.Sampler is used here."""

    def apply(self, batch: SpanBatch, now_ns: int) -> SpanBatch:
        """Return the spans of those that are to be kept."""


class Pipeline:
    """Owns both threads. Counters may be read from any thread at any time.

    feed: turns records and the distance from their clock to Unix time (ns) into spans.
    offset_ns: measures that distance, once a batch.
    on_failure: told once what went wrong, when `feed` raises what it should not; the
        records are counted in `failed` and the pipeline goes on.
    stitch: gives spans their traces and parents; None: they go out as they are.
    observe: is shown each batch, once, before any span of it is left out; must not raise.
    pause: called before each batch, may wait; None: nothing is to be waited for.
    sample: lets go of what the stitcher's sampler has decided to; None: nothing.
    rest: called once when little is left to do, after there was much.
    """

    def __init__(
        self,
        ring: RingLike,
        feed: Callable[[Records, int], SpanBatch],
        offset_ns: Callable[[], int],
        sinks: Sequence[Sink],
        on_failure: Callable[[BaseException], None],
        buffer_bytes: int = BUFFER_BYTES,
        stitch: Stitch | None = None,
        observe: Callable[[SpanBatch], None] | None = None,
        sample: Sample | None = None,
        rest: Callable[[], None] | None = None,
        pause: Callable[[], None] | None = None,
    ) -> None:
        self._ring = ring
        self._feed = feed
        self._offset_ns = offset_ns
        self._sinks = tuple(sinks)
        self._on_failure = on_failure
        self._stitch = stitch
        self._observe = observe
        self._sample = sample
        self._rest = rest
        self._pause = pause
        self._buffer: BoundedQueue[Records] = BoundedQueue(buffer_bytes)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._drain_until = 0.0
        self._started = False
        self._failure_told = False
        self._several = False  # records to a span, in the last batch
        self._shapes: Sequence[Shape] = ()
        self._kinds: list[int] = []
        self._reader = threading.Thread(target=self._read, name="reader", daemon=True)
        self._worker = threading.Thread(target=self._work, name="worker", daemon=True)
        self.records = 0
        self.worked = 0
        self.batches = 0
        self.server_spans = 0
        self.client_spans = 0
        self.reader_full = 0
        self.failed = 0
        # When the oldest span came that isn't counted and with the sinks yet, 0 for none.
        self.held_since_ns = 0

    def start(self) -> None:
        """Start reading; records may come from now on."""
        self._started = True
        self._worker.start()
        self._reader.start()

    def stop(self, timeout: float) -> None:
        """Empty the ring and work off what was read, in `timeout` seconds at most; once.

        Traffic that goes on while the ring is emptied is not chased beyond half of that.
        """
        if self._stopping:
            return
        deadline = time.monotonic() + timeout
        self._drain_until = time.monotonic() + timeout / 2
        self._stopping = True
        if not self._started:
            os.close(self._stop_fd)
            return
        os.eventfd_write(self._stop_fd, 1)
        self._reader.join(timeout)
        self._buffer.close()
        self._worker.join(max(0.0, deadline - time.monotonic()))
        if not self._reader.is_alive():
            os.close(self._stop_fd)

    def buffer_fill(self) -> float:
        """How full the buffer between reader and worker is, from 0 to 1."""
        return self._buffer.fill()

    def busy(self) -> bool:
        """Whether records wait that the worker will not get to at once."""
        return self._buffer.fill() > BUSY_FILL

    @property
    def buffer_bytes(self) -> int:
        """What that buffer may hold."""
        return self._buffer.max_bytes

    @property
    def alive(self) -> bool:
        """Whether both threads are at work."""
        return self._reader.is_alive() and self._worker.is_alive()

    def _read(self) -> None:
        wait = START_WAIT
        with select.epoll() as poll:
            # Edge-triggered: programs wake the reader only when it lags, or sleeps. Level-
            # triggered, one such wake-up would end every later wait while there is traffic.
            poll.register(self._ring.fileno(), select.EPOLLIN | select.EPOLLET)
            poll.register(self._stop_fd, select.EPOLLIN)
            while not self._stopping:
                if wait == IDLE_WAIT:
                    self._ring.wake_me()
                    if self._ring.fill():  # came before it could tell
                        wait = START_WAIT
                poll.poll(wait)
                wait = next_wait(wait, self._empty_ring())
        while self._empty_ring() and time.monotonic() < self._drain_until:
            pass

    def _empty_ring(self) -> int:
        """Copy what the ring holds, up to about its size, and return how many records."""
        total = 0
        while total < MANY_RECORDS * 16:
            view = self._ring.read(READ_RECORDS)
            count = len(view)
            if not count:
                self._ring.release()  # of what was discarded, if there was something
                break
            records = copy_used(view)
            self._ring.release()
            if not self._buffer.put(records, records.nbytes):
                self.reader_full += count
            total += count
        self.records += total
        return total

    def _work(self) -> None:
        size, linger = 0, 0.0
        rest_at = time.monotonic() + REST_S
        while not self._buffer.closed:
            held = len(self._stitch) if self._stitch is not None else 0
            wait: float | None = FLUSH_MANY_S if held > FEW_RECORDS else FLUSH_S
            if not held:
                wait = REST_S if rest_at < float("inf") else None
            chunks = self._buffer.get_up_to(size, wait, linger)
            if chunks:
                records = join(chunks)
                size = records.itemsize * BATCH_RECORDS * (1 + self._several)
                linger = LINGER_S if len(records) >= FEW_RECORDS and not self._stopping else 0.0
                if self._pause is not None and not self._stopping:
                    self._pause()
                self._try(partial(self._make, records), len(records))
                self.worked += len(records)
                if len(records) >= MUCH_RECORDS:
                    rest_at = time.monotonic() + REST_S
            else:
                self._try(self._stitched_late, 0)
            if self._rest is not None and time.monotonic() >= rest_at:
                rest_at = float("inf")
                self._rest()
        self._try(partial(self._stitched_late, all=True), 0)

    def _make(self, records: Records) -> Sequence[SpanBatch]:
        self.batches += 1
        batch = self._feed(records, self._offset_ns())
        self._several = len(records) > 2 * len(batch)
        return (
            self._stitch.feed(batch, time.monotonic_ns()) if self._stitch is not None else (batch,)
        )

    def _stitched_late(self, all: bool = False) -> Sequence[SpanBatch]:
        return self._stitch.flush(time.monotonic_ns(), all) if self._stitch is not None else ()

    def _try(self, make: Callable[[], Sequence[SpanBatch]], records: int) -> None:
        """Hand on the spans that `make` gives; where it fails, `records` are lost."""
        self.held_since_ns = self.held_since_ns or time.monotonic_ns()
        try:
            for batch in make():
                if self._observe is not None and len(batch):
                    self._observe(batch)
                if self._sample is not None:
                    batch = self._sample.apply(batch, time.monotonic_ns())
                self._count(batch)
                if len(batch):
                    for sink in self._sinks:
                        sink.submit(batch)
        except Exception as error:  # one bad batch must not end all tracing
            if not self._failure_told:
                self._failure_told = True
                self._on_failure(error)
            self.failed += records
        self.held_since_ns = self._stitch.since_ns if self._stitch is not None else 0

    def _count(self, batch: SpanBatch) -> None:
        if batch.shapes is not self._shapes:
            self._shapes, self._kinds = batch.shapes, []
        self._kinds.extend(shape.kind for shape in batch.shapes[len(self._kinds) :])
        kinds = np.asarray(self._kinds, dtype=np.int8)[batch.shape]
        self.server_spans += int(np.count_nonzero(kinds == KIND_SERVER))
        self.client_spans += int(np.count_nonzero(kinds == KIND_CLIENT))


def next_wait(wait: float, records: int) -> float:
    """How long to leave the ring alone, in seconds, after a wait that gathered `records`."""
    if not records and wait >= MAX_WAIT:
        return IDLE_WAIT
    if records < FEW_RECORDS:
        return min(MAX_WAIT, wait * 2)
    if records > MANY_RECORDS:
        return max(MIN_WAIT, wait / 2)
    return wait
