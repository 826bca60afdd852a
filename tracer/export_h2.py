"""OTLP/gRPC without gRPC's library: one unary call a request, over one kept connection.

Of targets and proxies that only that library knows, tracer.export_grpc takes care; see `reaches`.
Source: https://opentelemetry.io/docs/specs/otlp/#otlpgrpc.
"""

from __future__ import annotations

import os
import socket
import time
import zlib
from base64 import b64decode
from collections.abc import Mapping

from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from tracer import grpc_wire
from tracer.export_config import ExportConfig, user_agent
from tracer.export_reply import METHODS, Reply, accepted, hinted, of_status, shorten
from tracer.grpc_wire import CONTENT_TYPE, PREFIX, Wire

GZIP_LEVEL = 1  # as over HTTP
# An answer is a few bytes; of a longer one no more than this is read.
MAX_ANSWER = 64 << 10
# Sent at a time: what is in a cache of the processor by then is there still.
BURST = 1 << 18
MAX_TIMEOUT_MS = 99_999_999  # grpc-timeout has eight digits
DEFAULT_PORT = 443
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


def reaches(config: ExportConfig, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `config`'s target is one that this transport connects to, and directly."""
    if any(environ.get(name) for name in _PROXIES):
        return False
    try:
        _address(config.endpoint)
    except ValueError:
        return False
    return True


class H2Transport:
    """A connection to a receiver; made anew when it ends. `send` is for one thread."""

    def __init__(self, config: ExportConfig) -> None:
        self._address, self._authority = _address(config.endpoint)
        self._context = None
        # What a socket raises that has nothing to read now.
        self._nothing: tuple[type[OSError], ...] = (BlockingIOError,)
        if config.secure:
            # TLS takes memory that plain connections need not spend.
            import ssl

            from tracer.export_tls import client_context

            self._context = client_context(config)
            self._context.set_alpn_protocols(["h2"])
            self._nothing = (BlockingIOError, ssl.SSLWantReadError)
        self._gzip = config.gzip
        self._headers = [
            (":method", "POST"),
            (":scheme", "https" if config.secure else "http"),
            (":path", METHODS[config.signal]),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", CONTENT_TYPE),
            ("user-agent", user_agent()),
            *((("grpc-encoding", "gzip"),) if config.gzip else ()),
            ("grpc-accept-encoding", "identity, gzip"),
            *config.headers,
        ]
        self._wire: Wire | None = None
        self._sock: socket.socket | None = None
        self._leaving = False  # the receiver takes no more requests on this connection
        self._aborted = False

    def prepare(self, body: bytes) -> bytes:
        """Compress `body` if so configured; zlib lets other threads run meanwhile."""
        return zlib.compress(body, GZIP_LEVEL, wbits=31) if self._gzip else body

    def send(self, body: bytes, timeout_s: float | None) -> Reply:
        """Send a prepared request and wait for the answer, `timeout_s` for all of it."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            return self._call(body, deadline)
        except TimeoutError:
            self.close()
            return of_status("DEADLINE_EXCEEDED", f"no answer within {timeout_s} s")
        except OSError as error:
            self.close()
            text = getattr(error, "verify_message", "") or error.strerror or str(error)
            text = hinted(shorten(text), self._context is not None)
            return of_status("UNAVAILABLE", f"{self._authority}: {text}")

    def abort(self) -> None:
        """End the call under way, from any thread; nothing can be sent any more."""
        self._aborted = True
        sock = self._sock
        if sock is not None:
            try:
                # Of the plain socket: a TLS one would talk to its peer first.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass  # not connected any more, which was the aim

    def close(self) -> None:
        """Give the connection up; the last call of the thread that sends."""
        self._wire = None
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()

    def _call(self, body: bytes, deadline: float | None) -> Reply:
        while True:
            wire = self._connected(deadline)
            call = _Call(wire.h2.get_next_available_stream_id())
            wire.h2.send_headers(call.stream_id, [*self._headers, *_timeout(deadline)])
            self._write(wire, call, PREFIX.pack(self._gzip, len(body)), deadline)
            self._write(wire, call, body, deadline)
            if not call.ended:
                wire.h2.end_stream(call.stream_id)
                wire.flush()
            while not call.ended:
                self._read(wire, call, deadline)
            if self._leaving:
                self.close()
            elif call.early:
                # The receiver knew its answer before it had all; it wants no more of it.
                wire.h2.reset_stream(call.stream_id)
                wire.flush()
            if not call.unseen:
                return call.reply()

    def _write(self, wire: Wire, call: _Call, data: bytes, deadline: float | None) -> None:
        view = memoryview(data)
        while len(view) and not call.ended:
            room = min(wire.room(call.stream_id), BURST)
            if room:
                wire.sock.settimeout(_left(deadline))
                wire.send(call.stream_id, view[:room])
                view = view[room:]
            else:
                self._read(wire, call, deadline)
        call.early = call.ended

    def _read(self, wire: Wire, call: _Call, deadline: float | None) -> None:
        wire.sock.settimeout(_left(deadline))
        self._take(wire, wire.receive(), call)
        wire.flush()

    def _take(self, wire: Wire, events: list[Event], call: _Call | None) -> None:
        for event in events:
            if isinstance(event, ConnectionTerminated):
                self._leaving = True
                if call and event.last_stream_id is not None:
                    call.unseen = event.last_stream_id < call.stream_id
                    call.ended |= call.unseen
            elif isinstance(event, DataReceived):
                wire.h2.acknowledge_received_data(
                    event.flow_controlled_length or 0, event.stream_id or 0
                )
            if call and getattr(event, "stream_id", None) == call.stream_id:
                call.take(event)

    def _connected(self, deadline: float | None) -> Wire:
        """Return a connection that the receiver has not given up by now, as far as is known."""
        if self._wire is not None:
            try:
                self._wire.sock.settimeout(0)
                while not self._leaving:
                    self._take(self._wire, self._wire.receive(), None)
            except self._nothing:
                pass
            except OSError:
                self._leaving = True
            if not self._leaving:
                return self._wire
            self.close()
        if self._aborted:
            raise ConnectionAbortedError("closed")
        self._leaving = False
        self._sock = _connect(self._address, _left(deadline))
        if self._context is not None:
            self._sock = self._context.wrap_socket(
                self._sock, server_hostname=self._authority.rpartition(":")[0].strip("[]")
            )
        wire = Wire(self._sock, client=True)
        # Not before it said what it takes: it may be less than what HTTP/2 lets a client assume.
        greeted = False
        while not greeted:
            wire.sock.settimeout(_left(deadline))
            events = wire.receive()
            greeted = any(isinstance(event, RemoteSettingsChanged) for event in events)
            self._take(wire, events, None)
        self._wire = wire
        return wire


class _Call:
    """What is known of the answer so far.

    unseen: the receiver said that it never looked at the call; early: it was answered before
    all of it was sent.
    """

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.headers: dict[bytes, bytes] = {}
        self.ended = self.unseen = self.early = False
        self._data = bytearray()
        self._reset: int | None = None

    def take(self, event: Event) -> None:
        if isinstance(event, ResponseReceived | TrailersReceived):
            self.headers.update(event.headers or ())
        elif isinstance(event, DataReceived):
            self._data += (event.data or b"")[: PREFIX.size + MAX_ANSWER - len(self._data)]
        elif isinstance(event, StreamReset):
            self._reset = int(event.error_code or 0)
            self.ended = True
        elif isinstance(event, StreamEnded):
            self.ended = True

    def reply(self) -> Reply:
        status = grpc_wire.status(self.headers)
        http = self.headers.get(b":status", b"").decode("ascii", "replace")
        if status is None and self._reset is not None:
            status = grpc_wire.reset_status(self._reset)
        if status is None:
            answered = http == "200"
            status = ("UNKNOWN", "no grpc-status") if answered else grpc_wire.http_status(http)
        if status[0] != "OK":
            details = self.headers.get(b"grpc-status-details-bin", b"")
            return of_status(*status, details=_binary(details))
        try:
            return accepted(grpc_wire.message(bytes(self._data), MAX_ANSWER))
        except ValueError as error:
            return of_status("INTERNAL", f"the answer can't be read: {error}")


def _address(target: str) -> tuple[str | tuple[str, int], str]:
    """Return where to connect to, and :authority; raises ValueError for what only gRPC knows.

    Source: https://github.com/grpc/grpc/blob/master/doc/naming.md.
    """
    scheme, _, rest = target.partition(":")
    if scheme == "unix":
        return rest.removeprefix("//"), "localhost"
    if scheme == "unix-abstract":
        return "\0" + rest, "localhost"
    if scheme == "dns":
        # dns://AUTHORITY/HOST asks a name server of its own.
        target = rest.removeprefix("///")
    host, _, port = target.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not port.isdigit() or not host or "/" in target or (":" in bare and bare == host):
        raise ValueError(target)
    return (bare, int(port)), target


def _connect(address: str | tuple[str, int], timeout: float | None) -> socket.socket:
    if isinstance(address, tuple):
        sock = socket.create_connection(address, timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _timeout(deadline: float | None) -> list[tuple[str, str]]:
    left = _left(deadline)
    if left is None:
        return []
    return [("grpc-timeout", f"{min(MAX_TIMEOUT_MS, max(1, round(left * 1000)))}m")]


def _binary(value: bytes) -> bytes:
    """Decode a header whose name ends in -bin: base64, mostly without its padding."""
    try:
        return b64decode(value + b"=" * (-len(value) % 4))
    except ValueError:
        return b""
