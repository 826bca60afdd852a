"""TCP segments -> byte streams: puts in order, trims what was seen, waits for what is missing.

Pure. Segments go in in the order of the capture; what comes out is in order too: connections
that open, bytes of either direction in the order of their stream, and ends. A byte comes out
when all before it have been seen, or are given up: the receiver acknowledged what is missing
(so the capture lost it), too much waits behind it, or the connection or the capture is over.
Who takes the bytes notices from their sequence numbers what went by unseen.

Source: RFC 9293 (https://www.rfc-editor.org/rfc/rfc9293), sections 3.4, 3.5, 3.6, 3.10.7.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from enum import Enum
from typing import NamedTuple

from tracer.replay.packet import ACK, FIN, RST, SYN, Segment

# Bytes that wait in one direction of a connection, and in all: windows are seldom larger.
HOLD_BYTES = 4 << 20
HOLD_TOTAL = 128 << 20
# How long bytes wait for what is missing: senders repeat it sooner.
HOLD_NS = 60 * 10**9
# A piece that waits costs this much besides its bytes.
PIECE_BYTES = 128
MAX_CONNECTIONS = 65_536
# Connections that are over and whose stray segments are known for such.
MAX_ENDED = 16_384

CLIENT, SERVER = 0, 1  # the ends of a connection, and who sent something

_WRAP = 1 << 32
# No window is larger (RFC 7323 section 2.3).
_MAX_WINDOW = 1 << 30
_EVERYTHING = 1 << 80  # behind any place
# How far back what still belongs to a connection that is over may lie.
_STRAY_WINDOW = 1 << 24


class Endpoint(NamedTuple):
    """An address of 4 or 16 bytes, and a port."""

    address: bytes
    port: int


class Opened(NamedTuple):
    """A connection's first bytes are about to come.

    id: from 1, never used again. fresh: its SYN was seen. client_seq, server_seq: sequence
    number of the first byte of each side; where not fresh, of the first that is known.
    Where not fresh, who is the client is a guess: the one with the higher port.
    """

    id: int
    time_ns: int
    family: int
    client: Endpoint
    server: Endpoint
    fresh: bool
    client_seq: int
    server_seq: int


class Arrived(NamedTuple):
    """Bytes of one side, of which the first stands at `seq`.

    sender: CLIENT or SERVER. cut: bytes behind them that went by, but were not captured.
    """

    id: int
    time_ns: int
    sender: int
    seq: int
    data: bytes
    cut: int


class How(Enum):
    """What ended."""

    FIN = "one side sends no more"
    RESET = "the connection was reset"
    CLOSED = "both sides ended it, the capture did, or it was forgotten"


class Ended(NamedTuple):
    """Something ended. sender: who sent the FIN or RST; CLIENT for CLOSED, of no meaning."""

    id: int
    time_ns: int
    sender: int
    how: How


Event = Opened | Arrived | Ended

_Key = tuple[bytes, int, bytes, int]


class _Piece(NamedTuple):
    """Bytes that came at time_ns; at: their place in the stream, which does not wrap."""

    at: int
    data: bytes
    cut: int
    time_ns: int

    @property
    def end(self) -> int:
        return self.at + len(self.data) + self.cut


class _Direction:
    """What one side sent. Places count on without wrapping; -1 is not known.

    first: sequence number of its first byte. next: place of the byte to come out next.
    fin: place behind the last byte. finished: whether that was told. held: what waits, by
    place. sizes: of those, by place. last_ns: the latest time of a segment with bytes.
    """

    __slots__ = ("fin", "finished", "first", "held", "held_bytes", "last_ns", "next", "sizes")

    def __init__(self) -> None:
        self.first = self.next = self.fin = -1
        self.finished = False
        self.held: list[_Piece] = []
        self.held_bytes = 0
        self.sizes: dict[int, int] = {}
        self.last_ns = -1

    def begin(self, seq: int) -> None:
        """Begin at `seq`; a turn ahead, so that what lies before it is not negative."""
        self.first = seq
        self.next = seq + _WRAP

    def place(self, seq: int) -> int:
        """Return the place of this sequence number that is nearest to what is expected."""
        delta = (seq - self.next) % _WRAP
        return self.next + (delta if delta < _WRAP // 2 else delta - _WRAP)

    def expects(self, seq: int) -> bool:
        """Whether bytes there can be of this stream: new, or repeated."""
        return self.next < 0 or abs(self.place(seq) - self.next) <= _MAX_WINDOW


class _Connection:
    __slots__ = ("disordered", "ends", "family", "fresh", "id", "key", "opened", "sides", "told_ns")

    def __init__(self, number: int, family: int, ends: tuple[Endpoint, Endpoint]) -> None:
        self.id = number
        self.family = family
        self.ends = ends
        self.key: _Key = (*ends[CLIENT], *ends[SERVER])
        self.sides = (_Direction(), _Direction())
        self.fresh = False
        self.opened = False
        self.told_ns = 0  # time of the last bytes that came out
        self.disordered = False


class Streams:
    """All connections of a capture.

    hold_bytes: what may wait in one direction; hold_total: in all; hold_ns: for how long.
    connections, evicted, disordered, missing_bytes, repeated_bytes: counted since the start.
    evicted: forgotten for want of room; disordered: connections whose earlier segments stand
    behind later ones, where that matters; missing_bytes: given up, or not kept by the
    capture; repeated_bytes: seen before, and passed over.
    """

    def __init__(
        self,
        hold_bytes: int = HOLD_BYTES,
        hold_total: int = HOLD_TOTAL,
        hold_ns: int = HOLD_NS,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._hold_bytes = hold_bytes
        self._hold_total = hold_total
        self._hold_ns = hold_ns
        self._max_connections = max_connections
        # By what the client's segments carry; the least recently used first.
        self._live: OrderedDict[_Key, _Connection] = OrderedDict()
        self._ended: OrderedDict[_Key, tuple[int, int]] = OrderedDict()
        # Connections of which something waits, and since when; the first to wait first.
        self._holding: OrderedDict[_Key, int] = OrderedDict()
        self._held_bytes = 0
        self._now = 0
        self._ack = 0
        self._events: list[Event] = []
        self.connections = 0
        self.evicted = 0
        self.disordered = 0
        self.missing_bytes = 0
        self.repeated_bytes = 0

    def take(self, segment: Segment) -> list[Event]:
        """Take the next segment of the capture; returns what follows from it, in order.

        Times of a connection never go back, though those of a capture from several
        interfaces may.
        """
        self._now = max(self._now, segment.time_ns)
        self._ack = segment.ack if segment.flags & ACK else 0
        self._events = []
        connection, sender = self._find(segment)
        if segment.flags & SYN and not segment.flags & RST:
            connection, sender = self._handshake(segment, connection, sender)
        elif connection is None:
            if not (segment.payload or segment.cut) or self._is_stray(segment):
                return self._events
            connection, sender = self._join(segment)
        elif segment.payload and not connection.sides[sender].expects(segment.seq):
            # More went by unseen than its numbers can tell: as good as another connection.
            self._close(connection)
            connection, sender = self._join(segment)
        self._live.move_to_end(connection.key)
        if segment.flags & RST:
            self._reset(connection, sender, segment.seq)
        else:
            self._follow(connection, sender, segment)
        self._relieve()
        return self._events

    def finish(self) -> list[Event]:
        """End all that is open: the capture is over."""
        self._events = []
        for connection in list(self._live.values()):
            self._close(connection)
        return self._events

    # --- which connection

    def _find(self, segment: Segment) -> tuple[_Connection | None, int]:
        connection = self._live.get((segment.src, segment.sport, segment.dst, segment.dport))
        if connection is not None:
            return connection, CLIENT
        back = segment.dst, segment.dport, segment.src, segment.sport
        return self._live.get(back), SERVER

    def _handshake(
        self, segment: Segment, connection: _Connection | None, sender: int
    ) -> tuple[_Connection, int]:
        """Return the connection that a SYN belongs to, which may be a new one."""
        first = (segment.seq + 1) % _WRAP
        reply = bool(segment.flags & ACK)
        if connection is not None:
            side, other = connection.sides[sender], connection.sides[1 - sender]
            if side.first == first:
                return connection, sender  # a repetition
            # An answer may acknowledge data as well (RFC 7413, TCP Fast Open).
            answers = (segment.ack - other.first) % _WRAP < 1 << 16
            if reply and sender == SERVER and side.first < 0 and connection.fresh and answers:
                side.begin(first)
                return connection, sender
            if not connection.fresh and segment.time_ns < max(side.last_ns, other.last_ns):
                self._count_disorder(connection)
            self._close(connection)
        src, dst = Endpoint(segment.src, segment.sport), Endpoint(segment.dst, segment.dport)
        # The one who answers is the server, though the client's SYN was not captured.
        made = self._make(segment.family, (dst, src) if reply else (src, dst))
        made.fresh = True
        if not reply:
            made.sides[CLIENT].begin(first)
            return made, CLIENT
        made.sides[SERVER].begin(first)
        made.sides[CLIENT].begin(segment.ack)
        return made, SERVER

    def _join(self, segment: Segment) -> tuple[_Connection, int]:
        """Begin in the middle of a connection."""
        src, dst = Endpoint(segment.src, segment.sport), Endpoint(segment.dst, segment.dport)
        if segment.sport >= segment.dport:
            return self._make(segment.family, (src, dst)), CLIENT
        return self._make(segment.family, (dst, src)), SERVER

    def _make(self, family: int, ends: tuple[Endpoint, Endpoint]) -> _Connection:
        if len(self._live) >= self._max_connections:
            self._close(next(iter(self._live.values())))
            self.evicted += 1
        self.connections += 1
        made = _Connection(self.connections, family, ends)
        self._live[made.key] = made
        return made

    def _is_stray(self, segment: Segment) -> bool:
        """Whether a segment only repeats what belongs to a connection that is over."""
        here, there = (segment.src, segment.sport), (segment.dst, segment.dport)
        for key, sender in (((*here, *there), CLIENT), ((*there, *here), SERVER)):
            end = self._ended.get(key, (-1, -1))[sender]
            behind = end - segment.seq - len(segment.payload) - segment.cut
            if end >= 0 and behind % _WRAP < _STRAY_WINDOW:
                return True
        return False

    # --- what its segments say

    def _follow(self, connection: _Connection, sender: int, segment: Segment) -> None:
        side, other = connection.sides[sender], connection.sides[1 - sender]
        if segment.flags & ACK:
            if other.next < 0 and connection.fresh:
                other.begin(segment.ack)  # its SYN was not captured
            elif other.next >= 0 and (acked := other.place(segment.ack)) > other.next:
                self._give_up(connection, 1 - sender, acked)
        seq = (segment.seq + (segment.flags & SYN != 0)) % _WRAP
        if segment.payload or segment.cut or segment.flags & FIN:
            if side.next < 0:
                side.begin(seq)
            piece = _Piece(side.place(seq), segment.payload, segment.cut, self._now)
            if segment.payload and segment.time_ns < max(side.last_ns, other.last_ns):
                # Before the first byte known, or what the other side has answered already.
                early = not connection.fresh and piece.at < side.first + _WRAP
                if early or (piece.end > side.next and segment.time_ns < other.last_ns):
                    self._count_disorder(connection)
            if segment.payload:
                side.last_ns = max(side.last_ns, segment.time_ns)
            if segment.flags & FIN and side.fin < 0:
                side.fin = piece.end
            if piece.end <= side.next:
                self.repeated_bytes += piece.end - piece.at
            elif piece.at <= side.next:
                self._deliver(connection, sender, piece)
                self._drain(connection, sender)
            else:
                self._hold(connection, sender, piece)
        self._settle(connection)

    def _count_disorder(self, connection: _Connection) -> None:
        self.disordered += not connection.disordered
        connection.disordered = True

    def _reset(self, connection: _Connection, sender: int, seq: int) -> None:
        """End a connection, unless its RST belongs to another or was made up."""
        side = connection.sides[sender]
        if side.next >= 0 and not -1 <= side.place(seq) - side.next <= _MAX_WINDOW:
            return
        self._close(connection, sender, How.RESET)

    def _settle(self, connection: _Connection) -> None:
        """Tell of sides that have sent their last byte; when both have, it is over."""
        for sender, side in enumerate(connection.sides):
            if 0 <= side.fin <= side.next and not side.finished:
                side.finished = True
                self._tell(connection, sender, How.FIN)
        if connection.sides[CLIENT].finished and connection.sides[SERVER].finished:
            self._close(connection)

    def _close(self, connection: _Connection, sender: int = CLIENT, how: How = How.CLOSED) -> None:
        for each, side in enumerate(connection.sides):
            self._give_up(connection, each, _EVERYTHING)
            if 0 <= side.fin <= side.next and not side.finished:
                self._tell(connection, each, How.FIN)
        if how is How.RESET:
            self._tell(connection, sender, How.RESET)
        self._tell(connection, sender, How.CLOSED)
        del self._live[connection.key]
        client, server = connection.sides
        self._ended.pop(connection.key, None)
        self._ended[connection.key] = _last(client), _last(server)
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def _tell(self, connection: _Connection, sender: int, how: How) -> None:
        # Of a connection that brought no bytes there is nothing to tell.
        if connection.opened:
            self._events.append(Ended(connection.id, self._now, sender, how))

    # --- bytes

    def _deliver(self, connection: _Connection, sender: int, piece: _Piece) -> None:
        """Let out what is new of a piece, all before it having come out or been given up.

        Its time is the piece's own, but not before that of what came out already.
        """
        side = connection.sides[sender]
        seen = side.next - piece.at
        self.repeated_bytes += min(seen, piece.end - piece.at)
        if piece.end <= side.next:
            return
        connection.told_ns = max(connection.told_ns, piece.time_ns)
        self._open(connection)
        data = piece.data[seen:]
        cut = piece.end - side.next - len(data)
        self.missing_bytes += cut
        self._events.append(
            Arrived(connection.id, connection.told_ns, sender, side.next % _WRAP, data, cut)
        )
        side.next = piece.end

    def _open(self, connection: _Connection) -> None:
        if connection.opened:
            return
        connection.opened = True
        # Of a side that was not heard yet, the other's acknowledgement is the best guess.
        first = [side.first if side.first >= 0 else self._ack for side in connection.sides]
        self._events.append(
            Opened(
                connection.id, connection.told_ns, connection.family, *connection.ends,
                connection.fresh, *first,
            )
        )  # fmt: skip

    def _hold(self, connection: _Connection, sender: int, piece: _Piece) -> None:
        side = connection.sides[sender]
        known = side.sizes.get(piece.at, -1)
        if len(piece.data) <= known:
            self.repeated_bytes += len(piece.data)
            return
        if known >= 0:
            # The same bytes and more, as when what was sent in two is sent again in one.
            for index, held in enumerate(side.held):
                if held.at == piece.at:
                    del side.held[index]
                    break
            self._count_held(side, -known - PIECE_BYTES)
            self.repeated_bytes += known
        insort(side.held, piece)
        side.sizes[piece.at] = len(piece.data)
        self._count_held(side, len(piece.data) + PIECE_BYTES)
        self._holding.setdefault(connection.key, self._now)
        while side.held_bytes > self._hold_bytes:
            self._give_up(connection, sender, side.held[0].at + 1)

    def _count_held(self, side: _Direction, amount: int) -> None:
        side.held_bytes += amount
        self._held_bytes += amount

    def _drain(self, connection: _Connection, sender: int) -> None:
        """Let out what waited for nothing but what has come or been given up.

        What was given up is the capture's loss, not the receiver's: so what waited for it
        keeps its own time, while what waited for what came has the time of that.
        """
        side = connection.sides[sender]
        done = 0
        for piece in side.held:
            if piece.at > side.next:
                break
            self._deliver(connection, sender, piece)
            self._count_held(side, -side.sizes.pop(piece.at) - PIECE_BYTES)
            done += 1
        del side.held[:done]
        if done and not any(each.held for each in connection.sides):
            self._holding.pop(connection.key, None)

    def _give_up(self, connection: _Connection, sender: int, before: int) -> None:
        """Wait no longer for what is missing in front of bytes that lie before a place."""
        side = connection.sides[sender]
        while side.held and side.held[0].at < before:
            self._miss(side, side.held[0].at)
            self._drain(connection, sender)
        if side.next < side.fin < before:
            # Nothing follows whose place would tell.
            self._deliver(
                connection, sender, _Piece(side.next, b"", side.fin - side.next, self._now)
            )

    def _miss(self, side: _Direction, until: int) -> None:
        self.missing_bytes += until - side.next
        side.next = until

    def _relieve(self) -> None:
        """Give up what was waited for too long, and make room where too much waits."""
        while self._holding:
            key, since = next(iter(self._holding.items()))
            if self._held_bytes <= self._hold_total and self._now - since <= self._hold_ns:
                return
            connection = self._live[key]
            for sender in (CLIENT, SERVER):
                self._give_up(connection, sender, _EVERYTHING)
            self._settle(connection)


def _last(side: _Direction) -> int:
    """Return the sequence number behind a direction's last byte, its FIN counted; or -1."""
    return (max(side.next, side.fin) + 1) % _WRAP if side.next >= 0 else -1
