"""Who may be matched by content: what a process served of late, and its unlinked requests.

Only processes that serve and send unlinked requests, both with content to compare, take
part; in all others nothing is kept, and no span waits. That a process serves is learnt
from its first served exchange.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracer.columns import I32, U64, Rows, Table, absorb, nonzero, unlike
from tracer.link.content import Spans, match
from tracer.spans import Links

# Processes remembered before all are forgotten, and exchanges or requests kept.
MAX_PROCESSES = 4096
MAX_KEPT = 65_536
_SERVES, _SENDS = 1, 2


class _Log:
    """Spans in the order in which they came."""

    def __init__(self) -> None:
        self.spans = np.zeros((0, 3), dtype=np.uint64)  # group, start, end
        self.nodes: I32 = np.zeros(0, dtype=np.int32)
        self.when: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.pending: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)

    def add(self, group: U64, links: Links, nodes: I32, rows: Rows, now_ns: int) -> None:
        spans = np.stack((group[rows], links.start_ns[rows], links.end_ns[rows]), axis=1)
        self.spans = np.concatenate((self.spans, spans))
        self.nodes = np.concatenate((self.nodes, nodes[rows]))
        self.when = np.concatenate((self.when, np.full(len(rows), now_ns)))
        self.pending = np.concatenate((self.pending, np.ones(len(rows), dtype=np.bool_)))

    def keep(self, rows: NDArray[np.bool_]) -> None:
        if not rows.all():
            self.spans, self.nodes = self.spans[rows], self.nodes[rows]
            self.when, self.pending = self.when[rows], self.pending[rows]

    def columns(self) -> Spans:
        return Spans(self.spans[:, 0], self.spans[:, 1], self.spans[:, 2])


class Candidates:
    """Times are CLOCK_MONOTONIC ns.

    settle_ns: how long after a request it is first tried; exchanges that were under way
        at the same time have mostly come by then.
    wait_ns: how long after it the trying ends.
    """

    def __init__(self, settle_ns: int, wait_ns: int) -> None:
        self._settle_ns = settle_ns
        self._wait_ns = wait_ns
        self._processes = Table()
        self._servers, self._clients = _Log(), _Log()
        self._tried_ns = 0

    def add(self, links: Links, nodes: I32, lonely: NDArray[np.bool_], now_ns: int) -> Rows:
        """Take note of a batch; return the rows, among `lonely`, that should wait."""
        process = nonzero(links.process)
        serves = ~links.client & (links.content != 0)
        known = self._processes.find(process)
        self._learn(process[serves & (known < 0)], _SERVES)
        waits = np.flatnonzero(lonely)
        if len(waits):
            waits = waits[self._processes.find(process[waits]) > 0]
            self._learn(process[waits], _SENDS)
        group: U64 | None = None
        if len(waits) or (known == _SENDS).any():
            group = absorb(process, links.content)
            kept = np.flatnonzero(serves)
            kept = kept[self._processes.find(process[kept]) == _SENDS]
            self._servers.add(group, links, nodes, kept, now_ns)
            self._clients.add(group, links, nodes, waits, now_ns)
        return waits

    def _learn(self, process: U64, what: int) -> None:
        if not len(process):
            return
        new = unlike(process)
        if len(self._processes) + len(new) > MAX_PROCESSES:
            self._processes.clear()
        self._processes.put(new, np.full(len(new), what, dtype=np.int32))

    def rename(self, names: I32) -> None:
        """Take note of the nodes' new names; names[-1] and those of gone nodes are -1."""
        for log in (self._servers, self._clients):
            log.nodes = names[log.nodes]

    def decide(self, now_ns: int, everything: bool) -> tuple[I32, I32, I32]:
        """Return nodes of requests, those of the exchanges that they belong to, both (m,).

        And nodes of requests that needn't wait any more. everything: none waits any more.
        """
        clients, servers = self._clients, self._servers
        none: I32 = np.zeros(0, dtype=np.int32)
        crowded = len(clients.nodes) > MAX_KEPT or len(servers.nodes) > MAX_KEPT
        if not everything and not crowded and now_ns < self._tried_ns + self._settle_ns // 8:
            return none, none, none
        self._tried_ns = now_ns
        if not len(clients.nodes) and not len(servers.nodes):
            return none, none, none
        if crowded:
            # Who is forgotten could have been the other choice.
            hopeless = clients.nodes[clients.pending]
            self._servers, self._clients = _Log(), _Log()
            return none, none, hopeless
        due = clients.pending & (everything | (clients.when + self._settle_ns <= now_ns))
        found: tuple[I32, I32, I32] = none, none, none
        if due.any():
            place = match(servers.columns(), clients.columns())
            linked = due & (place >= 0)
            linked[linked] = servers.nodes[place[linked]] >= 0
            over = due & ~linked & (everything | (clients.when + self._wait_ns <= now_ns))
            found = clients.nodes[linked], servers.nodes[place[linked]], clients.nodes[over]
            clients.pending &= ~(linked | over)
        clients.keep(clients.pending | (clients.when + 2 * self._wait_ns > now_ns))
        servers.keep(servers.when + self._wait_ns + self._settle_ns > now_ns)
        return found
