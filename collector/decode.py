"""OTLP requests, as protobuf or JSON, to spans.

A request is walked by hand down to its spans, which are then parsed one at a time: so the
bytes of each are at hand as they came, and a request cannot be made to take many times its
size in memory (a repeated message of two bytes takes some hundred once it is parsed). Nor can
it be made to take long: it may have no more parts than its bytes are worth.
Pure: no sockets, files, threads or clocks.
Source: https://opentelemetry.io/docs/specs/otlp/ and opentelemetry-proto's trace.proto;
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from collector.model import EMPTY, Attributes, Resource, Span, Value

# What a sender may make of one message: far beyond what an SDK sends by default.
MAX_SPAN_BYTES = 1 << 20
MAX_RESOURCE_BYTES = 64 << 10
MAX_SCOPE_BYTES = 64 << 10
# Parts of a request: at most, and for each this many bytes on average (a span has 46 at least,
# an empty message two) beyond some that are free.
MAX_PARTS = 1 << 16
MIN_PART_BYTES = 16
FREE_PARTS = 1_024
# Likewise of what is in JSON, whose parts take ten times as long, and at most.
MIN_JSON_BYTES = 8
MAX_JSON_PARTS = 1 << 18
# Far beyond what SDKs allow (128): all are looked at when one is.
MAX_ATTRIBUTES = 4_096
# Resources and scopes that are known by their bytes.
MAX_KNOWN = 4_096
# Times are stored as signed 64-bit numbers: the year 2262.
MAX_TIME_NS = (1 << 63) - 1

_NO_SPAN_ID = bytes(8)
_NO_TRACE_ID = bytes(16)


class MalformedError(ValueError):
    """A request is not OTLP; none of it was taken."""


@dataclass(slots=True)
class Decoded:
    """The spans of a request; rejected: how many could not be taken, and why the first."""

    spans: list[Span] = field(default_factory=list)
    rejected: int = 0
    reason: str = ""

    def reject(self, reason: str) -> None:
        """Count a span that is not taken."""
        self.rejected += 1
        self.reason = self.reason or reason


class LazyAttributes(Mapping[str, Value]):
    """A span's attributes, parsed when first looked at: most spans only pass through."""

    __slots__ = ("_found", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._found: dict[str, Value] | None = None

    def _all(self) -> dict[str, Value]:
        if self._found is None:
            self._found = to_dict(SpanMessage.FromString(self._raw).attributes)
            self._raw = b""
        return self._found

    def __getitem__(self, name: str) -> Value:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())


class Decoder:
    """Reads requests; knows the resources it has met, so that equal ones are one object."""

    def __init__(self) -> None:
        self._resources: OrderedDict[bytes, Resource] = OrderedDict()

    def decode(self, request: bytes) -> Decoded:
        """Read a serialized ExportTraceServiceRequest; raises MalformedError.

        Spans without valid ids or times, or larger than MAX_SPAN_BYTES, are left out and
        counted in `rejected`.
        """
        decoded = Decoded()
        walk = _Walk(min(MAX_PARTS, FREE_PARTS + len(request) // MIN_PART_BYTES))
        for number, resource_spans in walk.fields(request):
            if number == 1:
                self._resource_spans(resource_spans, decoded, walk)
        return decoded

    def decode_json(self, request: bytes) -> Decoded:
        """Read a request in OTLP's JSON, where ids are in hex; raises MalformedError."""
        parts = request.count(b"{") + request.count(b"[")
        most = min(MAX_JSON_PARTS, FREE_PARTS + len(request) // MIN_JSON_BYTES)
        if parts > most or request.count(b",") > 4 * MAX_JSON_PARTS:
            raise MalformedError("a request has too many parts")
        try:
            document = json.loads(request)
            # null is the same as nothing in Protobuf's JSON.
            for entry in document.get("resourceSpans") or ():
                for scope in entry.get("scopeSpans") or ():
                    for span in scope.get("spans") or ():
                        _hex_to_base64(span)
                        for link in span.get("links") or ():
                            _hex_to_base64(link)
            message = json_format.ParseDict(
                document, ExportTraceServiceRequest(), ignore_unknown_fields=True
            )
        except (json.JSONDecodeError, json_format.ParseError) as error:
            raise MalformedError(f"not OTLP in JSON: {str(error)[:200]}") from None
        except (ValueError, TypeError, AttributeError, RecursionError, json_format.Error):
            # Their words are Python's, of types that no sender knows.
            raise MalformedError("not OTLP in JSON: something is of another type there") from None
        return self.decode(message.SerializeToString())

    def _resource_spans(self, message: bytes, decoded: Decoded, walk: _Walk) -> None:
        parts = list(walk.fields(message))
        # Of a field that is not repeated, the last one counts.
        raw = b"".join(value for number, value in parts if number == 1)
        resource = self._resource(raw)
        for number, scope_spans in parts:
            if number != 2:
                continue
            scope = b""
            spans: list[bytes] = []
            for inner, value in walk.fields(scope_spans):
                if inner == 2:
                    spans.append(value)
                elif inner == 1:
                    scope += value
            if len(scope) > MAX_SCOPE_BYTES:
                raise MalformedError("a scope is larger than 64 KiB")
            for span in spans:
                _span(span, scope, resource, decoded)

    def _resource(self, raw: bytes) -> Resource:
        known = self._resources.get(raw)
        if known is not None:
            self._resources.move_to_end(raw)
            return known
        if len(raw) > MAX_RESOURCE_BYTES:
            raise MalformedError("a resource is larger than 64 KiB")
        try:
            message = ResourceMessage.FromString(raw)
        except DecodeError as error:
            raise MalformedError(f"a resource is not OTLP: {error}") from None
        if len(message.attributes) > MAX_ATTRIBUTES:
            raise MalformedError(f"a resource has more than {MAX_ATTRIBUTES} attributes")
        attributes = to_dict(message.attributes)
        host = attributes.get("host.id") or attributes.get("host.name") or ""
        resource = Resource(raw, attributes, str(attributes.get("service.name", "")), str(host))
        self._resources[raw] = resource
        if len(self._resources) > MAX_KNOWN:
            self._resources.popitem(last=False)
        return resource


def to_dict(attributes: Any) -> dict[str, Value]:
    """Make Python values of repeated KeyValue; of equal keys the last one counts."""
    return {item.key: _value(item.value) for item in attributes}


def from_dict(attributes: Attributes) -> Iterator[KeyValue]:
    """Make KeyValue messages of str, bool, int and float values."""
    for name, value in attributes.items():
        if isinstance(value, bool):
            yield KeyValue(key=name, value=AnyValue(bool_value=value))
        elif isinstance(value, int):
            yield KeyValue(key=name, value=AnyValue(int_value=value))
        elif isinstance(value, float):
            yield KeyValue(key=name, value=AnyValue(double_value=value))
        else:
            yield KeyValue(key=name, value=AnyValue(string_value=str(value)))


def _value(value: AnyValue) -> Value:
    which = value.WhichOneof("value")
    if which == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    if which == "kvlist_value":
        return to_dict(value.kvlist_value.values)
    plain: Value = getattr(value, which) if which else None
    return plain


def _span(raw: bytes, scope: bytes, resource: Resource, decoded: Decoded) -> None:
    if len(raw) > MAX_SPAN_BYTES:
        decoded.reject("a span is larger than 1 MiB")
        return
    try:
        message = SpanMessage.FromString(raw)
    except DecodeError as error:
        raise MalformedError(f"a span is not OTLP: {error}") from None
    trace_id, span_id, parent = message.trace_id, message.span_id, message.parent_span_id
    if len(trace_id) != 16 or trace_id == _NO_TRACE_ID:
        decoded.reject("a trace id is not 16 bytes, or all zero")
        return
    if len(span_id) != 8 or span_id == _NO_SPAN_ID:
        decoded.reject("a span id is not 8 bytes, or all zero")
        return
    if len(parent) not in (0, 8):
        decoded.reject("a parent span id is not 8 bytes")
        return
    start_ns, end_ns = message.start_time_unix_nano, message.end_time_unix_nano
    if start_ns > MAX_TIME_NS or end_ns > MAX_TIME_NS:
        decoded.reject("a time lies beyond the year 2262")
        return
    if end_ns < start_ns:
        decoded.reject("a span ends before it starts")
        return
    if len(message.attributes) > MAX_ATTRIBUTES:
        decoded.reject(f"a span has more than {MAX_ATTRIBUTES} attributes")
        return
    status = message.status
    decoded.spans.append(
        Span(
            trace_id,
            span_id,
            b"" if parent == _NO_SPAN_ID else parent,
            message.name,
            message.kind,
            start_ns,
            end_ns,
            resource,
            status.code,
            status.message,
            LazyAttributes(raw) if message.attributes else EMPTY,
            raw,
            scope,
        )
    )


def _hex_to_base64(ids: dict[str, Any]) -> None:
    for name in ("traceId", "spanId", "parentSpanId"):
        if ids.get(name):
            try:
                ids[name] = base64.b64encode(bytes.fromhex(ids[name])).decode()
            except (ValueError, TypeError, binascii.Error):
                raise ValueError(f"{name} is not in hex") from None


class _Walk:
    """Takes messages apart, up to a number of fields; left: how many more."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left

    def fields(self, message: bytes) -> Iterator[tuple[int, bytes]]:
        """Give number and value of each length-delimited field; others are passed over."""
        at, end = 0, len(message)
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise MalformedError("a request has too many parts")
            tag = message[at]
            at += 1
            if tag >= 0x80:
                tag, at = _varint(message, at - 1)
            kind = tag & 7
            if kind == 2:
                if at < end and message[at] < 0x80:
                    size = message[at]
                    at += 1
                else:
                    size, at = _varint(message, at)
                if size > end - at:
                    raise MalformedError("a message ends early")
                yield tag >> 3, message[at : at + size]
                at += size
            elif kind == 0:
                _, at = _varint(message, at)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                raise MalformedError("a field has a type that OTLP does not use")
            if tag < 8 or at > end:
                raise MalformedError("a message ends early or has a field without number")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Read a base-128 number of at most ten bytes: (the number, where it ends)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise MalformedError("a message ends early")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedError("a number is longer than ten bytes")
