"""Clock correction over whole trees, and spans whose bytes say what was changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from collector.model import Span
from collector.publish import Publisher
from collector.stitch import Tree
from tests.collector.otlp_messages import (
    BASE_NS,
    CLIENT,
    INTERNAL,
    SERVER,
    decoded,
    ident,
    message,
    trace,
)
from tests.collector.test_stitch import Line


def chain(skews_ms: list[float], depth: int, cut: int = 0) -> list[Span]:
    """Exchanges nested in each other: host i's clock is ahead by skews_ms[i]."""
    spans: list[Span] = []
    parent = 0
    for level in range(depth):
        host = level % len(skews_ms)
        skew, start, end = skews_ms[host], level * 10, 1000 - level * 10
        server, client = 100 + level, 200 + level
        evidence = "stream" if parent else ""
        made = [
            message(level + 1, server, parent, SERVER, start + skew, end + skew, evidence),
            message(level + 1, client, server, CLIENT, start + 5 + skew, end - 5 + skew),
        ]
        made[0].events.add(time_unix_nano=made[0].start_time_unix_nano + 7)
        spans += decoded(made, f"host{host}")
        parent = client
    return spans


@settings(max_examples=100)
@given(st.lists(st.floats(-5000, 5000), min_size=1, max_size=4), st.integers(1, 8), st.randoms())
def test_children_lie_within_their_parents(skews: list[float], depth: int, rng: object) -> None:
    line = Line()
    line.add(chain([0.0, *skews], depth), 0)
    line.due(10)
    by_id = {span.span_id: span for span in line.out}
    assert len(line.out) == 2 * depth
    for span in line.out:
        above = by_id.get(span.parent_span_id)
        if above is None:
            assert span.span_id == ident(100)
            assert span.start_ns == BASE_NS  # the root's clock is the one that counts
            continue
        assert span.start_ns >= above.start_ns
        assert span.end_ns <= above.end_ns
        raw = SpanMessage.FromString(span.raw)
        assert (raw.start_time_unix_nano, raw.end_time_unix_nano) == (span.start_ns, span.end_ns)
        assert (raw.trace_id, raw.parent_span_id) == (span.trace_id, span.parent_span_id)
        for event in raw.events:
            assert event.time_unix_nano == span.start_ns + 7


def test_the_shift_is_told_and_sums_up() -> None:
    line = Line()
    line.add(chain([0, 300], 2), 0)
    line.due(10)
    shifted = [s for s in line.out if "wirespan.clock.skew_ns" in s.attributes]
    assert {s.resource.host for s in shifted} == {"host1"}
    assert all(s.attributes["wirespan.clock.skew_ns"] == 300_000_000 for s in shifted)
    raw = SpanMessage.FromString(shifted[0].raw)
    assert "wirespan.clock.skew_ns" in {item.key for item in raw.attributes}


def test_late_parts_are_moved_by_the_same_shift() -> None:
    line = Line()
    line.add(chain([0, 300], 2), 0)
    line.due(10)
    line.add(decoded([message(9, 77, 201, INTERNAL, 320, 330)], "host1"), 11)
    line.due(20)
    assert line.out[-1].start_ns == BASE_NS + 20_000_000


def test_a_server_that_outlasts_its_client_is_believed() -> None:
    line = Line()
    for number in range(1, 41):
        ids = number * 10
        line.add(decoded([message(number, ids, 0, CLIENT, 0, 10)], "a"), 0)
        line.add(decoded([message(number, ids + 1, ids, SERVER, 1, 9)], "b"), 0)
    line.add(decoded([message(99, 990, 0, CLIENT, 0, 10)], "a"), 0)
    line.add(decoded([message(99, 991, 990, SERVER, 8, 14)], "b"), 0)
    line.due(10)
    (late,) = (s for s in line.out if s.span_id == ident(991))
    assert late.end_ns == BASE_NS + 14_000_000


def test_unchanged_spans_keep_their_bytes() -> None:
    spans = decoded([message(1, 1), message(1, 2, 1, CLIENT)])
    line = Line()
    line.add(spans, 0)
    assert {id(s) for s in line.due(3)} == {id(s) for s in spans}


@pytest.mark.parametrize("twice", [False, True])
def test_the_trace_id_in_the_bytes_is_the_one_that_counts(twice: bool) -> None:
    """Also where the field comes again, with the same or another value: the last one counts."""
    made = message(2, 20, 11, evidence="stream")
    made.trace_state, made.flags = "ot=rv:80000000000001;th:8", 0x301
    raw = made.SerializeToString()
    if twice:
        raw += b"\x0a\x10" + trace(2)
    held = replace(decoded([made], "b")[0], raw=raw)
    client = decoded([message(1, 11, 0, CLIENT)], "b")
    (_, out) = Publisher().publish(Tree(trace(1), {ident(11): client[0], ident(20): held}, {}))
    assert out.trace_id == trace(1)
    assert SpanMessage.FromString(out.raw).trace_id == trace(1)
    sent = SpanMessage.FromString(out.raw)
    assert sent.attributes == made.attributes
    assert (sent.trace_state, sent.flags) == (made.trace_state, made.flags)
