"""HotSpot, the JVM of OpenJDK: from a thread to the virtual thread that it carries.

libjvm.so describes its own structures for debuggers (the serviceability agent): it exports
gHotSpotVMStructs, a table of VMStructEntry whose offsets it fills in as it is loaded. From
JDK 24 on a JavaThread has the number of the Java thread that it runs now, which is the
virtual one while it carries one, for locks are owned by those (JEP 491). A thread's own
JavaThread is in libjvm's block of thread-local storage, which no table describes: it is searched
for once in a process, and must be in the same place for all threads of the JVM's own list.
Source: src/hotspot/share/runtime/vmStructs.hpp, javaThread.hpp, thread.hpp, threadSMR.hpp of
JDK 24 and 25; https://www.akkadia.org/drepper/tls.pdf, 3.
"""

from __future__ import annotations

import contextlib
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
_DTV = 8  # from where the FS base points to, in glibc's struct pthread and musl's
_VECTOR = 1 << 10  # bytes of it that are searched: some 60 libraries with TLS blocks
_BLOCK = 128  # bytes of one; libjvm's of JDK 25 has 80
_TRIES = 5  # the list is replaced, and the old one freed, whenever a thread begins or ends
_FEW = 4  # threads that prove nothing: a JVM that has come up has a dozen
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
_MOST_THREADS = 1 << 16
# (type, field) -> (offset, address)
_Found = dict[tuple[str, str], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Image:
    """A libjvm.so: the virtual address of gHotSpotVMStructs in the file."""

    structs: int


@dataclass(frozen=True, slots=True)
class HotSpot:
    """A process's JVM: offsets in bytes.

    dtv: where in a thread's vector of TLS blocks the pointer to libjvm's block is; thread: where
    in that the pointer to its JavaThread is. In this the u64 at `number` is that of the Java
    thread it runs, and the pointer at `continuation` is null unless that is a virtual one.
    """

    dtv: int
    thread: int
    number: int
    continuation: int


class NotReady(Exception):
    """The JVM is coming up: ask again later."""


def image(elf: Elf, name: str) -> Image | None:
    """Describe a file, None where it is no libjvm of HotSpot's. Raises ElfError."""
    if name != "libjvm.so" or elf.machine != EM_X86_64:
        return None
    found = elf.symbols((STRUCTS,))
    return Image(found[STRUCTS].value) if found else None


def inspect(image: Image, base: int, memory: Memory, threads: int) -> HotSpot | None:
    """Read a process that maps an image; base: Elf.base() of its mapping.

    threads: of the process. While there are few, its loader may not have put all addresses into
    the table yet. None where its virtual threads have no numbers to read (before JDK 24) or
    something is missing. Raises NotReady, and PermissionError.
    """
    if threads <= _FEW:
        raise NotReady
    try:
        found = _fields(memory.u64(base + image.structs), memory)
    except PermissionError:
        raise
    except OSError as error:
        raise NotReady from error
    if not found.keys() >= _FIELDS:
        return None
    for _ in range(_TRIES):
        with contextlib.suppress(OSError):
            if place := _place(_threads(found, memory), memory):
                return HotSpot(*place, found[_NUMBER][0], found[_CONTINUATION][0])
    raise NotReady


def _threads(found: _Found, memory: Memory) -> list[tuple[int, int]]:
    """Return (JavaThread, FS base) of each thread; raises NotReady."""
    threads = memory.u64(found[_LIST][1])
    if not threads:
        raise NotReady
    count = memory.u32(threads + found[_COUNT][0])
    if not _FEW < count <= _MOST_THREADS:
        raise NotReady
    array = memory.u64(threads + found[_ARRAY][0])
    each = struct.unpack(f"<{count}Q", memory.read(array, 8 * count))
    os_thread, pthread = found[_OS][0], found[_PTHREAD][0]
    return [(thread, memory.u64(memory.u64(thread + os_thread) + pthread)) for thread in each]


def _place(threads: list[tuple[int, int]], memory: Memory) -> tuple[int, int] | None:
    """Return (dtv, thread) of HotSpot, by a search; None where it is not the same for all."""
    java, base = threads[0]
    vector = memory.read(memory.u64(base + _DTV), _VECTOR)
    for dtv in range(8, _VECTOR, 8):
        (block,) = struct.unpack_from("<Q", vector, dtv)
        try:
            words = struct.unpack(f"<{_BLOCK // 8}Q", memory.read(block, _BLOCK))
        except OSError:
            continue  # not made yet, or a flag
        for number, word in enumerate(words):
            place = dtv, 8 * number
            if word == java and all(_at(base, place, memory) == java for java, base in threads):
                return place
    return None


def _at(base: int, place: tuple[int, int], memory: Memory) -> int:
    dtv, thread = place
    return memory.u64(memory.u64(memory.u64(base + _DTV) + dtv) + thread)


def _fields(table: int, memory: Memory) -> _Found:
    """Return (offset, address) of those of the fields that the table has."""
    found: _Found = {}
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
