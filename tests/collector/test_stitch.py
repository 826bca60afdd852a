"""Trees out of spans, in whatever order, however often they come."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from collector.limits import Limits
from collector.model import Span
from collector.publish import Publisher
from collector.stitch import Stitcher
from tests.collector.otlp_messages import (
    CLIENT,
    INTERNAL,
    SERVER,
    decoded,
    ident,
    message,
    trace,
)

LIMITS = Limits(hold_s=2, parent_wait_s=6, max_hold_s=10)


class Line:
    """Stitcher and publisher, with a clock of our own."""

    def __init__(self, limits: Limits = LIMITS, prefer_sdk: bool = False) -> None:
        self.publisher = Publisher(prefer_sdk)
        self.stitcher = Stitcher(limits, self.publisher.awaits_parent)
        self.out: list[Span] = []

    def add(self, spans: list[Span], now: float) -> None:
        self.due(now)
        self.stitcher.add(spans, now)

    def due(self, now: float) -> list[Span]:
        new = [s for tree in self.stitcher.due(now) for s in self.publisher.publish(tree)]
        self.out += new
        return new

    def edges(self) -> set[tuple[bytes, bytes, bytes]]:
        return {(s.trace_id, s.span_id, s.parent_span_id) for s in self.out}

    def is_empty(self) -> bool:
        s = self.stitcher
        tables = (s._groups, s._alias, s._held, s._waiting)
        return s.held_spans == s.held_bytes == 0 and not any(tables)


def three_hosts() -> tuple[list[Span], set[tuple[bytes, bytes, bytes]]]:
    """A request through three hosts, each of which named the trace by itself."""
    a = decoded([message(1, 10), message(1, 11, 10, CLIENT, evidence="thread")], "a")
    b = decoded([message(2, 20, 11, evidence="stream"),
                 message(2, 21, 20, CLIENT, evidence="thread")], "b")  # fmt: skip
    c = decoded([message(3, 30, 21, evidence="stream"), message(3, 31, 30, INTERNAL)], "c")
    want = {(10, 0), (11, 10), (20, 11), (21, 20), (30, 21), (31, 30)}
    return a + b + c, {(trace(1), ident(s), ident(p) if p else b"") for s, p in want}


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.integers(0, 6))
def test_any_order_with_duplicates_is_one_tree(seed: int, repeats: int) -> None:
    spans, want = three_hosts()
    rng = random.Random(seed)
    spans += [rng.choice(spans) for _ in range(repeats)]
    rng.shuffle(spans)
    line = Line()
    for index, span in enumerate(spans):
        line.add([span], index * 0.1)
    assert line.due(5.0) or line.due(20.0)
    line.due(30.0)
    assert line.edges() == want
    assert len(line.out) == 6
    assert line.stitcher.counts.duplicate == repeats
    assert line.is_empty()


def test_late_child_and_late_parent_take_the_published_id() -> None:
    spans, want = three_hosts()
    by_id = {int.from_bytes(s.span_id, "big"): s for s in spans}
    line = Line()
    line.add([by_id[n] for n in (10, 11)], 0)
    line.due(3)
    line.add([by_id[n] for n in (30, 31)], 4)  # waits for its computed parent, 21
    assert not line.due(8)
    line.add([by_id[n] for n in (20, 21)], 8)
    line.due(30)
    assert line.edges() == want
    assert line.stitcher.counts.late == 2  # 20 and 21; 30 and 31 came first and waited
    assert line.stitcher.counts.split == 0


def test_unresolved_computed_parent_is_removed_and_late_client_adopts() -> None:
    line = Line()
    line.add(decoded([message(2, 20, 11, evidence="stream")]), 0)
    assert not line.due(5.9)
    (root,) = line.due(6.1)
    assert root.parent_span_id == b""
    assert root.attributes["wirespan.link.unresolved"] == ident(11).hex()
    assert "wirespan.link.evidence" not in root.attributes
    line.add(decoded([message(1, 11, 0, CLIENT)]), 7)
    line.due(10)
    assert line.out[1].trace_id == trace(2)
    assert line.publisher.counts.unresolved == 1


def test_parents_that_an_sdk_names_stay() -> None:
    line = Line()
    line.add(decoded([message(2, 20, 11)], scope="io.opentelemetry.flask"), 0)
    line.add(decoded([message(3, 30, 12, evidence="traceparent")]), 0)
    assert {s.parent_span_id for s in line.due(2.1)} == {ident(11), ident(12)}


def test_split_is_counted_and_nothing_rewritten() -> None:
    line = Line()
    line.add(decoded([message(1, 10)]), 0)
    line.add(decoded([message(2, 20, 15, CLIENT)]), 0)
    line.due(3)
    line.add(decoded([message(1, 15, 10)]), 4)
    line.due(7)
    assert line.stitcher.counts.split == 1
    assert [s.trace_id for s in line.out] == [trace(1), trace(2), trace(1)]


def test_duplicates_of_published_spans_are_dropped_and_then_forgotten() -> None:
    line = Line()
    again = decoded([message(1, 10)])
    line.add(again, 0)
    line.due(3)
    line.add(again, 50)
    line.due(53)
    assert len(line.out) == 1
    line.due(130)
    line.due(200)
    line.add(again, 201)
    line.due(210)
    assert len(line.out) == 2


def test_a_full_hold_gives_out_the_oldest() -> None:
    line = Line(Limits(max_spans=10))
    for number in range(1, 31):
        line.add(decoded([message(number, number)]), number / 100)
    line.due(0.31)
    assert line.stitcher.held_spans == 10
    assert line.stitcher.counts.evicted == len(line.out) == 20
    assert line.out[0].span_id == ident(1)


def test_busy_trace_is_given_out_after_the_longest_hold() -> None:
    line = Line()
    for number in range(1, 101):
        line.add(decoded([message(1, number)]), number / 10)
    assert not line.out
    line.add(decoded([message(1, 200)]), 10.2)
    assert len(line.out) == 100


def test_prefer_sdk_drops_what_the_sdk_repeats() -> None:
    def spans() -> list[Span]:
        sdk = decoded(
            [
                message(1, 1, 0, INTERNAL),
                message(1, 2, 1, CLIENT),
                message(1, 5, 2, SERVER),
                message(1, 6, 5, INTERNAL),
            ],
            scope="sdk",
        )
        own = decoded([message(1, 3, 2, CLIENT, evidence="traceparent"),
                       message(1, 4, 3, SERVER, evidence="stream"),
                       message(1, 7, 4, CLIENT, evidence="thread")])  # fmt: skip
        return sdk + own

    both, one = Line(), Line(prefer_sdk=True)
    for line in (both, one):
        line.add(spans(), 0)
        line.due(3)
    assert len(both.out) == 7
    want = {(1, 0), (2, 1), (5, 2), (6, 5), (7, 5)}
    assert one.edges() == {(trace(1), ident(s), ident(p) if p else b"") for s, p in want}
    assert one.publisher.counts.replaced == 2
    one.add(decoded([message(1, 8, 4, CLIENT, evidence="thread")]), 4)
    one.due(7)
    assert one.out[-1].parent_span_id == ident(5)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(0, 8),
       st.sampled_from((CLIENT, SERVER)), st.sampled_from(("", "stream")),
       st.sampled_from(("a", "b", ""))), max_size=40),
       st.booleans())  # fmt: skip
def test_hostile_links_lose_nothing(
    made: list[tuple[int, int, int, int, str, str]], prefer_sdk: bool
) -> None:
    """Rings, spans that are their own parents, ids under many traces: each is given out once."""
    line = Line(Limits(hold_s=0.5, parent_wait_s=1, max_hold_s=2), prefer_sdk)
    for number, (trace_id, span_id, parent, kind, evidence, host) in enumerate(made):
        line.add(decoded([message(trace_id, span_id, parent, kind, 0, 10, evidence)], host),
                 number * 0.2)  # fmt: skip
    line.due(1000)
    counts = line.stitcher.counts
    assert len(line.out) + line.publisher.counts.replaced + counts.duplicate == len(made)
    assert line.is_empty()
    # A span id that came under several trace ids may be known as only one of them.
    traces: dict[int, set[int]] = {}
    for trace_id, span_id, *_ in made:
        traces.setdefault(span_id, set()).add(trace_id)
    unique = {ident(span_id) for span_id, ids in traces.items() if len(ids) == 1}
    given_out = [(s.trace_id, s.span_id) for s in line.out if s.span_id in unique]
    assert len(set(given_out)) == len(given_out)
