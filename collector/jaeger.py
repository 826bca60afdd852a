"""Stored spans as the JSON of Jaeger's query API, which Jaeger UI and Grafana read.

Fields, tags and their order are as Jaeger 2 answers; a root test sends the same spans to
both and compares. Pure: no sockets, files, threads or clocks.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from collector.query import Found

NO_SERVICE = "missing-service-name"
KINDS: Mapping[int, str] = {
    1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer",
}  # fmt: skip
KIND_NUMBERS: Mapping[str, int] = {name: number for number, name in KINDS.items()}

Json = dict[str, Any]
# type and value of a tag
Tag = tuple[str, Any]


def short_id(trace_id: bytes) -> str:
    """Write a trace id; one of 64 bits in 16 digits."""
    return (trace_id[8:] if trace_id[:8] == bytes(8) else trace_id).hex()


def trace(trace_id: bytes, spans: Sequence[Found]) -> Json:
    """Write one trace with its processes."""
    processes: dict[str, tuple[str, Json]] = {}
    written = []
    for found in spans:
        process = _process(found.resource)
        key = json.dumps(process, sort_keys=True)
        if key not in processes:
            processes[key] = (f"p{len(processes) + 1}", process)
        written.append(_span(short_id(trace_id), found, processes[key][0]))
    return {
        "traceID": short_id(trace_id),
        "spans": written,
        "processes": dict(processes.values()),
        "warnings": None,
    }


def service_of(resource: Resource) -> str:
    """Return service.name, or what Jaeger calls a service without."""
    for attribute in resource.attributes:
        if attribute.key == "service.name":
            return str(_tag(attribute.value)[1]) or NO_SERVICE
    return NO_SERVICE


def tags(found: Found) -> dict[str, Tag]:
    """Return a span's tags, those made of other fields included."""
    span = found.span
    made: dict[str, Tag] = {}
    if span.kind in KINDS:
        made["span.kind"] = ("string", KINDS[span.kind])
    if span.status.code == Status.STATUS_CODE_ERROR:
        made["error"] = ("bool", True)
        made["otel.status_code"] = ("string", "ERROR")
    elif span.status.code == Status.STATUS_CODE_OK:
        made["otel.status_code"] = ("string", "OK")
    for key, text in (
        ("otel.status_description", span.status.message),
        ("otel.scope.name", found.scope.name),
        ("otel.scope.version", found.scope.version),
        ("w3c.tracestate", span.trace_state),
    ):
        if text:
            made[key] = ("string", text)
    made.update(attributes(span.attributes))
    return made


def attributes(pairs: Iterable[KeyValue]) -> dict[str, Tag]:
    """Read attributes as tags."""
    return {pair.key: _tag(pair.value) for pair in pairs}


def text(tag: Tag) -> str:
    """Write a tag's value as searches compare it."""
    _, value = tag
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
    return str(value)


def matches(found: Found, wanted: Mapping[str, str]) -> bool:
    """Whether each wanted tag is one of the span, its resource, scope, or an event of it."""
    places = [
        tags(found),
        attributes(found.resource.attributes),
        attributes(found.scope.attributes),
        *(_event_fields(event) for event in found.span.events),
    ]
    return all(
        any(key in place and text(place[key]) == value for place in places)
        for key, value in wanted.items()
    )


def otlp(traces: Iterable[tuple[bytes, Sequence[Found]]]) -> Json:
    """Write traces as OTLP JSON, TracesData: ids in hexadecimal, kinds and codes as numbers."""
    groups: dict[bytes, Json] = {}
    for _, spans in traces:
        for found in spans:
            resource = found.resource.SerializeToString(deterministic=True)
            group = groups.setdefault(
                resource, {"resource": _message(found.resource), "scopes": {}}
            )
            scope = group["scopes"].setdefault(
                found.scope.SerializeToString(deterministic=True),
                {"scope": _message(found.scope), "spans": []},
            )
            scope["spans"].append(_otlp_span(found))
    return {
        "resourceSpans": [
            {"resource": group["resource"], "scopeSpans": list(group["scopes"].values())}
            for group in groups.values()
        ]
    }


def _span(trace_id: str, found: Found, process: str) -> Json:
    span = found.span
    start_ns, end_ns = span.start_time_unix_nano, span.end_time_unix_nano
    references = []
    if any(span.parent_span_id):
        references.append(_reference("CHILD_OF", trace_id, span.parent_span_id.hex()))
    for link in span.links:
        kind = attributes(link.attributes).get("opentracing.ref_type", ("", ""))[1]
        reference = _reference(
            "CHILD_OF" if kind == "child_of" else "FOLLOWS_FROM",
            short_id(link.trace_id),
            link.span_id.hex(),
        )
        # A link to the parent says the same again.
        if reference["spanID"] != span.parent_span_id.hex() or reference["traceID"] != trace_id:
            references.append(reference)
    return {
        "traceID": trace_id,
        "spanID": span.span_id.hex(),
        "operationName": span.name,
        "references": references,
        "startTime": start_ns // 1000,
        "duration": max(0, end_ns - start_ns) // 1000,
        "tags": _tag_list(tags(found)),
        "logs": [
            {
                "timestamp": event.time_unix_nano // 1000,
                "fields": _tag_list(_event_fields(event)),
            }
            for event in span.events
        ],
        "processID": process,
        "warnings": None,
    }


def _reference(kind: str, trace_id: str, span_id: str) -> Json:
    return {"refType": kind, "traceID": trace_id, "spanID": span_id}


def _process(resource: Resource) -> Json:
    found = attributes(resource.attributes)
    found.pop("service.name", None)
    return {"serviceName": service_of(resource), "tags": _tag_list(found)}


def _event_fields(event: Any) -> dict[str, Tag]:
    made: dict[str, Tag] = {"event": ("string", event.name)} if event.name else {}
    made.update(attributes(event.attributes))
    return made


def _tag_list(found: Mapping[str, Tag]) -> list[Json]:
    return [
        {"key": key, "type": kind, "value": value} for key, (kind, value) in sorted(found.items())
    ]


def _tag(value: AnyValue) -> Tag:
    match value.WhichOneof("value"):
        case "string_value":
            return "string", value.string_value
        case "bool_value":
            return "bool", value.bool_value
        case "int_value":
            return "int64", value.int_value
        case "double_value":
            # JSON has no NaN and no infinity.
            number = value.double_value
            if number != number or number in (float("inf"), float("-inf")):
                return "string", str(number)
            return "float64", number
        case "bytes_value":
            return "binary", base64.b64encode(value.bytes_value).decode()
        case "array_value" | "kvlist_value":
            plain = json.dumps(
                _plain(value), separators=(",", ":"), ensure_ascii=False, sort_keys=True
            )
            return "string", plain
        case _:
            return "string", ""


def _plain(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case "array_value":
            return [_plain(each) for each in value.array_value.values]
        case "kvlist_value":
            return {pair.key: _plain(pair.value) for pair in value.kvlist_value.values}
        case None:
            return None
        case _:
            return _tag(value)[1]


def _message(message: Any) -> Json:
    found: Json = MessageToDict(message, use_integers_for_enums=True)
    return found


def _otlp_span(found: Found) -> Json:
    written = _message(found.span)
    for span in (written, *written.get("links", ())):
        for key in ("traceId", "spanId", "parentSpanId"):
            if key in span:
                span[key] = base64.b64decode(span[key]).hex()
    return written
