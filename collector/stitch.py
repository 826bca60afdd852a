"""Traces put together: spans wait until the trees they belong to are whole.

Each tracer names a trace by what it has seen of it. Where a span's parent is found under
another trace id, both ids name one trace: the parent's counts, and so in the end that of
the root. Spans with the same parent belong together too, even before it comes.

A trace is given out `hold_s` after its last span came, or later where the parent of a
server span, an id its tracer computed, is still missing (`parent_wait_s`): the client's
tracer gives its span out only when it knows what caused it. In any case after `max_hold_s`,
and earlier only where the hold is full. For `remember_s` it is known then which span was
given out under which trace id:

- a span that comes again is dropped;
- a span of a trace already given out, or whose parent or child was, takes that trace's id;
- where both sides were given out under different ids, nothing is rewritten: counted, `split`.

Where several collectors share the work, each tells the others, in stubs (collector.stub),
of the spans that may tie two traces together (`ties`). So each knows all that names a
trace, and all come to the same name without asking.

Pure: no sockets, files, threads or clocks; time arrives as an argument.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from collector.limits import Limits
from collector.model import KIND_CLIENT, KIND_SERVER, Span
from collector.stub import is_stub

# What a span takes beside its bytes: the object, its ids, its entries in the tables.
SPAN_OVERHEAD_BYTES = 1_000


@dataclass(slots=True)
class Counts:
    """What happened to spans; each is a number since the start.

    duplicate: had come before, dropped. joined: trace ids found to be part of another
    trace. late: came when (part of) their trace had been given out. split: links between
    traces given out under different ids. evicted: given out early because the hold was
    full or all of it was asked for, not lost. stubs: of other collectors' spans, in none of
    the other numbers but split.
    """

    spans: int = 0
    stubs: int = 0
    duplicate: int = 0
    joined: int = 0
    late: int = 0
    split: int = 0
    evicted: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a span went that was given out.

    shifts_ns: by how much the times of each host of its tree were moved back.
    replaced: spans of its tree left out in favour of another: id -> id of the other.
    """

    trace_id: bytes
    host: str
    shifts_ns: dict[str, int]
    replaced: dict[bytes, bytes]


@dataclass(slots=True)
class Tree:
    """A trace, or a late part of one, as it is given out.

    spans: by span id, as they came. outside: the places of parents given out before.
    shifts_ns, replaced: see Place; filled in by whoever corrects the tree.
    """

    trace_id: bytes
    spans: dict[bytes, Span]
    outside: dict[bytes, Place]
    shifts_ns: dict[str, int] = field(default_factory=dict)
    replaced: dict[bytes, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class _Group:
    """Spans that belong together, of one trace id or several; times in seconds."""

    traces: set[bytes]
    spans: list[Span]
    first: float
    last: float
    gone: bool = False
    stubs: int = 0


@dataclass(slots=True)
class _Memory:
    """What was given out: span id -> place, trace id -> final one, missing parent -> trace.

    stubs: ids of spans of which only a stub has been here.
    """

    spans: dict[bytes, Place] = field(default_factory=dict)
    traces: dict[bytes, bytes] = field(default_factory=dict)
    missing: dict[bytes, bytes] = field(default_factory=dict)
    stubs: set[bytes] = field(default_factory=set)


class Stitcher:
    """Holds spans and gives out trees. For one thread at a time.

    awaits_parent: tells whether a span's parent id was computed and may still come; asked
        only where the parent is missing.
    shared: other collectors want to be told `ties`.
    """

    def __init__(
        self, limits: Limits, awaits_parent: Callable[[Span], bool], shared: bool = False
    ) -> None:
        self._limits = limits
        self._awaits_parent = awaits_parent
        self.counts = Counts()
        self.held_spans = 0
        self.held_bytes = 0
        self._groups: dict[bytes, _Group] = {}
        # Of held spans: trace id -> the one it is part of; span id -> the trace id it came
        # with; parent that has not come -> the trace id of a child.
        self._alias: dict[bytes, bytes] = {}
        self._held: dict[bytes, bytes] = {}
        self._waiting: dict[bytes, bytes] = {}
        # (when to look at it, a number that makes entries comparable, the group)
        self._agenda: list[tuple[float, int, _Group]] = []
        self._numbers = 0
        self._young = _Memory()
        self._old = _Memory()
        self._turned = 0.0
        self._shared = shared
        # Spans that came since `ties` was last asked; ids of held spans that are stubs.
        self._fresh: list[Span] = []
        self._stubs: set[bytes] = set()

    def add(self, spans: Sequence[Span], now: float) -> None:
        """Take spans that came at `now` (s, monotonic)."""
        for span in spans:
            self._add(span, now)

    def due(self, now: float) -> list[Tree]:
        """Give out the trees whose time has come, and the oldest where the hold is full."""
        self._forget(now)
        trees: list[Tree] = []
        agenda, limits = self._agenda, self._limits
        while agenda and agenda[0][0] <= now:
            _, _, group = heapq.heappop(agenda)
            if group.gone:
                continue
            again = self._look_again(group)
            if again > now:
                self._schedule(group, again)
            else:
                trees.append(self._release(group))
        while agenda and (self.held_spans > limits.max_spans or self.held_bytes > limits.max_bytes):
            _, _, group = heapq.heappop(agenda)
            if not group.gone:
                self.counts.evicted += len(group.spans) - group.stubs
                trees.append(self._release(group))
        return trees

    def flush(self) -> list[Tree]:
        """Give out all that is held."""
        agenda = sorted(self._agenda)
        self._agenda = []
        groups = [group for _, _, group in agenda if not group.gone]
        self.counts.evicted += sum(len(group.spans) - group.stubs for group in groups)
        return [self._release(group) for group in groups]

    def ties(self) -> list[Span]:
        """Return the spans, of those that came since the last call, that others must know of.

        A trace id in common ties spans together everywhere; what else does is the exchange
        whose two sides do not have it in common, or of which one is not here.
        """
        fresh, self._fresh = self._fresh, []
        answered = {(span.trace_id, span.parent_span_id) for span in fresh}
        held = self._held
        return [
            span
            for span in fresh
            if (span.kind == KIND_CLIENT and (span.trace_id, span.span_id) not in answered)
            or (
                span.kind == KIND_SERVER
                and span.parent_span_id
                and held.get(span.parent_span_id) != span.trace_id
            )
        ]

    def next_due(self) -> float | None:
        """When `due` has to look next, in s; None while nothing is held."""
        return self._agenda[0][0] if self._agenda else None

    def _add(self, span: Span, now: float) -> None:
        trace_id, span_id, parent = span.trace_id, span.span_id, span.parent_span_id
        held, counts = self._held, self.counts
        real = not is_stub(span)
        counts.spans += real
        counts.stubs += not real
        root = self._root(trace_id)
        twin = held.get(span_id)
        if twin is not None and (twin == trace_id or self._root(twin) == root):
            if not real or span_id not in self._stubs:
                counts.duplicate += real
                return
            self._stubs.discard(span_id)
        place = self._place(span_id)
        if place is not None and place.trace_id == root and not (real and self._was_stub(span_id)):
            counts.duplicate += real
            return

        group = self._groups.get(root)
        if group is None:
            group = self._groups[root] = _Group({root}, [], now, now)
            self._schedule(group, now + self._limits.hold_s)
        if trace_id != root:
            group.traces.add(trace_id)
        group.spans.append(span)
        group.last = now
        if not real:
            group.stubs += 1
            self._stubs.add(span_id)
        elif self._shared:
            self._fresh.append(span)
        self.held_spans += 1
        self.held_bytes += len(span.raw) + SPAN_OVERHEAD_BYTES
        if twin is None:
            held[span_id] = trace_id
        late = self._given_out(root)

        if parent:
            above = held.get(parent)
            if above is None:
                above = self._above(parent, trace_id)
            if above != trace_id:
                self._join(trace_id, above)
        below = self._waiting.pop(span_id, None)
        if below is not None and below != trace_id:
            self._join(below, trace_id)
        below = self._young.missing.get(span_id) or self._old.missing.get(span_id)
        if below is not None:
            self._join(below, trace_id)
        if late or self._given_out(self._root(trace_id)):
            counts.late += real

    def _above(self, parent: bytes, trace_id: bytes) -> bytes:
        """Find the trace of a parent that is not held: given out, or awaited by others too."""
        place = self._place(parent)
        if place is not None:
            return place.trace_id
        given = self._young.missing.get(parent) or self._old.missing.get(parent)
        if given is not None:
            self._waiting.setdefault(parent, trace_id)
            return given
        return self._waiting.setdefault(parent, trace_id)

    def _root(self, trace_id: bytes) -> bytes:
        """Follow a trace id to the one it will be, or was, given out under."""
        alias, young, old = self._alias, self._young.traces, self._old.traces
        while True:
            up = alias.get(trace_id) or young.get(trace_id) or old.get(trace_id)
            if up is None or up == trace_id:
                return trace_id
            trace_id = up

    def _place(self, span_id: bytes) -> Place | None:
        return self._young.spans.get(span_id) or self._old.spans.get(span_id)

    def _was_stub(self, span_id: bytes) -> bool:
        return span_id in self._young.stubs or span_id in self._old.stubs

    def _given_out(self, root: bytes) -> bool:
        return root in self._young.traces or root in self._old.traces

    def _join(self, child: bytes, parent: bytes) -> None:
        """Make one trace of two: under the parent's id, or the one already given out."""
        child, parent = self._root(child), self._root(parent)
        if child == parent:
            return
        if self._given_out(child):
            above = self._groups.get(parent)
            if self._given_out(parent) or (above and above.stubs):
                # Another collector has given, or will give, its part another name.
                self.counts.split += 1
                return
            child, parent = parent, child
        moving = self._groups.pop(child, None)
        if moving is None:
            return  # all of it is gone and forgotten
        self.counts.joined += 1
        self._alias[child] = parent
        staying = self._groups.get(parent)
        if staying is None:
            moving.traces.add(parent)
            self._groups[parent] = moving
            return
        if len(staying.spans) < len(moving.spans):
            staying, moving = moving, staying
            self._groups[parent] = staying
        staying.traces |= moving.traces
        staying.spans += moving.spans
        staying.stubs += moving.stubs
        staying.first = min(staying.first, moving.first)
        staying.last = max(staying.last, moving.last)
        moving.gone = True
        moving.spans = []

    def _schedule(self, group: _Group, when: float) -> None:
        self._numbers += 1
        heapq.heappush(self._agenda, (when, self._numbers, group))

    def _look_again(self, group: _Group) -> float:
        """When a group's time comes, as far as is known now."""
        limits = self._limits
        latest = group.first + limits.max_hold_s
        quiet = min(latest, group.last + limits.hold_s)
        patient = min(latest, group.first + limits.parent_wait_s)
        if quiet < patient and any(map(self._is_awaiting, group.spans)):
            return patient
        return quiet

    def _is_awaiting(self, span: Span) -> bool:
        parent = span.parent_span_id
        return (
            parent != b""
            and parent not in self._held
            and self._place(parent) is None
            and self._awaits_parent(span)
        )

    def _release(self, group: _Group) -> Tree:
        group.gone = True
        trace_id = self._root(next(iter(group.traces)))
        del self._groups[trace_id]
        tree = Tree(trace_id, {}, {})
        memory, places = self._young, dict[str, Place]()
        spans = tree.spans
        for span in group.spans:
            span_id = span.span_id
            self.held_bytes -= len(span.raw) + SPAN_OVERHEAD_BYTES
            if self._held.get(span_id) == span.trace_id:
                del self._held[span_id]
            real = not is_stub(span)
            twin = spans.get(span_id)
            if twin is not None and not (real and is_stub(twin)):
                # Came under two trace ids, which only then turned out to be one.
                self.counts.duplicate += real
                continue
            spans[span_id] = span
            if real:
                memory.stubs.discard(span_id)
            else:
                memory.stubs.add(span_id)
                self._stubs.discard(span_id)
            host = span.resource.host
            place = places.get(host)
            if place is None:
                place = places[host] = Place(trace_id, host, tree.shifts_ns, tree.replaced)
            memory.spans[span_id] = place
        self.held_spans -= len(group.spans)
        for span in group.spans:
            parent = span.parent_span_id
            if parent and parent not in spans:
                before = self._place(parent)
                if before is not None:
                    tree.outside[parent] = before
                else:
                    memory.missing[parent] = trace_id
                self._waiting.pop(parent, None)
        for name in group.traces:
            self._alias.pop(name, None)
            memory.traces[name] = trace_id
        return tree

    def _forget(self, now: float) -> None:
        limits = self._limits
        if (
            now - self._turned >= limits.remember_s
            or len(self._young.spans) >= limits.max_remembered // 2
        ):
            self._old, self._young = self._young, _Memory()
            self._turned = now
