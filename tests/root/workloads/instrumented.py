"""Services for tests of applications that trace themselves, by hand with OpenTelemetry's SDK.

    client URL COUNT   COUNT requests below URL, 4 at a time; each is a span `job` with a span of
                       the request below it, whose traceparent is sent along
    front PORT URL     a span of each request, below the traceparent that came; for each it asks
                       URL with the same path, and that call is not instrumented
    plain PORT         not instrumented

Spans have the request's path as `url.path`, and go to OTEL_EXPORTER_OTLP_ENDPOINT.
"""

from __future__ import annotations

import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

AT_A_TIME = 4
URL_PATH = "url.path"


def tracer() -> trace.Tracer:
    """Set up the SDK: spans go out within 0.2 s."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
    trace.set_tracer_provider(provider)
    return provider.get_tracer("by-hand")


class Plain(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply()

    def reply(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


class Front(Plain):
    upstream = ""
    tracer: trace.Tracer

    def do_GET(self) -> None:
        with self.tracer.start_as_current_span(
            "GET /front",
            context=extract({name.lower(): value for name, value in self.headers.items()}),
            kind=trace.SpanKind.SERVER,
            attributes={URL_PATH: self.path},
        ):
            get(self.upstream + self.path)
        self.reply()


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True


def get(url: str, headers: dict[str, str] | None = None) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {})) as response:
        response.read()


def ask(tracer: trace.Tracer, url: str) -> None:
    attributes = {URL_PATH: urlsplit(url).path}
    with (
        tracer.start_as_current_span("job", attributes=attributes),
        tracer.start_as_current_span("GET", kind=trace.SpanKind.CLIENT, attributes=attributes),
    ):
        headers: dict[str, str] = {}
        inject(headers)
        get(url, headers)


def main(role: str, *words: str) -> None:
    if role == "client":
        url, count = words
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            mine = tracer()
            for done in [pool.submit(ask, mine, f"{url}/{i}") for i in range(int(count))]:
                done.result()
        trace.get_tracer_provider().shutdown()  # type: ignore[attr-defined]
        return
    handler: type[Plain] = Plain
    if role == "front":
        handler = Front
        Front.upstream, Front.tracer = words[1], tracer()
    Server(("127.0.0.1", int(words[0])), handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
