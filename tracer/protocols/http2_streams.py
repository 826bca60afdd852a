"""HTTP/2 connections as one side has them: their HPACK state, and the streams that are open.

`Connections.walk` takes records one by one and is right for whatever comes. Most of what comes
is alike and taken in columns, by tracer.protocols.http2_batch.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np

from tracer.columns import U64, Rows
from tracer.flow import SHED, Block, Flag, Kind
from tracer.protocols.base import Records
from tracer.protocols.hpack_state import Hpack
from tracer.protocols.http2_fields import Fields, Request, Response

# Open streams remembered of a connection (more than any server allows by default) and of all
# together, and connections; when there are more, the oldest is forgotten.
MAX_STREAMS = 4096
MAX_OPEN_STREAMS = 1 << 17
MAX_CONNECTIONS = 1 << 14
# Bytes of one block; grpc and nginx refuse more than 8 to 16 KiB.
MAX_BLOCK_BYTES = 1 << 18

# Plain numbers, since an IntEnum is slow to compare with.
_BLOCK, _EXCHANGE, _CLOSED = int(Kind.BLOCK), int(Kind.EXCHANGE), int(Kind.CLOSED)
_MORE, _SPANLESS, _BROKEN = int(Flag.MORE), int(Flag.SPANLESS), int(Flag.BROKEN)
_PARTLY = _MORE | _BROKEN
_RESPONSE, _END_STREAM, _OLD = int(Flag.RESPONSE), int(Flag.END_STREAM), int(Flag.OLD)

_T = TypeVar("_T")


class Stream:
    """An open stream's blocks. What is the class's until it is set makes it cheap to begin."""

    request: Request | None = None
    response: Response | None = None
    trailers: Response | None = None
    ended = 0  # 1: a block ended the response


NO_STREAM = Stream()


class Direction(Generic[_T]):
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
        return self.whole(block)

    def whole(self, block: bytes) -> _T:
        """Take a block that came in one piece, or was put together."""
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


class Connection:
    """A connection as one side has it: both directions, and the streams that are open."""

    __slots__ = ("highest", "number", "old", "process", "requests", "responses", "streams")

    def __init__(self, old: bool, requests: Hpack[Request], responses: Hpack[Response]) -> None:
        self.old = old
        self.requests = Direction(requests, not old)
        self.responses = Direction(responses, not old)
        self.streams: dict[int, Stream] = {}
        self.highest = 0  # stream that was begun
        self.process = 0  # that `number` is good for
        self.number = 0  # of what a shape needs of process and addresses; 0: none yet


class Connections:
    """All connections, by number and side."""

    def __init__(self, fields: Fields) -> None:
        self.of: dict[int, Connection] = {}
        self.open_streams = 0
        self._requests = Hpack(fields.request, fields.unknown_request)
        self._responses = Hpack(fields.response, fields.unknown_response)
        self._forgot = False
        self._forgotten = 0

    def losses(self) -> dict[str, int]:
        """Count directions that became unreadable, and streams forgotten for lack of room."""
        failed = [hpack.losses()["hpack_failed"] for hpack in (self._requests, self._responses)]
        return {"hpack_failed": sum(failed), "stream_forgotten": self._forgotten}

    def roomy(self, records: int) -> bool:
        """Whether so many records can't make it forget anything."""
        return (
            len(self.of) + records < MAX_CONNECTIONS
            and self.open_streams + records < MAX_OPEN_STREAMS
        )

    def walk(self, records: Records, key: U64) -> tuple[list[int], list[tuple[Connection, Stream]]]:
        """Take records in their order; return rows of streams that are over and get a span, and
        these streams.

        key: connection and side, (n,).
        """
        off, size = block_places(records)
        # Blocks are mostly much shorter than what there is room for.
        width = int((off + size).max(initial=0))
        text = records["text"][:, :width].tobytes()
        begin = np.arange(len(records)) * width + off
        rows: list[int] = []
        ended: list[tuple[Connection, Stream]] = []
        connections = self.of
        for row, (kind, number, stream_id, flags, level, start, stop) in enumerate(
            zip(
                records["kind"].tolist(),
                key.tolist(),
                records["stream_id"].tolist(),
                records["flags"].tolist(),
                records["level"].tolist(),
                begin.tolist(),
                (begin + size).tolist(),
                strict=True,
            )
        ):
            if kind == _CLOSED:
                self.drop(number)
                continue
            connection = connections.get(number)
            if connection is None:
                # A stream that ends before it began: its blocks are lost.
                connection = self.begin(number, kind != _BLOCK or flags & _OLD != 0)
            if kind == _BLOCK:
                block = text[start:stop]
                if flags & _RESPONSE:
                    response = connection.responses.take(flags, block)
                    if response is not None and not flags & _SPANLESS:
                        self.answer(connection, stream_id, flags, response)
                    continue
                request = connection.requests.take(flags, block)
                if request is None or flags & _SPANLESS:
                    continue
                if self._ask(connection, stream_id, request):
                    continue
                block = connection.requests.block
                self._forgotten += self.drop(number)
                connection = self.begin(number, True)
                request = connection.requests.take(0, block)
                if request is not None:
                    self._ask(connection, stream_id, request)
            elif kind == _EXCHANGE:
                stream = self.end(connection, stream_id)
                # Those with even numbers were begun by the server: pushed.
                if stream_id & 1 and not level & SHED:
                    rows.append(row)
                    ended.append((connection, stream or NO_STREAM))
        return rows, ended

    def begin(self, number: int, old: bool) -> Connection:
        """Begin a connection; if there are too many, forget the oldest."""
        connections = self.of
        while connections and (
            len(connections) >= MAX_CONNECTIONS or self.open_streams >= MAX_OPEN_STREAMS
        ):
            self._forgotten += self.drop(next(iter(connections)))
            # From now on one that isn't known may be one that was forgotten.
            self._forgot = True
        connection = connections[number] = Connection(
            old or self._forgot, self._requests, self._responses
        )
        return connection

    def open(self, connection: Connection, stream_id: int) -> Stream:
        """Begin a stream."""
        streams = connection.streams
        if len(streams) >= MAX_STREAMS:
            del streams[next(iter(streams))]
            self._forgotten += 1
            self.open_streams -= 1
        self.open_streams += 1
        if stream_id > connection.highest:
            connection.highest = stream_id
        stream = streams[stream_id] = Stream()
        return stream

    def answer(
        self, connection: Connection, stream_id: int, flags: int, response: Response
    ) -> None:
        """Put a response's block to its stream."""
        stream = connection.streams.get(stream_id)
        if stream is None:
            if stream_id <= connection.highest and not connection.old:
                # Late, of a stream that is over.
                return
            stream = self.open(connection, stream_id)
        if flags & _END_STREAM:
            stream.ended = 1
        status = response.status
        if stream.response is not None and not status:
            stream.trailers = response
        elif not 100 <= status < 200 or flags & _END_STREAM:
            stream.response = response

    def end(self, connection: Connection, stream_id: int) -> Stream | None:
        """Return a stream that is over, None where it was never begun."""
        stream = connection.streams.pop(stream_id, None)
        self.open_streams -= stream is not None
        return stream

    def drop(self, number: int) -> int:
        """Forget a connection; return how many streams were open."""
        connection = self.of.pop(number, None)
        if connection is None:
            return 0
        self.open_streams -= len(connection.streams)
        return len(connection.streams)

    def _ask(self, connection: Connection, stream_id: int, request: Request) -> bool:
        """Put a request's block to its stream.

        False: it can't be this connection's, for stream numbers only rise. Of the end of
        the one before, with the same number, nothing was heard.
        """
        stream = connection.streams.get(stream_id)
        if stream is None:
            if stream_id <= connection.highest:
                # Trailers may be late, when their stream is over.
                return not request.is_head
            stream = self.open(connection, stream_id)
        if stream.request is None:
            stream.request = request
            return True
        return not request.is_head


def block_places(records: Records) -> tuple[Rows, Rows]:
    """Return where in each record's text its block begins, and its length; (n,)."""
    fields = records["fields"][:, Block.BLOCK]
    used = np.minimum(records["text_len"], records["text"].shape[1])
    off = np.minimum(fields["off"], used)
    return off.astype(np.intp), np.minimum(fields["len"], used - off).astype(np.intp)
