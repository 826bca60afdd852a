"""Spans out: nothing vanishes uncounted."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from collector.decode import Decoder
from collector.forward import Forwarder
from tests.collector.otlp_messages import decoded, message
from tracer.export_config import ExportConfig, Limits
from tracer.export_reply import Reply, Verdict

QUICK = ExportConfig(
    "grpc",
    "localhost:1",
    limits=Limits(
        request_spans=10, delay_s=0.01, backoff_initial_s=0.01, backoff_max_s=0.02, retry_s=0.3
    ),
)
OK = Reply(Verdict.ACCEPTED)


@dataclass
class Fake:
    """A transport that answers as told, then accepts."""

    replies: list[Reply] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    gate: threading.Event | None = None

    def prepare(self, body: bytes) -> bytes:
        return body

    def send(self, body: bytes, timeout_s: float | None) -> Reply:
        if self.gate:
            self.gate.wait(5)
        self.sent.append(body)
        return self.replies.pop(0) if self.replies else OK

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass


def balanced(forwarder: Forwarder) -> bool:
    stats = forwarder.stats()
    return stats.submitted == stats.sent + sum(stats.dropped.values()) + stats.queued


def spans(first: int, count: int, host: str = "h1") -> list:  # type: ignore[type-arg]
    return decoded([message(n, n) for n in range(first, first + count)], host)


def test_in_requests_grouped_and_whole() -> None:
    fake = Fake()
    forwarder = Forwarder(QUICK, fake)
    forwarder.submit(
        [s for pair in zip(spans(1, 8), spans(11, 8, "h2"), strict=True) for s in pair]
    )
    assert forwarder.close()
    assert forwarder.stats().sent == 16
    assert balanced(forwarder)
    bodies = [Decoder().decode(body).spans for body in fake.sent]
    assert [len(body) for body in bodies] == [10, 6]
    assert {(s.resource.host, s.trace_id) for body in bodies for s in body} == {
        (s.resource.host, s.trace_id) for s in spans(1, 8) + spans(11, 8, "h2")
    }


def test_retry_partial_success_and_refusal() -> None:
    retry = Reply(Verdict.RETRY, "down")
    fake = Fake([retry, retry, Reply(Verdict.ACCEPTED, "some", 3), Reply(Verdict.REJECTED, "no")])
    forwarder = Forwarder(QUICK, fake)
    forwarder.submit(spans(1, 15))
    assert forwarder.close()
    stats = forwarder.stats()
    assert (stats.sent, stats.dropped["rejected"], stats.retries) == (7, 8, 2)
    assert stats.last_error == "no"
    assert balanced(forwarder)


def test_given_up_in_the_end() -> None:
    fake = Fake([Reply(Verdict.RETRY, "down")] * 1000)
    forwarder = Forwarder(QUICK, fake)
    forwarder.submit(spans(1, 5))
    while not (stats := forwarder.stats()).dropped["failed"]:
        assert stats.queued == 5
    forwarder.submit(spans(11, 5))
    forwarder.close(0.05)
    assert forwarder.stats().dropped == {"queue_full": 0, "rejected": 0, "failed": 5, "closed": 5}
    assert balanced(forwarder)


def test_full_queue() -> None:
    gate = threading.Event()
    forwarder = Forwarder(QUICK, Fake(gate=gate), queue_bytes=20_000)
    assert not forwarder.full()
    forwarder.submit(spans(1, 100))
    assert forwarder.full()
    dropped = forwarder.stats().dropped["queue_full"]
    assert 70 < dropped < 90
    gate.set()
    assert forwarder.close()
    assert forwarder.stats().sent == 100 - dropped
    assert balanced(forwarder)
