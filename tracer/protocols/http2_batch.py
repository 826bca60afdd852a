"""Records of HTTP/2 connections in columns: what nearly all of them come to.

A connection takes part if its records are as they mostly are: whole blocks, streams that begin
in their order, nothing after a stream's end. The others are walked, and so are all where there
are too few for columns to pay.

- A block is hashed together with the state that its direction's HPACK is in. What it says is
  known if it was met in that state before and left it as it was, as blocks do once the table
  has all that keeps coming. A direction with any other block has all of its blocks decoded
  one by one, in their order.
- Records are sorted by stream. One that begins and ends in the batch, with a response and at
  most one block of trailers, is put together by columns; the others, mostly those that were
  under way as the batch was cut, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.columns import U64, Rows, Table, Words, absorb, nonzero, unlike
from tracer.flow import SHED, Flag, Kind
from tracer.protocols import http2_streams
from tracer.protocols.base import Records
from tracer.protocols.http2_fields import Request, Response
from tracer.protocols.http2_streams import (
    NO_STREAM,
    Connection,
    Connections,
    Direction,
    Stream,
    block_places,
)
from tracer.records import take

# Columns cost about as much as walking so many records, and have room for so many.
MIN_RECORDS, MAX_RECORDS = 256, 1 << 16
# Blocks remembered before all are forgotten.
MAX_REMEMBERED = 1 << 13

_BLOCK, _EXCHANGE, _CLOSED = int(Kind.BLOCK), int(Kind.EXCHANGE), int(Kind.CLOSED)
_MORE, _RESPONSE = np.uint32(Flag.MORE), np.uint32(Flag.RESPONSE)
_ODD = np.uint32(Flag.SPANLESS | Flag.BROKEN)
_END_STREAM, _OLD = int(Flag.END_STREAM), int(Flag.OLD)
_ASK, _ANSWER, _END = 0, 1, 2

Mask = NDArray[np.bool_]


class Ended(NamedTuple):
    """Streams that are over, in the order of their rows; (m,).

    request, response, trailers: places in Said.made. closed: whether a block ended the
    response. connection: of each, as an index of `connections`.
    """

    rows: Rows
    request: Rows
    response: Rows
    trailers: Rows
    closed: Mask
    connection: Rows
    connections: Sequence[Connection]

    def rows_at(self, at: Rows) -> Ended:
        """Return some of them."""
        return Ended(
            self.rows[at],
            self.request[at],
            self.response[at],
            self.trailers[at],
            self.closed[at],
            self.connection[at],
            self.connections,
        )


class Said:
    """What blocks said, by small numbers (places) that columns can hold; 0 stands for nothing."""

    def __init__(self, seed: int) -> None:
        self._seed = np.uint64(seed % (1 << 64))
        self._known = Table()
        self._begin()

    def _begin(self) -> None:
        self._known.clear()
        self.made: list[Request | Response | None] = [None]
        self._places: dict[int, int] = {}
        self._number = np.zeros(1, dtype=np.uint64)
        self._status = np.zeros(1, dtype=np.int64)

    def renew(self) -> None:
        """Forget all if there is too much; places are good from one call to the next."""
        if len(self.made) > MAX_REMEMBERED or len(self._known) > MAX_REMEMBERED:
            self._begin()

    def place(self, made: Request | Response | None) -> int:
        """Return the place of something."""
        if made is None:
            return 0
        # As long as it has a place it lives, and nothing else has its id.
        place = self._places.get(id(made))
        if place is None:
            place = self._places[id(made)] = len(self.made)
            self.made.append(made)
        return place

    def number(self, places: Rows) -> U64:
        """Return numbers that tell what goes into a shape, (n,); 0 for nothing."""
        self._grow()
        return self._number[places]

    def status(self, places: Rows) -> NDArray[np.int64]:
        """Return responses' statuses, (n,)."""
        self._grow()
        return self._status[places]

    def keys(self, blocks: U64, states: U64 | np.uint64) -> U64:
        """Return what tells blocks that are met in some states, (n,)."""
        return nonzero(absorb(blocks, states ^ self._seed))

    def find(self, keys: U64) -> Rows:
        """Return the places of what blocks said, (n,), -1 for what isn't known."""
        return self._known.find(keys).astype(np.intp)

    def learn(self, keys: U64, places: Sequence[int]) -> None:
        """Remember what blocks say that leave their state as it was."""
        self._known.learn(dict(zip(keys.tolist(), places, strict=True)))

    def _grow(self) -> None:
        new = self.made[len(self._number) :]
        if new:
            number = [each.number if each is not None else 0 for each in new]
            status = [each.status if isinstance(each, Response) else 0 for each in new]
            self._number = np.append(self._number, np.array(number, dtype=np.uint64))
            self._status = np.append(self._status, np.array(status, dtype=np.int64))


class Reader:
    """Takes batches of records; used from one thread."""

    def __init__(self, connections: Connections, seed: int) -> None:
        self._connections = connections
        self._seed = np.uint64(seed % (1 << 64))
        self.said = Said(seed)

    def read(self, records: Records) -> Ended:
        """Take records in their order; return the streams that are over and get a span."""
        self.said.renew()
        key = records["conn_id"] << np.uint64(2) | records["role"]
        few = not MIN_RECORDS <= len(records) <= MAX_RECORDS
        if few or not self._connections.roomy(len(records)):
            return self._walk(records, key)
        names = unlike(key)
        of = np.searchsorted(names, key)
        batch = _Batch(records, of, self._seed)
        plain = self._begin(names, batch)
        if not plain[batch.of].any():
            return self._walk(records, key)
        by_columns = _Reading(self._connections, self.said, names, batch, plain).ended()
        for name in names[batch.closed[plain[batch.closed]]].tolist():
            self._connections.drop(name)
        if plain.all():
            return by_columns
        rest = np.flatnonzero(~plain[of])
        walked = self._walk(take(records, rest), key[rest])
        return _join(by_columns, walked._replace(rows=rest[walked.rows]))

    def _walk(self, records: Records, key: U64) -> Ended:
        rows, ended = self._connections.walk(records, key)
        index: dict[int, int] = {}
        indices = [index.setdefault(id(connection), len(index)) for connection, _ in ended]
        connections = list({id(connection): connection for connection, _ in ended}.values())
        return _ended(self.said, rows, [stream for _, stream in ended], indices, connections)

    def _begin(self, names: U64, batch: _Batch) -> Mask:
        """Return which connections can be taken in columns, (c,); begin those that are new."""
        plain = batch.plain(len(names))
        of = self._connections.of
        for event in batch.going_on().tolist():
            # Of a stream that isn't open: late, or its beginning is lost.
            index = int(batch.of[event])
            connection = of.get(int(names[index]))
            if connection is None or int(batch.stream[event]) not in connection.streams:
                plain[index] = False
        opened, lowest, first = batch.openings(len(names))
        plain &= opened < http2_streams.MAX_STREAMS
        new: list[tuple[int, int]] = []
        for index in np.flatnonzero(plain).tolist():
            connection = of.get(int(names[index]))
            if connection is None:
                new.append((int(first[index]), index))
                continue
            under_way = connection.requests.size or connection.responses.size
            again = opened[index] and lowest[index] <= connection.highest
            full = len(connection.streams) + opened[index] > http2_streams.MAX_STREAMS
            plain[index] = not (under_way or again or full)
        for row, index in sorted(new):
            old = int(batch.records["flags"][row]) & _OLD != 0
            self._connections.begin(int(names[index]), old)
        return plain


class _Batch:
    """A batch's blocks and ends of streams (events), sorted by connection, stream and row; (e,).

    row: of the block's last part, or of the end. of: connection. kind: _ASK, _ANSWER or _END.
    first: whether an event is its stream's first one here. begin: place in `order` of a block's
    first part, and `last` that of its last one; hash: of the block.
    """

    def __init__(self, records: Records, of: Rows, seed: np.uint64) -> None:
        self.records = records
        self._of_row = of
        count = len(records)
        stream = records["stream_id"]
        word = of.astype(np.uint64) << np.uint64(48) | stream.astype(np.uint64) << np.uint64(16)
        word |= np.arange(count, dtype=np.uint64)
        # Quicker than argsort, and each word tells its row.
        word.sort()
        self.order = order = (word & np.uint64(0xFFFF)).astype(np.intp)
        group = word >> np.uint64(16)
        kind, flags = records["kind"].take(order), records["flags"].take(order)
        is_block = kind == _BLOCK
        is_end = kind == _EXCHANGE
        answer = flags & _RESPONSE != 0
        more = is_block & (flags & _MORE != 0)

        off, size = block_places(records)
        size[records["kind"] != _BLOCK] = 0
        self.off, self.size = off, size
        self.words = Words(records["text"], off + size)
        hashed = self.words.absorb(absorb(size.astype(np.uint64), seed), off, size).take(order)

        # What can't be taken in columns.
        odd = ~(is_block | is_end) | is_block & (flags & _ODD != 0)
        # A connection's end, where nothing comes behind it.
        behind = np.zeros(int(of.max()) + 1, dtype=np.intp)
        behind[of] = np.arange(count)
        closed = order[kind == _CLOSED]
        closed = closed[behind[of[closed]] == closed]
        self.closed = of[closed]
        odd &= kind != _CLOSED
        odd |= (kind == _CLOSED) & (behind[of[order]] != order)
        odd |= is_end & (group & np.uint64(1) == 0)
        begin: Rows = np.arange(count)
        if more.any():
            goes_on = more.copy()
            goes_on[:-1] &= (group[1:] == group[:-1]) & is_block[1:] & (answer[1:] == answer[:-1])
            goes_on[-1] = False
            odd |= more & ~goes_on
            cont = np.append(False, goes_on[:-1])
            hashed = _joined(hashed, cont)
            begin = np.maximum.accumulate(np.where(cont, 0, begin))
            total = np.cumsum(size.take(order))
            length = total - total[begin] + size.take(order[begin])
            odd |= length > http2_streams.MAX_BLOCK_BYTES
        self._odd = order[odd]

        self.last = last = np.flatnonzero(is_end | is_block & ~more)
        self.begin = begin[last]
        self.row = order[last]
        self.of = of.take(self.row)
        self.stream = stream.take(self.row)
        self.flags = flags[last]
        self.hash = hashed[last]
        self.kind = np.where(is_end[last], np.int8(_END), answer[last].astype(np.int8))
        group = group[last]
        self.first = np.ones(len(last), dtype=np.bool_)
        self.first[1:] = group[1:] != group[:-1]

    def plain(self, count: int) -> Mask:
        """Return which of the connections have nothing odd, as far as records tell; (count,)."""
        plain = np.ones(count, dtype=np.bool_)
        plain[self._of_row[self._odd]] = False
        # A second request on a stream (trailers), or anything after its end.
        wrong = ~self.first & (self.kind == _ASK)
        wrong[1:] |= ~self.first[1:] & (self.kind[:-1] == _END)
        # Streams begin in the order of their numbers.
        opening = self._opening()
        row, of = self.row[opening], self.of[opening]
        plain[self.of[wrong]] = False
        plain[of[1:][(of[1:] == of[:-1]) & (row[1:] < row[:-1])]] = False
        return plain

    def going_on(self) -> Rows:
        """Return the first event of each stream that began before this batch."""
        return np.flatnonzero(self.first & (self.kind != _ASK))

    def openings(self, count: int) -> tuple[Rows, Rows, Rows]:
        """Return how many streams each connection begins, the lowest, and its first row."""
        opening = self._opening()
        of = self.of[opening]
        lowest = np.zeros(count, dtype=np.intp)
        lowest[of[::-1]] = self.stream[opening][::-1]
        first = np.zeros(count, dtype=np.intp)
        first[self._of_row[::-1]] = np.arange(len(self._of_row))[::-1]
        return np.bincount(of, minlength=count), lowest, first

    def _opening(self) -> Rows:
        return np.flatnonzero(self.first & (self.kind == _ASK))

    def block(self, event: int) -> bytes:
        """Return a whole block."""
        rows = self.order[self.begin[event] : self.last[event] + 1].tolist()
        return b"".join(
            [self.words.slice(row, int(self.off[row]), int(self.size[row])) for row in rows]
        )


class _Reading:
    """The plain connections of a batch. Events are those of theirs alone."""

    def __init__(
        self, connections: Connections, said: Said, names: U64, batch: _Batch, plain: Mask
    ) -> None:
        self._connections = connections
        self._said = said
        self._batch = batch
        index = np.cumsum(plain) - 1
        self._names = names[plain]
        mine = np.flatnonzero(plain[batch.of])
        self._event = mine
        self._row, self._of, self._kind = batch.row[mine], index[batch.of[mine]], batch.kind[mine]
        self._stream, self._flags = batch.stream[mine], batch.flags[mine]
        self._first = batch.first[mine]

    def ended(self) -> Ended:
        """Decode blocks, put streams together, and return those that are over."""
        connections = [self._connections.of[name] for name in self._names.tolist()]
        place = self._decode(connections)
        kind, row = self._kind, self._row
        opening = self._first & (kind == _ASK)
        of, streams = self._of[opening], self._stream[opening]
        # The last one of each connection is its highest.
        highest = np.append(of[1:] != of[:-1], True) if len(of) else np.zeros(0, np.bool_)
        for index, stream in zip(of[highest].tolist(), streams[highest].tolist(), strict=True):
            connections[index].highest = stream

        begin = np.flatnonzero(self._first)
        stop = np.append(begin[1:], len(kind))
        size = stop - begin
        whole = (size >= 3) & (size <= 4) & opening[begin] & (kind[stop - 1] == _END)
        at = np.flatnonzero(whole)
        status = self._said.status(place)
        trailed = size[at] == 4
        good = status[begin[at] + 1] >= 200
        # Of those without trailers, that is the response again.
        good &= ~trailed | (status[begin[at] + 2] == 0)
        whole[at[~good]] = False
        at, trailed = at[good], trailed[good]

        flags = self._flags
        end = stop[at] - 1
        response = begin[at] + 1
        closed = (flags[response] | flags[end - 1]) & _END_STREAM != 0
        kept = self._batch.records["level"][row[end]] & SHED == 0
        trailers = np.where(trailed, place[end - 1], 0)
        mine = Ended(
            row[end],
            place[begin[at]],
            place[response],
            trailers,
            closed,
            self._of[end],
            connections,
        )
        if not kept.all():
            mine = mine.rows_at(np.flatnonzero(kept))
        by_hand = np.flatnonzero(~whole)
        if not len(by_hand):
            return mine.rows_at(np.argsort(mine.rows))
        return _join(mine, self._by_hand(connections, place, begin[by_hand], stop[by_hand]))

    def _decode(self, connections: Sequence[Connection]) -> Rows:
        """Return the places of what blocks say, (e,), and bring HPACK's states up to date."""
        said = self._said
        states = [
            side.state.number for each in connections for side in (each.requests, each.responses)
        ]
        blocks = np.flatnonzero(self._kind != _END)
        direction = self._of[blocks] * 2 + self._kind[blocks]
        hashed = self._batch.hash[self._event[blocks]]
        found = said.find(said.keys(hashed, np.array(states, dtype=np.uint64)[direction]))
        missed = found < 0
        if missed.any():
            # By direction, and in the order in which they came.
            order = np.argsort(direction << 16 | self._row[blocks])
            edges = np.searchsorted(direction[order], np.arange(len(states) + 1))
            for number in unlike(direction[missed]).tolist():
                connection = connections[number >> 1]
                side = connection.responses if number & 1 else connection.requests
                self._follow(side, order[edges[number] : edges[number + 1]], blocks, hashed, found)
        place = np.zeros(len(self._kind), dtype=np.intp)
        place[blocks] = found
        return place

    def _follow(
        self,
        side: Direction[Request] | Direction[Response],
        mine: Rows,
        blocks: Rows,
        hashed: U64,
        found: Rows,
    ) -> None:
        """Decode a direction's blocks, from the first one on that isn't known.

        mine: in their order, as indices of the others. found: places as they are if the state
        stays as it is.
        """
        said = self._said
        few = 4
        while len(missing := np.flatnonzero(found[mine] < 0)):
            # Those before it left the state as it was.
            mine = mine[missing[0] :]
            done, stayed = 0, False
            learned: list[tuple[int, int]] = []
            for at in mine.tolist():
                before = side.state
                block = self._batch.block(int(self._event[blocks[at]]))
                found[at] = said.place(side.whole(block))
                done += 1
                stayed = side.state is before
                if stayed:
                    learned.append((at, before.number))
                if stayed and done >= few:
                    break
            if learned:
                of, states = np.array(learned, dtype=np.uint64).T
                at_ = of.astype(np.intp)
                said.learn(said.keys(hashed[at_], states), found[at_].tolist())
            mine = mine[done:]
            found[mine] = said.find(said.keys(hashed[mine], np.uint64(side.state.number)))
            few *= 4

    def _by_hand(
        self, connections: Sequence[Connection], place: Rows, begin: Rows, stop: Rows
    ) -> Ended:
        """Put streams together block by block; return those that are over."""
        made = self._said.made
        rows: list[int] = []
        ended: list[Stream] = []
        indices: list[int] = []
        for first, behind in zip(begin.tolist(), stop.tolist(), strict=True):
            index, stream_id = int(self._of[first]), int(self._stream[first])
            connection = connections[index]
            for event in range(first, behind):
                said = made[int(place[event])]
                if isinstance(said, Request):
                    self._connections.open(connection, stream_id).request = said
                elif said is not None:
                    self._connections.answer(connection, stream_id, int(self._flags[event]), said)
                else:
                    row = int(self._row[event])
                    stream = self._connections.end(connection, stream_id)
                    if not int(self._batch.records["level"][row]) & SHED:
                        rows.append(row)
                        ended.append(stream or NO_STREAM)
                        indices.append(index)
        return _ended(self._said, rows, ended, indices, connections)


def _ended(
    said: Said,
    rows: Sequence[int],
    streams: Sequence[Stream],
    indices: Sequence[int],
    connections: Sequence[Connection],
) -> Ended:
    place = said.place
    return Ended(
        np.array(rows, dtype=np.intp),
        np.array([place(stream.request) for stream in streams], dtype=np.intp),
        np.array([place(stream.response) for stream in streams], dtype=np.intp),
        np.array([place(stream.trailers) for stream in streams], dtype=np.intp),
        np.array([stream.ended for stream in streams], dtype=np.bool_),
        np.array(indices, dtype=np.intp),
        connections,
    )


def _join(one: Ended, other: Ended) -> Ended:
    """Put two parts of a batch together, in the order of rows."""
    connections, shift = one.connections, 0
    if other.connections is not connections:
        connections, shift = [*one.connections, *other.connections], len(one.connections)
    both = Ended(
        np.concatenate((one.rows, other.rows)),
        np.concatenate((one.request, other.request)),
        np.concatenate((one.response, other.response)),
        np.concatenate((one.trailers, other.trailers)),
        np.concatenate((one.closed, other.closed)),
        np.concatenate((one.connection, other.connection + shift)),
        connections,
    )
    return both.rows_at(np.argsort(both.rows))


def _joined(hashed: U64, cont: Mask) -> U64:
    """Return hashes that at the last part of a block are of the whole of it, (n,)."""
    done = ~cont
    left = np.flatnonzero(cont)
    while len(left):
        ready = done[left - 1]
        now = left[ready]
        hashed[now] = absorb(hashed[now - 1], hashed[now])
        left = left[~ready]
        done[now] = True
    return hashed
