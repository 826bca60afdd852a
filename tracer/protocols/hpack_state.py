"""HPACK (RFC 7541) behind a memo: a block that was decoded before costs one look-up.

What a block decodes to depends on its bytes and on the dynamic table before it. Tables are
immutable here (`State`) and equal ones are one object, which remembers what blocks it has
met: the fields, and the state after them.

A connection that is older than the tracer has a table nobody here knows. Its state is
`tolerant`: it holds what was inserted since, and an index beyond that gives UNKNOWN for
name and value. Nothing it does know can be wrong, for new entries come first in a table
and the oldest go first, and those are the unknown ones.

What is not in the memo is taken apart here, since the library's decoder works on one table
that lives on; its tables and its Huffman code are used. Strings have a memo of their own:
most of what a new block holds was there before.

Left out: the limit a decoder sets its peer (SETTINGS_HEADER_TABLE_SIZE); updates are taken
up to MAX_TABLE_BYTES, and beyond it the state becomes tolerant.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Generic, TypeVar

from hpack.exceptions import HPACKError
from hpack.hpack import decode_integer
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

# Stands for a name or value that isn't known; compare with `is`.
UNKNOWN = bytes.fromhex("00") + b"unknown"

DEFAULT_TABLE_BYTES = 4096  # RFC 9113 section 6.5.2
MAX_TABLE_BYTES = 1 << 16
MAX_FIELDS_BYTES = 1 << 20
_MAX_STRINGS = 4096
_LONGEST_STRING = 256
# What the memo may hold: entries, and bytes of blocks and of table slots.
MAX_ENTRIES = 1 << 15
MAX_MEMO_BYTES = 32 << 20
_ENTRY_BYTES = 512  # of objects around an entry, roughly

_STATIC: tuple[tuple[bytes, bytes], ...] = HeaderTable.STATIC_TABLE

_numbers = count(1)

Headers = tuple[tuple[bytes, bytes], ...]
_T = TypeVar("_T")


class State(Generic[_T]):
    """The dynamic table of one direction at one moment, and what blocks lead away from it."""

    __slots__ = ("bytes", "entries", "failed", "max_bytes", "memo", "number", "tolerant")

    def __init__(
        self, entries: Headers, used: int, max_bytes: int, tolerant: bool, failed: bool = False
    ) -> None:
        self.entries = entries  # newest first
        self.bytes = used  # RFC 7541 section 4.1
        self.max_bytes = max_bytes
        self.tolerant = tolerant
        self.failed = failed
        self.memo: dict[bytes, tuple[_T, State[_T]]] = {}
        self.number = next(_numbers)  # no other state has it, ever


class Hpack(Generic[_T]):
    """Decodes the blocks of all connections.

    make: what to make of a block's fields, in their order; also remembered.
    unreadable: what stands for the fields of a block that can't be read.
    """

    def __init__(
        self, make: Callable[[Headers], _T], unreadable: _T, max_entries: int = MAX_ENTRIES
    ) -> None:
        self._make = make
        self.unreadable = unreadable
        self._max_entries = max_entries
        self._failed: State[_T] = State((), 0, 0, True, failed=True)
        self._huffman: dict[bytes, bytes] = {}
        self._losses = {"hpack_failed": 0}
        self._states: dict[tuple[int, bool, Headers], State[_T]] = {}
        # Those whose memo isn't empty; some are in use and no longer in _states.
        self._filled: list[State[_T]] = []
        self._entries = 0
        self._bytes = 0

    def losses(self) -> dict[str, int]:
        """Count directions that became unreadable."""
        return dict(self._losses)

    def begin(self, known: bool) -> State[_T]:
        """Return the state before a direction's first block; known: it is empty for sure."""
        if known:
            return self._state((), 0, DEFAULT_TABLE_BYTES, False)
        return self._state((), 0, MAX_TABLE_BYTES, True)

    def decode(self, state: State[_T], block: bytes) -> tuple[_T, State[_T]]:
        """Return what `make` made of a whole block's fields, and the state after it.

        A block that is malformed makes its direction unreadable for good: RFC 9113 section
        4.3 has the connection closed then. Callers may look into state.memo by themselves.
        """
        found = state.memo.get(block)
        if found is not None:
            return found
        if state.failed:
            return self.unreadable, state
        try:
            headers, after = self._read(state, block)
        except (HPACKError, IndexError):
            # IndexError: the block ends where a field goes on.
            self._losses["hpack_failed"] += 1
            return self.unreadable, self._failed
        self._make_room(len(block))
        if not state.memo:
            self._filled.append(state)
        found = state.memo[block] = self._make(headers), after
        return found

    def _read(self, state: State[_T], block: bytes) -> tuple[Headers, State[_T]]:
        """Return a block's fields and the state after it, RFC 7541 section 6."""
        table = _Table(state)
        headers: list[tuple[bytes, bytes]] = []
        size = at = 0
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = _integer(block, at, 7)
                entry = table.entry(index)
            elif first & 0xE0 == 0x20:
                if headers:
                    raise HPACKError("a table size update after a field")
                new_size, at = _integer(block, at, 5)
                table.resize(new_size)
                continue
            else:
                index, at = _integer(block, at, 6 if first & 0x40 else 4)
                if index:
                    name = table.entry(index)[0]
                else:
                    name, at = self._string(block, at)
                value, at = self._string(block, at)
                entry = (name, value)
                if first & 0x40:
                    table.insert(entry)
            headers.append(entry)
            size += _size(entry)
            if size > MAX_FIELDS_BYTES:
                raise HPACKError("a list of fields that is too large")
        if table.changed:
            state = self._state(table.entries, table.bytes, table.max_bytes, table.tolerant)
        return tuple(headers), state

    def _string(self, block: bytes, at: int) -> tuple[bytes, int]:
        """Return the string literal at a place, and the place behind it."""
        huffman = block[at] & 0x80
        length, at = _integer(block, at, 7)
        end = at + length
        raw = block[at:end]
        if len(raw) < length:
            raise HPACKError("a string that ends with its block")
        if not huffman:
            return raw, end
        text = self._huffman.get(raw)
        if text is None:
            text = decode_huffman(raw)
            if length <= _LONGEST_STRING:
                if len(self._huffman) >= _MAX_STRINGS:
                    self._huffman.clear()
                self._huffman[raw] = text
        return text, end

    def _state(self, entries: Headers, used: int, max_bytes: int, tolerant: bool) -> State[_T]:
        """Return the one state that is like this."""
        key = (max_bytes, tolerant, entries)
        state = self._states.get(key)
        if state is None:
            self._make_room(8 * len(entries))
            state = self._states[key] = State(entries, used, max_bytes, tolerant)
        return state

    def _make_room(self, size: int) -> None:
        """Forget everything if there is too much; states that are in use stay usable."""
        self._entries += 1
        self._bytes += size + _ENTRY_BYTES
        if self._entries > self._max_entries or self._bytes > MAX_MEMO_BYTES:
            for state in self._filled:
                state.memo.clear()
            self._filled.clear()
            self._states.clear()
            self._entries, self._bytes = 1, size


class _Table:
    """A state while a block changes it."""

    __slots__ = ("bytes", "changed", "entries", "max_bytes", "tolerant")

    def __init__(self, state: State[_T]) -> None:
        self.entries: Headers = state.entries
        self.bytes = state.bytes
        self.max_bytes = state.max_bytes
        self.tolerant = state.tolerant
        self.changed = False

    def entry(self, index: int) -> tuple[bytes, bytes]:
        """Return an entry, RFC 7541 section 2.3.3; also of what isn't known."""
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        index -= len(_STATIC) + 1
        if 0 <= index < len(self.entries):
            return self.entries[index]
        if self.tolerant and 0 <= index < MAX_TABLE_BYTES // 32:
            return UNKNOWN, UNKNOWN
        raise HPACKError("an index beyond the table")

    def insert(self, entry: tuple[bytes, bytes]) -> None:
        """Add an entry, RFC 7541 section 4.4."""
        self.changed = True
        self.entries = (entry, *self.entries)
        self.bytes += _size(entry)
        self._evict()

    def resize(self, size: int) -> None:
        """Change how large the table may become, RFC 7541 section 4.3."""
        self.changed = True
        if size > MAX_TABLE_BYTES:
            # Entries that the peer still has may now go: they are unknown then.
            self.tolerant = True
        self.max_bytes = min(size, MAX_TABLE_BYTES)
        self._evict()

    def _evict(self) -> None:
        kept = len(self.entries)
        while self.bytes > self.max_bytes:
            kept -= 1
            self.bytes -= _size(self.entries[kept])
        self.entries = self.entries[:kept]


def _size(entry: tuple[bytes, bytes]) -> int:
    return 32 + len(entry[0]) + len(entry[1])


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """Return the integer at a place, RFC 7541 section 5.1, and the place behind it."""
    mask = (1 << bits) - 1
    number = block[at] & mask
    if number < mask:
        return number, at + 1
    number, length = decode_integer(block[at : at + 16], bits)
    return number, at + length
