"""ELF files, as far as symbols and places in them need it: 64 bits, little endian.

Pure: works on bytes or a map of a file. Broken files raise ElfError, nothing else.
Source: https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Buffer = bytes | mmap.mmap

SHT_SYMTAB = 2
SHT_NOTE = 7
SHT_NOBITS = 8
SHT_DYNSYM = 11
PT_LOAD = 1
PT_NOTE = 4
PT_TLS = 7
ET_DYN = 3
EM_X86_64 = 62
EM_AARCH64 = 183

_SHF_COMPRESSED = 0x800
_NT_GNU_BUILD_ID = 3
_MAX_SECTION_BYTES = 1 << 30  # of a compressed section once inflated


class ElfError(ValueError):
    """Not an ELF file this can read, or one cut short."""


@dataclass(frozen=True, slots=True)
class Section:
    """A section header; `address` is 0 for what is not mapped."""

    name: str
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header: `size` bytes of the file at `offset` go to `address`."""

    kind: int
    flags: int
    offset: int
    address: int
    size: int
    memory_size: int
    align: int


@dataclass(frozen=True, slots=True)
class Symbol:
    """A defined symbol: its virtual address and size in bytes."""

    value: int
    size: int
    section: int


class Elf:
    """Headers read once; sections and symbols when asked for."""

    def __init__(self, data: Buffer) -> None:
        """Read the headers. Raises ElfError."""
        self.data = data
        if len(data) < 64 or data[:4] != b"\x7fELF" or data[4] != 2 or data[5] != 1:
            raise ElfError("not a 64-bit little-endian ELF file")
        fields = struct.unpack_from("<HHIQQQIHHHHHH", data, 16)
        self.kind: int = fields[0]
        self.machine: int = fields[1]
        program_offset, section_offset = fields[4], fields[5]
        program_size, program_count = fields[8], fields[9]
        section_size, section_count, names = fields[10], fields[11], fields[12]
        try:
            self.segments = tuple(
                self._segment(program_offset + i * program_size) for i in range(program_count)
            )
            raw = [
                struct.unpack_from("<IIQQQQIIQQ", data, section_offset + i * section_size)
                for i in range(section_count if section_offset else 0)
            ]
            texts = self._take(raw[names][4], raw[names][5]) if names < len(raw) else b""
        except (struct.error, OverflowError):  # past the end, or past any file's end
            raise ElfError("headers cut short") from None
        self.sections = tuple(
            Section(_text(texts, row[0]), row[1], row[2], row[3], row[4], row[5], row[6])
            for row in raw
        )

    @property
    def is_pie(self) -> bool:
        """Whether addresses are relative to where the file is loaded."""
        return self.kind == ET_DYN

    def section(self, name: str) -> Section | None:
        """Return the first section of that name."""
        return next((s for s in self.sections if s.name == name), None)

    def content(self, section: Section) -> bytes:
        """Return a section's bytes, inflated where it is compressed (zlib). Raises ElfError."""
        if section.kind == SHT_NOBITS:
            return b""
        raw = self._take(section.offset, section.size)
        if section.flags & _SHF_COMPRESSED:
            if len(raw) < 24 or struct.unpack_from("<I", raw)[0] != 1:
                raise ElfError(f"{section.name}: compressed in an unknown way")
            return self._inflated(raw[24:], struct.unpack_from("<Q", raw, 8)[0], section.name)
        if section.name.startswith(".zdebug_") and raw[:4] == b"ZLIB":
            return self._inflated(raw[12:], int.from_bytes(raw[4:12], "big"), section.name)
        return raw

    def symbols(self, names: Iterable[str]) -> dict[str, Symbol]:
        """Look names up in .symtab, then .dynsym; those not defined are left out."""
        wanted = {name.encode(): name for name in names}
        found: dict[str, Symbol] = {}
        for kind in (SHT_SYMTAB, SHT_DYNSYM):
            for section in self.sections:
                if section.kind == kind and len(found) < len(wanted):
                    self._search(section, wanted, found)
        return found

    def file_offset(self, address: int) -> int | None:
        """Return where in the file the byte of a virtual address lies; None: nowhere."""
        for segment in self.segments:
            if segment.kind == PT_LOAD and 0 <= address - segment.address < segment.size:
                return address - segment.address + segment.offset
        return None

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes at a virtual address, from the file. Raises ElfError."""
        offset = self.file_offset(address)
        if offset is None:
            raise ElfError(f"nothing in the file is at {address:#x}")
        return self._take(offset, size)

    def base(self, mapped_address: int, mapped_offset: int) -> int:
        """Return what to add to a virtual address of the file in a process that maps it.

        mapped_address, mapped_offset: one line of /proc/PID/maps. 0 for fixed addresses.
        Raises ElfError where no segment has that offset.
        """
        for segment in self.segments:
            page = segment.offset & ~0xFFF
            if segment.kind == PT_LOAD and page <= mapped_offset < segment.offset + segment.size:
                return mapped_address - mapped_offset - (segment.address - segment.offset)
        raise ElfError(f"no segment has offset {mapped_offset:#x}")

    def build_id(self) -> str:
        """Return the GNU build id in hex, "" where there is none."""
        for segment in self.segments:
            if segment.kind == PT_NOTE:
                for owner, kind, value in _notes(self._take(segment.offset, segment.size)):
                    if owner == b"GNU\0" and kind == _NT_GNU_BUILD_ID:
                        return value.hex()
        return ""

    def _segment(self, offset: int) -> Segment:
        row = struct.unpack_from("<IIQQQQQQ", self.data, offset)
        return Segment(row[0], row[1], row[2], row[3], row[5], row[6], row[7])

    def _take(self, offset: int, size: int) -> bytes:
        if offset + size > len(self.data):
            raise ElfError("cut short")
        return bytes(self.data[offset : offset + size])

    def _inflated(self, raw: bytes, size: int, name: str) -> bytes:
        if size > _MAX_SECTION_BYTES:
            raise ElfError(f"{name}: {size} bytes are too many")
        try:
            return zlib.decompressobj().decompress(raw, size)
        except zlib.error:
            raise ElfError(f"{name}: broken compression") from None

    def _search(self, section: Section, wanted: dict[bytes, str], found: dict[str, Symbol]) -> None:
        """Find names in a string table first, and only then the symbols that use them."""
        if section.link >= len(self.sections):
            return
        texts = self.content(self.sections[section.link])
        places: dict[int, str] = {}
        for raw, name in wanted.items():
            if name in found:
                continue
            # A longer name may end in this one: its tail is then shared, so every hit counts.
            at = texts.find(raw + b"\0")
            while at >= 0:
                places[at] = name
                at = texts.find(raw + b"\0", at + 1)
        if not places:
            return
        for name_at, _info, _other, index, value, size in struct.iter_unpack(
            "<IBBHQQ", self._whole(section, 24)
        ):
            if name_at in places and index != 0:
                found.setdefault(places[name_at], Symbol(value, size, index))

    def _whole(self, section: Section, entry: int) -> bytes:
        raw = self.content(section)
        return raw[: len(raw) // entry * entry]


def _text(table: bytes, at: int) -> str:
    end = table.find(b"\0", at)
    return table[at : end if end >= 0 else len(table)].decode("utf-8", "replace")


def _notes(raw: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + 12 <= len(raw):
        name_size, value_size, kind = struct.unpack_from("<III", raw, at)
        name_end = at + 12 + name_size
        value = at + 12 + (name_size + 3 & ~3)
        yield raw[at + 12 : name_end], kind, raw[value : value + value_size]
        at = value + (value_size + 3 & ~3)
