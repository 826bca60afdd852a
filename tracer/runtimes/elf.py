"""ELF files, as far as symbols and places in them need it: 64 bits, little endian.

Pure: works on bytes, or on anything that gives slices of a file. Whatever the file's size,
no more than some MiB of it are held at a time: large sections are gone through in pieces.
Broken files raise ElfError, nothing else.
Source: https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

SHT_SYMTAB = 2
SHT_NOTE = 7
SHT_NOBITS = 8
SHT_DYNSYM = 11
DT_NEEDED = 1
PT_LOAD = 1
PT_NOTE = 4
PT_TLS = 7
ET_DYN = 3
EM_X86_64 = 62
EM_AARCH64 = 183

_SHF_COMPRESSED = 0x800
_NT_GNU_BUILD_ID = 3

PIECE = 24 << 15  # bytes of a section held at a time: 768 KiB, whole symbols and relocations
_COMPRESSED = 1 << 16  # bytes inflated at a time
_MOST = 16 << 20  # bytes of what is taken as a whole
_MOST_SEARCHED = 256 << 20  # bytes of a string table that is searched for symbols

_SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)


class ElfError(ValueError):
    """Not an ELF file this can read, or one cut short."""


class Buffer(Protocol):
    """What a file's bytes come from: bytes, or tracer.runtimes.proc.File."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


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

    def part(self, start: int, size: int) -> Section:
        """Return `size` bytes of it as a section of their own; it must not be compressed."""
        start = min(start, self.size)
        return replace(self, offset=self.offset + start, size=max(0, min(size, self.size - start)))


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
        self._length = len(data)
        if self._length < 64 or data[:6] != b"\x7fELF\x02\x01":
            raise ElfError("not a 64-bit little-endian ELF file")
        fields = struct.unpack_from("<HHIQQQIHHHHHH", data[16:64])
        self.kind: int = fields[0]
        self.machine: int = fields[1]
        programs = self._rows("<IIQQQQQQ", fields[4], fields[8], fields[9])
        self.segments = tuple(
            Segment(row[0], row[1], row[2], row[3], row[5], row[6], row[7]) for row in programs
        )
        raw = self._rows("<IIQQQQIIQQ", fields[5], fields[10], fields[11] if fields[5] else 0)
        names = fields[12]
        texts = self.take(raw[names][4], raw[names][5]) if names < len(raw) else b""
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

    def length(self, section: Section) -> int:
        """Return how many bytes a section has once inflated. Raises ElfError."""
        return 0 if section.kind == SHT_NOBITS else self._compression(section)[1]

    def content(self, section: Section) -> bytes:
        """Return a section's bytes, inflated. Raises ElfError, also above 16 MiB."""
        if self.length(section) > _MOST:
            raise ElfError(f"{section.name}: {self.length(section)} bytes are too many")
        return b"".join(piece for _start, piece in self.pieces(section))

    def pieces(self, section: Section, more: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield (where it starts in the section, bytes) of PIECE bytes each, inflated.

        more: how many bytes of the following piece each piece has as well. Raises ElfError.
        """
        if section.kind == SHT_NOBITS:
            return
        head, length = self._compression(section)
        inflated = self._inflated(section, head) if head else None
        start, held = 0, b""
        while start < length:
            size = min(PIECE + more, length - start)
            if inflated is None:
                held = self.take(section.offset + start, size)
            while inflated is not None and len(held) < size:
                fresh = next(inflated, b"")
                if not fresh:
                    raise ElfError(f"{section.name}: cut short")
                held += fresh
            yield start, held[:size]
            held = held[PIECE:]
            start += PIECE

    def find(self, section: Section, needles: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
        """Yield (where it starts in the section, needle) of every place of every needle.

        In ascending order for each needle. Raises ElfError.
        """
        more = max(map(len, needles), default=0)
        for start, piece in self.pieces(section, more):
            for needle in needles:
                at = piece.find(needle)
                while 0 <= at < PIECE:
                    yield start + at, needle
                    at = piece.find(needle, at + 1)

    def symbols(self, names: Iterable[str]) -> dict[str, Symbol]:
        """Look names up in .symtab, then .dynsym; those not defined are left out.

        String tables of more than 256 MiB are not searched. Raises ElfError.
        """
        wanted = {name.encode(): name for name in names}
        found: dict[str, Symbol] = {}
        for kind in (SHT_SYMTAB, SHT_DYNSYM):
            for section in self.sections:
                if section.kind == kind and len(found) < len(wanted):
                    self._search(section, wanted, found)
        return found

    def needed(self) -> list[str]:
        """Return the names of the libraries it asks the dynamic linker for. Raises ElfError."""
        section = self.section(".dynamic")
        if section is None or section.link >= len(self.sections):
            return []
        words = self.content(section)
        entries = struct.iter_unpack("<QQ", words[: len(words) // 16 * 16])
        names = self.content(self.sections[section.link])
        return [_text(names, at) for tag, at in entries if tag == DT_NEEDED and at < len(names)]

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
        return self.take(offset, size)

    def take(self, offset: int, size: int) -> bytes:
        """Return `size` bytes at a place in the file, at most 16 MiB. Raises ElfError."""
        if size > _MOST:
            raise ElfError(f"{size} bytes at {offset:#x} are too many")
        raw = self.data[offset : offset + size] if offset + size <= self._length else b""
        if len(raw) != size:
            raise ElfError("cut short")
        return raw

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
                for owner, kind, value in _notes(self.take(segment.offset, segment.size)):
                    if owner == b"GNU\0" and kind == _NT_GNU_BUILD_ID:
                        return value.hex()
        return ""

    def _rows(self, layout: str, offset: int, step: int, count: int) -> list[tuple[int, ...]]:
        size = struct.calcsize(layout)
        if count and step < size:
            raise ElfError("headers too small")
        raw = self.take(offset, step * count)
        return [struct.unpack_from(layout, raw, step * index) for index in range(count)]

    def _compression(self, section: Section) -> tuple[int, int]:
        """Return how many bytes stand before zlib's, 0: not compressed, and the whole length."""
        if section.flags & _SHF_COMPRESSED:
            raw = self.take(section.offset, 24)
            if struct.unpack_from("<I", raw)[0] != 1:
                raise ElfError(f"{section.name}: compressed in an unknown way")
            return 24, struct.unpack_from("<Q", raw, 8)[0]
        if section.name.startswith(".zdebug_"):
            raw = self.take(section.offset, 12)
            if raw[:4] == b"ZLIB":
                return 12, int.from_bytes(raw[4:], "big")
        return 0, section.size

    def _inflated(self, section: Section, head: int) -> Iterator[bytes]:
        stream = zlib.decompressobj()
        try:
            for at in range(head, section.size, _COMPRESSED):
                raw = self.take(section.offset + at, min(_COMPRESSED, section.size - at))
                while raw:
                    if fresh := stream.decompress(raw, PIECE):
                        yield fresh
                    raw = stream.unconsumed_tail
            yield stream.flush()
        except zlib.error:
            raise ElfError(f"{section.name}: broken compression") from None

    def _search(self, section: Section, wanted: dict[bytes, str], found: dict[str, Symbol]) -> None:
        """Find names in a string table first, and only then the symbols that use them."""
        if section.link >= len(self.sections):
            return
        texts = self.sections[section.link]
        needles = {raw + b"\0": name for raw, name in wanted.items() if name not in found}
        if self.length(texts) > _MOST_SEARCHED:
            return
        # A longer name may end in this one: its tail is then shared, so every hit counts.
        places = {at: needles[needle] for at, needle in self.find(texts, tuple(needles))}
        if not places:
            return
        sought = np.array(list(places), np.uint32)
        for _start, piece in self.pieces(section):
            rows = np.frombuffer(piece[: len(piece) // 24 * 24], _SYMBOL)
            for row in rows[np.isin(rows["name"], sought) & (rows["section"] != 0)]:
                symbol = Symbol(int(row["value"]), int(row["size"]), int(row["section"]))
                found.setdefault(places[int(row["name"])], symbol)


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
