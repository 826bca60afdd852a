"""What a file of the store holds: tables, and blocks of spans packed together.

Ids, times, names and services are columns, which searches read. All else of a span is in
the bytes it came in, packed with those of its neighbours and compressed as a block: a
sixth of what DuckDB makes of the same bytes row by row, and nothing of a span is lost.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from collector.model import Span

VERSION = 1

# Spans and bytes of a block at most: what one look at one span has to decompress.
BLOCK_SPANS = 1024
BLOCK_BYTES = 1 << 20

TABLES = """
CREATE TABLE {0}.about (version INTEGER);
CREATE TABLE {0}.spans (
    trace_hi UBIGINT, trace_lo UBIGINT, span_id UBIGINT, parent_id UBIGINT,
    start_ns UBIGINT, end_ns UBIGINT, kind UTINYINT, status UTINYINT,
    service VARCHAR, name VARCHAR,
    resource INTEGER, scope INTEGER, block INTEGER, place INTEGER
);
CREATE TABLE {0}.blocks (id INTEGER, packed BLOB);
CREATE TABLE {0}.resources (id INTEGER, raw BLOB);
CREATE TABLE {0}.scopes (id INTEGER, raw BLOB);
"""

Columns = dict[str, NDArray[np.generic]]


def pack(raws: Sequence[bytes]) -> bytes:
    """Pack and compress byte strings, for `unpack`."""
    count = len(raws)
    lengths = struct.pack(f"<{count + 1}I", count, *map(len, raws))
    return zlib.compress(lengths + b"".join(raws), 1)


def unpack(packed: bytes) -> list[bytes]:
    """Return what was packed; raises ValueError where these bytes are no block."""
    try:
        data = zlib.decompress(packed)
        (count,) = struct.unpack_from("<I", data)
        lengths = struct.unpack_from(f"<{count}I", data, 4)
    except (zlib.error, struct.error) as error:
        raise ValueError(f"not a block of spans: {error}") from None
    at = 4 * (count + 1)
    if at + sum(lengths) != len(data):
        raise ValueError("not a block of spans: its lengths are wrong")
    found = []
    for length in lengths:
        found.append(data[at : at + length])
        at += length
    return found


def columns(
    spans: Sequence[Span], resources: Sequence[int], scopes: Sequence[int], block: int
) -> Columns:
    """Lay spans out as the columns of table `spans`, (n,) each."""
    count = len(spans)
    traces = np.frombuffer(b"".join(span.trace_id for span in spans), ">u8").astype(np.uint64)
    parents = b"".join(span.parent_span_id or bytes(8) for span in spans)
    return {
        "trace_hi": traces[0::2].copy(),
        "trace_lo": traces[1::2].copy(),
        "span_id": _ids(b"".join(span.span_id for span in spans)),
        "parent_id": _ids(parents),
        "start_ns": np.fromiter((span.start_ns for span in spans), np.uint64, count),
        "end_ns": np.fromiter((span.end_ns for span in spans), np.uint64, count),
        "kind": np.fromiter((span.kind & 0xFF for span in spans), np.uint8, count),
        "status": np.fromiter((span.status_code & 0xFF for span in spans), np.uint8, count),
        "service": np.array([span.service for span in spans], object),
        "name": np.array([span.name for span in spans], object),
        "resource": np.array(resources, np.int32),
        "scope": np.array(scopes, np.int32),
        "block": np.full(count, block, np.int32),
        "place": np.arange(count, dtype=np.int32),
    }


def _ids(raw: bytes) -> NDArray[np.generic]:
    return np.frombuffer(raw, ">u8").astype(np.uint64)


def blocks(spans: Sequence[Span]) -> list[Sequence[Span]]:
    """Cut spans into what one block each may hold."""
    found: list[Sequence[Span]] = []
    start = size = 0
    for at, span in enumerate(spans):
        if at > start and (at - start >= BLOCK_SPANS or size + len(span.raw) > BLOCK_BYTES):
            found.append(spans[start:at])
            start, size = at, 0
        size += len(span.raw)
    if start < len(spans):
        found.append(spans[start:])
    return found
