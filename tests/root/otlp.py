"""OTLP backends for tests, in this process: what a tracer exported, as it arrived."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import socket
import threading
from concurrent import futures
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
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
    """OTLP over http/protobuf with keep-alive. family: of its socket; IPv6's takes IPv4, too."""

    def __init__(self, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> None:
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
            address_family = family

        self.server = Server(("127.0.0.1" if family == socket.AF_INET else "::", port), Handler)
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


class PlainGrpcBackend(Backend):
    """OTLP over gRPC on a socket of IPv4, where grpc's own is one of IPv6 as the exporter's is.

    It speaks first, as Go's does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self._serving = [threading.Thread(target=self._accept, daemon=True)]
        self._connections: list[socket.socket] = []
        self._serving[0].start()

    def close(self) -> None:
        for each in (self.listener, *self._connections):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._serving:
            thread.join()
        for each in (self.listener, *self._connections):
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._serving.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        connection.sendall(state.data_to_send())
        calls: dict[int, tuple[bool, bytearray]] = {}
        with contextlib.suppress(OSError):
            while data := connection.recv(1 << 16):
                for event in state.receive_data(data):
                    self._heed(state, event, calls)
                connection.sendall(state.data_to_send())

    def _heed(
        self,
        state: h2.connection.H2Connection,
        event: h2.events.Event,
        calls: dict[int, tuple[bool, bytearray]],
    ) -> None:
        """calls: by stream, whether it is for spans, and its content so far."""
        if isinstance(event, h2.events.RequestReceived):
            path = dict(event.headers)[b":path"]
            calls[event.stream_id] = b"TraceService" in path, bytearray()
        elif isinstance(event, h2.events.DataReceived):
            calls[event.stream_id][1].extend(event.data)
            state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            spans, message = calls.pop(event.stream_id)
            if spans:
                content = gzip.decompress(message[5:]) if message[0] else bytes(message[5:])
                self.take(trace_service_pb2.ExportTraceServiceRequest.FromString(content))
            head = [(":status", "200"), ("content-type", "application/grpc")]
            state.send_headers(event.stream_id, head)
            state.send_data(event.stream_id, bytes(5))
            state.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
