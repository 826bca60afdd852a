"""A service that traces itself, by OpenTelemetry's SDK: its spans, as lines of JSON on standard
output in the form of `wirespan run --output json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id


class Lines(SpanExporter):
    """Prints spans."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            line = {
                "trace_id": format_trace_id(span.context.trace_id),
                "span_id": format_span_id(span.context.span_id),
                "parent_span_id": format_span_id(span.parent.span_id) if span.parent else "",
                "kind": span.kind.name,
                "attributes": dict(span.attributes or {}),
                "resource": {"process.pid": os.getpid()},
            }
            # In one piece, whatever other threads print.
            os.write(1, f"{json.dumps(line)}\n".encode())
        return SpanExportResult.SUCCESS


_provider = TracerProvider()
_provider.add_span_processor(SimpleSpanProcessor(Lines()))
_tracer = _provider.get_tracer("own")


@contextmanager
def server(path: str, headers: Mapping[str, str]) -> Iterator[None]:
    """Be a span of the request that is served, below what its traceparent names."""
    carrier = {name.lower(): value for name, value in headers.items()}
    with _tracer.start_as_current_span(
        "GET", context=extract(carrier), kind=SpanKind.SERVER, attributes={"url.path": path}
    ):
        yield


@contextmanager
def client(url: str) -> Iterator[dict[str, str]]:
    """Be a span of a call; gives the headers that name it."""
    with _tracer.start_as_current_span(
        "GET", kind=SpanKind.CLIENT, attributes={"url.path": urlsplit(url).path}
    ):
        headers: dict[str, str] = {}
        inject(headers)
        yield headers
