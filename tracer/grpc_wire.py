"""What both ends of gRPC need here: messages and statuses on HTTP/2, whose protocol is h2's.

gRPC's own library takes 16 MB and brings TLS and asyncio, another 5, before the first call. A
tracer that makes one call at a time, and is asked something now and then, has no use for that.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import Iterable
from urllib.parse import quote, unquote

from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection, H2ConnectionStateMachine
from h2.events import Event
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from tracer.protocols.grpc_shape import CODES, HTTP2_ERRORS, OF_HTTP2_ERROR, OF_HTTP_STATUS

PREFIX = struct.Struct(">?I")  # compressed, length
RECEIVE_BYTES = 1 << 16
# Of one sendmsg(2); the kernel takes no more than 1024.
MAX_PARTS = 512
CONTENT_TYPE = "application/grpc"

Headers = Iterable[tuple[bytes, bytes]]


class _Machine(H2ConnectionStateMachine):
    """h2's, but a client goes on after GOAWAY: answers that are under way still come.

    h2 takes the connection for closed (python-hyper/h2 issue 1181); what was asked would be
    asked again, and spans be there twice.
    """

    def __init__(self) -> None:
        super().__init__()
        gone_on = ConnectionState.CLIENT_OPEN
        self._transitions = {
            **self._transitions,
            (gone_on, ConnectionInputs.RECV_GOAWAY): (None, gone_on),
        }


class Wire:
    """One HTTP/2 connection over a connected socket. Not thread-safe.

    Errors of the socket are raised as they are; one of the protocol is a ConnectionError.
    """

    def __init__(self, sock: socket.socket, client: bool) -> None:
        self.sock = sock
        # What is sent is made here, and so is right.
        self.h2 = H2Connection(
            H2Configuration(
                client_side=client,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.h2.state_machine = _Machine()
        if client:
            self.h2.local_settings[SettingCodes.ENABLE_PUSH] = 0
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        """Send what h2 has to say."""
        data = self.h2.data_to_send()
        if data:
            self.sock.sendall(data)

    def receive(self) -> list[Event]:
        """Wait for something, and return what it means."""
        events = self.take(self.sock.recv(RECEIVE_BYTES))
        self.flush()
        return events

    def take(self, data: bytes) -> list[Event]:
        """Return what something received means; b"" is the end of the connection."""
        if not data:
            raise ConnectionResetError("the connection was closed")
        try:
            events: list[Event] = self.h2.receive_data(data)
            return events
        except ProtocolError as error:
            raise ConnectionError(f"HTTP/2: {error or type(error).__name__}") from None

    def room(self, stream_id: int) -> int:
        """How many bytes of DATA may go out on a stream at this moment."""
        return max(0, self.h2.local_flow_control_window(stream_id))

    def send(self, stream_id: int, data: memoryview) -> None:
        """Send DATA for which there is room, on a stream that is open.

        Not by h2, which copies it three times: its frames are made here, and h2 is told only how
        much room they took.
        """
        self.flush()
        step = self.h2.max_outbound_frame_size
        parts: list[memoryview | bytes] = []
        for at in range(0, len(data), step):
            part = data[at : at + step]
            parts += [_frame(len(part), stream_id), part]
        self.h2.outbound_flow_control_window -= len(data)
        self.h2.streams[stream_id].outbound_flow_control_window -= len(data)
        _send_all(self.sock, parts)


def _frame(length: int, stream_id: int) -> bytes:
    """Return the header of a DATA frame without flags, RFC 9113 section 4.1."""
    return length.to_bytes(3, "big") + bytes(2) + stream_id.to_bytes(4, "big")


def _send_all(sock: socket.socket, parts: list[memoryview | bytes]) -> None:
    """Send parts one behind the other."""
    if type(sock) is not socket.socket:
        # TLS makes records of its own, and so a copy anyway.
        sock.sendall(b"".join(parts))
        return
    for at in range(0, len(parts), MAX_PARTS):
        some = parts[at : at + MAX_PARTS]
        sent = sock.sendmsg(some)
        if sent < sum(map(len, some)):
            # The rest of the part that was cut, then the others.
            for part in some:
                if sent < len(part):
                    sock.sendall(memoryview(part)[sent:])
                sent = max(0, sent - len(part))


def message(stream: bytes, limit: int) -> bytes:
    """Return the first message of a stream; raises ValueError where there is none.

    Of a longer one than `limit` what fits in that.
    """
    if len(stream) < PREFIX.size:
        raise ValueError("no message")
    compressed, length = PREFIX.unpack_from(stream)
    body = stream[PREFIX.size : PREFIX.size + length]
    if not compressed:
        return body[:limit]
    try:
        return zlib.decompressobj(wbits=31).decompress(body, limit)
    except zlib.error as error:
        raise ValueError(f"not gzip: {error}") from None


def status(headers: dict[bytes, bytes]) -> tuple[str, str] | None:
    """Return code and message that trailers tell; None where they have none."""
    number = headers.get(b"grpc-status")
    if number is None:
        return None
    known = number.isdigit() and len(number) < 4 and int(number) < len(CODES)
    details = unquote(headers.get(b"grpc-message", b"").decode("ascii", "replace"))
    return CODES[int(number)] if known else "UNKNOWN", details


def http_status(number: str) -> tuple[str, str]:
    """Return code and message of an answer that is no gRPC's."""
    code = OF_HTTP_STATUS.get(int(number) if number.isdigit() else 0, "UNKNOWN")
    return code, f"HTTP status {number}"


def reset_status(error: int) -> tuple[str, str]:
    """Return code and message of a stream that was reset with an HTTP/2 error."""
    name = HTTP2_ERRORS[error] if error < len(HTTP2_ERRORS) else str(error)
    return OF_HTTP2_ERROR.get(name, "INTERNAL"), f"stream reset: {name}"


def trailers(code: str, details: str) -> list[tuple[str, str]]:
    """Make the trailers that end a call."""
    made = [("grpc-status", str(CODES.index(code)))]
    if details:
        # All that is printable ASCII but the percent sign goes as it is.
        made.append(("grpc-message", quote(details, safe="!\"#$&'()*+,/:;<=>?@[\\]^`{|}~ ")))
    return made
