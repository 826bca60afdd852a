"""HTTP/2 frames through the engine: blocks as sent, an exchange for each stream, however cut."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hpack
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.host.frames import (
    PREFACE,
    Flag,
    Type,
    data,
    frame,
    goaway,
    headers,
    message,
    ping,
    push_promise,
    reset,
    settings,
    window_update,
)
from tests.host.lib import CLIENT, COMPILERS, SERVER, Outcome, Script, Segment, parsers, text, types

CANCEL, REFUSED_STREAM = 8, 7
REQUEST = [
    (":method", "POST"), (":scheme", "http"), (":path", "/shop.Cart/Add"),
    (":authority", "a.example"), ("content-type", "application/grpc"),
]  # fmt: skip
RESPONSE = [(":status", "200"), ("content-type", "application/grpc")]
LONG = [*REQUEST, ("x-long", "0123456789abcdef" * 100)]

START = Segment(CLIENT, PREFACE + settings())
ANSWER = Segment(SERVER, settings() + settings(ack=True))


@dataclass(frozen=True, slots=True)
class Block:
    """A field block, its fragments joined."""

    stream: int
    response: bool
    fragment: bytes
    end_stream: bool = False
    promise: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """What a stream's record says; sizes in bytes, messages: of the request and the response."""

    stream: int
    sizes: tuple[int, int] = (0, 0)
    messages: tuple[int, int] = (0, 0)
    end: str = "RESPONSE"
    code: int = 0
    flags: frozenset[str] = frozenset()


def told(outcome: Outcome) -> list[Block | Done]:
    """What records say, in their order; a block stands where its last fragment did."""
    names = types()
    found: list[Block | Done] = []
    open_blocks: dict[bool, bytes] = {}
    for record in outcome.records:
        flags = {flag.name for flag in names.flag if record["flags"] & flag}
        if record["kind"] == names.record_kind["BLOCK"]:
            response = "RESPONSE" in flags
            joined = open_blocks.pop(response, b"") + text(record, "BLOCK")
            if "MORE" in flags:
                open_blocks[response] = joined
                continue
            assert "BROKEN" not in flags
            stream = int(record["stream_id"])
            ended, promise = "END_STREAM" in flags, "SPANLESS" in flags
            found.append(Block(stream, response, joined, ended, promise))
        elif record["kind"] == names.record_kind["EXCHANGE"]:
            if record["protocol"] == names.protocol["HTTP2"]:
                found.append(done_of(record, frozenset(flags)))
    return found


def done_of(record: Any, flags: frozenset[str]) -> Done:
    assert record["version"] == 20
    assert 0 < record["start_ns"] <= record["end_ns"]
    for time in ("request_end_ns", "first_byte_ns"):
        assert not record[time] or record["start_ns"] <= record[time] <= record["end_ns"]
    return Done(
        stream=int(record["stream_id"]),
        sizes=(int(record["request_body_bytes"]), int(record["response_body_bytes"])),
        messages=(int(record["request_messages"]), int(record["response_messages"])),
        end=types().end(record["end"]).name,
        code=int(record["code"]),
        flags=flags,
    )


def run(segments: Sequence[Segment], **options: Any) -> Outcome:
    return parsers().run(Script.of(segments), **options)


def blocks(outcome: Outcome, response: bool) -> list[bytes]:
    rows = [row for row in told(outcome) if isinstance(row, Block)]
    return [row.fragment for row in rows if row.response == response]


def exchanges(outcome: Outcome) -> list[Done]:
    return [row for row in told(outcome) if isinstance(row, Done)]


def call(stream: int, encoders: tuple[hpack.Encoder, hpack.Encoder]) -> list[Segment]:
    """A unary call of gRPC."""
    request, response = encoders
    return [
        Segment(
            CLIENT,
            headers(stream, request.encode(REQUEST)) + data(stream, message(b"x" * 40), end=True),
        ),
        Segment(
            SERVER,
            headers(stream, response.encode(RESPONSE))
            + data(stream, message(b"y" * 300))
            + headers(stream, response.encode([("grpc-status", "0")]), end=True),
        ),
    ]


def many(count: int = 100, seed: str = "many") -> list[Segment]:
    """As many streams at once, their frames mixed."""
    rng = random.Random(seed)
    request, response = hpack.Encoder(), hpack.Encoder()
    segments = [START, ANSWER]
    to_answer: list[int] = []
    asked = 0
    while asked < count or to_answer:
        if asked < count and rng.random() < 0.6:
            stream = 2 * asked + 1
            asked += 1
            made = headers(stream, request.encode([*REQUEST, ("x-number", str(stream))]))
            content = message(b"q" * stream)
            half = len(content) // 2
            made += data(stream, content[:half], padding=rng.choice((None, 0, 9)))
            made += ping() + data(stream, content[half:], end=True)
            segments.append(Segment(CLIENT, made))
            to_answer.append(stream)
        elif to_answer:
            first = to_answer.pop(rng.randrange(len(to_answer)))
            made = headers(first, response.encode(RESPONSE)) + data(first, message(b"a") * 3)
            made += window_update(0)
            made += headers(first, response.encode([("grpc-status", "0")]), end=True)
            segments.append(Segment(SERVER, made))
    return segments


def scenarios() -> dict[str, tuple[list[Segment], list[Done]]]:
    """Connections by name, and what their streams come to, in order."""
    coders = hpack.Encoder(), hpack.Encoder()
    head, answer = hpack.Encoder().encode(REQUEST), hpack.Encoder().encode(RESPONSE)
    long = hpack.Encoder().encode(LONG)
    interim = hpack.Encoder().encode([(":status", "103"), ("link", "</a>")])
    trailer = hpack.Encoder().encode([("grpc-status", "0")])
    ask = headers(1, head, end=True)
    opened = [START, ANSWER]

    def asked(*made: bytes) -> Segment:
        return Segment(CLIENT, b"".join(made))

    def told_by(*made: bytes) -> Segment:
        return Segment(SERVER, b"".join(made))

    return {
        "unary": (
            [*opened, *call(1, coders), *call(3, coders)],
            [Done(1, (45, 305), (1, 1)), Done(3, (45, 305), (1, 1))],
        ),
        "many": (many(), []),
        "padding": (
            [
                *opened,
                asked(headers(1, head, padding=200), data(1, b"\2" * 10, padding=255, end=True)),
                told_by(headers(1, answer, padding=0), data(1, b"\2abc", padding=0, end=True)),
            ],
            [Done(1, (10, 4))],
        ),
        "padding alone": (
            [*opened, asked(ask), told_by(headers(1, answer), data(1, b"", end=True, padding=7))],
            [Done(1)],
        ),
        "continuation": (
            [
                *opened,
                asked(headers(1, long, end=True, pieces=5, priority=True, padding=3)),
                told_by(headers(1, answer, pieces=3, end=True)),
            ],
            [Done(1)],
        ),
        "empty continuation": (
            [
                *opened,
                asked(
                    frame(Type.HEADERS, Flag.END_STREAM, 1, head),
                    frame(Type.CONTINUATION, Flag.END_HEADERS, 1),
                ),
                told_by(headers(1, answer, end=True)),
            ],
            [Done(1)],
        ),
        "trailers both ways": (
            [
                *opened,
                asked(headers(1, head), data(1, message(b"")), headers(1, trailer, end=True)),
                told_by(headers(1, answer), headers(1, trailer, end=True)),
            ],
            [Done(1, (5, 0), (1, 0))],
        ),
        "interim": (
            [
                *opened,
                asked(ask),
                told_by(headers(1, interim)),
                told_by(headers(1, answer), data(1, b"", end=True)),
            ],
            [Done(1)],
        ),
        "push": (
            [
                *opened,
                asked(ask),
                told_by(push_promise(1, 2, head, padding=4), headers(1, answer, end=True)),
                told_by(headers(2, answer), data(2, b"pushed", end=True)),
            ],
            [Done(1)],
        ),
        "reset by the client": (
            [
                *opened,
                asked(headers(1, head)),
                told_by(headers(1, answer)),
                asked(reset(1, CANCEL)),
            ],
            [Done(1, end="RESET", code=CANCEL)],
        ),
        "reset by the server": (
            [*opened, asked(headers(1, head)), told_by(reset(1, REFUSED_STREAM))],
            [Done(1, end="RESET", code=REFUSED_STREAM, flags=frozenset({"RESPONSE"}))],
        ),
        "early": (
            [*opened, asked(headers(1, head)), told_by(headers(1, answer, end=True))],
            [Done(1, flags=frozenset({"EARLY"}))],
        ),
        "messages over frames": (
            [
                *opened,
                asked(
                    headers(1, head), *[data(1, message(b"abc")[at : at + 1]) for at in range(8)]
                ),
                asked(data(1, message(b"de", compressed=True) * 2), data(1, b"", end=True)),
                told_by(headers(1, answer), data(1, message(b"z" * 9000)[:5000])),
                told_by(data(1, message(b"z" * 9000)[5000:] + message(b"")[:3]), reset(1, 2)),
            ],
            [Done(1, (22, 9008), (3, 1), "RESET", 2, frozenset({"RESPONSE"}))],
        ),
        "other frames": (
            [
                *opened,
                asked(frame(Type.PRIORITY, 0, 1, bytes(5)), ask, frame(0x77, 0xFF, 9, b"new" * 30)),
                told_by(goaway(1, 0, b"good bye"), ping(), headers(1, answer, end=True)),
            ],
            [Done(1)],
        ),
        "closed": (
            [
                *opened,
                asked(headers(1, head)),
                asked(headers(3, head)),
                Segment(SERVER, close=True),
            ],
            [],
        ),
    }


SCENARIOS = scenarios()


def cuts_of(size: int, seed: str) -> list[NDArray[np.int64]]:
    rng = random.Random(seed)
    some = [sorted(rng.sample(range(size), max(1, int(size * s)))) for s in (0.002, 0.02, 0.1, 0.5)]
    ones = [[place] for place in rng.sample(range(size), min(size, 30))]
    return [np.array(cut, np.int64) for cut in [list(range(size)), *some, *ones]]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_exchanges(name: str, compiler: str) -> None:
    segments, expected = SCENARIOS[name]
    outcome = parsers(compiler).run(Script.of(segments))
    assert (outcome.request, outcome.response, outcome.protocol) == ("WELL", "WELL", "HTTP2")
    assert outcome.in_flight == 0
    if expected:
        assert exchanges(outcome) == expected


@pytest.mark.parametrize("name", SCENARIOS)
def test_cuts_and_windows_change_nothing(name: str) -> None:
    script = Script.of(SCENARIOS[name][0])
    whole = told(parsers().run(script))
    assert whole
    for cuts in cuts_of(len(script.data), name):
        assert told(parsers().run(script.cut(cuts))) == whole, cuts
    for window in (24, 25, 64, 300):
        assert told(parsers().run(script, window=window)) == whole, window


def test_blocks_come_as_they_were_sent() -> None:
    segments, _ = SCENARIOS["continuation"]
    asked, told_back = hpack.Encoder().encode(LONG), hpack.Encoder().encode(RESPONSE)
    assert told(run(segments))[:2] == [
        Block(1, False, asked, end_stream=True),
        Block(1, True, told_back, end_stream=True),
    ]
    promised = told(run(SCENARIOS["push"][0]))[1]
    assert promised == Block(1, True, hpack.Encoder().encode(REQUEST), promise=True)


def names_of(decoder: hpack.Decoder, block: bytes) -> dict[str, str]:
    return {str(name): str(value) for name, value in decoder.decode(block)}


def test_streams_that_are_mixed() -> None:
    outcome = run(many())
    request, response = hpack.Decoder(), hpack.Decoder()
    asked = [names_of(request, block) for block in blocks(outcome, False)]
    assert [fields["x-number"] for fields in asked] == [str(2 * at + 1) for at in range(100)]
    answered = [names_of(response, block) for block in blocks(outcome, True)]
    assert answered == [dict(RESPONSE), {"grpc-status": "0"}] * 100
    found = exchanges(outcome)
    assert sorted(row.stream for row in found) == [2 * at + 1 for at in range(100)]
    for row in found:
        assert row == Done(row.stream, (row.stream + 5, 18), (1, 3))


@pytest.mark.parametrize(("role", "end"), [("CLIENT", "PEER"), ("SERVER", "LOCAL")])
def test_a_close_ends_every_stream(role: str, end: str) -> None:
    found = exchanges(run(SCENARIOS["closed"][0], role=role))
    assert sorted((row.stream, row.end) for row in found) == [(1, end), (3, end)]


@pytest.mark.parametrize("at", range(1, len(PREFACE)))
def test_the_preface_may_be_cut(at: int) -> None:
    segments, expected = SCENARIOS["unary"]
    first = segments[0].data
    parts = [Segment(CLIENT, first[:at]), Segment(CLIENT, first[at:])]
    assert exchanges(run([*parts, *segments[1:]])) == expected


def test_the_server_may_speak_before_the_client_has() -> None:
    segments, expected = SCENARIOS["unary"]
    assert exchanges(run([segments[0], *segments[2:]])) == expected


@pytest.mark.parametrize("together", [False, True])
def test_upgrade_from_http1(together: bool) -> None:
    coders = hpack.Encoder(), hpack.Encoder()
    answer = headers(1, coders[1].encode(RESPONSE), end=True)
    switching = b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    answers = [switching, settings() + answer]
    segments = [
        Segment(
            CLIENT, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        ),
        *([Segment(SERVER, b"".join(answers))] if together else map(server, answers)),
        START,
        *call(3, coders),
    ]
    outcome = run(segments)
    assert exchanges(outcome)[-1:] == [Done(3, (45, 305), (1, 1))]
    first = outcome.records[outcome.records["kind"] == types().record_kind["EXCHANGE"]][0]
    assert (first["protocol"], first["status"]) == (types().protocol["HTTP1"], 101)


def server(made: bytes) -> Segment:
    return Segment(SERVER, made)


def test_a_connection_older_than_the_tracer() -> None:
    coders = hpack.Encoder(), hpack.Encoder()
    call(1, coders)  # what the tables of HPACK hold already
    found = exchanges(run([*call(3, coders), *call(5, coders)], old=True, resync=True))
    assert [(row.stream, row.flags) for row in found][-1] == (5, frozenset({"OLD"}))
    assert all("OLD" in row.flags for row in found)


# grpcio on a connection in use: nine fields in as many bytes, the first two from before.
INDEXED = b"\xc5\xc4\x83\x86\xc3\xc2\xc1\xbe\xbf"


@pytest.mark.parametrize(
    "block",
    [INDEXED, b"\xff\x02\xc4\x83\x86", b"\x20\x3f\xe1\x1f\xc5\x86\x83"],
    ids=["grpcio", "long-index", "table-size"],
)
@pytest.mark.parametrize("piece", [0, 9, 23])
def test_an_older_connection_whose_first_fields_are_not_known(block: bytes, piece: int) -> None:
    """Its first request counts, for a field that is known tells who sent the block."""
    asked = [
        frame(Type.HEADERS, Flag.END_HEADERS, 7, block),
        frame(Type.WINDOW_UPDATE, 0, 7, bytes([0, 0, 0, 5])),
        frame(Type.DATA, Flag.END_STREAM, 7, bytes(5)),
    ]
    answer = [
        frame(Type.HEADERS, Flag.END_HEADERS, 7, b"\x88\xc0\xbf"),
        frame(Type.DATA, 0, 7, bytes(5)),
        frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, 7, b"\xbe"),
    ]
    sent = b"".join(asked)
    assert parsers().detect(sent[: piece or None], len(sent), False)[1] in ("REQUEST", "MORE")
    segments = [
        Segment(CLIENT, ping()),
        Segment(SERVER, frame(Type.PING, Flag.ACK, 0, bytes(8))),
        Segment(CLIENT, sent),
        Segment(SERVER, b"".join(answer)),
    ]
    found = exchanges(run(segments, old=True, resync=True, window=piece and 64))
    assert [(row.stream, row.flags) for row in found] == [(7, frozenset({"OLD"}))]


def test_who_sent_a_block_without_known_fields_stays_open() -> None:
    """Trailers may begin as a request does."""
    for block in (b"\xbe", b"\xbe\x00\x01a\x01b", b"\xc5\xc4\xc3", b"\xff\x02"):
        made = frame(Type.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, 7, block) + bytes(24)
        assert parsers().detect(made, len(made), False) == ("UNKNOWN", "NO"), block


def test_bytes_that_are_no_frames_are_never_taken_for_an_older_connection() -> None:
    rng = random.Random("noise")
    for _ in range(500):
        rows = [Segment(at % 2 == 1, rng.randbytes(rng.randrange(1, 200))) for at in range(4)]
        assert not exchanges(run(rows, old=True, resync=True))


HEAD = hpack.Encoder().encode(REQUEST)
INVALID = {
    "settings on a stream": frame(Type.SETTINGS, 0, 1, bytes(6)),
    "ping of seven bytes": frame(Type.PING, 0, 0, bytes(7)),
    "data without a stream": frame(Type.DATA, 0, 0, b"x"),
    "headers without a stream": frame(Type.HEADERS, Flag.END_HEADERS, 0, HEAD),
    "continuation of nothing": frame(Type.CONTINUATION, Flag.END_HEADERS, 1, HEAD),
    "a frame within a block": frame(Type.HEADERS, 0, 3, HEAD) + ping(),
    "continuation of another stream": frame(Type.HEADERS, 0, 3, HEAD)
    + frame(Type.CONTINUATION, Flag.END_HEADERS, 5),
    "more padding than payload": frame(Type.DATA, Flag.PADDED, 1, b"\x09abc"),
    "no room for the length of the padding": frame(Type.DATA, Flag.PADDED, 1),
    "no room for the priority": frame(Type.HEADERS, Flag.PRIORITY | Flag.END_HEADERS, 3, b"abc"),
    "reset of three bytes": frame(Type.RST_STREAM, 0, 1, bytes(3)),
    "window update of five bytes": frame(Type.WINDOW_UPDATE, 0, 0, bytes(5)),
    "goaway of four bytes": frame(Type.GOAWAY, 0, 0, bytes(4)),
}


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("sender", [CLIENT, SERVER], ids=["client", "server"])
def test_invalid_frames(name: str, sender: bool) -> None:
    """One direction is refused by name; streams that were open end, for nobody knows how."""
    segments = [START, ANSWER, Segment(CLIENT, headers(1, HEAD)), Segment(sender, INVALID[name])]
    script = Script.of(segments)
    outcome = parsers().run(script)
    refused = outcome.response if sender else outcome.request
    assert refused == "INVALID"
    assert (1, "GAP") in [(row.stream, row.end) for row in exchanges(outcome)]
    assert outcome.in_flight == 0
    size = len(script.data)
    for cut in range(size - len(INVALID[name]), size):
        again = parsers().run(script.cut(np.array([cut], np.int64)))
        assert exchanges(again) == exchanges(outcome), cut
