"""Random streams through real sockets give the records that the host build gives of them.

Cases are connections of the corpora, of all protocols: as they are, mutated, cut anywhere. Both
ends are looked at. DIFFERENTIAL=N in the environment makes N cases; DIFFERENTIAL_SEED=S begins
elsewhere.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.host.case import corpus
from tests.host.lib import Outcome, Script, Segment, parsers, types
from tests.host.test_http2_frames import INVALID, SCENARIOS, START
from tests.root.harness import free_port
from tracer.installed import object_path
from tracer.kernel.loader import Filters, Kernel, Settings

CASES = int(os.environ.get("DIFFERENTIAL", "400"))
SEED = int(os.environ.get("DIFFERENTIAL_SEED", "1"))
LONGEST = 16_000  # bytes of a send: one receive takes them whole
MOST_SEGMENTS = 200
TIMES = ("start_ns", "request_end_ns", "first_byte_ns", "end_ns")
EXCHANGE, BLOCK = 1, 4  # enum flow_kind
# What the host build can't know, or numbers by itself.
PLACE = {
    "conn_id", "task_start_ns", "cgroup_id", "tgid", "request_tid", "response_tid", "netns",
    "local_addr", "remote_addr", "comm", "family", "local_port", "remote_port",
    "request_seq", "response_seq", "parent", "calls", "evidence", "pad",
}  # fmt: skip


def connections() -> list[list[Segment]]:
    """Connections of every protocol, seen from their first byte on, without bytes unseen."""
    found = [list(case.segments) for name in ("http1", "mysql", "postgresql", "redis")
             for case in corpus(name) if not case.old]  # fmt: skip
    found += [list(segments) for segments, _ in SCENARIOS.values()]
    found += [[START, Segment(False, wrong)] for wrong in INVALID.values()]
    return [
        [segment for segment in segments if segment.data]
        for segments in found
        if not any(segment.unseen for segment in segments)
        and sum(len(segment.data) for segment in segments) < 100_000
    ]


def mutated(chance: random.Random, data: bytes) -> bytes:
    """The bytes with a few of them changed, left out, repeated or put elsewhere."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, size = chance.randrange(len(made) + 1), chance.randint(1, 8)
        match chance.randrange(5):
            case 0:
                made[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del made[at : at + size]
            case 2:
                made[at:at] = made[at : at + size]
            case 3:
                made[at:at] = chance.randbytes(size)
            case 4:
                made[at : at + 1] = bytes(b ^ 1 << chance.randrange(8) for b in made[at : at + 1])
    return bytes(made)


def case(chance: random.Random, known: Sequence[Sequence[Segment]]) -> list[Segment]:
    """A connection: segments of at most LONGEST bytes, none empty."""
    segments = list(chance.choice(known))
    if chance.random() < 0.1:
        segments += chance.choice(known)
    if chance.random() < 0.6 and segments:
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(segments))
            segments[at] = Segment(segments[at].server, mutated(chance, segments[at].data))
    if chance.random() < 0.2:
        del segments[chance.randrange(len(segments) + 1) :]
    if chance.random() < 0.2 and len(segments) > 1:
        at = chance.randrange(len(segments) - 1)
        segments[at], segments[at + 1] = segments[at + 1], segments[at]
    most = chance.choice((1, 7, 64, 500, 1500, LONGEST, LONGEST))
    pieces: list[Segment] = []
    for segment in segments:
        rest = segment.data
        while rest and len(pieces) < MOST_SEGMENTS:
            size = LONGEST if most == LONGEST else chance.randint(1, most)
            pieces.append(Segment(segment.server, rest[:size]))
            rest = rest[size:]
    return pieces


class Wire:
    """The kernel's programs on the sockets of this process, without anything behind the ring."""

    def __init__(self, port: int) -> None:
        # The tracer's own process is left alone; this one must not be.
        settings = Settings(ring_bytes=8 << 20, knobs={"cfg_self_tgid": 0})
        self.kernel = Kernel(object_path(), Filters(ports=(port,)), settings)
        self.kernel.load()
        self.kernel.attach()
        self.port = port
        self.listener = socket.create_server(("127.0.0.1", port))

    def close(self) -> None:
        self.listener.close()
        self.kernel.close()

    def records(self) -> NDArray[np.void]:
        """What is in the ring, without what other processes put there."""
        taken = []
        while len(view := self.kernel.ring.read(4096)):
            taken.append(view.copy())
            self.kernel.ring.release()
        found = np.concatenate(taken) if taken else np.zeros(0, self.kernel.layout.record)
        return found[(found["local_port"] == self.port) | (found["remote_port"] == self.port)]

    def carry(self, pieces: Sequence[Segment]) -> tuple[dict[str, NDArray[np.void]], list[int]]:
        """Send each piece and receive it whole at the other end.

        Returns what each side's records were, before anything was closed, and when (CLOCK_
        MONOTONIC ns) each piece was begun to be sent, with the end of the last one.
        """
        client = socket.create_connection(("127.0.0.1", self.port))
        server, _ = self.listener.accept()
        times = []
        with client, server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                end.settimeout(10)
            for piece in pieces:
                one, other = (server, client) if piece.server else (client, server)
                times.append(time.monotonic_ns())
                one.sendall(piece.data)
                got = other.recv(len(piece.data), socket.MSG_WAITALL)
                assert got == piece.data
            times.append(time.monotonic_ns())
            found = self.records()
        self.records()  # ends of what was in flight
        sides = {
            "CLIENT": found[found["remote_port"] == self.port],
            "SERVER": found[found["local_port"] == self.port],
        }
        return sides, times


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    wire = Wire(free_port())
    yield wire
    wire.close()


def told(records: NDArray[np.void], times: Sequence[int] | None) -> list[dict[str, Any]]:
    """What records say, comparably: times as numbers of pieces, sequence numbers from the first.

    times: of the pieces; None where they are those numbers already.
    """
    found = []
    for record in records:
        one = {
            name: bytes(record[name]) if record[name].ndim or record[name].dtype.kind == "S"
            else int(record[name])
            for name in records.dtype.names or ()
            if name not in PLACE
        }  # fmt: skip
        for name in TIMES:
            at = int(record[name])
            one[name] = int(np.searchsorted(times, at)) if times is not None and at else at
        # Of a header block one slot alone means something, and behind its text nothing does.
        slots = 1 if record["kind"] == BLOCK else len(record["fields"])
        one["fields"] = record["fields"][:slots].tolist()
        one["text"] = bytes(record["text"])[: int(record["text_len"])]
        found.append(one)
    # Streams that end together with their connection end in the order of a hash table.
    groups = itertools.groupby(found, key=lambda one: (one["kind"], one["end_ns"]))
    return [one for _, group in groups for one in sorted(group, key=_stream)]


def _stream(one: dict[str, Any]) -> int:
    return int(one["stream_id"]) if one["kind"] == EXCHANGE else 0


def host(pieces: Sequence[Segment], role: str) -> Outcome:
    return parsers("gcc").run(Script.of(pieces), role=role, resync=True)


def test_records_are_those_of_the_host_build(wire: Wire) -> None:
    chance, known = random.Random(SEED), connections()
    seen: dict[int, int] = {}
    for number in range(CASES):
        pieces = case(chance, known)
        if not pieces:
            continue
        sides, times = wire.carry(pieces)
        for role, records in sides.items():
            expected = host(pieces, role)
            live, wanted = told(records, times), told(expected.records, None)
            where = f"case {number} of seed {SEED}, {role}: {pieces}"
            assert live == wanted, where
            for record in records:
                seen[int(record["protocol"])] = seen.get(int(record["protocol"]), 0) + 1
    missing = {int(p) for p in types().protocol if int(p)} - seen.keys()
    assert CASES < 400 or not missing, f"of no protocol {missing} any record: {seen}"
    lost = {name: n for name, n in wire.kernel.losses().items() if n and "FULL" in name}
    assert not lost, lost
