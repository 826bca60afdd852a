"""Stubs: what collectors that share the work tell each other of spans.

A stub is a span without anything but its ids, kind, times, host and evidence. It takes part
in stitching and in the correction of clocks like the span itself, and is never given out.
It travels as an OTLP span in a scope of its own.
Pure: no sockets, files, threads or clocks.
"""

from __future__ import annotations

from functools import lru_cache

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from collector.model import EMPTY, EVIDENCE, EVIDENCE_STREAM, SCOPE_NAME, Resource, Span

MAX_HOSTS = 4_096


def _attribute(key: str, value: AnyValue) -> KeyValue:
    return KeyValue(key=key, value=value)


_MARK = _attribute("wirespan.stub", AnyValue(bool_value=True))
SCOPE: bytes = InstrumentationScope(name=SCOPE_NAME, attributes=[_MARK]).SerializeToString()
_STREAM = _attribute(EVIDENCE, AnyValue(string_value=EVIDENCE_STREAM))


def is_stub(span: Span) -> bool:
    """Whether a span is a stub."""
    return span.scope_raw == SCOPE


def stub(span: Span) -> Span:
    """Make the stub of a span; whether its parent's id was computed is kept."""
    stream = bool(span.parent_span_id) and span.attributes.get(EVIDENCE) == EVIDENCE_STREAM
    message = SpanMessage(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        kind=span.kind,  # type: ignore[arg-type]
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        attributes=[_STREAM] if stream else [],
    )
    return Span(
        span.trace_id,
        span.span_id,
        span.parent_span_id,
        "",
        span.kind,
        span.start_ns,
        span.end_ns,
        _resource(span.resource.host),
        attributes={EVIDENCE: EVIDENCE_STREAM} if stream else EMPTY,
        raw=message.SerializeToString(),
        scope_raw=SCOPE,
    )


@lru_cache(MAX_HOSTS)
def _resource(host: str) -> Resource:
    if not host:
        return Resource(b"")
    attribute = _attribute("host.id", AnyValue(string_value=host))
    raw = ResourceMessage(attributes=[attribute]).SerializeToString()
    return Resource(raw, {"host.id": host}, "", host)
