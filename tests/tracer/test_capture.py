"""Capture files and packets: every format and link type gives the same segments."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracer.captures import (
    CLIENT6,
    LINKS,
    SERVER6,
    START_NS,
    block,
    capture_of,
    conversation,
    enhanced,
    frame,
    interface,
    ip_packet,
    pcap_file,
    section,
    segment,
    stream,
)
from tracer.errors import WirespanError
from tracer.replay.capture import Capture, Packet
from tracer.replay.packet import LINK_TYPES, Segment, Skipped, segment_of

SEGMENTS = conversation([(0, b"GET / HTTP/1.1\r\n\r\n"), (1, b"HTTP/1.1 204 No Content\r\n\r\n")])
ONE = segment(0, 77, b"payload", time_ns=START_NS)


def read(data: bytes) -> tuple[list[Packet], Capture]:
    capture = Capture(stream(data), "x.pcap")
    return list(capture), capture


def segments(data: bytes) -> list[Segment | Skipped]:
    return [segment_of(*(p.link_type, p.data, p.time_ns)) for p in read(data)[0]]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("version", [4, 6])
def test_link_types(link: str, version: int) -> None:
    found = segments(capture_of(SEGMENTS, link, version))
    if version == 6:
        assert {s.src for s in found if isinstance(s, Segment)} == {CLIENT6, SERVER6}
        expected = [(s.seq, s.ack, s.flags, s.payload, s.time_ns) for s in SEGMENTS]
        assert [(s.seq, s.ack, s.flags, s.payload, s.time_ns) for s in found] == expected
        assert all(s.family == 10 for s in found)
    else:
        assert found == SEGMENTS


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("nano", [True, False])
def test_pcap_times_and_byte_orders(order: str, nano: bool) -> None:
    link_type, data = frame("ethernet", ip_packet(ONE))
    times = [START_NS, START_NS + 1, START_NS // 10**9 * 10**9 + 999_999_999]
    packets, capture = read(pcap_file([(at, data) for at in times], link_type, order, nano))
    unit = 1 if nano else 1000
    assert [p.time_ns for p in packets] == [at // unit * unit for at in times]
    assert capture.warning == ""


@pytest.mark.parametrize("order", "<>")
def test_pcapng_interfaces_and_sections(order: str) -> None:
    _, ethernet = frame("ethernet", ip_packet(ONE))
    _, cooked = frame("sll2", ip_packet(ONE))
    comment = struct.pack(order + "HH", 1, 4) + b"\xff\xfe\xfd\xfc" + bytes(4)
    data = (
        section(order)
        + interface(1, 9, order=order)
        + interface(276, None, order=order)
        + interface(1, 0x80 | 20, 3, order=order)
        + block(5, bytes(12), order)  # statistics: passed over
        + enhanced(0, START_NS, ethernet, order, comment)
        + enhanced(1, START_NS // 1000, cooked, order)
        + enhanced(2, 5 << 20, ethernet, order)
        + section(">")
        + interface(1, order=">")
        + enhanced(0, 7, ethernet, ">")
    )
    packets, capture = read(data)
    assert [p.time_ns for p in packets] == [START_NS, START_NS // 1000 * 1000, 8 * 10**9, 7]
    assert [segment_of(p.link_type, p.data, START_NS) for p in packets] == [ONE] * 4
    assert (capture.packets, capture.unsupported, capture.warning) == (4, 0, "")


def test_packets_without_a_time_and_unknown_links_are_counted() -> None:
    _, data = frame("ethernet", ip_packet(ONE))
    simple = block(3, struct.pack("<I", len(data)) + data)
    wlan = interface(105) + enhanced(1, 1, data)
    packets, capture = read(section() + interface(1) + simple + wlan)
    assert packets == []
    assert (capture.packets, capture.unsupported, capture.link_types) == (2, 2, {105})


@pytest.mark.parametrize("nano", [True, False])
def test_cut_anywhere_keeps_what_was_whole(nano: bool) -> None:
    link_type, data = frame("ethernet", ip_packet(ONE))
    whole = pcap_file([(START_NS, data)] * 3, link_type, nano=nano)
    size = 16 + len(data)
    for end in range(4, len(whole)):
        packets, capture = read(whole[:end])
        assert len(packets) == max(0, end - 24) // size
        between = end >= 24 and not (end - 24) % size
        assert bool(capture.warning) != between


def test_cut_pcapng() -> None:
    _, data = frame("ethernet", ip_packet(ONE))
    whole = section() + interface(1) + enhanced(0, 1, data)
    for end in range(4, len(whole)):
        packets, capture = read(whole[:end])
        assert packets == []
        assert bool(capture.warning) == (end not in (28, 28 + len(interface(1))))


def test_a_pipe_that_gives_little_at_a_time() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 3))

    whole = capture_of(SEGMENTS)
    capture = Capture(Slow(whole), "-")
    assert len(list(capture)) == len(SEGMENTS)
    assert capture.warning == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\x1f\x8b\x08\x00rest", "it is compressed"),
        (b"GET / HTTP/1.1", "it is neither pcap nor pcapng"),
        (b"\xa1", "it is neither pcap nor pcapng"),
    ],
)
def test_no_capture(data: bytes, message: str) -> None:
    with pytest.raises(WirespanError, match=message) as caught:
        Capture(stream(data), "x.pcap")
    assert "x.pcap" in str(caught.value)
    assert caught.value.hint


def test_damage_ends_a_capture_with_a_warning() -> None:
    link_type, data = frame("ethernet", ip_packet(ONE))
    good = pcap_file([(START_NS, data)], link_type)
    packets, capture = read(good + struct.pack("<IIII", 0, 0, 1 << 31, 1 << 31) + bytes(100))
    assert len(packets) == 1
    assert "damaged" in capture.warning
    _, capture = read(section() + enhanced(0, 1, data))
    assert "interface 0" in capture.warning
    _, capture = read(section() + struct.pack("<II", 6, 7) + bytes(50))
    assert "damaged" in capture.warning


def test_ipv4_options_padding_and_snapshot_length() -> None:
    # Options lengthen the header.
    packet = bytearray(ip_packet(ONE))
    packet[0] = 0x47
    packet[2:4] = struct.pack(">H", len(packet) + 8)
    packet[20:20] = b"\x01" * 8
    assert segment_of(101, bytes(packet), START_NS) == ONE
    # What pads an Ethernet frame is no content.
    _, data = frame("ethernet", ip_packet(ONE))
    assert segment_of(1, data + bytes(20), START_NS) == ONE
    # What the capture left out is known by number.
    short = segment_of(1, data[:-3], START_NS)
    assert short == ONE._replace(payload=b"payl", cut=3)
    # An outgoing packet that the network card is to cut up has no length.
    tso = bytearray(ip_packet(ONE))
    tso[2:4] = b"\0\0"
    assert segment_of(101, bytes(tso), START_NS) == ONE


def test_ipv6_extension_headers() -> None:
    plain = ip_packet(ONE, 6)

    def with_extensions(first: int, extensions: bytes) -> bytes:
        head = bytearray(plain[:40])
        head[6] = first
        head[4:6] = struct.pack(">H", len(plain) - 40 + len(extensions))
        return bytes(head) + extensions + plain[40:]

    expected = segment_of(101, plain, START_NS)
    assert isinstance(expected, Segment)
    hop, dest = b"\x3c\x00" + bytes(6), b"\x06\x01" + bytes(14)
    assert segment_of(101, with_extensions(0, hop + dest), START_NS) == expected
    authentication = b"\x06\x04" + bytes(22)
    assert segment_of(101, with_extensions(51, authentication), START_NS) == expected
    atomic, later = b"\x06\x00\x00\x00" + bytes(4), b"\x06\x00\x00\x09" + bytes(4)
    assert segment_of(101, with_extensions(44, atomic), START_NS) == expected
    assert segment_of(101, with_extensions(44, later), START_NS) is Skipped.FRAGMENT
    assert segment_of(101, with_extensions(17, b""), START_NS) is Skipped.OTHER


def test_fragments_and_other_packets_are_told_apart() -> None:
    for bits in (b"\x20\x00", b"\x00\x10"):
        packet = bytearray(ip_packet(ONE))
        packet[6:8] = bits
        assert segment_of(101, bytes(packet), START_NS) is Skipped.FRAGMENT
    packet = bytearray(ip_packet(ONE))
    packet[6:8] = b"\x40\x00"  # don't fragment
    assert segment_of(101, bytes(packet), START_NS) == ONE
    packet[9] = 17
    assert segment_of(101, bytes(packet), START_NS) is Skipped.OTHER
    arp = bytes(12) + b"\x08\x06" + bytes(28)
    assert segment_of(1, arp, START_NS) is Skipped.OTHER


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("version", [4, 6])
def test_headers_cut_anywhere(link: str, version: int) -> None:
    link_type, data = frame(link, ip_packet(ONE, version))
    for end in range(len(data) - len(ONE.payload)):
        found = segment_of(link_type, data[:end], 0)
        if isinstance(found, Segment):  # its last fields and options are not needed
            assert (found.seq, found.payload, found.cut) == (ONE.seq, b"", len(ONE.payload))
            assert end >= len(data) - len(ONE.payload) - 6
        else:
            assert found in (Skipped.MALFORMED, Skipped.OTHER)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(LINK_TYPES)), st.binary(max_size=120))
def test_any_bytes_are_a_packet_or_not(link_type: int, data: bytes) -> None:
    assert isinstance(segment_of(link_type, data, 0), Segment | Skipped)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([capture_of(SEGMENTS), section() + interface(1) + enhanced(0, 1, b"abcdef")]),
    st.lists(st.tuples(st.integers(4, 400), st.integers(0, 255)), max_size=6),
)
def test_any_damage_ends_in_order(whole: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(whole)
    for at, value in changes:
        data[at % (len(data) - 4) + 4] = value
    packets, capture = read(bytes(data))
    assert capture.packets >= len(packets)
