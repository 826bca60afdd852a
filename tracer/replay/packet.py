"""Packets as a capture holds them -> TCP segments. Pure: bytes in, Segment out.

Handled: Ethernet, Linux cooked v1 and v2, raw IP and BSD loopback, each with any number of
VLAN tags; IPv4 with options; IPv6 with extension headers. Not followed: IP fragments, and
what is inside tunnels (GRE, VXLAN, IP in IP, MPLS, PPPoE).

Link types: https://www.tcpdump.org/linktypes.html
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import NamedTuple

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

INET, INET6 = 2, 10  # enum flow_family

ETHERNET, SLL, SLL2, NULL, LOOP = 1, 113, 276, 0, 108
# Three numbers for raw IP: the one in files, and what two systems call it themselves.
RAW = frozenset({101, 12, 14, 228, 229})
LINK_TYPES = frozenset({ETHERNET, SLL, SLL2, NULL, LOOP, *RAW})

_IPV4, _IPV6 = 0x0800, 0x86DD
_VLAN = frozenset({0x8100, 0x88A8, 0x9100})
_TCP = 6
# IPv6 extension headers of the common form, RFC 8200 section 4: next header, length in 8s.
_EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140})
_FRAGMENT, _AUTHENTICATION = 44, 51

_ETHERTYPE = struct.Struct(">H")
_TCP_HEADER = struct.Struct(">HHIIBB")


class Segment(NamedTuple):
    """One TCP segment.

    src, dst: 4 or 16 bytes. seq, ack: ack counts only with ACK in flags.
    payload: what the capture kept of it. cut: bytes it did not keep (its snapshot length).
    time_ns: Unix time.
    """

    src: bytes
    dst: bytes
    sport: int
    dport: int
    family: int
    seq: int
    ack: int
    flags: int
    payload: bytes
    cut: int
    time_ns: int


class Skipped(Enum):
    """Why a packet gives no segment."""

    OTHER = "not TCP over IP"
    FRAGMENT = "a fragment of an IP packet"
    MALFORMED = "headers cut or not as their protocol says"


def segment_of(link_type: int, packet: bytes, time_ns: int) -> Segment | Skipped:
    """Take the TCP segment out of a packet.

    link_type: one of LINK_TYPES, as in capture files. Never raises for what is in `packet`.
    """
    try:
        start = _network(link_type, packet)
        if start < 0:
            return Skipped.OTHER
        version = packet[start] >> 4
        if version == 4:
            return _ipv4(packet, start, time_ns)
        if version == 6:
            return _ipv6(packet, start, time_ns)
    except (IndexError, struct.error):
        return Skipped.MALFORMED
    return Skipped.OTHER if link_type in RAW else Skipped.MALFORMED


def _network(link_type: int, packet: bytes) -> int:
    """Return where the IP header begins, or -1 if this is no IP packet."""
    if link_type == ETHERNET:
        at = 12
    elif link_type == SLL:
        at = 14
    elif link_type == SLL2:
        return _behind_tags(packet, _ETHERTYPE.unpack_from(packet, 0)[0], 20)
    elif link_type in (NULL, LOOP):
        # An address family in one byte order or the other: the IP header says it better.
        return 4 if packet[4] >> 4 in (4, 6) else -1
    else:
        return 0
    return _behind_tags(packet, _ETHERTYPE.unpack_from(packet, at)[0], at + 2)


def _behind_tags(packet: bytes, ethertype: int, at: int) -> int:
    """Pass over VLAN tags; each is four bytes, the next type in its last two."""
    while ethertype in _VLAN:
        ethertype = _ETHERTYPE.unpack_from(packet, at + 2)[0]
        at += 4
    return at if ethertype in (_IPV4, _IPV6) else -1


def _ipv4(packet: bytes, at: int, time_ns: int) -> Segment | Skipped:
    """Source: RFC 791 section 3.1."""
    if packet[at + 9] != _TCP:
        return Skipped.OTHER
    if (packet[at + 6] << 8 | packet[at + 7]) & 0x3FFF:  # more fragments, or an offset
        return Skipped.FRAGMENT
    header = (packet[at] & 15) * 4
    # 0 where the network card was to cut the packet up (TSO).
    total = (packet[at + 2] << 8 | packet[at + 3]) or len(packet) - at
    src, dst = packet[at + 12 : at + 16], packet[at + 16 : at + 20]
    if header < 20 or total < header:
        return Skipped.MALFORMED
    return _tcp(packet, at + header, at + total, src, dst, INET, time_ns)


def _ipv6(packet: bytes, at: int, time_ns: int) -> Segment | Skipped:
    """Source: RFC 8200 sections 3 and 4."""
    length = packet[at + 4] << 8 | packet[at + 5]
    end = at + 40 + length if length else len(packet)  # 0: TSO, or a jumbogram
    src, dst = packet[at + 8 : at + 24], packet[at + 24 : at + 40]
    kind, at = packet[at + 6], at + 40
    while kind != _TCP:
        if kind in _EXTENSIONS:
            size = (packet[at + 1] + 1) * 8
        elif kind == _AUTHENTICATION:  # RFC 4302 section 2.2: in 4s
            size = (packet[at + 1] + 2) * 4
        elif kind == _FRAGMENT:
            if (packet[at + 2] << 8 | packet[at + 3]) & 0xFFF9:  # an offset, or more to come
                return Skipped.FRAGMENT
            size = 8
        else:
            return Skipped.OTHER
        kind, at = packet[at], at + size
    return _tcp(packet, at, end, src, dst, INET6, time_ns)


def _tcp(
    packet: bytes, at: int, end: int, src: bytes, dst: bytes, family: int, time_ns: int
) -> Segment | Skipped:
    """Source: RFC 9293 section 3.1. end: where the IP packet ends, by its own word."""
    sport, dport, seq, ack, offset, flags = _TCP_HEADER.unpack_from(packet, at)
    start = at + (offset >> 4) * 4
    if offset < 0x50 or start > end:
        return Skipped.MALFORMED
    # What follows the IP packet pads the frame.
    payload = packet[start:end]
    cut = end - start - len(payload)
    return Segment(src, dst, sport, dport, family, seq, ack, flags, payload, cut, time_ns)
