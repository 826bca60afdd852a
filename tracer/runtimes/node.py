"""Node.js: where it keeps the ids of the asynchronous resource that is running.

node::AsyncHooks holds a stack of execution and trigger async ids, kept up to date with no
hook installed. Its address is the first argument of AsyncHooks::push_async_context, which
an event loop calls all the time: a uprobe there learns it once for each thread.
Source: src/env.h (AsyncHooks), src/aliased_buffer.h of Node 20, 22 and 24;
https://nodejs.org/api/async_hooks.html.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tracer.runtimes.elf import EM_X86_64, Elf

_RELEASE = re.compile(rb"/download/[a-z-]+/v(\d+)\.(\d+)\.(\d+)[-/\0]")
_ADDRESS = 128  # bytes of such an address, at most
_NAME = re.compile(r"node(js)?$|libnode\.so")

# push_async_context(double, double, Local<Object>): by value, since 22 by pointer.
_PUSH = (
    "_ZN4node10AsyncHooks18push_async_contextEddN2v85LocalINS1_6ObjectEEE",
    "_ZN4node10AsyncHooks18push_async_contextEddPN2v85LocalINS1_6ObjectEEE",
)

# Major version -> where AsyncHooks has the pointer to async_id_fields; seen to hold in
# 20.20, 22.20 and 24.19. Others have to be looked at first.
_ASYNC_ID_FIELDS = {20: 152, 22: 152, 24: 152}

# node::Environment::RunTimers(uv_timer_t*), CheckImmediate(uv_check_t*)
_TURNS = (
    "_ZN4node11Environment9RunTimersEP10uv_timer_s",
    "_ZN4node11Environment14CheckImmediateEP10uv_check_s",
)


@dataclass(frozen=True, slots=True)
class Node:
    """A Node.js executable or libnode.

    version: (20, 20, 2). push_async_context: its offset in the file, where the AsyncHooks
    of the calling thread is the first argument; the first instruction is one the kernel
    emulates. async_id_fields: offset in AsyncHooks of a pointer to doubles: execution
    async id, trigger async id, id counter, default trigger id. Both are None where this
    version is not known well enough; reason then says so.
    turns: offsets in the file of what runs timers and setImmediate() callbacks, which belong
    to no message; () where the file has no symbols.
    """

    version: tuple[int, int, int]
    push_async_context: int | None
    async_id_fields: int | None
    reason: str = ""
    turns: tuple[int, ...] = ()


def image(elf: Elf, name: str) -> Node | None:
    """Describe a file by the address of its own release, None where it is no Node.js."""
    if not _NAME.match(name):
        return None
    match = _release(elf)
    if match is None:
        return None
    version = (int(match[1]), int(match[2]), int(match[3]))
    written = ".".join(map(str, version))
    turns = _offsets(elf, _TURNS)
    if elf.machine != EM_X86_64:
        return Node(version, None, None, f"Node.js {written} of another machine than x86-64", turns)
    fields = _ASYNC_ID_FIELDS.get(version[0])
    if fields is None:
        why = f"Node.js {written}: async ids are known in 20, 22, 24"
        return Node(version, None, None, why, turns)
    for offset in _offsets(elf, _PUSH):
        return Node(version, offset, fields, "", turns)
    why = f"Node.js {written} without AsyncHooks::push_async_context"
    return Node(version, None, None, why, turns)


def _release(elf: Elf) -> re.Match[bytes] | None:
    section = elf.section(".rodata")
    if section is None:
        return None
    matches = (_RELEASE.search(piece) for _start, piece in elf.pieces(section, _ADDRESS))
    return next(filter(None, matches), None)


def _offsets(elf: Elf, names: tuple[str, ...]) -> tuple[int, ...]:
    """Return where in the file those of the functions are that it has."""
    offsets = (elf.file_offset(symbol.value) for symbol in elf.symbols(names).values())
    return tuple(offset for offset in offsets if offset is not None)
