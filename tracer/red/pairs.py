"""The two sides of an exchange, brought together by the client's span id.

Both sides mostly come in one batch. What is left over waits for its other side in one of
two generations: when the younger is full or old enough, the elder is forgotten. Most of
what waits has no other side on this host.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracer.columns import U64, Rows, Table

# A side waits for so long at least, unless too many do.
AGE_NS = 10 * 10**9
CAPACITY = 1 << 16

# What is known of n sides, (n, 3): duration in ns, a number that says what kind it is, and for
# how many it stands.
Sides = NDArray[np.int64]


class _Generation:
    """Sides that wait, by span id."""

    def __init__(self, began_ns: int) -> None:
        self.began_ns = began_ns
        self._rows = Table()
        self._sides = np.zeros((1024, 3), dtype=np.int64)
        self._waiting = np.zeros(1024, dtype=np.bool_)
        self.count = 0

    @property
    def waiting(self) -> int:
        """How many still wait."""
        return int(np.count_nonzero(self._waiting[: self.count]))

    def add(self, spans: U64, sides: Sides) -> None:
        """Keep sides, (n,), whose spans are distinct."""
        end = self.count + len(spans)
        if end > len(self._sides):
            size = max(end, 2 * len(self._sides))
            self._sides = np.resize(self._sides, (size, 3))
            self._waiting = np.resize(self._waiting, size)
        rows = np.arange(self.count, end, dtype=np.int32)
        self._sides[rows], self._waiting[rows] = sides, True
        self._rows.put(spans, rows)
        self.count = end

    def take(self, spans: U64) -> tuple[Rows, Sides]:
        """Return which of `spans` are here, (m,), and what is known of them; they wait no more."""
        found = self._rows.find(spans)
        at = np.flatnonzero(found >= 0)
        at = at[self._waiting[found[at]]]
        self._waiting[found[at]] = False
        return at, self._sides.take(found[at], axis=0)


class Pairs:
    """Used from one thread. Spans are ids as words, not 0; a server's is its client's.

    forgotten: sides that had to go before AGE_NS, for too many waited.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        # Of clients, of servers: the younger generation first.
        self._waiting = ([_Generation(0), _Generation(0)], [_Generation(0), _Generation(0)])
        self.forgotten = 0

    def join(
        self, clients: U64, client_sides: Sides, servers: U64, server_sides: Sides, now_ns: int
    ) -> tuple[Sides, Sides]:
        """Take in sides; return those that are now complete, clients and servers, both (m,)."""
        spans = np.concatenate((clients, servers))
        order = np.argsort(spans)
        ordered = spans.take(order)
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        one, other = order[same], order[same + 1]
        first, second = np.minimum(one, other), np.maximum(one, other)
        alone = np.ones(len(spans), dtype=np.bool_)
        # Twice the same id on one side: one of them can meet its other side, at most.
        alone[second] = False
        both = (first < len(clients)) & (second >= len(clients))
        first, second = first[both], second[both]
        alone[first] = False
        found = [
            (client_sides.take(first, axis=0), server_sides.take(second - len(clients), axis=0))
        ]
        rows = np.flatnonzero(alone[: len(clients)])
        found.append(self._meet(0, clients[rows], client_sides.take(rows, axis=0), now_ns))
        rows = np.flatnonzero(alone[len(clients) :])
        met = self._meet(1, servers[rows], server_sides.take(rows, axis=0), now_ns)
        found.append(met[::-1])
        return (
            np.concatenate([client for client, _ in found]),
            np.concatenate([server for _, server in found]),
        )

    def _meet(self, side: int, spans: U64, sides: Sides, now_ns: int) -> tuple[Sides, Sides]:
        """Find the other sides that wait, and keep what finds none; returns ours and theirs."""
        if not len(spans):
            return sides, sides
        ours, theirs = [sides[:0]], [sides[:0]]
        for generation in self._waiting[1 - side]:
            if generation.count:
                at, other = generation.take(spans)
                ours.append(sides.take(at, axis=0))
                theirs.append(other)
                left = np.ones(len(spans), dtype=np.bool_)
                left[at] = False
                spans, sides = spans[left], sides[left]
        generations = self._waiting[side]
        young = generations[0]
        if young.count and (
            now_ns - young.began_ns > AGE_NS or young.count + len(spans) > self._capacity
        ):
            if now_ns - young.began_ns <= AGE_NS:
                self.forgotten += generations[1].waiting
            generations[:] = [_Generation(now_ns), young]
        if len(spans):
            if not generations[0].count:
                generations[0].began_ns = now_ns
            generations[0].add(spans, sides)
        return np.concatenate(ours), np.concatenate(theirs)
