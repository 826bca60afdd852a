"""What is known of exchanges: a node for each side of each, found by a 64-bit token.

A token names a side before anything has been heard of it: a client's side by its span id,
which the server's side computes too, and a server's side by its exchange id, which the
kernel gives its process's own requests. So an edge to a side that is still to come is an
edge to a node in the state ABSENT.

Everything is in columns, and a node is a row of them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracer.columns import I32, U64, Rows

# States of a node: awaited only; its span is held back; its span is out.
ABSENT, HELD, OUT = 0, 1, 2

# Nodes. Those whose spans are out make room, the oldest first, when there are too many.
CAPACITY = 1 << 16

_COLUMNS = (
    ("token", np.uint64),
    ("span", np.uint64),
    ("trace_high", np.uint64),
    ("trace_low", np.uint64),
    ("remote", np.uint64),  # parent that the request itself names; 0: none
    ("start_ns", np.uint64),
    ("near", np.uint16),  # that of Links, as long as it may be waited for longer
    # When it was made or its span went out; HELD: until when its parent is waited for.
    ("when", np.int64),
    ("parent", np.int32),  # -1: none
    ("top", np.int32),
    ("claim", np.int32),
    ("state", np.uint8),
    ("flags", np.uint8),
    ("evidence", np.uint8),
    ("mark", np.uint8),  # what the span says of its trace, see tracer.sampling
    ("fate", np.uint8),  # of its trace, once decided
)


class Nodes:
    """The columns, and the table of tokens. Words of ids hold their bytes as they come."""

    token: U64
    span: U64
    trace_high: U64
    trace_low: U64
    remote: U64
    start_ns: U64
    near: NDArray[np.uint16]
    when: NDArray[np.int64]
    parent: I32
    top: I32
    claim: I32
    state: NDArray[np.uint8]
    flags: NDArray[np.uint8]
    evidence: NDArray[np.uint8]
    mark: NDArray[np.uint8]
    fate: NDArray[np.uint8]

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.used = 0
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        self.capacity = capacity
        for name, dtype in _COLUMNS:
            column = np.zeros(capacity, dtype=dtype)
            if self.used:
                column[: self.used] = getattr(self, name)[: self.used]
            setattr(self, name, column)
        # Of nodes plus one, 0 for none. Sparse, since each further step of a walk costs as
        # much as the first for few tokens.
        cells = 1 << (4 * capacity - 1).bit_length()
        self._cells: I32 = np.zeros(cells, dtype=np.int32)
        self._mask = np.uint64(cells - 1)

    def fresh(self, count: int, now_ns: int) -> I32:
        """Return new nodes that no token finds."""
        nodes = np.arange(self.used, self.used + count, dtype=np.int32)
        self.used += count
        chosen = slice(self.used - count, self.used)
        self.token[chosen] = 0
        self.parent[chosen] = -1
        self.top[chosen] = nodes
        self.when[chosen] = now_ns
        self.state[chosen] = ABSENT
        self.flags[chosen] = 0
        self.remote[chosen] = 0
        self.near[chosen] = 0
        self.fate[chosen] = 0
        return nodes

    def find(self, tokens: U64) -> I32:
        """Return the nodes of tokens, -1 for the unknown; (n,)."""
        return self._walk(tokens, None)

    def intern(self, tokens: U64, now_ns: int) -> I32:
        """Return the nodes of tokens, new ones for the unknown; (n,). No token is 0."""
        fresh = self.fresh(len(tokens), now_ns)
        self.token[fresh] = tokens
        return self._walk(tokens, fresh)

    def _walk(self, tokens: U64, fresh: I32 | None) -> I32:
        """Look tokens up; of the unknown, take those of `fresh` with the same places.

        fresh: nodes that have these tokens; those of known ones are left to themselves.
        """
        cells = (tokens & self._mask).view(np.int64)
        found = self._held(cells, fresh)
        # -1 is some other node's: the last.
        hit = (self.token.take(found) == tokens) & (found >= 0)
        if hit.all():
            return found
        rows = np.flatnonzero(~hit & (found >= 0))
        if fresh is None:
            found[~hit] = -1
        tokens, cells = tokens.take(rows), cells.take(rows)
        while len(rows):
            cells = (cells + 1) & int(self._mask)
            held = self._held(cells, None if fresh is None else fresh.take(rows))
            hit = (self.token.take(held) == tokens) & (held >= 0)
            at = np.flatnonzero(hit)
            found[rows.take(at)] = held.take(at)
            left = np.flatnonzero(~hit & (held >= 0))
            rows, tokens, cells = rows.take(left), tokens.take(left), cells.take(left)
        return found

    def _held(self, cells: Rows, fresh: I32 | None) -> I32:
        """Return the nodes that cells hold, -1 for none; with `fresh`, those move in there."""
        held = self._cells.take(cells)
        if fresh is not None:
            free = np.flatnonzero(held == 0)
            if len(free):
                wanted = cells.take(free)
                # Of several that want one cell the last wins, and the others walk on.
                self._cells[wanted] = fresh.take(free) + np.int32(1)
                held[free] = self._cells.take(wanted)
        held -= np.int32(1)
        return held

    def room(self, count: int, held: I32, horizon_ns: int) -> I32 | None:
        """Make room for `count` nodes more.

        held: nodes of the spans held back, which stay, as does what they await. Of the
        others only those newer than `horizon_ns` stay, at most a quarter of all.
        Returns None if there is room, else the name that each node has from now on: -1 for
        those that are gone, and at the end, so that -1 stays -1.
        """
        if self.used + count <= self.capacity:
            return None
        used = self.used
        keep = np.zeros(used, dtype=np.bool_)
        keep[held] = True
        parent = self.parent[held]
        keep[parent[parent >= 0]] = True
        # Names are given in order of time, so that the last are the newest.
        others = np.flatnonzero(
            ~keep
            & (self.when[:used] > horizon_ns)
            & ((self.state[:used] == OUT) | (self.flags[:used] != 0))
        )
        spare = max(0, self.capacity // 4 - int(np.count_nonzero(keep)))
        keep[others[max(0, len(others) - spare) :]] = True
        kept = np.flatnonzero(keep)
        names = np.full(used + 1, -1, dtype=np.int32)  # the last: of no node
        names[kept] = np.arange(len(kept))
        for name, _ in _COLUMNS:
            column = getattr(self, name)
            column[: len(kept)] = column[kept]
        self.used = len(kept)
        self.parent[: self.used] = names[self.parent[: self.used]]
        # Held ones are resolved anew each time.
        self.top[: self.used] = np.arange(self.used)
        if self.used + count > self.capacity // 4 * 3:
            self._allocate(max(2 * self.capacity, 1 << (2 * (self.used + count)).bit_length()))
        else:
            self._cells.fill(0)
        named = np.flatnonzero(self.token[: self.used])
        self._walk(self.token[named], named.astype(np.int32))
        return names
