"""Plain HTTP/2: real servers and clients, and by the h2 library what those seldom do."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from tests.root.harness import (
    CLIENT,
    SERVER,
    WORKLOADS,
    Exchange,
    Process,
    Spans,
    Watch,
    assert_exact,
    assert_sound,
    free_port,
    listening,
    run,
    running,
    unique,
)
from tests.root.nginx import FILE_BYTES, HELLO, Nginx
from tests.root.test_http1_servers import listed
from tests.root.wire import Wire, at_random, each, receive


@pytest.fixture(scope="module")
def hypercorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a hypercorn: HTTP/1, HTTP/2 by prior knowledge and by upgrade."""
    port, log = free_port(), tmp_path_factory.mktemp("hypercorn") / "log"
    argv = [sys.executable, "-m", "hypercorn", "-b", f"127.0.0.1:{port}"]
    argv += ["--log-level", "warning", "asgi:app"]
    process = Process(argv, log, cwd=WORKLOADS)
    with running(process):
        process.wait_for(lambda: listening(port), "hypercorn listens")
        yield port


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nginx, int]]:
    """An nginx, and its port for HTTP/2 by prior knowledge."""
    port = free_port()
    nginx = Nginx(tmp_path_factory.mktemp("nginx"), extra=f"listen 127.0.0.1:{port} http2;")
    yield nginx, port
    nginx.stop()


def versions(spans: Spans) -> set[str]:
    return {str(span.attributes.get("network.protocol.version")) for span in spans}


def curl(*args: str | Path) -> list[tuple[str, int, int]]:
    """Version, status and bytes of each transfer on curl's one connection."""
    out = run(["curl", "-sS", "-w", "%{http_version} %{http_code} %{size_download}\\n", *args])
    rows = [line.split() for line in out.splitlines()]
    return [(version, int(status), int(size)) for version, status, size in rows]


@pytest.mark.parametrize("server", ["hypercorn", "nginx"])
def test_curl_by_prior_knowledge(
    watch: Watch, hypercorn: int, nginx: tuple[Nginx, int], server: str
) -> None:
    """One request a connection: curl 7.88 (Debian 12) cannot use such a connection again."""
    path, port = unique(), hypercorn if server == "hypercorn" else nginx[1]
    expected = []
    for n in range(30):
        url = f"http://127.0.0.1:{port}{path}/{n}?size={n * 900}"
        size = n * 900 if server == "hypercorn" else HELLO
        assert curl("--http2-prior-knowledge", "-o", "/dev/null", url) == [("2", 200, size)]
        expected.append(Exchange(f"{path}/{n}", 200, "GET", 0, size))
    spans = watch.exact(path, expected)
    assert versions(spans) == {"2"}
    assert {s.resource["service.name"] for s in spans.of(CLIENT)} == {"curl"}


def test_curl_methods_bodies_and_statuses(
    watch: Watch, nginx: tuple[Nginx, int], tmp_path: Path
) -> None:
    path, port = unique(), nginx[1]
    upload = tmp_path / "upload"
    upload.write_bytes(b"u" * (5 << 20))
    common = ["--http2-prior-knowledge", "-o", "/dev/null"]
    plan = [
        ("GET", "missing", [], 0),
        ("GET", "broken", [], 0),
        ("HEAD", "hello", ["-I"], 0),
        ("GET", "file", [], 0),
        ("HEAD", "file", ["-I"], 0),
        ("PUT", "put", ["-T", str(upload)], 5 << 20),
        ("PUT", "put", ["-T", str(upload)], 5 << 20),
    ]
    expected = []
    for method, name, args, sent in plan:
        ((version, status, size),) = curl(*common, *args, f"http://127.0.0.1:{port}{path}/{name}")
        assert version == "2"
        body = 0 if method == "HEAD" else size
        expected.append(Exchange(f"{path}/{name}", status, method, sent, body))
    assert [e.status for e in expected] == [404, 500, 200, 200, 200, 201, 204]
    assert expected[3].response_body == FILE_BYTES
    spans = watch.exact(path, expected)
    for span in spans:
        assert span.status is not None
        failed = span.status >= (500 if span.kind == SERVER else 400)
        assert (span.error == str(span.status)) == failed, span


def test_curl_by_upgrade(watch: Watch, hypercorn: int) -> None:
    """The answer to the request that asks for the upgrade comes on stream 1."""
    path = unique()
    urls = []
    for n in range(10):
        urls += ["-o", "/dev/null", f"http://127.0.0.1:{hypercorn}{path}/{n}?size={n * 100}"]
    done = curl("--http2", *urls)
    assert done == [("2", 200, n * 100) for n in range(10)]
    after = [Exchange(f"{path}/{n}", 200, "GET", 0, n * 100) for n in range(1, 10)]
    spans = watch.under(path, 2 * len(done))
    later = Spans(s for s in spans if s.path != f"{path}/0")
    assert_exact(later, after)
    assert versions(later) == {"2"}
    first = Spans(s for s in spans if s.path == f"{path}/0")
    for kind in (CLIENT, SERVER):
        assert [s.status for s in first.of(kind)] in ([101], [200]), first.show()


def test_an_upgrade_that_the_server_passes_over(watch: Watch, nginx: tuple[Nginx, int]) -> None:
    path, server = unique(), nginx[0]
    url = f"http://127.0.0.1:{server.port}{path}"
    assert curl("--http2", "-o", "/dev/null", url) == [("1.1", 200, HELLO)]
    spans = watch.exact(path, [Exchange(path, 200, "GET", 0, HELLO)])
    assert versions(spans) == {"1.1"}


@pytest.mark.parametrize("concurrency", [1, 100])
def test_httpx(watch: Watch, hypercorn: int, concurrency: int) -> None:
    path = unique()
    url = f"http://127.0.0.1:{hypercorn}{path}"
    out = run([sys.executable, WORKLOADS / "httpx2.py", url, "300", str(concurrency)])
    expected = listed(out)
    assert len(expected) == 300
    spans = watch.exact(path, expected)
    assert versions(spans) == {"2"}
    assert len({s.attributes.get("client.port") for s in spans.of(SERVER)}) == 1


@pytest.mark.parametrize(("connections", "streams"), [(1, 100), (8, 32)])
def test_h2load(watch: Watch, nginx: tuple[Nginx, int], connections: int, streams: int) -> None:
    """h2load: 5,000 requests by as many streams at once as it is told."""
    (server, port), path, requests = nginx, unique(), 5000
    argv = ["h2load", "-n", str(requests), "-c", str(connections), "-m", str(streams)]
    out = run([*argv, f"http://127.0.0.1:{port}{path}/load"])
    assert re.search(rf"{requests} succeeded, 0 failed", out), out
    expected = [Exchange(f"{path}/load", 200, "GET", 0, HELLO)] * requests
    spans = watch.exact(path, expected)
    assert len(server.logged(path)) == requests
    assert versions(spans) == {"2"}
    assert len({s.attributes.get("client.port") for s in spans.of(SERVER)}) == connections


class Pair:
    """The h2 library at both ends of a Wire: what one end has to send, the other is given."""

    def __init__(self, wire: Wire, cuts: Iterator[int] | None = None) -> None:
        self.wire, self.cuts = wire, cuts
        self.client = self._end(True)
        self.server = self._end(False)
        self.client.initiate_connection()
        self.server.initiate_connection()
        self.move()

    @staticmethod
    def _end(client: bool) -> h2.connection.H2Connection:
        # Neither end may answer for the test.
        config = h2.config.H2Configuration(client_side=client, header_encoding="utf-8")
        return h2.connection.H2Connection(config)

    def move(self) -> list[h2.events.Event]:
        """Carry all that both ends have to send, until neither has more."""
        events: list[h2.events.Event] = []
        while True:
            there, back = self.client.data_to_send(), self.server.data_to_send()
            if not there and not back:
                return events
            if there:
                self.wire.request(there, self.cuts)
                events += self._take(self.server, there)
            if back:
                self.wire.response(back, self.cuts)
                events += self._take(self.client, back)

    @staticmethod
    def _take(end: h2.connection.H2Connection, data: bytes) -> list[h2.events.Event]:
        """Give an end what came, and open its windows again for as much."""
        events = end.receive_data(data)
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                end.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        return events

    def ask(
        self,
        path: str,
        method: str = "GET",
        fields: dict[str, str] | None = None,
        body: bytes | None = None,
    ) -> int:
        """Queue a request, all of it unless it has a body; returns its stream."""
        stream = self.client.get_next_available_stream_id()
        head = {":method": method, ":scheme": "http", ":path": path, ":authority": "wire.test"}
        self.client.send_headers(
            stream, [*head.items(), *(fields or {}).items()], end_stream=body is None
        )
        if body is not None:
            self.send(self.client, stream, body)
        return stream

    def answer(
        self,
        stream: int,
        body: bytes = b"",
        status: int = 200,
        fields: dict[str, str] | None = None,
    ) -> None:
        """Queue a whole answer."""
        head = {":status": str(status), **(fields or {})}
        self.server.send_headers(stream, list(head.items()), end_stream=not body)
        if body:
            self.send(self.server, stream, body)

    def send(
        self,
        end: h2.connection.H2Connection,
        stream: int,
        body: bytes,
        padding: int | None = None,
        last: bool = True,
    ) -> None:
        """Send a body in as many frames as it takes, carrying them as the windows ask."""
        done = 0
        while True:
            # A frame's padding, and the byte that says how long it is, count as well.
            room = end.local_flow_control_window(stream) - (padding + 1 if padding else 0)
            assert room > 0 or not body, "the window opens as what was sent is taken"
            piece = body[done : done + min(room, 16384 - 256)]
            done += len(piece)
            ended = done == len(body)
            end.send_data(stream, piece, end_stream=ended and last, pad_length=padding)
            if ended:
                return
            self.move()


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as wire:
        yield wire


@pytest.mark.parametrize("cuts", ["whole", "bytes", "random"])
def test_frames_cut_anywhere(watch: Watch, wire: Wire, cuts: str) -> None:
    """Interleaved streams, fields that fill and leave the dynamic table, several frames a send."""
    path, rng = unique(), random.Random(3)
    pair = Pair(wire, {"whole": None, "bytes": each(1), "random": at_random(rng)}[cuts])
    expected = []
    rounds, at_once = (5, 8) if cuts == "bytes" else (25, 20)
    for turn in range(rounds):
        streams = []
        for n in range(at_once):
            where = f"{path}/{turn}/{n}"
            body = rng.randbytes(rng.choice((1, 9, 300))) if n % 3 == 0 else None
            fields = {"x-turn": str(turn), "x-once": rng.randbytes(rng.choice((3, 200))).hex()}
            stream = pair.ask(where, "POST" if body else "GET", fields, body)
            streams.append((stream, where, len(body or b"")))
        pair.move()
        rng.shuffle(streams)
        for stream, where, sent in streams:
            status, size = rng.choice((200, 204, 302, 404, 418, 503)), rng.choice((0, 1, 700))
            size = 0 if status == 204 else size
            pair.answer(stream, rng.randbytes(size), status, {"x-size": str(size)})
            method = "POST" if sent else "GET"
            expected.append(Exchange(where, status, method, sent, size))
        pair.move()
    watch.exact(path, expected)


def test_header_blocks_beyond_one_frame(watch: Watch, wire: Wire) -> None:
    path = unique()
    pair = Pair(wire)
    for end in (pair.client, pair.server):
        end.update_settings({h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 1 << 20})
    pair.move()
    expected = []
    for n in range(6):
        long = {f"x-{k}": random.Random(n * k).randbytes(9000).hex() for k in range(n)}
        stream = pair.ask(f"{path}/{n}", fields=long)
        pair.move()
        pair.answer(stream, b"body", fields=long)
        pair.move()
        expected.append(Exchange(f"{path}/{n}", 200, "GET", 0, 4))
    watch.exact(path, expected)


def test_table_sizes_that_change(watch: Watch, wire: Wire) -> None:
    path = unique()
    pair = Pair(wire)
    expected = []
    code = h2.settings.SettingCodes.HEADER_TABLE_SIZE
    for turn, size in enumerate((0, 4096, 64, 65536, 100, 4096)):
        for end in (pair.client, pair.server):
            end.update_settings({code: size})
        pair.move()
        for n in range(5):
            where = f"{path}/{turn}/{n}"
            stream = pair.ask(where, fields={"x-kept": "k" * 30, "x-turn": f"{turn}-{n // 2}"})
            pair.move()
            pair.answer(stream, b"b" * n, 404, {"x-kept": "k" * 30})
            pair.move()
            expected.append(Exchange(where, 404, "GET", 0, n))
    watch.exact(path, expected)


def test_huge_padded_data_trailers_and_interim_responses(watch: Watch, wire: Wire) -> None:
    path = unique()
    pair = Pair(wire)
    expected = []
    for n, (size, padding) in enumerate(((0, None), (3 << 20, None), (1 << 20, 255), (10, 1))):
        stream = pair.ask(f"{path}/{n}", "POST", body=b"q" * size)
        pair.move()
        pair.server.send_headers(stream, [(":status", "103"), ("link", "</x>")])
        pair.move()
        pair.server.send_headers(stream, [(":status", "200")])
        pair.send(pair.server, stream, b"p" * size, padding, last=False)
        pair.server.send_headers(stream, [("x-sum", "1")], end_stream=True)
        pair.client.ping(b"12345678")
        pair.move()
        expected.append(Exchange(f"{path}/{n}", 200, "POST", size, size))
        # The windows are open again for the next.
        for end in (pair.client, pair.server):
            end.increment_flow_control_window(1 << 24)
        pair.move()
    watch.exact(path, expected)


@pytest.mark.parametrize("by", [CLIENT, SERVER])
@pytest.mark.parametrize("answered", [False, True])
def test_streams_that_are_reset(watch: Watch, wire: Wire, by: str, answered: bool) -> None:
    path = unique()
    pair = Pair(wire)
    end = pair.client if by == CLIENT else pair.server
    expected = []
    for n in range(10):
        stream = pair.ask(f"{path}/reset/{n}")
        other = pair.ask(f"{path}/whole/{n}")
        pair.move()
        if answered:
            pair.server.send_headers(stream, [(":status", "200")])
            pair.server.send_data(stream, b"part")
            pair.move()
        end.reset_stream(stream, error_code=8 if by == CLIENT else 2)
        pair.move()
        pair.answer(other, b"all")
        pair.move()
        expected.append(Exchange(f"{path}/whole/{n}", 200, "GET", 0, 3))
    watch.exact(f"{path}/whole", expected)
    spans = watch.under(f"{path}/reset", 20)
    assert_sound(spans)
    for kind in (CLIENT, SERVER):
        assert {s.path for s in spans.of(kind)} == {f"{path}/reset/{n}" for n in range(10)}
        assert {s.status for s in spans.of(kind)} == {200 if answered else None}
    assert len(spans) == 20, spans.show()
    assert all(span.error for span in spans), spans.show()


# At each time that it is told, sends an answer and reads it at the other end.
ANSWERS = """
import socket, sys, time
client, server = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:3])
print("ready", flush=True)
for line in sys.stdin:
    at, answer = line.split()
    data = bytes.fromhex(answer)
    while time.monotonic_ns() < int(at):
        pass
    server.sendall(data)
    while data:
        data = data[len(client.recv(len(data))):]
    print("read", flush=True)
"""
ANSWERED = "wirespan.time_to_first_byte_ns"


def test_streams_that_both_ends_end_at_once(watch: Watch, wire: Wire) -> None:
    """The client resets a stream on one CPU, just as on another it reads the answer."""
    path, rng, count = unique(), random.Random(5), 1000
    pair = Pair(wire)
    ends = wire.client, wire.server
    argv = [sys.executable, "-c", ANSWERS, *(str(end.fileno()) for end in ends)]
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[end.fileno() for end in ends],
    ) as other:
        assert other.stdin and other.stdout and other.stdout.readline() == "ready\n"
        for n in range(count):
            stream = pair.ask(f"{path}/{n}")
            pair.move()
            pair.answer(stream)
            answer = pair.server.data_to_send()
            pair.client.reset_stream(stream, error_code=8)
            reset = pair.client.data_to_send()
            at = time.monotonic_ns() + 500_000
            print(at, answer.hex(), file=other.stdin, flush=True)
            at += rng.randrange(40_000)  # the other sends first, which takes as long
            while time.monotonic_ns() < at:
                pass
            wire.client.sendall(reset)
            assert receive(wire.server, len(reset)) == reset
            assert other.stdout.readline() == "read\n"
            pair.server.receive_data(reset)
            pair.client.receive_data(answer)
            pair.move()
        other.stdin.close()
    watch.under(path, 2 * count)
    spans = watch.at(wire.ports(), 2 * count)  # those that lack a path as well
    # A status that was read a moment too late has no time of its own.
    assert_sound(Spans(span for span in spans if ANSWERED in span.attributes))
    for kind in (CLIENT, SERVER):
        paths = Counter(span.path for span in spans.of(kind))
        assert paths == Counter(f"{path}/{n}" for n in range(count))


def test_goaway_with_streams_in_flight(watch: Watch, wire: Wire) -> None:
    """Those that the server took are answered; the rest ends with the connection."""
    path = unique()
    pair = Pair(wire)
    streams = [pair.ask(f"{path}/{n}") for n in range(10)]
    pair.move()
    # By hand: h2 takes a connection whose GOAWAY it sent for closed.
    frame = b"\0\0\x08\x07\0\0\0\0\0" + streams[4].to_bytes(4) + bytes(4)
    wire.response(frame)
    for stream in streams[:5]:
        pair.answer(stream, b"taken")
    wire.response(pair.server.data_to_send())
    wire.server.close()
    wire.client.close()
    spans = watch.under(path, 20)
    taken = {f"{path}/{n}" for n in range(5)}
    assert_exact(
        Spans(s for s in spans if s.path in taken),
        [Exchange(where, 200, "GET", 0, 5) for where in sorted(taken)],
    )
    left = Spans(s for s in spans if s.path not in taken)
    for kind in (CLIENT, SERVER):
        assert len(left.of(kind)) == 5, left.show()
    assert {s.status for s in left} == {None}
    assert all(span.error for span in left), left.show()


def test_push_that_is_refused(watch: Watch, wire: Wire) -> None:
    """A promised response is no exchange that anybody asked for; the rest of them is exact."""
    path = unique()
    pair = Pair(wire)
    expected = []
    for n in range(5):
        stream = pair.ask(f"{path}/asked/{n}")
        pair.move()
        promised = pair.server.get_next_available_stream_id()
        pair.server.push_stream(
            stream,
            promised,
            [
                (":method", "GET"),
                (":scheme", "http"),
                (":path", f"{path}/pushed/{n}"),
                (":authority", "wire.test"),
            ],
        )
        pair.move()
        pair.client.reset_stream(promised, error_code=7)
        pair.move()
        pair.answer(stream, b"whole")
        pair.move()
        expected.append(Exchange(f"{path}/asked/{n}", 200, "GET", 0, 5))
    watch.exact(f"{path}/asked", expected)
    assert all(s.error or s.status is None for s in watch.now(f"{path}/pushed"))


def test_h2load_beside_http1(watch: Watch, nginx: tuple[Nginx, int]) -> None:
    """Both versions at once, on two ports of one nginx."""
    (server, port), path = nginx, unique()
    url = f"http://127.0.0.1:{{}}{path}/{{}}"
    argvs = [
        ["h2load", "-n", "1000", "-c", "2", "-m", "10", url.format(port, "two")],
        ["h2load", "--h1", "-n", "1000", "-c", "2", url.format(server.port, "one")],
    ]
    running_loads = [subprocess.Popen(argv, stdout=subprocess.DEVNULL) for argv in argvs]
    assert [load.wait(60) for load in running_loads] == [0, 0]
    expected = [Exchange(f"{path}/{name}", 200, "GET", 0, HELLO) for name in ("one", "two")]
    spans = watch.exact(path, list(itertools.chain(*([e] * 1000 for e in expected))))
    for name, version in (("one", "1.1"), ("two", "2")):
        assert versions(Spans(s for s in spans if s.path == f"{path}/{name}")) == {version}
