"""OTLP receivers for tests: real gRPC and HTTP servers that answer by a script."""

from __future__ import annotations

import contextlib
import gzip
import ssl
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from bench.processes import free_port as free_port
from tracer.export_reply import METHODS

METHOD, METRICS_METHOD = METHODS["traces"], METHODS["metrics"]
METRICS_PATH = "/v1/metrics"
WAIT_S = 20.0


@dataclass(frozen=True)
class Answer:
    """One answer. code: of gRPC or HTTP; retry_s: RetryInfo or Retry-After."""

    code: grpc.StatusCode | int | None = None
    message: str = ""
    retry_s: float | None = None
    retry_after: str = ""
    body: bytes = b""
    content_type: str = "application/x-protobuf"
    close: bool = False
    hang: bool = False
    drop: bool = False


@dataclass
class Received:
    spans: list[int]
    headers: Mapping[str, str]
    size: int
    path: str = METHOD
    body: bytes = b""


@dataclass
class Receiver:
    """What came in, and what to answer: `script` first, then success."""

    script: deque[Answer] = field(default_factory=deque)
    accepted: list[Received] = field(default_factory=list)
    refused: list[Received] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    connections: int = 0

    def __post_init__(self) -> None:
        self.changed = threading.Condition()

    def answer(self, received: Received) -> Answer:
        with self.changed:
            reply = self.script.popleft() if self.script else Answer()
            failed = reply.code not in (None, 200) or reply.hang or reply.drop
            (self.refused if failed else self.accepted).append(received)
            self.changed.notify_all()
        if reply.hang:
            self.release.wait(WAIT_S)
        return reply

    @property
    def spans(self) -> list[int]:
        return [span for received in self.accepted for span in received.spans]

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_S), "what the test waits for never came"


def partial_success(rejected: int, message: str = "") -> bytes:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    response.partial_success.error_message = message
    return response.SerializeToString()


def numbers(body: bytes) -> list[int]:
    """The span ids in a request, which tests give as numbers."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        int.from_bytes(span.span_id, "little")
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


@dataclass(frozen=True)
class Pem:
    """A self-made certificate for localhost and 127.0.0.1, and its key."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, directory: Path, name: str) -> Pem:
        made = cls(directory / f"{name}.pem", directory / f"{name}.key")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
             "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
             "-keyout", str(made.key), "-out", str(made.certificate)],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        return made


@contextlib.contextmanager
def grpc_receiver(
    receiver: Receiver, port: int = 0, pem: Pem | None = None, client: Pem | None = None
) -> Iterator[int]:
    """Serve `receiver` over OTLP/gRPC; yields the port. `client`: whom alone it admits."""

    def traces(body: bytes, context: grpc.ServicerContext) -> bytes:
        return export(numbers(body), body, context)

    def metrics(body: bytes, context: grpc.ServicerContext) -> bytes:
        return export([], body, context)

    def export(spans: list[int], body: bytes, context: grpc.ServicerContext) -> bytes:
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        reply = receiver.answer(Received(spans, headers, len(body), body=body))
        if isinstance(reply.code, grpc.StatusCode):
            trailing: list[tuple[str, bytes]] = []
            if reply.retry_s is not None:
                status = Status(message=reply.message)
                delay = Duration()
                delay.FromNanoseconds(int(reply.retry_s * 1e9))
                status.details.add().Pack(RetryInfo(retry_delay=delay))
                trailing.append(("grpc-status-details-bin", status.SerializeToString()))
            context.set_trailing_metadata(tuple(trailing))
            context.abort(reply.code, reply.message)
        return reply.body

    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        for path, take in ((METHOD, traces), (METRICS_METHOD, metrics)):
            service, method = path.strip("/").split("/")
            handlers = {method: grpc.unary_unary_rpc_method_handler(take)}
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, handlers),)
            )
        address = f"127.0.0.1:{port}"
        if pem is None:
            bound = server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials(
                [(pem.key.read_bytes(), pem.certificate.read_bytes())],
                client.certificate.read_bytes() if client else None,
                client is not None,
            )
            bound = server.add_secure_port(address, credentials)
        server.start()
        try:
            yield bound
        finally:
            receiver.release.set()
            server.stop(0).wait(WAIT_S)


@contextlib.contextmanager
def http_receiver(
    receiver: Receiver, port: int = 0, pem: Pem | None = None, client: Pem | None = None
) -> Iterator[int]:
    """Serve `receiver` over OTLP/HTTP; yields the port. `client`: whom alone it admits."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = WAIT_S

        def setup(self) -> None:
            super().setup()
            receiver.connections += 1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            size = len(body)
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            headers = {key.lower(): value for key, value in self.headers.items()}
            spans = [] if self.path == METRICS_PATH else numbers(body)
            reply = receiver.answer(Received(spans, headers, size, self.path, body))
            if reply.hang or reply.drop:
                self.close_connection = True
                return
            assert not isinstance(reply.code, grpc.StatusCode)
            self.send_response(reply.code or 200)
            self.send_header("content-type", reply.content_type)
            self.send_header("content-length", str(len(reply.body)))
            if reply.retry_after:
                self.send_header("retry-after", reply.retry_after)
            if reply.close:
                # Without a word: as a receiver that ends idle connections.
                self.close_connection = True
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False
        block_on_close = True
        allow_reuse_address = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that went away or does not trust us: the test's own doing

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            try:
                if context is not None:
                    request = context.wrap_socket(request, server_side=True)
            except OSError:
                request.close()
                return
            super().process_request_thread(request, client_address)

    context: ssl.SSLContext | None = None
    if pem is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem.certificate, pem.key)
        if client is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(client.certificate)
    with Server(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            receiver.release.set()
            server.shutdown()
            thread.join(WAIT_S)


SERVE = {"grpc": grpc_receiver, "http/protobuf": http_receiver}
