"""The HTTP/1 parser on bytes nobody should send: it ends, refuses by name, stays in bounds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.host.case import corpus
from tests.host.lib import CLIENT, ROOT, Outcome, Script, Segment, parsers, types

MOST = 4096  # bytes of a case to damage: byte by byte, a long one takes its time
REFUSALS = {"OTHER", "TUNNEL", "INVALID", "GAP", "ORPHAN"}
CARRY = 24  # H1_CARRY: most bytes that may be left undecided
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
def connections() -> list[tuple[Segment, ...]]:
    cases = [case.segments for case in corpus("http1")]
    return [rows for rows in cases if sum(len(row.data) for row in rows) <= MOST]


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
def conversations(draw: st.DrawFn) -> list[Segment]:
    """Segments of known connections: damaged, dropped, put out of order, unseen in part."""
    rows = list(draw(st.sampled_from(connections())))
    if draw(st.booleans()):
        rows += draw(st.sampled_from(connections()))
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
    assert {outcome.request, outcome.response} <= REFUSALS | {"WELL"}
    passed = sum(len(row.data) + row.unseen for row in segments)
    longest = max((len(row.data) for row in segments), default=0)
    assert outcome.steps <= 16 * longest + 64
    records = outcome.records
    # as integers of Python: a sum of them cannot wrap
    content = records["request_body_bytes"].astype(object).sum()
    content += records["response_body_bytes"].astype(object).sum()
    assert content <= passed
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


@pytest.mark.parametrize("flag", ["", "RESPONSE"], ids=["request", "response"])
def test_a_step_in_any_state_on_any_byte_is_one_of_its_results(flag: str) -> None:
    names = types()
    results, states = set(names.step), set(names.state)
    flags = names.enum("h1_flag", "H1_")
    endings = (b"", b"\n", b"\r\n\r\n", b" / HTTP/1.1\r\nHost: h\r\n\r\n")
    begin = np.zeros(1, names.stream)
    begin["flags"] = flags[flag] if flag else 0
    begin["next"] = names.state["NAME"]
    begin["limit"] = 192  # what the parser sets for a request-target
    for state, value in product(names.state, range(256)):
        begin["state"] = state
        byte = bytes([value])
        inputs = [byte + ending for ending in endings]
        inputs += [b"5" + byte, b"\r" + byte, byte * names.window]
        for data in inputs:
            stream, record = begin.copy(), np.zeros(1, names.record)
            result, pos = parsers().step(stream, record, data)
            what = (state.name, data)
            assert result in results, what
            assert 0 <= pos <= len(data), what
            assert int(stream["state"][0]) in states, what
            assert int(record["text_len"][0]) <= record["text"].shape[1], what
            if result == names.step["MORE"]:
                assert len(data) - pos <= CARRY, what


def test_a_step_on_nothing_asks_for_more_or_refuses() -> None:
    """Content is skipped by number: a step there, or in a stream that is lost, is refused."""
    names = types()
    skipped = {"SYNC", "BODY", "BODY_EOF", "CHUNK", "CHUNK_EXT"}
    for state in names.state:
        stream, record = np.zeros(1, names.stream), np.zeros(1, names.record)
        stream["state"] = state
        result, pos = parsers().step(stream, record, b"")
        expected = "INVALID" if state.name in skipped else "MORE"
        assert (names.step(result).name, pos) == (expected, 0), state.name


@pytest.mark.slow
def test_libfuzzer_finds_nothing_in_a_short_pass() -> None:
    """Ten seconds of what `make fuzz` does longer, with the sanitizers on."""
    run = subprocess.run(
        [str(ROOT / "scripts" / "fuzz.sh"), "http1"],
        env={**os.environ, "FUZZ_SECONDS": "10"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert run.returncode == 0, run.stderr
    assert "Done" in run.stdout
