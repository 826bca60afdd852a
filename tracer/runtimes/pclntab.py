"""Go's table of functions, which stays in stripped programs: names to code.

Pure: bytes in. Layouts of Go 1.18/1.19 and 1.20 on. The stack-depth column tells where
a function returns without a disassembler: the depth is 0 again exactly at each `ret`.
Source: https://go.dev/s/go12symtab, src/internal/abi/symtab.go and
src/runtime/symtab.go (pcHeader, moduledata, _func, step) of each Go version.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tracer.runtimes.elf import EM_X86_64, SHT_NOBITS, Elf, ElfError, Section

_MAGICS = (0xFFFFFFF0, 0xFFFFFFF1)  # Go 1.18, Go 1.20
_SECTIONS = (".gopclntab", ".data.rel.ro.gopclntab", ".data.rel.ro", ".rodata")
_MODULE_TEXT = 22 * 8  # of moduledata: `text`
_RELATIVE = 8  # R_X86_64_RELATIVE

_RET = 0xC3
_NOP = 0x90
_PUSH_BP = 0x55
# The check for stack space that begins a function: cmp SP or R12 with g.stackguard0.
_CHECKS = (b"\x49\x3b\x66\x10", b"\x4d\x3b\x66\x10")
_LOOK = 32  # bytes of a prologue


@dataclass(frozen=True, slots=True)
class Function:
    """Places in a function, as offsets into the file (what a uprobe takes).

    entry: its first instruction. cheap: an instruction of the prologue that the kernel
    emulates (push, jump) instead of single-stepping it, which matters in virtual machines
    (0.9 us a hit, not 14); arguments are still in their registers there. It is the entry
    itself where there is none. returns: every `ret`, for want of uretprobes: those break
    when Go moves a stack.
    """

    entry: int
    cheap: int
    returns: tuple[int, ...]


class FunctionTable:
    """The table of one executable."""

    def __init__(self, elf: Elf) -> None:
        """Find the table. Raises ElfError where there is none this can read."""
        self._elf = elf
        self._table, address = self._find()
        _magic, _quantum, pointer = struct.unpack_from("<IxxBB", self._table)
        if pointer != 8:
            raise ElfError("Go function table of another word size")
        self._count, _files, text, self._names, end, _filetab, self._pctab, self._funcs = (
            struct.unpack_from("<8Q", self._table, 8)
        )
        self._names_end = end
        self._text = text or self._text_start(address)

    def functions(self, names: Iterable[str]) -> dict[str, Function]:
        """Look functions up by full name; those not linked in are left out."""
        places = self._name_offsets(names)
        if not places:
            return {}
        table = np.frombuffer(self._table, np.uint8)
        rows = table[self._funcs : self._funcs + 8 * self._count].view("<u4").reshape(-1, 2)
        # _func begins with entryoff u32, nameoff i32.
        at = rows[:, 1].astype(np.int64) + self._funcs + 4
        if len(at) == 0 or int(at.max()) + 4 > len(table):
            raise ElfError("Go function table cut short")
        name_offsets = sum(
            (table[at + byte].astype(np.uint32) << (8 * byte) for byte in range(4)),
            np.zeros(len(at), np.uint32),
        )
        result = {}
        for offset, name in places.items():
            for index in np.flatnonzero(name_offsets == offset)[:1]:
                row = int(rows[index, 1]) + self._funcs
                function = self._function(self._text + int(rows[index, 0]), row)
                if function is not None:
                    result[name] = function
        return result

    def address(self, name: str) -> int | None:
        """Return the virtual address of a function."""
        found = self.functions((name,)).get(name)
        if found is None:
            return None
        for segment in self._elf.segments:
            if segment.kind == 1 and 0 <= found.entry - segment.offset < segment.size:
                return found.entry - segment.offset + segment.address
        return None

    def _find(self) -> tuple[bytes, int]:
        for name in _SECTIONS:
            section = self._elf.section(name)
            if section is None or section.kind == SHT_NOBITS:
                continue
            content = self._elf.content(section)
            for magic in _MAGICS:
                for quantum in (1, 4):
                    head = struct.pack("<IHBB", magic, 0, quantum, 8)
                    at = content.find(head)
                    if at >= 0:
                        return content[at:], section.address + at
        raise ElfError("no Go function table of Go 1.18 or later")

    def _text_start(self, table_address: int) -> int:
        """Go 1.26 leaves the header's text start empty: moduledata has it."""
        module = self._elf.section(".go.module")
        if module is not None:
            content = self._elf.content(module)
            if len(content) >= _MODULE_TEXT + 8:
                (text,) = struct.unpack_from("<Q", content, _MODULE_TEXT)
                if text := text or self._relocated(module.address + _MODULE_TEXT):
                    return int(text)
        symbol = self._elf.symbols(("runtime.text",)).get("runtime.text")
        if symbol is not None:
            return symbol.value
        section = self._elf.section(".text")
        if section is None:
            raise ElfError(f"Go function table at {table_address:#x} without code")
        return section.address

    def _relocated(self, address: int) -> int:
        """Return what the loader will write to an address, by .rela.dyn; 0 for nothing."""
        section: Section | None = self._elf.section(".rela.dyn") or self._elf.section(".rela")
        if section is None:
            return 0
        raw = self._elf.content(section)
        rows = np.frombuffer(raw[: len(raw) // 24 * 24], "<u8").reshape(-1, 3)
        hits = np.flatnonzero((rows[:, 0] == address) & (rows[:, 1] == _RELATIVE))
        return int(rows[hits[0], 2]) if len(hits) else 0

    def _name_offsets(self, names: Iterable[str]) -> dict[int, str]:
        table = self._table[self._names : self._names_end]
        result = {}
        for name in names:
            at = table.find(b"\0" + name.encode() + b"\0")
            if at >= 0:
                result[at + 1] = name
        return result

    def _function(self, address: int, row: int) -> Function | None:
        entry = self._elf.file_offset(address)
        if entry is None:
            return None
        if self._elf.machine != EM_X86_64:
            return Function(entry, entry, ())
        (depths,) = struct.unpack_from("<I", self._table, row + 16)
        shallow = self._shallow(self._pctab + depths)
        returns = tuple(
            at for start, end in shallow[1:] if (at := self._return(entry + start, entry + end))
        )
        return Function(entry, self._cheap(entry, shallow[0][1] if shallow else 0), returns)

    def _return(self, at: int, end: int) -> int:
        """Return the place of `ret` where the stack has just been given back, 0: it isn't one.

        A no-operation may stand before it (the compiler's inlining marks).
        """
        while at < end and self._elf.data[at] == _NOP:
            at += 1
        return at if at < end and self._elf.data[at] == _RET else 0

    def _cheap(self, entry: int, shallow: int) -> int:
        """Return the place of `push bp`, else of the jump to more stack, else the entry."""
        data = self._elf.data
        if 0 < shallow <= _LOOK and data[entry + shallow - 1] == _PUSH_BP:
            return entry + shallow - 1
        prologue = bytes(data[entry : entry + _LOOK])
        for check in _CHECKS:
            at = prologue.find(check)
            # jbe, short or near.
            if at >= 0 and (
                prologue[at + 4 : at + 5] == b"\x76" or prologue[at + 4 : at + 6] == b"\x0f\x86"
            ):
                return entry + at + 4
        return entry

    def _shallow(self, at: int) -> list[tuple[int, int]]:
        """Return the ranges of code, from the entry, where no stack is in use."""
        depth, pc, first = -1, 0, True
        ranges: list[tuple[int, int]] = []
        while True:
            delta, at = self._varint(at)
            if delta == 0 and not first:
                return ranges
            first = False
            depth += delta >> 1 ^ -(delta & 1)
            length, at = self._varint(at)
            if depth == 0:
                ranges.append((pc, pc + length))
            pc += length

    def _varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            if at >= len(self._table) or shift > 63:
                raise ElfError("Go function table cut short")
            byte = self._table[at]
            value |= (byte & 0x7F) << shift
            at += 1
            if byte < 0x80:
                return value, at
            shift += 7
