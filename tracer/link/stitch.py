"""The stitcher: holds spans back until their trace is known, then hands them on.

Each side of an exchange is a node, and each has at most one parent:

    a server's side   the client's side of the same exchange
    a client's side   the server's side of the exchange it was made for, of the same process

so that traces are trees. A span is handed on, once, when the top of its tree is known: a
node without a parent, or one whose span is out already. What doesn't come in time is cut:

- A server's side whose client is not traced here becomes a top after EDGE_WAIT_NS. But
  a client that is busy may be long in reading its response: on this host it is waited for
  NEAR_WAIT_NS, if clients of the same service are known to be traced, or the service has
  not been known for that long. Its parent is then the one that the request names
  (tracer.link.headers), or, where another tracer may have seen the client (`downstream`),
  the client's side nonetheless.
- A client's side waits LINK_WAIT_NS for the exchange it was made for, or before a collector
  DOWNSTREAM_LINK_WAIT_NS, then goes out without a parent under a trace id that is computed
  from that exchange's id (`link_late`). The exchange adopts it when it comes, and so does the
  top of its tree, so that the trace stays whole; where both are out under ids of their own it
  is too late (`link_split`).
- A client's side sent by a thread of a pool waits SETTLE_NS for the kernel to tell whom that
  thread woke with the answer (FLOW_HANDOVER), and once it did, SETTLE_NS for another one: a
  thread that wakes two woke one of them for something else (a lock), so neither is taken
  (`link_doubtful`).
- A client's side without evidence from the kernel, in a process that also serves, waits
  SETTLE_NS to CONTENT_WAIT_NS for an exchange with the same content (tracer.link.content).

A request that names a parent: if it is the one that the exchange's own request named, it
was passed on, and the link stands. If it is another, something in the process traces, too,
and the client's side belongs below that. A name at a client's side that traces within the
process also tells the trace of an exchange that has none from elsewhere.

All work is on columns; what a feed costs grows with the spans in it and, at some ns each,
with the spans held back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer import ids
from tracer.columns import I32, U64, Rows
from tracer.flow import Evidence
from tracer.link.candidates import Candidates
from tracer.link.held import Held, batches
from tracer.link.known import ABSENT, CAPACITY, HELD, OUT, Nodes
from tracer.sampling import KEEP, KEPT, Sampler
from tracer.spans import EVIDENCE, Links, SpanBatch, Text

EDGE_WAIT_NS = 250_000_000
NEAR_WAIT_NS = 5_000_000_000
LINK_WAIT_NS = 30_000_000_000
# Before a collector: it waits for a missing client's side no longer than 6 s.
DOWNSTREAM_LINK_WAIT_NS = 5_000_000_000
SETTLE_NS = 250_000_000
CONTENT_WAIT_NS = 400_000_000
# How long what is out is remembered at most; less where there is much traffic.
REMEMBER_NS = 60_000_000_000
HELD_MAX = 65_536
LOSSES = ("link_late", "link_split", "link_refused", "link_doubtful", "link_full")

_WAKEUP = int(Evidence.WAKEUP)
# Evidence of user space, after enum flow_evidence's.
CONTENT, STREAM, TRACEPARENT = 32, 33, 34
_NAMES = {
    **{int(evidence): evidence.name.lower() for evidence in Evidence if evidence},
    CONTENT: "content",
    STREAM: "stream",
    TRACEPARENT: "traceparent",
}
_WIDTH = max(map(len, _NAMES.values()))
_TEXTS = np.array([_NAMES.get(number, "").encode() for number in range(256)], dtype=f"S{_WIDTH}")
_LENGTHS = np.zeros(256, dtype=np.uint16)
for _number, _name in _NAMES.items():
    _LENGTHS[_number] = len(_name)

# Flags of a node.
_CLIENT, _REMOTE, _ADOPTED, _HINT, _PENDING, _UNJUDGED, _ALONE = 1, 2, 4, 8, 16, 32, 64
# What may yet get a parent, by its content or by a handover.
_OPEN = _PENDING | _ALONE
# Those of nodes that know a trace id other than their own.
_TELLING = _REMOTE | _ADOPTED | _HINT
# Rounds of pointer jumping; each doubles the depth, so more are only needed in a cycle.
_ROUNDS = 32


class Waits(NamedTuple):
    """How long to wait for what, in ns."""

    edge_ns: int = EDGE_WAIT_NS
    link_ns: int = LINK_WAIT_NS
    settle_ns: int = SETTLE_NS
    content_ns: int = CONTENT_WAIT_NS
    near_ns: int = NEAR_WAIT_NS


class Stitcher:
    """Gives spans their traces and parents; used from one thread. Times are CLOCK_MONOTONIC.

    downstream: another stitcher comes behind this one, which joins hosts.
    held_max: spans held back; when there are more, the oldest go first.
    sampler: decides, as the first span of a trace leaves, what becomes of it; None: nothing is
        to be decided.
    """

    def __init__(
        self,
        downstream: bool = False,
        held_max: int = HELD_MAX,
        waits: Waits | None = None,
        capacity: int = CAPACITY,
        sampler: Sampler | None = None,
    ) -> None:
        self._downstream = downstream
        # By Links.near: whether clients of a service were traced, and since when it is known.
        self._met = np.zeros(1 << 16, dtype=np.bool_)
        self._since = np.full(1 << 16, -1)
        self._held_max = held_max
        self._waits = waits or Waits(
            link_ns=DOWNSTREAM_LINK_WAIT_NS if downstream else LINK_WAIT_NS
        )
        self._sampler = sampler
        self._nodes = Nodes(capacity)
        self._held = Held()
        # Client's sides that wait for a handover, by `exchange`: node, until when, and the token
        # of whom it was handed to, 0 so far.
        self._alone: dict[int, tuple[int, int, int]] = {}
        self._candidates = Candidates(self._waits.settle_ns, self._waits.content_ns)
        self._losses = dict.fromkeys(LOSSES, 0)

    def __len__(self) -> int:
        """How many spans are held back."""
        return len(self._held)

    @property
    def since_ns(self) -> int:
        """When the one that has waited longest came, 0 where none is held back."""
        return self._held.since_ns

    def losses(self) -> dict[str, int]:
        """Count links that came to nothing; keys of tracer.losses.USER."""
        return dict(self._losses)

    def feed(self, batch: SpanBatch, now_ns: int) -> list[SpanBatch]:
        """Take in a batch with its links; return the spans that need wait no more.

        Those of one list of shapes are in one batch, in the order in which they came.
        """
        if len(batch):
            assert batch.links is not None, "the reassembler tells links"
            self._admit(batch, batch.links, now_ns)
        if batch.links is not None and batch.links.handovers is not None:
            self._hand_over(batch.links.handovers, now_ns)
        return self._settle(now_ns, False)

    def flush(self, now_ns: int, all: bool = False) -> list[SpanBatch]:
        """Return the spans that have waited for too long; all: every one that is held."""
        return self._settle(now_ns, all)

    def _admit(self, batch: SpanBatch, links: Links, now_ns: int) -> None:
        """Make nodes of a batch's rows."""
        store, count = self._nodes, len(batch)
        names = store.room(3 * count, self._held.nodes, now_ns - REMEMBER_NS)
        if names is not None:
            self._candidates.rename(names)
            self._held.rename(names[self._held.nodes])
            self._alone = {
                exchange: (int(names[node]), until, parent)
                for exchange, (node, until, parent) in self._alone.items()
            }
        client = links.client
        span = _words(batch.span_id, 1)[:, 0]
        trace = _words(batch.trace_id, 2)
        nodes = store.intern(np.where(client, span, links.exchange), now_ns)
        rows = np.arange(count, dtype=np.int32)
        store.claim[nodes] = rows
        twins = (store.state[nodes] != ABSENT) | (store.claim[nodes] != rows)
        if twins.any():
            # Twice the same numbers: each is a span, but only the first can be linked to.
            nodes[twins] = store.fresh(int(np.count_nonzero(twins)), now_ns)
        parent = np.full(count, -1, dtype=np.int32)
        awaiting = np.flatnonzero(links.parent)
        parent[awaiting] = self._awaited(links.parent[awaiting], now_ns)

        # Only a client's side can be given a parent in error.
        flags = (client * np.uint8(_CLIENT)) | ((client & (parent >= 0)) * np.uint8(_UNJUDGED))
        hinted = store.flags.take(nodes) & _HINT != 0
        remote = links.remote
        named = remote.span != 0
        if named.any():
            flags[named] |= _REMOTE
            trace = np.where(named[:, np.newaxis], np.stack(remote[:2], axis=1), trace)
        if hinted.any():
            flags[hinted] |= _ADOPTED
            adopts = hinted & ~named
            split = hinted & named & (store.trace_high[nodes] != trace[:, 0])
            self._losses["link_split"] += int(np.count_nonzero(split))
            trace = trace.copy()
            trace[adopts, 0] = store.trace_high[nodes[adopts]]
            trace[adopts, 1] = store.trace_low[nodes[adopts]]
        # Mostly new nodes, one behind the other, and those are quicker to fill.
        first = int(nodes[0])
        whole = np.array_equal(nodes, np.arange(first, first + count))
        at = slice(first, first + count) if whole else nodes.astype(np.intp)
        store.span[at] = span
        store.trace_high[at] = trace[:, 0]
        store.trace_low[at] = trace[:, 1]
        store.remote[at] = remote.span
        store.start_ns[at] = links.start_ns
        waits = self._waits
        store.when[at] = np.where(client, now_ns + waits.link_ns, now_ns + waits.edge_ns)
        near = np.where(client, np.uint16(0), links.near)
        self._met[links.near[client]] = True
        new = near[self._since.take(near) < 0]
        self._since[new] = now_ns
        store.near[at] = near
        store.parent[at] = parent
        store.state[at] = HELD
        store.evidence[at] = links.evidence
        lonely = client & (parent < 0) & ~named & (links.content != 0)
        pending = self._candidates.add(links, nodes, lonely, now_ns)
        if len(pending):
            flags[pending] |= _PENDING
        alone = np.flatnonzero(client & (parent < 0) & ~named & (links.evidence == _WAKEUP))
        flags[alone] |= _ALONE
        store.flags[at] = flags
        for row in alone.tolist():  # calls of thread pools alone
            exchange = int(links.exchange[row])
            twin = self._alone.get(exchange)
            if twin:  # no handover can be for it any more
                store.flags[twin[0]] &= 0xFF ^ _ALONE
            self._alone[exchange] = int(nodes[row]), now_ns + waits.settle_ns, 0
        if self._sampler:
            store.mark[at] = self._sampler.marks(batch)
        self._held.add(replace(batch, links=None), nodes, now_ns)

    def _hand_over(self, handovers: U64, now_ns: int) -> None:
        """Take note whom a client's thread woke after the answer; of two, neither is taken."""
        for exchange, parent in handovers.tolist():
            node, _, before = self._alone.pop(exchange, (-1, 0, 0))
            if node < 0:
                self._losses["link_late"] += 1
            elif before in (0, parent):
                self._alone[exchange] = node, now_ns + self._waits.settle_ns, parent
            else:
                self._nodes.flags[node] &= 0xFF ^ _ALONE
                self._losses["link_doubtful"] += 1

    def _wait_no_more(self, now_ns: int, everything: bool) -> None:
        """Link those for which one handover came, and let the others go."""
        store = self._nodes
        over = [
            exchange
            for exchange, (_, until, _) in self._alone.items()
            if everything or until <= now_ns
        ]
        for exchange in over:
            node, _, parent = self._alone.pop(exchange)
            if parent:
                store.parent[node] = self._awaited(np.array([parent], dtype=np.uint64), now_ns)[0]
                store.flags[node] = store.flags[node] & (0xFF ^ _OPEN) | _UNJUDGED
            else:
                store.flags[node] &= 0xFF ^ _ALONE

    def _awaited(self, tokens: U64, now_ns: int) -> I32:
        """Return the nodes of parents, new ones for those that haven't come."""
        nodes = self._nodes.find(tokens)
        missing = np.flatnonzero(nodes < 0)
        if len(missing):
            nodes[missing] = self._nodes.intern(tokens[missing], now_ns)
        return nodes

    def _settle(self, now_ns: int, everything: bool) -> list[SpanBatch]:
        """Hand out what is resolved now."""
        held = self._held.nodes
        if not len(held):
            return []
        if self._alone:
            self._wait_no_more(now_ns, everything)
        self._match(now_ns, everything)
        self._judge(held)
        self._expire(held, now_ns, everything)
        ready, top = self._resolve(held)
        excess = len(held) - int(np.count_nonzero(ready)) - self._held_max
        if excess > 0:
            self._force(held, top, np.flatnonzero(~ready)[:excess])
            ready, top = self._resolve(held)
        if not ready.any():
            return []
        return self._publish(held[ready], top[ready], ready, now_ns)

    def _match(self, now_ns: int, everything: bool) -> None:
        """Link or let go those for which only their content can speak."""
        store = self._nodes
        clients, servers, hopeless = self._candidates.decide(now_ns, everything)
        for nodes in (clients, hopeless):
            store.flags[nodes] &= 0xFF ^ _PENDING
        store.parent[clients] = servers
        store.evidence[clients] = CONTENT

    def _judge(self, held: I32) -> None:
        """Cut edges to parents that have come and can't be."""
        store = self._nodes
        fresh = held.take(np.flatnonzero(store.flags.take(held) & _UNJUDGED))
        parent = store.parent.take(fresh)
        arrived = np.flatnonzero(store.state.take(parent) != ABSENT)
        if not len(arrived):
            return
        fresh, parent = fresh.take(arrived), parent.take(arrived)
        flags = store.flags.take(fresh)
        store.flags[fresh] = flags & (0xFF ^ _UNJUDGED)
        # Only of client spans: what a server's side hangs on is no matter of time.
        refused = store.start_ns.take(fresh) < store.start_ns.take(parent)
        if refused.any():
            self._cut(fresh[refused])
            self._losses["link_refused"] += int(np.count_nonzero(refused))
        named = ~refused & (flags & _REMOTE != 0)
        if named.any():
            named &= store.remote[fresh] != store.remote[parent]
            self._hint(parent[named], fresh[named])
            self._cut(fresh[named])

    def _hint(self, nodes: I32, below: I32) -> None:
        """Let nodes that name no trace themselves have that of those below them."""
        store = self._nodes
        free = (store.state[nodes] != OUT) & (store.flags[nodes] & _TELLING == 0)
        nodes, below = nodes[free], below[free]
        store.trace_high[nodes] = store.trace_high[below]
        store.trace_low[nodes] = store.trace_low[below]
        store.flags[nodes] |= _HINT

    def _cut(self, nodes: I32) -> None:
        self._nodes.parent[nodes] = -1
        self._nodes.flags[nodes] &= 0xFF ^ _UNJUDGED

    def _expire(self, held: I32, now_ns: int, everything: bool) -> None:
        """Cut edges to parents that haven't come in time."""
        store = self._nodes
        waiting = held
        if not everything:
            waiting = held.take(np.flatnonzero(store.when.take(held) <= now_ns))
        parent = store.parent[waiting]
        late = waiting[(parent >= 0) & (store.state[parent] == ABSENT)]
        if not everything and len(late):
            late = late[~self._wait_longer(late, now_ns)]
        self._losses["link_late"] += self._give_up(late)

    def _wait_longer(self, nodes: I32, now_ns: int) -> NDArray[np.bool_]:
        """Give server's sides more time, once, whose clients are likely to come; which, (n,)."""
        store = self._nodes
        near, wait = store.near[nodes], self._waits.near_ns
        likely: NDArray[np.bool_] = self._met[near] | (now_ns < self._since[near] + wait)
        likely &= near != 0
        store.when[nodes[likely]] += wait - self._waits.edge_ns
        store.near[nodes] = 0
        return likely

    def _give_up(self, nodes: I32) -> int:
        """Cut edges to parents that haven't come; return how many are without any now."""
        store = self._nodes
        if not len(nodes):
            return 0
        parent = store.parent[nodes]
        client = store.flags[nodes] & _CLIENT != 0
        remote = store.flags[nodes] & _REMOTE != 0
        if self._downstream:
            server = nodes[~client & ~remote]
            store.remote[server] = store.token[store.parent[server]]
        late = nodes[client]
        if len(late):
            # Of several with one parent, all have the trace that the parent will adopt.
            above = parent[client]
            own = remote[client]
            self._hint(above[own], late[own])
            made = _words(ids.trace_id(ids.mix(store.token[above])), 2)
            free = ~(store.flags[above] & _HINT != 0)
            store.trace_high[above[free]] = made[free, 0]
            store.trace_low[above[free]] = made[free, 1]
            store.flags[above] |= _HINT
            follow = ~own
            store.trace_high[late[follow]] = store.trace_high[above[follow]]
            store.trace_low[late[follow]] = store.trace_low[above[follow]]
        self._cut(nodes)
        return int(np.count_nonzero(client & ~remote))

    def _resolve(self, held: I32) -> tuple[NDArray[np.bool_], I32]:
        """Return which nodes need wait no more, and the top of each one's tree; both (n,)."""
        store = self._nodes
        while True:
            parent = store.parent.take(held)
            top = np.where(parent >= 0, parent, held)
            at = held.astype(np.intp)
            store.top[at] = top
            for _ in range(_ROUNDS):
                higher = store.top.take(top)
                if np.array_equal(higher, top):
                    break
                store.top[at] = top = higher
            state = store.state.take(top)
            # The top of a tree has no parent; in a cycle there is none such.
            cyclic = (state == HELD) & (store.parent.take(top) >= 0)
            if not cyclic.any():
                break
            wrong = held[cyclic & (store.flags[held] & _CLIENT != 0)]
            wrong = wrong if len(wrong) else held[cyclic]
            self._losses["link_refused"] += len(wrong)
            self._cut(wrong)
        # What is out below a side that hasn't come tells it, and those above it, the trace.
        telling = np.flatnonzero(store.flags.take(at) & (_ADOPTED | _HINT))
        telling = telling[state[telling] == ABSENT]
        if len(telling):
            self._hint(top[telling], held[telling])
        ready = state == OUT
        ready |= (state == HELD) & (store.flags.take(top) & _OPEN == 0)
        return ready, top

    def _force(self, held: I32, top: I32, rows: Rows) -> None:
        """Let the trees of some held nodes go before their tops are known."""
        store = self._nodes
        tops = top[rows]
        store.flags[tops] &= 0xFF ^ _OPEN
        store.claim[held] = 0
        store.claim[store.parent[held]] = 0
        store.claim[tops] = 1
        parent = store.parent[held]
        cut = held[(parent >= 0) & (store.claim[parent] == 1) & (store.state[parent] == ABSENT)]
        self._losses["link_full"] += len(cut)
        self._give_up(cut)

    def _publish(
        self, nodes: I32, top: I32, ready: NDArray[np.bool_], now_ns: int
    ) -> list[SpanBatch]:
        """Give nodes their traces and make batches of their spans."""
        store = self._nodes
        at = nodes.astype(np.intp)
        flags = store.flags.take(at)
        telling = np.flatnonzero((flags & _TELLING != 0) & (top != nodes))
        if len(telling):
            free = store.state[top[telling]] == HELD
            free &= store.flags[top[telling]] & _TELLING == 0
            chosen = telling[free]
            store.trace_high[top[chosen]] = store.trace_high[nodes[chosen]]
            store.trace_low[top[chosen]] = store.trace_low[nodes[chosen]]
            adopted = telling[flags[telling] & _ADOPTED != 0]
            split = store.trace_high[nodes[adopted]] != store.trace_high[top[adopted]]
            self._losses["link_split"] += int(np.count_nonzero(split))
        high, low = store.trace_high.take(top), store.trace_low.take(top)
        store.trace_high[at], store.trace_low[at] = high, low
        parent = store.parent.take(at)
        linked = parent >= 0
        above = np.where(linked, store.span[parent], store.remote.take(at))
        client = flags & _CLIENT != 0
        evidence = np.where(client, store.evidence.take(at), np.uint8(STREAM))
        alone = np.flatnonzero(~linked)
        evidence[alone] = np.where(
            flags[alone] & _REMOTE != 0,
            np.uint8(TRACEPARENT),
            np.where(above[alone] != 0, np.uint8(STREAM), np.uint8(0)),
        )
        fate = self._decide(self._sampler, at, top) if self._sampler else None
        store.state[at] = OUT
        store.top[at] = nodes
        store.when[at] = now_ns
        store.claim[at] = np.arange(len(nodes), dtype=np.int32)
        made = []
        for batch, mine in batches(self._held.release(ready)):
            if len(mine) < len(nodes):
                rows = store.claim.take(mine)
                trace = np.stack((high.take(rows), low.take(rows)), axis=1)
                chosen = None if fate is None else fate.take(rows)
                made.append(_with(batch, trace, above.take(rows), evidence.take(rows), chosen))
            else:
                trace = np.stack((high, low), axis=1)
                made.append(_with(batch, trace, above, evidence, fate))
        return made

    def _decide(self, sampler: Sampler, at: Rows, top: I32) -> NDArray[np.uint8]:
        """Return the fate of each node's trace, (n,), decided now where it isn't yet."""
        store = self._nodes
        mark = store.mark.take(at)
        fresh = store.fate.take(top) == 0
        store.fate[top[fresh]] = sampler.fate
        for wanted, fate in sampler.rules:
            store.fate[top[fresh & (mark & wanted != 0)]] = fate
        # One that comes late can't call back what was let go, but keeps what comes with it.
        store.fate[top[mark & KEEP != 0]] = KEPT
        fates = store.fate.take(top)
        store.fate[at] = fates
        return fates


def _with(
    batch: SpanBatch,
    trace: U64,
    parent: U64,
    evidence: NDArray[np.uint8],
    fate: NDArray[np.uint8] | None,
) -> SpanBatch:
    """Return a batch that says where its spans hang, and what is to become of them."""
    return SpanBatch(
        trace_id=trace.view(np.uint8),
        span_id=batch.span_id,
        parent_span_id=parent[:, np.newaxis].view(np.uint8),
        start_ns=batch.start_ns,
        end_ns=batch.end_ns,
        shape=batch.shape,
        shapes=batch.shapes,
        ints=batch.ints,
        texts={
            **batch.texts,
            EVIDENCE: Text(
                _TEXTS.take(evidence).view(np.uint8).reshape(-1, _WIDTH), _LENGTHS.take(evidence)
            ),
        },
        sampling=batch.sampling,
        fate=fate,
    )


def _words(cells: NDArray[np.uint8], count: int) -> U64:
    """Return ids as words that hold their bytes as they come, (n, count)."""
    return np.ascontiguousarray(cells).view(np.uint64).reshape(len(cells), count)
