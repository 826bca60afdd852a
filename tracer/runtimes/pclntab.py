"""Go's table of functions, which stays in stripped programs: names to code.

Pure: bytes in, by pieces. Layouts of Go 1.18/1.19 and 1.20 on. The stack-depth column tells where
a function returns without a disassembler: the depth is 0 again exactly at each `ret`.
Source: https://go.dev/s/go12symtab, src/internal/abi/symtab.go and
src/runtime/symtab.go (pcHeader, moduledata, _func, step) of each Go version.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tracer.runtimes.elf import EM_X86_64, SHT_NOBITS, Elf, ElfError, Section

IntArray = npt.NDArray[np.int64]

_MAGICS = (0xFFFFFFF0, 0xFFFFFFF1)  # Go 1.18, Go 1.20
_SECTIONS = (".gopclntab", ".data.rel.ro.gopclntab", ".data.rel.ro", ".rodata")
_MODULE_TEXT = 22 * 8  # of moduledata: `text`
_RELATIVE = 8  # R_X86_64_RELATIVE

_RET = b"\xc3"
_NOP = b"\x90"
_PUSH_BP = b"\x55"
# The check for stack space that begins a function: cmp SP or R12 with g.stackguard0.
_CHECKS = (b"\x49\x3b\x66\x10", b"\x4d\x3b\x66\x10")
_LOOK = 32  # bytes of a prologue
_MOST_NOPS = 16  # before a `ret`
_DEPTHS = 1 << 16  # bytes of a function's column of stack depths, at most
_ROWS = 1 << 13  # functions looked at at a time
_MOST_ROWS = 1 << 22  # bytes of what the table says of them


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
        self._table = self._find()
        head = self._bytes(0, 72)
        if head[7] != 8:
            raise ElfError("Go function table of another word size")
        self._count, _files, text, self._names, end, _filetab, self._pctab, self._funcs = (
            struct.unpack_from("<8Q", head, 8)
        )
        self._names_end = end
        self._text = text or self._text_start()

    def functions(self, names: Iterable[str]) -> dict[str, Function]:
        """Look functions up by full name; those not linked in are left out."""
        places = self._name_offsets(names)
        if not places:
            return {}
        result = {}
        for index, offset in self._rows(np.array(list(places), np.int64)):
            (name_offset,) = struct.unpack("<i", self._bytes(self._funcs + offset + 4, 4))
            name = places[name_offset]
            if name not in result:
                (start,) = struct.unpack("<I", self._bytes(self._funcs + 8 * index, 4))
                function = self._function(self._text + start, self._funcs + offset)
                if function is not None:
                    result[name] = function
        return result

    def _rows(self, sought: IntArray) -> Iterator[tuple[int, int]]:
        """Yield (number, offset of its _func) of the functions whose names are sought."""
        for first in range(0, self._count, _ROWS):
            count = min(_ROWS, self._count - first)
            raw = self._bytes(self._funcs + 8 * first, 8 * count)
            offsets = np.frombuffer(raw, "<u4")[1::2].astype(np.int64)
            # Offsets ascend, so what they point at is one piece of the table.
            low, high = int(offsets.min()), int(offsets.max())
            if high - low > _MOST_ROWS:
                raise ElfError("Go function table out of order")
            funcs = np.frombuffer(self._bytes(self._funcs + low, high - low + 8), np.uint8)
            # _func begins with entryoff u32, nameoff i32; of no certain alignment.
            at = offsets - low + 4
            names = sum(
                (funcs[at + byte].astype(np.int64) << (8 * byte) for byte in range(4)),
                np.zeros(count, np.int64),
            )
            for index in np.flatnonzero(np.isin(names, sought)):
                yield first + int(index), int(offsets[index])

    def _find(self) -> Section:
        """Return the table as a section of its own: to the end of that which holds it."""
        heads = [
            struct.pack("<IHBB", magic, 0, quantum, 8) for magic in _MAGICS for quantum in (1, 4)
        ]
        for name in _SECTIONS:
            section = self._elf.section(name)
            if section is None or section.kind == SHT_NOBITS:
                continue
            for at, _head in self._elf.find(section, heads):
                return section.part(at, section.size)
        raise ElfError("no Go function table of Go 1.18 or later")

    def _bytes(self, at: int, size: int) -> bytes:
        if at + size > self._table.size:
            raise ElfError("Go function table cut short")
        return self._elf.take(self._table.offset + at, size)

    def _text_start(self) -> int:
        """Go 1.26 leaves the header's text start empty: moduledata has it."""
        module = self._elf.section(".go.module")
        if module is not None:
            if module.size >= _MODULE_TEXT + 8:
                (text,) = struct.unpack("<Q", self._elf.take(module.offset + _MODULE_TEXT, 8))
                if text := text or self._relocated(module.address + _MODULE_TEXT):
                    return int(text)
        symbol = self._elf.symbols(("runtime.text",)).get("runtime.text")
        if symbol is not None:
            return symbol.value
        section = self._elf.section(".text")
        if section is None:
            raise ElfError("Go function table without code")
        return section.address

    def _relocated(self, address: int) -> int:
        """Return what the loader will write to an address, by .rela.dyn; 0 for nothing."""
        section: Section | None = self._elf.section(".rela.dyn") or self._elf.section(".rela")
        if section is None:
            return 0
        for _start, piece in self._elf.pieces(section):
            rows = np.frombuffer(piece[: len(piece) // 24 * 24], "<u8").reshape(-1, 3)
            hits = np.flatnonzero((rows[:, 0] == address) & (rows[:, 1] == _RELATIVE))
            if len(hits):
                return int(rows[hits[0], 2])
        return 0

    def _name_offsets(self, names: Iterable[str]) -> dict[int, str]:
        needles = {b"\0" + name.encode() + b"\0": name for name in names}
        table = self._table.part(self._names, self._names_end - self._names)
        result: dict[int, str] = {}
        for at, needle in self._elf.find(table, tuple(needles)):
            if needles[needle] not in result.values():
                result[at + 1] = needles[needle]
        return result

    def _function(self, address: int, row: int) -> Function | None:
        entry = self._elf.file_offset(address)
        if entry is None:
            return None
        if self._elf.machine != EM_X86_64:
            return Function(entry, entry, ())
        (depths,) = struct.unpack("<I", self._bytes(row + 16, 4))
        shallow = self._shallow(self._pctab + depths)
        returns = tuple(
            at for start, end in shallow[1:] if (at := self._return(entry + start, entry + end))
        )
        return Function(entry, self._cheap(entry, shallow[0][1] if shallow else 0), returns)

    def _return(self, at: int, end: int) -> int:
        """Return the place of `ret` where the stack has just been given back, 0: it isn't one.

        A no-operation may stand before it (the compiler's inlining marks).
        """
        code = self._elf.take(at, min(end - at, _MOST_NOPS))
        nops = len(code) - len(code.lstrip(_NOP))
        return at + nops if code[nops : nops + 1] == _RET else 0

    def _cheap(self, entry: int, shallow: int) -> int:
        """Return the place of `push bp`, else of the jump to more stack, else the entry."""
        prologue = self._elf.take(entry, _LOOK)
        if 0 < shallow <= _LOOK and prologue[shallow - 1 : shallow] == _PUSH_BP:
            return entry + shallow - 1
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
        column = self._bytes(at, min(_DEPTHS, max(0, self._table.size - at)))
        depth, pc, at = -1, 0, 0
        ranges: list[tuple[int, int]] = []
        while True:
            delta, after = _varint(column, at)
            if delta == 0 and at:
                return ranges
            depth += delta >> 1 ^ -(delta & 1)
            length, at = _varint(column, after)
            if depth == 0:
                ranges.append((pc, pc + length))
            pc += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ElfError("Go function table cut short")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
