"""The collector without sockets: requests in, spans out."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.collector import MEANINGS, BusyError, Collector, Settings
from collector.decode import MalformedError
from collector.limits import Limits
from collector.model import Span
from tests.collector.otlp_messages import CLIENT, SERVER, Keep, message, request

SOON = Settings(Limits(hold_s=0.05, parent_wait_s=0.05, max_hold_s=0.1))


def two_tracers(count: int) -> list[bytes]:
    """Requests of two hosts about `count` traces, one exchange from one to the other in each."""
    front, back = [], []
    for n in range(1, count + 1):
        front.append(message(n, n * 10 + 1, 0, SERVER, 0, 100))
        front.append(message(n, n * 10 + 2, n * 10 + 1, CLIENT, 10, 90, "thread"))
        back.append(message(10**6 + n, n * 10 + 3, n * 10 + 2, SERVER, 320, 380, "stream"))
        back.append(message(10**6 + n, n * 10 + 4, n * 10 + 3, CLIENT, 330, 370, "thread"))
    return [request(front[at : at + 3], "one") for at in range(0, len(front), 3)] + [
        request(back[at : at + 5], "two") for at in range(0, len(back), 5)
    ]


def is_right(spans: Sequence[Span], count: int) -> None:
    """Each trace is one chain of four spans, each within its parent."""
    assert len(spans) == 4 * count
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == 4 * count
    for span in spans:
        number = int.from_bytes(span.span_id, "big")
        assert int.from_bytes(span.trace_id, "big") == number // 10
        if number % 10 == 1:
            assert span.parent_span_id == b""
            continue
        above = by_id[span.parent_span_id]
        assert int.from_bytes(above.span_id, "big") == number - 1
        assert above.start_ns <= span.start_ns <= span.end_ns <= above.end_ns


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_two_tracers_in_any_order_and_repeated(seed: int) -> None:
    rng = random.Random(seed)
    requests = two_tracers(20)
    requests += rng.choices(requests, k=8)
    rng.shuffle(requests)
    keep = Keep()
    collector = Collector([keep])
    for body in requests:
        collector.offer(body)
    collector.close()
    is_right(keep.spans, 20)
    counts = collector.counts()
    assert counts["joined"] == 20
    assert counts["spans"] == counts["published"] + counts["duplicate"]
    assert set(counts) == set(MEANINGS)


def test_from_many_threads_while_spans_go_out() -> None:
    keep = Keep()
    collector = Collector([keep])
    requests = two_tracers(500)
    threads = [
        threading.Thread(target=lambda part: [collector.offer(r) for r in part], args=(part,))
        for part in (requests[0::4], requests[1::4], requests[2::4], requests[3::4])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    collector.close()
    is_right(keep.spans, 500)


def test_spans_go_out_by_themselves() -> None:
    arrived = threading.Event()

    class Tell(Keep):
        def submit(self, spans: Sequence[Span]) -> None:  # type: ignore[override]
            super().submit(spans)
            arrived.set()

    tell = Tell()
    collector = Collector([tell], SOON)
    collector.offer(request([message(1, 2)]))
    assert arrived.wait(5)
    collector.close()
    assert len(tell.spans) == 1


def test_a_broken_sink_does_not_keep_spans_from_others() -> None:
    class Broken:
        def submit(self, spans: Sequence[Span]) -> None:
            raise OSError("gone")

    told: list[Exception] = []
    keep = Keep()
    collector = Collector([Broken(), keep], on_failure=told.append)
    collector.offer(request([message(1, 2)]))
    collector.close()
    assert len(keep.spans) == 1
    assert [str(error) for error in told] == ["gone"]
    assert collector.counts()["sink_failed"] == 1


def test_what_cannot_be_taken() -> None:
    collector = Collector([Keep()], Settings(Limits(max_spans=2)))
    with pytest.raises(MalformedError):
        collector.offer(b"\xff")
    with pytest.raises(BusyError):
        collector.offer(request([message(1, n) for n in range(1, 6)]))
    collector.close()
    with pytest.raises(BusyError):
        collector.offer(request([message(1, 2)]))
    assert collector.counts()["refused"] == 2
