"""HTTP/2 records made by hand: header blocks as an encoder makes them."""

from __future__ import annotations

from typing import Any

import numpy as np
from hpack import Encoder
from numpy.typing import NDArray

from tests.tracer.records import (
    TEXT_BYTES,
    Processes,
    Routes,
    attributes_of,
    batch_of,
    place,
    record,
    shapes_of,
)
from tracer.flow import Block, End, Family, Flag, Kind, Protocol, Role
from tracer.flows import Reassembler
from tracer.protocols.base import OPT_IN, Settings
from tracer.protocols.http2 import Http2
from tracer.spans import SpanBatch

Rows = list[NDArray[np.void]]
Pairs = list[tuple[str, str]]

GET: Pairs = [
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "shop.example:8080"),
    (":path", "/users/12?limit=5"),
    ("user-agent", "curl/8.5"),
]
CALL: Pairs = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/shop.v1.Orders/Place"),
    (":authority", "shop.example:50051"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]
OK: Pairs = [(":status", "200"), ("content-type", "application/grpc")]
DONE: Pairs = [("grpc-status", "0")]


class Wire:
    """A connection as one side's kernel would tell of it."""

    def __init__(self, role: Role = Role.SERVER, conn_id: int = 7, **values: Any) -> None:
        self.request, self.response = Encoder(), Encoder()
        client = role == Role.CLIENT
        self.values = {
            "protocol": Protocol.HTTP2, "role": role, "conn_id": conn_id, "version": 20,
            "method": 0, "status": 0, "target": b"",
        } | values  # fmt: skip
        if self.values.get("family") != Family.UNIX:
            self.values["local"] = "10.0.0.9:51000" if client else "10.0.0.1:50051"
            self.values["remote"] = "10.0.0.1:50051" if client else "10.0.0.9:51000"

    def block(self, stream: int, raw: bytes, flags: int = 0, step: int = TEXT_BYTES) -> Rows:
        """Give the records of one block, in parts of `step` bytes."""
        parts = [raw[at : at + step] for at in range(0, len(raw), step)] or [b""]
        rows = []
        for number, part in enumerate(parts):
            more = Flag.MORE if number < len(parts) - 1 else 0
            bits = flags if not number else flags & ~Flag.BROKEN
            one = record(**self.values | {"kind": Kind.BLOCK, "stream_id": stream,
                                          "flags": bits | more})  # fmt: skip
            place(one[0], {Block.BLOCK: part})
            rows.append(one)
        return rows

    def ask(self, stream: int, headers: Pairs, flags: int = 0, step: int = TEXT_BYTES) -> Rows:
        return self.block(stream, self.request.encode(headers), flags, step)

    def answer(self, stream: int, headers: Pairs, flags: int = 0, step: int = TEXT_BYTES) -> Rows:
        raw = self.response.encode(headers)
        return self.block(stream, raw, flags | Flag.RESPONSE, step)

    def over(self, stream: int, **values: Any) -> Rows:
        values = {"end": End.RESPONSE, "stream_id": stream} | values
        return [record(**self.values | values)]

    def closed(self) -> Rows:
        return [record(**self.values | {"kind": Kind.CLOSED})]

    def call(self, stream: int, headers: Pairs = CALL, trailers: Pairs = DONE) -> Rows:
        return [
            *self.ask(stream, headers), *self.answer(stream, OK),
            *self.answer(stream, trailers, Flag.END_STREAM),
            *self.over(stream, request_messages=1, response_messages=1),
        ]  # fmt: skip


def tracer(opt_in: frozenset[str] = OPT_IN, **settings: Any) -> Reassembler:
    chosen = Settings(opt_in=opt_in, **settings)
    return Reassembler(Processes(), Routes(), chosen, {Protocol.HTTP2: Http2})


def feed(rows: Rows) -> SpanBatch:
    return tracer().feed(batch_of(*rows), 0)


def one(rows: Rows) -> tuple[dict[str, Any], Any]:
    batch = feed(rows)
    assert len(batch) == 1
    return attributes_of(batch), shapes_of(batch)[0]
