"""Spans for people and for pipes: one line of text, or one JSON object, per exchange.

Reads batches only, never records, so that text, JSON and OTLP can't drift apart.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from tracer.sampling import trace_state
from tracer.spans import (
    KIND_CLIENT,
    KIND_SERVER,
    STATUS_ERROR,
    STATUS_OK,
    AttributeValue,
    Shape,
    SpanBatch,
    Text,
)

Attributes = dict[str, AttributeValue]

_KINDS = {KIND_SERVER: "SERVER", KIND_CLIENT: "CLIENT"}
_STATUSES = {STATUS_OK: "OK", STATUS_ERROR: "ERROR"}

# Least widths; what is longer moves the rest of its line and cuts nothing.
_SERVICE, _METHOD, _PATH, _OUTCOME, _DURATION = 16, 7, 40, 3, 8
# Characters of a statement shown, and systems whose names are wider than their column.
_STATEMENT = 120
_SYSTEMS = {"postgresql": "pgsql"}

_RED, _YELLOW, _GREEN, _DIM, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[32m", "\x1b[2m", "\x1b[0m"


def json_lines(batch: SpanBatch) -> Iterator[str]:
    """Write each span as a JSON object on a line of its own, without the line's end.

    Ids are in hexadecimal, "" for no parent; times are Unix nanoseconds. "trace_state" is
    there only where sampling gave the span one.
    """
    states = trace_state(batch)
    resources: dict[int, dict[str, Any]] = {}
    for row, shape, attributes in _spans(batch):
        resource = resources.get(id(shape.resource))
        if resource is None:
            resource = resources[id(shape.resource)] = dict(shape.resource.attributes)
        parent = batch.parent_span_id[row].tobytes()
        state = {}
        if states is not None and (length := int(states.length[row])):
            state["trace_state"] = states.bytes[row, :length].tobytes().decode()
        yield json.dumps(
            {
                "trace_id": batch.trace_id[row].tobytes().hex(),
                "span_id": batch.span_id[row].tobytes().hex(),
                "parent_span_id": parent.hex() if any(parent) else "",
                "name": shape.name,
                "kind": _KINDS.get(shape.kind, "INTERNAL"),
                "start_time_unix_nano": int(batch.start_ns[row]),
                "end_time_unix_nano": int(batch.end_ns[row]),
                "status": _STATUSES.get(shape.status, "UNSET"),
                "status_message": shape.status_message,
                "resource": resource,
                "attributes": attributes,
                **state,
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )


def text_lines(batch: SpanBatch, color: bool = False) -> Iterator[str]:
    """Write each span as a line of text, without the line's end.

    Local time of its end, service, side, method, path, status or error, duration, peer. Of a
    gRPC call and of an exchange with a database: system and method or statement in the place
    of method and path.
    color: mark outcomes by terminal colours. Text from the network can't do so: what is
    not printable comes escaped.
    """
    paint: Callable[[str, str], str] = _paint if color else _no_paint
    for row, shape, attributes in _spans(batch):
        start, end = int(batch.start_ns[row]), int(batch.end_ns[row])
        status = _status(shape, attributes)
        fields = (
            paint(_DIM, clock_time(end)),
            _field(shape.resource.attributes, "service.name").ljust(_SERVICE),
            "client" if shape.kind == KIND_CLIENT else "server",
            _method(attributes).ljust(_METHOD),
            _subject(shape, attributes).ljust(_PATH),
            paint(_color(shape, status), _outcome(attributes, status).rjust(_OUTCOME)),
            duration(end - start).rjust(_DURATION),
            _peer(attributes),
        )
        yield " ".join(fields).rstrip()


def clock_time(unix_ns: int) -> str:
    """Write a time of day in the local time zone, to the millisecond: `14:03:59.042`."""
    seconds, rest = divmod(unix_ns, 1_000_000_000)
    try:
        local = time.localtime(seconds)
    except (OverflowError, OSError, ValueError):
        return "--:--:--.---"  # no calendar has that year
    return f"{time.strftime('%H:%M:%S', local)}.{rest // 1_000_000:03}"


def duration(ns: int) -> str:
    """Write a duration with three digits or more: `87µs`, `1.24ms`, `12.3ms`, `2.50s`."""
    # The bounds lie where rounding would give 1000 of the smaller unit.
    if ns < 999_500:
        return f"{ns / 1_000:.0f}µs"
    value, unit = (ns / 1_000_000, "ms") if ns < 999_500_000 else (ns / 1_000_000_000, "s")
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}{unit}"


def printable(text: str) -> str:
    r"""Escape what is not printable, so that a line stays one and a terminal obeys nobody.

    Control characters, but also those that turn the writing direction: `\x1b`, `\u202e`.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else _escape(character) for character in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def _spans(batch: SpanBatch) -> Iterator[tuple[int, Shape, Attributes]]:
    """Put each span's attributes together: row, shape, attributes."""
    for row, number in enumerate(batch.shape.tolist()):
        shape = batch.shapes[number]
        attributes: Attributes = dict(shape.attributes)
        for text in shape.texts:
            value = text_at(batch.texts[text.column], row)
            if value or text.prefix:
                attributes[text.key] = text.prefix + value
        for column in shape.ints:
            amount = int(batch.ints[column.column][row])
            if amount >= 0:
                attributes[column.key] = amount
        yield row, shape, attributes


def text_at(text: Text, row: int) -> str:
    """Read one string of a column."""
    return text.bytes[row, : int(text.length[row])].tobytes().decode("utf-8", "replace")


def _field(attributes: tuple[tuple[str, AttributeValue], ...], key: str) -> str:
    return printable(str(dict(attributes).get(key, "-"))) or "-"


def _method(attributes: Attributes) -> str:
    """Write the HTTP method, or the system where there is none."""
    for key in (
        "http.request.method_original",
        "http.request.method",
        "rpc.system.name",
        "db.system.name",
    ):
        if value := str(attributes.get(key, "")):
            return printable(_SYSTEMS.get(value, value))
    return "-"


def _subject(shape: Shape, attributes: Attributes) -> str:
    """Write what was asked for: a path, a gRPC method, a statement on one line."""
    if "rpc.system.name" in attributes:
        method = attributes.get("rpc.method_original") or attributes.get("rpc.method")
        return printable(str(method or shape.name))
    if "db.system.name" in attributes:
        statement = " ".join(str(attributes.get("db.query.text", "")).split()) or shape.name
        if len(statement) > _STATEMENT:
            statement = statement[: _STATEMENT - 1] + "…"
        return printable(statement)
    return _path(shape, attributes)


def _path(shape: Shape, attributes: Attributes) -> str:
    """Write path and query; for CONNECT, which has neither, where it leads."""
    path = str(attributes.get("url.path", ""))
    if query := attributes.get("url.query"):
        path += f"?{query}"
    full = str(attributes.get("url.full", ""))
    if full and not path:
        _, _, after = full.partition("://")
        slash = after.find("/")
        path = after[slash:] if slash >= 0 else ""
    if not path:
        path = _join(attributes, "server.address", "server.port") or shape.name
    return printable(path)


def _status(shape: Shape, attributes: Attributes) -> str:
    """Return the status code; of a database that answered without an error: OK."""
    for key in (
        "http.response.status_code",
        "rpc.response.status_code",
        "db.response.status_code",
    ):
        if (code := attributes.get(key)) is not None:
            return str(code)
    answered = "wirespan.time_to_first_byte_ns" in attributes
    gap = "gap" in str(attributes.get("wirespan.incomplete", "")).split(",")
    failed = shape.status == STATUS_ERROR
    return "OK" if "db.system.name" in attributes and answered and not gap and not failed else ""


def _outcome(attributes: Attributes, status: str) -> str:
    """Write the status, and what went wrong besides it."""
    error = str(attributes.get("error.type", ""))
    note = error if error != status else ""
    note = note or str(attributes.get("wirespan.incomplete", ""))
    return printable(" ".join(filter(None, (status, note))) or "-")


def _color(shape: Shape, status: str) -> str:
    if shape.status == STATUS_ERROR:
        return _RED
    well = int(status) < 400 if status.isascii() and status.isdigit() else status == "OK"
    return _GREEN if well else _YELLOW


def _peer(attributes: Attributes) -> str:
    """Write the other end of the connection, and the client behind it if there is another."""
    peer = _join(attributes, "network.peer.address", "network.peer.port")
    client = str(attributes.get("client.address", ""))
    if client and client != attributes.get("network.peer.address"):
        peer = f"{client} via {peer}" if peer else client
    return printable(peer or "-")


def _join(attributes: Attributes, address_key: str, port_key: str) -> str:
    address, port = str(attributes.get(address_key, "")), attributes.get(port_key)
    if not address or port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _paint(code: str, text: str) -> str:
    return f"{code}{text}{_PLAIN}"


def _no_paint(code: str, text: str) -> str:
    return text
