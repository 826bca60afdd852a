"""What proxies give away: a request that goes out as it came in.

A client's span for which the kernel has no evidence is matched with an exchange that its
process served: same process, same method and target, and within the time in which that
exchange was under way. Only what leaves no choice is a match: there is exactly one such
exchange, and no other unlinked request with the same content was out at the same time. One
after another (retries) is fine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.columns import U64, Rows, unlike

# How far a request may outlast the exchange it was made for, in ns: both ends are noted when
# the process passes the last bytes on.
SLACK_NS = 1_000_000
# Bits for times within one group; the rest tell groups apart.
_TIME_BITS = 42
_TIME_MAX = (1 << _TIME_BITS) - 1


class Spans(NamedTuple):
    """n spans: what they have in common with others, and when they were; CLOCK_MONOTONIC ns.

    group: equal for the same process, method and target.
    """

    group: U64
    start_ns: U64
    end_ns: U64


def match(servers: Spans, clients: Spans) -> NDArray[np.int64]:
    """Return for each client the server that it must belong to, -1 for none; (n,).

    servers: all that may have been under way while the clients were.
    clients: all that are unlinked, also those that were decided on before.
    """
    matched = np.full(len(clients.group), -1, dtype=np.int64)
    if not len(servers.group) or not len(clients.group):
        return matched
    origin = min(int(servers.start_ns.min()), int(clients.start_ns.min()))
    groups = unlike(servers.group)
    place = np.searchsorted(groups, clients.group)
    place[place == len(groups)] = 0
    rows = np.flatnonzero(groups[place] == clients.group)
    if not len(rows):
        return matched
    high = place[rows] << _TIME_BITS
    start = high + _since(clients.start_ns[rows], origin)
    end = high + _since(clients.end_ns[rows], origin)
    rows, start, end = _alone(rows, start, end)

    server_high = np.searchsorted(groups, servers.group) << _TIME_BITS
    server_start = server_high + _since(servers.start_ns, origin)
    order = np.argsort(server_start, kind="stable")
    server_end = (server_high + _since(servers.end_ns + np.uint64(SLACK_NS), origin))[order]
    # Of all that began before a place in this order: which ends last, and when does the one
    # before it. Ends of other groups are smaller than any of this one.
    last = np.maximum.accumulate(server_end)
    before = np.concatenate((np.full(1, -1), last[:-1]))
    second = np.maximum.accumulate(np.minimum(before, server_end))
    holder = np.maximum.accumulate(np.where(server_end > before, np.arange(len(order)), 0))
    at = np.searchsorted(server_start[order], start, side="right") - 1
    fits = (at >= 0) & (last[at] >= end) & (second[at] < end)
    matched[rows[fits]] = order[holder[at[fits]]]
    return matched


def _since(times: U64, origin: int) -> NDArray[np.int64]:
    """Return times from `origin` on, cut to what there are bits for (an hour and more)."""
    since: U64 = np.minimum(times - np.uint64(origin), np.uint64(_TIME_MAX))
    return since.astype(np.int64)


def _alone(
    rows: Rows, start: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
    """Leave out whatever overlaps another of its group."""
    order = np.argsort(start, kind="stable")
    rows, start, end = rows[order], start[order], end[order]
    until = np.maximum.accumulate(end)
    overlaps = start[1:] < until[:-1]
    alone = np.ones(len(rows), dtype=np.bool_)
    alone[1:] &= ~overlaps
    # Whoever reaches into a later one overlaps the next one, too.
    alone[:-1] &= ~(end[:-1] > start[1:])
    return rows[alone], start[alone], end[alone]
