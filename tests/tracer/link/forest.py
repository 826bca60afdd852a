"""Spans that hang together in known ways, for tests of what finds out how."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer import ids
from tracer.flow import Evidence
from tracer.link.headers import nobody
from tracer.spans import EVIDENCE, Links, Remote, Resource, Shape, SpanBatch, Text, TextColumn

U64 = np.uint64
SHAPE = Shape(Resource(()), "GET", 2, 0, "", (), (), (TextColumn(EVIDENCE, "", EVIDENCE),))
SHAPES = [SHAPE]


@dataclass(frozen=True)
class Row:
    """One side of an exchange; the numbers are the columns of Links."""

    client: bool
    key: int
    number: int  # in ints["number"], to find it again
    exchange: int = 0
    parent: int = 0
    evidence: int = Evidence.THREAD
    start_ns: int = 0
    end_ns: int = 0
    process: int = 7
    content: int = 0
    remote: tuple[bytes, bytes] | None = None
    private: bool = False
    near: int = 0
    sampled: int = 0


def key_words(key: int) -> NDArray[Any]:
    return np.array([key], dtype=U64)


def client_id(key: int) -> bytes:
    return ids.client_span_id(key_words(key)).tobytes()


def server_id(key: int) -> bytes:
    return ids.server_span_id(key_words(key)).tobytes()


def trace_of(key: int) -> bytes:
    return ids.trace_id(key_words(key)).tobytes()


def client(key: int, parent: int = 0, **values: object) -> Row:
    return Row(True, key, **{"number": key, "parent": parent, **values})  # type: ignore[arg-type]


def server(key: int, exchange: int = 0, **values: object) -> Row:
    chosen = {"number": 1_000_000 + key, "exchange": exchange or 50_000 + key, **values}
    return Row(False, key, **chosen)  # type: ignore[arg-type]


def batch(rows: Sequence[Row], shapes: Sequence[Shape] = SHAPES) -> SpanBatch:
    """Make a batch as the reassembler would."""
    count = len(rows)
    key = np.array([row.key for row in rows], dtype=U64)
    is_client = np.array([row.client for row in rows], dtype=np.bool_)
    above = ids.client_span_id(key).view(U64)[:, 0]
    above[[row.private for row in rows]] = 0

    def column(name: str, dtype: type = U64) -> NDArray[Any]:
        return np.array([getattr(row, name) for row in rows], dtype=dtype)

    remote = nobody(count)
    if any(row.remote for row in rows):
        cells = b"".join(b"".join(row.remote) if row.remote else bytes(24) for row in rows)
        words = np.frombuffer(cells, dtype=U64).reshape(count, 3).T.copy()
        remote = Remote(*words, column("sampled"))

    return SpanBatch(
        trace_id=ids.trace_id(key),
        span_id=ids.span_id(key, is_client),
        parent_span_id=np.zeros((count, 8), np.uint8),
        start_ns=column("start_ns"),
        end_ns=column("end_ns"),
        shape=np.zeros(count, np.int32),
        shapes=shapes,
        ints={"number": column("number", np.int64)},
        texts={EVIDENCE: Text(np.zeros((count, 0), np.uint8), np.zeros(count, np.uint16))},
        links=Links(
            client=is_client,
            exchange=np.maximum(column("exchange"), U64(1)),
            parent=np.where(is_client, column("parent"), above),
            evidence=column("evidence", np.uint8),
            start_ns=column("start_ns"),
            end_ns=column("end_ns"),
            process=column("process"),
            content=column("content"),
            near=column("near", np.uint16),
            remote=remote,
        ),
    )


class Out(NamedTuple):
    """A span as it was published."""

    number: int
    trace: bytes
    span: bytes
    parent: bytes
    evidence: str


NO_PARENT = bytes(8)


def published(batches: Iterable[SpanBatch]) -> list[Out]:
    """List the spans of batches."""
    found = []
    for one in batches:
        assert one.links is None
        text = one.texts[EVIDENCE]
        numbers = one.ints.get("number", np.arange(len(one)))
        for row in range(len(one)):
            found.append(
                Out(
                    int(numbers[row]),
                    one.trace_id[row].tobytes(),
                    one.span_id[row].tobytes(),
                    one.parent_span_id[row].tobytes(),
                    text.bytes[row, : text.length[row]].tobytes().decode(),
                )
            )
    return found
