"""The collector: requests in, stitched and corrected spans out to sinks.

It has no sockets: intakes call `offer`, or a tracer in the same process does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol, runtime_checkable

from collector.decode import Decoded, Decoder, MalformedError
from collector.limits import Limits
from collector.model import Sink, Span
from collector.publish import Publisher
from collector.stitch import Stitcher, Tree
from collector.stub import stub

# How often the hold is looked through: less than anybody notices on top of its time.
TICK_S = 0.1
# How many spans go out at a time, or one tree.
PART_SPANS = 1_000
# What a sender is asked to wait before it tries again.
RETRY_S = 1.0

# Every counter of `Collector.counts`: name -> one line for people.
MEANINGS: Mapping[str, str] = {
    "requests": "requests taken",
    "malformed": "requests that were not OTLP, refused whole",
    "refused": "requests turned away because a sink was full or too many were under way; "
    "their senders were asked to try again",
    "spans": "spans taken",
    "stubs": "what other collectors told of their spans",
    "rejected": "spans without valid ids or times, or too large: refused, their senders told",
    "duplicate": "spans that had come before: dropped",
    "joined": "trace ids found to be part of another trace",
    "late": "spans that came when their trace had been given out: they took its id",
    "split": "links between traces that had been given out under different ids",
    "evicted": "spans given out early, the hold being full or the run over: perhaps unlinked",
    "renamed": "spans given the trace id of their root",
    "unresolved": "server spans whose client's span never came: now roots",
    "replaced": "spans left out for an SDK's own span of the same exchange",
    "shifted": "spans whose times were corrected by the offset of their host's clock",
    "published": "spans given to the sinks",
    "sink_failed": "spans that a sink failed to take: a defect of this program",
    "held": "spans held now",
}


class BusyError(Exception):
    """The request cannot be taken now; after `retry_s` it may."""

    def __init__(self, message: str, retry_s: float = RETRY_S) -> None:
        super().__init__(message)
        self.retry_s = retry_s


@runtime_checkable
class Bounded(Protocol):
    """A sink that can say beforehand that it will not take more."""

    def full(self) -> bool:
        """Whether senders should hold their spans back."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the collector treats spans. prefer: "both", or "sdk" to leave out what SDKs repeat."""

    limits: Limits = field(default_factory=Limits)
    prefer: str = "both"


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a request: spans taken, spans refused for good and why."""

    spans: int
    rejected: int = 0
    reason: str = ""


class Collector:
    """Takes requests from any thread; gives spans to sinks from one of its own.

    peers: sinks for stubs, if other collectors share the work (collector.stub).
    clock: seconds, monotonic. on_failure: told when a sink raised.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        settings: Settings | None = None,
        *,
        peers: Sequence[Sink] = (),
        clock: Callable[[], float] = time.monotonic,
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        settings = settings or Settings()
        self._sinks = tuple(sinks)
        self._peers = tuple(peers)
        self._bounded = tuple(sink for sink in sinks if isinstance(sink, Bounded))
        self._max_spans = settings.limits.max_spans
        self._clock = clock
        self._on_failure = on_failure
        self._publisher = Publisher(settings.prefer == "sdk")
        self._stitcher = Stitcher(settings.limits, self._publisher.awaits_parent, bool(peers))
        # Guards stitcher, publisher and counters; never held while sinks work or a request is
        # decoded, for the intake's loop counts with it.
        self._lock = threading.Lock()
        self._decoding = threading.Lock()
        # Sinks are called by one thread at a time, in the order in which spans were given out.
        self._publishing = threading.Lock()
        self._decoder = Decoder()
        self._requests = self._malformed = self._refused = self._rejected = 0
        self._published = self._sink_failed = 0
        self._stop = threading.Event()
        self._closed = False
        self._worker = threading.Thread(target=self._run, name="wirespan-stitch", daemon=True)
        self._worker.start()

    def offer(self, request: bytes, json: bool = False) -> Taken:
        """Take a serialized ExportTraceServiceRequest, in protobuf or JSON.

        Raises MalformedError where it is none, and BusyError where it should come again.
        """
        self.check_room()
        decode = self._decoder.decode_json if json else self._decoder.decode
        try:
            with self._decoding:
                decoded = decode(request)
        except MalformedError:
            with self._lock:
                self._malformed += 1
            raise
        with self._lock:
            return self._take(decoded)

    def take(self, spans: Sequence[Span]) -> Taken:
        """Take spans that are decoded; raises BusyError."""
        self.check_room()
        with self._lock:
            return self._take(Decoded(list(spans)))

    def check_room(self) -> None:
        """Raise BusyError where nothing can be taken now: worth asking before reading on."""
        if self._closed:
            self.count_refused()
            raise BusyError("the collector is stopping")
        if any(sink.full() for sink in self._bounded):
            self.count_refused()
            raise BusyError("the next backend or the store is behind")

    def count_refused(self) -> None:
        """Count a request that was turned away and may come again."""
        with self._lock:
            self._refused += 1

    def _take(self, decoded: Decoded) -> Taken:
        spans = decoded.spans
        if self._closed or self._stitcher.held_spans + len(spans) > 2 * self._max_spans:
            # The hold gives out what is too much at its next tick; until then, wait.
            self._refused += 1
            raise BusyError("the hold is full")
        self._requests += 1
        self._rejected += decoded.rejected
        self._stitcher.add(spans, self._clock())
        return Taken(len(spans), decoded.rejected, decoded.reason)

    def counts(self) -> dict[str, int]:
        """Numbers since the start, by the names of MEANINGS."""
        with self._lock:
            return {
                "requests": self._requests,
                "malformed": self._malformed,
                "refused": self._refused,
                "rejected": self._rejected,
                **asdict(self._stitcher.counts),
                **asdict(self._publisher.counts),
                "published": self._published,
                "sink_failed": self._sink_failed,
                "held": self._stitcher.held_spans,
            }

    def clock_offsets(self) -> dict[tuple[str, str], int]:
        """Pairs of hosts whose clocks differ: by how many ns the second is ahead."""
        with self._lock:
            return self._publisher.clocks.offsets()

    def flush(self) -> None:
        """Give out all that is held, now."""
        with self._publishing:
            self._tell_peers()
            with self._lock:
                trees = self._stitcher.flush()
            self._give_out(trees)

    def close(self) -> None:
        """Take no more, give out all that is held, end. The sinks remain the caller's."""
        with self._lock:
            self._closed = True
        self._stop.set()
        self._worker.join()
        self.flush()

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            with self._publishing:
                self._tell_peers()
                with self._lock:
                    trees = self._stitcher.due(self._clock())
                self._give_out(trees)

    def _tell_peers(self) -> None:
        if not self._peers:
            return
        with self._lock:
            ties = self._stitcher.ties()
        if ties:
            stubs = [stub(span) for span in ties]
            for peer in self._peers:
                peer.submit(stubs)

    def _give_out(self, trees: Sequence[Tree]) -> None:
        """Publish in parts, so that intakes get their turn in between."""
        for part in _parts(trees):
            with self._lock:
                spans = self._publish(part)
            self._submit(spans)

    def _publish(self, trees: Sequence[Tree]) -> list[Span]:
        return [span for tree in trees for span in self._publisher.publish(tree)]

    def _submit(self, spans: list[Span]) -> None:
        if not spans:
            return
        for sink in self._sinks:
            try:
                sink.submit(spans)
            except Exception as error:
                # One sink's defect must not keep spans from the others.
                with self._lock:
                    self._sink_failed += len(spans)
                self._on_failure(error)
        with self._lock:
            self._published += len(spans)


def _parts(trees: Sequence[Tree]) -> Iterator[list[Tree]]:
    """Divide trees into runs of about PART_SPANS spans."""
    part: list[Tree] = []
    spans = 0
    for tree in trees:
        part.append(tree)
        spans += len(tree.spans)
        if spans >= PART_SPANS:
            yield part
            part, spans = [], 0
    if part:
        yield part
