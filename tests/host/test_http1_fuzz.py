"""The parsers on bytes nobody should send: they end, refuse by name, stay in bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.host.lib import CLIENT, Outcome, Script, Segment, parsers, types
from tests.host.seeds import connections as seeds

MOST = 4096  # bytes of a case to damage: byte by byte, a long one takes its time
TOKENS = (
    b"\r\n",
    b"\n",
    b"\r\n\r\n",
    b" ",
    b"\0",
    b"\xff",
    b" HTTP/1.1\r\n",
    b"HTTP/1.1 200 \r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"Content-Length: 999999999999999999\r\n",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"fffffffffffffff\r\n",
    b"0\r\n\r\n",
    b"Host: h\r\n",
)

# The first example of a run builds the library: no deadline.
thorough = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


@cache
def connections(protocol: str) -> list[Sequence[Segment]]:
    rows = [segments for _, segments, _ in seeds(protocol)]
    return [row for row in rows if sum(len(segment.data) for segment in row) <= MOST]


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes with some replaced, cut out, repeated or put in."""
    for _ in range(draw(st.integers(0, 4))):
        begin, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        new = draw(
            st.one_of(
                st.just(b""),
                st.sampled_from(TOKENS),
                st.binary(max_size=8),
                st.just(data[begin:end] * 2),
            )
        )
        end = draw(st.sampled_from((begin, min(begin + len(new), len(data)), end)))
        data = data[:begin] + new + data[end:]
    return data


@st.composite
def conversations(draw: st.DrawFn, protocol: str = "http1") -> list[Segment]:
    """Segments of known connections: damaged, dropped, put out of order, unseen in part."""
    rows = list(draw(st.sampled_from(connections(protocol))))
    if draw(st.booleans()):
        rows += draw(st.sampled_from(connections(protocol)))
    rows = [replace(row, data=draw(damaged(row.data))) if row.data else row for row in rows]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(rows)))
        server = draw(st.booleans())
        extra = draw(
            st.sampled_from(
                [
                    Segment(server, unseen=draw(st.integers(1, 9000))),
                    Segment(server, close=True),
                    Segment(server, data=draw(st.binary(max_size=40))),
                ]
            )
        )
        rows[at:at] = [extra]
    if draw(st.booleans()):
        rows = draw(st.permutations(rows))
    return rows


def check(outcome: Outcome, segments: Iterable[Segment]) -> None:
    """Ended by itself: in exchanges that hold together, or in a refusal with a name."""
    assert {outcome.request, outcome.response} <= set(types().outcome.__members__)
    passed = sum(len(row.data) + row.unseen for row in segments)
    records = outcome.records
    # as integers of Python: a sum of them cannot wrap
    exchanges = records[records["kind"] == types().record_kind["EXCHANGE"]]
    content = exchanges["request_body_bytes"].astype(object).sum()
    content += exchanges["response_body_bytes"].astype(object).sum()
    assert content <= passed
    records = records[records["kind"] != types().record_kind["CLOSED"]]
    fields = records["fields"]
    ends = fields["off"].astype(int) + fields["len"]
    room = records["text"].shape[1] if len(records) else 0
    assert (records["text_len"] <= room).all()
    assert (ends <= records["text_len"][:, None]).all()
    assert set(records["end"].tolist()) <= set(types().end)


@thorough
@given(conversations())
def test_damaged_connections_end_in_exchanges_or_a_named_refusal(segments: list[Segment]) -> None:
    outcome = parsers().run(Script.of(segments))
    check(outcome, segments)
    resumed = parsers().run(Script.of(segments), role="SERVER", resync=True)
    check(resumed, segments)


@pytest.mark.parametrize("protocol", ["http2", "mysql", "redis", "postgresql"])
@settings(thorough, max_examples=150)
@given(data=st.data())
def test_other_protocols_end_in_exchanges_or_a_named_refusal(
    protocol: str, data: st.DataObject
) -> None:
    segments = data.draw(conversations(protocol))
    old = data.draw(st.booleans())
    for role in ("CLIENT", "SERVER"):
        outcome = parsers().run(Script.of(segments), role=role, old=old, resync=old)
        check(outcome, segments)


@thorough
@given(conversations(), st.data())
def test_cuts_do_not_change_what_damaged_connections_come_to(
    segments: list[Segment], data: st.DataObject
) -> None:
    script = Script.of(segments)
    whole = parsers().run(script)
    size = len(script.data)
    at = data.draw(st.lists(st.integers(0, size), max_size=30, unique=True))
    cuts = [np.array(sorted(at), np.int64), np.arange(size, dtype=np.int64)]
    window = data.draw(st.integers(1, types().window))
    for pieces in cuts:
        assert parsers().run(script.cut(pieces), window=window).same(whole)


@pytest.mark.parametrize("lines", [b"\r\n", b"\n", b"\r\n" * 2, b"\n\r\n", b"\r\n" * 40])
def test_empty_lines_before_the_first_request_are_passed_over_however_cut(lines: bytes) -> None:
    script = Script.of([Segment(CLIENT, lines + b"GET / HTTP/1.1\r\n\r\n")])
    whole = parsers().run(script)
    assert (whole.request, whole.in_flight) == ("WELL", 1)
    for at in range(len(script.data)):
        assert parsers().run(script.cut(np.array([at], np.int64))).same(whole)
