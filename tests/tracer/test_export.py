"""The exporter's queue, limits and retries, with a scripted transport."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.tracer.exporting import QUICK, balanced, batch, dropped, ids
from tests.tracer.receivers import WAIT_S, numbers
from tracer.export import DROPS, Exporter
from tracer.export_config import ExportConfig, Limits
from tracer.export_reply import Reply, Verdict

OK = Reply(Verdict.ACCEPTED)
BUSY = Reply(Verdict.RETRY, "busy")


class Scripted:
    """A transport that answers from a list, then OK; may be held back."""

    def __init__(self, *replies: Reply | Exception, held: bool = False) -> None:
        self.replies = deque(replies)
        self.sent: list[list[int]] = []
        self.sizes: list[int] = []
        self.timeouts: list[float | None] = []
        self.closed = False
        self.changed = threading.Condition()
        self.gate = threading.Event()
        if not held:
            self.gate.set()

    def prepare(self, body: bytes) -> bytes:
        return body

    def send(self, body: bytes, timeout_s: float | None) -> Reply:
        with self.changed:
            self.sent.append(numbers(body))
            self.sizes.append(len(body))
            self.timeouts.append(timeout_s)
            self.changed.notify_all()
        assert self.gate.wait(WAIT_S)
        reply = self.replies.popleft() if self.replies else OK
        if isinstance(reply, Exception):
            raise reply
        return reply

    def abort(self) -> None:
        self.gate.set()

    def close(self) -> None:
        self.closed = True

    def wait(self, sends: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.sent) >= sends, WAIT_S)


def idle(limits: Limits = QUICK) -> ExportConfig:
    return ExportConfig("http/protobuf", "http://127.0.0.1:1/v1/traces", limits=limits)


def test_what_does_not_fit_is_counted_exactly() -> None:
    transport = Scripted(held=True)
    exporter = Exporter(idle(replace(QUICK, queue_spans=100)), transport=transport)
    exporter.submit(batch(1, 10))
    transport.wait(1)  # under way, and still in the queue's count
    for first in range(11, 211, 40):
        exporter.submit(batch(first, 40))
    stats = exporter.stats()
    assert (stats.submitted_spans, stats.queued_spans) == (210, 100)
    assert dropped(stats) == {"queue_full": 110}
    transport.gate.set()
    assert exporter.close(WAIT_S)
    stats = exporter.stats()
    assert stats.exported_spans == 100
    assert [n for sent in transport.sent for n in sent] == ids(1, 100)
    assert balanced(stats)
    assert transport.closed


def test_the_queue_is_bounded_in_bytes() -> None:
    transport = Scripted(held=True)
    limits = replace(QUICK, queue_bytes=100_000)
    exporter = Exporter(idle(limits), transport=transport)
    for first in range(1, 3001, 100):
        exporter.submit(batch(first, 100, text_bytes=400))
    stats = exporter.stats()
    assert stats.queued_bytes <= 100_000
    assert 200 <= stats.queued_spans <= 250
    transport.gate.set()
    assert exporter.close(WAIT_S)
    stats = exporter.stats()
    assert stats.exported_spans + stats.dropped["queue_full"] == 3000
    assert (stats.queued_spans, stats.queued_bytes) == (0, 0)


def test_a_batch_larger_than_the_queue_is_cut() -> None:
    transport = Scripted()
    exporter = Exporter(idle(replace(QUICK, queue_spans=100)), transport=transport)
    exporter.submit(batch(1, 1000))
    assert exporter.close(WAIT_S)
    assert transport.sent == [ids(1, 100)]
    assert dropped(exporter.stats()) == {"queue_full": 900}


def test_requests_are_cut_by_spans() -> None:
    transport = Scripted()
    exporter = Exporter(idle(replace(QUICK, request_spans=64)), transport=transport)
    exporter.submit(batch(1, 150))
    assert exporter.close(WAIT_S)
    assert [len(sent) for sent in transport.sent] == [64, 64, 22]
    assert [n for sent in transport.sent for n in sent] == ids(1, 150)


def test_requests_are_cut_by_bytes() -> None:
    """Also where spans grow suddenly, and where a single one is too large."""
    transport = Scripted()
    limits = replace(QUICK, request_bytes=20_000)
    exporter = Exporter(idle(limits), transport=transport)
    exporter.submit(batch(1, 3000))
    exporter.submit(batch(3001, 500, text_bytes=3000))
    exporter.submit(batch(3501, 3, text_bytes=30_000))
    assert exporter.close(WAIT_S)
    assert [n for sent in transport.sent for n in sent] == ids(1, 3503)
    assert max(transport.sizes[:-3]) <= 20_000
    assert [len(sent) for sent in transport.sent[-3:]] == [1, 1, 1]
    stats = exporter.stats()
    assert (stats.exported_spans, stats.exported_bytes) == (3503, sum(transport.sizes))
    assert (stats.queued_spans, stats.queued_bytes) == (0, 0)


def test_small_batches_share_a_request() -> None:
    transport = Scripted()
    exporter = Exporter(idle(replace(QUICK, delay_s=60.0, request_spans=10)), transport=transport)
    for number in range(1, 10):
        exporter.submit(batch(number, 1))
    assert transport.sent == []
    exporter.submit(batch(10, 1))
    transport.wait(1)
    assert transport.sent == [ids(1, 10)]
    exporter.submit(batch(11, 1))
    assert exporter.close(WAIT_S), "closing does not wait for the delay"
    assert transport.sent[1:] == [[11]]


def test_the_delay_sends_a_lone_span() -> None:
    transport = Scripted()
    exporter = Exporter(idle(replace(QUICK, delay_s=0.05)), transport=transport)
    exporter.submit(batch(1, 1))
    transport.wait(1)
    assert exporter.close(WAIT_S)


def test_retries_end() -> None:
    transport = Scripted(*[BUSY] * 3)
    exporter = Exporter(idle(replace(QUICK, retry_s=0.0)), transport=transport)
    for number in range(1, 5):
        exporter.submit(batch(number, 1))
        transport.wait(number)
    assert exporter.close(WAIT_S)
    stats = exporter.stats()
    assert (stats.exported_spans, dropped(stats)) == (1, {"failed": 3})
    assert stats.last_error == "busy"


def test_an_error_of_a_transport_does_not_end_the_worker() -> None:
    transport = Scripted(RuntimeError("broken"), RuntimeError("broken"))
    exporter = Exporter(idle(), transport=transport)
    exporter.submit(batch(1, 1))
    transport.wait(3)
    assert exporter.close(WAIT_S)
    stats = exporter.stats()
    assert (stats.exported_spans, stats.retries) == (1, 2)
    assert "broken" in stats.last_error


def test_what_cannot_be_encoded_is_counted() -> None:
    transport = Scripted()
    exporter = Exporter(idle(), transport=transport)
    exporter.submit(replace(batch(1, 7, text_bytes=1), texts={}))
    exporter.submit(batch(8, 1))
    assert exporter.close(WAIT_S)
    stats = exporter.stats()
    assert (stats.exported_spans, dropped(stats)) == (1, {"encode": 7})
    assert stats.last_error.startswith("encode: ")
    assert (stats.queued_spans, stats.queued_bytes) == (0, 0)


def test_back_off_doubles_up_to_a_limit_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    jitter: list[tuple[float, float]] = []
    waits: list[float] = []

    def uniform(low: float, high: float) -> float:
        jitter.append((low, high))
        return 0.75

    monkeypatch.setattr("tracer.export.random.uniform", uniform)
    transport = Scripted(*[BUSY] * 5, Reply(Verdict.RETRY, retry_after_s=100.0), OK, BUSY)
    limits = Limits(delay_s=0.0, backoff_initial_s=8.0, backoff_max_s=64.0)
    exporter = Exporter(idle(limits), transport=transport)
    wait_for = exporter._changed.wait_for

    def skip(predicate: Callable[[], object], timeout: float | None = None) -> object:
        if timeout is None or timeout < 1:
            return wait_for(predicate, timeout)
        waits.append(timeout)
        return False

    monkeypatch.setattr(exporter._changed, "wait_for", skip)
    exporter.submit(batch(1, 1))
    transport.wait(7)
    exporter.submit(batch(2, 1))
    transport.wait(9)
    assert exporter.close(WAIT_S)
    assert jitter == [(0.5, 1.0)] * 7
    assert waits == [6.0, 12.0, 24.0, 48.0, 48.0, 100.0, 6.0], "anew after a success"


def test_a_receiver_that_asks_for_time_gets_it() -> None:
    """The wait it asked for is not cut short, not even by closing."""
    asked = Reply(Verdict.RETRY, "wait", retry_after_s=3600.0)
    transport = Scripted(asked)
    exporter = Exporter(idle(), transport=transport)
    exporter.submit(batch(1, 2))
    transport.wait(1)
    assert exporter.close(5.0), "there is no point in waiting until the timeout"
    assert len(transport.sent) == 1
    assert dropped(exporter.stats()) == {"closed": 2}


def test_close_retries_at_once_but_not_for_ever() -> None:
    transport = Scripted(*[BUSY] * 3)
    limits = Limits(delay_s=0.0, backoff_initial_s=0.05, backoff_max_s=3600.0)
    exporter = Exporter(idle(limits), transport=transport)
    exporter.submit(batch(1, 2))
    transport.wait(2)
    assert exporter.close(WAIT_S)
    assert exporter.stats().exported_spans == 2

    transport = Scripted(*[BUSY] * 10_000)
    exporter = Exporter(idle(limits), transport=transport)
    exporter.submit(batch(1, 2))
    transport.wait(1)
    assert exporter.close(0.3)
    assert dropped(exporter.stats()) == {"closed": 2}


def test_close_flushes_and_drops_what_comes_later() -> None:
    transport = Scripted()
    exporter = Exporter(idle(replace(QUICK, delay_s=60.0)), transport=transport)
    exporter.submit(batch(1, 5))
    assert exporter.close(WAIT_S)
    exporter.submit(batch(6, 5))
    assert exporter.close(WAIT_S), "closing twice does no harm"
    stats = exporter.stats()
    assert transport.sent == [ids(1, 5)]
    assert (stats.exported_spans, dropped(stats)) == (5, {"closed": 5})
    assert balanced(stats)


def test_empty_batches_send_nothing() -> None:
    transport = Scripted()
    exporter = Exporter(idle(), transport=transport)
    exporter.submit(batch(1, 0))
    assert exporter.close(WAIT_S)
    assert transport.sent == []


def test_every_drop_has_a_meaning() -> None:
    transport = Scripted()
    exporter = Exporter(idle(), transport=transport)
    assert exporter.close(WAIT_S)
    assert exporter.stats().dropped.keys() == DROPS.keys()
    assert all(DROPS.values())


def test_submitting_from_several_threads_loses_no_count() -> None:
    transport = Scripted()
    exporter = Exporter(idle(replace(QUICK, queue_spans=500)), transport=transport)

    def submit(first: int) -> None:
        for number in range(100):
            exporter.submit(batch(first + number * 7, 7))

    threads = [threading.Thread(target=submit, args=(n * 1000 + 1,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert exporter.close(WAIT_S)
    stats = exporter.stats()
    assert stats.submitted_spans == 2800
    assert balanced(stats)
    sent = [n for request in transport.sent for n in request]
    assert len(sent) == len(set(sent)) == stats.exported_spans


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_tracer_carries_no_library_that_it_does_not_use(protocol: str) -> None:
    heavy = ["grpc", "google.protobuf", "asyncio", "requests", "numpy.ma", "numpy.random"]
    if protocol == "grpc":
        heavy += ["ssl", "http.client", "email.message", "_hashlib"]
    code = (
        "import sys, tracer.agent; from tracer.export import Exporter;"
        "from tracer.export_config import *;"
        f"e = Exporter(ExportConfig.from_environment({{}}, protocol={protocol!r})); e.close();"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
