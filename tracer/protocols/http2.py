"""Records of HTTP/2 connections to columns of spans: HTTP exchanges and gRPC calls.

The kernel walks the frames and hands over, in order: each header block (FLOW_BLOCK, in
parts if it is long), each stream that is over (FLOW_EXCHANGE: times and sizes) and each
connection that is (FLOW_CLOSED). Here the blocks are decoded and put to their streams. A
stream is a gRPC call if its request's content-type says so, else its response's.

What couldn't be decoded is left out of the span, which then has `wirespan.incomplete`:
`hpack_unknown` if the connection is older than the tracer, or blocks of it were lost, and
the stream used entries of the table from before; `gap` if the block itself is missing.

Left out: pushed streams, whose blocks are decoded for the table's sake only, and a
request's trailers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tracer.columns import I32, U64, Table, Words, absorb, nonzero, unlike
from tracer.flow import End, Family, Flag, Role, Slot
from tracer.link.headers import Headers
from tracer.protocols import grpc_shape
from tracer.protocols import http1_shape as shapes
from tracer.protocols.base import Columns, Records, Routes, Settings, Shapes, text_of
from tracer.protocols.grpc_shape import REQUEST_MESSAGES, RESPONSE_MESSAGES, Call, Reset
from tracer.protocols.http1 import target_keys
from tracer.protocols.http2_batch import Ended, Reader
from tracer.protocols.http2_fields import Answered, Asked, Fields, Request, Response
from tracer.protocols.http2_streams import Connections
from tracer.protocols.messages import masked_message
from tracer.records import take
from tracer.spans import Remote, Text

# Plain numbers, since an IntEnum is slow to compare with.
_RESPONSE = int(Flag.RESPONSE)
_SERVER, _RESET, _CANCEL = int(Role.SERVER), int(End.RESET), 8
_VERSION = 20
# How much sooner than it says a client's timer may be seen to end, if that is little of it.
_TIMEOUT_SLACK_NS = 10_000_000

_NOTHING = Asked(None, shapes.METHOD_UNKNOWN, "", None, "", "", "", "", "", "", 0, False)
_NO_ANSWER = Answered(None, 0, "", "", False)
# Beyond what an int64 holds, and than anybody waits: 8 digits of hours are more.
_MAX_TIMEOUT_NS = 1 << 62


class Http2:
    """The decoder of FLOW_PROTO_HTTP2; see tracer.protocols.base.Decoder."""

    def __init__(self, shapes: Shapes, routes: Routes, settings: Settings) -> None:
        self._shapes = shapes
        self._settings = settings
        self._fields = Fields(routes, settings)
        self._connections = Connections(self._fields)
        self._reader = Reader(self._connections, settings.seed)
        self._headers = Headers()
        self._known = Table()
        self._generation = shapes.generation

    def losses(self) -> dict[str, int]:
        """Count directions that became unreadable, and streams forgotten for lack of room."""
        return self._connections.losses()

    def columns(self, records: Records, process: U64) -> Columns:
        """Decode; every FLOW_EXCHANGE gives one span, save those of pushed streams, and of those
        that are shed."""
        if self._generation != self._shapes.generation:
            self._generation = self._shapes.generation
            self._known.clear()
        ended = self._reader.read(records)
        made = self._reader.said.made
        exchanges = take(records, ended.rows)
        # Few are distinct, for equal blocks are one object: the rest is done once for each.
        asked = unlike(ended.request)
        place = np.searchsorted(asked, ended.request)
        distinct = [_request(made[each]) for each in asked.tolist()]
        remote = self._headers.of([request.trace if request else b"" for request in distinct])
        texts = _texts(distinct)
        timeout_ns = np.array(
            [min(_MAX_TIMEOUT_NS, request.timeout_ns) if request else 0 for request in distinct],
            dtype=np.int64,
        )
        return Columns(
            self._shape_rows(exchanges, process[ended.rows], ended, timeout_ns[place]),
            self._ints(exchanges, ended),
            {name: Text(text.bytes[place], text.length[place]) for name, text in texts.items()},
            ended.rows,
            Remote(*(words[place] for words in remote)),
            self._content(distinct)[place],
        )

    def _content(self, requests: Sequence[Request | None]) -> U64:
        """Return hashes of methods and targets, as the decoder of HTTP/1 has them; (m,)."""
        raw = _column([request.raw if request else b"" for request in requests])
        method = np.array(
            [max(0, request.asked.method) if request else 0 for request in requests], np.uint64
        )
        length = raw.length.astype(np.intp)
        no = np.zeros(len(length), dtype=np.bool_)
        words = Words(raw.bytes, length)
        keys = target_keys(words, np.zeros_like(length), length, no, no, self._settings.seed)
        content = absorb(keys, method)
        content[(method == 0) | (length == 0)] = 0
        return content

    def _shape_rows(
        self, exchanges: Records, process: U64, ended: Ended, timeout_ns: NDArray[np.int64]
    ) -> I32:
        """Return the shape of each exchange."""
        said = self._reader.said
        # By how it ended, and whether it had messages.
        reset = exchanges["end"] == _RESET
        expired = _expired(exchanges, reset, timeout_ns)
        way = exchanges["end"].astype(np.uint64) << np.uint64(34)
        way |= np.where(reset, exchanges["code"], 0).astype(np.uint64) << np.uint64(2)
        way |= (reset & (exchanges["flags"] & _RESPONSE != 0)).astype(np.uint64) << np.uint64(1)
        way |= (exchanges["request_messages"] | exchanges["response_messages"]) != 0
        way = way << np.uint64(2) | expired.astype(np.uint64) << np.uint64(1)
        way |= ended.closed
        # Owners are small numbers, as ways are: one must be mixed before it meets the other.
        key = absorb(absorb(self._owners(exchanges, process, ended), np.uint64(0)), way)
        for places in (ended.request, ended.response, ended.trailers):
            key = absorb(key, said.number(places))
        key = nonzero(key)
        found = self._known.find(key)
        new: dict[int, int] = {}
        for row in np.flatnonzero(found < 0).tolist():
            number = int(key[row])
            if number not in new:
                new[number] = self._new_shape(exchanges[row], ended, row, bool(expired[row]))
            found[row] = new[number]
        if new:
            if len(self._known) + len(new) > 4 * self._settings.max_shapes:
                self._known.clear()
            self._known.learn(new)
        return found

    def _owners(self, exchanges: Records, process: U64, ended: Ended) -> U64:
        """Return numbers of process and addresses, as far as they go into a shape; (n,)."""
        connections = ended.connections
        owner = np.array([each.process for each in connections], dtype=np.uint64)
        number = np.array([each.number for each in connections], dtype=np.uint64)
        owners = number.take(ended.connection)
        other = (owner.take(ended.connection) != process) | (owners == 0)
        # Of each connection the first one, and where another process takes over.
        for row in np.flatnonzero(other).tolist():
            connection = connections[int(ended.connection[row])]
            if connection.process != process[row] or not connection.number:
                connection.process = int(process[row])
                told = (connection.process, *_peers(exchanges[row]))
                connection.number = self._fields.number(told)
            owners[row] = connection.number
        return owners

    def _new_shape(self, record: np.void, ended: Ended, row: int, expired: bool) -> int:
        made = self._reader.said.made
        request = _request(made[ended.request[row]])
        response, trailers = (
            _response(made[ended.response[row]]),
            _response(made[ended.trailers[row]]),
        )
        asked = request.asked if request else _NOTHING
        answer = response.answered if response else _NO_ANSWER
        last = trailers.answered if trailers else _NO_ANSWER
        grpc = asked.grpc
        for part in (answer, last):
            grpc = part.grpc if grpc is None else grpc
        if grpc is None:
            grpc = bool(record["request_messages"] or record["response_messages"])
        grpc_status = last.grpc_status or answer.grpc_status
        message = last.grpc_message or answer.grpc_message
        if self._settings.query != "raw":
            message = masked_message(message, False)
        whole = record["end"] == End.RESPONSE
        unknown = answer.unknown or last.unknown
        missing = request is None or (response is None and whole)
        if grpc:
            # Without trailers a gRPC response isn't whole: their block was lost.
            missing |= whole and not ended.closed[row] and not grpc_status and answer.status == 200
            failed = grpc_status not in ("", "0")
            lacks = not asked.path or not asked.host
            lacks |= not grpc_status and whole
            lacks |= failed and not message and unknown
            unknown |= asked.unknown
        else:
            lacks = asked.unknown or asked.target is None or not answer.status
            unknown = asked.unknown or (unknown and not answer.status)
        incomplete = ""
        if lacks:
            incomplete = "hpack_unknown" if unknown else "gap" if missing else ""
        reset = None
        end = int(record["end"])
        by_server = bool(int(record["flags"]) & _RESPONSE)
        if end == End.RESET and (record["code"] or by_server):
            reset = Reset(int(record["code"]), by_server, expired)
            # RFC 9113 section 8.1: so a server says that it needs no more of the request.
            if by_server and not reset.code and (grpc_status if grpc else response):
                reset, end = None, int(End.RESPONSE)
        head = _head(record, asked, answer.status, end, incomplete)
        resource = self._shapes.resource(record)
        if grpc:
            answered = response is not None
            call = Call(asked.path, grpc_status, message, answer.status, answered, reset)
            shape = grpc_shape.shape(call, head, asked.scheme, resource, self._settings)
        else:
            shape = shapes.shape(
                head._replace(failure=_failure(reset)), asked.target, resource, self._settings
            )
        return self._shapes.add(shape)

    def _ints(self, exchanges: Records, ended: Ended) -> dict[str, NDArray[np.int64]]:
        names = {
            shapes.PEER_PORT: "remote_port",
            shapes.REQUEST_BODY: "request_body_bytes",
            shapes.RESPONSE_BODY: "response_body_bytes",
            REQUEST_MESSAGES: "request_messages",
            RESPONSE_MESSAGES: "response_messages",
        }
        if shapes.LOCAL_PORT in self._settings.opt_in:
            names[shapes.LOCAL_PORT] = "local_port"
        ints = {key: exchanges[name].astype(np.int64) for key, name in names.items()}
        unanswered = (ended.response == 0) & (exchanges["first_byte_ns"] == 0)
        ints[shapes.RESPONSE_BODY][unanswered] = -1
        return ints


def _expired(
    exchanges: Records, reset: NDArray[np.bool_], timeout_ns: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Return which exchanges were cancelled when their client had waited long enough."""
    expired: NDArray[np.bool_] = reset & (exchanges["code"] == _CANCEL) & (timeout_ns > 0)
    if expired.any():
        waited_ns = (exchanges["end_ns"] - exchanges["start_ns"]).astype(np.int64)
        # Clients round what they send up, grpcio to two or three digits, and send it later.
        slack_ns = np.minimum(_TIMEOUT_SLACK_NS, timeout_ns // 10)
        expired &= waited_ns >= timeout_ns - timeout_ns // 100 - slack_ns
    return expired


def _request(made: Request | Response | None) -> Request | None:
    return made if isinstance(made, Request) else None


def _response(made: Request | Response | None) -> Response | None:
    return made if isinstance(made, Response) else None


def _peers(record: np.void) -> tuple[bytes, ...]:
    """Return what goes into a shape of who talked to whom."""
    # A listener's peers come from ports of their own.
    port = "local_port" if record["role"] == _SERVER else "remote_port"
    names = ("family", "role", port, "local_addr", "remote_addr", "truncated")
    path = text_of(record, Slot.UNIX_PATH) if record["family"] == Family.UNIX else b""
    return (path, *[record[name].tobytes() for name in names])


def _head(record: np.void, asked: Asked, status: int, end: int, incomplete: str) -> shapes.Head:
    """Return what of an exchange goes into its shape."""
    server = record["role"] == _SERVER
    return shapes.Head(
        server=bool(server),
        method=asked.method,
        status=status,
        end=end,
        version=_VERSION,
        truncated=asked.truncated | int(record["truncated"]) & 1 << Slot.UNIX_PATH,
        family=int(record["family"]),
        local_address=record["local_addr"].tobytes(),
        remote_address=record["remote_addr"].tobytes(),
        server_port=int(record["local_port" if server else "remote_port"]),
        host=asked.host,
        user_agent=asked.user_agent,
        forwarded_for=asked.forwarded_for if server else "",
        forwarded_proto=asked.forwarded_proto if server else "",
        method_text=asked.method_text,
        unix_path=(
            shapes.unix_path_of(text_of(record, Slot.UNIX_PATH))
            if record["family"] == Family.UNIX
            else ""
        ),
        protocol="http2",
        incomplete=incomplete,
    )


def _failure(reset: Reset | None) -> shapes.Outcome | None:
    """Return how a stream that was reset is told."""
    if reset is None:
        return None
    if reset.code == _CANCEL and not reset.by_server:
        return shapes.Outcome("cancelled", "the client cancelled the request")
    return shapes.Outcome(reset.name, reset.message)


def _texts(requests: Sequence[Request | None]) -> dict[str, Text]:
    """Return the columns of paths and queries; none if no row has any."""
    paths = [request.path if request is not None else b"" for request in requests]
    queries = [request.query if request is not None else b"" for request in requests]
    path = _column(paths)
    if not any(queries):
        query = Text(path.bytes[:, :0], np.zeros(len(requests), dtype=np.uint16))
        return {shapes.URL_PATH: path, shapes.URL_FULL: path, shapes.URL_QUERY: query}
    full = [
        first + b"?" + second if second else first
        for first, second in zip(paths, queries, strict=True)
    ]
    return {
        shapes.URL_PATH: path,
        shapes.URL_FULL: _column(full),
        shapes.URL_QUERY: _column(queries),
    }


def _column(strings: Sequence[bytes]) -> Text:
    """Lay strings into a column."""
    size = [len(string) for string in strings]
    width = max(size, default=0)
    joined = b"".join([string.ljust(width, b"\0") for string in strings])
    cells = np.frombuffer(joined, dtype=np.uint8).reshape(len(strings), width)
    return Text(cells, np.array(size, dtype=np.uint16))
