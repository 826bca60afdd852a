"""First bytes are taken for the protocol they are of, and for no other."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

import pytest

from tests.host.case import EXCHANGES, Case, corpus
from tests.host.lib import CLIENT, SERVER, Script, Segment, parsers, types
from tests.host.test_http2_frames import SCENARIOS

CASES = [case for protocol in EXCHANGES for case in corpus(protocol)]
CLAIMS = ("REQUEST", "RESPONSE")
RANDOM = 10_000
CARRY = 24  # bytes that are always enough to tell, or never
PROTOCOLS = (*EXCHANGES, "http2")
GRACE = (1, 2, 3, 5, 8, 13, 23)  # lengths of a first segment that may be too short to tell


def first_bytes(case: Case) -> list[bytes]:
    """What the client and the server sent first."""
    firsts = []
    for server in (CLIENT, SERVER):
        firsts += [s.data for s in case.segments if s.server == server and s.data][:1]
    return firsts


def buffers(protocol: str) -> set[bytes]:
    """What peers of a protocol send at once."""
    connections: list[Sequence[Segment]]
    if protocol == "http2":
        connections = [segments for segments, _ in SCENARIOS.values()]
    else:
        connections = [c.segments for c in CASES if c.protocol == protocol and c.exchanges]
    return {segment.data for segments in connections for segment in segments if segment.data}


def may_be_request_line(found: str, data: bytes) -> bool:
    """A word and a space may yet become one: HTTP/1 claims them, and gives them up later."""
    return found == "HTTP1" and b" HTTP/1." not in data


@pytest.mark.parametrize("protocol", EXCHANGES)
def test_first_bytes_of_a_protocol_are_no_other_ones(protocol: str) -> None:
    for case in CASES:
        if case.protocol != protocol or not case.exchanges:
            continue
        for data in first_bytes(case):
            for fresh in (True, False):
                found, how = parsers().detect(data, fresh=fresh)
                if how in CLAIMS and not may_be_request_line(found, data):
                    assert found == protocol.upper(), (case.name, fresh, how, data[:40])


@pytest.mark.parametrize("protocol", EXCHANGES)
def test_first_bytes_are_known_as_soon_as_they_are_enough(protocol: str) -> None:
    """A connection with exchanges is claimed by the first bytes of one side."""
    for case in CASES:
        if case.protocol != protocol or case.old or not case.exchanges:
            continue
        opening = next(segment for segment in case.segments if segment.data)
        found, how = parsers().detect(opening.data)
        assert how != "NO", case.name
        if how in CLAIMS:
            assert found == protocol.upper(), case.name
            assert (how == "RESPONSE") == opening.server or case.name == "flipped-roles"


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "old"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_first_piece_is_enough_or_asks_for_more(protocol: str, fresh: bool) -> None:
    """What a whole send tells, its first piece (of writev) never denies."""
    judged = 0
    for data in buffers(protocol):
        whole = parsers().detect(data, fresh=fresh)
        if whole[1] not in CLAIMS:
            continue
        judged += 1
        for size in range(1, min(CARRY, len(data))):
            found = parsers().detect(data[:size], len(data), fresh)
            assert found == whole or found[1] == "MORE", (size, data[:CARRY])
    assert judged


def mongodb(opcode: int = 2013) -> bytes:
    body = b"\0\0\0\0\0" + bytes.fromhex("1300000010") + b"hello\0\1\0\0\0\0"
    return struct.pack("<iiii", 16 + len(body), 1, 0, opcode) + body


def kafka() -> bytes:
    body = struct.pack(">hhih", 18, 3, 1, 6) + b"wirespan"[:6] + b"\0\x07librdkafka"
    return struct.pack(">i", len(body)) + body


def client_hello() -> bytes:
    body = b"\x03\x03" + bytes(range(32)) + b"\0\0\x02\x13\x01\x01\0\0\0"
    return b"\x16\x03\x01" + struct.pack(">HI", len(body) + 4, 1 << 24 | len(body)) + body


MQTT = b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04demo"
LDAP = bytes.fromhex("300c020101600702010304008000")
DNS = bytes.fromhex("001d 1234 0100 0001 0000 0000 0000 076578616d706c6503636f6d00 0001 0001")
RDP = bytes.fromhex("0300 0013 0e e0 0000 0000 00 0100 0800 0300 0000")
CASSANDRA = b"\x04\0\0\0\x01\0\0\0\x16\0\x01\0\x0bCQL_VERSION\0\x053.0.0"
CASSANDRA_READY = b"\x84\0\0\0\x02\0\0\0\0"
ZOOKEEPER = struct.pack(">iiqiqi", 45, 0, 0, 30_000, 0, 16) + bytes(17)
MEMCACHED = (
    b"\x80\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x01" + bytes(8) + b"hello"
)
BITTORRENT = b"\x13BitTorrent protocol" + bytes(8) + b"\xaa" * 40

# Client's and server's bytes in turn; None: that side says nothing first.
OTHERS: dict[str, list[bytes | None]] = {
    "mongodb": [mongodb(), mongodb(), mongodb(2004), mongodb(1)],
    "kafka": [kafka(), struct.pack(">iihi", 10, 1, 0, 0)],
    "amqp": [b"AMQP\0\0\x09\x01", b"\1\0\0\0\0\0\x0b\0\x0a\0\x0a\0\x09\0\0\0\0\0\xce"],
    "nats": [None, b'INFO {"server_id":"x","port":4222} \r\n', b'CONNECT {"verbose":false}\r\n',
             b"PING\r\n"],
    "nats-client-first": [b'CONNECT {"verbose":false}\r\nPING\r\n', b"PONG\r\n"],
    "tls": [client_hello(), b"\x16\x03\x03\0\x04\x0e\0\0\0"],
    "ssh": [None, b"SSH-2.0-OpenSSH_9.6\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"],
    "ssh-client-first": [b"SSH-2.0-OpenSSH_9.6\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"],
    "memcached-text": [b"get a\r\n", b"VALUE a 0 1\r\n1\r\nEND\r\n", b"set a 0 0 1\r\n2\r\n"],
    "memcached-binary": [MEMCACHED, b"\x81" + MEMCACHED[1:]],
    "smtp": [None, b"220 a.example ESMTP Postfix\r\n", b"EHLO b.example\r\n",
             b"250-a.example\r\n250 8BITMIME\r\n"],
    "ftp": [None, b"220 (vsFTPd 3.0.5)\r\n", b"USER anonymous\r\n", b"331 Password.\r\n"],
    "pop3": [None, b"+OK POP3 ready\r\n", b"USER a\r\n", b"+OK\r\n"],
    "imap": [None, b"* OK IMAP4rev1 ready\r\n", b"a1 CAPABILITY\r\n", b"* CAPABILITY IMAP4\r\n"],
    "cassandra": [CASSANDRA, CASSANDRA_READY],
    "zookeeper": [ZOOKEEPER, struct.pack(">iiiqi", 37, 0, 30_000, 1, 16) + bytes(17)],
    "zookeeper-word": [b"ruok", b"imok"],
    "mqtt": [MQTT, b"\x20\x02\0\0", b"\xc0\0", b"\xd0\0"],
    "dns": [DNS, DNS[:4] + b"\x81\x80" + DNS[6:]],
    "rdp": [RDP, b"\3\0\0\x13\x0e\xd0\0\0\x12\x34\0\2\0\x08\0\2\0\0\0"],
    "ldap": [LDAP, bytes.fromhex("300c02010161070a010004000400")],
    "bittorrent": [BITTORRENT, BITTORRENT],
    "beanstalkd": [b"put 0 0 1 1\r\nx\r\n", b"INSERTED 1\r\n"],
    "zeromq": [b"\xff\0\0\0\0\0\0\0\1\x7f", b"\xff\0\0\0\0\0\0\0\1\x7f"],
    "tds": [b"\x12\1\0\x2f\0\0\1\0\0\0\x1a\0\6\1\0\x20", b"\4\1\0\x2b\0\0\1\0\0\0\x1a\0\6\1"],
    "thrift": [b"\0\0\0\x11\x80\1\0\1\0\0\0\4ping\0\0\0\0\0", b"\0\0\0\x11\x80\1\0\2\0\0\0\4ping"],
    "oracle": [b"\0\x3a\0\0\1\0\0\0\x01\x3e\x01\x2c\0\0\x08\0", b"\0\x08\0\0\x0b\0\0\0"],
    "smb": [b"\0\0\0\x2f\xffSMB\x72" + bytes(42), b"\0\0\0\x2f\xffSMB\x72" + bytes(42)],
}  # fmt: skip


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "old"])
@pytest.mark.parametrize("name", OTHERS)
def test_first_bytes_of_other_protocols_are_no_ones(name: str, fresh: bool) -> None:
    """Or are given up again, without a record, as soon as more is known."""
    turns = OTHERS[name]
    rows = [Segment(bool(turn % 2), data) for turn, data in enumerate(turns) if data]
    firsts = {row.server: row.data for row in reversed(rows)}
    for data in firsts.values():
        found, how = parsers().detect(data, fresh=fresh)
        assert how not in CLAIMS or may_be_request_line(found, data)
    exchange = types().record_kind["EXCHANGE"]
    for opening in (0, *GRACE):
        segments = list(rows)
        if 0 < opening < len(rows[0].data):
            head = rows[0]
            segments[:1] = [
                Segment(head.server, head.data[:opening]),
                Segment(head.server, head.data[opening:]),
            ]
        outcome = parsers().run(Script.of(segments), old=not fresh, resync=True)
        assert exchange not in outcome.records["kind"], opening


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "old"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_first_piece_of_other_protocols_is_not_claimed(name: str, fresh: bool) -> None:
    for data in filter(None, OTHERS[name]):
        for size in range(1, min(CARRY, len(data))):
            found, how = parsers().detect(data[:size], len(data), fresh)
            assert how not in CLAIMS or may_be_request_line(found, data), size


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "old"])
def test_random_bytes_are_no_ones(fresh: bool) -> None:
    rng = random.Random(f"random {fresh}")
    exchange = types().record_kind["EXCHANGE"]
    for _ in range(RANDOM):
        data = rng.randbytes(rng.choice((4, 8, 9, 16, 24, 64, 300)))
        found, how = parsers().detect(data, fresh=fresh)
        if how in CLAIMS:
            more = [Segment(at % 2 == 0, rng.randbytes(64)) for at in range(6)]
            script = Script.of([Segment(CLIENT, data), *more])
            outcome = parsers().run(script, old=not fresh)
            assert exchange not in outcome.records["kind"], (found, how, data)
