"""What of OTLP is serialised once per shape, kept in tables that columns of rows index."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tracer.columns import unlike
from tracer.spans import KIND_SERVER, STATUS_UNSET, AttributeValue, Resource, Shape

# How far beyond a string of a pool a copy may read.
WINDOW = 48

Bytes = NDArray[np.uint8]
Indices = NDArray[np.intp]


class _Pool:
    """Byte strings end to end in one array, so that one gather copies any of them."""

    def __init__(self) -> None:
        self.flat: Bytes = np.zeros(1 << 12, np.uint8)
        self._used = 0

    def add(self, data: bytes) -> int:
        """Keep `data`; returns where it starts."""
        start = self._used
        self._used += len(data)
        if self._used + WINDOW > self.flat.size:
            grown = np.zeros(2 * (self._used + WINDOW), np.uint8)
            grown[:start] = self.flat[:start]
            self.flat = grown
        self.flat[start : self._used] = np.frombuffer(data, np.uint8)
        return start


class _Growing:
    """An int32 table (rows, columns) that grows in both directions, filled with -1."""

    def __init__(self) -> None:
        self.cells: NDArray[np.int32] = np.full((64, 16), -1, np.int32)

    def reserve(self, row: int, column: int = 0) -> None:
        """Make sure that the cell is there."""
        rows, columns = self.cells.shape
        if row >= rows or column >= columns:
            wider = (max(rows, 2 * row), max(columns, 2 * column))
            cells = np.full(wider, -1, np.int32)
            cells[:rows, :columns] = self.cells
            self.cells = cells

    def set(self, row: int, column: int, value: int) -> None:
        self.reserve(row, column)
        self.cells[row, column] = value


class ShapeTables:
    """What is known of shapes, in tables that a row's slot indexes.

    A slot is a dense number for a shape that some batch used. An attribute column is
    (key, column of the batch, how often the shape had the two before).
    """

    def __init__(self, sequence: Sequence[Shape]) -> None:
        self.sequence = sequence
        self.count = 0
        self.pool = _Pool()
        self.resources: list[bytes] = []
        self.int_attributes: dict[tuple[str, str, int], int] = {}
        self.text_attributes: dict[tuple[str, str, int], int] = {}
        # Of otlp.py: what precedes a text of each length, by attribute key.
        self.heads: dict[str, NDArray[np.void]] = {}
        # Columns: start and length of the static piece, resource, server kind.
        self.facts = _Growing()
        # >= 0 where the shape has the attribute. Texts: the prefix's length and start.
        self.int_member = _Growing()
        self.prefix_length = _Growing()
        self.prefix_start = _Growing()
        self._resource_of: dict[Resource, int] = {}
        self._slot_of = np.full(0, -1, np.int32)

    @property
    def attributes(self) -> int:
        """How many attribute columns there are."""
        return len(self.int_attributes) + len(self.text_attributes)

    def slots(self, shape: NDArray[np.int32]) -> Indices:
        """Give each row's slot, (n,); reads shapes that were not seen before."""
        if len(self._slot_of) < len(self.sequence):
            grown = np.full(len(self.sequence) * 5 // 4, -1, np.int32)
            grown[: len(self._slot_of)] = self._slot_of
            self._slot_of = grown
        slots = self._slot_of[shape]
        if slots.min() < 0:
            for index in unlike(shape[slots < 0]).tolist():
                self._slot_of[index] = self._add(self.sequence[index])
            slots = self._slot_of[shape]
        return slots.astype(np.intp)

    def _add(self, shape: Shape) -> int:
        slot = self.count
        self.count += 1
        for table in (self.int_member, self.prefix_length, self.prefix_start):
            table.reserve(slot)
        resource = self._resource_of.get(shape.resource)
        if resource is None:
            resource = self._resource_of[shape.resource] = len(self.resources)
            self.resources.append(
                b"".join(_attribute(b"\x0a", key, v) for key, v in shape.resource.attributes)
            )
        static = _static(shape)
        facts = (self.pool.add(static), len(static), resource, int(shape.kind == KIND_SERVER))
        for column, fact in enumerate(facts):
            self.facts.set(slot, column, fact)
        seen: list[tuple[str, str]] = []
        for key, name in shape.ints:
            attribute = (key, name, seen.count((key, name)))
            seen.append((key, name))
            number = self.int_attributes.setdefault(attribute, len(self.int_attributes))
            self.int_member.set(slot, number, 1)
        seen.clear()
        for key, prefix, name in shape.texts:
            attribute = (key, name, seen.count((key, name)))
            seen.append((key, name))
            number = self.text_attributes.setdefault(attribute, len(self.text_attributes))
            data = utf8(prefix)
            self.prefix_length.set(slot, number, len(data))
            self.prefix_start.set(slot, number, self.pool.add(data) if data else 0)
        return slot


def varint(value: int) -> bytes:
    """Encode a base-128 varint; negative values as 64-bit two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(tag: bytes, data: bytes) -> bytes:
    """A field of wire type LEN."""
    return tag + varint(len(data)) + data


def utf8(text: str) -> bytes:
    """Encode a string; each lone surrogate (a byte that was not UTF-8) becomes U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _attribute(tag: bytes, key: str, value: AttributeValue) -> bytes:
    return field(tag, field(b"\x0a", utf8(key)) + field(b"\x12", _any_value(value)))


def _any_value(value: AttributeValue) -> bytes:
    """Serialise an AnyValue; an int beyond 64 bits becomes its decimal string."""
    if isinstance(value, bool):
        return b"\x10" + varint(value)
    if isinstance(value, int):
        if -(1 << 63) <= value < 1 << 63:
            return b"\x18" + varint(value)
        value = str(value)
    if isinstance(value, float):
        return b"\x21" + struct.pack("<d", value)
    if isinstance(value, str):
        return field(b"\x0a", utf8(value))
    return field(b"\x2a", b"".join(field(b"\x0a", _any_value(item)) for item in value))


def _static(shape: Shape) -> bytes:
    """Serialise what a Span has from its shape."""
    status = b""
    if shape.status_message:
        status += field(b"\x12", utf8(shape.status_message))
    if shape.status != STATUS_UNSET:
        status += b"\x18" + varint(shape.status)
    return b"".join(
        [
            b"\x30" + varint(shape.kind),
            field(b"\x2a", utf8(shape.name)),
            *([field(b"\x7a", status)] if status else []),
            *(_attribute(b"\x4a", key, value) for key, value in shape.attributes),
        ]
    )
