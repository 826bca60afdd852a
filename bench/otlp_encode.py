"""What a span costs on its way to OTLP bytes: columns, protobuf objects, OTel SDK.

Run as `python -m bench.otlp_encode [ROWS]`. All three encode the same spans (6 constant, 3
int and 3 text attributes, 20 shapes); medians of interleaved rounds, in us of CPU time a span.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.sdk.resources import Resource as SdkResource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

from tracer.otlp import Encoder
from tracer.spans import (
    KIND_SERVER,
    STATUS_UNSET,
    AttributeValue,
    IntColumn,
    Resource,
    Shape,
    SpanBatch,
    Text,
    TextColumn,
)

ROUNDS = 7
SLOW_ROWS = 1000
SHAPES = 20


def batch(rows: int) -> SpanBatch:
    """Make `rows` server spans of SHAPES shapes in 4 services."""
    random = np.random.default_rng(1)
    shapes = [
        Shape(
            Resource(
                (
                    ("service.name", f"shop-{number % 4}"),
                    ("service.instance.id", f"host-1/{number % 4}"),
                    ("process.pid", 1000 + number % 4),
                    ("host.name", "host-1"),
                )
            ),
            f"GET /api/things/{number}/{{id}}",
            KIND_SERVER,
            STATUS_UNSET,
            "",
            (
                ("http.request.method", "GET"),
                ("http.route", f"/api/things/{number}/{{id}}"),
                ("url.scheme", "http"),
                ("server.address", "shop.example.com"),
                ("server.port", 8080),
                ("network.protocol.version", "1.1"),
            ),
            (
                IntColumn("http.response.status_code", "status"),
                IntColumn("client.port", "client_port"),
                IntColumn("wirespan.time_to_first_byte_ns", "first_byte_ns"),
            ),
            (
                TextColumn("url.path", "", "path"),
                TextColumn("user_agent.original", "", "user_agent"),
                TextColumn("client.address", "", "client"),
            ),
        )
        for number in range(SHAPES)
    ]

    def text(width: int, shortest: int, longest: int) -> Text:
        return Text(
            random.integers(0x21, 0x7F, (rows, width), dtype=np.uint8),
            random.integers(shortest, longest, rows, dtype=np.uint16),
        )

    start = np.arange(rows, dtype=np.uint64) * np.uint64(5000) + np.uint64(1_790_000_000 * 10**9)
    return SpanBatch(
        random.integers(0, 256, (rows, 16), dtype=np.uint8),
        random.integers(1, 256, (rows, 8), dtype=np.uint8),
        random.integers(1, 256, (rows, 8), dtype=np.uint8),
        start,
        start + random.integers(10**5, 10**8, rows).astype(np.uint64),
        random.integers(0, SHAPES, rows, dtype=np.int32),
        shapes,
        {
            "status": random.integers(200, 504, rows),
            "client_port": random.integers(1024, 65536, rows),
            "first_byte_ns": random.integers(10**4, 10**8, rows),
        },
        {"path": text(128, 10, 60), "user_agent": text(128, 11, 120), "client": text(16, 7, 15)},
    )


def rows_of(spans: SpanBatch, count: int) -> list[tuple[Shape, dict[str, AttributeValue], int]]:
    """Unpack the first `count` rows for encoders that want objects: not timed."""
    unpacked = []
    for row in range(count):
        shape = spans.shapes[spans.shape[row]]
        attributes = dict(shape.attributes)
        for key, name in shape.ints:
            attributes[key] = int(spans.ints[name][row])
        for key, prefix, name in shape.texts:
            column = spans.texts[name]
            attributes[key] = prefix + column.bytes[row, : column.length[row]].tobytes().decode()
        unpacked.append((shape, attributes, row))
    return unpacked


def with_protobuf(spans: SpanBatch, count: int) -> Callable[[], bytes]:
    """Encode by the generated classes, one object a span."""
    unpacked = rows_of(spans, count)

    def encode() -> bytes:
        request = ExportTraceServiceRequest()
        of_resource: dict[Resource, ScopeSpans] = {}
        for shape, attributes, row in unpacked:
            scope = of_resource.get(shape.resource)
            if scope is None:
                resource = request.resource_spans.add()
                scope = of_resource[shape.resource] = resource.scope_spans.add()
            span = scope.spans.add(
                trace_id=spans.trace_id[row].tobytes(),
                span_id=spans.span_id[row].tobytes(),
                parent_span_id=spans.parent_span_id[row].tobytes(),
                name=shape.name,
                kind=2,
                start_time_unix_nano=int(spans.start_ns[row]),
                end_time_unix_nano=int(spans.end_ns[row]),
            )
            for key, value in attributes.items():
                pair = span.attributes.add(key=key)
                if isinstance(value, str):
                    pair.value.string_value = value
                elif isinstance(value, int):
                    pair.value.int_value = value
        return request.SerializeToString()

    return encode


def with_sdk(spans: SpanBatch, count: int) -> Callable[[], bytes]:
    """Encode by the OTel SDK: its span objects are built beforehand, not timed."""
    resources = {
        shape.resource: SdkResource(dict(shape.resource.attributes)) for shape in spans.shapes
    }

    def context(identity: bytes, row: int) -> SpanContext:
        trace_id = int.from_bytes(spans.trace_id[row].tobytes(), "big")
        return SpanContext(trace_id, int.from_bytes(identity, "big"), True, TraceFlags(1))

    objects: Sequence[ReadableSpan] = [
        ReadableSpan(
            shape.name,
            context(spans.span_id[row].tobytes(), row),
            context(spans.parent_span_id[row].tobytes(), row),
            resources[shape.resource],
            attributes,
            kind=SpanKind.SERVER,
            start_time=int(spans.start_ns[row]),
            end_time=int(spans.end_ns[row]),
        )
        for shape, attributes, row in rows_of(spans, count)
    ]
    return lambda: encode_spans(objects).SerializeToString()


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 8192
    spans = batch(rows)
    encoder = Encoder("bench")
    few = min(rows, SLOW_ROWS)
    candidates: dict[str, tuple[Callable[[], bytes], int]] = {
        "columns": (lambda: encoder.encode(spans), rows),
        "protobuf objects": (with_protobuf(spans, few), few),
        "OTel SDK": (with_sdk(spans, few), few),
    }
    costs: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(ROUNDS):
        for name, (encode, count) in candidates.items():
            encode()
            began = time.process_time_ns()
            size = len(encode())
            costs[name].append((time.process_time_ns() - began) / count / 1000)
            if turn == 0:
                print(f"{name}: {size / count:.0f} bytes a span")
    for name, samples in costs.items():
        print(
            f"{name:>17}  {statistics.median(samples):7.2f} us a span"
            f"  (from {min(samples):.2f} to {max(samples):.2f})"
        )


if __name__ == "__main__":
    main()
