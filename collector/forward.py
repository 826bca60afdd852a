"""Spans out to the next OTLP receiver: a bounded queue, one worker thread, retries.

`submit` never waits. Every span submitted is sent, queued, or counted as dropped for one of
DROPS. Transports and the configuration of endpoints are those of the tracer's exporter.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from collector.model import Span
from tracer.export import Transport, connect
from tracer.export_config import ExportConfig
from tracer.export_reply import Reply, Verdict

# Why a span was not sent on: name -> one line for people.
DROPS: Mapping[str, str] = {
    "queue_full": "the next receiver was down or slow and the queue full",
    "rejected": "the next receiver refused the span for good",
    "failed": "the next receiver could not be reached for as long as retries last",
    "closed": "the collector ended before the span could be sent",
}

QUEUE_BYTES = 256 << 20
# Full enough that intakes turn requests away; the rest is for spans that are held.
FULL_SHARE = 0.5
# What a span takes beside its bytes.
SPAN_OVERHEAD_BYTES = 1_000
MAX_RETRY_AFTER_S = 60.0
ABORT_S = 2.0


@dataclass(frozen=True, slots=True)
class ForwardStats:
    """Spans since the start: submitted = sent + dropped of all reasons + queued."""

    submitted: int
    sent: int
    dropped: Mapping[str, int]
    queued: int
    requests: int
    retries: int
    last_error: str
    failing: str


class Forwarder:
    """A sink that sends spans to an OTLP receiver.

    Raises UsageError where a TLS file of `config` cannot be used.
    """

    def __init__(
        self,
        config: ExportConfig,
        transport: Transport | None = None,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        self._limits = config.limits
        self._timeout_s = config.timeout_s
        self._transport = transport or connect(config)
        self._queue_bytes = queue_bytes
        # Guards all that follows; notified when the worker has a reason to look.
        self._changed = threading.Condition()
        self._queue: deque[Span] = deque()
        self._queued_bytes = 0
        self._in_flight = 0
        self._deadline: float | None = None
        self._aborted = False
        self._submitted = self._sent = self._requests = self._retries = 0
        self._dropped = dict.fromkeys(DROPS, 0)
        self._last_error = self._failing = ""
        self._worker = threading.Thread(target=self._run, name="wirespan-forward", daemon=True)
        self._worker.start()

    def submit(self, spans: Sequence[Span]) -> None:
        """Queue spans; what does not fit is dropped and counted."""
        with self._changed:
            self._submitted += len(spans)
            if self._deadline is not None:
                self._dropped["closed"] += len(spans)
                return
            for index, span in enumerate(spans):
                if self._queued_bytes >= self._queue_bytes:
                    self._dropped["queue_full"] += len(spans) - index
                    break
                self._queue.append(span)
                self._queued_bytes += len(span.raw) + SPAN_OVERHEAD_BYTES
            self._changed.notify_all()

    def full(self) -> bool:
        """Whether senders should hold their spans back."""
        return self._queued_bytes >= FULL_SHARE * self._queue_bytes

    def stats(self) -> ForwardStats:
        """Take a consistent picture of all counters."""
        with self._changed:
            return ForwardStats(
                self._submitted,
                self._sent,
                dict(self._dropped),
                len(self._queue) + self._in_flight,
                self._requests,
                self._retries,
                self._last_error,
                self._failing,
            )

    def close(self, timeout: float = 5.0) -> bool:
        """Send what is queued for at most `timeout` seconds; drop and count the rest.

        Returns whether the worker has ended.
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
            while spans := self._take():
                self._deliver(spans)
        finally:
            self._transport.close()

    def _take(self) -> list[Span]:
        """Wait for spans, a moment for more; nothing once closed and empty."""
        limits = self._limits
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._deadline is not None)
            self._changed.wait_for(
                lambda: len(self._queue) >= limits.request_spans or self._deadline is not None,
                limits.delay_s,
            )
            taken: list[Span] = []
            size = 0
            while self._queue and len(taken) < limits.request_spans:
                # Resource and scope come once for many spans, but may come anew for each.
                span = self._queue[0]
                size += len(span.raw) + len(span.resource_raw) + len(span.scope_raw) + 32
                if taken and size > limits.request_bytes:
                    break
                taken.append(self._queue.popleft())
                self._queued_bytes -= len(span.raw) + SPAN_OVERHEAD_BYTES
            self._in_flight = len(taken)
            return taken

    def _deliver(self, spans: list[Span]) -> None:
        """Send spans until they are accepted, refused, or too late."""
        body = self._transport.prepare(encode(spans))
        give_up = time.monotonic() + self._limits.retry_s
        attempt = 0
        while not self._aborted:
            reply = self._attempt(body, attempt)
            if reply.verdict is Verdict.ACCEPTED:
                rejected = min(max(0, reply.rejected_spans), len(spans))
                self._settle(len(spans) - rejected, rejected, "rejected")
                return
            if reply.verdict is Verdict.REJECTED:
                self._settle(0, len(spans), "rejected")
                return
            if time.monotonic() >= give_up:
                self._settle(0, len(spans), "failed")
                return
            if not self._pause(attempt, reply.retry_after_s):
                break
            attempt += 1
        self._settle(0, len(spans), "closed")

    def _attempt(self, body: bytes, attempt: int) -> Reply:
        with self._changed:
            self._requests += 1
            self._retries += attempt > 0
            left = None if self._deadline is None else self._deadline - time.monotonic()
        timeouts = [limit for limit in (self._timeout_s, left) if limit is not None]
        try:
            reply = self._transport.send(body, max(0.01, min(timeouts)) if timeouts else None)
        except Exception as error:
            # Nothing may end this thread: all that follows would be lost.
            reply = Reply(Verdict.RETRY, repr(error))
        refused = reply.verdict is not Verdict.ACCEPTED
        with self._changed:
            self._last_error = reply.message or self._last_error
            self._failing = (reply.message or reply.verdict.value) if refused else ""
        return reply

    def _pause(self, attempt: int, retry_after_s: float | None) -> bool:
        """Wait before a retry; False where the end comes before."""
        limits = self._limits
        backoff = min(limits.backoff_max_s, limits.backoff_initial_s * 2.0 ** min(attempt, 32))
        delay = max(
            backoff * random.uniform(0.5, 1.0), min(retry_after_s or 0.0, MAX_RETRY_AFTER_S)
        )
        end = time.monotonic() + delay
        with self._changed:
            self._changed.wait_for(lambda: self._deadline is not None, delay)
            if self._deadline is None:
                return True
            if end >= self._deadline:
                return False
            self._changed.wait_for(lambda: self._aborted, end - time.monotonic())
            return not self._aborted

    def _settle(self, sent: int, dropped: int, reason: str) -> None:
        with self._changed:
            self._in_flight = 0
            self._sent += sent
            self._dropped[reason] += dropped


def encode(spans: Sequence[Span]) -> bytes:
    """Serialize an ExportTraceServiceRequest, spans grouped by resource and scope."""
    resources: dict[bytes, dict[bytes, list[bytes]]] = {}
    for span in spans:
        scopes = resources.setdefault(span.resource.raw, {})
        scopes.setdefault(span.scope_raw, []).append(span.raw)
    parts: list[bytes] = []
    for resource, scopes in resources.items():
        inner = [_field(1, resource)]
        for scope, raws in scopes.items():
            inner.append(_field(2, _field(1, scope) + b"".join([_field(2, r) for r in raws])))
        parts.append(_field(1, b"".join(inner)))
    return b"".join(parts)


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field: https://protobuf.dev/programming-guides/encoding/."""
    size = len(value)
    head = bytearray((number << 3 | 2,))
    while size >= 0x80:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + value
