"""An eBPF object's sections, symbols and BTF: read, and edited in a copy.

Reads 64-bit little-endian ELF relocatables as clang writes them, and BTF of
version 1. The one edit is that libbpf would make before a load and pylibbpf does not
offer: a map's max_entries. Links and loads nothing.

Sources: https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html,
https://www.kernel.org/doc/html/latest/bpf/btf.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from tracer.errors import LayoutError

_EM_BPF = 247
_SHT_SYMTAB = 2
_STT_FUNC = 2
_SHF_EXECINSTR = 4
_CALL = 0x85  # BPF_JMP | BPF_CALL

_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_BTF_HEADER = struct.Struct("<HBBIIIII")
_BTF_TYPE = struct.Struct("<III")


class Kind(IntEnum):
    """BTF_KIND_* of the kernel's uapi/linux/btf.h."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Words that follow the common three: (fixed, per vlen).
_EXTRA_WORDS = {
    Kind.INT: (1, 0),
    Kind.ARRAY: (3, 0),
    Kind.STRUCT: (0, 3),
    Kind.UNION: (0, 3),
    Kind.ENUM: (0, 2),
    Kind.FUNC_PROTO: (0, 2),
    Kind.VAR: (1, 0),
    Kind.DATASEC: (0, 3),
    Kind.DECL_TAG: (1, 0),
    Kind.ENUM64: (0, 3),
}
_ALIASES = (
    Kind.TYPEDEF,
    Kind.VOLATILE,
    Kind.CONST,
    Kind.RESTRICT,
    Kind.TYPE_TAG,
)


@dataclass(frozen=True, slots=True)
class Type:
    """One BTF type. `size` is in bytes, or, by kind, the id of the type referred to."""

    id: int
    offset: int  # bytes from the start of the type section
    kind: Kind
    name: str
    flag: bool
    vlen: int
    size: int
    words: tuple[int, ...]

    @property
    def rows(self) -> list[tuple[int, ...]]:
        """The words of each member, enumerator or variable."""
        width = _EXTRA_WORDS[self.kind][1]
        return [self.words[i : i + width] for i in range(0, len(self.words), width)]


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    index: int
    header: int  # file offset of its header
    type: int
    flags: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True, slots=True)
class Symbol:
    name: str
    type: int
    section: int
    value: int  # bytes from the start of the section
    size: int


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode("utf-8", "replace")


class Object:
    """An ELF object in memory; `name` is what errors call it."""

    def __init__(self, data: bytes, name: str = "object") -> None:
        self.data = data
        self.name = name
        if len(data) < 64 or data[:7] != b"\x7fELF\x02\x01\x01":
            raise LayoutError(
                f"{name} is not a 64-bit little-endian ELF object", "rebuild it: make build"
            )
        machine = struct.unpack_from("<H", data, 18)[0]
        if machine != _EM_BPF:
            raise LayoutError(
                f"{name} is not an eBPF object (ELF machine {machine})", "rebuild it: make build"
            )

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        try:
            start = struct.unpack_from("<Q", self.data, 40)[0]
            count, names = struct.unpack_from("<HH", self.data, 60)
            headers = [
                _SECTION_HEADER.unpack_from(self.data, start + i * _SECTION_HEADER.size)
                for i in range(count)
            ]
            return tuple(
                Section(
                    _text(self.data, headers[names][4] + header[0]),
                    i,
                    start + i * _SECTION_HEADER.size,
                    header[1],
                    header[2],
                    header[4],
                    header[5],
                    header[6],
                )
                for i, header in enumerate(headers)
            )
        except (struct.error, IndexError, ValueError) as error:
            raise self._damaged("section table") from error

    def section(self, name: str) -> Section:
        """Return the section so named; raises LayoutError where there is none."""
        for section in self.sections:
            if section.name == name:
                return section
        raise LayoutError(f"{self.name} has no section {name}", "rebuild it: make build")

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        try:
            return tuple(self._symbols())
        except (struct.error, IndexError, ValueError) as error:
            raise self._damaged("symbol table") from error

    def _symbols(self) -> Iterator[Symbol]:
        for table in self.sections:
            if table.type != _SHT_SYMTAB:
                continue
            strings = self.sections[table.link].offset
            for offset in range(table.offset, table.offset + table.size, _SYMBOL.size):
                name, info, _, section, value, size = _SYMBOL.unpack_from(self.data, offset)
                yield Symbol(_text(self.data, strings + name), info & 15, section, value, size)

    def globals(self, section_name: str) -> dict[str, Symbol]:
        """Return the variables of a data section by name, as .BTF lists them.

        Offsets come from the symbol table: the compiler leaves those of the
        DATASEC at 0, for libbpf to fill in.
        """
        index = self.section(section_name).index
        named = {symbol.name: symbol for symbol in self.symbols if symbol.section == index}
        btf = self.btf
        datasec = btf.find(Kind.DATASEC, section_name)
        return {
            (name := btf.types[row[0]].name): named[name]
            for row in datasec.rows
            if btf.types[row[0]].name in named
        }

    @cached_property
    def programs(self) -> dict[str, str]:
        """Program names and the section (kind and hook) each was placed in."""
        runnable = {
            section.index: section.name
            for section in self.sections
            if section.flags & _SHF_EXECINSTR and section.name != ".text"
        }
        return {
            symbol.name: runnable[symbol.section]
            for symbol in self.symbols
            if symbol.type == _STT_FUNC and symbol.section in runnable
        }

    @cached_property
    def helpers(self) -> frozenset[int]:
        """Numbers of the kernel helpers that are called anywhere in the object."""
        found = set()
        for section in self.sections:
            if not section.flags & _SHF_EXECINSTR:
                continue
            end = section.offset + section.size - section.size % 8
            for code, registers, _, value in struct.iter_unpack(
                "<BBhi", self.data[section.offset : end]
            ):
                # A source register other than 0 marks a call of our own or of a kfunc;
                # the second half of a 64-bit load has code 0.
                if code == _CALL and registers >> 4 == 0:
                    found.add(int(value))
        return frozenset(found)

    @cached_property
    def btf(self) -> Btf:
        section = self.section(".BTF")
        return Btf(self.data[section.offset : section.offset + section.size], self.name)

    def _damaged(self, what: str) -> LayoutError:
        return LayoutError(f"{self.name} has a damaged {what}", "rebuild it: make build")


class Btf:
    """The types of one .BTF section, by id; id 0 is void."""

    def __init__(self, data: bytes, name: str = "object") -> None:
        self.data = data
        self.name = name
        try:
            magic, version, _, header, type_off, type_len, str_off, str_len = (
                _BTF_HEADER.unpack_from(data, 0)
            )
            if magic != 0xEB9F or version != 1:
                raise LayoutError(f"{name}: BTF of unknown version", "rebuild it: make build")
            self.type_offset = header + type_off
            self.type_bytes = type_len
            self._strings = data[header + str_off : header + str_off + str_len]
            self.types = tuple(self._read())
        except (struct.error, IndexError, ValueError) as error:
            raise LayoutError(f"{name} has damaged BTF", "rebuild it: make build") from error

    def _read(self) -> Iterator[Type]:
        yield Type(0, 0, Kind.VOID, "void", False, 0, 0, ())
        number, offset = 1, 0
        while offset < self.type_bytes:
            start = self.type_offset + offset
            name, info, size = _BTF_TYPE.unpack_from(self.data, start)
            kind, vlen = Kind(info >> 24 & 31), info & 0xFFFF
            fixed, each = _EXTRA_WORDS.get(kind, (0, 0))
            count = fixed + each * vlen
            words = struct.unpack_from(f"<{count}I", self.data, start + _BTF_TYPE.size)
            yield Type(number, offset, kind, self.string(name), bool(info >> 31), vlen, size, words)
            number += 1
            offset += _BTF_TYPE.size + 4 * count

    def string(self, offset: int) -> str:
        return _text(self._strings, offset)

    def find(self, kind: Kind, name: str) -> Type:
        """Return the first type of that kind and name; raises LayoutError."""
        for candidate in self.types:
            if candidate.kind == kind and candidate.name == name:
                return candidate
        raise LayoutError(
            f"{self.name}: BTF has no {kind.name.lower()} {name}",
            "a type that only a helper call uses needs a variable of it at file scope",
        )

    def resolve(self, number: int) -> Type:
        """Follow typedefs and qualifiers to the type they stand for."""
        found = self.types[number]
        while found.kind in _ALIASES:
            found = self.types[found.size]
        return found


def _map_member(btf: Btf, map_name: str, member: str) -> tuple[Type, Type, int]:
    """Return a map definition's variable, its struct, and the member's place in it."""
    for row in btf.find(Kind.DATASEC, ".maps").rows:
        variable = btf.types[row[0]]
        if variable.name != map_name:
            continue
        definition = btf.resolve(variable.size)
        for i, (name, _, _) in enumerate(definition.rows):
            if btf.string(name) == member:
                return variable, definition, i
        raise LayoutError(f"{btf.name}: map {map_name} declares no {member}")
    raise LayoutError(f"{btf.name} has no map {map_name}", "rebuild it: make build")


def max_entries(obj: Object, map_name: str) -> int:
    """Return what __uint(max_entries, N) says: BTF has it as a pointer to an array of N."""
    btf = obj.btf
    _, definition, place = _map_member(btf, map_name, "max_entries")
    pointer = btf.resolve(definition.rows[place][1])
    return btf.resolve(pointer.size).words[2]


def with_max_entries(obj: Object, sizes: Mapping[str, int]) -> Object:
    """Return a copy whose named maps have other max_entries.

    The definition may share its array type with any other number in the object, and
    its struct with another map, so all three are added anew at the end of the types
    and the variable is pointed at them. The section then grows, and so moves to the
    end of the file; string offsets, type ids and relocations into it stay good.
    Raises LayoutError where a map or its max_entries is not declared.
    """
    if not sizes:
        return obj
    btf = obj.btf
    types = bytearray(btf.data[btf.type_offset : btf.type_offset + btf.type_bytes])
    next_id = len(btf.types)
    for map_name, count in sizes.items():
        variable, definition, place = _map_member(btf, map_name, "max_entries")
        pointer = btf.resolve(definition.rows[place][1])
        element, index, _ = btf.resolve(pointer.size).words
        words = list(definition.words)
        words[place * 3 + 1] = next_id + 1
        types += struct.pack("<6I", 0, Kind.ARRAY << 24, 0, element, index, count)
        types += struct.pack("<3I", 0, Kind.PTR << 24, next_id)
        types += struct.pack(
            f"<3I{len(words)}I",
            0,
            int(definition.flag) << 31 | Kind.STRUCT << 24 | definition.vlen,
            definition.size,
            *words,
        )
        struct.pack_into("<I", types, variable.offset + 8, next_id + 2)
        next_id += 3
    return _with_types(obj, bytes(types))


def _with_types(obj: Object, types: bytes) -> Object:
    old = obj.btf.data
    magic, version, flags, header, _, _, str_off, str_len = _BTF_HEADER.unpack_from(old, 0)
    strings = old[header + str_off : header + str_off + str_len]
    new = (
        _BTF_HEADER.pack(magic, version, flags, header, 0, len(types), len(types), str_len)
        + old[_BTF_HEADER.size : header]
        + types
        + strings
    )
    section = obj.section(".BTF")
    data = bytearray(obj.data)
    data += bytes(-len(data) % 8)
    struct.pack_into("<QQ", data, section.header + 24, len(data), len(new))
    return Object(bytes(data + new), obj.name)
