"""Requests to spans: what comes in is what is there, and hostile input is our own error."""

from __future__ import annotations

import json
import re
import time

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from collector.decode import MAX_ATTRIBUTES, MAX_SPAN_BYTES, Decoder, MalformedError
from collector.forward import encode
from tests.collector.otlp_messages import CLIENT, ident, message, request, trace


def test_fields_and_attributes() -> None:
    made = message(1, 2, 3, CLIENT, name="GET /x")
    made.status.code = 2
    made.status.message = "broken"
    values = ArrayValue(values=[AnyValue(int_value=-1), AnyValue(bool_value=True)])
    made.attributes.append(KeyValue(key="list", value=AnyValue(array_value=values)))
    raw = request([made])
    (span,) = Decoder().decode(raw).spans
    assert (span.trace_id, span.span_id, span.parent_span_id) == (trace(1), ident(2), ident(3))
    assert (span.name, span.kind, span.service, span.resource.host) == ("GET /x", 3, "web", "h1")
    assert (span.status_code, span.status_message) == (2, "broken")
    assert dict(span.attributes) == {"list": (-1, True)}
    assert SpanMessage.FromString(span.raw) == made
    assert encode([span]) == raw


def test_equal_resources_are_one_object() -> None:
    decoder = Decoder()
    first = decoder.decode(request([message(1, 1)])).spans[0]
    second = decoder.decode(request([message(2, 2)])).spans[0]
    assert first.resource is second.resource


def test_json_says_the_same() -> None:
    raw = request([message(1, 2, 3)])
    document = json_format.MessageToDict(ExportTraceServiceRequest.FromString(raw))
    span = document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    span["traceId"], span["spanId"] = trace(1).hex(), ident(2).hex()
    span["parentSpanId"], span["kind"] = ident(3).hex(), 2
    (read,) = Decoder().decode_json(json.dumps(document).encode()).spans
    (meant,) = Decoder().decode(raw).spans
    assert read.raw == meant.raw


def test_null_is_nothing_in_json() -> None:
    for body in (b'{"resourceSpans":null}', b'{"resourceSpans":[{"scopeSpans":[{"spans":null}]}]}'):
        assert not Decoder().decode_json(body).spans


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"resourceSpans": 5}', b"[" * 100_000, b'{"resourceSpans":[[]]}']
)
def test_bad_json(body: bytes) -> None:
    with pytest.raises(MalformedError, match=r"not OTLP in JSON|too many") as raised:
        Decoder().decode_json(body)
    assert not re.search(r"object|attribute|iterable|'(list|int|str)'", str(raised.value))


def test_invalid_spans_are_refused_one_by_one() -> None:
    good, bad = message(1, 2), [message(1, 3) for _ in range(6)]
    bad[0].trace_id = b"short"
    bad[1].span_id = bytes(8)
    bad[2].parent_span_id = b"x"
    bad[3].start_time_unix_nano = 1 << 63
    bad[4].name = "x" * MAX_SPAN_BYTES
    bad[5].end_time_unix_nano = bad[5].start_time_unix_nano - 1
    result = Decoder().decode(request([*bad, good]))
    assert [span.span_id for span in result.spans] == [ident(2)]
    assert result.rejected == 6
    assert result.reason


def test_many_spans_that_are_none_take_no_memory() -> None:
    # Parsed all at once they would take gigabytes.
    import tracemalloc

    spans = (b"\x12\x0e\x2a\x0c" + b"x" * 12) * 50_000
    tracemalloc.start()
    result = Decoder().decode(_nested(spans))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.rejected == 50_000
    assert peak < 20 << 20


def _nested(spans: bytes) -> bytes:
    scope = b"\x12" + _varint(len(spans)) + spans
    return b"\x0a" + _varint(len(scope)) + scope


@pytest.mark.parametrize(
    "body",
    [
        b"\x0a\x00" * (4 << 20),  # resources
        b"\x08\x00" * (4 << 20),  # fields that nobody knows
        b"\x0a\x02\x12\x00" * (2 << 20),  # scopes
        b"\x0a\x04\x12\x02\x12\x00" * (1 << 20),  # spans
    ],
)
def test_a_request_of_nothing_but_parts_is_refused_soon(body: bytes) -> None:
    before = time.process_time()
    with pytest.raises(MalformedError, match="too many parts"):
        Decoder().decode(body)
    assert time.process_time() - before < 2


def test_as_many_spans_as_there_can_be_are_taken() -> None:
    spans = [message(1, 2, name="") for _ in range(20_000)]
    assert len(Decoder().decode(request(spans)).spans) == 20_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"resourceSpans":[' + b"{}," * (1 << 20) + b"{}]}",
        b'{"x":[' + b"[]," * (1 << 20) + b"1]}",
        b'{"x":[' + b"0.5," * (2 << 20) + b"1]}",
    ],
)
def test_json_of_nothing_but_parts_is_refused_soon(body: bytes) -> None:
    before = time.process_time()
    with pytest.raises(MalformedError, match="too many parts"):
        Decoder().decode_json(body)
    assert time.process_time() - before < 1


def test_what_has_too_many_attributes_is_refused() -> None:
    span = message(1, 2)
    span.attributes.extend(KeyValue(key=str(n)) for n in range(MAX_ATTRIBUTES + 1))
    result = Decoder().decode(request([span, message(1, 3)]))
    assert (len(result.spans), result.rejected) == (1, 1)
    resource = b"\x0a\x00" * (MAX_ATTRIBUTES + 1)
    inner = b"\x0a" + _varint(len(resource)) + resource
    with pytest.raises(MalformedError, match="attributes"):
        Decoder().decode(b"\x0a" + _varint(len(inner)) + inner)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


@given(st.binary(max_size=200))
def test_any_bytes(body: bytes) -> None:
    try:
        Decoder().decode(body)
    except MalformedError:
        pass


@settings(max_examples=300)
@given(st.data())
def test_mutated_requests(data: st.DataObject) -> None:
    body = bytearray(request([message(1, 2, 3), message(4, 5)]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        if data.draw(st.booleans()):
            body[at] = data.draw(st.integers(0, 255))
        else:
            del body[at:]
            break
    try:
        for span in Decoder().decode(bytes(body)).spans:
            dict(span.attributes)
    except MalformedError:
        pass
