"""Spans as lines of text and of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.tracer.http2_wire import Wire
from tests.tracer.records import (
    OFFSET_NS,
    START_NS,
    Processes,
    Routes,
    attributes_of,
    batch_of,
    database_record,
    record,
)
from tracer.flow import End, Family, Method, Protocol, Role
from tracer.flows import Reassembler
from tracer.protocols.mysql import Command
from tracer.render import clock_time, duration, json_lines, printable, text_lines
from tracer.spans import SpanBatch


@pytest.fixture(autouse=True)
def _berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def feed(*rows: Any) -> SpanBatch:
    return Reassembler(Processes(), Routes()).feed(batch_of(*rows), OFFSET_NS)


def line(**values: Any) -> str:
    return next(text_lines(feed(record(**values))))


def test_lines_are_aligned() -> None:
    client = {"role": Role.CLIENT, "remote": "10.0.0.1:8080"}
    batch = feed(
        record(target="/users/12?token=secret", status=200),
        record(target="/a", status=503, method=Method.OPTIONS, comm=b"gunicorn"),
        record(target="/b", end_ns=START_NS + 42_000, **client),
    )
    assert list(text_lines(batch)) == [
        "23:13:25.001 app              server GET     /users/12?token=REDACTED"
        "                 200   1.00ms 127.0.0.1:40000",
        "23:13:25.001 gunicorn         server OPTIONS /a"
        "                                       503   1.00ms 127.0.0.1:40000",
        "23:13:25.000 app              client GET     /b"
        "                                       200     42µs 10.0.0.1:8080",
    ]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"status": 0, "end": End.PEER}, " cancelled "),
        ({"status": 200, "end": End.RESET}, " 200 connection_reset "),
        ({"status": 500}, " 500 "),
        ({"status": 200, "end": End.GAP}, " 200 gap "),
        ({"status": 0}, " - "),
        ({"method": Method.OTHER, "method_text": "PURGE"}, " PURGE "),
        ({"method": Method.CONNECT, "target": "h:443"}, " h:443 "),
        ({"method": Method.CONNECT, "target": "h:443", "role": Role.CLIENT}, " h:443 "),
        ({"method": Method.OPTIONS, "target": "*"}, " * "),
        ({"target": ""}, " 127.0.0.1:8080 "),
        ({"role": Role.CLIENT, "target": "/a?b=1"}, " /a?b=REDACTED "),
        ({"family": Family.INET6, "remote": "[::1]:9"}, " [::1]:9"),
        ({"forwarded_for": "203.0.113.7"}, " 203.0.113.7 via 127.0.0.1:40000"),
        ({"family": Family.UNIX, "role": Role.CLIENT, "unix_path": "/s"}, " /s"),
        ({"family": Family.UNIX}, " -"),
        ({"comm": b""}, " -  "),
    ],
)
def test_lines_show(values: dict[str, Any], shown: str) -> None:
    assert shown in line(**values) + " "


def statement(protocol: Protocol, method: int, **values: Any) -> str:
    """The line of an exchange with a database on a connection seen from its start."""
    (shown,) = text_lines(feed(database_record(protocol, method, **values)))
    return shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ({"query": "SELECT *\n  FROM t WHERE a = 7"}, " mysql   SELECT * FROM t WHERE a = ? "),
        ({"query": "SELECT 1"}, " OK "),
        ({"query": "SELECT x", "code": 1146, "error": "no", "sqlstate": "42S02"}, " 1146 "),
        ({"query": "SELECT 1", "end": End.PEER}, " connection_closed "),
        ({"query": "SELECT 1", "end": End.GAP}, " gap "),
        ({"query": "SELECT 1", "first_byte_ns": 0}, " - "),
        ({"query": "SELECT a FROM `t\x1b[2J`"}, r" FROM `t\x1b[2J`"),
        ({"query": "SELECT a" + ", a" * 120}, " SELECT a" + ", a" * 37 + "… "),
    ],
)
def test_lines_show_statements(values: dict[str, Any], shown: str) -> None:
    assert shown in statement(Protocol.MYSQL, Command.QUERY, **values) + " "


def test_lines_show_which_database_it_is() -> None:
    assert " pgsql   SELECT ? " in statement(Protocol.POSTGRESQL, ord("Q"), query="SELECT 1")
    assert " redis   SET ? ? " in statement(Protocol.REDIS, 0, query="SET", request_messages=2)


@pytest.mark.parametrize(
    ("code", "role", "shown", "colour"),
    [
        ("0", Role.CLIENT, " OK ", "\x1b[32m"),
        ("5", Role.SERVER, " NOT_FOUND ", "\x1b[33m"),
        ("5", Role.CLIENT, " NOT_FOUND ", "\x1b[31m"),
        ("14", Role.SERVER, " UNAVAILABLE ", "\x1b[31m"),
    ],
)
def test_lines_show_calls(code: str, role: Role, shown: str, colour: str) -> None:
    batch = feed(*Wire(role).call(1, trailers=[("grpc-status", code)]))
    (plain,), (painted,) = text_lines(batch), text_lines(batch, color=True)
    assert " grpc    shop.v1.Orders/Place " in plain
    assert shown in plain
    assert colour in painted


@pytest.mark.parametrize("where", ["target", "forwarded_for", "method_text", "comm", "unix_path"])
def test_the_network_cannot_write_to_the_terminal(where: str) -> None:
    evil = "/\x1b[2J\r\n\x00\u202e\u2028x"
    values: dict[str, Any] = {
        where: evil.encode() if where == "comm" else evil,
        "method": Method.OTHER,
    }
    if where == "unix_path":
        values |= {"family": Family.UNIX, "role": Role.CLIENT}
    (shown,) = text_lines(feed(record(**values)))
    assert shown.isprintable()
    # What is no address is not shown as one at all.
    assert (r"\x1b[2J\r\n" in shown) is (where != "forwarded_for")
    assert ("[2J" in shown) is (where != "forwarded_for")


def test_printable_keeps_what_is() -> None:
    assert printable("/café ☕") == "/café ☕"
    assert printable("\x07\u202e\U000e0001") == r"\x07\u202e\U000e0001"


def test_colour_only_if_asked() -> None:
    batch = feed(record(), record(status=404), record(status=500), record(status=0))
    plain = list(text_lines(batch))
    assert not any("\x1b" in one for one in plain)
    coloured = list(text_lines(batch, color=True))
    assert ["\x1b[31m" in one for one in coloured] == [False, False, True, False]
    assert ["\x1b[33m" in one for one in coloured] == [False, True, False, True]
    assert all(one.count("\x1b[0m") == 2 for one in coloured)


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (0, "0µs"), (400, "0µs"), (87_400, "87µs"), (999_499, "999µs"), (999_500, "1.00ms"),
        (1_240_000, "1.24ms"), (12_340_000, "12.3ms"), (123_400_000, "123ms"),
        (999_499_999, "999ms"), (999_500_000, "1.00s"), (61_000_000_000, "61.0s"),
        (3_600_000_000_000, "3600s"),
    ],
)  # fmt: skip
def test_durations(ns: int, shown: str) -> None:
    assert duration(ns) == shown


def test_clock_times() -> None:
    assert clock_time(1_700_000_000_042_999_999) == "23:13:20.042"
    assert clock_time(1_690_000_000_000_000_000) == "06:26:40.000"
    assert len(clock_time((1 << 64) - 1)) == len("23:13:20.042")


def test_json() -> None:
    batch = feed(record(target="/users/12", comm="caf\u00e9".encode()))
    (text,) = json_lines(batch)
    assert "\n" not in text
    assert json.loads(text) == {
        "trace_id": "800d2cb7781e66314c48ee3fb5888d73",
        "span_id": "ca008235a4509043",
        "parent_span_id": "",
        "name": "GET /users/{id}",
        "kind": "SERVER",
        "start_time_unix_nano": OFFSET_NS + START_NS,
        "end_time_unix_nano": OFFSET_NS + START_NS + 1_000_000,
        "status": "UNSET",
        "status_message": "",
        "resource": {"service.name": "caf\u00e9", "process.pid": 77},
        "attributes": attributes_of(batch),
    }


def test_json_of_errors_and_parents() -> None:
    batch = feed(record(role=Role.CLIENT, status=0, end=End.TIMEOUT))
    batch.parent_span_id[:] = np.arange(8)
    span = json.loads(next(json_lines(batch)))
    assert (span["kind"], span["status"]) == ("CLIENT", "ERROR")
    assert span["status_message"] == "connection timed out before the response was complete"
    assert span["parent_span_id"] == "0001020304050607"
    assert span["attributes"]["error.type"] == "timeout"


def test_no_spans_no_lines() -> None:
    assert list(text_lines(feed())) == list(json_lines(feed())) == []
