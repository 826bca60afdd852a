"""A sink that keeps spans on this machine: columns -> OTLP -> the collector's store.

One thread of its own makes spans of batches; the store's writes them. Both need the
interpreter as much as making spans does, so this one waits while that lags, and what comes
meanwhile fills a queue, which is bounded: a flood costs stored spans, never traced ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from collector.decode import Decoder
from collector.embedded import Embedded
from collector.store import Limits
from tracer.installed import version
from tracer.match import take
from tracer.otlp import Encoder
from tracer.queues import BoundedQueue
from tracer.sinks import batch_bytes
from tracer.spans import SpanBatch
from tracer.store_options import StoreOptions

QUEUE_BYTES = 32 << 20
# Spans that wait in the store's own queue are objects, five times as large as here.
STORE_QUEUE_BYTES = 4 << 20
# Spans between two looks at whether to wait: some 5 ms of work.
CHUNK = 256
ROOM, PAUSE_S = 0.5, 0.005


class StoreSink:
    """`start`, then `submit` from the worker, then `close`.

    busy: whether making spans lags.
    message: is told, once per episode, what goes wrong with the store.
    """

    def __init__(
        self,
        options: StoreOptions,
        busy: Callable[[], bool],
        message: Callable[[str], None],
        max_bytes: int = QUEUE_BYTES,
    ) -> None:
        self.directory = options.directory
        limits = Limits(options.max_bytes, float(options.max_age_s), STORE_QUEUE_BYTES)
        self._embedded = Embedded(options.directory, limits, options.query_address, message)
        self._busy = busy
        self._message = message
        self._queue: BoundedQueue[SpanBatch] = BoundedQueue(max_bytes)
        self._encoder, self._decoder = Encoder(version()), Decoder()
        self._thread = threading.Thread(target=self._run, name="store-feed", daemon=True)
        self._give_up_at = float("inf")
        self._queue_full = self._failed = self._unwritten = 0

    @property
    def address(self) -> str:
        """Where the query API answers, HOST:PORT; "" where it doesn't."""
        return self._embedded.address

    def start(self) -> None:
        """Open the store and the API; raises WirespanError, then nothing is left open."""
        self._embedded.start()
        self._thread.start()

    def submit(self, batch: SpanBatch) -> None:
        """Queue `batch`, or count its spans as lost."""
        if not self._queue.put(batch, batch_bytes(batch)):
            self._queue_full += len(batch)

    def close(self, timeout_s: float) -> None:
        """Store what is queued, as far as time allows, and close the files; may be called again."""
        if not self._thread.is_alive() and self._queue.closed:
            return
        self._give_up_at = time.monotonic() + timeout_s / 2
        self._queue.close()
        self._thread.join(timeout_s)
        self._embedded.close(timeout_s / 2)

    def losses(self) -> dict[str, int]:
        """Count what was lost; keys of tracer.losses.USER."""
        losses = dict(self._embedded.losses())
        losses["store_queue_full"] += self._queue_full
        losses["store_failed"] += self._failed
        losses["store_unwritten"] = self._unwritten
        return losses

    def counts(self) -> Mapping[str, int]:
        """Count what was stored since the start, and what is there."""
        return self._embedded.counts()

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            for start in range(0, len(batch), CHUNK):
                part = take(batch, np.arange(start, min(start + CHUNK, len(batch))))
                self._wait_for_room()
                if time.monotonic() > self._give_up_at:
                    self._unwritten += len(part)
                else:
                    self._store(part)

    def _wait_for_room(self) -> None:
        """Leave the interpreter to who makes spans, and the store time to write."""
        while time.monotonic() <= self._give_up_at and (
            self._busy() or self._embedded.store.queue_fill() > ROOM
        ):
            time.sleep(PAUSE_S)

    def _store(self, part: SpanBatch) -> None:
        try:
            decoded = self._decoder.decode(self._encoder.encode(part))
        except Exception as error:  # one bad batch must not end all storing
            if not self._failed:
                self._message(f"spans could not be stored: {type(error).__name__}: {error}")
            self._failed += len(part)
            return
        self._failed += decoded.rejected
        self._embedded.submit(decoded.spans)
