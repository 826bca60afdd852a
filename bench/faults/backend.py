"""An OTLP backend in this process that misbehaves as told, and a relay that breaks connections.

The backend keeps requests as they came and what it answered, in files, so that nothing is
parsed while a load runs.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

SERVICE, METHOD = "opentelemetry.proto.collector.trace.v1.TraceService", "Export"
HTTP, GRPC = "http/protobuf", "grpc"
PARTLY_REJECTED = 3  # spans of each request in mode PARTIAL
SLOW_S = 1.0
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close() sends RST


class Mode(Enum):
    ACCEPT = "accepts"
    SLOW = "takes a second for each request"
    REJECT = "refuses each request for good"
    PARTIAL = "accepts all but three spans of each request"
    RETRY = "asks to try again"


def _spans(body: bytes) -> int:
    request = ExportTraceServiceRequest.FromString(body)
    return sum(len(scope.spans) for each in request.resource_spans for scope in each.scope_spans)


class Backend:
    """Serves OTLP on a port of its own until closed; `mode` may change at any time."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.mode = Mode.ACCEPT
        self.rejected = 0
        self.requests = 0
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile()
        self._sizes: list[int] = []
        serve = self._serve_grpc if protocol == GRPC else self._serve_http
        self.port, self._close = serve()

    def take(self, body: bytes) -> tuple[int, bytes]:
        """Note a request. Returns the HTTP status to answer with, and the answer's content."""
        mode = self.mode
        if mode is Mode.SLOW:
            time.sleep(SLOW_S)
        answer = b""
        with self._lock:
            self.requests += 1
            if mode is Mode.REJECT:
                return 400, b""
            if mode is Mode.RETRY:
                return 503, b""
            if mode is Mode.PARTIAL:
                # No more than there are: on a machine that is slow at first, one may hold two.
                rejected = min(PARTLY_REJECTED, _spans(body))
                self.rejected += rejected
                reply = ExportTraceServiceResponse()
                reply.partial_success.rejected_spans = rejected
                reply.partial_success.error_message = "no room"
                answer = reply.SerializeToString()
            self._file.write(body)
            self._sizes.append(len(body))
        return 200, answer

    def bodies(self) -> Iterator[bytes]:
        """Take out the requests that were accepted, oldest first."""
        with self._lock:
            self._file.seek(0)
            sizes, self._sizes = self._sizes, []
            for size in sizes:
                yield self._file.read(size)
            self._file.seek(0)
            self._file.truncate()

    def close(self) -> None:
        """Stop serving."""
        self._close()
        self._file.close()

    def _serve_grpc(self) -> tuple[int, Any]:
        codes = {400: grpc.StatusCode.INVALID_ARGUMENT, 503: grpc.StatusCode.UNAVAILABLE}

        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            status, answer = self.take(body)
            if status != 200:
                context.abort(codes[status], "told so")
            return answer

        server = grpc.server(
            ThreadPoolExecutor(4),
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)],
        )
        handler = grpc.unary_unary_rpc_method_handler(export)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return port, lambda: server.stop(0).wait()

    def _serve_http(self) -> tuple[int, Any]:
        backend = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                # Metrics are taken and forgotten, whatever the mode.
                spans = self.path == "/v1/traces"
                status, answer = backend.take(body) if spans else (200, b"")
                self.send_response(status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass  # a connection that the relay broke

        server = Server(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return int(server.server_address[1]), close


class Relay:
    """Passes connections on to a port; `cut` ends them with a reset, `down` refuses more.

    port: of its own, the same after `up`.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self._lock = threading.Lock()
        self._pairs: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = 0
        self.resets = 0
        self.up()

    def up(self) -> None:
        """Accept connections."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = int(listener.getsockname()[1])
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections, and reset those there are."""
        if self._listener:
            # close() alone would leave the thread in accept() with it.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.cut()

    def cut(self) -> None:
        """Reset every connection there is."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
            self.resets += len(pairs)
        for each in pairs:
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                # Ends the thread that waits on it; the reset follows with the close.
                each.shutdown(socket.SHUT_RD)
                each.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            with self._lock:
                self._pairs |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := one.recv(1 << 16):
                other.sendall(data)
        with self._lock:
            self._pairs -= {one, other}
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
