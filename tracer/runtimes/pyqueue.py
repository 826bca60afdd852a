"""queue.SimpleQueue of CPython: where in a file its put() and get() are, stripped or not.

A pool of threads (concurrent.futures) hands its work over through one. Its methods are C
functions that nothing exports, so without symbols they are found as the interpreter itself
finds them: in the table of methods, an array of PyMethodDef {name, function, flags, doc}.
Source: Modules/_queuemodule.c and Modules/clinic/_queuemodule.c.h of 3.8 to 3.14.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tracer.runtimes.elf import EM_X86_64, Elf
from tracer.runtimes.relocations import Pointers

# Files that hold it where the interpreter's own doesn't.
MODULE = re.compile(r"_queue\..*so$")
_PREFIX = "_queue_SimpleQueue_"
PUT = f"{_PREFIX}put"
GOT = (f"{_PREFIX}get", f"{_PREFIX}get_nowait")

# How a method is called: METH_FASTCALL, arguments as an array, the second one in C; any way.
_FASTCALL, _ANY = 0x80, 0x28F


@dataclass(frozen=True, slots=True)
class Queue:
    """Offsets in a file: of put(), and of what returns an item."""

    put: int
    got: tuple[int, ...]


def by_symbols(elf: Elf) -> Queue | None:
    """Find the functions by their names. Raises ElfError."""
    found = elf.symbols((PUT, *GOT))
    return _queue(elf, {name: symbol.value for name, symbol in found.items()})


def by_methods(elf: Elf) -> Queue | None:
    """Find the functions of a module, by the table of its one type. Raises ElfError."""
    if elf.machine != EM_X86_64:
        return None
    found: dict[str, int] = {}
    pointers = Pointers(elf)
    for name in (PUT, *GOT):
        flag = _FASTCALL if name == PUT else _ANY
        functions = set(_methods(elf, pointers, name.removeprefix(_PREFIX).encode(), flag))
        if len(functions) == 1:  # else which one is meant?
            found[name] = functions.pop()
    return _queue(elf, found)


def _queue(elf: Elf, addresses: dict[str, int]) -> Queue | None:
    offsets = {name: elf.file_offset(address) for name, address in addresses.items()}
    put = offsets.get(PUT)
    got = tuple(at for name in GOT if (at := offsets.get(name)) is not None)
    # Without one of the two that get, an item might be taken unseen.
    return Queue(put, got) if put is not None and len(got) == len(GOT) else None


def _methods(elf: Elf, pointers: Pointers, name: bytes, flag: int) -> Iterator[int]:
    """Yield the addresses of the functions of methods of that name, called in one of the ways."""
    texts = elf.section(".rodata")
    if texts is None:
        return
    names = [texts.address + at for at, _ in elf.find(texts, [name + b"\0"])]
    relocated = pointers.relocated
    for section in (elf.section(".data.rel.ro"), elf.section(".data")):
        if section is None:
            continue
        words = np.frombuffer(elf.content(section)[: section.size // 8 * 8], "<u8").copy()
        places = relocated["place"] - np.uint64(section.address)
        inside = places < section.size // 8 * 8
        words[places[inside] // 8] = relocated["addend"][inside]
        for at in np.flatnonzero(np.isin(words[:-2], names)).tolist():
            if int(words[at + 2]) & flag and pointers.is_code(int(words[at + 1])):
                yield int(words[at + 1])
