"""Statements that come with nothing else, in columns: what most exchanges with databases are.

What one means hangs on its text, on what else its record says, and on the context of its
session. The three are hashed together, and what was met before is known without a look at the
row. A connection takes part as long as its session is known and no record of it in the batch is
anything else, or changes its session; else all of its records are gone through in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tracer.columns import U64, Rows, Table, Words, absorb, nonzero, unlike
from tracer.protocols.database_batch import Batch

# Columns cost about as much as going through so many records one by one.
MIN_RECORDS = 128
# How often the number of batches left out doubles at most, where most texts are new.
MAX_DOUBLINGS = 5
# Statements with their literals remembered before all are forgotten; contexts likewise.
MAX_REMEMBERED = 1 << 14

Mask = NDArray[np.bool_]
Context = tuple[str, str]


class Outcomes(NamedTuple):
    """What exchanges come to, by row; (m,). shape: -1: no span."""

    rows: Rows
    shape: NDArray[np.int32]
    returns: Mask
    affects: Mask


class Meaning(Protocol):
    """What a record means."""

    @property
    def shape(self) -> int:
        """-1: no span."""

    @property
    def returns(self) -> bool:
        """Whether 0 is a meaningful number of rows returned."""

    @property
    def affects(self) -> bool:
        """Likewise of rows affected."""

    @property
    def change(self) -> object | None:
        """What becomes of the session; None: nothing."""


class Plain:
    """Remembers what statements mean.

    context: the context of a connection's session, given its number (and side), its ports, and
        whether it is older than the tracer; None where no such session is known.
    look_up: says what a row means, given its number, hash, text and context; gives the same
        object for as long as it remembers it.
    """

    def __init__(
        self,
        context: Callable[[int, int, bool], Context | None],
        look_up: Callable[[Batch, int, int, bytes, Context], Meaning],
    ) -> None:
        self._context = context
        self._ask = look_up
        self._known = Table()
        self._contexts: dict[Context, int] = {}
        self._next = 1
        # Batches in a row in which most texts were new, and those to be left out for that.
        self._new = self._pause = 0
        self.forget()

    def pays(self, statements: int) -> bool:
        """Whether it is worth while for so many statements, as it seems by those before.

        Where most texts are new, for their literals are, nothing is saved: batches are left out
        then, but for one now and then.
        """
        self._pause = max(0, self._pause - 1)
        return statements >= MIN_RECORDS and not self._pause

    def forget(self) -> None:
        """Forget all, for shapes are numbered anew."""
        self._known.clear()
        self._meanings: list[Meaning] = []
        self._places: dict[int, int] = {}
        self._shape = np.zeros(0, dtype=np.int32)
        self._returns = self._affects = np.zeros(0, dtype=np.bool_)

    def take(self, batch: Batch, statement: Mask) -> tuple[Outcomes, Mask]:
        """Return what becomes of the rows that can be taken so, and which they are, (n,).

        statement: which rows are statements and nothing else, (n,).
        """
        if max(len(self._known), len(self._meanings)) > MAX_REMEMBERED:
            self.forget()
        names = unlike(batch.conn)
        of = np.searchsorted(names, batch.conn)
        plain, contexts = self._connections(batch, names, of, statement)
        context = np.array([self._number(each) if each else 0 for each in contexts], np.uint64)
        rows = np.flatnonzero(plain[of])
        text = batch.records["text"]
        used = batch.used[rows].astype(np.intp)
        words = Words(text if len(rows) == len(text) else text[rows], used)
        key = absorb(absorb(batch.plain[rows], context[of[rows]]), used.astype(np.uint64))
        key = nonzero(words.absorb(key, np.zeros_like(used), used))
        place = self._known.find(key)
        missed = np.flatnonzero(place < 0)
        met = len(self._known)
        if len(missed):
            self._look_up(batch, rows, of, contexts, key, place, missed, plain)
            kept = plain[of[rows]]
            if not kept.all():
                rows, place = rows[kept], place[kept]
        new = 2 * (len(self._known) - met) > len(rows)
        self._new = min(self._new + 1, MAX_DOUBLINGS) if new else 0
        self._pause = 1 << self._new if new else 0
        self._grow()
        made = Outcomes(rows, self._shape[place], self._returns[place], self._affects[place])
        return made, plain[of]

    def _connections(
        self, batch: Batch, names: U64, of: Rows, statement: Mask
    ) -> tuple[Mask, list[Context | None]]:
        """Return which connections have only statements, and the contexts of those; (c,)."""
        count = len(names)
        plain = np.ones(count, dtype=np.bool_)
        plain[of[~statement]] = False
        # What is told of one side may be meant for the other.
        other = np.searchsorted(names, names ^ np.uint64(1))
        paired = np.flatnonzero(other < count)
        paired = paired[names[other[paired]] == names[paired] ^ np.uint64(1)]
        closed = np.zeros(count, dtype=np.bool_)
        closed[of[batch.closed]] = True
        plain[paired[closed[other[paired]]]] = False
        first = np.zeros(count, dtype=np.intp)
        first[of[::-1]] = np.arange(len(of))[::-1]
        ports = batch.ports[first]
        plain[of[batch.ports != ports[of]]] = False
        old = np.zeros(count, dtype=np.bool_)
        old[of[batch.old]] = True
        contexts: list[Context | None] = [None] * count
        for index in np.flatnonzero(plain).tolist():
            contexts[index] = self._context(int(names[index]), int(ports[index]), bool(old[index]))
            plain[index] = contexts[index] is not None
        return plain, contexts

    def _look_up(
        self,
        batch: Batch,
        rows: Rows,
        of: Rows,
        contexts: Sequence[Context | None],
        key: U64,
        place: NDArray[np.int32],
        missed: Rows,
        plain: Mask,
    ) -> None:
        """Learn what the missed rows mean; connections whose sessions change are not plain."""
        missed_rows = rows[missed]
        text, width = batch.text, batch.width
        begin = missed_rows * width
        new: dict[int, int] = {}
        places: list[int] = []
        for row, number, index, like, start, stop in zip(
            missed_rows.tolist(),
            key[missed].tolist(),
            of[missed_rows].tolist(),
            batch.plain[missed_rows].tolist(),
            begin.tolist(),
            (begin + batch.used[missed_rows]).tolist(),
            strict=True,
        ):
            known = new.get(number, -1)
            if known < 0:
                context = contexts[index]
                assert context is not None
                meaning = self._ask(batch, row, like, text[start:stop], context)
                if meaning.change is None:
                    known = new[number] = self._place(meaning)
                else:
                    plain[index] = False
            places.append(known)
        place[missed] = places
        if new:
            self._known.learn(new)

    def _place(self, meaning: Meaning) -> int:
        # As long as it has a place it lives, and nothing else has its id.
        place = self._places.get(id(meaning))
        if place is None:
            place = self._places[id(meaning)] = len(self._meanings)
            self._meanings.append(meaning)
        return place

    def _number(self, context: Context) -> int:
        number = self._contexts.get(context)
        if number is None:
            if len(self._contexts) >= MAX_REMEMBERED:
                self._contexts.clear()
            # Never used again, so what is remembered of the forgotten ones does no harm.
            number = self._contexts[context] = self._next
            self._next += 1
        return number

    def _grow(self) -> None:
        new = self._meanings[len(self._shape) :]
        if new:
            self._shape = np.append(self._shape, np.array([m.shape for m in new], np.int32))
            self._returns = np.append(self._returns, np.array([m.returns for m in new]))
            self._affects = np.append(self._affects, np.array([m.affects for m in new]))
