"""From batches to a receiver: a bounded queue, one worker thread, retries.

`submit` takes a lock for a moment and never waits for the network, for encoding or for
compression. Whatever happens to a receiver, what is held stays within `Limits`, and every
span submitted is exported, queued or counted as dropped for one of DROPS.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracer.export_config import ExportConfig
from tracer.export_reply import Reply, Verdict
from tracer.installed import version
from tracer.otlp import Encoder
from tracer.spans import Sampling, SpanBatch, Text

Scalar = TypeVar("Scalar", bound=np.generic)

# Why a span was not exported: name -> one line for people.
DROPS: Mapping[str, str] = {
    "queue_full": "the receiver was down or slow and the export queue full",
    "rejected": "the receiver refused the span for good",
    "failed": "the receiver could not be reached for as long as retries last",
    "encode": "the span could not be serialised (a bug: see the last error)",
    "closed": "the tracer ended before the span could be sent",
}

# How long `close` waits, beyond its timeout, for a request that was cut off.
ABORT_S = 2.0
# The most a receiver can ask the exporter to wait.
MAX_RETRY_AFTER_S = 300.0
# What a span is taken to need, encoded, before the first one was.
FIRST_GUESS_BYTES = 1024


class Transport(Protocol):
    """A way to a receiver. All but `abort` are called by one thread."""

    def prepare(self, body: bytes) -> bytes:
        """Make of a serialised request what `send` takes."""

    def send(self, body: bytes, timeout_s: float | None) -> Reply:
        """Send a prepared request and wait for the answer."""

    def abort(self) -> None:
        """End the request under way, from any thread; nothing can be sent any more."""

    def close(self) -> None:
        """Give the connection up; the last call of the thread that sends."""


@dataclass(frozen=True, slots=True)
class ExportStats:
    """Counts since the start. submitted = exported + dropped of all reasons + queued.

    requests: attempts, with retries; exported_bytes: of accepted requests, over HTTP as
    compressed; queued_*: requests under way included, in bytes of the columns; last_error:
    the last thing that went wrong or that a receiver remarked, kept after recovery;
    failing: what is wrong with the latest request, "" where it was accepted.
    """

    submitted_spans: int
    exported_spans: int
    exported_bytes: int
    requests: int
    retries: int
    dropped: Mapping[str, int]
    queued_spans: int
    queued_bytes: int
    last_error: str
    failing: str = ""


@dataclass(frozen=True, slots=True)
class _Queued:
    """A batch, what a span of it counts for in bytes, and when it came (monotonic s)."""

    batch: SpanBatch
    span_bytes: int
    since: float


@dataclass(slots=True)
class _Request:
    """Serialised spans, and what they counted for in the queue."""

    body: list[bytes]
    size: int = 0
    spans: int = 0
    queued_bytes: int = 0


class Exporter:
    """Sends batches to an OTLP receiver in the background.

    encoder: by default one with this version of wirespan as scope version.
    transport: by default what `config.protocol` names.
    Raises UsageError where a TLS file of `config` cannot be used.
    """

    def __init__(
        self,
        config: ExportConfig,
        encoder: Encoder | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._limits = config.limits
        self._timeout_s = config.timeout_s
        self._encoder = encoder or Encoder(version())
        self._transport = transport or connect(config)
        self._encoded_span_bytes = float(FIRST_GUESS_BYTES)
        self._failures = 0

        # Guards all that follows; notified when the worker has a reason to look.
        self._changed = threading.Condition()
        self._queue: deque[_Queued] = deque()
        self._waiting_spans = 0
        self._deadline: float | None = None
        self._aborted = False
        self._submitted = self._exported = self._exported_bytes = 0
        self._requests = self._retries = 0
        self._queued_spans = self._queued_bytes = 0
        self._dropped = dict.fromkeys(DROPS, 0)
        self._last_error = ""
        self._failing = ""

        self._worker = threading.Thread(target=self._run, name="wirespan-export", daemon=True)
        self._worker.start()

    def submit(self, batch: SpanBatch) -> None:
        """Queue a batch; what does not fit is dropped and counted.

        The batch's arrays belong to the exporter from now on: they must not be written to,
        and should not be views of larger ones, whose memory would stay in use uncounted.
        """
        count = len(batch)
        if count == 0:
            return
        span_bytes = _span_bytes(batch)
        limits = self._limits
        with self._changed:
            self._submitted += count
            if self._deadline is not None:
                self._dropped["closed"] += count
                return
            room = min(
                limits.queue_spans - self._queued_spans,
                (limits.queue_bytes - self._queued_bytes) // span_bytes,
            )
            if room < count:
                self._dropped["queue_full"] += count - max(0, room)
                if room <= 0:
                    return
                batch, count = _slice(batch, 0, room, copy=True), room
            self._queue.append(_Queued(batch, span_bytes, time.monotonic()))
            before = self._waiting_spans
            self._waiting_spans += count
            self._queued_spans += count
            self._queued_bytes += count * span_bytes
            # The worker needs to know of the first span, and of a full request.
            if before == 0 or before < limits.request_spans <= self._waiting_spans:
                self._changed.notify_all()

    def stats(self) -> ExportStats:
        """Take a consistent picture of all counters."""
        with self._changed:
            return ExportStats(
                submitted_spans=self._submitted,
                exported_spans=self._exported,
                exported_bytes=self._exported_bytes,
                requests=self._requests,
                retries=self._retries,
                dropped=dict(self._dropped),
                queued_spans=self._queued_spans,
                queued_bytes=self._queued_bytes,
                last_error=self._last_error,
                failing=self._failing,
            )

    def close(self, timeout: float = 5.0) -> bool:
        """Send what is queued, for at most `timeout` seconds; then drop and count the rest.

        Returns whether the worker has ended. Spans submitted from now on are dropped.
        """
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + timeout
            self._changed.notify_all()
        self._worker.join(timeout)
        if self._worker.is_alive():
            with self._changed:
                self._aborted = True
                self._changed.notify_all()
            self._transport.abort()
            self._worker.join(ABORT_S)
        return not self._worker.is_alive()

    def _run(self) -> None:
        try:
            while taken := self._take():
                for request in self._requests_of(taken):
                    self._deliver(request)
        finally:
            self._transport.close()

    def _take(self) -> list[_Queued]:
        """Wait for a request's worth of spans, or for the first to become old.

        Returns no more than a request's worth, in whole batches as long as they are no larger:
        a part of one costs nearly what a whole one does. Nothing once closed and empty.
        """
        limits = self._limits
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._deadline is not None)
            if self._queue:
                self._changed.wait_for(
                    lambda: (
                        self._waiting_spans >= limits.request_spans or self._deadline is not None
                    ),
                    self._queue[0].since + limits.delay_s - time.monotonic(),
                )
            taken: list[_Queued] = []
            room = limits.request_spans
            while self._queue and room > 0:
                count = len(self._queue[0].batch)
                if taken and count > room and count <= limits.request_spans:
                    break
                item = self._queue.popleft()
                if count > room:
                    rest = _slice(item.batch, room, count)
                    self._queue.appendleft(replace(item, batch=rest))
                    item = replace(item, batch=_slice(item.batch, 0, room))
                    count = room
                taken.append(item)
                room -= count
                self._waiting_spans -= count
            return taken

    def _requests_of(self, taken: list[_Queued]) -> Iterator[_Request]:
        """Encode batches and join them into requests within the limit of bytes."""
        request = _Request([])
        for item in taken:
            for body, spans in self._encode(item):
                if request.spans and request.size + len(body) > self._limits.request_bytes:
                    yield request
                    request = _Request([])
                request.body.append(body)
                request.size += len(body)
                request.spans += spans
                request.queued_bytes += spans * item.span_bytes
        if request.spans:
            yield request

    def _encode(self, item: _Queued) -> Iterator[tuple[bytes, int]]:
        """Encode a batch in as many parts as the limit of bytes takes: (bytes, spans)."""
        limit = self._limits.request_bytes
        pending = [item.batch]
        while pending:
            batch = pending.pop()
            # By what spans needed lately, so that encoding twice is rare.
            rows = max(1, int(0.9 * limit / self._encoded_span_bytes))
            if len(batch) > rows:
                pending.append(_slice(batch, rows, len(batch)))
                batch = _slice(batch, 0, rows)
            count = len(batch)
            if self._aborted:
                self._drop("closed", count, count * item.span_bytes)
                continue
            try:
                body = self._encoder.encode(batch)
            except Exception as error:
                self._drop("encode", count, count * item.span_bytes, f"encode: {error!r}")
                continue
            self._encoded_span_bytes = len(body) / count
            if len(body) > limit and count > 1:
                pending += [_slice(batch, count // 2, count), _slice(batch, 0, count // 2)]
                continue
            yield body, count

    def _deliver(self, request: _Request) -> None:
        """Send a request until it is accepted, refused, or too late."""
        body = self._transport.prepare(b"".join(request.body))
        request.body.clear()
        give_up = time.monotonic() + self._limits.retry_s
        attempt = 0
        while not self._aborted:
            reply = self._attempt(body, attempt)
            attempt += 1
            if reply.verdict is Verdict.ACCEPTED:
                self._failures = 0
                self._settle(request, min(max(0, reply.rejected_spans), request.spans), len(body))
                return
            if reply.verdict is Verdict.REJECTED:
                self._failures = 0
                self._drop("rejected", request.spans, request.queued_bytes)
                return
            too_late = time.monotonic() >= give_up
            if too_late:
                self._drop("failed", request.spans, request.queued_bytes)
            if not self._pause(reply.retry_after_s) and not too_late:
                break
            if too_late:
                return
        self._drop("closed", request.spans, request.queued_bytes)

    def _attempt(self, body: bytes, attempt: int) -> Reply:
        with self._changed:
            self._requests += 1
            self._retries += attempt > 0
            timeouts = [t for t in (self._timeout_s, self._left()) if t is not None]
        try:
            # Not 0, which would mean to some transport that it must not wait at all.
            reply = self._transport.send(body, max(0.01, min(timeouts)) if timeouts else None)
        except Exception as error:
            # Nothing may end this thread: all that follows would be lost.
            reply = Reply(Verdict.RETRY, repr(error))
        if not self._aborted:
            refused = reply.verdict is not Verdict.ACCEPTED
            with self._changed:
                self._last_error = reply.message or self._last_error
                self._failing = (reply.message or reply.verdict.value) if refused else ""
        return reply

    def _left(self) -> float | None:
        """Seconds until `close` ends; None while nobody has called it."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def _pause(self, retry_after_s: float | None) -> bool:
        """Wait before a retry, with back-off or as the receiver asked.

        While closing, back-off starts anew, and False means that there is no time left.
        """
        limits = self._limits
        with self._changed:
            closing = self._deadline is not None
            backoff = min(limits.backoff_max_s, limits.backoff_initial_s * 2.0**self._failures)
            self._failures = min(self._failures + 1, 32)
            delay = max(
                backoff * random.uniform(0.5, 1.0),
                min(retry_after_s or 0.0, MAX_RETRY_AFTER_S),
            )
            end = time.monotonic() + delay
            if not closing:
                self._changed.wait_for(lambda: self._deadline is not None, delay)
                if self._deadline is None:
                    return True
                self._failures = 0
                if not retry_after_s:
                    return True
            # What a receiver asked for holds to the end.
            if self._deadline is not None and end >= self._deadline:
                return False
            self._changed.wait_for(lambda: self._aborted, end - time.monotonic())
            return not self._aborted

    def _settle(self, request: _Request, rejected: int, sent_bytes: int) -> None:
        with self._changed:
            self._queued_spans -= request.spans
            self._queued_bytes -= request.queued_bytes
            self._exported += request.spans - rejected
            self._exported_bytes += sent_bytes
            self._dropped["rejected"] += rejected

    def _drop(self, reason: str, spans: int, queued_bytes: int, error: str = "") -> None:
        with self._changed:
            self._queued_spans -= spans
            self._queued_bytes -= queued_bytes
            self._dropped[reason] += spans
            if error:
                self._last_error = error


def connect(config: ExportConfig) -> Transport:
    """Make the transport that `config` names; it connects with the first request."""
    if config.protocol == "grpc":
        from tracer.export_h2 import H2Transport, reaches

        if reaches(config):
            return H2Transport(config)
        from tracer.export_grpc import GrpcTransport

        return GrpcTransport(config)
    from tracer.export_http import HttpTransport

    return HttpTransport(config)


def _span_bytes(batch: SpanBatch) -> int:
    """How much memory a span of `batch` takes, rounded up."""
    total = sum(array.nbytes for array in _columns(batch))
    total += sum(column.nbytes for column in batch.ints.values())
    total += sum(text.bytes.nbytes + text.length.nbytes for text in batch.texts.values())
    return max(1, -(-total // len(batch)))


def _columns(batch: SpanBatch) -> tuple[NDArray[Any], ...]:
    ids = (batch.trace_id, batch.span_id, batch.parent_span_id)
    return (*ids, batch.start_ns, batch.end_ns, batch.shape)


def _slice(batch: SpanBatch, begin: int, end: int, copy: bool = False) -> SpanBatch:
    """Rows `begin` to `end` of a batch: views, or copies that free the rest of it."""

    def rows(array: NDArray[Scalar]) -> NDArray[Scalar]:
        return array[begin:end].copy() if copy else array[begin:end]

    return SpanBatch(
        rows(batch.trace_id),
        rows(batch.span_id),
        rows(batch.parent_span_id),
        rows(batch.start_ns),
        rows(batch.end_ns),
        rows(batch.shape),
        batch.shapes,
        {name: rows(column) for name, column in batch.ints.items()},
        {name: Text(rows(text.bytes), rows(text.length)) for name, text in batch.texts.items()},
        sampling=batch.sampling
        and Sampling(rows(batch.sampling.threshold), rows(batch.sampling.lot)),
    )
