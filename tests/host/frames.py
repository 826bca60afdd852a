"""HTTP/2 frames, RFC 9113 section 6, right or wrong, as the tests need them."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Type(IntEnum):
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag(IntFlag):
    NONE = 0
    END_STREAM = 1
    ACK = 1
    END_HEADERS = 4
    PADDED = 8
    PRIORITY = 32


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(ack: bool = False) -> bytes:
    return frame(Type.SETTINGS, ack, 0, b"" if ack else struct.pack(">HI", 4, 65_535))


def _padded(payload: bytes, padding: int | None) -> bytes:
    return payload if padding is None else bytes([padding]) + payload + bytes(padding)


def data(stream: int, content: bytes, *, end: bool = False, padding: int | None = None) -> bytes:
    flags = Flag.END_STREAM * end | Flag.PADDED * (padding is not None)
    return frame(Type.DATA, flags, stream, _padded(content, padding))


def headers(
    stream: int,
    block: bytes,
    *,
    end: bool = False,
    padding: int | None = None,
    priority: bool = False,
    pieces: int = 1,
) -> bytes:
    """HEADERS and, with more than one piece, CONTINUATION."""
    size = -(-len(block) // pieces)
    parts = [block[at * size : (at + 1) * size] for at in range(pieces)]
    flags = Flag.END_STREAM * end | Flag.PADDED * (padding is not None) | Flag.PRIORITY * priority
    first = (struct.pack(">IB", 0, 15) if priority else b"") + parts[0]
    made = frame(
        Type.HEADERS, flags | Flag.END_HEADERS * (pieces == 1), stream, _padded(first, padding)
    )
    for at, part in enumerate(parts[1:], 2):
        made += frame(Type.CONTINUATION, Flag.END_HEADERS * (at == pieces), stream, part)
    return made


def push_promise(stream: int, promised: int, block: bytes, padding: int | None = None) -> bytes:
    flags = Flag.END_HEADERS | Flag.PADDED * (padding is not None)
    payload = _padded(struct.pack(">I", promised) + block, padding)
    return frame(Type.PUSH_PROMISE, flags, stream, payload)


def reset(stream: int, code: int) -> bytes:
    return frame(Type.RST_STREAM, 0, stream, struct.pack(">I", code))


def goaway(last: int, code: int = 0, debug: bytes = b"") -> bytes:
    return frame(Type.GOAWAY, 0, 0, struct.pack(">II", last, code) + debug)


def window_update(stream: int) -> bytes:
    return frame(Type.WINDOW_UPDATE, 0, stream, struct.pack(">I", 1000))


def ping() -> bytes:
    return frame(Type.PING, 0, 0, bytes(8))


def message(content: bytes, compressed: bool = False) -> bytes:
    """A message of gRPC with its prefix."""
    return struct.pack(">BI", compressed, len(content)) + content
