"""Questions to the store: services, operations, traces, dependencies.

Newest files are asked first and asking ends when enough was found, so that the age of a
store doesn't make recent traces slow.
"""

from __future__ import annotations

import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector.files import Segment
from collector.schema import unpack
from collector.store import Reader, Store

MAX_TRACES = 10_000
# Spans of one trace that are read; a trace beyond it is shown in part.
MAX_TRACE_SPANS = 20_000
# Seconds a search may look at spans one by one, and how many spans it does at a time.
SEARCH_S = 5.0
PAGE = 1_024
# Traces read at a time.
TOGETHER = 20
CACHED_BLOCKS = 4

TraceId = bytes


@dataclass(frozen=True, slots=True)
class Found:
    """A stored span, as it was received."""

    span: Span
    resource: Resource
    scope: InstrumentationScope


Check = Callable[[Found], bool]


@dataclass(frozen=True, slots=True)
class Search:
    """What a span must be for its trace to be found; None and empty mean anything.

    Times are Unix ns, of the span's start, both included; durations ns, both included.
    check: what columns can't tell. needles: bytes that a span's or its resource's or its
    scope's serialized form must hold for `check` to be worth asking.
    """

    service: str | None = None
    operation: str | None = None
    kind: int | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    min_ns: int | None = None
    max_ns: int | None = None
    limit: int = 20
    check: Check | None = None
    needles: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a span's bytes are."""

    segment: Segment
    block: int
    place: int
    resource: int
    scope: int


class Queries:
    """Asks a store; for use by many threads."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def services(self) -> list[str]:
        """Name all services, sorted; "" is one without a name."""
        with self._store.reading() as reader:
            return sorted({service for service, _, _ in _operations(reader)})

    def operations(self, service: str, kind: int | None = None) -> list[tuple[str, int]]:
        """Return (name, kind) of a service's spans, sorted."""
        with self._store.reading() as reader:
            return sorted(
                {
                    (name, each)
                    for of, name, each in _operations(reader)
                    if of == service and kind in (None, each)
                }
            )

    def traces(self, trace_ids: Sequence[TraceId]) -> Iterator[tuple[TraceId, list[Found]]]:
        """Read traces in the order asked for, spans by start; those unknown are left out."""
        for part in range(0, len(trace_ids), TOGETHER):
            read = []
            # Not while yielding: files can't be changed meanwhile, and who takes may be slow.
            with self._store.reading() as reader:
                contents = _Contents(reader)
                some = trace_ids[part : part + TOGETHER]
                places = _places(reader, some)
                for trace_id in some:
                    spans = contents.read(places.get(trace_id, ())[:MAX_TRACE_SPANS])
                    spans.sort(key=lambda found: found.span.start_time_unix_nano)
                    read.append((trace_id, spans))
            yield from (each for each in read if each[1])

    def search(self, search: Search) -> list[TraceId]:
        """Find traces with a span as asked for, those of the newest such spans first."""
        found: dict[TraceId, int] = {}
        condition, values = _condition(search)
        limit = max(1, min(search.limit, MAX_TRACES))
        until = time.monotonic() + SEARCH_S
        with self._store.reading() as reader:
            for segment in sorted(reader.segments, key=lambda each: -each.last_ns):
                if _outside(segment, search) or _enough(found, limit, segment):
                    continue
                if search.check is None:
                    rows = reader.rows(
                        segment,
                        "SELECT trace_hi, trace_lo, max(start_ns) AS start FROM {0}.spans "
                        f"WHERE {condition} GROUP BY ALL ORDER BY start DESC LIMIT ?",
                        [*values, limit],
                    )
                    for high, low, start_ns in rows:
                        _keep(found, _trace_id(high, low), start_ns)
                else:
                    _check(reader, segment, search, found, limit, until)
        newest = sorted(found, key=lambda trace_id: -found[trace_id])
        return newest[:limit]

    def dependencies(self, start_ns: int, end_ns: int) -> list[tuple[str, str, int]]:
        """Count spans by (service of the parent, service), for spans begun in the time.

        A service that calls itself, or has spans within spans, is among them.
        """
        counts: dict[tuple[str, str], int] = {}
        with self._store.reading() as reader:
            for at, segment in enumerate(reader.segments):
                if segment.first_ns > end_ns or segment.last_ns < start_ns:
                    continue
                near = reader.segments[max(0, at - 1) : at + 2]
                parents = " UNION ALL ".join(
                    f"SELECT trace_hi, trace_lo, span_id, service FROM {each.alias}.spans"
                    for each in near
                )
                rows = reader.rows(
                    segment,
                    "SELECT p.service, c.service, count(*) FROM {0}.spans c "
                    f"JOIN ({parents}) p ON c.parent_id = p.span_id "
                    "AND c.trace_lo = p.trace_lo AND c.trace_hi = p.trace_hi "
                    "WHERE c.parent_id <> 0 AND c.start_ns BETWEEN ? AND ? GROUP BY ALL",
                    [start_ns, end_ns],
                )
                for parent, child, count in rows:
                    counts[parent, child] = counts.get((parent, child), 0) + count
        return sorted((parent, child, count) for (parent, child), count in counts.items())


class _Contents:
    """Reads spans' bytes; remembers the blocks it used last."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._blocks: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()
        self._raws: dict[tuple[str, str], dict[int, bytes]] = {}
        self._resources: dict[tuple[str, int], Resource] = {}
        self._scopes: dict[tuple[str, int], InstrumentationScope] = {}

    def read(self, places: Sequence[Place]) -> list[Found]:
        """Read spans; those that cannot be read are left out."""
        return [found for place in places if (found := self.one(place)) is not None]

    def one(self, place: Place) -> Found | None:
        """Read a span; None where it cannot be."""
        raw = self.raw(place)
        if raw is None:
            return None
        try:
            return Found(Span.FromString(raw), self._resource(place), self._scope(place))
        except (DecodeError, KeyError):
            return None

    def raw(self, place: Place) -> bytes | None:
        """Return a span's bytes; None where the block cannot be read."""
        key = (place.segment.alias, place.block)
        block = self._blocks.get(key)
        if block is None:
            rows = self._reader.rows(
                place.segment, "SELECT packed FROM {0}.blocks WHERE id = ?", [place.block]
            )
            try:
                block = unpack(rows[0][0]) if rows else []
            except ValueError as error:
                self._reader.suspect(place.segment, error)
                block = []
            self._blocks[key] = block
            if len(self._blocks) > CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(key)
        return block[place.place] if place.place < len(block) else None

    def shared(self, place: Place) -> bytes:
        """Return the bytes of a span's resource and scope."""
        return self._of(place, "resources").get(place.resource, b"") + self._of(
            place, "scopes"
        ).get(place.scope, b"")

    def _of(self, place: Place, table: str) -> dict[int, bytes]:
        key = (place.segment.alias, table)
        found = self._raws.get(key)
        number = place.resource if table == "resources" else place.scope
        if found is None or number not in found:
            rows = self._reader.rows(place.segment, f"SELECT id, raw FROM {{0}}.{table}")
            found = self._raws[key] = dict(rows)
        return found

    def _resource(self, place: Place) -> Resource:
        key = (place.segment.alias, place.resource)
        if key not in self._resources:
            raw = self._of(place, "resources")[place.resource]
            self._resources[key] = Resource.FromString(raw)
        return self._resources[key]

    def _scope(self, place: Place) -> InstrumentationScope:
        key = (place.segment.alias, place.scope)
        if key not in self._scopes:
            raw = self._of(place, "scopes")[place.scope]
            self._scopes[key] = InstrumentationScope.FromString(raw)
        return self._scopes[key]


def _operations(reader: Reader) -> Iterator[tuple[str, str, int]]:
    """Yield (service, name, kind) of every file; files that are complete are asked once."""
    for segment in reader.segments:
        known = segment.operations
        if known is None:
            rows = reader.rows(segment, "SELECT DISTINCT service, name, kind FROM {0}.spans")
            known = frozenset((service, name, kind) for service, name, kind in rows)
            if not segment.writable:
                segment.operations = known
        yield from known


def _places(reader: Reader, trace_ids: Sequence[TraceId]) -> Mapping[TraceId, list[Place]]:
    """Find where the spans of traces are."""
    found: dict[TraceId, list[Place]] = {}
    if not trace_ids:
        return found
    pairs = ", ".join(["(?, ?)"] * len(trace_ids))
    values = [half for trace_id in trace_ids for half in struct.unpack(">QQ", trace_id)]
    for segment in reader.segments:
        rows = reader.rows(
            segment,
            "SELECT trace_hi, trace_lo, block, place, resource, scope FROM {0}.spans "
            f"WHERE (trace_hi, trace_lo) IN (VALUES {pairs}) ORDER BY block, place",
            values,
        )
        for high, low, *where in rows:
            found.setdefault(_trace_id(high, low), []).append(Place(segment, *where))
    return found


def _condition(search: Search) -> tuple[str, list[str | int]]:
    """Write what the columns can tell as SQL."""
    terms: list[tuple[str, str | int | None]] = [
        ("service = ?", search.service),
        ("name = ?", search.operation),
        ("kind = ?", search.kind),
        ("start_ns >= ?", search.start_ns),
        ("start_ns <= ?", search.end_ns),
        ("end_ns >= start_ns + ?", search.min_ns),
        ("end_ns <= start_ns + ?", search.max_ns),
    ]
    given = [(text, value) for text, value in terms if value is not None]
    return " AND ".join(["true", *(text for text, _ in given)]), [value for _, value in given]


def _outside(segment: Segment, search: Search) -> bool:
    return (
        not segment.spans
        or (search.start_ns is not None and segment.last_ns < search.start_ns)
        or (search.end_ns is not None and segment.first_ns > search.end_ns)
    )


def _enough(found: Mapping[TraceId, int], limit: int, segment: Segment) -> bool:
    """Whether a file has nothing newer than the `limit` traces already found."""
    if len(found) < limit:
        return False
    return sorted(found.values(), reverse=True)[limit - 1] >= segment.last_ns


def _keep(found: dict[TraceId, int], trace_id: TraceId, start_ns: int) -> None:
    found[trace_id] = max(start_ns, found.get(trace_id, 0))


def _check(
    reader: Reader,
    segment: Segment,
    search: Search,
    found: dict[TraceId, int],
    limit: int,
    until: float,
) -> None:
    """Look at the candidates of one file one by one, those stored last first.

    By blocks, so that each is unpacked once.
    """
    assert search.check is not None
    condition, values = _condition(search)
    contents = _Contents(reader)
    before, new = (1 << 31) - 1, 0
    before_place = 0
    while new < limit and time.monotonic() < until:
        rows = reader.rows(
            segment,
            "SELECT trace_hi, trace_lo, block, place, resource, scope, start_ns FROM {0}.spans "
            f"WHERE {condition} AND (block < ? OR block = ? AND place < ?) "
            "ORDER BY block DESC, place DESC LIMIT ?",
            [*values, before, before, before_place, PAGE],
        )
        for high, low, *where, start_ns in rows:
            trace_id = _trace_id(high, low)
            place = Place(segment, *where)
            before, before_place = place.block, place.place
            if trace_id in found:
                continue
            raw = contents.raw(place)
            if raw is None or any(
                needle not in raw and needle not in contents.shared(place)
                for needle in search.needles
            ):
                continue
            span = contents.one(place)
            if span is not None and search.check(span):
                found[trace_id] = start_ns
                new += 1
                if new >= limit or time.monotonic() > until:
                    return
        if len(rows) < PAGE:
            return


def _trace_id(high: int, low: int) -> TraceId:
    return struct.pack(">QQ", high, low)
