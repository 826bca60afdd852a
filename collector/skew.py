"""How far the clocks of two hosts are apart, found from the exchanges between them.

A client's span [cs, ce] encloses the server's span [ss, se] of the same exchange. So the
server's clock, less the client's, lies between se - ce and ss - cs: an interval as wide as
the time on the wire. The clock offset of a pair of hosts is where most of the recent
intervals overlap; single exchanges that say otherwise (a client that gave up early) are
outvoted. As long as nearly all agree with no offset at all, the clocks are left alone.
Pure: no sockets, files, threads or clocks.
Source: K. A. Marzullo, "Maintaining the Time in a Distributed System" (1984), whose
interval algorithm NTP uses too (RFC 5905 section 11.2.1,
https://www.rfc-editor.org/rfc/rfc5905#section-11.2.1).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

# How many exchanges of a pair of hosts count; clocks drift, so old ones must go.
SAMPLES = 64
MAX_PAIRS = 10_000
# Where not all agree, the vote is taken anew each so many exchanges: the old ones leave.
RECOUNT = 8
# Of the exchanges that agree best, the share that must agree with "no offset".
NO_OFFSET_SHARE = 0.9


@dataclass(slots=True)
class _Pair:
    """Intervals of the second host's clock less the first's, in ns, the newest last."""

    intervals: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    observed: int = 0
    low: int = 0
    high: int = 0
    unanimous: bool = False
    offset_ns: int = 0


class Clocks:
    """The clock offsets of all pairs of hosts that have talked to each other."""

    def __init__(self, max_pairs: int = MAX_PAIRS) -> None:
        self._pairs: OrderedDict[tuple[str, str], _Pair] = OrderedDict()
        self._max_pairs = max_pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def observe(self, client: str, server: str, low: int, high: int) -> None:
        """Take an exchange: the server's clock is `low` to `high` ns ahead of the client's."""
        if low > high or client == server:
            return  # the server worked on after the client had left: says nothing
        if client > server:
            client, server, low, high = server, client, -high, -low
        pair = self._pairs.get((client, server))
        if pair is None:
            pair = self._pairs[client, server] = _Pair()
            if len(self._pairs) > self._max_pairs:
                self._pairs.popitem(last=False)
        else:
            self._pairs.move_to_end((client, server))
        pair.intervals.append((low, high))
        pair.observed += 1
        agrees = low <= pair.low and pair.high <= high and pair.observed > 1
        if agrees and (pair.unanimous or pair.observed % RECOUNT):
            return  # cannot make it more exact
        pair.low, pair.high = overlap(pair.intervals)
        _settle(pair)

    def offset_ns(self, reference: str, other: str) -> int:
        """How far the clock of `other` is ahead of that of `reference`; 0 where unknown."""
        if reference < other:
            pair = self._pairs.get((reference, other))
            return pair.offset_ns if pair else 0
        pair = self._pairs.get((other, reference))
        return -pair.offset_ns if pair else 0

    def offsets(self) -> dict[tuple[str, str], int]:
        """All pairs whose clocks differ, with the offset of the second in ns."""
        return {hosts: pair.offset_ns for hosts, pair in self._pairs.items() if pair.offset_ns}


def overlap(intervals: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Find the interval that most of `intervals` (low <= high) share; at least one is given."""
    # At equal places an interval opens before another closes: ends belong to intervals.
    edges = sorted([(low, -1) for low, _ in intervals] + [(high, 1) for _, high in intervals])
    depth = most = 0
    best = (0, 0)
    for index, (place, step) in enumerate(edges):
        depth -= step
        if step < 0 and depth > most:
            most, best = depth, (place, edges[index + 1][0])
    return best


def _settle(pair: _Pair) -> None:
    def agree(offset: int) -> int:
        return sum(low <= offset <= high for low, high in pair.intervals)

    middle = (pair.low + pair.high) // 2
    most = agree(middle)
    pair.unanimous = most == len(pair.intervals)
    pair.offset_ns = 0 if agree(0) >= NO_OFFSET_SHARE * most else middle


def shift_ns(offset_ns: int, low: int, high: int) -> int:
    """By how much to move a server's span back, given its pair's offset and its own interval.

    Its start never comes to lie before the client's. Nor does its end after the client's,
    where it can be so and the clocks are known to differ; where they do not differ, a server
    that outlasted its client did so in truth.
    """
    shift = max(offset_ns, low) if offset_ns and low <= high else offset_ns
    return min(shift, high)
