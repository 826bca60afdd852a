"""Responses to requests that found no room are framed as well as any: what follows stays paired.

Their record is one that all connections share, so two of them take turns here.
"""

from __future__ import annotations

from tracer.installed import OBJECT
from tracer.kernel.layout import load_layout
from tracer.replay.engine import Engine

ROOM = 1024  # requests in flight: MAX_PIPELINED of ebpf/exchange.bpf.h
MORE = 8
LOOPBACK = b"\x7f\0\0\1"
TURN = 20  # bytes: a status line and a little more


class Conversation:
    """One connection as its client sees it."""

    def __init__(self, engine: Engine, number: int) -> None:
        self._engine, self._number, self._sent = engine, number, [0, 0]
        ends = (LOOPBACK, 1000 + number), (LOOPBACK, 80)
        assert engine.open(number, 2, *ends, (0, 0), True)

    def moves(self, tx: bool, data: bytes, at_ns: int) -> None:
        self._engine.bytes(self._number, tx, self._sent[tx], at_ns, data, len(data))
        self._sent[tx] += len(data)


def requests(method: bytes, first: int, count: int) -> bytes:
    return b"".join(b"%s /%d HTTP/1.1\r\n\r\n" % (method, first + n) for n in range(count))


def responses(status: bytes, content: bytes, count: int) -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(content))
    return (head + content) * count


def turns(*sides: tuple[Conversation, bytes], at_ns: int) -> None:
    """Have each receive a piece of its bytes in turn."""
    for at in range(0, max(len(data) for _, data in sides), TURN):
        for conversation, data in sides:
            if at < len(data):
                conversation.moves(False, data[at : at + TURN], at_ns)


def test_responses_without_a_record_are_framed() -> None:
    engine = Engine(load_layout(OBJECT))
    gets, heads = Conversation(engine, 1), Conversation(engine, 2)
    gets.moves(True, requests(b"GET", 0, ROOM + MORE), 10)
    heads.moves(True, requests(b"HEAD", 0, ROOM + MORE), 10)
    assert engine.losses()["pipeline_full"] == 2 * MORE
    # Without its request nobody can tell that a response to HEAD has no content: it says so.
    turns(
        (gets, responses(b"200 OK", b"abc", ROOM + MORE)),
        (heads, responses(b"404 Not Found", b"", ROOM) + responses(b"204 None", b"", MORE)),
        at_ns=20,
    )
    for conversation in (gets, heads):
        conversation.moves(True, requests(b"GET", ROOM + MORE, 1), 30)
        conversation.moves(False, responses(b"201 Created", b"abcd", 1), 40)
    room = engine.room(4 * ROOM)
    records = room[: engine.take(room)]
    lost = {name: number for name, number in engine.losses().items() if number}
    assert lost == {"pipeline_full": 2 * MORE}
    for number, status, content in ((1, 200, 3), (2, 404, 0)):
        own = records[records["local_port"] == 1000 + number]
        told = list(zip(own["status"], own["response_body_bytes"], own["end_ns"], strict=True))
        assert told == [(status, content, 20)] * ROOM + [(201, 4, 40)]
