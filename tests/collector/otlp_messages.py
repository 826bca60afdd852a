"""OTLP messages and requests as tests need them; ids from small numbers."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from collector.decode import Decoder
from collector.model import Span

BASE_NS = 1_700_000_000_000_000_000
MS = 1_000_000
INTERNAL, SERVER, CLIENT = 1, 2, 3


def trace(number: int) -> bytes:
    return number.to_bytes(16, "big")


def ident(number: int) -> bytes:
    return number.to_bytes(8, "big")


def text(name: str, value: str) -> KeyValue:
    return KeyValue(key=name, value=AnyValue(string_value=value))


def message(
    trace_id: int,
    span_id: int,
    parent: int = 0,
    kind: int = SERVER,
    start_ms: float = 0,
    end_ms: float = 10,
    evidence: str = "",
    name: str = "GET /",
) -> SpanMessage:
    made = SpanMessage(
        trace_id=trace(trace_id),
        span_id=ident(span_id),
        parent_span_id=ident(parent) if parent else b"",
        name=name,
        kind=kind,
        start_time_unix_nano=BASE_NS + round(start_ms * MS),
        end_time_unix_nano=BASE_NS + round(end_ms * MS),
    )
    if evidence:
        made.attributes.append(text("wirespan.link.evidence", evidence))
    return made


def request(
    spans: Iterable[SpanMessage], host: str = "h1", scope: str = "wirespan", service: str = "web"
) -> bytes:
    made = ExportTraceServiceRequest()
    entry = made.resource_spans.add()
    entry.resource.attributes.append(text("service.name", service))
    if host:
        entry.resource.attributes.append(text("host.id", host))
    below = entry.scope_spans.add()
    below.scope.name = scope
    below.spans.extend(spans)
    raw: bytes = made.SerializeToString()
    return raw


def decoded(spans: Iterable[SpanMessage], host: str = "h1", scope: str = "wirespan") -> list[Span]:
    return Decoder().decode(request(spans, host, scope)).spans


class Keep:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def submit(self, spans: Iterable[Span]) -> None:
        self.spans.extend(spans)
