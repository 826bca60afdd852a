"""HotSpot, the JVM of OpenJDK: from a thread to the virtual thread that it carries.

libjvm.so describes its own structures for debuggers (the serviceability agent): it exports
gHotSpotVMStructs, a table of VMStructEntry whose offsets it fills in as it is loaded. From
JDK 24 on a JavaThread has the number of the Java thread that it runs now, which is the
virtual one while it carries one, for locks are owned by those (JEP 491).
Source: src/hotspot/share/runtime/vmStructs.hpp, javaThread.hpp, threadSMR.hpp of JDK 24 and 25.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tracer.runtimes.elf import EM_X86_64, Elf
from tracer.runtimes.proc import Memory

STRUCTS = "gHotSpotVMStructs"
# typeName, fieldName, typeString, isStatic, offset, address
_ENTRY = struct.Struct("<QQQi4xQQ")
_ENTRIES = 4096  # at most; JDK 25 has 585
_AT_ONCE = 64
_NAME = 48  # bytes of a name that are read
# What is needed: of which type, and which field.
_LIST = "ThreadsSMRSupport", "_java_thread_list"
_COUNT = "ThreadsList", "_length"
_ARRAY = "ThreadsList", "_threads"
_OS = "Thread", "_osthread"
_PTHREAD = "OSThread", "_pthread_id"
_NUMBER = "JavaThread", "_monitor_owner_id"
_CONTINUATION = "JavaThread", "_cont_entry"
_FIELDS = frozenset((_LIST, _COUNT, _ARRAY, _OS, _PTHREAD, _NUMBER, _CONTINUATION))
_TYPES = frozenset(kind for kind, _ in _FIELDS)


@dataclass(frozen=True, slots=True)
class Image:
    """A libjvm.so: the virtual address of gHotSpotVMStructs in the file."""

    structs: int


@dataclass(frozen=True, slots=True)
class HotSpot:
    """A process's JVM: an absolute address, and offsets in bytes.

    threads: of the pointer to the ThreadsList, in which u32 at `count` tells how many there are
    and the pointer at `array` leads to as many pointers to JavaThreads. In one, the pointer at
    `os_thread` leads to what has pthread_self() at `pthread` (x86-64: the thread's FS base); the
    u64 at `number` is that of the Java thread it runs, and the pointer at `continuation` is null
    unless that is a virtual one.
    """

    threads: int
    count: int
    array: int
    os_thread: int
    pthread: int
    number: int
    continuation: int


class NotReady(Exception):
    """The library has not filled in its table yet: ask again later."""


def image(elf: Elf, name: str) -> Image | None:
    """Describe a file, None where it is no libjvm of HotSpot's. Raises ElfError."""
    if name != "libjvm.so" or elf.machine != EM_X86_64:
        return None
    found = elf.symbols((STRUCTS,))
    return Image(found[STRUCTS].value) if found else None


def inspect(image: Image, base: int, memory: Memory) -> HotSpot | None:
    """Read a process that maps an image; base: Elf.base() of its mapping.

    None where its virtual threads have no numbers to read (before JDK 24) or something is missing.
    Raises NotReady, and OSError where the process vanishes or may not be read.
    """
    table = memory.u64(base + image.structs)
    if not table:
        raise NotReady
    found = _fields(table, memory)
    if not found.keys() >= _FIELDS:
        return None
    if not found[_NUMBER][0]:
        raise NotReady
    offsets = (found[field][0] for field in (_COUNT, _ARRAY, _OS, _PTHREAD, _NUMBER, _CONTINUATION))
    return HotSpot(found[_LIST][1], *offsets)


def _fields(table: int, memory: Memory) -> dict[tuple[str, str], tuple[int, int]]:
    """Return (offset, address) of those of the fields that the table has."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    kinds: dict[int, str] = {}  # names of types lie in one place each
    for start in range(0, _ENTRIES, _AT_ONCE):
        raw = memory.read(table + start * _ENTRY.size, _AT_ONCE * _ENTRY.size)
        for kind_at, field_at, _type, _static, offset, address in _ENTRY.iter_unpack(raw):
            if not kind_at or not field_at:
                return found
            kind = kinds.get(kind_at)
            if kind is None:
                kind = kinds[kind_at] = memory.text(kind_at, _NAME)
            if kind in _TYPES:
                field = kind, memory.text(field_at, _NAME)
                if field in _FIELDS:
                    found[field] = offset, address
    return found
