"""libFuzzer (Atheris) on what Python parses of hostile bytes: HPACK and capture files.

python -m tests.fuzz.python NAME [LIBFUZZER ARGUMENT...]; scripts/fuzz.sh gives the arguments.
python -m tests.fuzz.python NAME --seeds DIRECTORY writes inputs to begin from.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import atheris

from tracer.errors import WirespanError

# Of dpkt what is called alone, for instrumenting takes a while.
with atheris.instrument_imports(
    include=["hpack", "dpkt.dpkt", "dpkt.pcap", "dpkt.pcapng", "tracer.protocols", "tracer.replay"]
):
    from hpack import Decoder, Encoder, HPACKError
    from hpack.exceptions import OversizedHeaderListError

    from tracer.protocols.hpack_state import (
        MAX_FIELDS_BYTES,
        MAX_TABLE_BYTES,
        UNKNOWN,
        Headers,
        Hpack,
    )
    from tracer.replay.capture import Capture
    from tracer.replay.packet import Segment, segment_of
    from tracer.replay.tcp import Streams

UNREADABLE: Headers = ((UNKNOWN, UNKNOWN),)


def blocks_of(data: bytes) -> Iterator[bytes]:
    """Header blocks: each two bytes of length and as many of content."""
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "little")
        yield data[at + 2 : at + 2 + size]
        at += 2 + size


def hpack(data: bytes) -> None:
    """The blocks of a direction: as the library decodes them, and again from the memo.

    The first byte's lowest bit: whether the connection's begin was seen.
    """
    if not data:
        return
    known = bool(data[0] & 1)
    blocks = list(blocks_of(data[1:]))
    one: Hpack[Headers] = Hpack(lambda headers: headers, UNREADABLE)
    # No memo to speak of: everything is forgotten with each block.
    other: Hpack[Headers] = Hpack(lambda headers: headers, UNREADABLE, max_entries=1)
    library = Decoder(max_header_list_size=MAX_FIELDS_BYTES)
    state, again, fresh = one.begin(known), one.begin(known), other.begin(known)
    comparable = known
    for block in blocks:
        headers, state = one.decode(state, block)
        repeated, again = one.decode(again, block)
        unremembered, fresh = other.decode(fresh, block)
        assert headers == repeated == unremembered and state is again
        assert (state.entries, state.failed) == (fresh.entries, fresh.failed)
        assert state.bytes <= state.max_bytes <= MAX_TABLE_BYTES
        assert state.bytes == sum(32 + len(name) + len(value) for name, value in state.entries)
        if not comparable:
            continue
        try:
            expected = [(bytes(n), bytes(v)) for n, v in library.decode(block, raw=True)]
        except (HPACKError, OversizedHeaderListError):
            # It has limits of its own, of which the peer would have been told.
            comparable = False
            continue
        if state.failed or state.tolerant:
            comparable = False
            assert state.tolerant or headers is UNREADABLE
            continue
        assert list(headers) == expected, (headers, expected)


def capture(data: bytes) -> None:
    """A capture file, its packets, and the streams in them: our own errors alone."""
    try:
        packets = Capture(io.BytesIO(data), "fuzz")
    except WirespanError:
        return
    streams, passed = Streams(), 0
    for packet in packets:
        passed += len(packet.data)
        segment = segment_of(packet.link_type, packet.data, packet.time_ns)
        if isinstance(segment, Segment):
            streams.take(segment)
    streams.finish()
    assert passed <= len(data), "no byte of a capture is in two packets"


def hpack_seeds() -> Iterator[bytes]:
    call = [
        (b":method", b"POST"),
        (b":path", b"/pkg.Svc/Do"),
        (b"content-type", b"application/grpc"),
    ]
    for known in (0, 1):
        encoder = Encoder()
        parts = [bytes([known])]
        for number in range(6):
            fields = [*call, (b"x-request-id", b"%d" % (number // 2)), (b"x", b"y" * 40 * number)]
            block = encoder.encode(fields, huffman=number % 2 == 0)
            parts += [len(block).to_bytes(2, "little"), block]
            encoder.header_table_size = (4096, 100, 0, 4096, 2000, 4096)[number]
        yield b"".join(parts)


def capture_seeds() -> Iterator[bytes]:
    # Not before: it imports what is to be instrumented.
    from tests.tracer import captures

    turns = [(0, b"GET / HTTP/1.1\r\n\r\n"), (1, b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200)]
    segments = captures.conversation(turns)
    for link in ("ethernet", "vlan", "qinq", "sll", "sll2", "raw", "null", "loop"):
        yield captures.capture_of(segments, link, 4)
        yield captures.capture_of(segments, link, 6)
    for order in "<>":
        blocks = [captures.section(order), captures.interface(1, order=order)]
        for number, each in enumerate(segments):
            _, data = captures.frame("ethernet", captures.ip_packet(each))
            blocks.append(captures.enhanced(0, each.time_ns + number, data, order))
        yield b"".join(blocks)


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterator[bytes]]]] = {
    "hpack": (hpack, hpack_seeds),
    "capture": (capture, capture_seeds),
}


def main(arguments: Sequence[str]) -> None:
    """Fuzz, or write seeds."""
    name, *rest = arguments
    target, seeds = TARGETS[name]
    if rest[:1] == ["--seeds"]:
        directory = Path(rest[1])
        directory.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            (directory / str(number)).write_bytes(seed)
        return
    atheris.Setup([sys.argv[0], *rest], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
