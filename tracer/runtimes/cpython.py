"""CPython: from a thread to its current contextvars context, through _PyRuntime.

_PyRuntime -> interpreters.main -> threads.head -> next ... -> the thread's own state ->
context. From 3.13 on the runtime begins with a table of its own offsets,
_Py_DebugOffsets; before, and for what that table lacks, offsets are known by version.
Whatever is used has been checked against the process: the walk must arrive at thread
states whose thread ids are thread control blocks, and contexts must be Contexts.
Source: Include/internal/pycore_runtime.h, pycore_interp.h, pycore_debug_offsets.h and
Include/cpython/pystate.h of each version; offsets are for 64-bit Linux.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tracer.runtimes import pyqueue
from tracer.runtimes.elf import EM_X86_64, Elf, Symbol
from tracer.runtimes.proc import Memory
from tracer.runtimes.pyqueue import Queue
from tracer.runtimes.relocations import Pointers

RUNTIME = "_PyRuntime"
COPY_CURRENT = "PyContext_CopyCurrent"
# Others that return a new context: exported, and behind Context() and copy() of the type.
NEW = ("PyContext_New", "PyContext_Copy")
CONTEXT_TYPE = "PyContext_Type"
VERSION = "Py_Version"

_COOKIE = b"xdebugpy"
_MAX_THREADS = 4096  # walked while checking
_NO_KEY = 0xFFFFFFFF
_TP_NAME, _TP_METHODS, _TP_NEW = 24, 232, 312  # of PyTypeObject, 3.8 to 3.14
_OB_TYPE = 8  # of PyObject; 24 in the free-threaded build
_OB_TYPE_FREE_THREADED = 24
# ctx_entered of PyContext, behind ob_type and three pointers, in all versions.
_ENTERED = 32

# glibc's struct pthread, which the FS base points to: specific_1stblock[32] of
# {seq, data} (nptl/descr.h). Checked in each process before it is used.
_SPECIFIC = 0x310
_SPECIFIC_KEYS = 32


@dataclass(frozen=True, slots=True)
class Offsets:
    """Where members are, in bytes; native_thread_id is None before 3.11.

    auto_tss_key: of the pthread key under which a thread's own state is kept.
    """

    runtime_size: int
    interpreters_main: int
    threads_head: int
    next: int
    thread_id: int
    native_thread_id: int | None
    context: int
    auto_tss_key: int


# By (major, minor); offsetof() over the headers of 3.8.18, 3.9.18, 3.10.13, 3.11.7,
# 3.12.1, 3.13.0 and 3.14.10, the last two with and without Py_GIL_DISABLED.
OFFSETS: Mapping[tuple[int, int], Offsets] = {
    (3, 8): Offsets(1464, 40, 8, 8, 176, None, 240, 1396),
    (3, 9): Offsets(656, 40, 8, 8, 176, None, 240, 588),
    (3, 10): Offsets(672, 40, 8, 8, 176, None, 240, 588),
    (3, 11): Offsets(166688, 48, 16, 8, 152, 160, 224, 596),
    (3, 12): Offsets(459944, 48, 72, 8, 136, 144, 208, 1548),
    (3, 13): Offsets(283320, 640, 7344, 8, 152, 160, 208, 2164),
    (3, 14): Offsets(316616, 816, 7344, 8, 152, 160, 208, 2340),
}

# Indices of u64 members of _Py_DebugOffsets, by minor version.
_DEBUG_INDEX: Mapping[tuple[int, int], Mapping[str, int]] = {
    (3, 13): {"threads_head": 9, "thread_state": 19},
    (3, 14): {"threads_head": 9, "thread_state": 22},
}


@dataclass(frozen=True, slots=True)
class Frames:
    """Where a thread's stack of Python calls is, in bytes: from its state to functions' names.

    frame: in PyThreadState, the innermost frame; with `cframe`, a pointer to a _PyCFrame that
    has it there, less 1. code, previous, locals: in a frame. name: in a code object. text: in a
    string of ASCII, its characters.
    """

    frame: int
    cframe: int
    code: int
    previous: int
    locals: int
    name: int
    text: int


# offsetof() over the headers of the same versions; 3.14's as they are on its branch.
FRAMES: Mapping[tuple[int, int], Frames] = {
    (3, 8): Frames(24, 0, 32, 24, 360, 112, 48),
    (3, 9): Frames(24, 0, 32, 24, 360, 112, 48),
    (3, 10): Frames(24, 0, 32, 24, 352, 112, 48),
    (3, 11): Frames(56, 9, 32, 48, 72, 120, 48),
    (3, 12): Frames(56, 1, 0, 8, 72, 120, 40),
    (3, 13): Frames(72, 0, 0, 8, 72, 120, 40),
    (3, 14): Frames(72, 0, 0, 8, 80, 120, 40),
}
_HEAD_FREE_THREADED = 16  # bytes that every object's head has more in the free-threaded build

_FREE_THREADED = 2
_RUNTIME_SIZE = 3
_INTERPRETERS_HEAD = 5


@dataclass(frozen=True, slots=True)
class Image:
    """What a file says: the interpreter's executable or libpython.

    runtime: virtual address of _PyRuntime in the file. copy_current: offset in the file of
    PyContext_CopyCurrent, None where it isn't exported. version: (3, 11, 2). queue: where it
    has queue.SimpleQueue, None where a module of its own may have that, or no symbol tells.
    new: offsets of other functions that return a new context.
    """

    version: tuple[int, int, int] | None
    runtime: int
    runtime_size: int
    copy_current: int | None
    machine: int
    evidence: Mapping[str, str]
    queue: Queue | None = None
    new: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CPython:
    """A process's interpreter: absolute addresses, and offsets in bytes.

    runtime_addr: of _PyRuntime. A thread's own state is the one in the list
    *(runtime_addr + interpreters_main) + threads_head, -> tstate_next, whose u64 at
    tstate_thread_id is pthread_self() (x86-64: the thread's FS base, the same in every pid
    namespace and after fork), or whose u64 at tstate_native_thread_id is the tid in the
    process's own pid namespace (None before 3.11). The context is at tstate_context, null
    while the thread has none; its u32 at context_entered is 0 where it is one that the thread
    was given and that nothing entered.
    tls_tstate: where there, from the FS base, the pointer to the thread's own state lies,
    with no list to walk; None where that could not be proved.
    copy_current: offset in the file of PyContext_CopyCurrent.
    ob_type, tp_name: where in an object its type is, and in that the pointer to its name.
    queue, new: those of Image.
    evidence: fact -> how it was found.
    """

    version: tuple[int, int, int]
    free_threaded: bool
    runtime_addr: int
    runtime_size: int
    interpreters_main: int
    threads_head: int
    tstate_next: int
    tstate_thread_id: int
    tstate_native_thread_id: int | None
    tstate_context: int
    context_entered: int
    tls_tstate: int | None
    copy_current: int | None
    ob_type: int
    tp_name: int
    frames: Frames
    evidence: Mapping[str, str]
    queue: Queue | None = None
    new: tuple[int, ...] = ()


class NotReady(Exception):
    """The interpreter has not started its first thread yet: ask again later."""


class Unfit(Exception):
    """A CPython whose state cannot be read; the message says why."""


def image(elf: Elf, name: str) -> Image | None:
    """Describe a file, None where it holds no CPython 3.

    name: the file's own, which tells the version where no symbol does (before 3.11).
    Raises ElfError.
    """
    found = elf.symbols((RUNTIME, COPY_CURRENT, VERSION, CONTEXT_TYPE, *NEW))
    if RUNTIME not in found:
        return None
    evidence = {"runtime": f"symbol {RUNTIME}"}
    version: tuple[int, int, int] | None = None
    if VERSION in found:
        number = struct.unpack("<I", elf.read(found[VERSION].value, 4))[0]
        version = (number >> 24, number >> 16 & 0xFF, number >> 8 & 0xFF)
        evidence["version"] = f"symbol {VERSION}"
    elif match := re.search(r"python3\.(\d+)", name):
        version = (3, int(match[1]), 0)
        evidence["version"] = f"the file's name, {name}"
    copy: int | None = None
    if COPY_CURRENT in found:
        copy = elf.file_offset(found[COPY_CURRENT].value)
        evidence["copy_current"] = f"symbol {COPY_CURRENT}"
    new = [found[name].value for name in NEW if name in found]
    if CONTEXT_TYPE in found and elf.machine == EM_X86_64:
        new += _constructors(elf, found[CONTEXT_TYPE])
        evidence["new"] = f"methods of {CONTEXT_TYPE}"
    offsets = {elf.file_offset(address) for address in new} - {None, copy}
    runtime = found[RUNTIME]
    return Image(
        version,
        runtime.value,
        runtime.size,
        copy,
        elf.machine,
        evidence,
        pyqueue.by_symbols(elf),
        tuple(sorted(offset for offset in offsets if offset is not None)),
    )


def _constructors(elf: Elf, kind: Symbol) -> list[int]:
    """Return the functions behind Context() and Context.copy(), which nothing exports."""
    pointers = Pointers(elf)
    for head in (0, _HEAD_FREE_THREADED):
        base = kind.value + head
        if pointers.text(pointers.at(base + _TP_NAME)).rpartition(b".")[2] == b"Context":
            table = pointers.methods(pointers.at(base + _TP_METHODS))
            found = [pointers.at(base + _TP_NEW), *(at for name, at in table if name == b"copy")]
            return [address for address in found if pointers.is_code(address)]
    return []


def inspect(image: Image, base: int, memory: Memory) -> CPython:
    """Read a process that maps an image; base: Elf.base() of its mapping.

    Raises Unfit where the version or what is found is not understood, NotReady, and
    OSError where the process vanishes meanwhile.
    """
    if image.version is None:
        raise Unfit("CPython of unknown version: neither a symbol nor the file's name tells it")
    known = OFFSETS.get(image.version[:2])
    written = ".".join(map(str, image.version))
    if known is None:
        raise Unfit(f"CPython {written}: no offsets for this version (3.8 to 3.14 are known)")
    runtime = base + image.runtime
    evidence = dict(image.evidence)
    free_threaded = False
    head = memory.read(runtime, 8 * 40)
    if image.version >= (3, 13):
        known, free_threaded = _debug_offsets(head, known, image.version, written)
        evidence["offsets"] = "_Py_DebugOffsets; context by version"
    else:
        evidence["offsets"] = f"table of {image.version[0]}.{image.version[1]}"
    states = _walk(runtime, known, memory, written)
    x86 = image.machine == EM_X86_64
    if x86 and not any(_is_thread(memory, thread) for _state, thread in states):
        raise Unfit(f"CPython {written}: no thread state has the thread id of a thread")
    evidence["checked"] = f"{len(states)} thread states" + _check_contexts(
        states, known, free_threaded, memory, written
    )
    tls = _tls_slot(runtime, known, states, memory) if x86 else None
    if tls is not None:
        evidence["tls_tstate"] = "the pthread key of the runtime, checked for every thread"
    return CPython(
        image.version,
        free_threaded,
        runtime,
        image.runtime_size or known.runtime_size,
        known.interpreters_main,
        known.threads_head,
        known.next,
        known.thread_id,
        known.native_thread_id,
        known.context,
        _ob_type(free_threaded) + _ENTERED,
        tls,
        image.copy_current,
        _ob_type(free_threaded),
        _tp_name(free_threaded),
        _frames(image.version[:2], free_threaded),
        evidence,
        image.queue,
        image.new,
    )


def _debug_offsets(
    head: bytes, known: Offsets, version: tuple[int, int, int], written: str
) -> tuple[Offsets, bool]:
    """Take from _Py_DebugOffsets what it has, and check that the rest still fits."""
    if head[:8] != _COOKIE:
        raise Unfit(f"CPython {written}: no _Py_DebugOffsets where _PyRuntime should be")
    words = struct.unpack("<40Q", head)
    number = words[1]
    if (number >> 24, number >> 16 & 0xFF) != version[:2]:
        raise Unfit(f"CPython {written}: _Py_DebugOffsets is of version {number:#x}")
    index = _DEBUG_INDEX[version[:2]]
    _size, _prev, follow, _interp, frame, thread, native = words[
        index["thread_state"] : index["thread_state"] + 7
    ]
    # The context has no entry: its place is known relative to the ids in front of it.
    if (thread, native) != (known.thread_id, known.native_thread_id) or (
        frame != FRAMES[version[:2]].frame
    ):
        raise Unfit(f"CPython {written}: PyThreadState is laid out in an unknown way")
    # The main interpreter's pointer follows that of the list's head in one struct.
    main = words[_INTERPRETERS_HEAD] + 8
    result = Offsets(
        words[_RUNTIME_SIZE],
        main,
        words[index["threads_head"]],
        follow,
        thread,
        native,
        known.context,
        known.auto_tss_key,
    )
    return result, bool(words[_FREE_THREADED])


def _walk(runtime: int, known: Offsets, memory: Memory, written: str) -> list[tuple[int, int]]:
    """Return (thread state, its thread id) of every thread of the main interpreter."""
    interpreter = memory.u64(runtime + known.interpreters_main)
    if interpreter == 0:
        raise NotReady
    states: list[tuple[int, int]] = []
    try:
        state = memory.u64(interpreter + known.threads_head)
        while state and len(states) < _MAX_THREADS:
            states.append((state, memory.u64(state + known.thread_id)))
            state = memory.u64(state + known.next)
    except OSError:
        raise Unfit(f"CPython {written}: its list of threads leads nowhere") from None
    if not states:
        raise NotReady
    return states


def _ob_type(free_threaded: bool) -> int:
    return _OB_TYPE_FREE_THREADED if free_threaded else _OB_TYPE


def _tp_name(free_threaded: bool) -> int:
    return _TP_NAME + (_HEAD_FREE_THREADED if free_threaded else 0)


def _frames(version: tuple[int, int], free_threaded: bool) -> Frames:
    known = FRAMES[version]
    if not free_threaded:
        return known
    head = _HEAD_FREE_THREADED
    return replace(known, name=known.name + head, text=known.text + head)


def _is_thread(memory: Memory, thread: int) -> bool:
    """Tell whether an address is a thread control block: its first word and `self` name it."""
    try:
        return memory.u64(thread) == thread
    except OSError:
        return False


def _check_contexts(
    states: list[tuple[int, int]],
    known: Offsets,
    free_threaded: bool,
    memory: Memory,
    written: str,
) -> str:
    """Raise Unfit where a context isn't one; say how many were looked at."""
    seen = 0
    for state, _thread in states:
        try:
            context = memory.u64(state + known.context)
            if context == 0:
                continue
            kind = memory.u64(context + _ob_type(free_threaded))
            name = memory.text(memory.u64(kind + _tp_name(free_threaded)), 32)
        except OSError:
            name = "no object"
        # "Context" up to 3.8, "_contextvars.Context" since.
        if name.rpartition(".")[2] != "Context":
            raise Unfit(f"CPython {written}: the context of a thread is {name!r}")
        seen += 1
    return f", {seen} contexts" if seen else ""


def _tls_slot(
    runtime: int, known: Offsets, states: list[tuple[int, int]], memory: Memory
) -> int | None:
    """Return where each thread keeps the pointer to its own state, from the FS base."""
    proved = 0
    try:
        key = memory.u32(runtime + known.auto_tss_key)
        if key == _NO_KEY or key >= _SPECIFIC_KEYS:
            return None
        slot = _SPECIFIC + 16 * key + 8
        for state, thread in states:
            if not _is_thread(memory, thread):
                continue
            if memory.u64(thread + slot) != state:
                return None
            proved += 1
    except OSError:
        return None
    return slot if proved else None


__all__ = [
    "COPY_CURRENT",
    "OFFSETS",
    "CPython",
    "Frames",
    "Image",
    "NotReady",
    "Offsets",
    "Unfit",
    "image",
    "inspect",
]
