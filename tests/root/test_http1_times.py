"""Times of spans against the clock of the client itself."""

from __future__ import annotations

import itertools
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.root.harness import CLIENT, SERVER, Span, Spans, Watch, unique
from tests.root.nginx import Nginx
from tests.root.wire import Wire, get_head, head

MICROSECOND, MILLISECOND = 1_000, 1_000_000


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_REALTIME)


def by_number(spans: Spans, kind: str) -> list[Span]:
    """Spans of paths PREFIX/N in the order of N."""
    return sorted(spans.of(kind), key=lambda span: int(span.path.rsplit("/", 1)[1]))


def assert_close(errors: Sequence[int], what: str, low: int = 0) -> None:
    """Errors in ns: none below `low`, the median within 0.1 ms, the 99th percentile in 1 ms."""
    median = statistics.median(errors)
    p99 = sorted(errors)[len(errors) * 99 // 100]
    told = f"{what}: median {median / 1000:.1f} us, p99 {p99 / 1000:.1f} us, least {min(errors)} ns"
    assert min(errors) >= low, told
    assert median <= 100 * MICROSECOND and p99 <= MILLISECOND, told


# The wall clock is slewed while monotonic time, which spans are measured in, is not stepped.
CLOCKS_APART = -20 * MICROSECOND


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    nginx = Nginx(tmp_path / "nginx")
    yield nginx
    nginx.stop()


def test_start_and_end_against_the_clients_clock(watch: Watch, nginx: Nginx) -> None:
    path, count = unique(), 2000
    before, after = [], []
    with socket.create_connection(("127.0.0.1", nginx.port), timeout=15) as client:
        for n in range(count):
            request = get_head(f"{path}/{n}")
            before.append(now())
            client.sendall(request)
            client.recv(4096)
            after.append(now())
    spans = watch.under(path, 2 * count)
    clients, servers = by_number(spans, CLIENT), by_number(spans, SERVER)
    assert len(clients) == len(servers) == count
    starts = [span.start - t for span, t in zip(clients, before, strict=True)]
    ends = [t - span.end for span, t in zip(clients, after, strict=True)]
    assert_close(starts, "client start", CLOCKS_APART)
    assert_close(ends, "client end", CLOCKS_APART)
    inside = zip(clients, servers, strict=True)
    for client_span, server_span in inside:
        assert client_span.start <= server_span.start, "received before it was sent"
        assert client_span.start + client_span.first_byte >= server_span.start
        # A send is over when its call returns, which may be after the peer has read it.
        assert server_span.end <= client_span.end + 20 * MILLISECOND
    late = [s.end - c.end for c, s in zip(clients, servers, strict=True)]
    assert statistics.median(late) <= 20 * MICROSECOND, "an answer is sent before it is received"


def pause() -> int:
    """Let 20 ms go by between two moments that a test measures; returns the time after."""
    time.sleep(0.02)
    return now()


def test_first_byte_and_last_byte_of_both_messages(watch: Watch) -> None:
    """A request and a response in three pieces each: which piece each time belongs to."""
    path, count = unique(), 10
    marks: list[dict[str, int]] = []
    with Wire() as wire:
        for n in range(count):
            request = get_head(f"{path}/{n}", "Content-Length: 6", method="POST")
            start = now()
            wire.request(request[:1])
            pause()
            wire.request(request[1:] + b"abc")
            pause()
            wire.request(b"def")
            answer = head("HTTP/1.1 200 OK", "Content-Length: 6")
            first = pause()
            wire.response(answer[:1])
            pause()
            wire.response(answer[1:] + b"abc")
            last = pause()
            wire.response(b"def")
            marks.append({"start": start, "first": first, "last": last, "end": now()})
    spans = watch.under(path, 2 * count)
    for kind in (CLIENT, SERVER):
        of_kind = by_number(spans, kind)
        assert len(of_kind) == count
        pairs = list(zip(of_kind, marks, strict=True))
        assert_near([s.start - m["start"] for s, m in pairs], f"{kind} start")
        firsts = [s.start + s.first_byte - m["first"] for s, m in pairs]
        assert_near(firsts, f"{kind} first byte of the response")
        assert_near([s.end - m["last"] for s, m in pairs], f"{kind} end")


def assert_near(errors: Sequence[int], what: str) -> None:
    """A few moments, each measured just before it was made to happen."""
    told = f"{what}: {[round(error / 1000) for error in errors]} us"
    assert min(errors) >= CLOCKS_APART, told
    assert statistics.median(errors) <= 200 * MICROSECOND, told
    assert max(errors) <= 15 * MILLISECOND, told


def test_pipelined_times_do_not_cross(watch: Watch) -> None:
    path, count = unique(), 10
    with Wire() as wire:
        wire.request(b"".join(get_head(f"{path}/{n}") for n in range(count)))
        for _ in range(count):
            wire.response(head("HTTP/1.1 204 No Content"))
            pause()
    spans = watch.under(path, 2 * count)
    for kind in (CLIENT, SERVER):
        of_kind = by_number(spans, kind)
        starts = [span.start for span in of_kind]
        assert max(starts) - min(starts) < 20 * MICROSECOND, "they came by one call"
        gaps = [b.end - a.end for a, b in itertools.pairwise(of_kind)]
        assert all(gap >= 20 * MILLISECOND + CLOCKS_APART for gap in gaps), gaps


def test_spans_are_printed_as_exchanges_end(watch: Watch) -> None:
    """The output is not held back until a buffer is full."""
    path = unique()
    waits = []
    with Wire() as wire:
        for n in range(20):
            wire.request(get_head(f"{path}/{n}"))
            wire.response(head("HTTP/1.1 204 No Content"))
            start = time.monotonic()
            watch.tracer.process.wait_for(
                lambda n=n: len(watch.now(f"{path}/{n}")) == 2, "both spans", 5.0
            )
            waits.append(time.monotonic() - start)
    assert statistics.median(waits) < 1.0, waits
