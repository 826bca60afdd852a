"""Spans against what is known of the requests: right, orphan or wrong.

Pure. An upstream server span is followed up by its parents. It is

    right     when that leads to the front server span of the request it was made for
    wrong     when any span on the way is of another request
    orphan    when the way ends before, without a span of another request

Services that trace themselves have spans of their own, which are looked at on a way alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

CLIENT, SERVER = "CLIENT", "SERVER"
FRONT, UPSTREAM = "front", "upstream"
# What a statement calls its column, as a literal would be masked.
STATEMENT = re.compile(r"`(/u/\w+/\d+)`")
# No real way up is longer; what is goes in a circle.
DEPTH = 64


@dataclass(frozen=True, slots=True)
class Span:
    """What is read of a span. parent: "" for none; evidence: of its link to the parent.

    pid: of the process whose span it is; peer_address, peer_port: of the connection's other end;
        own: made by that process itself, and not by the tracer.
    """

    trace: str
    id: str
    parent: str
    kind: str
    pid: int
    peer_address: str
    peer_port: int
    path: str
    evidence: str = ""
    own: bool = False

    @classmethod
    def of(cls, line: Mapping[str, Any], own: bool = False) -> Span:
        """Read an object of `wirespan run --output json`, or a service's own in that form."""
        attributes = line["attributes"]
        path = attributes.get("url.path") or urlsplit(attributes.get("url.full", "")).path
        if not path and (found := STATEMENT.search(attributes.get("db.query.text", ""))):
            path = found[1]
        return cls(
            line["trace_id"],
            line["span_id"],
            line["parent_span_id"],
            line["kind"],
            int(line["resource"].get("process.pid", 0)),
            attributes.get("network.peer.address", ""),
            int(attributes.get("network.peer.port", 0)),
            path,
            attributes.get("wirespan.link.evidence", ""),
            own,
        )

    @property
    def request(self) -> str:
        """The ID of the request it belongs to, "" where its path tells none."""
        words = self.path.split("/")
        return words[2] if len(words) > 2 and words[1] in ("t", "u") else ""

    @property
    def call(self) -> int:
        """Which call of its request it is, from 0; a path passed on as it came is the only one."""
        words = self.path.split("/")
        return int(words[3]) if len(words) > 3 and words[3].isdigit() else 0


@dataclass(frozen=True, slots=True)
class Truth:
    """What happened: requests that reached the front service, and calls that each made.

    load_address: where the load calls from, which tells the front service's spans. Which host
        and port a server span names is up to the request's Host field, so it tells nothing.
    named: trace and parent that a request names itself, by its ID.
    """

    requests: frozenset[str]
    calls: int
    front_port: int
    upstream_port: int
    upstream_pid: int
    load_address: str
    named: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def place(self, span: Span) -> str:
        """Return at which service the span's exchange ended: FRONT, UPSTREAM, or "" between."""
        if span.own and span.kind == SERVER:
            return FRONT
        if span.kind == CLIENT:
            return {self.front_port: FRONT, self.upstream_port: UPSTREAM}.get(span.peer_port, "")
        if span.pid == self.upstream_pid:
            return UPSTREAM
        return FRONT if span.peer_address == self.load_address else ""


# Kind, place, ID and number of the call.
Exchange = tuple[str, str, str, int]


@dataclass(frozen=True, slots=True)
class Counts:
    """The verdict on one run.

    right, orphan, wrong: upstream server spans.
    missing, doubled: client and server spans of exchanges at the front and the upstream service
        that are absent, or there more than once (each span too many counts).
    split: upstream spans not all of whose way up carries one trace ID, that which the request
        names if it names one.
    unpaired: server spans, front and upstream, whose parent is not the client span of the same
        exchange; and client spans of the load whose parent is not what the request names.
    evidence: of links from client spans on the ways up, by name and whether right or wrong.
    """

    right: int = 0
    orphan: int = 0
    wrong: int = 0
    missing: int = 0
    doubled: int = 0
    split: int = 0
    unpaired: int = 0
    evidence: Mapping[str, int] = field(default_factory=dict)

    @property
    def upstream(self) -> int:
        """Upstream server spans that were judged."""
        return self.right + self.orphan + self.wrong

    def share(self, number: int) -> float:
        """What part of the judged spans `number` is, from 0 to 1."""
        return number / self.upstream if self.upstream else 0.0


def read(lines: Iterable[str], own: bool = False) -> Iterator[Span]:
    """Read the tracer's output, or a service's, skipping what is no span."""
    for line in lines:
        if line.startswith("{"):
            yield Span.of(json.loads(line), own)


def judge(spans: Iterable[Span], truth: Truth) -> Counts:
    """Compare spans, in any order, with the truth.

    Requests that are not in `truth` are not looked at, except as parents.
    """
    by_id: dict[str, Span] = {}
    seen: dict[Exchange, list[Span]] = defaultdict(list)
    for span in spans:
        by_id[span.id] = span
        if span.request in truth.requests and not span.own:
            seen[(span.kind, truth.place(span), span.request, span.call)].append(span)
    total: Counter[str] = Counter()
    evidence: Counter[str] = Counter()
    for kind, place, request, call in _expected(truth):
        found = seen.get((kind, place, request, call), [])
        total["missing"] += not found
        total["doubled"] += max(0, len(found) - 1)
        if not found:
            continue
        span = found[0]
        trace, parent = truth.named.get(request, ("", ""))
        if kind == CLIENT:
            total["unpaired"] += place == FRONT and span.parent != parent
            continue
        total["unpaired"] += not _paired(span, by_id, truth)
        if place == UPSTREAM:
            way = list(_way(span, by_id))
            verdict = _verdict(span, way, truth)
            total[verdict] += 1
            traces = {each.trace for each in (span, *way)} | ({trace} if trace else set())
            if verdict == "right":
                # Also where the way ends at a span of the service's own beside the tracer's.
                traces |= {each.trace for each in seen[(SERVER, FRONT, request, 0)]}
            total["split"] += len(traces) > 1
            for each in way:
                if each.kind == CLIENT and each.evidence:
                    evidence[f"{each.evidence} {verdict}"] += 1
    return Counts(**total, evidence=dict(evidence))


def _expected(truth: Truth) -> Iterator[Exchange]:
    for request in truth.requests:
        for kind in (CLIENT, SERVER):
            yield kind, FRONT, request, 0
            for call in range(truth.calls):
                yield kind, UPSTREAM, request, call


def _way(span: Span, by_id: Mapping[str, Span]) -> Iterator[Span]:
    """Yield the parent, its parent and so on, as far as they are known."""
    for _ in range(DEPTH):
        above = by_id.get(span.parent)
        if above is None:
            return
        yield above
        span = above


def _verdict(span: Span, way: list[Span], truth: Truth) -> str:
    if any(each.request != span.request for each in way if each.request):
        return "wrong"
    # The client side of another call of the same request is not its own either.
    if way and (way[0].kind, way[0].path) != (CLIENT, span.path):
        return "wrong"
    home = any(each.kind == SERVER and truth.place(each) == FRONT for each in way)
    return "right" if home else "orphan"


def _paired(span: Span, by_id: Mapping[str, Span], truth: Truth) -> bool:
    above = by_id.get(span.parent)
    return (
        above is not None
        and (above.kind, above.path, above.trace) == (CLIENT, span.path, span.trace)
        and truth.place(above) == truth.place(span)
    )
