"""Capture files -> packets: pcap and pcapng, from anything that can be read once.

dpkt reads pcap, and the interfaces of pcapng; the walk over its blocks is done here, for
dpkt's own knows but one interface, and rounds times to a quarter of a microsecond.

Formats: https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/ and -pcapng/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import dpkt
from dpkt import pcap, pcapng

from tracer.errors import WirespanError
from tracer.replay.packet import LINK_TYPES

# libpcap takes no longer packet (MAXIMUM_SNAPLEN is 256 KiB); more is a damaged file.
MAX_PACKET = 16 << 20

_PCAP = frozenset(magic.to_bytes(4, "big") for magic in pcap.MAGIC_TO_PKT_HDR)
_PCAP_NS = frozenset(
    magic.to_bytes(4, "big") for magic in (pcap.TCPDUMP_MAGIC_NANO, pcap.PMUDPCT_MAGIC_NANO)
)
_SECTION = b"\x0a\x0d\x0d\x0a"
_GZIP, _ZSTD, _XZ = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zX"
_INTERFACE, _PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET = 1, 2, 3, 6


class Source(Protocol):
    """What is read from: a file, a pipe."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, fewer only at the end."""


class Packet(NamedTuple):
    """A packet as it was captured; time_ns: Unix time."""

    link_type: int
    time_ns: int
    data: bytes


class _CutError(Exception):
    """The file ends within something."""


class _DamagedError(Exception):
    """The file goes on with something that can't be."""


class _Input:
    """A source from which every read is whole or fails, and that dpkt may take for a file."""

    name = "capture"

    def __init__(self, source: Source, first: bytes) -> None:
        self._source = source
        self._first = first
        self.ended = False

    def read(self, size: int) -> bytes:
        """Return `size` bytes, or none at the end. Raises _CutError, _DamagedError."""
        if size > MAX_PACKET or size < 0:
            raise _DamagedError(f"a packet or block of {size} bytes")
        data = self._first[:size]
        self._first = self._first[size:]
        while len(data) < size:
            more = self._source.read(size - len(data))
            if not more:
                break
            data += more
        if data and len(data) < size:
            raise _CutError
        self.ended = bool(size) and not data
        return data

    def rest(self, size: int) -> bytes:
        """Return `size` bytes of something begun. Raises _CutError, _DamagedError."""
        data = self.read(size)
        if self.ended:
            raise _CutError
        return data


class _Interface(NamedTuple):
    """link_type; units: of time in a second; offset_s: to be added to times."""

    link_type: int
    units: int
    offset_s: int


class Capture:
    """One capture. Iterate once; what was met is told afterwards by the attributes.

    packets: read. unsupported: of link types that are none of LINK_TYPES, or without a time.
    link_types: of those. warning: why it ended before its end, "" if it did not. broken:
    that was before anything could be read of it.
    Raises WirespanError where it is no capture at all.
    """

    def __init__(self, source: Source, name: str) -> None:
        first = source.read(4)
        while 0 < len(first) < 4 and (more := source.read(4 - len(first))):
            first += more
        self._input = _Input(source, first)
        self._packets = self._choose(first, name)
        self.packets = 0
        self.unsupported = 0
        self.link_types: set[int] = set()
        self.warning = ""
        self.broken = False
        self._begun = False

    def _choose(self, first: bytes, name: str) -> Iterator[Packet | None]:
        if first in _PCAP:
            return self._pcap(1 if first in _PCAP_NS else 1000)
        if first == _SECTION:
            return self._pcapng()
        if not first:
            raise WirespanError(f"cannot replay {name}: it is empty", "it should be a capture file")
        for magic, tool in ((_GZIP, "gzip"), (_ZSTD, "zstd"), (_XZ, "xz")):
            if first.startswith(magic):
                raise WirespanError(
                    f"cannot replay {name}: it is compressed",
                    f"{tool} -dc FILE | wirespan replay -",
                )
        raise WirespanError(
            f"cannot replay {name}: it is neither pcap nor pcapng (it begins with {first.hex()})",
            "tcpdump -w FILE makes such a file",
        )

    def __iter__(self) -> Iterator[Packet]:
        try:
            for packet in self._packets:
                self.packets += 1
                if packet is None:
                    self.unsupported += 1
                elif packet.link_type not in LINK_TYPES:
                    self.unsupported += 1
                    self.link_types.add(packet.link_type)
                else:
                    yield packet
        except _CutError:
            self.warning = f"it ends within packet {self.packets + 1}; those before it count"
            if not self._begun:
                self.warning, self.broken = "it ends within its header", True
        except (_DamagedError, dpkt.UnpackError, struct.error, ValueError) as error:
            self.warning = f"it is damaged behind packet {self.packets}: {error}"
            self.broken = not self.packets

    def _pcap(self, unit_ns: int) -> Iterator[Packet]:
        reader = pcap.Reader(self._input)
        self._begun = True
        # The upper bits tell of a frame check sequence.
        link_type = reader.datalink() & 0xFFFF
        for seconds, data in reader:
            if self._input.ended:
                raise _CutError
            # Seconds come as a float or a Decimal; either is right to a unit of the file.
            yield Packet(link_type, round(seconds * (10**9 // unit_ns)) * unit_ns, data)

    def _pcapng(self) -> Iterator[Packet | None]:
        order = "<"
        interfaces: list[_Interface] = []
        while head := self._input.read(8):
            if head[:4] == _SECTION:
                # Its length is in the byte order that the section itself tells.
                mark = self._input.rest(4)
                if mark not in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"):
                    raise _DamagedError("a section of no byte order")
                order = "<" if mark == b"\x4d\x3c\x2b\x1a" else ">"
                head += mark
                interfaces = []
            kind, size = struct.unpack_from(order + "II", head)
            if size < 12 or size % 4 or size < len(head):
                raise _DamagedError(f"a block of {size} bytes")
            block = head + self._input.rest(size - len(head))
            self._begun = True
            if kind == _INTERFACE:
                interfaces.append(_interface(block, order))
            elif kind in (_ENHANCED_PACKET, _PACKET):
                yield _packet(kind, block, order, interfaces)
            elif kind == _SIMPLE_PACKET:
                yield None  # has no time


def _interface(block: bytes, order: str) -> _Interface:
    little = order == "<"
    made: Any = pcapng.InterfaceDescriptionBlockLE if little else pcapng.InterfaceDescriptionBlock
    found = made(block)
    units, offset_s = 10**6, 0
    for option in found.opts:
        if option.code == pcapng.PCAPNG_OPT_IF_TSRESOL and option.data:
            # The first bit tells whether the rest is a power of 2 or of 10.
            power = option.data[0]
            units = 2 ** (power & 0x7F) if power & 0x80 else 10**power
        elif option.code == pcapng.PCAPNG_OPT_IF_TSOFFSET:
            (offset_s,) = struct.unpack(order + "q", option.data[:8])
    return _Interface(found.linktype, units, offset_s)


def _packet(kind: int, block: bytes, order: str, interfaces: list[_Interface]) -> Packet:
    # Nothing of dpkt's here: it would read each packet's options, and fail for their faults.
    if kind == _PACKET:
        number, _, high, low, kept = struct.unpack_from(order + "HHIII", block, 8)
    else:
        number, high, low, kept = struct.unpack_from(order + "IIII", block, 8)
    if number >= len(interfaces):
        raise _DamagedError(f"a packet of interface {number}, which is not described")
    if kept > len(block) - 32:
        raise _DamagedError(f"a packet of {kept} bytes in a block of {len(block)}")
    interface = interfaces[number]
    time_ns = (high << 32 | low) * 10**9 // interface.units + interface.offset_s * 10**9
    return Packet(interface.link_type, time_ns, block[28 : 28 + kept])
