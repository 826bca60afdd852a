"""The encoder against protobuf's own objects and parser, field by field."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ProtoResource
from opentelemetry.proto.trace.v1 import trace_pb2

from tracer.otlp import MAX_ATTRIBUTES, Encoder
from tracer.spans import (
    KIND_CLIENT,
    KIND_INTERNAL,
    KIND_SERVER,
    STATUS_ERROR,
    STATUS_UNSET,
    AttributeValue,
    IntColumn,
    Resource,
    Sampling,
    Shape,
    SpanBatch,
    Text,
    TextColumn,
)

VERSION = "1.2.3"
WEB = Resource((("service.name", "web"), ("process.pid", 42)))
DB = Resource((("service.name", "db"),))

PROTO_KINDS = {
    KIND_INTERNAL: trace_pb2.Span.SPAN_KIND_INTERNAL,
    KIND_SERVER: trace_pb2.Span.SPAN_KIND_SERVER,
    KIND_CLIENT: trace_pb2.Span.SPAN_KIND_CLIENT,
}


def shape(
    resource: Resource = WEB,
    name: str = "GET /",
    kind: int = KIND_SERVER,
    attributes: Iterable[tuple[str, AttributeValue]] = (),
    ints: Iterable[tuple[str, str]] = (),
    texts: Iterable[tuple[str, str, str]] = (),
    status: int = STATUS_UNSET,
    message: str = "",
) -> Shape:
    return Shape(
        resource,
        name,
        kind,
        status,
        message,
        tuple(attributes),
        tuple(IntColumn(*column) for column in ints),
        tuple(TextColumn(*column) for column in texts),
    )


def text_column(values: Sequence[bytes], width: int | None = None, beyond: int = 0xFF) -> Text:
    """Make a column whose undefined bytes are `beyond`."""
    width = max(map(len, values), default=0) if width is None else width
    data = np.full((len(values), width), beyond, np.uint8)
    for row, value in enumerate(values):
        data[row, : len(value)] = np.frombuffer(value, np.uint8)
    return Text(data, np.array([len(value) for value in values], np.uint16))


def batch(
    shapes: Sequence[Shape],
    rows: Sequence[int],
    ints: Mapping[str, Sequence[int]] | None = None,
    texts: Mapping[str, Sequence[bytes]] | None = None,
    parents: Sequence[int] | None = None,
) -> SpanBatch:
    """Make a batch; row i has shape `rows[i]`, parent `parents[i]` and times from i."""
    n = len(rows)
    numbers = np.arange(1, n + 1, dtype=np.uint64)
    ids = numbers[:, None].view(np.uint8).reshape(n, 8)
    return SpanBatch(
        np.hstack([ids, ids[:, ::-1]]) if n else np.zeros((0, 16), np.uint8),
        ids,
        np.array(parents or [0] * n, np.uint64)[:, None].view(np.uint8).reshape(n, 8),
        numbers * np.uint64(10**18),
        numbers * np.uint64(10**18) + np.uint64(5),
        np.array(rows, np.int32),
        shapes,
        {name: np.array(column, np.int64) for name, column in (ints or {}).items()},
        {name: text_column(column) for name, column in (texts or {}).items()},
    )


def clean(text: str) -> str:
    """What becomes of a Python string that holds lone surrogates."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def any_value(value: AttributeValue) -> AnyValue:
    out = AnyValue()
    if isinstance(value, bool):
        out.bool_value = value
    elif isinstance(value, int) and -(2**63) <= value < 2**63:
        out.int_value = value
    elif isinstance(value, float):
        out.double_value = value
    elif isinstance(value, tuple):
        out.array_value.values.extend(any_value(item) for item in value)
    else:
        out.string_value = clean(str(value))
    return out


def key_value(key: str, value: AttributeValue) -> KeyValue:
    return KeyValue(key=clean(key), value=any_value(value))


def expected_span(spans: SpanBatch, row: int) -> trace_pb2.Span:
    """Build one row with protobuf's own classes."""
    of = spans.shapes[spans.shape[row]]
    parent = spans.parent_span_id[row].tobytes()
    has_parent = parent != bytes(8)
    span = trace_pb2.Span(
        trace_id=spans.trace_id[row].tobytes(),
        span_id=spans.span_id[row].tobytes(),
        parent_span_id=parent if has_parent else b"",
        name=clean(of.name),
        kind=PROTO_KINDS[of.kind],
        start_time_unix_nano=int(spans.start_ns[row]),
        end_time_unix_nano=int(spans.end_ns[row]),
        flags=0x301 if has_parent and of.kind == KIND_SERVER else 0x101,
        attributes=[key_value(key, value) for key, value in of.attributes],
    )
    if of.status or of.status_message:
        span.status.code = of.status
        span.status.message = clean(of.status_message)
    for key, name in of.ints:
        if (number := int(spans.ints[name][row])) >= 0:
            span.attributes.append(key_value(key, number))
    for key, prefix, name in of.texts:
        column = spans.texts[name]
        raw = column.bytes[row, : column.length[row]].tobytes()
        if raw or prefix:
            value = clean(prefix) + raw.decode("utf-8", "replace")
            span.attributes.append(KeyValue(key=clean(key), value=AnyValue(string_value=value)))
    return span


def in_key_order(span: trace_pb2.Span) -> bytes:
    """Serialise with attributes sorted: their order means nothing."""
    ordered = sorted(a.SerializeToString(deterministic=True) for a in span.attributes)
    copy = trace_pb2.Span()
    copy.CopyFrom(span)
    del copy.attributes[:]
    return copy.SerializeToString(deterministic=True) + b"".join(ordered)


def check(spans: SpanBatch, encoder: Encoder | None = None) -> ExportTraceServiceRequest:
    """Assert that the encoder's bytes parse to exactly the spans of the batch."""
    request = ExportTraceServiceRequest.FromString((encoder or Encoder(VERSION)).encode(spans))
    wanted: dict[bytes, list[bytes]] = {}
    for row in range(len(spans)):
        resource = spans.shapes[spans.shape[row]].resource
        proto = ProtoResource(attributes=[key_value(k, v) for k, v in resource.attributes])
        spans_of = wanted.setdefault(proto.SerializeToString(deterministic=True), [])
        spans_of.append(in_key_order(expected_span(spans, row)))
    found: dict[bytes, list[bytes]] = {}
    for group in request.resource_spans:
        key = group.resource.SerializeToString(deterministic=True)
        assert key not in found, "one ResourceSpans for a resource"
        (scope,) = group.scope_spans
        assert (scope.scope.name, scope.scope.version) == ("wirespan", VERSION)
        found[key] = [in_key_order(span) for span in scope.spans]
    assert found == wanted
    # Nothing that protobuf does not know: a stray byte could hide as an unknown field.
    size = request.ByteSize()
    request.DiscardUnknownFields()
    assert request.ByteSize() == size
    return request


def attributes_of(request: ExportTraceServiceRequest) -> list[dict[str, object]]:
    return [
        {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}
        for group in request.resource_spans
        for span in group.scope_spans[0].spans
    ]


def test_trace_state_says_how_likely_a_span_was_kept() -> None:
    plain = batch([shape()], [0, 0, 0, 0], parents=[0, 7, 0, 0])
    low, one = (int.from_bytes(plain.trace_id[row, 9:].tobytes(), "big") for row in (3, 1))
    sampling = Sampling(
        np.array([0, 0xC0000000000000, 1 << 56, 0x80000000000000], np.uint64),
        np.array([-1, one >> 40, -1, 0x8001], np.int32),
    )
    request = ExportTraceServiceRequest.FromString(
        Encoder().encode(replace(plain, sampling=sampling))
    )
    spans = request.resource_spans[0].scope_spans[0].spans
    drawn = f"ot=rv:8001{low & 0xFFFFFFFFFF:010x};th:8"
    assert [span.trace_state for span in spans] == ["ot=th:0", "ot=th:c", "", drawn]
    for span in spans:
        span.trace_state = ""
    assert list(spans) == list(
        ExportTraceServiceRequest.FromString(Encoder().encode(plain))
        .resource_spans[0]
        .scope_spans[0]
        .spans
    )


def test_no_rows_are_no_bytes() -> None:
    assert Encoder().encode(batch([shape()], [])) == b""


def test_a_plain_span() -> None:
    request = check(batch([shape()], [0]))
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert span.name == "GET /"
    assert span.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert not span.HasField("status")
    assert span.parent_span_id == b""


def test_the_scope_has_no_version_where_none_is_known() -> None:
    request = ExportTraceServiceRequest.FromString(Encoder().encode(batch([shape()], [0])))
    assert request.resource_spans[0].scope_spans[0].scope.version == ""


def test_status_and_message() -> None:
    check(batch([shape(status=STATUS_ERROR, message="reset"), shape(message="x")], [0, 1]))


@pytest.mark.parametrize("kind", [KIND_INTERNAL, KIND_SERVER, KIND_CLIENT])
def test_flags_tell_a_remote_parent(kind: int) -> None:
    request = check(batch([shape(kind=kind)], [0, 0, 0], parents=[7, 0, 2**64 - 1]))
    flags = [span.flags for span in request.resource_spans[0].scope_spans[0].spans]
    assert flags[1] == 0x101
    assert flags[0] == flags[2] == (0x301 if kind == KIND_SERVER else 0x101)


def test_constants_of_every_type() -> None:
    values: list[AttributeValue] = [
        "", "é\U0001f600", 0, -1, 2**63 - 1, -(2**63), 2**63, True, False, 0.0, -1.5,
        float("inf"), ("a", ""), (), "lone \udcff\ud800 surrogates",
    ]  # fmt: skip
    named = [(f"k{number}", value) for number, value in enumerate(values)]
    check(batch([shape(Resource(tuple(named)), attributes=named)], [0, 0]))


def test_absent_ints_leave_no_attribute() -> None:
    spans = batch([shape(ints=[("a", "a"), ("b", "b")])], [0] * 3, {"a": [-1, 0, 9], "b": [-5] * 3})
    assert attributes_of(check(spans)) == [{}, {"a": 0}, {"a": 9}]


def test_ints_of_every_size() -> None:
    values = [0, 2**63 - 1, *(2**bits for bits in range(63)), *(2**bits - 1 for bits in range(63))]
    check(batch([shape(ints=[("n", "n")])], [0] * len(values), {"n": values}))
    for value in values:
        check(batch([shape(ints=[("n", "n")])], [0], {"n": [value]}))


def test_absent_texts_leave_no_attribute_unless_prefixed() -> None:
    of = shape(texts=[("bare", "", "t"), ("url", "http://h", "t")])
    spans = batch([of], [0, 0], texts={"t": [b"", b"/x"]})
    assert attributes_of(check(spans)) == [
        {"url": "http://h"},
        {"bare": "/x", "url": "http://h/x"},
    ]


def test_texts_of_every_length() -> None:
    """Windows are 48, 96, ... bytes; heads change at 128 and 1024, lengths at 16384."""
    lengths = [*range(200), 383, 384, 385, 432, 767, 768, 769, 1007, 1023, 1024, 1025]
    values = [bytes(0x21 + (n + i) % 90 for i in range(n)) for n in lengths]
    of = [shape(texts=[("t", "", "t")]), shape(texts=[("u", "p" * 17, "t")])]
    for chosen in (values, values[::-1], values[:50]):
        rows = [n % 2 for n in range(len(chosen))]
        check(batch(of, rows, texts={"t": chosen}))
    for value in values:
        check(batch(of, [0], texts={"t": [value]}))


@pytest.mark.parametrize("length", [16383, 16384, 65535])
def test_very_long_texts(length: int) -> None:
    of = shape(texts=[("t", "", "t"), ("u", "x", "t")])
    check(batch([of], [0, 0], texts={"t": [b"a" * length, b"b"]}))


def test_spans_beyond_two_megabytes() -> None:
    texts = [(f"t{number}", "", "t") for number in range(33)]
    check(batch([shape(texts=texts)], [0, 0], texts={"t": [b"a" * 65535, b""]}))


def test_long_names_keys_and_prefixes() -> None:
    for n in (100, 127, 128, 300, 20_000):
        of = shape(
            name="n" * n,
            attributes=[("c" * n, "v" * n)],
            ints=[("i" * n, "i")],
            texts=[("k" * n, "p" * n, "t")],
        )
        check(batch([of, shape()], [0, 1, 0], {"i": [1, 2, 300]}, {"t": [b"", b"x", b"y" * 99]}))


def test_rows_are_grouped_by_resource_and_keep_their_order() -> None:
    of = [shape(WEB), shape(DB, name="SELECT", kind=KIND_CLIENT), shape(WEB, name="POST /")]
    request = check(batch(of, [1, 0, 2, 1, 0, 0, 2]))
    names = [[s.name for s in g.scope_spans[0].spans] for g in request.resource_spans]
    assert sorted(map(len, names)) == [2, 5]
    assert ["GET /", "POST /", "GET /", "GET /", "POST /"] in names


def test_more_than_256_resources_and_shapes() -> None:
    of = [
        shape(
            Resource((("service.name", f"s{n % 300}"),)), name=f"n{n}", texts=[("u", f"p{n}", "t")]
        )
        for n in range(700)
    ]
    rows = [(n * 7) % 700 for n in range(1400)]
    check(batch(of, rows, texts={"t": [b"/%d" % n for n in range(1400)]}))


def test_one_attribute_twice_in_a_shape() -> None:
    of = shape(ints=[("a", "a"), ("a", "a")], texts=[("t", "", "t"), ("t", "p", "t")])
    check(batch([of], [0], {"a": [3]}, {"t": [b"x"]}))


def test_columns_that_no_shape_of_the_batch_uses_may_be_missing() -> None:
    of = [shape(ints=[("a", "a")], texts=[("t", "", "t")]), shape()]
    encoder = Encoder(VERSION)
    check(batch(of, [0], {"a": [1]}, {"t": [b"x"]}), encoder)
    check(batch(of, [1]), encoder)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff", b"\xc3\xa9", b"\xc3", b"caf\xc3", b"\xe2\x82", b"\xf0\x9f\x98\x80",
        b"\xed\xa0\x80", b"\xc0\xaf", b"a\x80b", b"\xff" * 432,
        b"\x00\x0a\xff\x0a", b"\xf4\x90\x80\x80",
    ],
)  # fmt: skip
def test_texts_become_valid_utf8(raw: bytes) -> None:
    of = shape(texts=[("t", "", "t"), ("u", "é", "t"), ("v", "", "v")])
    texts = {"t": [b"plain", raw, b"", b"\xc3\xa4", raw], "v": [b"/" * 70] * 5}
    check(batch([of], [0] * 5, texts=texts))


def test_bytes_beyond_a_length_do_not_matter() -> None:
    spans = batch([shape(texts=[("t", "", "t")])], [0, 0], texts={"t": [b"ab", b"abcd"]})
    check(replace(spans, texts={"t": text_column([b"ab", b"\xc3\xa9"], width=64, beyond=0x80)}))


def test_columns_may_be_views() -> None:
    """Columns cut out of records are strided, and may be read-only."""
    spans = batch(
        [shape(ints=[("a", "a")], texts=[("t", "", "t")])], [0, 0, 0], {"a": [1, -1, 3]},
        {"t": [b"ab", b"", b"\xffx"]},
    )  # fmt: skip
    wide = np.full((3, 100), 0x61, np.uint8)
    wide[:, 20:36] = spans.trace_id
    wide[:, 40:48] = spans.span_id
    wide[:, 50:53] = [[0x62, 0x63, 0xFF]] * 3
    wide.flags.writeable = False
    times = np.stack([spans.start_ns, spans.end_ns], axis=1)
    ints = np.repeat(spans.ints["a"], 2)[::2]
    check(
        replace(
            spans,
            trace_id=wide[:, 20:36],
            span_id=wide[:, 40:48],
            start_ns=times[:, 0],
            end_ns=times[:, 1],
            ints={"a": ints},
            texts={"t": Text(wide[:, 50:60], np.array([2, 0, 3], np.uint16))},
        )
    )


def test_a_length_beyond_the_column_is_cut() -> None:
    spans = batch([shape(texts=[("t", "", "t")])], [0], texts={"t": [b"abc"]})
    spans = replace(spans, texts={"t": Text(spans.texts["t"].bytes, np.array([9], np.uint16))})
    request = ExportTraceServiceRequest.FromString(Encoder().encode(spans))
    assert attributes_of(request) == [{"t": "abc"}]


def test_results_joined_are_one_request() -> None:
    encoder = Encoder(VERSION)
    first, second = batch([shape()], [0, 0]), batch([shape(DB)], [0])
    request = ExportTraceServiceRequest.FromString(encoder.encode(first) + encoder.encode(second))
    assert [len(g.scope_spans[0].spans) for g in request.resource_spans] == [2, 1]


def test_shapes_may_grow_between_batches() -> None:
    encoder = Encoder(VERSION)
    shapes = [shape(ints=[("a", "a")])]
    check(batch(shapes, [0], {"a": [1]}), encoder)
    for number in range(200):
        shapes.append(shape(name=f"n{number}", texts=[(f"t{number % 40}", "p", "t")]))
        rows = [number + 1, 0]
        check(batch(shapes, rows, {"a": [1, 2]}, {"t": [b"x", b""]}), encoder)
    assert encoder.cached_shapes == 201


def test_another_sequence_of_shapes_is_not_confused_with_the_last() -> None:
    encoder = Encoder(VERSION)
    check(batch([shape(name="a")], [0]), encoder)
    check(batch([shape(name="b")], [0]), encoder)


def test_remembered_shapes_are_bounded() -> None:
    encoder = Encoder(VERSION, max_shapes=50)
    shapes = [shape(name=f"n{number}") for number in range(500)]
    for number in range(0, 500, 10):
        check(batch(shapes, list(range(number, number + 10))), encoder)
        assert encoder.cached_shapes <= 60
    check(batch(shapes, list(range(500))), encoder)
    check(batch(shapes, [3]), encoder)
    assert encoder.cached_shapes == 1


def test_caches_do_not_grow_memory() -> None:
    """Ever new shapes, keys and resources: what is held stays where it was."""
    encoder = Encoder(VERSION, max_shapes=100)

    def one(number: int) -> None:
        of = shape(
            Resource((("service.name", f"s{number}"),)),
            name=f"n{number}" * 50,
            ints=[(f"i{number}", "i")],
            texts=[(f"t{number}", f"p{number}", "t")],
        )
        encoder.encode(batch([of], [0], {"i": [1]}, {"t": [b"x"]}))

    def many(number: int) -> None:
        shapes = [
            shape(name=f"{number}/{n}", texts=[(f"t{number * 20 + n}", "", "t")]) for n in range(20)
        ]
        encoder.encode(batch(shapes, list(range(20)), texts={"t": [b"x"] * 20}))

    tracemalloc.start()
    try:
        for number in range(20):
            one(number)
            many(number)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(20, 80):
            one(number)
            many(number)
        assert tracemalloc.get_traced_memory()[0] < before + 50_000
    finally:
        tracemalloc.stop()


def test_one_sequence_with_ever_new_keys_is_bounded() -> None:
    encoder = Encoder(VERSION)
    shapes = [shape(ints=[(f"i{n}", "i")], texts=[(f"t{n}", "", "t")]) for n in range(1000)]
    for n in range(1000):
        encoder.encode(batch(shapes, [n], {"i": [1]}, {"t": [b"x"]}))
        assert encoder.cached_shapes <= MAX_ATTRIBUTES


names = st.text(max_size=20) | st.sampled_from(["a", "b"])
constants = st.one_of(
    st.text(max_size=60),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.floats(allow_nan=False),
    st.lists(st.text(max_size=5), max_size=3).map(tuple),
)
resources = st.lists(st.tuples(names, st.text(max_size=9)), max_size=3).map(
    lambda pairs: Resource(tuple(pairs))
)
shapes_of = st.builds(
    shape,
    resources,
    names,
    st.sampled_from([KIND_INTERNAL, KIND_SERVER, KIND_CLIENT]),
    st.lists(st.tuples(names, constants), max_size=4),
    st.lists(st.tuples(names, st.sampled_from("ab")), max_size=3),
    st.lists(st.tuples(names, names, st.sampled_from("tu")), max_size=3),
    st.integers(0, 2),
    st.text(max_size=9),
)
texts_of = st.one_of(
    st.binary(max_size=9),
    st.text(max_size=130).map(str.encode),
    st.integers(0, 432).map(lambda n: b"x" * n),
    st.tuples(st.text(max_size=99).map(str.encode), st.integers(0, 99)).map(lambda p: p[0][: p[1]]),
)
ints_of = st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32))


@st.composite
def batches(draw: st.DrawFn) -> SpanBatch:
    shapes = draw(st.lists(shapes_of, min_size=1, max_size=8))
    rows = draw(st.lists(st.integers(0, len(shapes) - 1), max_size=12))

    def column(of: st.SearchStrategy[object]) -> list[object]:
        return draw(st.lists(of, min_size=len(rows), max_size=len(rows)))

    ints = {name: column(ints_of) for name in "ab"}
    texts = {name: column(texts_of) for name in "tu"}
    parents = column(st.sampled_from([0, 1, 2**63, 2**64 - 1]))
    return batch(shapes, rows, ints, texts, parents)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=150)
@given(st.lists(batches(), min_size=1, max_size=3))
def test_any_batches(several: list[SpanBatch]) -> None:
    encoder = Encoder(VERSION, max_shapes=6)
    for spans in several:
        check(spans, encoder)
