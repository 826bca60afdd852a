"""Column operations on records: mixing, hashing of strings in place, a table of hashes.

Strings of a record lie at places that differ from row to row. To tell how many distinct
ones a batch holds, each is hashed in place, eight bytes at a time and all rows at once;
only strings whose hash is new are ever made into Python objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]
U64 = NDArray[np.uint64]
I32 = NDArray[np.int32]
Rows = NDArray[np.intp]

WORD = 8
_MULTIPLIER = np.uint64(0x9FB21C651E98DF25)
_HALF = np.uint64(32)
# MASKS[k] keeps the first k bytes of a little-endian word.
_MASKS = np.array([(1 << 8 * k) - 1 for k in range(WORD + 1)], dtype=np.uint64)


def absorb(state: U64, word: U64 | np.uint64) -> U64:
    """Return hash states that have taken in one more word each; (n,), word (n,) or one."""
    mixed = (state ^ word) * _MULTIPLIER
    mixed ^= mixed >> _HALF
    return mixed


class Words:
    """The text of a batch's records, readable at any byte as little-endian words.

    text: uint8 (n, width). used: how many leading bytes of each row mean something, (n,).
    Copies as much of the text as the fullest row uses.
    """

    def __init__(self, text: NDArray[np.uint8], used: Column) -> None:
        rows = len(text)
        width = int(used.max()) if rows else 0
        # A word may begin at a row's last byte, also in the last row.
        self.stride = (width + 2 * WORD - 1) // WORD * WORD
        self.bytes = np.empty((rows, self.stride), dtype=np.uint8)
        self.bytes[:, :width] = text[:, :width]
        flat = self.bytes.reshape(-1)
        # Every byte begins a word: overlapping and unaligned, which x86 and arm64 allow.
        self._words: U64 = np.ndarray(
            shape=(max(0, flat.size - WORD + 1),), dtype="<u8", buffer=flat, strides=(1,)
        )
        self._base = np.arange(rows, dtype=np.intp) * self.stride

    def absorb(self, state: U64, off: Column, length: Column) -> U64:
        """Return `state` after each row's string [off, off + length) was taken in.

        off, length: intp (n,), inside the row's used bytes. What lies beyond a string
        doesn't count, and neither does where it lies. Nor do lengths: they must have
        been taken in before, or "a" and "a\\0" are the same.
        """
        longest = int(length.max()) if len(length) else 0
        start = self._base + off
        rows: Rows | None = None  # None: all of them
        for done in range(0, longest, WORD):
            rest = length - done if rows is None else length[rows] - done
            if rest.min() <= 0:
                active = np.flatnonzero(rest > 0)
                rows = active if rows is None else rows[active]
                rest = rest[active]
            word = self._words[(start if rows is None else start[rows]) + done]
            if rest.min() < WORD:
                word = word & _MASKS[np.minimum(rest, WORD)]
            if rows is None:
                state = absorb(state, word)
            else:
                state[rows] = absorb(state[rows], word)
        return state

    def take(self, rows: Rows, off: Column, width: int) -> NDArray[np.uint8]:
        """Return the `width` bytes and more from `off` on of some rows, (m, width or more).

        off: intp (m,), inside the row's used bytes. What lies beyond them is undefined.
        """
        start = self._base[rows] + off
        words = np.empty((len(rows), -(-width // WORD)), dtype=np.uint64)
        for number in range(words.shape[1]):
            words[:, number] = self._words[np.minimum(start + number * WORD, len(self._words) - 1)]
        return words.view(np.uint8)

    def slice(self, row: int, off: int, length: int) -> bytes:
        """Return one string."""
        return self.bytes[row, off : off + length].tobytes()


class Table:
    """64-bit hashes to small numbers, looked up for whole columns; open addressing.

    The hash 0 stands for an empty cell and must not be put in. Grows by itself; the
    caller bounds it with `clear`.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        cells = 1 << (max(2, capacity) * 2 - 1).bit_length()
        self._keys: U64 = np.zeros(cells, dtype=np.uint64)
        self._values: I32 = np.zeros(cells, dtype=np.int32)
        self._mask = cells - 1
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def clear(self) -> None:
        """Forget everything."""
        self._keys.fill(0)
        self.count = 0

    def find(self, keys: U64) -> I32:
        """Return the number of each key, -1 for the unknown; both (n,)."""
        cells = self._cells(keys)
        held = self._keys[cells]
        hit = held == keys
        if hit.all():
            return self._values[cells]
        values: I32 = np.where(hit, self._values[cells], np.int32(-1))
        rows = np.flatnonzero(~hit & (held != 0))
        cells = cells[rows]
        while len(rows):
            cells = cells + 1 & self._mask
            held = self._keys[cells]
            hit = held == keys[rows]
            values[rows[hit]] = self._values[cells[hit]]
            left = ~hit & (held != 0)
            rows, cells = rows[left], cells[left]
        return values

    def put(self, keys: U64, values: I32) -> None:
        """Give distinct keys their numbers, which replace those they had; both (m,)."""
        if 2 * (self.count + len(keys)) > len(self._keys):
            self._grow(self.count + len(keys))
        cells = self._cells(keys)
        while len(keys):
            free = self._keys[cells] == 0
            # Of several keys that want one cell the last wins and the others walk on.
            self._keys[cells[free]] = keys[free]
            won = self._keys[cells] == keys
            self.count += int(np.count_nonzero(won & free))
            self._values[cells[won]] = values[won]
            left = ~won
            keys, values = keys[left], values[left]
            cells = cells[left] + 1 & self._mask

    def learn(self, numbers: Mapping[int, int]) -> None:
        """Put what was found key by key: distinct hashes and their numbers."""
        keys = np.fromiter(numbers, dtype=np.uint64, count=len(numbers))
        self.put(keys, np.array(list(numbers.values()), dtype=np.int32))

    def _cells(self, keys: U64) -> Rows:
        return (keys & np.uint64(self._mask)).astype(np.intp)

    def _grow(self, capacity: int) -> None:
        used = self._keys != 0
        keys, values = self._keys[used], self._values[used]
        self._allocate(capacity * 2)
        self.put(keys, values)


def distinct(keys: U64) -> tuple[U64, Rows, Rows]:
    """Return the distinct keys, a row that has each, and each row's place among them.

    In order of first appearance, so that what is numbered by it reads like the input.
    """
    values, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return values[order], first[order], place[inverse]


def unlike(values: Column) -> Column:
    """Return the distinct values, ascending.

    np.unique would do, but loads all of numpy.ma, 1.3 MB, to find out that nothing is masked.
    """
    ordered = np.sort(values)
    first = np.ones(len(ordered), dtype=np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def nonzero(keys: U64) -> U64:
    """Return keys with 0 replaced, which `Table` can't hold."""
    return np.maximum(keys, np.uint64(1))
