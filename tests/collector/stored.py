"""Spans for tests of the store and of the query side, made as OTLP and read by the decoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.decode import Decoder
from collector.model import Span

NOW_NS = 1_795_440_747_353_795_490
TRACE, OTHER = bytes(range(16)), bytes(8) + bytes(range(8, 16))


def set_attributes(attributes: Any, values: dict[str, Any]) -> None:
    for key, value in values.items():
        pair = attributes.add()
        pair.key = key
        set_value(pair.value, value)


def set_value(target: Any, value: Any) -> None:
    match value:
        case bool():
            target.bool_value = value
        case int():
            target.int_value = value
        case float():
            target.double_value = value
        case bytes():
            target.bytes_value = value
        case str():
            target.string_value = value
        case list():
            target.array_value.SetInParent()
            for each in value:
                set_value(target.array_value.values.add(), each)
        case dict():
            target.kvlist_value.SetInParent()
            set_attributes(target.kvlist_value.values, value)


class Builder:
    """Builds one export request."""

    def __init__(self, now_ns: int = NOW_NS) -> None:
        self.request = ExportTraceServiceRequest()
        self.now_ns = now_ns

    def resource(self, **scope: str) -> Any:
        """Begin a resource without attributes; returns its scope's spans."""
        found = self.request.resource_spans.add().scope_spans.add()
        for key, value in scope.items():
            setattr(found.scope, key, value)
        return found

    def service(self, service: str, attributes: dict[str, Any] | None = None, **scope: str) -> Any:
        found = self.resource(**scope)
        values = {"service.name": service, **(attributes or {})}
        set_attributes(self.request.resource_spans[-1].resource.attributes, values)
        return found

    def span(
        self,
        where: Any,
        name: str,
        number: int,
        parent: int = 0,
        trace: bytes = TRACE,
        kind: int = 2,
        offset_ns: int = 0,
        duration_ns: int = 1_500_000,
        attributes: dict[str, Any] | None = None,
    ) -> Any:
        span = where.spans.add()
        span.trace_id = trace
        span.span_id = number.to_bytes(8, "big")
        span.parent_span_id = parent.to_bytes(8, "big") if parent else b""
        span.name, span.kind = name, kind
        span.start_time_unix_nano = self.now_ns + offset_ns
        span.end_time_unix_nano = self.now_ns + offset_ns + duration_ns
        set_attributes(span.attributes, attributes or {})
        return span

    def spans(self) -> list[Span]:
        return Decoder().decode(self.request.SerializeToString()).spans


def everything(now_ns: int = NOW_NS) -> Builder:
    """Two traces with all that OTLP can say."""
    made = Builder(now_ns)
    web = made.service("web", {"host.name": "h1", "process.pid": 42}, name="lib", version="1.2")
    set_attributes(web.scope.attributes, {"sa": "x"})
    rich = {
        "s": "text", "i": 5, "neg": -7, "f": 1.5, "f2": 2.0, "f3": 1e21, "b": True,
        "by": b"\xff\x00a", "arr": ["x", 1], "empty": [], "m": {"k": "v", "n": 1},
        "html": "<a&b>\u2028é\"\\",
    }  # fmt: skip
    root = made.span(web, "GET /", 1, duration_ns=5_234_567, attributes=rich)
    set_attributes(root.attributes, {"nul": None})
    root.trace_state = "a=b"
    root.status.code, root.status.message = 2, "boom"
    for name, values in (("ev", {"q": 1, "event": "other"}), ("ev2", {"q": "z"})):
        event = root.events.add()
        event.name, event.time_unix_nano = name, now_ns + 1999
        set_attributes(event.attributes, values)
    link = root.links.add()
    link.trace_id, link.span_id = OTHER, bytes([9] * 8)
    call = {"http.response.status_code": 503, "http.request.method": "GET"}
    made.span(web, "call", 2, 1, kind=3, offset_ns=10_000, duration_ns=4_000_000, attributes=call)
    api = made.service("api", {"host.name": "h2"})
    serve = made.span(api, "serve", 3, 2, offset_ns=500_000, duration_ns=2_000_000)
    serve.status.code, serve.status.message = 1, "fine"
    made.span(api, "int", 4, 3, kind=1, offset_ns=600_000)
    made.span(api, "prod", 5, 3, kind=4, offset_ns=700_000)
    made.span(api, "cons", 6, 5, kind=5, offset_ns=800_000, duration_ns=1_000)
    lonely = {"error": True, "span.kind": "weird"}
    made.span(api, "lonely", 7, 77, OTHER, 0, 100_000, attributes=lonely)
    unnamed = made.resource()
    made.span(unnamed, "nameless", 8, 0, OTHER, offset_ns=200_000)
    again = made.service("web", {"host.name": "h1", "process.pid": 42})
    made.span(again, "again", 16, 1, kind=1, offset_ns=5_000, duration_ns=1)
    linked = made.span(again, "linked", 17, 1, kind=1, offset_ns=7_000, duration_ns=2_000)
    for number in (4, 2):
        link = linked.links.add()
        link.trace_id, link.span_id = TRACE, number.to_bytes(8, "big")
    return made


def many(count: int, now_ns: int = NOW_NS, first: int = 1) -> list[Span]:
    """Traces of one client and one server span, a millisecond apart."""
    made = Builder(now_ns)
    web, api = made.service("web"), made.service("api")
    for number in range(first, first + count):
        trace = number.to_bytes(16, "big")
        at = (number - first) * 1_000_000
        path = {"url.path": f"/users/{number}", "http.response.status_code": 200 + number % 2 * 300}
        span = made.span(web, "GET", 2 * number, 0, trace, 3, at, 900_000, path)
        span.status.code = 2 if number % 2 else 0
        made.span(api, "GET /users", 2 * number + 1, 2 * number, trace, 2, at, 500_000, path)
    return made.spans()


def ids(spans: Iterable[Span]) -> set[bytes]:
    return {span.span_id for span in spans}
