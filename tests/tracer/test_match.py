"""Filters of `wirespan tail`: every operator on constants, numbers and texts of spans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer import match
from tracer.errors import UsageError
from tracer.spans import (
    KIND_CLIENT,
    KIND_SERVER,
    IntColumn,
    Resource,
    Shape,
    SpanBatch,
    Text,
    TextColumn,
)

WEB = Resource((("service.name", "web"), ("process.pid", 17)))
API = Resource((("service.name", "api"), ("process.pid", 18)))
STATUS, PATH, AGENT = "http.response.status_code", "url.path", "user_agent.original"
SIZE = "http.response.body.size"

SERVER = Shape(
    WEB, "GET /users/{id}", KIND_SERVER, 0, "",
    (("http.request.method", "GET"), ("client.address", "10.0.0.1"), ("ok", True)),
    (IntColumn(STATUS, STATUS), IntColumn(SIZE, SIZE)),
    (TextColumn(PATH, "", PATH), TextColumn(AGENT, "", AGENT)),
)  # fmt: skip
CLIENT = Shape(
    API, "POST", KIND_CLIENT, 2, "",
    (("http.request.method", "POST"), ("server.address", "web.local"), (STATUS, 503)),
    (),
    (TextColumn("url.full", "http://web.local", PATH),),
)  # fmt: skip


def texts(values: list[str]) -> Text:
    """A column as decoders make it: rubbish beyond each row's end."""
    raw = [value.encode() for value in values]
    width = max(map(len, raw)) + 3
    data = np.full((len(raw), width), ord("x"), dtype=np.uint8)
    for row, value in enumerate(raw):
        data[row, : len(value)] = np.frombuffer(value, dtype=np.uint8)
    return Text(data, np.array([len(value) for value in raw], dtype=np.uint16))


def batch() -> SpanBatch:
    """Row 0: web, 200, 5 ms. Row 1: web, no status, 50 ms. Row 2: the client, 503, 500 ms."""
    start = np.full(3, 10**18, dtype=np.uint64)
    return SpanBatch(
        trace_id=np.zeros((3, 16), np.uint8),
        span_id=np.arange(24, dtype=np.uint8).reshape(3, 8),
        parent_span_id=np.zeros((3, 8), np.uint8),
        start_ns=start,
        end_ns=start + np.array([5_000_000, 50_000_000, 500_000_000], dtype=np.uint64),
        shape=np.array([0, 0, 1], dtype=np.int32),
        shapes=[SERVER, CLIENT],
        ints={
            STATUS: np.array([200, -1, 7], dtype=np.int64),
            SIZE: np.array([9, -1, 7], dtype=np.int64),
        },
        texts={
            PATH: texts(["/users/1", "/api/ü", "/api/v1?q=1"]),
            AGENT: texts(["curl/8", "", ""]),
        },
    )


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        ("", [0, 1, 2]),
        ("service=web", [0, 1]),
        ("service!=web", [2]),
        ("service~e", [0, 1]),
        ("service.name~p", [2]),
        ("pid=18", [2]),
        ("pid<18", [0, 1]),
        ("process.pid>=17", [0, 1, 2]),
        ("pid~8", [2]),
        ("kind=server", [0, 1]),
        ("kind=CLIENT", [2]),
        ("kind!=client", [0, 1]),
        ("method=GET", [0, 1]),
        ("method!~GE", [2]),
        ("name='GET /users/{id}'", [0, 1]),
        ("name~users", [0, 1]),
        ("peer=10.0.0.1", [0, 1]),
        ("peer~web", [2]),
        ("status=200", [0]),
        ("status==200", [0]),
        ("status!=200", [1, 2]),
        ("status>=500", [2]),
        ("status<500", [0]),
        ("status~20", [0]),
        ("status!~20", [1, 2]),
        (f"{SIZE}=large", []),
        (f"{SIZE}!=large", [0, 1, 2]),
        ("path=/users/1", [0]),
        ("path=/users", []),
        ("path!=/users/1", [1, 2]),
        ("path~/api", [1, 2]),
        ("path!~/api", [0]),
        ("path~ü", [1]),
        ("path~x", []),
        ("path~/api/v1", [2]),
        ("url.full=http://web.local/api/v1?q=1", [2]),
        ("url.full!~http", [0, 1]),
        ("path>5", []),
        ("user_agent.original~curl", [0]),
        ("user_agent.original!=curl/8", [1, 2]),
        ("nothing=1", []),
        ("nothing!=1", [0, 1, 2]),
        ("nothing!~1", [0, 1, 2]),
        ("ok=true", [0, 1]),
        ("duration>49ms", [1, 2]),
        ("duration<=5000us", [0]),
        ("duration=0.5s", [2]),
        ("duration!=500000000ns", [0, 1]),
        ("service=web status=200 path~users duration<1s", [0]),
        ("service=web status>=500", []),
    ],
)
def test_rows_for_which_every_term_holds(wanted: str, rows: list[int]) -> None:
    found = match.parse(wanted)
    assert found.rows(batch()).tolist() == rows
    assert found.rows(batch()).tolist() == rows  # another list of shapes, equal ones


def test_shapes_may_grow_and_begin_anew() -> None:
    found = match.parse("service=api")
    first = batch()
    shapes = list(first.shapes)
    grown = match.take(first, np.array([0, 2]))
    assert found.rows(first).tolist() == [2]
    shapes.reverse()
    turned = SpanBatch(
        grown.trace_id, grown.span_id, grown.parent_span_id, grown.start_ns, grown.end_ns,
        grown.shape, shapes, grown.ints, grown.texts,
    )  # fmt: skip
    assert found.rows(turned).tolist() == [0]


def test_take_copies_all_columns_of_the_rows() -> None:
    whole = batch()
    part = match.take(whole, np.array([0, 2]))
    assert len(part) == 2
    assert part.span_id.tolist() == [whole.span_id[0].tolist(), whole.span_id[2].tolist()]
    assert part.shapes is whole.shapes
    assert part.ints[STATUS].tolist() == [200, 7]
    assert part.texts[PATH].length.tolist() == [8, 11]
    assert match.take(whole, np.arange(3)) is whole


@pytest.mark.parametrize(
    "wanted",
    [
        "=5",
        "a b=1",
        "status==",
        "path=",
        "status",
        "status>x",
        "duration>5",
        "duration~5ms",
        "kind=x",
        "a='",
    ],
)
def test_what_is_no_filter_says_so(wanted: str) -> None:
    with pytest.raises(UsageError, match=r"^filter: "):
        match.parse(wanted)


@given(st.text(max_size=40))
def test_any_text_is_a_filter_or_a_usage_error(text: str) -> None:
    try:
        found = match.parse(text)
    except UsageError:
        return
    assert set(found.rows(batch()).tolist()) <= {0, 1, 2}


@given(
    st.sampled_from(["service", "pid", "status", "path", "name", "kind", "ok", "x", "peer"]),
    st.sampled_from(match.OPERATORS),
    st.sampled_from(["web", "500", "1.5", "server", "/api", "true", "-1"]),
)
def test_an_operator_and_its_negation_part_the_spans(key: str, op: str, value: str) -> None:
    try:
        one = match.parse(f"{key}{op}{value}")
        other = match.parse(f"{key}!{op}{value}") if op in "=~" else None
    except UsageError:
        return
    rows = one.rows(batch()).tolist()
    if other:
        assert sorted(rows + other.rows(batch()).tolist()) == [0, 1, 2]
