"""The record's layout as the loaded object itself tells it: BTF -> numpy.

flow.h is written once, in C; what the compiler made of it stands in the object's
BTF, so this can't be stale. How C types come out:

    integers, enums     the same width and sign, little-endian
    bool                bool
    struct              a structured dtype with C's own offsets and size
    T x[N]              a subarray of T
    char x[N]           text: S{N}, cut at the last non-NUL byte; above 64 bytes a
                        subarray of uint8, for such an array is a heap of strings
                        with lengths of its own, and S would scan and copy it whole

Pointers, unions, bit-fields and floats don't belong into a record: LayoutError.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, cast

import numpy as np

from tracer.errors import LayoutError
from tracer.kernel.btf import Btf, Kind, Object, Type

TEXT_MAX = 64  # bytes; longer char arrays come as uint8

_RECORD = "flow_record"
_PREFIX = "flow_"  # of every type that crosses to user space


@dataclass(frozen=True, slots=True)
class Global:
    """Where a variable lies in its section, and so in the map of that section; bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What crosses from the kernel: the record, and the enums its numbers come from."""

    record: np.dtype[np.void]
    enums: dict[str, type[IntEnum]]

    def members(self, enum: str, prefix: str) -> dict[str, int]:
        """Return the enumerators that begin with `prefix`, in C's order.

        Leaves out the counts that close an enum (FLOW_LOSSES in flow_loss), which
        lack the prefix of its values. Raises LayoutError where BTF has no such enum.
        """
        if enum not in self.enums:
            raise LayoutError(
                f"the object's BTF has no enum {enum}", "it needs a variable of it at file scope"
            )
        values = self.enums[enum].__members__
        return {name: int(value) for name, value in values.items() if name.startswith(prefix)}


def read_object(path: Path) -> Object:
    """Read an eBPF object; raises LayoutError where there is none."""
    try:
        return Object(path.read_bytes(), path.name)
    except OSError as error:
        raise LayoutError(
            f"cannot read the eBPF object {path}: {error.strerror}", "build it: make build"
        ) from None


def load_layout(object_path: Path) -> Layout:
    """Return the layout of `struct flow_record` and every `enum flow_*` of an object."""
    return layout_of(read_object(object_path))


def layout_of(obj: Object) -> Layout:
    """Return the layout of an object already read; raises LayoutError."""
    btf = obj.btf
    enums = {
        found.name: _enum(btf, found)
        for found in btf.types
        if found.kind == Kind.ENUM and found.name.startswith(_PREFIX)
    }
    return Layout(struct_dtype(btf, _RECORD), enums)


def global_offsets(object_path: Path, section: str = ".data") -> dict[str, Global]:
    """Return the variables of a data section by name."""
    found = read_object(object_path).globals(section)
    return {name: Global(symbol.value, symbol.size) for name, symbol in found.items()}


def struct_dtype(btf: Btf, name: str) -> np.dtype[np.void]:
    """Return the dtype of the struct so named; raises LayoutError."""
    return _struct(btf, btf.find(Kind.STRUCT, name))


def _struct(btf: Btf, found: Type) -> np.dtype[np.void]:
    names: list[str] = []
    formats: list[Any] = []
    offsets: list[int] = []
    for name_off, number, place in found.rows:
        name = btf.string(name_off)
        # With kind_flag set, the upper byte of the offset is a bit-field's width.
        if place % 8 or (found.flag and place >> 24):
            raise LayoutError(f"{btf.name}: {found.name}.{name} is a bit-field")
        names.append(name)
        formats.append(_dtype(btf, number, f"{found.name}.{name}"))
        offsets.append((place & 0xFFFFFF if found.flag else place) // 8)
    return np.dtype(
        {"names": names, "formats": formats, "offsets": offsets, "itemsize": found.size}
    )


def _dtype(btf: Btf, number: int, where: str) -> np.dtype[Any]:
    found = btf.resolve(number)
    if found.kind == Kind.STRUCT:
        return _struct(btf, found)
    if found.kind == Kind.INT:
        return _integer(btf, found, where)
    if found.kind == Kind.ENUM:
        return np.dtype(f"<{'i' if found.flag else 'u'}{found.size}")
    if found.kind != Kind.ARRAY:
        raise LayoutError(f"{btf.name}: {where} is a {found.kind.name.lower()}")
    element, _, count = found.words
    base = btf.resolve(element)
    if base.kind == Kind.INT and base.name == "char" and count <= TEXT_MAX:
        return np.dtype(f"S{count}")
    if base.kind == Kind.INT and base.name == "char":
        return np.dtype((np.uint8, (count,)))
    inner = _dtype(btf, element, where)
    return np.dtype((inner.base, (count, *inner.shape)))


def _integer(btf: Btf, found: Type, where: str) -> np.dtype[Any]:
    encoding, bits = found.words[0] >> 24 & 15, found.words[0] & 0xFF
    if bits != found.size * 8 or found.size > 8:
        if not encoding & 4:
            raise LayoutError(f"{btf.name}: {where} is {bits} bits in {found.size} bytes")
    if encoding & 4:
        return np.dtype(np.bool_)
    return np.dtype(f"<{'i' if encoding & 1 else 'u'}{found.size}")


def _enum(btf: Btf, found: Type) -> type[IntEnum]:
    def value(raw: int) -> int:
        return raw - (1 << 32) if found.flag and raw >> 31 else raw

    members = [(btf.string(name), value(raw)) for name, raw in found.rows]
    # mypy takes a call of IntEnum for the lookup of a value.
    return cast(type[IntEnum], IntEnum(found.name, members))
