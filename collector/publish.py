"""From a stitched tree to spans that say so: ids, parents and times as found out.

Pure: no sockets, files, threads or clocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from collector.decode import MAX_TIME_NS, LazyAttributes, from_dict
from collector.model import (
    CLOCK_SKEW,
    EVIDENCE,
    EVIDENCE_STREAM,
    KIND_CLIENT,
    KIND_SERVER,
    SCOPE_NAME,
    UNRESOLVED,
    Span,
    Value,
)
from collector.skew import Clocks, shift_ns
from collector.stitch import Tree
from collector.stub import is_stub

MAX_SCOPES = 4_096


@dataclass(slots=True)
class Counts:
    """What was changed, in spans since the start.

    renamed: given another trace id. unresolved: server spans whose client's span never
    came: their parent id was removed. replaced: left out for a span of an application's own
    SDK. shifted: times corrected by a clock offset.
    """

    renamed: int = 0
    unresolved: int = 0
    replaced: int = 0
    shifted: int = 0


@dataclass(slots=True)
class _Node:
    """A span on its way out: what changes about it."""

    span: Span
    parent: bytes
    shift_ns: int = 0
    host: str = ""
    added: dict[str, Value] = field(default_factory=dict)


class Publisher:
    """Makes trees into spans. prefer_sdk: leave out spans that an SDK's own span repeats."""

    def __init__(self, prefer_sdk: bool = False) -> None:
        self._prefer_sdk = prefer_sdk
        self._scopes: dict[bytes, bool] = {}
        self.clocks = Clocks()
        self.counts = Counts()

    def awaits_parent(self, span: Span) -> bool:
        """Whether a span's parent id is one that a tracer computed without having seen it."""
        return (
            span.kind == KIND_SERVER
            and span.parent_span_id != b""
            and self._is_wirespan(span)
            and span.attributes.get(EVIDENCE) == EVIDENCE_STREAM
        )

    def publish(self, tree: Tree) -> list[Span]:
        """Return the spans of a tree as they are to be passed on and stored."""
        nodes = {span_id: _Node(span, span.parent_span_id) for span_id, span in tree.spans.items()}
        for node in nodes.values():
            parent = node.parent
            if not parent or parent in nodes:
                continue
            place = tree.outside.get(parent)
            if place is not None:
                node.parent = place.replaced.get(parent, parent)
            elif self.awaits_parent(node.span):
                node.parent = b""
                node.added[UNRESOLVED] = parent.hex()
                self.counts.unresolved += not is_stub(node.span)
        if self._prefer_sdk:
            self._replace(tree, nodes)
        self._correct_clocks(tree, nodes)
        return [
            self._finish(node, tree.trace_id) for node in nodes.values() if not is_stub(node.span)
        ]

    def _is_wirespan(self, span: Span) -> bool:
        raw = span.scope_raw
        known = self._scopes.get(raw)
        if known is None:
            try:
                known = InstrumentationScope.FromString(raw).name == SCOPE_NAME
            except DecodeError:
                known = False
            if len(self._scopes) >= MAX_SCOPES:
                self._scopes.clear()
            self._scopes[raw] = known
        return known

    def _replace(self, tree: Tree, nodes: dict[bytes, _Node]) -> None:
        """Leave out spans that describe the same exchange as a span of an SDK.

        Client side: the one wirespan client span below an SDK's client span. Server side:
        the one wirespan server span beside the one server span of an SDK with the same
        parent. Where there are several (an SDK's span may cover retries), all stay.
        """
        twins: dict[bytes, list[bytes]] = {}
        for span_id, node in nodes.items():
            above = nodes.get(node.parent)
            if (
                node.span.kind == KIND_CLIENT
                and above is not None
                and above.span.kind == KIND_CLIENT
                and self._is_wirespan(node.span)
                and not is_stub(node.span)
                and not self._is_wirespan(above.span)
            ):
                twins.setdefault(node.parent, []).append(span_id)
        self._drop(tree, nodes, {ids[0]: sdk for sdk, ids in twins.items() if len(ids) == 1})

        servers: dict[bytes, tuple[list[bytes], list[bytes]]] = {}
        for span_id, node in nodes.items():
            if node.span.kind == KIND_SERVER and node.parent and not is_stub(node.span):
                ours_theirs = servers.setdefault(node.parent, ([], []))
                ours_theirs[0 if self._is_wirespan(node.span) else 1].append(span_id)
        pairs = [pair for pair in servers.values() if len(pair[0]) == len(pair[1]) == 1]
        self._drop(tree, nodes, {ours[0]: theirs[0] for ours, theirs in pairs})

    def _drop(self, tree: Tree, nodes: dict[bytes, _Node], replaced: dict[bytes, bytes]) -> None:
        if not replaced:
            return
        for span_id in replaced:
            del nodes[span_id]
        for node in nodes.values():
            node.parent = replaced.get(node.parent, node.parent)
        tree.replaced.update(replaced)
        self.counts.replaced += len(replaced)

    def _correct_clocks(self, tree: Tree, nodes: dict[bytes, _Node]) -> None:
        """Move the times of other hosts to the clock of the root's host."""
        hosts = {node.span.resource.host for node in nodes.values()}
        hosts.update(place.host for place in tree.outside.values())
        hosts.discard("")
        if len(hosts) < 2 and not any(any(p.shifts_ns.values()) for p in tree.outside.values()):
            return
        children: dict[bytes, list[_Node]] = {}
        for node in nodes.values():
            children.setdefault(node.parent, []).append(node)
            above = nodes.get(node.parent)
            if above is not None and _is_exchange(above, node):
                low, high = _interval(above.span, node.span)
                self.clocks.observe(above.span.resource.host, node.span.resource.host, low, high)
        tops = [node for node in nodes.values() if node.parent not in nodes]
        if not tops:
            return  # a ring of parents: no such tree
        reference = min(tops, key=lambda node: (node.parent != b"", node.span.start_ns))
        for top in tops:
            self._place_top(tree, top, reference.span.resource.host)
        # Nobody's child twice, so every node is met at most once.
        stack = tops
        while stack:
            above = stack.pop()
            if above.host:
                tree.shifts_ns[above.host] = above.shift_ns
            for node in children.get(above.span.span_id, ()):
                self._place_child(above, node)
                stack.append(node)

    def _place_top(self, tree: Tree, top: _Node, reference: str) -> None:
        """Give a span without parent in the tree the offset of its host's clock."""
        top.host = top.span.resource.host
        place = tree.outside.get(top.span.parent_span_id)
        if place is not None:
            top.shift_ns = place.shifts_ns.get(place.host, 0)
            reference, top.host = place.host, top.host or place.host
        if reference and top.host and top.host != reference:
            top.shift_ns += self.clocks.offset_ns(reference, top.host)

    def _place_child(self, above: _Node, node: _Node) -> None:
        node.host = node.span.resource.host or above.host
        node.shift_ns = above.shift_ns
        if not node.host or not above.host or node.host == above.host:
            return
        offset_ns = self.clocks.offset_ns(above.host, node.host)
        low, high = _interval(above.span, node.span)
        if _is_exchange(above, node):
            node.shift_ns += shift_ns(offset_ns, low, high)
        else:
            # Nothing is known about the end: a consumer may go on for long.
            node.shift_ns += min(offset_ns, high)

    def _finish(self, node: _Node, trace_id: bytes) -> Span:
        """Write what changed into the span's bytes as well."""
        span, parent, shift = node.span, node.parent, node.shift_ns
        if span.trace_id == trace_id and span.parent_span_id == parent and not shift:
            return span
        if shift:
            node.added[CLOCK_SKEW] = shift
            self.counts.shifted += 1
        self.counts.renamed += span.trace_id != trace_id
        if span.parent_span_id == parent and not node.added:
            renamed = _rename(span.raw, span.trace_id, trace_id)
            if renamed:
                return replace(span, trace_id=trace_id, raw=renamed)
        message = SpanMessage.FromString(span.raw)
        message.trace_id = trace_id
        message.parent_span_id = parent
        if shift:
            message.start_time_unix_nano = _moved(span.start_ns, shift)
            message.end_time_unix_nano = _moved(span.end_ns, shift)
            for event in message.events:
                event.time_unix_nano = _moved(event.time_unix_nano, shift)
        if node.added:
            if UNRESOLVED in node.added:  # there is no link for which it would be evidence
                kept = [each for each in message.attributes if each.key != EVIDENCE]
                del message.attributes[:]
                message.attributes.extend(kept)
            message.attributes.extend(from_dict(node.added))
        raw = message.SerializeToString()
        return Span(
            trace_id,
            span.span_id,
            parent,
            span.name,
            span.kind,
            message.start_time_unix_nano,
            message.end_time_unix_nano,
            span.resource,
            span.status_code,
            span.status_message,
            LazyAttributes(raw) if node.added else span.attributes,
            raw,
            span.scope_raw,
        )


def _rename(raw: bytes, old: bytes, new: bytes) -> bytes:
    """Write another trace id into a serialized span; b"" where that takes a parser.

    Senders write fields in the order of their numbers, so the trace id, field 1, comes first.
    Of a field that comes twice the last one counts: not where the same bytes are elsewhere.
    """
    field_bytes = b"\x0a\x10" + old
    if not raw.startswith(field_bytes) or raw.count(field_bytes) != 1:
        return b""
    return b"\x0a\x10" + new + raw[len(field_bytes) :]


def _is_exchange(above: _Node, node: _Node) -> bool:
    """Whether `node` is the server's side of what `above` is the client's side of."""
    return (
        above.span.kind == KIND_CLIENT
        and node.span.kind == KIND_SERVER
        and above.span.resource.host != ""
        and node.span.resource.host != ""
    )


def _interval(client: Span, server: Span) -> tuple[int, int]:
    """Between what the server's clock is ahead of the client's, in ns."""
    return server.end_ns - client.end_ns, server.start_ns - client.start_ns


def _moved(time_ns: int, shift: int) -> int:
    return min(MAX_TIME_NS, max(0, time_ns - shift))
