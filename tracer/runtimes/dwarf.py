"""Struct members out of DWARF, for Go programs: just (type, member) -> offset.

Go writes names in place (DW_FORM_string), so a type is found by searching for its name
in .debug_info, not by reading every entry, and the section is inflated and searched by
pieces: it may be hundreds of MiB. Pure: bytes in. DWARF 3 to 5, 32-bit format.
Source: https://dwarfstd.org/doc/DWARF5.pdf (7.5 forms, 7.5.3 abbreviations).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable

from tracer.runtimes.elf import PIECE, Elf, ElfError

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
_MOST_SEARCHED = 256 << 20  # bytes of .debug_info, inflated: half a second
_ENTRY = 1 << 16  # bytes of a struct with its members, at most
_CODE = 4  # bytes before a name in which its entry begins

# code -> (tag, has children, ((attribute, form, implicit value), ...))
Abbreviations = dict[int, tuple[int, bool, tuple[tuple[int, int, int], ...]]]


class TooLarge(ElfError):
    """More debug information than is searched; the message says how much."""


def members(elf: Elf, wanted: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Return where members of structs are, in bytes; types not found are left out.

    wanted: ("runtime.g", "goid"), ... A program without DWARF gives an empty result.
    Raises TooLarge, and ElfError where DWARF is broken.
    """
    missing: dict[str, set[str]] = {}
    for kind, member in wanted:
        missing.setdefault(kind, set()).add(member)
    if not missing:
        return {}
    info = elf.section(".debug_info") or elf.section(".zdebug_info")
    abbreviations = elf.section(".debug_abbrev") or elf.section(".zdebug_abbrev")
    if info is None or abbreviations is None:
        return {}
    if elf.length(info) > _MOST_SEARCHED:
        raise TooLarge(f"{elf.length(info) >> 20} MiB of DWARF are not searched")
    result = {}
    try:
        units = _Units(elf.content(abbreviations))
        for start, piece in elf.pieces(info, _ENTRY):
            units.take(start, piece)
            for kind, names in tuple(missing.items()):
                found = _struct(start, piece, units, kind, names)
                if found is not None:
                    del missing[kind]
                    result.update({(kind, name): place for name, place in found.items()})
            if not missing:
                break
    except (struct.error, IndexError):
        raise ElfError("debug information cut short") from None
    return result


class _Units:
    """Compilation units as far as they have been seen, and how each abbreviates."""

    def __init__(self, abbrev: bytes) -> None:
        self._abbrev = abbrev
        self._starts: list[int] = []
        self._places: list[int] = []  # of their abbreviations
        self._end = 0  # of the last of them
        self._tables: dict[int, Abbreviations] = {}

    def take(self, start: int, piece: bytes) -> None:
        """Take note of the units that begin in a piece; pieces come in order."""
        while 0 <= (at := self._end - start) <= len(piece) - 12:
            length, version = struct.unpack_from("<IH", piece, at)
            if length >= 0xFFFFFFF0 or not 2 <= version <= 5:
                self._end = -1
                return
            (place,) = struct.unpack_from("<I", piece, at + (8 if version == 5 else 6))
            self._starts.append(self._end)
            self._places.append(place)
            self._end += 4 + length

    def table(self, at: int) -> Abbreviations | None:
        """Return the abbreviations of the unit that has byte `at`, None: no unit has."""
        index = bisect_right(self._starts, at) - 1
        if index < 0 or (0 <= self._end <= at):
            return None
        place = self._places[index]
        if place not in self._tables:
            self._tables[place] = _abbreviations(self._abbrev, place)
        return self._tables[place]


def _struct(
    start: int, piece: bytes, units: _Units, kind: str, names: set[str]
) -> dict[str, int] | None:
    """Return the places of a struct's members where the struct begins in a piece, else None."""
    needle = kind.encode() + b"\0"
    at = piece.find(needle, _CODE)
    # A name at the very end comes again in the next piece, with what is before it.
    while 0 <= at < PIECE + _CODE:
        table = units.table(start + at)
        # The entry begins with its code, of one byte or two, and its name comes first.
        for size in (1, 2) if table else ():
            code, end = _leb(piece, at - size)
            entry = table.get(code) if table else None
            if end != at or entry is None or entry[0] != _STRUCTURE or not entry[1]:
                continue
            if table and entry[2] and entry[2][0][:2] == (_NAME, _STRING):
                return _children(piece, at - size, table, names)
        at = piece.find(needle, at + 1)
    return None


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
