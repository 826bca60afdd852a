"""Trace headers of requests: whose trace an exchange belongs to, as its sender says.

Five formats, each known by its form:

    00-{32 hex}-{16 hex}-{2 hex}           traceparent, https://www.w3.org/TR/trace-context/
    {16 or 32 hex}-{16 hex}[-...]          b3, https://github.com/openzipkin/b3-propagation
    {hex}:{hex}:{hex}:{hex}                uber-trace-id, Jaeger's client libraries
    1-{base64}-{base64}-{number}-...       sw8, Apache SkyWalking's cross-process protocol 3.0
    {16 or 32 hex, 40 bytes}{16 hex, 24}   X-B3-TraceId and X-B3-SpanId, each with zero bytes
                                           behind it, as ebpf/protocols/http1.h puts them

A value may stand behind its header's name (`b3: ...`). SkyWalking's ids are no numbers:
theirs are hashed, so that all who read one header come to the same ids.

Nearly every request has a traceparent of its own, so those are read in columns; the others
go through Python once per distinct text.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tracer.columns import Column
from tracer.spans import SAMPLED_NO, SAMPLED_YES, Remote

# Bytes of a traceparent of version 00, and those that are read of any header.
W3C_BYTES = 55
MAX_BYTES = 256
MAX_REMEMBERED = 8192

_NAME = re.compile(rb"(?:traceparent|b3|uber-trace-id|sw8):[ \t]*", re.IGNORECASE)
_W3C = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_B3 = re.compile(rb"([0-9a-f]{16}|[0-9a-f]{32})-([0-9a-f]{16})(?:-.*)?", re.IGNORECASE)
_B3_PAIR = re.compile(
    rb"([0-9a-f]{16}(?:\0{24}|[0-9a-f]{16}\0{8}))([0-9a-f]{16})\0{8}", re.IGNORECASE
)
_UBER = re.compile(
    rb"([0-9a-f]{1,32}):([0-9a-f]{1,16}):[0-9a-f]{1,16}:[0-9a-f]{1,2}", re.IGNORECASE
)
_SW8 = re.compile(rb"[01]-([A-Za-z0-9+/=]+)-([A-Za-z0-9+/=]+)-([0-9]{1,10})-.*")

# What a value says of whether its trace is sampled, by the group that tells.
_SAYS = (
    re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f](?P<bits>[0-9a-f])(?:-.*)?"),
    re.compile(rb"[0-9a-f]{16,32}-[0-9a-f]{16}-(?P<word>[01d])(?:-.*)?", re.IGNORECASE),
    re.compile(
        rb"[0-9a-f]{1,32}:[0-9a-f]{1,16}:[0-9a-f]{1,16}:[0-9a-f]?(?P<bits>[0-9a-f])", re.IGNORECASE
    ),
    re.compile(rb"(?P<word>[01])-[A-Za-z0-9+/=]+-[A-Za-z0-9+/=]+-[0-9]{1,10}-.*"),
)

_NO_DIGIT = 0xFF
_DIGITS = np.full(256, _NO_DIGIT, dtype=np.uint8)
_DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_DASH = ord("-")


def nobody(count: int) -> Remote:
    """Return a column of requests that name no parent."""
    none = np.zeros(count, dtype=np.uint64)
    return Remote(none, none, none, none)


def remote_parent(text: bytes) -> tuple[bytes, bytes] | None:
    """Return trace id (16 bytes) and parent's span id (8) that a header's value names.

    None: it has no known form, names none, or an id is all zeros.
    """
    text = _value(text)
    if (found := _W3C.fullmatch(text)) and (found[1] != b"00" or found[4] is None):
        ids = found[2], found[3]
    elif found := _B3.fullmatch(text) or _UBER.fullmatch(text):
        ids = found[1], found[2]
    elif found := _B3_PAIR.fullmatch(text):
        ids = found[1].rstrip(b"\0"), found[2]
    elif found := _SW8.fullmatch(text):
        return _skywalking(found[1], found[2], found[3])
    else:
        return None
    trace, span = (bytes.fromhex(text.decode().zfill(32 >> at)) for at, text in enumerate(ids))
    return (trace, span) if any(trace) and any(span) else None


def sampled(text: bytes) -> int:
    """Return what a header's value says of its trace: SAMPLED_YES, SAMPLED_NO, or 0, nothing."""
    text = _value(text)
    for form in _SAYS:
        if found := form.fullmatch(text):
            said = found.groupdict()
            yes = said["word"] != b"0" if said.get("word") else int(said["bits"], 16) & 1
            return SAMPLED_YES if yes else SAMPLED_NO
    return 0


def _value(text: bytes) -> bytes:
    """Leave out what surrounds a header's value."""
    name = _NAME.match(text)
    return (text[name.end() :] if name else text).strip(b" \t").replace(b"%3A", b":")


def _skywalking(trace: bytes, segment: bytes, span: bytes) -> tuple[bytes, bytes] | None:
    try:
        trace, segment = b64decode(trace, validate=True), b64decode(segment, validate=True)
    except Error:
        return None
    if not trace or not segment:
        return None
    # Of SkyWalking's agents only, and with it comes OpenSSL.
    from hashlib import blake2b

    return (
        blake2b(trace, digest_size=16).digest(),
        blake2b(segment + b"\0" + span, digest_size=8).digest(),
    )


class Headers:
    """Reads columns of header values; remembers those that aren't read in columns."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[tuple[bytes, bytes] | None, int]] = {}

    def parents(self, text: NDArray[np.uint8], length: Column) -> Remote:
        """Read the values of n requests.

        text: (n, width), width at most MAX_BYTES of use. length: (n,), 0 for no header.
        """
        count = len(length)
        ids = np.zeros((count, 24), dtype=np.uint8)
        rows = np.flatnonzero(length == W3C_BYTES)
        others = length > 0
        said = np.zeros(count, dtype=np.uint64)
        if len(rows):
            read, yes, good = _w3c(text if len(rows) == count else text[rows])
            if not good.all():
                rows, read, yes = rows[good], read[good], yes[good]
            ids[rows] = read
            said[rows] = np.where(yes, np.uint64(SAMPLED_YES), np.uint64(SAMPLED_NO))
            others[rows] = False
        for row in np.flatnonzero(others).tolist():
            found, said[row] = self._one(text[row, : int(length[row])].tobytes())
            if found:
                ids[row] = np.frombuffer(found[0] + found[1], dtype=np.uint8)
        words = ids.view(np.uint64)
        return Remote(words[:, 0], words[:, 1], words[:, 2], said)

    def of(self, values: Sequence[bytes]) -> Remote:
        """Read values that come as Python's bytes, b"" for none."""
        if not any(values):
            return nobody(len(values))
        values = [value[:MAX_BYTES] for value in values]
        size = [len(value) for value in values]
        width = max(size)
        joined = b"".join([value.ljust(width, b"\0") for value in values])
        cells = np.frombuffer(joined, dtype=np.uint8).reshape(len(values), width)
        return self.parents(cells, np.array(size))

    def _one(self, text: bytes) -> tuple[tuple[bytes, bytes] | None, int]:
        if text in self._known:
            return self._known[text]
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        found = self._known[text] = remote_parent(text), sampled(text)
        return found


def _w3c(
    text: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """Read traceparents of version 00, (n, 55 or more).

    Returns both ids, (n, 24), whether the flags say `sampled`, and which are sound; (n,).
    """
    digits = _DIGITS[text[:, :W3C_BYTES]]
    high = np.concatenate((digits[:, 3:35:2], digits[:, 36:52:2]), axis=1)
    low = np.concatenate((digits[:, 4:35:2], digits[:, 37:52:2]), axis=1)
    ids: NDArray[np.uint8] = high << np.uint8(4) | low
    good: NDArray[np.bool_] = (np.maximum(high, low) != _NO_DIGIT).all(axis=1)
    good &= (text[:, 2] == _DASH) & (text[:, 35] == _DASH) & (text[:, 52] == _DASH)
    good &= (text[:, 0] == ord("0")) & (text[:, 1] == ord("0"))
    good &= (digits[:, 53] != _NO_DIGIT) & (digits[:, 54] != _NO_DIGIT)
    words = ids.view(np.uint64)
    good &= ((words[:, 0] | words[:, 1]) != 0) & (words[:, 2] != 0)
    return ids, (digits[:, 54] & 1) != 0, good
