"""A small HTTP server for this machine: GET only, few at a time, for no page of another site."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from tracer.errors import WirespanError

DEFAULT_ADDRESS = "127.0.0.1:16686"
MAX_REQUESTS = 8
MAX_TARGET = 16_384
IDLE_S = 30.0

# A request's target in, pieces of JSON out; raises ApiError or V3Error before the first.
Answer = Callable[[str], Iterator[str]]


class ApiError(Exception):
    """A request that can't be answered; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class V3Error(Exception):
    """The same in the form of version 3 of the API; the text is the whole body."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(body)
        self.status = status


def compact(value: Any) -> str:
    """Write JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Server:
    """Serves GET requests from `answer`; `start`, then `close`.

    address: HOST:PORT, port 0 for any; raises WirespanError where it can't be had.
    """

    def __init__(self, answer: Answer, address: str = DEFAULT_ADDRESS) -> None:
        host, port = split_address(address)
        try:
            self._server = _Http((host, port), answer)
        except OSError as error:
            raise WirespanError(
                f"cannot listen on {address} for queries: {error.strerror or error}",
                "give another address for the query API",
            ) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="query", daemon=True
        )

    @property
    def address(self) -> str:
        """Where it listens, HOST:PORT."""
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening; answers under way end by themselves."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(5.0)
        self._server.server_close()


def split_address(address: str) -> tuple[str, int]:
    """Read HOST:PORT or [HOST]:PORT; raises WirespanError."""
    host, colon, port = address.rpartition(":")
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65_535 or not host:
        raise WirespanError(f"{address!r} is not HOST:PORT", f"for example {DEFAULT_ADDRESS}")
    return host.removeprefix("[").removesuffix("]"), int(port)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], answer: Answer) -> None:
        self.answer = answer
        self.slots = threading.BoundedSemaphore(MAX_REQUESTS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind; the base class would ask DNS for this host's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give each connection a thread, while there are any."""
        if not self.slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    server_version = "wirespan"
    sys_version = ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        """Answer a query."""
        # One answer a connection: no idle one keeps a thread from others.
        self.close_connection = True
        try:
            if len(self.path) > MAX_TARGET:
                raise ApiError(414, "the request is too long")
            if not self._is_for_us():
                raise ApiError(403, "the Host header names another host")
            pieces = self.server.answer(self.path)
            first = next(pieces)
        except ApiError as error:
            self._error(error.status, str(error))
            return
        except V3Error as error:
            self._send(error.status, str(error), "application/json")
            return
        except WirespanError as error:
            self._error(503, str(error))
            return
        except Exception as error:  # of one request; the others go on
            self._error(500, f"cannot answer: {type(error).__name__}: {error}")
            return
        self.send_response(200)
        self._headers("application/json")
        # HTTP/1.0 knows no chunks; there the answer ends with the connection.
        chunked = self.request_version != "HTTP/1.0"
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        piece: str | None = first
        while piece is not None:
            data = piece.encode("utf-8", "replace")
            if data:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
            piece = next(pieces, None)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _refuse(self) -> None:
        self.close_connection = True
        self._error(405, "only GET is answered")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses in the form of the others."""
        self.close_connection = True
        self._error(code, message or HTTPStatus(code).phrase)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of requests."""

    def _is_for_us(self) -> bool:
        """Whether Host names this address, as a page of another site couldn't make it.

        A host name could be a stranger's that resolves to 127.0.0.1 (DNS rebinding):
        `localhost` and addresses only.
        """
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1:
            return not hosts and self.request_version == "HTTP/1.0"
        try:
            name = urlsplit(f"//{hosts[0]}").hostname or ""
        except ValueError:
            return False
        if name == "localhost":
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _error(self, status: int, message: str) -> None:
        errors = [{"code": status, "msg": message}]
        body = {"data": None, "total": 0, "limit": 0, "offset": 0, "errors": errors}
        self._send(status, compact(body), "application/json")

    def _send(self, status: int, body: str, kind: str) -> None:
        data = body.encode("utf-8", "replace")
        self.send_response(status)
        self._headers(kind)
        if status == 405:
            self.send_header("Allow", "GET")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _headers(self, kind: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
