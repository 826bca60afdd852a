"""Captures for tests: segments -> packets -> files, put together by dpkt."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable

from dpkt import ethernet, ip, ip6, pcap, tcp

from tracer.replay.packet import ACK, FIN, PSH, SYN, Segment

CLIENT4, SERVER4 = bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])
CLIENT6, SERVER6 = (bytes.fromhex("20010db8" + "00" * 11) + bytes([n]) for n in (2, 1))
START_NS = 1_700_000_000_123_456_789


def segment(
    sender: int,
    seq: int,
    payload: bytes = b"",
    flags: int = ACK,
    ack: int = 0,
    time_ns: int = START_NS,
    cut: int = 0,
    port: int = 40_000,
) -> Segment:
    """A segment between 10.0.0.2:40000, the client (0), and 10.0.0.1:80, the server (1)."""
    ends = ((CLIENT4, port), (SERVER4, 80))
    (src, sport), (dst, dport) = ends[sender], ends[1 - sender]
    seq, ack = seq % 2**32, ack % 2**32
    return Segment(src, dst, sport, dport, 2, seq, ack, flags, payload, cut, time_ns)


def conversation(
    turns: Iterable[tuple[int, bytes]],
    client_seq: int = 1000,
    server_seq: int = 5000,
    step_ns: int = 1_000_000,
    mss: int = 1460,
    ending: bool = True,
) -> list[Segment]:
    """A whole connection: handshake, turns (sender, bytes), a close by the client."""
    seqs = [client_seq, server_seq]
    now = START_NS
    made: list[Segment] = []

    def add(sender: int, flags: int, payload: bytes = b"") -> None:
        nonlocal now
        ack = seqs[1 - sender] if flags & ACK else 0
        made.append(segment(sender, seqs[sender], payload, flags, ack, now))
        seqs[sender] += len(payload) + bool(flags & (SYN | FIN))
        now += step_ns

    add(0, SYN)
    add(1, SYN | ACK)
    add(0, ACK)
    for sender, data in turns:
        for at in range(0, len(data), mss):
            add(sender, ACK | PSH, data[at : at + mss])
        add(1 - sender, ACK)
    if ending:
        add(0, FIN | ACK)
        add(1, FIN | ACK)
        add(0, ACK)
    return made


def ip_packet(found: Segment, version: int = 4, **fields: object) -> bytes:
    """An IP packet of a segment; version 6 gives it IPv6 addresses."""
    inner = tcp.TCP(
        sport=found.sport, dport=found.dport, seq=found.seq, ack=found.ack, flags=found.flags,
        data=found.payload,
    )  # fmt: skip
    if version == 4:
        made = ip.IP(src=found.src, dst=found.dst, p=6, data=inner, **fields)
        made.len = len(made)
        return bytes(made)
    addresses = {CLIENT4: CLIENT6, SERVER4: SERVER6}
    made = ip6.IP6(src=addresses[found.src], dst=addresses[found.dst], nxt=6, data=inner, hlim=64)
    made.plen = len(bytes(inner))
    return bytes(made)


def frame(link: str, packet: bytes) -> tuple[int, bytes]:
    """Wrap an IP packet: its link type, and the bytes as they are captured."""
    ethertype = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    kind = struct.pack(">H", ethertype)
    match link:
        case "ethernet":
            made = ethernet.Ethernet(src=b"\2" * 6, dst=b"\4" * 6, type=ethertype)
            return pcap.DLT_EN10MB, bytes(made) + packet
        case "vlan":
            return pcap.DLT_EN10MB, bytes(12) + b"\x81\x00\x00\x05" + kind + packet
        case "qinq":
            tags = b"\x88\xa8\x00\x05\x81\x00\x00\x06"
            return pcap.DLT_EN10MB, bytes(12) + tags + kind + packet
        case "sll":
            return pcap.DLT_LINUX_SLL, struct.pack(">HHH8s", 0, 1, 6, b"\2" * 6) + kind + packet
        case "sll2":
            head = struct.pack(">HHiHBB8s", ethertype, 0, 2, 1, 0, 6, b"\2" * 6)
            return pcap.DLT_LINUX_SLL2, head + packet
        case "raw":
            return 101, packet
        case "null":
            return pcap.DLT_NULL, struct.pack("<I", 2 if ethertype == 0x0800 else 30) + packet
        case "loop":
            return 108, struct.pack(">I", 2 if ethertype == 0x0800 else 30) + packet
    raise ValueError(link)


LINKS = ("ethernet", "vlan", "qinq", "sll", "sll2", "raw", "null", "loop")


def pcap_file(
    packets: Iterable[tuple[int, bytes]], link_type: int, order: str = "<", nano: bool = True
) -> bytes:
    """A pcap file of packets (time_ns, bytes)."""
    unit = 1 if nano else 1000
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    made = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262_144, link_type)
    for time_ns, data in packets:
        seconds, rest = divmod(time_ns, 10**9)
        made += struct.pack(order + "IIII", seconds, rest // unit, len(data), len(data)) + data
    return made


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A block of pcapng."""
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def section(order: str = "<") -> bytes:
    """The block that begins a section."""
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(
    link_type: int, resolution: int | None = 9, offset_s: int = 0, order: str = "<"
) -> bytes:
    """The block that describes an interface; resolution: as in if_tsresol, None for none."""
    body = struct.pack(order + "HHI", link_type, 0, 262_144)
    if resolution is not None:
        body += struct.pack(order + "HHB3x", 9, 1, resolution)
    if offset_s:
        body += struct.pack(order + "HHq", 14, 8, offset_s)
    return block(1, body + bytes(4), order)


def enhanced(number: int, units: int, data: bytes, order: str = "<", options: bytes = b"") -> bytes:
    """A packet of an interface; units: its time in those of the interface."""
    head = struct.pack(order + "IIIII", number, units >> 32, units % 2**32, len(data), len(data))
    return block(6, head + data + bytes(-len(data) % 4) + options, order)


def capture_of(segments: Iterable[Segment], link: str = "ethernet", version: int = 4) -> bytes:
    """A pcap file of segments, in nanoseconds."""
    frames = [(found.time_ns, *frame(link, ip_packet(found, version))) for found in segments]
    return pcap_file(((at, data) for at, _, data in frames), frames[0][1])


def stream(data: bytes) -> io.BytesIO:
    """A file of bytes."""
    return io.BytesIO(data)
