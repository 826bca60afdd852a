"""Struct members out of DWARF, for Go programs: just (type, member) -> offset.

Go writes names in place (DW_FORM_string), so a type is found by searching for its name
in .debug_info, not by reading every entry. Pure: bytes in. DWARF 3 to 5, 32-bit format.
Source: https://dwarfstd.org/doc/DWARF5.pdf (7.5 forms, 7.5.3 abbreviations).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from tracer.runtimes.elf import Elf, ElfError

_STRUCTURE = 0x13
_MEMBER = 0x0D
_NAME = 0x03
_MEMBER_LOCATION = 0x38

_STRING = 0x08
_FIXED = {
    0x01: 8,  # addr
    0x05: 2,
    0x06: 4,
    0x07: 8,
    0x0B: 1,
    0x0C: 1,
    0x0E: 4,  # strp
    0x10: 4,  # ref_addr
    0x11: 1,
    0x12: 2,
    0x13: 4,
    0x14: 8,
    0x17: 4,  # sec_offset
    0x19: 0,  # flag_present
    0x1E: 16,
    0x1F: 4,  # line_strp
    0x20: 8,
    0x25: 1,
    0x26: 2,
    0x28: 4,
    0x29: 1,
    0x2A: 2,
    0x2C: 4,
}
_BLOCK_LENGTH = {0x03: "<H", 0x04: "<I", 0x0A: "<B"}
_LEB = {0x0D, 0x0F, 0x15, 0x1A, 0x1B}  # sdata, udata, ref_udata, strx, addrx
_IMPLICIT_CONST = 0x21
_PLUS_UCONST = 0x23
_MOST_MEMBERS = 512

# code -> (tag, has children, ((attribute, form, implicit value), ...))
Abbreviations = dict[int, tuple[int, bool, tuple[tuple[int, int, int], ...]]]


def members(elf: Elf, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Return where members of structs are, in bytes; types not found are left out.

    wanted: ("runtime.g", "goid"), ... Raises ElfError where DWARF is broken; a program
    without any gives an empty result.
    """
    info_section = elf.section(".debug_info") or elf.section(".zdebug_info")
    abbrev_section = elf.section(".debug_abbrev") or elf.section(".zdebug_abbrev")
    if info_section is None or abbrev_section is None:
        return {}
    info, abbrev = elf.content(info_section), elf.content(abbrev_section)
    by_type: dict[str, set[str]] = {}
    for kind, member in wanted:
        by_type.setdefault(kind, set()).add(member)
    try:
        units = _units(info)
        tables: dict[int, Abbreviations] = {}
        result = {}
        for kind, names in by_type.items():
            for name, offset in _struct(info, abbrev, units, tables, kind, names).items():
                result[kind, name] = offset
        return result
    except (struct.error, IndexError):
        raise ElfError("debug information cut short") from None


def _units(info: bytes) -> list[tuple[int, int, int]]:
    """Return (start, end, offset of its abbreviations) of every compilation unit."""
    units, at = [], 0
    while at + 11 <= len(info):
        length, version = struct.unpack_from("<IH", info, at)
        if length >= 0xFFFFFFF0 or not 2 <= version <= 5:
            break
        (abbreviations,) = struct.unpack_from("<I", info, at + (8 if version == 5 else 6))
        units.append((at, at + 4 + length, abbreviations))
        at += 4 + length
    return units


def _struct(
    info: bytes,
    abbrev: bytes,
    units: list[tuple[int, int, int]],
    tables: dict[int, Abbreviations],
    kind: str,
    names: set[str],
) -> dict[str, int]:
    needle = kind.encode() + b"\0"
    at = info.find(needle)
    while at >= 0:
        unit = next((unit for unit in units if unit[0] < at < unit[1]), None)
        if unit is not None:
            table = tables.get(unit[2])
            if table is None:
                table = tables[unit[2]] = _abbreviations(abbrev, unit[2])
            # The entry begins with its code, of one byte or two, and its name comes first.
            for size in (1, 2):
                code, end = _leb(info, at - size)
                entry = table.get(code)
                if end != at or entry is None or entry[0] != _STRUCTURE or not entry[1]:
                    continue
                if entry[2] and entry[2][0][:2] == (_NAME, _STRING):
                    return _children(info, at - size, table, names)
        at = info.find(needle, at + 1)
    return {}


def _children(info: bytes, at: int, table: Abbreviations, names: set[str]) -> dict[str, int]:
    at, _name, _location = _entry(info, *_code(info, at, table))
    found: dict[str, int] = {}
    for _ in range(_MOST_MEMBERS):
        code, after = _leb(info, at)
        if code == 0 or code not in table:
            break
        at, name, location = _entry(info, after, table[code])
        if table[code][0] == _MEMBER and name in names and location is not None:
            found[name] = location
    return found


def _code(
    info: bytes, at: int, table: Abbreviations
) -> tuple[int, tuple[int, bool, tuple[tuple[int, int, int], ...]]]:
    code, after = _leb(info, at)
    return after, table[code]


def _entry(
    info: bytes, at: int, entry: tuple[int, bool, tuple[tuple[int, int, int], ...]]
) -> tuple[int, str, int | None]:
    """Read an entry's attributes: where it ends, its name, its member location."""
    name, location = "", None
    for attribute, form, implicit in entry[2]:
        start = at
        at = _after(info, at, form)
        if attribute == _NAME and form == _STRING:
            name = info[start : at - 1].decode("utf-8", "replace")
        elif attribute == _MEMBER_LOCATION:
            location = _location(info, start, at, form, implicit)
    return at, name, location


def _location(info: bytes, start: int, end: int, form: int, implicit: int) -> int | None:
    if form == _IMPLICIT_CONST:
        return implicit
    if form in (0x0D, 0x0F):
        return _leb(info, start)[0]
    if form in (0x0A, 0x18):  # an expression: DW_OP_plus_uconst N
        return _leb(info, start + 2)[0] if info[start + 1] == _PLUS_UCONST else None
    return int.from_bytes(info[start:end], "little") if form in _FIXED else None


def _after(info: bytes, at: int, form: int) -> int:
    """Return where a value of a form ends. Raises ElfError for a form nobody knows."""
    if form in _FIXED:
        return at + _FIXED[form]
    if form == _STRING:
        return info.index(b"\0", at) + 1
    if form == _IMPLICIT_CONST:
        return at
    if form in _BLOCK_LENGTH:
        (length,) = struct.unpack_from(_BLOCK_LENGTH[form], info, at)
        return at + struct.calcsize(_BLOCK_LENGTH[form]) + int(length)
    if form in (0x09, 0x18):
        length, at = _leb(info, at)
        return at + length
    if form in _LEB:
        return _leb(info, at)[1]
    raise ElfError(f"debug information with the unknown form {form:#x}")


def _abbreviations(abbrev: bytes, at: int) -> Abbreviations:
    table: Abbreviations = {}
    while True:
        code, at = _leb(abbrev, at)
        if code == 0:
            return table
        tag, at = _leb(abbrev, at)
        children = abbrev[at] != 0
        at += 1
        attributes = []
        while True:
            attribute, at = _leb(abbrev, at)
            form, at = _leb(abbrev, at)
            implicit = 0
            if form == _IMPLICIT_CONST:
                implicit, at = _leb(abbrev, at)
            if attribute == 0 and form == 0:
                break
            attributes.append((attribute, form, implicit))
        table[code] = (tag, children, tuple(attributes))


def _leb(data: bytes, at: int) -> tuple[int, int]:
    """Read an unsigned LEB128 number; return it and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
