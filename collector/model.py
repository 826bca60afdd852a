"""A span as the collector holds it, between intake and whatever takes spans from it.

The bytes it came in are kept beside the few fields that stitching and storing read: what
nobody changes is passed on as it was received, fields of later OTLP versions included.
Pure: no sockets, files, threads or clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

# What an attribute can hold (opentelemetry.proto.common.v1.AnyValue), tuples for arrays;
# a list of key-value pairs is a mapping.
Value = str | bool | int | float | bytes | None | tuple["Value", ...] | Mapping[str, "Value"]
Attributes = Mapping[str, Value]

# opentelemetry.proto.trace.v1.Span.SpanKind
KIND_UNSPECIFIED, KIND_INTERNAL, KIND_SERVER, KIND_CLIENT, KIND_PRODUCER, KIND_CONSUMER = range(6)
KIND_NAMES = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")

# opentelemetry.proto.trace.v1.Status.StatusCode
STATUS_UNSET, STATUS_OK, STATUS_ERROR = range(3)
STATUS_NAMES = ("UNSET", "OK", "ERROR")

# The instrumentation scope of spans that a tracer made.
SCOPE_NAME = "wirespan"

# Which evidence a tracer had for the parent of a span, and what the collector found out.
EVIDENCE = "wirespan.link.evidence"
EVIDENCE_STREAM = "stream"
UNRESOLVED = "wirespan.link.unresolved"
CLOCK_SKEW = "wirespan.clock.skew_ns"

EMPTY: Attributes = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """Who made spans: one object for all spans of equal `raw`, so `is` compares.

    raw: serialized opentelemetry.proto.resource.v1.Resource.
    service: service.name, or "" without one.
    host: host.id, else host.name, else "": whose clock the spans' times are of.
    """

    raw: bytes
    attributes: Attributes = field(default_factory=lambda: EMPTY)
    service: str = ""
    host: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """A span; ids in bytes of 16 and 8, `parent_span_id` b"" for a root; times in Unix ns.

    raw: serialized opentelemetry.proto.trace.v1.Span: events, links and all that is not here.
        Where ids, times or attributes were changed by the collector, `raw` says the same.
    scope_raw: serialized opentelemetry.proto.common.v1.InstrumentationScope.
    attributes: of the span only; those of events and links are in `raw`.
    """

    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    name: str
    kind: int
    start_ns: int
    end_ns: int
    resource: Resource
    status_code: int = STATUS_UNSET
    status_message: str = ""
    attributes: Attributes = field(default_factory=lambda: EMPTY)
    raw: bytes = b""
    scope_raw: bytes = b""

    @property
    def service(self) -> str:
        """service.name of the resource, "" without one."""
        return self.resource.service

    @property
    def resource_raw(self) -> bytes:
        """The resource as serialized protobuf."""
        return self.resource.raw

    @property
    def duration_ns(self) -> int:
        """How long the span lasted."""
        return self.end_ns - self.start_ns


class Sink(Protocol):
    """Takes published spans. Each span comes once; those of a trace may come in parts."""

    def submit(self, spans: Sequence[Span]) -> None:
        """Take spans without blocking; what does not fit is dropped and counted by the sink."""
