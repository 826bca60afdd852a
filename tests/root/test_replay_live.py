"""A capture made while the tracer runs: replayed, it gives the spans that the tracer gave."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pymysql
import pytest

from tests.root.databases import DATABASE, USER, MySql
from tests.root.echo import Client, Server
from tests.root.harness import ROOT, Process, Span, Spans, Watch, free_port, unique

TCPDUMP = shutil.which("tcpdump") or "/usr/bin/tcpdump"
CONNECTIONS, REQUESTS = 20, 15
# A capture tells when packets passed, a tracer when calls began and ended; on a busy machine
# a thread may wait this long in between.
APART_NS = 500_000_000

pytestmark = pytest.mark.root

# What a capture can't know of a process, and what depends on who looked when.
UNKNOWN = {"thread.id", "wirespan.time_to_first_byte_ns"}
PATH = {"SERVER": "url.path", "CLIENT": "url.full"}


class Capture:
    """tcpdump on the loopback interface, for one port."""

    def __init__(self, directory: Path, port: int, *options: str) -> None:
        self.file = directory / "traffic.pcap"
        self._port = port
        argv = [TCPDUMP, "-i", "lo", "-U", "--immediate-mode", "-B", "65536", *options]
        argv += ["-w", str(self.file), "tcp", "port", str(port)]
        self._process = Process(argv, directory / "tcpdump.stderr")
        self._process.wait_for(lambda: "listening on" in self._process.said(), "tcpdump listens")

    def stop(self) -> None:
        """End it once it has written what went by: packets come in their order."""
        last = unique()
        converse(self._port, last, 0)
        self._process.wait_for(
            lambda: f"{last}/0/{REQUESTS - 1}/".encode() in self.file.read_bytes(), "the last"
        )
        self._process.stop(signal.SIGINT)

    def stop_when_still(self, still_s: float = 1.0) -> None:
        """End it once its file has not grown for a while, the traffic being over."""
        size, since = 0, time.monotonic()
        while time.monotonic() - since < still_s:
            if self.file.stat().st_size != size:
                size, since = self.file.stat().st_size, time.monotonic()
            time.sleep(0.05)
        self._process.stop(signal.SIGINT)


def serve(listener: socket.socket) -> None:
    """Answer by the path: its last part is the size of the content; 0 is a failure."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection: socket.socket) -> None:
    with connection, connection.makefile("rb") as requests:
        while line := requests.readline():
            length = 0
            while (field := requests.readline().strip().lower()) != b"":
                if field.startswith(b"content-length:"):
                    length = int(field.split(b":")[1])
            requests.read(length)
            size = int(line.split()[1].rsplit(b"/", 1)[1])
            status = b"200 OK" if size else b"500 Oops"
            head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, size)
            connection.sendall(head)
            connection.sendall(b"x" * size)


@pytest.fixture
def server() -> Iterator[int]:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield port
        listener.shutdown(socket.SHUT_RDWR)


def converse(port: int, prefix: str, number: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=15) as client:
        replies = client.makefile("rb")
        for request in range(REQUESTS):
            size = (0, 5, 70_000)[(number + request) % 3]
            body = b"b" * (request * 100)
            head = f"POST {prefix}/{number}/{request}/{size} HTTP/1.1\r\nHost: a.example\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            while replies.readline().strip():
                pass
            assert len(replies.read(size)) == size


def told(span: Mapping[str, Any]) -> dict[str, Any]:
    """What a span says, without what a capture can't know."""
    kept = {key: value for key, value in span.items() if not key.endswith("unix_nano")}
    del kept["resource"]
    kept["attributes"] = {k: v for k, v in span["attributes"].items() if k not in UNKNOWN}
    return kept


def assert_same(live: Sequence[Span], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Each live span was found again, and no other was."""
    assert len({span.raw["span_id"] for span in live}) == len(live)
    missing = [span for span in live if span.raw["span_id"] not in found]
    extra = found.keys() - {span.raw["span_id"] for span in live}
    assert not missing, f"{len(missing)} of {len(live)} missing, as {missing[0]}"
    assert not extra, f"{len(extra)} more than {len(live)}, as {found[extra.pop()]}"
    for span in live:
        again = found[span.raw["span_id"]]
        assert told(again) == told(span.raw)
        for key in ("start_time_unix_nano", "end_time_unix_nano"):
            assert abs(again[key] - span.raw[key]) < APART_NS, (key, span)


# Kind of call, how many, how many at once, bytes of a message: tests/root/test_grpc.py.
GRPC = (
    ("unary", 20, 8, 10),
    ("server", 8, 4, 10),
    ("client", 8, 4, 200),
    ("bidi", 8, 4, 200),
    ("fail", 8, 4, 1),
    ("late", 8, 4, 1),
    ("unary", 1, 1, 300_000),
)


def replayed(*arguments: str) -> tuple[dict[str, dict[str, Any]], str]:
    argv = [sys.executable, "-m", "tracer.cli", "replay", "--output", "json", *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {span["span_id"]: span for span in found}, done.stderr


@pytest.mark.parametrize("options", [(), ("--time-stamp-precision=nano", "-s", "400")])
def test_a_capture_gives_the_spans_of_the_tracer(
    watch: Watch, server: int, tmp_path: Path, options: tuple[str, ...]
) -> None:
    prefix, count = unique(), CONNECTIONS * REQUESTS
    capture = Capture(tmp_path, server, *options)
    clients = [
        threading.Thread(target=converse, args=(server, prefix, number))
        for number in range(CONNECTIONS)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(60)
    live = watch.under(prefix, 2 * count)
    assert len(live) == 2 * count
    capture.stop()
    found, said = replayed("--side", "both", str(capture.file))
    found = {
        key: span for key, span in found.items() if prefix in span["attributes"][PATH[span["kind"]]]
    }
    assert len(found) == 2 * count, said
    for span in live:
        assert told(found[span.raw["span_id"]]) == told(span.raw)


def test_a_capture_of_grpc_gives_the_spans_of_the_tracer(watch: Watch, tmp_path: Path) -> None:
    server = Server("python", tmp_path / "server")
    try:
        capture = Capture(tmp_path, server.port)
        mark = watch.tracer.mark()
        client = Client("python", server.port, tmp_path / "client", 2)
        try:
            made = 0
            for kind, calls, at_once, size in GRPC:
                made += len(client.calls(kind, calls, at_once, size))
        finally:
            client.stop()
        live = watch.tracer.collect(lambda s: s.at(server.port), 2 * made, mark=mark)
        assert len(live) == 2 * made
        capture.stop_when_still()
    finally:
        server.stop()
    found, _ = replayed("--side", "both", str(capture.file))
    calls_found = {key: s for key, s in found.items() if "rpc.system.name" in s["attributes"]}
    assert_same(live, calls_found)


def test_a_capture_of_mysql_gives_the_spans_of_the_tracer(watch: Watch, tmp_path: Path) -> None:
    server = MySql("mariadb")
    try:
        watch.tracer.settle()
        capture = Capture(tmp_path, server.port)
        mark = watch.tracer.mark()
        for number in range(5):
            query(server.port, number)

        def of_server(spans: Sequence[Span]) -> Spans:
            return Spans(s for s in server.spans(Spans(spans)) if server.port in s.ports)

        live = watch.tracer.collect(of_server, 2, mark=mark)
        capture.stop_when_still()
    finally:
        server.stop()
    found, _ = replayed("--side", "both", str(capture.file))
    assert len(live) >= 2 * 5 * 8
    assert_same(live, found)


def query(port: int, number: int) -> None:
    """Commands of many kinds on one connection."""
    connection = pymysql.connect(
        host="127.0.0.1", port=port, user=USER, database=DATABASE, ssl_disabled=True
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT n FROM ten WHERE n < %s", (5,))
        assert len(cursor.fetchall()) == 5
        cursor.execute("SELECT repeat('x', 100000), n FROM ten")
        assert len(cursor.fetchall()) == 10
        cursor.execute(f"SELECT '{'y' * 20_000}'")
        with pytest.raises(pymysql.err.ProgrammingError):
            cursor.execute("SELECT * FROM nowhere")
        cursor.callproc("two")
        while cursor.nextset():
            pass
        connection.ping()
        cursor.execute(f"INSERT INTO ten VALUES ({100 + number})")
