"""Where batches of spans go besides the network: standard output and `wirespan tail`.

A sink takes batches from the worker and never makes it wait: it queues, and counts what
does not fit. Rendering happens in the sink's own thread.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from tracer.match import Filter, take
from tracer.queues import BoundedQueue
from tracer.spans import SpanBatch

Render = Callable[[SpanBatch], Iterable[str]]

# A burst of 100,000 exchanges, both sides traced, waits here until it is rendered.
OUTPUT_QUEUE_BYTES = 256 * 1024 * 1024
# Spans rendered between two looks at whether to stop, and written at once.
OUTPUT_CHUNK = 1_000
# How full its queue may become while printing waits, and how long it waits at a time.
ROOM, PAUSE_S = 0.5, 0.005
# A reader that takes nothing for so long is not waited for at the end, in seconds.
STUCK_S = 2.0
TAIL_QUEUE_BYTES = 16 * 1024 * 1024
TAIL_SUBSCRIBERS = 8


class Sink(Protocol):
    """Takes batches; must return soon and must not raise."""

    def submit(self, batch: SpanBatch) -> None:
        """Take over `batch`, or count its spans as lost."""


def batch_bytes(batch: SpanBatch) -> int:
    """Memory that the columns of `batch` occupy, roughly; shapes are shared and not counted."""
    size = batch.trace_id.nbytes + batch.span_id.nbytes + batch.parent_span_id.nbytes
    size += batch.start_ns.nbytes + batch.end_ns.nbytes + batch.shape.nbytes
    size += sum(column.nbytes for column in batch.ints.values())
    return size + sum(text.bytes.nbytes + text.length.nbytes for text in batch.texts.values())


class Output:
    """Writes each span as a line to a file descriptor, in a thread of its own.

    It writes to the descriptor and not to a Python file: a thread stuck in a full pipe
    then holds no lock that the interpreter wants at exit.
    busy: whether making spans lags; printing then waits as long as the queue has room, for
        both need the interpreter and records waiting to become spans are four times larger.
    on_broken: called once, from the thread, when the reader of the pipe has gone or
        writing fails for good; the argument says why, "" for a reader that has gone.
    """

    def __init__(
        self,
        fd: int,
        render: Render,
        on_broken: Callable[[str], None],
        busy: Callable[[], bool] = lambda: False,
        max_bytes: int = OUTPUT_QUEUE_BYTES,
    ) -> None:
        self._fd = fd
        self._render = render
        self._on_broken = on_broken
        self._busy = busy
        self._queue: BoundedQueue[SpanBatch] = BoundedQueue(max_bytes)
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._abandoned = False
        self._broken = False
        self._gone = False  # whoever read it has seen enough
        self.written = 0
        self.dropped = 0

    def start(self) -> None:
        """Start writing."""
        self._thread.start()

    def submit(self, batch: SpanBatch) -> None:
        """Queue `batch`, or count its spans in `dropped`."""
        if self._gone:
            return
        if self._broken or not self._queue.put(batch, batch_bytes(batch)):
            self.dropped += len(batch)

    def close(self, timeout: float) -> None:
        """Write what is queued; what is left in the end is `dropped`.

        Waits `timeout` seconds at most, and no longer than STUCK_S where nothing moves.
        """
        self._queue.close()
        end = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < end:
            before = self.written
            self._thread.join(min(STUCK_S, timeout))
            if self.written == before:
                break
        self._abandoned = True
        if self._thread.is_alive():
            while (batch := self._queue.get(0)) is not None:
                self.dropped += len(batch)

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            for start in range(0, len(batch), OUTPUT_CHUNK):
                rows = np.arange(start, min(start + OUTPUT_CHUNK, len(batch)))
                part = take(batch, rows)
                while self._busy() and self._queue.fill() < ROOM and not self._abandoned:
                    time.sleep(PAUSE_S)
                if self._abandoned or self._broken:
                    self.dropped += len(part)
                elif self._write("".join(f"{line}\n" for line in self._render(part))):
                    self.written += len(part)
                elif self._gone:
                    return
                else:
                    self.dropped += len(part)

    def _write(self, text: str) -> bool:
        rest = memoryview(text.encode(errors="backslashreplace"))
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:
                # Somebody who shares this terminal or pipe made it non-blocking.
                select.select([], [self._fd], [])
            except OSError as error:
                self._broken = True
                self._gone = isinstance(error, BrokenPipeError)
                self._on_broken("" if self._gone else error.strerror or str(error))
                return False
        return True


class Subscriber:
    """One `wirespan tail`: the spans that match its filter, queued for its own thread."""

    def __init__(self, wanted: Filter, max_bytes: int = TAIL_QUEUE_BYTES) -> None:
        self._filter = wanted
        self._queue: BoundedQueue[SpanBatch] = BoundedQueue(max_bytes)
        self.dropped = 0

    def offer(self, batch: SpanBatch) -> int:
        """Queue the spans that match; returns how many of them did not fit."""
        rows = self._filter.rows(batch)
        if not len(rows):
            return 0
        matched = take(batch, rows)
        if self._queue.put(matched, batch_bytes(matched)) or self._queue.closed:
            return 0
        self.dropped += len(matched)
        return len(matched)

    def next(self, timeout: float) -> SpanBatch | None:
        """Wait up to `timeout` seconds for matching spans."""
        return self._queue.get(timeout)

    def close(self) -> None:
        """End the stream once what is queued has been read."""
        self._queue.close()

    @property
    def ended(self) -> bool:
        """Whether nothing will come any more."""
        return self._queue.closed


class TailHub:
    """A sink that hands each batch to every subscriber there is at the moment."""

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()
        self._lock = threading.Lock()
        self._closed = False
        self.dropped = 0

    def subscribe(self, wanted: Filter) -> Subscriber | None:
        """Add a subscriber; None where there are TAIL_SUBSCRIBERS of them already."""
        with self._lock:
            if len(self._subscribers) >= TAIL_SUBSCRIBERS:
                return None
            subscriber = Subscriber(wanted)
            if self._closed:
                subscriber.close()
            self._subscribers = (*self._subscribers, subscriber)
            return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Remove a subscriber; its queue is forgotten."""
        with self._lock:
            self._subscribers = tuple(s for s in self._subscribers if s is not subscriber)

    def submit(self, batch: SpanBatch) -> None:
        """Offer `batch` to each subscriber; what does not fit is counted in `dropped`."""
        for subscriber in self._subscribers:
            self.dropped += subscriber.offer(batch)

    def close(self) -> None:
        """End every stream."""
        with self._lock:
            self._closed = True
            for subscriber in self._subscribers:
                subscriber.close()

    def __len__(self) -> int:
        return len(self._subscribers)
