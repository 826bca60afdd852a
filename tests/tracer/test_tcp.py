"""TCP streams out of segments: whatever happened on the way, the same bytes come out."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from tests.tracer.captures import START_NS, conversation, segment
from tracer.replay import tcp
from tracer.replay.packet import ACK, FIN, RST, SYN, Segment
from tracer.replay.tcp import CLIENT, SERVER, Arrived, Ended, Event, How, Opened, Streams

REQUEST, RESPONSE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\nhello"
TURNS = [(CLIENT, REQUEST), (SERVER, RESPONSE)]


def events(segments: Iterable[Segment], streams: Streams | None = None) -> list[Event]:
    streams = streams or Streams()
    found = [event for each in segments for event in streams.take(each)]
    found += streams.finish()
    assert streams._held_bytes == 0
    assert not streams._holding
    assert not streams._live
    check(found)
    return found


def check(found: list[Event]) -> None:
    """What holds for all events: times go on; first open, then bytes in order, then closed."""
    assert [e.time_ns for e in found] == sorted(e.time_ns for e in found)
    behind: dict[tuple[int, int], int] = {}
    live: dict[int, Opened] = {}
    for event in found:
        if isinstance(event, Opened):
            assert event.id not in live
            live[event.id] = event
            continue
        assert event.id in live
        if isinstance(event, Arrived):
            assert event.data or event.cut
            key = event.id, event.sender
            if key in behind:
                assert (event.seq - behind[key]) % 2**32 < 2**31
            behind[key] = (event.seq + len(event.data) + event.cut) % 2**32
        elif event.how is How.CLOSED:
            del live[event.id]
    assert not live


def text(found: list[Event], sender: int, number: int = 1) -> bytes:
    return b"".join(
        e.data for e in found if isinstance(e, Arrived) and (e.id, e.sender) == (number, sender)
    )


def ends(found: list[Event]) -> list[tuple[int, How]]:
    return [(e.sender, e.how) for e in found if isinstance(e, Ended)]


def test_a_whole_connection() -> None:
    found = events(conversation(TURNS, 1000, 5000))
    opened = found[0]
    assert isinstance(opened, Opened)
    assert opened.fresh
    assert (opened.client_seq, opened.server_seq) == (1001, 5001)
    assert (opened.client.port, opened.server.port) == (40_000, 80)
    assert [type(e) for e in found] == [Opened, Arrived, Arrived, Ended, Ended, Ended]
    assert found[1] == Arrived(1, START_NS + 3_000_000, CLIENT, 1001, REQUEST, 0)
    assert found[2] == Arrived(1, START_NS + 5_000_000, SERVER, 5001, RESPONSE, 0)
    assert ends(found) == [(CLIENT, How.FIN), (SERVER, How.FIN), (CLIENT, How.CLOSED)]


def test_an_answer_opens_a_connection_too() -> None:
    whole = conversation(TURNS)
    for missing in (whole[1:], [whole[0], *whole[2:]], [whole[0], *whole[3:]]):
        opened = events(missing)[0]
        assert isinstance(opened, Opened)
        assert opened.fresh
        assert (opened.client_seq, opened.server_seq) == (1001, 5001)


def test_a_connection_from_its_middle() -> None:
    whole = conversation(TURNS)
    found = events(whole[3:])
    opened = found[0]
    assert isinstance(opened, Opened)
    assert not opened.fresh
    # What the client acknowledges is what the server sends next.
    assert (opened.client_seq, opened.server_seq) == (1001, 5001)
    assert text(found, CLIENT) + text(found, SERVER) == REQUEST + RESPONSE
    found = events(whole[5:])
    opened = found[0]
    assert isinstance(opened, Opened)
    assert opened.server.port == 80  # the lower port
    assert (text(found, CLIENT), text(found, SERVER)) == (b"", RESPONSE)


def test_repetitions_overlaps_and_keep_alives_say_nothing_new() -> None:
    found = events(
        [
            segment(0, 10, b"abcdef", ack=50),
            segment(0, 10, b"abc", ack=50),  # again, in part
            segment(0, 13, b"defghi", ack=50),  # again, and more
            segment(0, 18, b"?", ack=50),  # a keep-alive with its byte of nothing
            segment(0, 18, ack=50),
            segment(0, 8, b"??ABCDEFGHIjk", ack=50),  # from before to beyond
        ]
    )
    assert text(found, CLIENT) == b"abcdefghijk"


def test_a_byte_comes_when_all_before_it_have() -> None:
    streams = Streams()
    first = streams.take(segment(0, 10, b"ab", time_ns=1))
    assert [type(e) for e in first] == [Opened, Arrived]
    assert streams.take(segment(0, 14, b"ef", time_ns=2)) == []
    assert streams.take(segment(0, 13, b"def", time_ns=3)) == []
    assert streams.take(segment(0, 12, b"c", time_ns=4)) == [
        Arrived(1, 4, CLIENT, 12, b"c", 0),
        Arrived(1, 4, CLIENT, 13, b"def", 0),
    ]
    assert streams.missing_bytes == 0


def test_what_the_receiver_acknowledged_is_not_waited_for() -> None:
    streams = Streams()
    streams.take(segment(1, 500, b"x", time_ns=1))
    streams.take(segment(0, 10, b"ab", time_ns=2))
    assert streams.take(segment(0, 20, b"cd", time_ns=3)) == []
    assert streams.take(segment(1, 501, ack=12, time_ns=4)) == []
    assert streams.take(segment(1, 501, ack=22, time_ns=5)) == [Arrived(1, 3, CLIENT, 20, b"cd", 0)]
    assert streams.missing_bytes == 8


def test_what_the_capture_left_out_goes_by_at_once() -> None:
    streams = Streams()
    found = streams.take(segment(0, 10, b"ab", cut=8, time_ns=1))
    assert found[1:] == [Arrived(1, 1, CLIENT, 10, b"ab", 8)]
    assert streams.take(segment(0, 20, b"cd", time_ns=2)) == [Arrived(1, 2, CLIENT, 20, b"cd", 0)]
    # Again, but longer: only what is behind is new.
    again = streams.take(segment(0, 10, b"ab", cut=20, time_ns=3))
    assert again == [Arrived(1, 3, CLIENT, 22, b"", 10)]
    assert streams.missing_bytes == 18


def test_a_hold_that_is_full_gives_up_what_is_missing() -> None:
    streams = Streams(hold_bytes=4 * (100 + tcp.PIECE_BYTES))
    streams.take(segment(0, 10, b"a"))
    pieces = [segment(0, 100 + 100 * n, bytes([n]) * 100) for n in range(5)]
    assert [streams.take(piece) for piece in pieces[:4]] == [[]] * 4
    assert len(streams.take(pieces[4])) == 5
    assert streams.missing_bytes == 89


def test_connections_that_wait_do_not_take_all_the_room() -> None:
    streams = Streams(hold_total=10 * (100 + tcp.PIECE_BYTES), hold_ns=1000)
    for port in range(1000, 1030):
        streams.take(segment(0, 10, b"a", port=port, time_ns=1))
        streams.take(segment(0, 50, b"b" * 100, port=port, time_ns=1))
        assert streams._held_bytes <= 10 * (100 + tcp.PIECE_BYTES)
    found = streams.take(segment(0, 10, b"a", port=999, time_ns=1002))
    assert sum(isinstance(e, Arrived) for e in found) == 11
    assert streams._held_bytes == 0


def test_the_least_used_connection_makes_room() -> None:
    streams = Streams(max_connections=2)
    streams.take(segment(0, 10, b"a", port=1001))
    streams.take(segment(0, 10, b"a", port=1002))
    streams.take(segment(0, 11, b"b", port=1001))
    found = streams.take(segment(0, 10, b"a", port=1003))
    assert found[0] == Ended(2, START_NS, CLIENT, How.CLOSED)
    assert streams.evicted == 1


@pytest.mark.parametrize("start", [2**32 - 5, 2**32 - 1, 0, 2**31 - 5])
def test_sequence_numbers_wrap(start: int) -> None:
    whole = conversation(
        [(CLIENT, b"abcdefgh" * 4), (SERVER, b"01234567" * 4)], start, start, mss=3
    )
    found = events(whole)
    assert text(found, CLIENT) == b"abcdefgh" * 4
    assert text(found, SERVER) == b"01234567" * 4
    assert all(0 <= e.seq < 2**32 for e in found if isinstance(e, Arrived))
    assert ends(found)[-1] == (CLIENT, How.CLOSED)


def test_a_reset_ends_at_once_and_lets_out_what_waited() -> None:
    whole = conversation(TURNS, ending=False)
    found = events([*whole, segment(0, 1100, b"late"), segment(1, 5001 + len(RESPONSE), flags=RST)])
    assert text(found, CLIENT) == REQUEST + b"late"
    assert ends(found) == [(SERVER, How.RESET), (SERVER, How.CLOSED)]


def test_a_reset_out_of_the_window_is_ignored() -> None:
    whole = conversation(TURNS)
    forged = segment(1, 5001 - 100_000, flags=RST)
    assert ends(events([*whole[:5], forged, *whole[5:]]))[0] == (CLIENT, How.FIN)


def test_what_ends_a_connection_may_come_again() -> None:
    whole = conversation(TURNS)
    streams = Streams()
    again = [whole[-3], whole[-2], whole[3], segment(0, 1000 + len(REQUEST), b"\n"), whole[5]]
    found = events([*whole, *again], streams)
    assert ends(found)[-1] == (CLIENT, How.CLOSED)
    assert streams.connections == 1


def test_a_half_closed_connection_goes_on() -> None:
    end = 1001 + len(REQUEST)
    found = events(
        [
            *conversation([(CLIENT, REQUEST)], ending=False),
            segment(0, end, flags=FIN | ACK, ack=5001),
            segment(1, 5001, RESPONSE, ack=end + 1),
            segment(1, 5001 + len(RESPONSE), b"!", flags=FIN | ACK, ack=end + 1),
        ]
    )
    assert text(found, SERVER) == RESPONSE + b"!"
    assert ends(found) == [(CLIENT, How.FIN), (SERVER, How.FIN), (CLIENT, How.CLOSED)]


def test_a_fin_waits_for_the_bytes_before_it() -> None:
    whole = conversation([(CLIENT, b"abc"), (CLIENT, b"def")])
    late = whole.pop(3)
    fin = next(n for n, s in enumerate(whole) if s.flags & FIN)
    streams = Streams()
    found = [e for s in [*whole[:3], whole[4], whole[fin]] for e in streams.take(s)]
    assert found == []
    found = streams.take(late)
    assert [type(e) for e in found] == [Opened, Arrived, Arrived, Ended]


def test_ports_are_used_again() -> None:
    first, second = conversation(TURNS, 1000, 5000), conversation(TURNS, 77_000, 88_000)
    later = [s._replace(time_ns=s.time_ns + 10**10) for s in second]
    for cut in (len(first), len(first) - 1, len(first) - 3, 6, 2):
        streams = Streams()
        found = events([*first[:cut], *later], streams)
        assert streams.connections == 2
        assert text(found, SERVER, 2) == RESPONSE
        opened = [e for e in found if isinstance(e, Opened)][-1]
        assert opened.fresh
        assert (opened.client_seq, opened.server_seq) == (77_001, 88_001)


def test_data_on_the_first_segment() -> None:
    found = events(
        [
            segment(0, 9, b"early", flags=SYN),
            segment(1, 49, flags=SYN | ACK, ack=15),
            segment(0, 15, b" late", flags=ACK, ack=50),
            segment(1, 50, b"yes", flags=ACK, ack=20),
        ]
    )
    assert text(found, CLIENT) == b"early late"
    assert text(found, SERVER) == b"yes"
    assert [e.seq for e in found if isinstance(e, Arrived)] == [10, 15, 50]


def test_connections_without_bytes_are_not_told_of() -> None:
    assert events(conversation([])) == []
    assert events([segment(0, 9, flags=SYN), segment(1, 0, flags=RST | ACK, ack=10)]) == []
    assert events([segment(0, 9), segment(1, 7, flags=FIN | ACK), segment(0, 9, flags=RST)]) == []


def test_times_never_go_back() -> None:
    found = events(s._replace(time_ns=5 - n) for n, s in enumerate(conversation(TURNS)))
    assert {e.time_ns for e in found} == {5}


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[bytes, list[Segment]]:
    """A direction's bytes, and segments that bring all of them, in disorder and repeated."""
    data = draw(st.binary(min_size=1, max_size=300))
    start = draw(st.sampled_from([1000, 2**32 - 100, 2**32 - 1, 2**31 - 50]))
    at, pieces = 0, []
    while at < len(data):
        size = draw(st.integers(1, 60))
        pieces.append((at, min(at + size, len(data))))
        at += size
    for _ in range(draw(st.integers(0, 8))):
        begin = draw(st.integers(0, len(data) - 1))
        pieces.append((begin, min(begin + draw(st.integers(1, 80)), len(data))))
    order = draw(st.permutations(pieces))
    segments = [segment(0, start + 1 + begin, data[begin:end]) for begin, end in order]
    opening = [
        segment(0, start, flags=SYN),
        segment(1, 9, flags=SYN | ACK, ack=(start + 1) % 2**32),
    ]
    closing = segment(0, start + 1 + len(data), flags=FIN | ACK)
    position = draw(st.integers(0, len(segments)))
    segments.insert(position, closing)
    return data, [*opening, *segments]


@settings(max_examples=400, deadline=None)
@given(deliveries())
def test_any_order_any_cuts_any_repetitions(made: tuple[bytes, list[Segment]]) -> None:
    data, segments = made
    streams = Streams()
    found = events(segments, streams)
    assert text(found, CLIENT) == data
    assert streams.missing_bytes == 0
    assert ends(found) == [(CLIENT, How.FIN), (CLIENT, How.CLOSED)]


@settings(max_examples=300, deadline=None)
@given(
    deliveries(),
    st.sets(st.integers(2, 30)),
    st.integers(0, 3 * tcp.PIECE_BYTES),
)
def test_what_is_missing_is_skipped_and_the_rest_comes(
    made: tuple[bytes, list[Segment]], lost: set[int], hold_bytes: int
) -> None:
    data, segments = made
    kept = [s for n, s in enumerate(segments) if n not in lost]
    first = (segments[0].seq + 1) % 2**32
    streams = Streams(hold_bytes=hold_bytes)
    found = events(kept, streams)
    arrived = [e for e in found if isinstance(e, Arrived)]
    for event in arrived:
        at = (event.seq - first) % 2**32
        assert event.data == data[at : at + len(event.data)]
    sent = {(s.seq - first) % 2**32 + n for s in kept[2:] for n in range(len(s.payload))}
    total = sum(len(e.data) for e in arrived)
    assert total <= len(sent)
    if hold_bytes == 0:
        return
    assert total + streams.missing_bytes <= len(data)


def test_a_stream_that_jumps_is_begun_anew() -> None:
    streams = Streams()
    found = events(
        [segment(0, 10, b"a"), segment(0, 2**31 + 5, b"b"), segment(0, 12, b"c")], streams
    )
    assert [e.id for e in found if isinstance(e, Opened)] == [1, 2, 3]


# Shrinking forty segments takes minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)

RANDOM_SEGMENTS = st.lists(
    st.builds(
        segment,
        st.integers(0, 1),
        st.one_of(st.integers(0, 60), st.integers(0, 2**32 - 1)),
        st.binary(max_size=20),
        st.sampled_from([0, ACK, SYN, SYN | ACK, FIN | ACK, RST, RST | ACK, SYN | FIN, 255]),
        st.one_of(st.integers(0, 60), st.integers(0, 2**32 - 1)),
        cut=st.integers(0, 5),
        port=st.integers(79, 82),
    ),
    max_size=40,
)


@settings(max_examples=500, deadline=None, phases=PHASES)
@given(RANDOM_SEGMENTS, st.integers(0, 400), st.integers(1, 3))
@example([segment(0, 0, b"a", flags=255)], 0, 1)
def test_no_segments_confuse_it(segments: list[Segment], hold: int, connections: int) -> None:
    streams = Streams(hold, hold * 2, max_connections=connections)
    found = [e for s in segments for e in streams.take(s)]
    assert streams._held_bytes <= hold * 2
    found += streams.finish()
    assert streams._held_bytes == 0
    assert not streams._holding
    check(found)
