"""OTLP/HTTP in: POST /v1/traces, protobuf or JSON, gzip or not.

As much of HTTP/1.1 as exporters need, over asyncio's streams, everything bounded: the head
of a request, its body as sent and as unpacked, the time each takes, connections at once.
Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp; RFC 9112
(https://www.rfc-editor.org/rfc/rfc9112): section 6 (message body), 7.1 (chunked), 9.3
(persistence); RFC 9110 section 10.1.1 (Expect).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import socket
import ssl
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from google.protobuf import json_format
from google.protobuf.message import Message

from collector.collector import BusyError
from collector.decode import MalformedError
from collector.intake import (
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    STOP_S,
    UNAUTHENTICATED,
    Gate,
    failure,
    response,
    server_context,
)

PATH = "/v1/traces"
PROTOBUF, JSON = "application/x-protobuf", "application/json"
MAX_HEAD_BYTES = 16 << 10
MAX_CHUNK_LINE = 256
# Reserved at a time for a body of which nobody knows the size.
STEP_BYTES = 1 << 20
# Each member of a gzip stream costs far more than its 20 bytes.
MAX_MEMBERS = 64
LINGER_S = 1.0
BACKLOG = 100
PAUSE_S = 0.1
# Connections beyond the most that are answered 503 at one time.
MAX_TURNED_AWAY = 64

REASONS: Mapping[int, str] = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}

COUNTERS: Mapping[int, str] = {
    401: "unauthorized",
    408: "slow",
    413: "oversized",
    431: "oversized",
    503: "crowded",
}

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) (\S{1,4096}) HTTP/(\d)\.(\d)")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
_SIZE = re.compile(rb"[0-9]{1,15}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t\x20-\x7e]*)?")


class _RefusedError(Exception):
    """A request is answered with an error; close: what follows on the connection is unknown."""

    def __init__(
        self, status: int, message: str, close: bool = True, retry_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.close, self.retry_s = status, close, retry_s

    @property
    def counter(self) -> str:
        """Its name in MEANINGS of collector.intake; "" where the target has counted it."""
        if self.status == 429 or not self.close:
            return ""
        return COUNTERS.get(self.status, "unfit")


@dataclass(frozen=True, slots=True)
class _Head:
    method: str
    path: str
    headers: Mapping[bytes, bytes]
    keep: bool

    def get(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1").strip().lower()


class HttpServer:
    """Listens where the gate's configuration says."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._config = gate.config
        self._listening: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._working = 0

    async def start(self) -> int:
        """Listen; returns the port. Raises OSError."""
        address = self._config.http
        assert address is not None
        tls = server_context(self._config.tls) if self._config.tls else None
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listener = socket.create_server(
            (address.host, address.port), family=family, backlog=BACKLOG
        )
        listener.setblocking(False)
        self._listening = asyncio.create_task(self._listen(listener, tls))
        port: int = listener.getsockname()[1]
        return port

    async def stop(self) -> None:
        """Take no more requests, finish those under way."""
        if self._listening is None:
            return
        self._listening.cancel()
        loop = asyncio.get_running_loop()
        end = loop.time() + STOP_S
        while self._working and loop.time() < end:
            await asyncio.sleep(0.02)
        for task in tuple(self._connections):
            task.cancel()
        await asyncio.gather(self._listening, *self._connections, return_exceptions=True)

    async def _listen(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Take connections in. asyncio's own server counts neither those that are not through
        their TLS handshake, of 0.3 MB each, nor those that fail there.
        """
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    sock, _ = await loop.sock_accept(listener)
                except OSError:  # of a connection that is gone, or for want of descriptors
                    await asyncio.sleep(PAUSE_S)
                    continue
                most = self._config.max_connections
                # Where there is no TLS, it is told why.
                if len(self._connections) >= (most if tls else most + MAX_TURNED_AWAY):
                    self._gate.count("crowded")
                    sock.close()
                    continue
                task = asyncio.create_task(self._taken_in(sock, tls))
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)

    async def _taken_in(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_HEAD_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=tls,
                ssl_handshake_timeout=self._config.read_s if tls else None,
            )
        except OSError:  # also ssl.SSLError, and TimeoutError
            if tls:
                self._gate.count("handshake")
            return
        await self._connected(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            if len(self._connections) > self._config.max_connections:
                error = _RefusedError(503, "too many connections", retry_s=1.0)
                await self._answer_error(writer, error, PROTOBUF)
            else:
                while await self._serve(reader, writer):
                    pass
        except (OSError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError):
            # Gone, silent, or sent away: the connection ends, whatever it was.
            pass
        finally:
            writer.transport.abort() if task.cancelling() else writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; returns whether another may follow."""
        kind = PROTOBUF
        started = False
        try:
            async with asyncio.timeout(self._config.idle_s):
                first = await reader.read(1)
            if not first:
                return False
            started = True
            self._working += 1
            async with asyncio.timeout(self._config.read_s) as deadline:
                head = await _read_head(first, reader)
                kind = _kind(head)
                self._check(head)
                with ExitStack() as room:
                    body = await self._read_body(head, reader, writer, room)
                    deadline.reschedule(None)
                    answer = await self._take(head, body, kind, room)
        except _RefusedError as error:
            await self._answer_error(writer, error, kind)
            if error.close:
                await _linger(reader, writer)
            return not error.close
        except TimeoutError:
            if started:
                slow = _RefusedError(408, "the request came too slowly")
                await self._answer_error(writer, slow, kind)
            return False
        finally:
            self._working -= started
        await self._answer(writer, 200, answer, kind, not head.keep)
        return head.keep

    def _check(self, head: _Head) -> None:
        """Refuse before the body is read what must not come in."""
        if not self._gate.allowed(head.headers.get(b"authorization", b"")):
            raise _RefusedError(401, "a bearer token is needed")
        if head.path.partition("?")[0] != PATH:
            raise _RefusedError(404, f"only {PATH} is here")
        if head.method != "POST":
            raise _RefusedError(405, "only POST")
        # Also keeps out what a web page can send without being allowed to.
        if head.get(b"content-type").partition(";")[0].strip() not in (PROTOBUF, JSON):
            raise _RefusedError(415, f"content-type must be {PROTOBUF} or {JSON}")
        if head.get(b"content-encoding") not in ("", "identity", "gzip"):
            raise _RefusedError(415, "content-encoding must be gzip or none")

    async def _read_body(
        self,
        head: _Head,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        room: ExitStack,
    ) -> bytes:
        """Read a body, with room for it on `room`."""
        limit = self._config.max_message_bytes
        length, coding = head.headers.get(b"content-length"), head.get(b"transfer-encoding")
        if coding and (coding != "chunked" or length is not None):
            raise _RefusedError(400, "transfer-encoding must be chunked, alone")
        if not coding and length is None:
            raise _RefusedError(411, "content-length is missing")
        if length is not None and not _SIZE.fullmatch(length):
            raise _RefusedError(400, "content-length is not a number")
        if length is not None and int(length) > limit:
            raise _RefusedError(413, f"more than {limit} bytes")
        try:
            room.enter_context(self._gate.room(STEP_BYTES if length is None else int(length)))
            expect = head.get(b"expect")
            if expect not in ("", "100-continue"):
                raise _RefusedError(417, "only 100-continue")
            if expect:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if length is not None:
                return await reader.readexactly(int(length))
            return await self._read_chunks(reader, room)
        except BusyError as error:
            raise _RefusedError(429, str(error), retry_s=error.retry_s) from None

    async def _read_chunks(self, reader: asyncio.StreamReader, room: ExitStack) -> bytes:
        body = bytearray()
        reserved = STEP_BYTES
        while True:
            found = _CHUNK_SIZE.fullmatch(await _read_line(reader))
            if found is None:
                raise _RefusedError(400, "a chunk has no size")
            size = int(found[1], 16)
            if size == 0:
                break
            if len(body) + size > self._config.max_message_bytes:
                raise _RefusedError(413, f"more than {self._config.max_message_bytes} bytes")
            while reserved < len(body) + size:
                room.enter_context(self._gate.room(STEP_BYTES))
                reserved += STEP_BYTES
            body += await reader.readexactly(size)
            if await reader.readexactly(2) != b"\r\n":
                raise _RefusedError(400, "a chunk is not as long as it says")
        trailer = 0
        while line := await _read_line(reader):
            trailer += len(line)
            if trailer > MAX_HEAD_BYTES:
                raise _RefusedError(431, "too many trailers")
        return bytes(body)

    async def _take(self, head: _Head, body: bytes, kind: str, room: ExitStack) -> Message:
        limit = self._config.max_message_bytes
        try:
            if head.get(b"content-encoding") == "gzip":
                # What waits to be decoded counts as it is then, or little could keep others
                # waiting for long.
                packed = body
                try:
                    body = await self._gate.work(lambda: unpack(packed, limit))
                except MalformedError:
                    self._gate.count("unfit")
                    raise
                room.enter_context(self._gate.room(len(body)))
            taken = await self._gate.offer(body, kind == JSON)
        except MalformedError as error:
            raise _RefusedError(400, str(error), close=False) from None
        except BusyError as error:
            raise _RefusedError(429, str(error), False, error.retry_s) from None
        except TooLargeError:
            raise _RefusedError(413, f"unpacks to more than {limit} bytes") from None
        return response(taken)

    async def _answer_error(
        self, writer: asyncio.StreamWriter, error: _RefusedError, kind: str
    ) -> None:
        if error.counter:
            self._gate.count(error.counter)
        code = {401: UNAUTHENTICATED, 429: RESOURCE_EXHAUSTED, 503: RESOURCE_EXHAUSTED}
        status = failure(code.get(error.status, INVALID_ARGUMENT), str(error), error.retry_s)
        await self._answer(writer, error.status, status, kind, error.close, error.retry_s)

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        message: Message,
        kind: str,
        close: bool,
        retry_s: float | None = None,
    ) -> None:
        if kind == JSON:
            body = json_format.MessageToJson(message, indent=None).encode()
        else:
            body = message.SerializeToString()
        lines = [
            f"HTTP/1.1 {status} {REASONS[status]}",
            f"content-type: {kind}",
            f"content-length: {len(body)}",
        ]
        if retry_s is not None:
            lines.append(f"retry-after: {math.ceil(retry_s)}")
        if status == 401:
            lines.append("www-authenticate: Bearer")
        if status == 405:
            lines.append("allow: POST")
        if close:
            lines.append("connection: close")
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        async with asyncio.timeout(self._config.read_s):
            await writer.drain()


class TooLargeError(Exception):
    """A body unpacks to more than is allowed."""


def unpack(body: bytes, limit: int) -> bytes:
    """Unpack gzip (RFC 1952), of one member or several, to at most `limit` bytes.

    Raises TooLargeError, or MalformedError where it is no gzip or is cut off.
    """
    parts: list[bytes] = []
    size = 0
    try:
        while body:
            if len(parts) == MAX_MEMBERS:
                raise MalformedError("the gzip stream has too many members")
            unpacker = zlib.decompressobj(wbits=31)
            part = unpacker.decompress(body, limit - size + 1)
            size += len(part)
            if size > limit:
                raise TooLargeError
            if not unpacker.eof:
                raise MalformedError("the gzip stream is cut off")
            parts.append(part)
            body = unpacker.unused_data
    except zlib.error as error:
        raise MalformedError(f"not gzip: {error}") from None
    return b"".join(parts)


async def _read_head(first: bytes, reader: asyncio.StreamReader) -> _Head:
    try:
        raw = first + await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _RefusedError(431, f"the head is longer than {MAX_HEAD_BYTES} bytes") from None
    # An empty line before a request is passed over, RFC 9112 section 2.2.
    request_line, *lines = raw[:-4].removeprefix(b"\r\n").split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(request_line)
    if found is None:
        raise _RefusedError(400, "not HTTP/1.1")
    if found[3] != b"1":
        raise _RefusedError(505, "only HTTP/1.1")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise _RefusedError(400, "a header field is malformed")
        name = header[1].lower()
        if name in headers and name in (b"content-length", b"transfer-encoding"):
            raise _RefusedError(400, "the length is given twice")
        headers[name] = header[2]
    connection = headers.get(b"connection", b"").lower()
    keep = b"close" not in connection and (found[4] != b"0" or b"keep-alive" in connection)
    return _Head(found[1].decode(), found[2].decode("latin-1"), headers, keep)


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take what is still being sent, for a moment: a reset would destroy the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            if writer.can_write_eof():
                writer.write_eof()
            while await reader.read(STEP_BYTES):
                pass


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(asyncio.LimitOverrunError):
        line = await reader.readuntil(b"\r\n")
        if len(line) <= MAX_CHUNK_LINE:
            return line[:-2]
    raise _RefusedError(400, "a line is too long")


def _kind(head: _Head) -> str:
    return JSON if head.get(b"content-type").partition(";")[0].strip() == JSON else PROTOBUF
