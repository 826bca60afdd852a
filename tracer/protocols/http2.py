"""Records of HTTP/2 connections to columns of spans: HTTP exchanges and gRPC calls.

The kernel walks the frames and hands over, in order: each header block (FLOW_BLOCK, in
parts if it is long), each stream that is over (FLOW_EXCHANGE: times and sizes) and each
connection that is (FLOW_CLOSED). Here the blocks are decoded and put to their streams. A
stream is a gRPC call if its request's content-type says so, else its response's.

What couldn't be decoded is left out of the span, which then has `wirespan.incomplete`:
`hpack_unknown` if the connection is older than the tracer, or blocks of it were lost, and
the stream used entries of the table from before; `gap` if the block itself is missing.

Left out: pushed streams, whose blocks are decoded for the table's sake only, and a
request's trailers. Columns are read with tolist(): most records here are of one to a span,
and a Python look-up is cheaper than what numpy takes per call on small batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracer.columns import I32, U64, Words, absorb
from tracer.flow import SHED, Block, End, Family, Flag, Kind, Role, Slot
from tracer.link.headers import Headers
from tracer.protocols import grpc_shape
from tracer.protocols import http1_shape as shapes
from tracer.protocols.base import Columns, Records, Routes, Settings, Shapes, text_of
from tracer.protocols.grpc_shape import REQUEST_MESSAGES, RESPONSE_MESSAGES, Call, Reset
from tracer.protocols.hpack_state import Hpack
from tracer.protocols.http1 import target_keys
from tracer.protocols.http2_fields import Answered, Asked, Fields, Request, Response
from tracer.protocols.messages import masked_message
from tracer.records import take
from tracer.spans import Remote, Text

# Open streams remembered of a connection (more than any server allows by default) and of all
# together, and connections; when there are more, the oldest is forgotten.
MAX_STREAMS = 4096
MAX_OPEN_STREAMS = 1 << 17
MAX_CONNECTIONS = 1 << 14
# Bytes of one block; grpc and nginx refuse more than 8 to 16 KiB.
MAX_BLOCK_BYTES = 1 << 18

# Plain numbers, since an IntEnum is slow to compare with.
_BLOCK, _EXCHANGE, _CLOSED = int(Kind.BLOCK), int(Kind.EXCHANGE), int(Kind.CLOSED)
_MORE, _PROMISE, _BROKEN = int(Flag.MORE), int(Flag.PROMISE), int(Flag.BROKEN)
_PARTLY = _MORE | _BROKEN
_RESPONSE, _END_STREAM, _OLD = int(Flag.RESPONSE), int(Flag.END_STREAM), int(Flag.OLD)
_SERVER, _RESET, _CANCEL = int(Role.SERVER), int(End.RESET), 8
_VERSION = 20
# How much sooner than it says a client's timer may be seen to end, if that is little of it.
_TIMEOUT_SLACK_NS = 10_000_000

_NOTHING = Asked(None, shapes.METHOD_UNKNOWN, "", None, "", "", "", "", "", "", 0, False)
_NO_ANSWER = Answered(None, 0, "", "", False)
_T = TypeVar("_T")


class _Stream:
    """An open stream's blocks. What is the class's until it is set makes it cheap to begin."""

    request: Request | None = None
    response: Response | None = None
    trailers: Response | None = None
    ended = 0  # 1: a block ended the response


_NO_STREAM = _Stream()


class _Direction(Generic[_T]):
    """One direction of a connection: its HPACK state, and the block that is coming in parts."""

    __slots__ = ("_hpack", "_parts", "block", "size", "state")

    def __init__(self, hpack: Hpack[_T], known: bool) -> None:
        self._hpack = hpack
        self.state = hpack.begin(known)
        self.block = b""  # the last whole one
        self._parts: list[bytes] = []
        self.size = 0  # of the parts so far

    def take(self, flags: int, block: bytes) -> _T | None:
        """Take a block, or a part of one; return what is made of a whole one."""
        if flags & _PARTLY or self.size:
            if flags & _BROKEN:
                self._parts.clear()
                self.size = 0
                self._lose()
            self.size += len(block)
            if self.size <= MAX_BLOCK_BYTES:
                self._parts.append(block)
            if flags & _MORE:
                return None
            whole = self.size <= MAX_BLOCK_BYTES
            block = b"".join(self._parts)
            self._parts.clear()
            self.size = 0
            if not whole:
                self._lose()
                return self._hpack.unreadable
        self.block = block
        found = self.state.memo.get(block)
        if found is None:
            found = self._hpack.decode(self.state, block)
        made, self.state = found
        return made

    def _lose(self) -> None:
        """Go on without knowing what is in the table."""
        if not self.state.failed:
            self.state = self._hpack.begin(False)


class _Connection:
    """A connection as one side has it: both directions, and the streams that are open."""

    __slots__ = ("highest", "number", "old", "process", "requests", "responses", "streams")

    def __init__(self, old: bool, requests: Hpack[Request], responses: Hpack[Response]) -> None:
        self.old = old
        self.requests = _Direction(requests, not old)
        self.responses = _Direction(responses, not old)
        self.streams: dict[int, _Stream] = {}
        self.highest = 0  # stream that was begun
        self.process = 0  # that `number` is good for
        self.number = 0  # of what a shape needs of process and addresses; 0: none yet


class Http2:
    """The decoder of FLOW_PROTO_HTTP2; see tracer.protocols.base.Decoder."""

    def __init__(self, shapes: Shapes, routes: Routes, settings: Settings) -> None:
        self._shapes = shapes
        self._settings = settings
        self._fields = Fields(routes, settings)
        self._requests = Hpack(self._fields.request, self._fields.unknown_request)
        self._responses = Hpack(self._fields.response, self._fields.unknown_response)
        self._headers = Headers()
        self._connections: dict[int, _Connection] = {}
        self._known: dict[tuple[int, ...], int] = {}
        self._generation = shapes.generation
        self._forgot = False
        self._forgotten = 0
        self._open_streams = 0

    def losses(self) -> dict[str, int]:
        """Count directions that became unreadable, and streams forgotten for lack of room."""
        failed = [hpack.losses()["hpack_failed"] for hpack in (self._requests, self._responses)]
        return {"hpack_failed": sum(failed), "stream_forgotten": self._forgotten}

    def columns(self, records: Records, process: U64) -> Columns:
        """Decode; every FLOW_EXCHANGE gives one span, save those of pushed streams, and of those
        that are shed."""
        if self._generation != self._shapes.generation:
            self._generation = self._shapes.generation
            self._known.clear()
        key = records["conn_id"] << np.uint64(2) | records["role"]
        fields = records["fields"][:, Block.BLOCK]
        used = np.minimum(records["text_len"], records["text"].shape[1])
        # Blocks are mostly much shorter than what there is room for.
        width = int(used.max(initial=0))
        text = records["text"][:, :width].tobytes()
        off = np.minimum(fields["off"], used)
        end = off + np.minimum(fields["len"], used - off)
        base = np.arange(len(records)) * width
        rows: list[int] = []
        ended: list[tuple[_Connection, _Stream]] = []
        connections = self._connections
        for row, (kind, number, stream_id, flags, level, begin, stop) in enumerate(
            zip(
                records["kind"].tolist(),
                key.tolist(),
                records["stream_id"].tolist(),
                records["flags"].tolist(),
                records["level"].tolist(),
                (base + off).tolist(),
                (base + end).tolist(),
                strict=True,
            )
        ):
            if kind == _CLOSED:
                self._drop(number)
                continue
            connection = connections.get(number)
            if connection is None:
                # A stream that ends before it began: its blocks are lost.
                connection = self._begin(number, kind != _BLOCK or flags & _OLD != 0)
            if kind == _BLOCK:
                block = text[begin:stop]
                # Written out, for a call more is a tenth of what a block costs.
                if flags & _RESPONSE:
                    responses = connection.responses
                    response: Response | None
                    if flags & _PARTLY or responses.size:
                        response = responses.take(flags, block)
                    elif (met := responses.state.memo.get(block)) is not None:
                        response, responses.state = met
                    else:
                        response = responses.take(flags, block)
                    if response is None or flags & _PROMISE:
                        continue
                    stream = connection.streams.get(stream_id)
                    if stream is not None and response.status >= 200:
                        stream.response = response
                    elif stream is not None and stream.response and not response.status:
                        stream.trailers = response
                    else:
                        self._answer(connection, stream_id, flags, response)
                        continue
                    if flags & _END_STREAM:
                        stream.ended = 1
                else:
                    requests = connection.requests
                    request: Request | None
                    if flags & _PARTLY or requests.size:
                        request = requests.take(flags, block)
                    elif (asked := requests.state.memo.get(block)) is not None:
                        request, requests.state = asked
                        requests.block = block
                    else:
                        request = requests.take(flags, block)
                    if request is None:
                        continue
                    streams = connection.streams
                    if stream_id > connection.highest and len(streams) < MAX_STREAMS:
                        connection.highest = stream_id
                        self._open_streams += 1
                        stream = streams[stream_id] = _Stream()
                        stream.request = request
                    elif not self._ask(connection, stream_id, request):
                        block = requests.block
                        self._forgotten += self._drop(number)
                        connection = self._begin(number, True)
                        request = connection.requests.take(0, block)
                        if request is not None:
                            self._ask(connection, stream_id, request)
            elif kind == _EXCHANGE:
                stream = connection.streams.pop(stream_id, None)
                self._open_streams -= stream is not None
                # Those with even numbers were begun by the server: pushed.
                if stream_id & 1 and not level & SHED:
                    rows.append(row)
                    ended.append((connection, stream or _NO_STREAM))
        at = np.array(rows, dtype=np.intp)
        exchanges = take(records, at)
        # Few are distinct, for equal blocks are one object: the rest is done once for each.
        places: dict[int, int] = {}
        asked_by = [stream.request for _, stream in ended]
        place = np.array([places.setdefault(id(each), len(places)) for each in asked_by], np.intp)
        distinct = list({id(each): each for each in asked_by}.values())
        remote = self._headers.of([request.trace if request else b"" for request in distinct])
        texts = _texts(distinct)
        return Columns(
            self._shape_rows(exchanges, process[at], ended),
            self._ints(exchanges, ended),
            {name: Text(text.bytes[place], text.length[place]) for name, text in texts.items()},
            at,
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

    def _begin(self, number: int, old: bool) -> _Connection:
        """Begin a connection; if there are too many, forget the oldest."""
        connections = self._connections
        while connections and (
            len(connections) >= MAX_CONNECTIONS or self._open_streams >= MAX_OPEN_STREAMS
        ):
            self._forgotten += self._drop(next(iter(connections)))
            # From now on one that isn't known may be one that was forgotten.
            self._forgot = True
        connection = connections[number] = _Connection(
            old or self._forgot, self._requests, self._responses
        )
        return connection

    def _drop(self, number: int) -> int:
        """Forget a connection; return how many streams were open."""
        connection = self._connections.pop(number, None)
        if connection is None:
            return 0
        self._open_streams -= len(connection.streams)
        return len(connection.streams)

    def _ask(self, connection: _Connection, stream_id: int, request: Request) -> bool:
        """Put a request's block to its stream.

        False: it can't be this connection's, for stream numbers only rise. Of the end of
        the one before, with the same number, nothing was heard.
        """
        stream = connection.streams.get(stream_id)
        if stream is None:
            if stream_id <= connection.highest:
                # Trailers may be late, when their stream is over.
                return not request.is_head
            stream = self._open(connection, stream_id)
        if stream.request is None:
            stream.request = request
            return True
        return not request.is_head

    def _answer(
        self, connection: _Connection, stream_id: int, flags: int, response: Response
    ) -> None:
        """Put a response's block to its stream."""
        stream = connection.streams.get(stream_id)
        if stream is None:
            if stream_id <= connection.highest and not connection.old:
                # Late, of a stream that is over.
                return
            stream = self._open(connection, stream_id)
        if flags & _END_STREAM:
            stream.ended = 1
        status = response.status
        if stream.response is not None and not status:
            stream.trailers = response
        elif not 100 <= status < 200 or flags & _END_STREAM:
            stream.response = response

    def _open(self, connection: _Connection, stream_id: int) -> _Stream:
        """Begin a stream."""
        streams = connection.streams
        if len(streams) >= MAX_STREAMS:
            del streams[next(iter(streams))]
            self._forgotten += 1
            self._open_streams -= 1
        self._open_streams += 1
        if stream_id > connection.highest:
            connection.highest = stream_id
        stream = streams[stream_id] = _Stream()
        return stream

    def _shape_rows(
        self, exchanges: Records, process: U64, ended: Sequence[tuple[_Connection, _Stream]]
    ) -> I32:
        """Return the shape of each exchange."""
        # By how it ended, and whether it had messages.
        reset = exchanges["end"] == _RESET
        way = exchanges["end"].astype(np.uint64) << np.uint64(34)
        way |= np.where(reset, exchanges["code"], 0).astype(np.uint64) << np.uint64(2)
        way |= (reset & (exchanges["flags"] & _RESPONSE != 0)).astype(np.uint64) << np.uint64(1)
        way |= (exchanges["request_messages"] | exchanges["response_messages"]) != 0
        way = way << np.uint64(1) | self._expired(exchanges, ended)
        found = []
        known = self._known
        for row, ((connection, stream), owner, how) in enumerate(
            zip(ended, process.tolist(), way.tolist(), strict=True)
        ):
            if connection.process != owner or not connection.number:
                connection.process = owner
                connection.number = self._fields.number((owner, *_peers(exchanges[row])))
            request, response, trailers = stream.request, stream.response, stream.trailers
            key = (
                connection.number,
                request.number if request is not None else 0,
                response.number if response is not None else 0,
                trailers.number if trailers is not None else 0,
                how << 1 | stream.ended,
            )
            shape = known.get(key)
            if shape is None:
                if len(known) >= 4 * self._settings.max_shapes:
                    known.clear()
                shape = known[key] = self._new_shape(exchanges[row], stream, bool(how & 1))
            found.append(shape)
        return np.array(found, dtype=np.int32)

    @staticmethod
    def _expired(
        exchanges: Records, ended: Sequence[tuple[_Connection, _Stream]]
    ) -> NDArray[np.bool_]:
        """Return which exchanges were cancelled when their client had waited long enough."""
        expired: NDArray[np.bool_] = exchanges["end"] == _RESET
        expired &= exchanges["code"] == _CANCEL
        for row in np.flatnonzero(expired).tolist():
            request = ended[row][1].request
            timeout_ns = request.timeout_ns if request is not None else 0
            waited_ns = int(exchanges[row]["end_ns"]) - int(exchanges[row]["start_ns"])
            # Clients round what they send up, grpcio to two or three digits, and send it later.
            least_ns = timeout_ns - timeout_ns // 100 - min(_TIMEOUT_SLACK_NS, timeout_ns // 10)
            expired[row] = timeout_ns > 0 and waited_ns >= least_ns
        return expired

    def _new_shape(self, record: np.void, stream: _Stream, expired: bool) -> int:
        asked = stream.request.asked if stream.request else _NOTHING
        answer = stream.response.answered if stream.response else _NO_ANSWER
        last = stream.trailers.answered if stream.trailers else _NO_ANSWER
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
        missing = stream.request is None or (stream.response is None and whole)
        if grpc:
            # Without trailers a gRPC response isn't whole: their block was lost.
            missing |= whole and not stream.ended and not grpc_status and answer.status == 200
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
            if by_server and not reset.code and (grpc_status if grpc else stream.response):
                reset, end = None, int(End.RESPONSE)
        head = _head(record, asked, answer.status, end, incomplete)
        resource = self._shapes.resource(record)
        if grpc:
            answered = stream.response is not None
            call = Call(asked.path, grpc_status, message, answer.status, answered, reset)
            made = grpc_shape.shape(call, head, asked.scheme, resource, self._settings)
        else:
            made = shapes.shape(
                head._replace(failure=_failure(reset)), asked.target, resource, self._settings
            )
        return self._shapes.add(made)

    def _ints(
        self, exchanges: Records, ended: Sequence[tuple[_Connection, _Stream]]
    ) -> dict[str, NDArray[np.int64]]:
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
        answered = np.array([stream.response is not None for _, stream in ended], dtype=np.bool_)
        ints[shapes.RESPONSE_BODY][~answered & (exchanges["first_byte_ns"] == 0)] = -1
        return ints


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
