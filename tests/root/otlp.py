"""OTLP backends for tests, in this process: what a tracer exported, as it arrived."""

from __future__ import annotations

import gzip
import http.server
import threading
from concurrent import futures
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Backend:
    """What came: `requests` in number, `spans` as (id in hex, name) in order of arrival.

    metrics: how many requests; last: the latest of them.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests = 0
        self.metrics = 0
        self.last: Any = None
        self.spans: list[tuple[str, str]] = []
        self.encodings: set[str] = set()
        self.port = 0

    def take(self, request: Any) -> None:
        with self.lock:
            self.requests += 1
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self.spans += [(span.span_id.hex(), span.name) for span in scope.spans]

    def take_metrics(self, request: Any) -> None:
        with self.lock:
            self.metrics += 1
            self.last = request

    def ids(self) -> list[str]:
        with self.lock:
            return [span_id for span_id, _ in self.spans]

    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class HttpBackend(Backend):
    """OTLP over http/protobuf with keep-alive."""

    def __init__(self, port: int = 0) -> None:
        super().__init__()
        backend = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                encoding = self.headers.get("Content-Encoding", "identity")
                backend.encodings.add(encoding)
                if encoding == "gzip":
                    body = gzip.decompress(body)
                if self.path == "/v1/traces":
                    backend.take(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
                elif self.path == "/v1/metrics":
                    backend.take_metrics(
                        metrics_service_pb2.ExportMetricsServiceRequest.FromString(body)
                    )
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = int(self.server.server_address[1])
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class GrpcBackend(Backend):
    """OTLP over gRPC, for traces and metrics."""

    def __init__(self) -> None:
        super().__init__()
        backend = self

        class Traces(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:
                backend.encodings.add(dict(context.invocation_metadata()).get("encoding", "?"))
                backend.take(request)
                return trace_service_pb2.ExportTraceServiceResponse()

        class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:
                backend.take_metrics(request)
                return metrics_service_pb2.ExportMetricsServiceResponse()

        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), self.server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def close(self) -> None:
        self.server.stop(None).wait()
