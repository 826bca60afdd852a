"""`wirespan replay`: a corpus case as a capture gives what the parsers give for it directly.

However the capture was made, whatever the network did to it, and wherever it was cut.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.host.case import EXCHANGES, corpus, exchanges
from tests.host.lib import ROOT, Outcome, Script, parsers
from tests.host.lib import Segment as Sent
from tests.host.test_http2_frames import SCENARIOS, Block, Done, told
from tests.tracer.captures import (
    LINKS,
    START_NS,
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
from tests.tracer.receivers import Receiver, http_receiver
from tracer.flow import Kind
from tracer.installed import OBJECT
from tracer.kernel.layout import Layout, load_layout
from tracer.replay.capture import Capture
from tracer.replay.engine import Engine
from tracer.replay.packet import ACK, FIN, RST, SYN, Segment, segment_of
from tracer.replay.sockets import Side, Sockets
from tracer.replay.tcp import CLIENT, SERVER, Streams

Records = NDArray[np.void]

# How much is sent at once where a connection is cut at random; long ones are cut less often.
SIZES, LONG_SIZES, LONG = (1, 2, 7, 30, 300, 1460), (1, 20_000, 60_000, 60_000), 100_000
HUGE = 10_000_000  # bytes of a connection that is not written to a file, nor cut


@dataclass(frozen=True, slots=True)
class Wire:
    """A connection; role: which side looks on; old: from the connection's middle on."""

    protocol: str
    name: str
    segments: Sequence[Sent]
    role: str = "CLIENT"
    old: bool = False

    @property
    def size(self) -> int:
        return sum(len(part.data) + part.unseen for part in self.segments)

    @property
    def side(self) -> Side:
        return "client" if self.role == "CLIENT" else "server"


CASES = [
    *(
        Wire(protocol, case.name, case.segments, case.role, case.old)
        for protocol in EXCHANGES
        for case in corpus(protocol)
    ),
    *(
        Wire("http2", name.replace(" ", "-"), segments, role)
        for name, (segments, _) in SCENARIOS.items()
        for role in ("CLIENT", "SERVER")
    ),
]
IDS = [f"{case.protocol}-{case.name}-{case.side}" for case in CASES]
RECORDS = 4096  # more than any case comes to
# What tells of where and when instead of what.
PLACES = (
    "start_ns", "request_end_ns", "first_byte_ns", "end_ns", "conn_id", "request_seq",
    "response_seq", "tgid", "request_tid", "response_tid", "task_start_ns", "local_addr",
    "remote_addr", "local_port", "remote_port", "family",
)  # fmt: skip


def segments_of(case: Wire, mss: int = 1460, seed: str = "") -> list[Segment]:
    """A case as it would go over a network: handshake, data, what closes it.

    seed: cut the data at random places instead of at `mss`. Requests on a connection whose
    beginning is not in the capture tell by whole segments what it speaks: they are not cut.
    """
    sizes = LONG_SIZES if case.size > LONG else SIZES
    rng = random.Random(seed)
    seqs, now = [2**32 - 700, 5000], START_NS
    made: list[Segment] = []

    def add(sender: int, payload: bytes = b"", flags: int = ACK, cut: int = 0) -> None:
        nonlocal now
        ack = seqs[1 - sender] if flags & ACK else 0
        made.append(segment(sender, seqs[sender], payload, flags, ack, now, cut))
        seqs[sender] += len(payload) + cut + bool(flags & (SYN | FIN))
        now += 1_000_000

    if not case.old:
        add(CLIENT, flags=SYN)
        add(SERVER, flags=SYN | ACK)
    closed: set[int] = set()
    for part in case.segments:
        sender = SERVER if part.server else CLIENT
        if part.close:
            add(sender, flags=ACK | FIN)
            closed.add(sender)
        for at in range(0, part.unseen, 50_000):
            add(sender, cut=min(50_000, part.unseen - at))
        at = 0
        while at < len(part.data):
            size = rng.choice(sizes) if seed else mss
            if case.old and not part.server:
                size = len(part.data)
            add(sender, part.data[at : at + size])
            at += size
    if closed:
        for sender in {CLIENT, SERVER} - closed:
            add(sender, flags=ACK | FIN)
    return made


@cache
def layout() -> Layout:
    return load_layout(OBJECT)


def replay(segments: Sequence[Segment], side: Side = "server") -> Records:
    """Records of segments: through everything but files."""
    engine, streams = Engine(layout()), Streams()
    sockets = Sockets(engine, side)
    for each in segments:
        sockets.feed(streams.take(each))
    sockets.feed(streams.finish())
    room = engine.room(RECORDS)
    count = engine.take(room)
    assert count < RECORDS
    return room[:count].copy()


def captured(segments: Sequence[Segment]) -> list[Segment]:
    """Segments, written to a capture file and read from there again."""
    frames = []
    for each in segments:
        whole = each._replace(payload=each.payload + bytes(each.cut))
        link_type, data = frame("raw", ip_packet(whole))
        frames.append((each.time_ns, data[: len(data) - each.cut]))
    read = []
    for packet in Capture(stream(pcap_file(frames, link_type)), "a case"):
        found = segment_of(packet.link_type, packet.data, packet.time_ns)
        assert isinstance(found, Segment)
        read.append(found)
    return read


def plain(records: Records) -> bytes:
    """What records say of messages, alone."""
    kept = records[records["kind"] != int(Kind.CLOSED)].copy()
    for name in PLACES:
        kept[name] = 0
    return bytes(kept.tobytes())


def blocks_and_streams(records: Records) -> tuple[list[Block], list[Done]]:
    """Streams by their number: those that end together come in no order."""
    rows = told(Outcome(records, 0, "", "", ""))
    done = [row for row in rows if isinstance(row, Done)]
    return [row for row in rows if isinstance(row, Block)], sorted(done, key=lambda d: d.stream)


def expected(case: Wire) -> Records:
    script = Script.of(case.segments)
    return parsers().run(script, role=case.role, old=case.old, resync=True).records


def check(case: Wire, segments: Sequence[Segment], wanted: Records) -> None:
    """Equal bytes are the rule; strings that come in several records may be cut elsewhere."""
    records = replay(segments, case.side)
    if plain(records) == plain(wanted):
        return
    if case.protocol == "http2":
        assert blocks_and_streams(records) == blocks_and_streams(wanted)
    else:
        assert exchanges(case.protocol, records) == exchanges(case.protocol, wanted)


def shaken(segments: Sequence[Segment], seed: str, old: bool) -> list[Segment]:
    """What a network does: segments late and twice.

    old: where the streams begin is told by the segments that come first, and they stay so.
    """
    rng = random.Random(seed)
    made = list(segments[:2])
    for each in segments[2:]:
        made.append(each)
        if rng.random() < 0.3:
            made.append(made[rng.randrange(max(2, len(made) - 4), len(made))])
    for _ in range(0 if old else len(made)):
        at = rng.randrange(2, max(3, len(made) - 1))
        # Only within a direction: what answers what must not change.
        if at + 1 < len(made) and made[at].sport == made[at + 1].sport:
            made[at], made[at + 1] = made[at + 1], made[at]
    return made


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_capture_says_what_the_parsers_say(case: Wire) -> None:
    wanted = expected(case)
    if case.size > HUGE:
        check(case, segments_of(case, 60_000), wanted)
        return
    check(case, captured(segments_of(case, 60_000 if case.size > LONG else 1460)), wanted)
    for seed in ("a", "b"):
        cut = segments_of(case, seed=f"{case.name} {seed}")
        check(case, cut, wanted)
        check(case, shaken(cut, seed, case.old), wanted)


TURNS = [
    (CLIENT, b"GET /users/1?token=x HTTP/1.1\r\nHost: a.example\r\n\r\n"),
    (SERVER, b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000),
    (CLIENT, b"POST /x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc"),
    (SERVER, b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"),
]
WHOLE = conversation(TURNS)
SUMMARY = "wirespan: 17 packets, 1 connections, 2 spans; lost: nothing\n"


def wirespan(
    *arguments: str, data: bytes = b"", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "tracer.cli", "replay", *arguments],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin", "TZ": "UTC", **variables},
        input=data, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def spans(*arguments: str, data: bytes) -> tuple[list[dict[str, Any]], str]:
    done = wirespan("--output", "json", *arguments, "-", data=data)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("link", LINKS)
def test_link_types(link: str, version: int) -> None:
    found, said = spans(data=capture_of(WHOLE, link, version))
    assert said == SUMMARY
    server, client = ("10.0.0.1", "10.0.0.2") if version == 4 else ("[2001:db8::1]", "2001:db8::2")
    assert [span["name"] for span in found] == ["GET /users/{id}", "POST /x"]
    assert [span["kind"] for span in found] == ["SERVER", "SERVER"]
    assert [span["status"] for span in found] == ["UNSET", "ERROR"]
    assert {span["resource"]["service.name"] for span in found} == {f"{server}:80"}
    attributes = found[0]["attributes"]
    assert attributes["client.address"] == client
    assert attributes["network.peer.port"] == 40_000
    assert attributes["http.response.body.size"] == 5000
    assert attributes["url.query"] == "token=REDACTED"
    assert "thread.id" not in attributes
    times = {at: segment.time_ns for at, segment in enumerate(WHOLE)}
    assert found[0]["start_time_unix_nano"] == times[3]
    assert attributes["wirespan.time_to_first_byte_ns"] == times[5] - times[3]
    assert found[0]["end_time_unix_nano"] == times[8]


def test_text_on_standard_output(tmp_path: Path) -> None:
    file = tmp_path / "x.pcap"
    file.write_bytes(capture_of(WHOLE))
    done = wirespan(str(file))
    assert done.returncode == 0
    first, second = done.stdout.decode().splitlines()
    assert first.split() == [
        "22:13:20.131", "10.0.0.1:80", "server", "GET", "/users/1?token=REDACTED", "200",
        "5.00ms", "10.0.0.2:40000",
    ]  # fmt: skip
    assert "503" in second
    assert wirespan("--output", "none", str(file)).stdout == b""


def alone(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Spans of a kind, without what hangs together."""
    made = [span | {"parent_span_id": ""} for span in found if span["kind"] == kind]
    for span in made:
        span["attributes"].pop("wirespan.link.evidence", None)
    return made


def test_both_sides_know_each_other() -> None:
    both, _ = spans("--side", "both", data=capture_of(WHOLE))
    server, _ = spans("--side", "server", data=capture_of(WHOLE))
    client, _ = spans("--side", "client", data=capture_of(WHOLE))
    assert [span["parent_span_id"] for span in server + client] == [""] * 4
    above = {span["span_id"]: span for span in both if span["kind"] == "CLIENT"}
    for span in both:
        evidence = span["attributes"].get("wirespan.link.evidence")
        if span["kind"] == "SERVER":
            parent = above[span["parent_span_id"]]
            assert (parent["name"], parent["trace_id"]) == (span["name"], span["trace_id"])
            assert evidence == "stream"
        else:
            assert (span["parent_span_id"], evidence) == ("", None)
    assert alone(both, "SERVER") == alone(server, "SERVER")
    assert alone(both, "CLIENT") == alone(client, "CLIENT")
    assert {span["resource"]["service.name"] for span in client} == {"10.0.0.2"}
    assert [s["trace_id"] for s in server] == [s["trace_id"] for s in client]
    assert not {s["span_id"] for s in server} & {s["span_id"] for s in client}


def test_a_request_that_names_its_trace() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\ntraceparent: 00-" + b"ab" * 16 + b"-" + b"cd" * 8
    turns = [(CLIENT, head + b"-01\r\n\r\n"), TURNS[3]]
    (found,), _ = spans(data=capture_of(conversation(turns)))
    assert (found["trace_id"], found["parent_span_id"]) == ("ab" * 16, "cd" * 8)
    assert found["attributes"]["wirespan.link.evidence"] == "traceparent"


@pytest.mark.parametrize("turns", [TURNS, TURNS[:2], TURNS[2:]])
@pytest.mark.parametrize("skipped", [0, 3], ids=["whole", "middle"])
def test_a_file_whose_order_is_not_that_of_time(
    turns: list[tuple[int, bytes]], skipped: int
) -> None:
    """What it lacks is named."""
    _, said = spans(data=capture_of(conversation(turns)[skipped:][::-1]))
    assert "connections_disordered 1" in said


def test_segments_that_the_network_reordered_are_in_order() -> None:
    segments = list(WHOLE)
    segments[5], segments[6] = (
        segments[6]._replace(time_ns=segments[5].time_ns),
        segments[5]._replace(time_ns=segments[6].time_ns),
    )
    again = [each._replace(time_ns=WHOLE[-1].time_ns) for each in segments[3:7]]
    for repeated in ([], again):
        _, said = spans(data=capture_of([*segments, *repeated]))
        assert said.endswith("lost: nothing\n")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (capture_of(WHOLE)[:20], "it ends within its header"),
        (pcap_file([], 1) + bytes([255]) * 16, "it is damaged behind packet 0"),
        (section()[:20], "it ends within its header"),
        (section() + b"\6\0\0\0\7\0\0\0", "it is damaged behind packet 0"),
    ],
)
def test_a_file_of_which_nothing_can_be_read(data: bytes, message: str) -> None:
    done = wirespan("-", data=data)
    assert (done.returncode, done.stdout) == (1, b"")
    first, hint = done.stderr.decode().splitlines()
    assert first.startswith(f"wirespan: cannot replay standard input: {message}")
    assert hint.startswith("hint: ")


def test_a_capture_that_begins_in_the_middle() -> None:
    whole, _ = spans(data=capture_of(WHOLE))
    assert spans(data=capture_of(WHOLE[3:]))[0] == whole
    later, said = spans(data=capture_of(WHOLE[6:]))
    assert later == whole[1:]
    assert "1 spans" in said


def test_a_snapshot_length_keeps_what_heads_tell() -> None:
    frames = [(s.time_ns, frame("ethernet", ip_packet(s))[1]) for s in WHOLE]
    short = pcap_file([(at, data[:200]) for at, data in frames], 1)
    found, said = spans(data=short)
    assert found == spans(data=capture_of(WHOLE))[0]
    assert "lost: missing_bytes" in said


def test_packets_that_the_capture_lost() -> None:
    # From within the content of a known length: nothing that a span tells.
    found, said = spans(data=capture_of([*WHOLE[:6], *WHOLE[7:]]))
    assert found == spans(data=capture_of(WHOLE))[0]
    assert "lost: missing_bytes 1460" in said
    # The head of a response.
    found, said = spans(data=capture_of([*WHOLE[:5], *WHOLE[6:]]))
    assert found[0]["attributes"]["wirespan.incomplete"] == "gap"
    assert found[1]["attributes"]["http.response.status_code"] == 503
    assert "gap 1" in said


def test_pcapng_and_several_interfaces() -> None:
    frames = [(s.time_ns, frame("ethernet", ip_packet(s))[1]) for s in WHOLE]
    data = section() + interface(1, 6) + interface(1, 9)
    for number, (time_ns, packet) in enumerate(frames):
        units = time_ns if number % 2 else time_ns // 1000
        data += enhanced(number % 2, units, packet)
    found, said = spans(data=data)
    assert said == SUMMARY
    assert [span["name"] for span in found] == ["GET /users/{id}", "POST /x"]


def test_a_capture_that_is_cut() -> None:
    whole = capture_of(WHOLE)
    found, said = spans(data=whole[:-30])
    assert len(found) == 2
    warning, summary = said.splitlines()
    assert warning.startswith("wirespan: warning: standard input: it ends within packet 17")
    assert summary.endswith("lost: nothing")


def test_fragments_and_link_types_that_are_not_read() -> None:
    frames = [(s.time_ns, frame("ethernet", ip_packet(s))[1]) for s in WHOLE]
    fragment = bytearray(frames[4][1])
    fragment[20:22] = b"\x20\x00"
    _, said = spans(data=pcap_file([*frames, (START_NS, bytes(fragment))], 1))
    assert "lost: fragments 1" in said
    _, said = spans(data=pcap_file(frames, 105))
    assert "link types that are not supported: 105" in said
    assert "lost: unsupported_packets 17" in said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\x1f\x8b\x08\0", "it is compressed"),
        (b"PK\x03\x04", "it is neither pcap nor pcapng"),
    ],
)
def test_what_is_no_capture(data: bytes, message: str) -> None:
    done = wirespan("-", data=data)
    assert (done.returncode, done.stdout) == (1, b"")
    first, hint = done.stderr.decode().splitlines()
    assert first.startswith(f"wirespan: cannot replay standard input: {message}")
    assert hint.startswith("hint: ")


def test_files_that_cannot_be_read_and_wrong_usage(tmp_path: Path) -> None:
    done = wirespan(str(tmp_path / "none.pcap"))
    assert done.returncode == 1
    assert b"none.pcap: No such file or directory" in done.stderr
    assert wirespan(str(tmp_path)).returncode == 1
    assert wirespan().returncode == 2
    assert wirespan("--side", "left", "x").returncode == 2


def test_an_endpoint_that_is_down_is_a_failure() -> None:
    done = wirespan(
        "--output", "none", "--otlp-endpoint", "http://127.0.0.1:9", "-", data=capture_of(WHOLE)
    )
    assert done.returncode == 1
    assert b"2 spans were not exported to http://127.0.0.1:9/v1/traces" in done.stderr


def test_spans_reach_an_endpoint() -> None:
    receiver = Receiver()
    with http_receiver(receiver) as port:
        url = f"http://127.0.0.1:{port}"
        done = wirespan("--otlp-endpoint", url, "-", data=capture_of(WHOLE))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(receiver.spans) == 2


def test_a_reset_ends_what_is_in_flight() -> None:
    ended = conversation(TURNS[:1], ending=False)
    ended.append(segment(1, 5001, flags=RST, time_ns=START_NS + 10**9))
    found, _ = spans(data=capture_of(ended))
    assert len(found) == 1
    assert found[0]["end_time_unix_nano"] == START_NS + 10**9
    assert found[0]["attributes"]["error.type"]
