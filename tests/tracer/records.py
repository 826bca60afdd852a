"""Records made by hand, for tests of what reads them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer.flow import Database, Family, Kind, Method, Protocol, Role, Slot
from tracer.spans import Resource, Shape, SpanBatch

TEXT_BYTES = 432

# struct flow_record of ebpf/flow.h; test_flows compares it with the header.
RECORD = np.dtype(
    [
        ("start_ns", "<u8"),
        ("request_end_ns", "<u8"),
        ("first_byte_ns", "<u8"),
        ("end_ns", "<u8"),
        ("conn_id", "<u8"),
        ("request_body_bytes", "<u8"),
        ("response_body_bytes", "<u8"),
        ("task_start_ns", "<u8"),
        ("cgroup_id", "<u8"),
        ("rows_returned", "<u8"),
        ("rows_affected", "<u8"),
        ("parent", "<u8"),
        ("request_seq", "<u4"),
        ("response_seq", "<u4"),
        ("tgid", "<u4"),
        ("request_tid", "<u4"),
        ("response_tid", "<u4"),
        ("netns", "<u4"),
        ("flags", "<u4"),
        ("status", "<u4"),
        ("code", "<u4"),
        ("stream_id", "<u4"),
        ("request_messages", "<u4"),
        ("response_messages", "<u4"),
        ("local_addr", "u1", (16,)),
        ("remote_addr", "u1", (16,)),
        ("comm", "S16"),
        ("family", "<u2"),
        ("local_port", "<u2"),
        ("remote_port", "<u2"),
        ("kind", "u1"),
        ("protocol", "u1"),
        ("role", "u1"),
        ("end", "u1"),
        ("method", "u1"),
        ("version", "u1"),
        ("truncated", "<u2"),
        ("text_len", "<u2"),
        ("calls", "<u4"),
        ("evidence", "u1"),
        ("level", "u1"),
        ("lot", "<u2"),
        ("fields", [("off", "<u2"), ("len", "<u2")], (8,)),
        ("text", "u1", (TEXT_BYTES,)),
    ]
)

START_NS = 5_000_000_000
OFFSET_NS = 1_700_000_000_000_000_000

STRINGS: Mapping[str, int] = {
    "target": Slot.TARGET,
    "host": Slot.HOST,
    "user_agent": Slot.USER_AGENT,
    "traceparent": Slot.TRACEPARENT,
    "forwarded_for": Slot.FORWARDED_FOR,
    "forwarded_proto": Slot.FORWARDED_PROTO,
    "method_text": Slot.METHOD,
    "unix_path": Slot.UNIX_PATH,
    # Of exchanges with databases; the slots' numbers are those from above.
    "query": Database.QUERY,
    "database": Database.DATABASE,
    "error": Database.ERROR,
    "sqlstate": Database.SQLSTATE,
    "server_version": Database.VERSION,
    "statement": Database.STATEMENT,
    "portal": Database.PORTAL,
}


def record(**values: Any) -> NDArray[np.void]:
    """Make one record, shape (1,): a served `GET /` of 127.0.0.1 unless `values` say else.

    Besides the fields of struct flow_record: `target`, `host` and so on (STRINGS) as bytes
    or str; `local`, `remote` as "address:port"; `cut`, the slots that were truncated.
    """
    made = np.zeros(1, dtype=RECORD)
    one = made[0]
    defaults: dict[str, Any] = {
        "kind": Kind.EXCHANGE,
        "protocol": Protocol.HTTP1,
        "role": Role.SERVER,
        "method": Method.GET,
        "version": 11,
        "status": 200,
        "family": Family.INET,
        "start_ns": START_NS,
        "request_end_ns": START_NS + 1_000,
        "first_byte_ns": START_NS + 250_000,
        "end_ns": START_NS + 1_000_000,
        "request_seq": 1,
        "response_seq": 2,
        "tgid": 77,
        "request_tid": 78,
        "task_start_ns": 4_000,
        "comm": b"app",
        "target": "/",
    }
    values = {**defaults, **values}
    if values["family"] != Family.UNIX:
        values.setdefault("local", "127.0.0.1:8080")
        values.setdefault("remote", "127.0.0.1:40000")
    strings = {slot: values.pop(name) for name, slot in STRINGS.items() if name in values}
    for side in ("local", "remote"):
        if side in values:
            address, _, port = values.pop(side).rpartition(":")
            packed = ipaddress.ip_address(address.strip("[]")).packed
            one[f"{side}_addr"][: len(packed)] = np.frombuffer(packed, np.uint8)
            one[f"{side}_port"] = int(port)
    one["truncated"] = sum(1 << slot for slot in values.pop("cut", ()))
    for name, value in values.items():
        one[name] = value
    place(one, {slot: strings[slot] for slot in sorted(strings)})
    return made


def database_record(protocol: Protocol, method: int, **values: Any) -> NDArray[np.void]:
    """Make one record of an exchange with a database at 10.0.0.5:3306, the client's, (1,)."""
    defaults: dict[str, Any] = {
        "role": Role.CLIENT,
        "status": 0,
        "version": 0,
        "target": "",
        "conn_id": 5,
    }
    if values.get("family") != Family.UNIX:
        server = values.get("role") == Role.SERVER
        defaults["local"], defaults["remote"] = (
            ("10.0.0.5:3306", "10.0.0.9:40000") if server else ("10.0.0.9:40000", "10.0.0.5:3306")
        )
    return record(protocol=protocol, method=method, **{**defaults, **values})


def place(one: np.void, strings: Mapping[int, bytes | str]) -> None:
    """Put strings into a record's text, in this order."""
    at = 0
    for slot, value in strings.items():
        raw = value.encode() if isinstance(value, str) else value
        assert at + len(raw) <= TEXT_BYTES, "the kernel would have cut this"
        one["text"][at : at + len(raw)] = np.frombuffer(raw, np.uint8)
        one["fields"][slot] = (at, len(raw))
        at += len(raw)
    one["text_len"] = at


def batch_of(*records: NDArray[np.void]) -> NDArray[np.void]:
    """Join records."""
    return np.concatenate(records) if records else np.zeros(0, dtype=RECORD)


class Processes:
    """Stands in for tracer.process.ProcessTable."""

    def __init__(self) -> None:
        self.execs: list[tuple[int, int, str, str, tuple[str, ...], int]] = []
        self.asked: list[tuple[int, int, str, int]] = []

    def exec(
        self, tgid: int, start_ns: int, comm: str, exe: str, argv: Sequence[str], cgroup_id: int
    ) -> None:
        self.execs.append((tgid, start_ns, comm, exe, tuple(argv), cgroup_id))

    def resource(self, tgid: int, start_ns: int, comm: str, cgroup_id: int) -> Resource:
        self.asked.append((tgid, start_ns, comm, cgroup_id))
        name = f"{comm}{len(self.execs) or ''}"
        return Resource((("service.name", name), ("process.pid", tgid)))


class Routes:
    """Stands in for tracer.routes.RouteTable: numbers are identifiers."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def route(self, path: str) -> str:
        self.asked.append(path)
        return "/".join("{id}" if part.isdigit() else part for part in path.split("/"))


def shapes_of(batch: SpanBatch) -> list[Shape]:
    """Give each row's shape."""
    return [batch.shapes[number] for number in batch.shape.tolist()]


def attributes_of(batch: SpanBatch, row: int = 0) -> dict[str, Any]:
    """Put one span's attributes together, as a renderer would."""
    shape = batch.shapes[int(batch.shape[row])]
    found: dict[str, Any] = dict(shape.attributes)
    for column in shape.ints:
        value = int(batch.ints[column.column][row])
        if value >= 0:
            found[column.key] = value
    for text in shape.texts:
        column_text = batch.texts[text.column]
        raw = column_text.bytes[row, : int(column_text.length[row])].tobytes()
        if raw or text.prefix:
            found[text.key] = text.prefix + raw.decode()
    return found


def names_of(batch: SpanBatch) -> Sequence[str]:
    """Give each span's name."""
    return [shape.name for shape in shapes_of(batch)]
