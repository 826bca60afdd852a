"""Several collectors that share the work: whoever gets a span, all agree on its trace."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector import peers
from collector.address import Address
from collector.collector import Collector, Settings
from collector.decode import Decoder
from collector.forward import encode
from collector.intake import Intake, IntakeConfig
from collector.limits import Limits
from collector.model import Span
from collector.stub import is_stub, stub
from tests.collector.otlp_messages import (
    CLIENT,
    SERVER,
    Keep,
    decoded,
    ident,
    message,
    trace,
)
from tests.collector.test_collector import is_right, two_tracers
from tests.collector.test_stitch import Line, three_hosts
from tracer.errors import UsageError

HOSTS = 5


def chain(count: int) -> list[list[Span]]:
    """`count` requests through HOSTS hosts, each of which names the trace by itself."""
    by_host = []
    for host in range(HOSTS):
        spans = []
        for n in range(count):
            own = (n * HOSTS + host) * 10
            evidence = "stream" if host else ""
            server = message(own + 1, own + 1, own - 8 if host else 0, SERVER, evidence=evidence)
            client = message(own + 1, own + 2, own + 1, CLIENT, evidence="thread")
            spans += [server, client]
        by_host.append(decoded(spans, f"h{host}"))
    return by_host


class Mesh:
    """Lines that tell each other of their spans, at once and in any order."""

    def __init__(self, size: int, rng: random.Random) -> None:
        self.lines = [Line() for _ in range(size)]
        for line in self.lines:
            line.stitcher._shared = True
        self.rng = rng

    def tell(self, now: float) -> int:
        told = 0
        for line in self.lines:
            stubs = [stub(span) for span in line.stitcher.ties()]
            told += len(stubs)
            for other in self.lines:
                if other is not line:
                    self.rng.shuffle(stubs)
                    other.stitcher.add(stubs, now)
        return told

    def out(self) -> list[Span]:
        return [span for line in self.lines for span in line.out]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 4))
def test_any_span_to_any_collector(seed: int, size: int) -> None:
    """Spans of one host may even be divided, as by a load balancer."""
    rng = random.Random(seed)
    mesh = Mesh(size, rng)
    spans = [span for host in chain(5) for span in host]
    rng.shuffle(spans)
    now = 0.0
    while spans:
        now += rng.random() / 10
        taken, spans = spans[:7], spans[7:]
        rng.choice(mesh.lines).add(taken, now)
        mesh.tell(now)
    for line in mesh.lines:
        line.due(now + 7)
        assert line.is_empty() and not line.stitcher._stubs
        counts = line.stitcher.counts
        assert counts.split == counts.late == counts.duplicate == 0
        assert line.publisher.counts.unresolved == 0
    out = mesh.out()
    assert len(out) == len({span.span_id for span in out}) == 5 * HOSTS * 2
    for span in out:
        number = int.from_bytes(span.span_id, "big") // 10
        assert span.trace_id == trace(number // HOSTS * HOSTS * 10 + 1)
        assert span.parent_span_id or number % HOSTS == 0


def test_only_what_ties_traces_together_is_told() -> None:
    mesh = Mesh(2, random.Random(0))
    spans, _ = three_hosts()
    # Both sides of an exchange within one trace: nobody else needs to know of them.
    inside = decoded([message(1, 50, 10, CLIENT), message(1, 51, 50, evidence="stream")], "a")
    mesh.lines[0].add(spans + inside, 0)
    assert mesh.tell(0) == 4
    assert mesh.tell(0) == 0
    assert mesh.lines[1].stitcher.counts.stubs == 4
    assert mesh.lines[1].due(10) == []


def test_a_stub_says_what_stitching_needs_and_no_more() -> None:
    (span,) = decoded([message(1, 2, 3, SERVER, 5, 6, "stream")], "a")
    made = stub(span)
    (again,) = decoded_again(made)
    for each in (made, again):
        assert is_stub(each) and not is_stub(span)
        assert (each.trace_id, each.span_id, each.parent_span_id) == (trace(1), ident(2), ident(3))
        assert (each.start_ns, each.end_ns, each.kind) == (span.start_ns, span.end_ns, SERVER)
        assert each.resource.host == "a" and each.resource.service == ""
        assert dict(each.attributes) == {"wirespan.link.evidence": "stream"}
    assert len(made.raw) < 120


def decoded_again(span: Span) -> list[Span]:
    return Decoder().decode(encode([span])).spans


@pytest.mark.parametrize("order", ["stub first", "span first", "given out between"])
def test_a_span_that_was_told_of_first(order: str) -> None:
    """Its sender tried another collector first, which took it and died."""
    line = Line()
    (span,) = decoded([message(1, 2)], "a")
    first, then = ([stub(span)], [span]) if order != "span first" else ([span], [stub(span)])
    line.add(first, 0)
    if order == "given out between":
        assert line.due(3) == []
    line.add(then, 4 if order == "given out between" else 0)
    assert [s.span_id for s in line.due(10)] == [ident(2)]
    assert line.stitcher.counts.duplicate == 0
    line.add([span], 11)
    assert line.due(20) == []
    assert line.stitcher.counts.duplicate == 1


def test_told_too_late() -> None:
    """What another collector gave another name is not renamed: counted."""
    line = Line()
    a = decoded([message(1, 10), message(1, 11, 10, CLIENT, evidence="thread")], "a")
    b = decoded([message(2, 20, 11, evidence="stream")], "b")
    line.add(b, 0)
    assert [span.trace_id for span in line.due(7)] == [trace(2)]
    line.add([stub(a[1])], 8)
    line.due(20)
    assert line.stitcher.counts.split == 1
    assert line.is_empty()


def test_over_sockets() -> None:
    """Two tracers, each with a collector of its own; tokens are shown."""
    limits = Settings(Limits(hold_s=1, parent_wait_s=2, max_hold_s=3))
    token = b"s3cret"
    keep = Keep()
    ports = _free(2)
    running = []
    for own, other in (ports, ports[::-1]):
        told = peers.connect([f"http://127.0.0.1:{other}"], [token])
        collector = Collector([keep], limits, peers=tuple(told.values()))
        config = IntakeConfig(grpc=Address("127.0.0.1", own), tokens=(token,))
        running.append((told, collector, Intake(collector, config)))
    try:
        bodies = two_tracers(50)
        fronts = [body for body in bodies if b"one" in body]
        for body in fronts:
            running[0][1].offer(body)
        for body in bodies[len(fronts) :]:
            running[1][1].offer(body)
        end = time.monotonic() + 15
        while len(keep.spans) < 200 and time.monotonic() < end:
            time.sleep(0.05)
        is_right_within(keep.spans, 50)
        for told, collector, _ in running:
            counts = collector.counts()
            assert counts["spans"] == counts["published"] == 100
            assert counts["split"] == counts["unresolved"] == 0
            (stats,) = (sink.stats() for sink in told.values())
            assert stats.sent == stats.submitted > 0
    finally:
        for told, collector, intake in running:
            intake.close()
            collector.close()
            for sink in told.values():
                sink.close(1)


def is_right_within(spans: Sequence[Span], count: int) -> None:
    """As if one collector had got all."""
    is_right(sorted(spans, key=lambda span: span.span_id), count)


def _free(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_a_peer_must_be_a_url() -> None:
    with pytest.raises(UsageError):
        peers.connect(["nowhere"])


def test_an_sdks_span_replaces_no_stub() -> None:
    line = Line(prefer_sdk=True)
    ours = decoded([message(1, 11, 10, CLIENT), message(1, 20, 11, evidence="stream")], "a")
    theirs = decoded([message(1, 21, 11)], "b", scope="sdk")
    line.add([stub(ours[0]), stub(ours[1]), *theirs], 0)
    assert [(s.span_id, s.parent_span_id) for s in line.due(10)] == [(ident(21), ident(11))]
    assert line.publisher.counts.replaced == 0


def test_pairs_are_told_in_whatever_state() -> None:
    """A side that comes when its other side is held already is told, and so is the other."""
    mesh = Mesh(2, random.Random(1))
    spans, _ = three_hosts()
    for earlier, later in pairwise(sorted(spans, key=lambda span: -span.span_id[-1])):
        mesh.lines[0].add([earlier], 0)
        mesh.tell(0)
        mesh.lines[0].add([later], 0)
        mesh.tell(0)
    told = mesh.lines[1].stitcher._held
    assert {ident(11), ident(20), ident(21), ident(30)} <= told.keys()
