"""Spans to bytes: a SpanBatch as a serialised OTLP ExportTraceServiceRequest.

No Python runs per span. A span's bytes are pieces laid end to end, and each piece is
written for all rows of the batch by one or a few numpy operations:

    12 LENGTH | static | text attributes | int attributes | trace state | parent | header

static: what a Shape fixes (kind, name, status, constant attributes), serialised once per
    shape and kept in a pool of bytes;
header: trace id, span id, times and flags, equally wide in every span.

Lengths that differ from row to row are varints of one width, padded with continuation
bytes, and fields come in an order of our own. Parsers must take both:
https://protobuf.dev/programming-guides/encoding/ (sections varints and order).

Pieces are copied through windows of fixed width, because numpy moves a `V48` in 8 ns
whereas squeezing padding out with a boolean mask costs 3 ns per *byte*. A piece of up to
48 bytes is one window; what that writes too much is overwritten by the pieces to its
right, since the header is longer than that and is written last. A longer piece is two
windows that overlap.

Source: opentelemetry-proto 1.x, trace/v1/trace.proto and common/v1/common.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer.otlp_shapes import WINDOW, Bytes, Indices, ShapeTables, field, utf8, varint
from tracer.sampling import trace_state
from tracer.spans import SpanBatch, Text

SCOPE_NAME = "wirespan"
MAX_SHAPES = 4096
MAX_ATTRIBUTES = 256

# Span.flags: W3C trace flag "sampled"; whether the parent is known to be remote; it is.
FLAG_SAMPLED = 0x001
FLAG_HAS_IS_REMOTE = 0x100
FLAG_IS_REMOTE = 0x200

# How many lengths a text attribute's look-up table of heads covers, and how many have one.
HEADS = 1024
MAX_HEADS = 64

_HEADER = np.dtype(
    [
        ("trace_id_tag", "V2"),
        ("trace_id", "V16"),
        ("span_id_tag", "V2"),
        ("span_id", "V8"),
        ("start_tag", "V1"),
        ("start_ns", "<u8"),
        ("end_tag", "V1"),
        ("end_ns", "<u8"),
        ("flags_tag", "V2"),
        ("flags", "<u4"),
    ]
)
_HEADER_TEMPLATE = np.frombuffer(
    b"\x0a\x10" + bytes(16) + b"\x12\x08" + bytes(8)
    + b"\x39" + bytes(8) + b"\x41" + bytes(8) + b"\x85\x01" + bytes(4),
    _HEADER,
)  # fmt: skip
_PARENT = np.dtype([("tag", "V2"), ("span_id", "V8")])
_PARENT_TEMPLATE = np.frombuffer(b"\x22\x08" + bytes(8), _PARENT)
assert _HEADER.itemsize >= WINDOW, "the header covers what a window writes too much"

Cells = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class _Source:
    """Variable pieces: row i is `flat[start[i] : start[i] + length[i]]`.

    flat may be read up to WINDOW bytes beyond any start, or up to the longest length.
    """

    flat: Bytes
    start: Indices
    length: Indices

    def rows(self, rows: Indices | None) -> _Source:
        if rows is None:
            return self
        return _Source(self.flat, self.start[rows], self.length[rows])


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes for some rows (None: for all): cells of one width, or variable ones."""

    rows: Indices | None
    data: Cells | _Source

    @property
    def length(self) -> Indices | int:
        return self.data.length if isinstance(self.data, _Source) else self.data.itemsize


class Encoder:
    """Turns batches into requests; not for use by two threads at once.

    version: of the instrumentation scope "wirespan".
    max_shapes: how many shapes to remember. A batch may go beyond it; then all are
        forgotten before the next one. Besides, 5 bytes are kept for each of `batch.shapes`.
    """

    def __init__(self, version: str = "", max_shapes: int = MAX_SHAPES) -> None:
        scope = field(b"\x0a", utf8(SCOPE_NAME))
        if version:
            scope += field(b"\x12", utf8(version))
        self._scope = field(b"\x0a", scope)
        self._max_shapes = max_shapes
        self._shapes = ShapeTables(())
        # Requests are laid out here: what is used again and again is in the caches.
        self._out: Bytes = np.empty(0, np.uint8)

    @property
    def cached_shapes(self) -> int:
        """How many shapes are remembered."""
        return self._shapes.count

    def encode(self, batch: SpanBatch) -> bytes:
        """Serialise `batch`; several results joined are one request again.

        Bytes of texts that are not UTF-8 become U+FFFD, for receivers refuse a whole
        request for one of them. Returns b"" for a batch without rows.
        """
        if len(batch) == 0:
            return b""
        shapes = self._shapes
        if (
            shapes.sequence is not batch.shapes
            or shapes.count > self._max_shapes
            or shapes.attributes > MAX_ATTRIBUTES
        ):
            shapes = self._shapes = ShapeTables(batch.shapes)
        slot = shapes.slots(batch.shape)
        used = np.flatnonzero(np.bincount(slot, minlength=shapes.count))
        pieces = [_static_piece(shapes, slot)]
        pieces += _text_pieces(shapes, slot, used, batch)
        pieces += _int_pieces(shapes, slot, used, batch)
        pieces += _state_pieces(batch)
        pieces += _header_pieces(shapes, slot, batch)

        payload = np.zeros(len(batch), np.intp)
        for piece in pieces:
            if piece.rows is None:
                payload += piece.length
            else:
                payload[piece.rows] += piece.length
        opening = _varint_cells(b"\x12", payload, _varint_width(int(payload.max())))
        out, at = self._frame(shapes, shapes.facts.cells[slot, 2], payload + opening.itemsize)
        for piece in [_Piece(None, opening), *pieces]:
            where = at if piece.rows is None else at[piece.rows]
            if isinstance(piece.data, _Source):
                _copy(out, where, piece.data)
            else:
                _windows(out, piece.data.itemsize)[where] = piece.data
            if piece.rows is None:
                at += piece.length
            else:
                at[piece.rows] = where + piece.length
        return out.tobytes()

    def _frame(
        self, shapes: ShapeTables, resource: NDArray[np.int32], length: Indices
    ) -> tuple[Bytes, Indices]:
        """Lay out ResourceSpans around spans of `length` bytes, (n,).

        Returns the request with all but the spans written, and where each span starts.
        """
        used = np.flatnonzero(np.bincount(resource, minlength=len(shapes.resources)))
        rank = np.zeros(len(shapes.resources), np.min_scalar_type(len(used)))
        rank[used] = np.arange(len(used))
        # Stable, as rows stay in their order, and by small integers, as that is a radix sort.
        order = np.argsort(rank[resource], kind="stable")
        counts = np.bincount(rank[resource], minlength=len(used))
        ordered = length[order]
        ends = np.cumsum(ordered)
        bodies = np.diff(ends[np.cumsum(counts) - 1], prepend=0)

        openings: list[bytes] = []
        for number, body in zip(used.tolist(), bodies.tolist(), strict=True):
            spans = varint(len(self._scope) + body)
            described = field(b"\x0a", shapes.resources[number])
            total = len(described) + 1 + len(spans) + len(self._scope) + body
            openings.append(b"\x0a" + varint(total) + described + b"\x12" + spans + self._scope)
        sizes = np.array([len(opening) for opening in openings])
        gaps = np.cumsum(sizes)
        size = int(ends[-1] + gaps[-1])
        if size > len(self._out):
            self._out = np.empty(size, np.uint8)
        out = self._out[:size]
        starts = np.cumsum(bodies) - bodies + gaps - sizes
        for start, opening in zip(starts.tolist(), openings, strict=True):
            out[start : start + len(opening)] = np.frombuffer(opening, np.uint8)
        at = np.empty(len(length), np.intp)
        at[order] = ends - ordered + np.repeat(gaps, counts)
        return out, at


def _static_piece(shapes: ShapeTables, slot: Indices) -> _Piece:
    facts = shapes.facts.cells
    return _Piece(
        None,
        _Source(shapes.pool.flat, _indices(facts[slot, 0]), _indices(facts[slot, 1])),
    )


def _header_pieces(shapes: ShapeTables, slot: Indices, batch: SpanBatch) -> list[_Piece]:
    """Parents where there are any, then ids, times and flags of all rows."""
    parent = _as_void(batch.parent_span_id, 8)
    rows = np.flatnonzero(parent.view("<u8"))
    cells = np.repeat(_PARENT_TEMPLATE, len(rows))
    cells["span_id"] = parent[rows]

    # A server's parent is the client's span, in another process; others' are their own's.
    remote = shapes.facts.cells[slot, 3][rows] > 0
    flags = np.full(len(batch), FLAG_SAMPLED | FLAG_HAS_IS_REMOTE, np.uint32)
    flags[rows] += FLAG_IS_REMOTE * remote.astype(np.uint32)
    header = np.repeat(_HEADER_TEMPLATE, len(batch))
    header["trace_id"] = _as_void(batch.trace_id, 16)
    header["span_id"] = _as_void(batch.span_id, 8)
    header["start_ns"] = batch.start_ns
    header["end_ns"] = batch.end_ns
    header["flags"] = flags
    return [
        _Piece(rows, cells.view(f"V{_PARENT.itemsize}")),
        _Piece(None, header.view(f"V{_HEADER.itemsize}")),
    ]


def _state_pieces(batch: SpanBatch) -> list[_Piece]:
    """Span.trace_state, where something is to be said."""
    text = trace_state(batch)
    if text is None or not text.length.any():
        return []
    rows = _rows(text.length > 0)
    source = _source(text).rows(rows)
    heads = _varint_cells(b"\x1a", source.length, 1)
    return [_Piece(rows, heads), _Piece(rows, source)]


def _int_pieces(
    shapes: ShapeTables, slot: Indices, used: Indices, batch: SpanBatch
) -> list[_Piece]:
    pieces = []
    for (key, name, _), number in shapes.int_attributes.items():
        member = shapes.int_member.cells[:, number] >= 0
        if not member[used].any():
            continue
        values = batch.ints[name]
        present = values >= 0
        if not member[used].all():
            present &= member[slot]
        rows = _rows(present)
        if rows is not None:
            values = values[rows]
        if len(values):
            width = _varint_width(int(values.max()))
            cells = _varint_cells(_int_opening(key, width), values, width)
            pieces.append(_Piece(rows, cells))
    return pieces


def _text_pieces(
    shapes: ShapeTables, slot: Indices, used: Indices, batch: SpanBatch
) -> list[_Piece]:
    pieces = []
    columns: dict[str, _Source] = {}
    for (key, name, _), number in shapes.text_attributes.items():
        prefixes = shapes.prefix_length.cells[:, number]
        if prefixes[used].max() < 0:
            continue
        if name not in columns:
            columns[name] = _source(batch.texts[name])
        source = columns[name]
        prefix: Indices | None = None
        if prefixes[used].any():
            prefix = _indices(prefixes[slot])
            present = (prefix > 0) | ((prefix == 0) & (source.length > 0))
        else:
            present = source.length > 0
        rows = _rows(present)
        source = source.rows(rows)
        if len(source.length) == 0:
            continue
        length = source.length
        if prefix is not None:
            prefix = prefix if rows is None else prefix[rows]
            length = length + prefix
        pieces.append(_Piece(rows, _heads(shapes, key, length)))
        if prefix is not None and prefix.any():
            chosen = slot if rows is None else slot[rows]
            start = _indices(shapes.prefix_start.cells[chosen, number])
            pieces.append(_Piece(rows, _Source(shapes.pool.flat, start, prefix)))
        pieces.append(_Piece(rows, source))
    return pieces


def _heads(shapes: ShapeTables, key: str, length: Indices) -> Cells:
    """All of a text attribute that precedes its text, for texts of `length` bytes, (m,)."""
    if int(length.max()) >= HEADS:
        return _text_openings(key, length)
    table = shapes.heads.get(key)
    if table is None:
        if len(shapes.heads) >= MAX_HEADS:
            return _text_openings(key, length)
        table = shapes.heads[key] = _text_openings(key, np.arange(HEADS, dtype=np.intp))
    return table[length]


def _text_openings(key: str, length: Indices) -> Cells:
    """Span.attributes, KeyValue and AnyValue up to the bytes of a string of `length`, (m,)."""
    name = field(b"\x0a", utf8(key))
    # Of the largest of the three lengths, to be on the safe side.
    width = _varint_width(int(length.max()) + len(name) + 16)
    value = length + 1 + width
    pair = value + len(name) + 1 + width
    parts = (
        _varint_cells(b"\x4a", pair, width),
        _varint_cells(name + b"\x12", value, width),
        _varint_cells(b"\x0a", length, width),
    )
    joined = np.hstack([part.view(np.uint8).reshape(len(length), -1) for part in parts])
    return joined.view(f"V{joined.shape[1]}")[:, 0]


def _source(text: Text) -> _Source:
    """Make a column of texts ready to be copied, and valid UTF-8."""
    width = text.bytes.shape[1]
    length = np.minimum(text.length, width).astype(np.intp)
    longest = int(length.max())
    data = text.bytes
    if not data.flags.c_contiguous:
        data = np.ascontiguousarray(data[:, :longest])
    start = np.arange(len(length), dtype=np.intp) * data.shape[1]
    source = _Source(data.reshape(-1), start, length)
    if longest == 0 or data[:, :longest].max() < 0x80:
        return source
    suspects = np.flatnonzero(data[:, :longest].max(axis=1) >= 0x80)
    return _repaired(source, data[suspects, :longest], suspects)


def _repaired(source: _Source, data: Bytes, suspects: Indices) -> _Source:
    """Replace what is not UTF-8 in rows `suspects`, whose bytes are `data` (m, longest).

    Python sees single rows only where a text is in fact invalid.
    """
    length = source.length[suspects]
    inside = np.arange(data.shape[1]) < length[:, None]
    foreign = np.flatnonzero(((data >= 0x80) & inside).any(axis=1))
    if len(foreign) == 0:
        return source
    # One look at all of them: a line feed ends any sequence that a row leaves unfinished.
    lines = np.full((len(foreign), data.shape[1] + 1), 0x0A, np.uint8)
    lines[:, :-1][inside[foreign]] = data[foreign][inside[foreign]]
    upto = np.arange(lines.shape[1]) <= length[foreign, None]
    if _is_utf8(lines[upto].tobytes()):
        return source
    start, lengths = source.start.copy(), source.length.copy()
    extra: list[bytes] = []
    end = source.flat.size
    for row in foreign.tolist():
        raw = data[row, : length[row]].tobytes()
        if not _is_utf8(raw):
            mended = raw.decode("utf-8", "replace").encode()
            start[suspects[row]], lengths[suspects[row]] = end, len(mended)
            extra.append(mended)
            end += len(mended)
    extra.append(bytes(WINDOW))
    flat = np.concatenate([source.flat, np.frombuffer(b"".join(extra), np.uint8)])
    return _Source(flat, start, lengths)


def _copy(out: Bytes, at: Indices, source: _Source) -> None:
    """Write row i of `source` to `out[at[i]:]`; rows of < WINDOW bytes may write WINDOW."""
    longest = int(source.length.max())
    width = min(WINDOW, longest)
    if width == 0:
        return
    _windows(out, width)[at] = _windows(source.flat, width)[source.start]
    while width < longest:
        rows = np.flatnonzero((source.length > width) & (source.length <= 2 * width))
        if len(rows):
            to, start, rest = at[rows], source.start[rows], source.length[rows] - width
            target, origin = _windows(out, width), _windows(source.flat, width)
            target[to] = origin[start]
            target[to + rest] = origin[start + rest]
        width *= 2


def _windows(flat: Bytes, width: int) -> Cells:
    """View `flat` as all its runs of `width` bytes, overlapping."""
    return np.ndarray((flat.size - width + 1,), f"V{width}", flat, strides=(1,))


def _rows(present: NDArray[np.bool_]) -> Indices | None:
    """Where `present` holds; None for everywhere."""
    return None if present.all() else np.flatnonzero(present)


def _indices(values: NDArray[Any]) -> Indices:
    return values.astype(np.intp)


def _as_void(values: Bytes, width: int) -> Cells:
    """View (n, width) bytes as (n,) cells."""
    return np.ascontiguousarray(values).view(f"V{width}")[:, 0]


def _varint_width(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)


def _varint_cells(prefix: bytes, values: NDArray[np.int64] | Indices, width: int) -> Cells:
    """Make `prefix` + a varint of `width` bytes for each of `values` >= 0, (m,)."""
    cells = np.full(len(values), np.void(prefix + bytes(width)))
    columns = cells.view(np.uint8).reshape(len(values), -1)[:, len(prefix) :]
    for place in range(width):
        digit = (values >> (7 * place)).astype(np.uint8)
        columns[:, place] = digit & 0x7F if place == width - 1 else digit | 0x80
    return cells


def _int_opening(key: str, width: int) -> bytes:
    """Span.attributes up to the varint of `width` bytes of an int value."""
    pair = field(b"\x0a", utf8(key)) + b"\x12" + varint(1 + width) + b"\x18"
    return b"\x4a" + varint(len(pair) + width) + pair


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
