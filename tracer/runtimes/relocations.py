"""Pointers in a file's data, which the dynamic linker puts there.

Source: System V ABI, AMD64 supplement, section "Relocation".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tracer.runtimes.elf import Elf

_RELA = np.dtype([("place", "<u8"), ("info", "<u8"), ("addend", "<i8")])
_RELATIVE = 8  # R_X86_64_RELATIVE
_EXECUTABLE = 1  # PF_X
_METHOD = 32  # bytes of a PyMethodDef
_MOST_METHODS = 64


class Pointers:
    """Reads a file's pointers, as addresses of its own. Raises ElfError."""

    def __init__(self, elf: Elf) -> None:
        self._elf = elf
        self.relocated = _relocations(elf)

    def at(self, address: int) -> int:
        """Return the pointer at an address, 0 for none, as one to a symbol of another file."""
        found = self.relocated["addend"][self.relocated["place"] == address]
        # Packed relocations lie there already, as do those of files that aren't moved.
        return (
            int(found[0]) if len(found) else int(*struct.unpack("<Q", self._elf.read(address, 8)))
        )

    def methods(self, table: int) -> Iterator[tuple[bytes, int]]:
        """Yield name and function of each PyMethodDef of a table."""
        for number in range(_MOST_METHODS):
            name = self.at(table + _METHOD * number)
            if not name:
                return
            yield self.text(name), self.at(table + _METHOD * number + 8)

    def text(self, address: int) -> bytes:
        """Return the string at an address, 32 bytes of it at most; none where nothing is."""
        if self._elf.file_offset(address) is None:
            return b""
        return self._elf.read(address, 32).partition(b"\0")[0]

    def is_code(self, address: int) -> bool:
        """Tell whether an address is one of code."""
        return any(
            segment.flags & _EXECUTABLE and 0 <= address - segment.address < segment.size
            for segment in self._elf.segments
        )


def _relocations(elf: Elf) -> NDArray[np.void]:
    """Return where the file is told to put addresses of its own."""
    section = elf.section(".rela.dyn")
    raw = elf.content(section) if section is not None else b""
    rows = np.frombuffer(raw[: len(raw) // _RELA.itemsize * _RELA.itemsize], _RELA)
    chosen: NDArray[np.void] = rows[(rows["info"] & 0xFFFFFFFF) == _RELATIVE]
    return chosen
