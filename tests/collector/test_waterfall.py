"""Waterfalls of odd trees in narrow terminals."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from collector.commands import add_commands
from collector.waterfall import columns, cut, listing, tree, walk, waterfall
from tracer.errors import UsageError


def span(span_id: str, parent: str = "", start: int = 0, duration: int = 1_000, **tags: Any) -> Any:
    references = [{"refType": "CHILD_OF", "traceID": "t", "spanID": parent}] if parent else []
    return {
        "traceID": "t", "spanID": span_id, "operationName": f"op {span_id}",
        "references": references, "startTime": 10**15 + start, "duration": duration,
        "tags": [{"key": key, "type": "", "value": value} for key, value in tags.items()],
        "logs": [], "processID": "p1", "warnings": None,
    }  # fmt: skip


def trace(*spans: Any, service: str = "web") -> Any:
    processes = {"p1": {"serviceName": service, "tags": []}}
    return {"traceID": "t", "spans": list(spans), "processes": processes, "warnings": None}


def shape(found: Any) -> list[tuple[int, str]]:
    return [(depth, node.span_id) for depth, node, _ in walk(tree(found))]


def test_order_is_by_start_below_each_parent() -> None:
    made = trace(span("c", "a", 30), span("b", "a", 10), span("d", "b", 40), span("a"))
    assert shape(made) == [(0, "a"), (1, "b"), (2, "d"), (1, "c")]


def test_rings_and_strangers_are_shown_once() -> None:
    ring = trace(
        span("a", "b"), span("b", "c", 1), span("c", "a", 2), span("e", "e"), span("x", "?")
    )
    assert sorted(name for _, name in shape(ring)) == ["a", "b", "c", "e", "x"]
    assert len(list(waterfall(ring, 80))) == 6


def test_a_chain_of_thousands() -> None:
    chain = trace(*(span(f"s{n}", f"s{n - 1}" if n else "", n) for n in range(3_000)))
    lines = list(waterfall(chain, 100))
    assert len(lines) == 3_001 and max(map(columns, lines)) <= 100


def test_an_empty_trace() -> None:
    assert list(waterfall(trace(), 80)) == []


@pytest.mark.parametrize("width", [1, 60, 80, 133, 1_000])
def test_lines_keep_to_the_width(width: int) -> None:
    made = trace(
        span("a", duration=10**7), span("b", "a", 5_000, 10, error=True),
        span("c", "b", 10**7, 10**9), service="名前" * 40,
    )  # fmt: skip
    lines = list(waterfall(made, width))[1:]
    assert max(map(columns, lines)) <= max(60, min(width, 200))


def test_bars_lie_where_the_spans_do() -> None:
    made = trace(span("a", duration=1_000), span("b", "a", 500, 500))
    whole, half = (line.split("ms " if "ms " in line else "µs ")[1] for line in
                   list(waterfall(made, 110))[1:])  # fmt: skip
    room = len(whole)
    assert whole == "█" * room and half.lstrip() == "█" * (room // 2)
    assert abs(len(half) - len(half.lstrip()) - room / 2) <= 1


def test_terminals_obey_nobody() -> None:
    made = trace(span("a"), service="x\x1b[2J\u202ey\n")
    for lines in (waterfall(made, 120), waterfall(made, 120, color=False)):
        text = "".join(lines)
        assert "\x1b" not in text and "\u202e" not in text and "\\x1b[2J" in text


def test_colour_where_it_is_wanted() -> None:
    made = trace(span("a"), span("b", "a", error=True))
    assert "\x1b[31m" in "".join(waterfall(made, 80, color=True))
    assert "\x1b" not in "".join(waterfall(made, 80))


def test_the_list_has_a_line_a_trace() -> None:
    each = {
        "traceID": "ab", "start_ns": 10**18, "duration_ns": 1_500_000, "service": "web",
        "name": "n" * 200, "spans": 3, "errors": 0, "services": 2,
    }  # fmt: skip
    lines = list(listing([each, each], 110))
    assert len(lines) == 3 and max(map(len, lines)) <= 110 and lines[1].endswith("…")


def test_cutting() -> None:
    assert cut("abc", 3) == "abc" and cut("abcd", 3) == "ab…" and columns(cut("名名名", 4)) == 3


def parsed(*words: str) -> Any:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(required=True))
    found = parser.parse_args(words)
    return found.make(found)


def test_the_command_line() -> None:
    found = parsed("traces", "service=web status>=500", "op=GET /users/{id}", "--limit", "3")
    assert found.words == ("service=web", "status>=500", "op=GET /users/{id}") and found.limit == 3
    assert parsed("explain", "AB", "--query-address", "[::1]:1").address == "[::1]:1"
    for bad in (("trace", "xyz"), ("trace", "1" * 33), ("traces", "--limit", "0"),
                ("traces", "--query-address", "here")):  # fmt: skip
        with pytest.raises(UsageError):
            parsed(*bad)
