"""A capture made while the tracer runs: replayed, it gives the spans that the tracer gave."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.root.harness import ROOT, Process, Watch, free_port, unique

TCPDUMP = shutil.which("tcpdump") or "/usr/bin/tcpdump"
CONNECTIONS, REQUESTS = 20, 15

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


def told(span: dict[str, Any]) -> dict[str, Any]:
    """What a span says, without what a capture can't know."""
    kept = {key: value for key, value in span.items() if not key.endswith("unix_nano")}
    del kept["resource"]
    kept["attributes"] = {k: v for k, v in span["attributes"].items() if k not in UNKNOWN}
    return kept


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
