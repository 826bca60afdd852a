"""Busy ports, files and pipes that carry something other than HTTP/1: no spans come of them."""

from __future__ import annotations

import os
import random
import select
import socket
import threading
from pathlib import Path

import pytest

from tests.root.harness import Spans, Watch, unique
from tests.root.wire import Wire, carry, get_head, ok, receive


def other_protocols() -> dict[str, tuple[bytes, bytes]]:
    """What clients and servers of other protocols say to each other."""
    rng = random.Random(1)
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500)
    return {
        "inline Redis": (b"GET key\r\n", b"$5\r\nvalue\r\n"),
        "memcached": (b"get key\r\n", b"VALUE key 0 2\r\nab\r\nEND\r\n"),
        "TLS": (hello, b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76" + rng.randbytes(200)),
        "random": (rng.randbytes(300), rng.randbytes(300)),
        "zeros": (bytes(100), bytes(1)),
        "SMTP": (b"HELO there\r\n", b"250 Hello\r\n"),
        "RTSP": (b"OPTIONS rtsp://a RTSP/1.0\r\nCSeq: 1\r\n\r\n", b"RTSP/1.0 200 OK\r\n\r\n"),
        "SIP": (b"OPTIONS sip:a@b SIP/2.0\r\nVia: x\r\n\r\n", b"SIP/2.0 200 OK\r\n\r\n"),
        "HTTP/2": (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
            b"\0\0\0\4\0\0\0\0\0",
        ),
        "HTTP/0.9": (b"GET /\r\n", b"<html>"),
        "nearly": (b"GET / HTTP/1.", b"HTTP/1.1"),
        "one letter": (b"G", b"H"),
    }


@pytest.mark.parametrize("name", sorted(other_protocols()))
def test_what_speaks_something_else_makes_no_spans(watch: Watch, name: str) -> None:
    ask, reply = other_protocols()[name]
    ports = []
    for first in ("client", "server"):
        with Wire() as wire:
            ports += wire.ports()
            for _ in range(200):
                steps = [(wire.client, wire.server, ask), (wire.server, wire.client, reply)]
                for source, target, data in steps if first == "client" else reversed(steps):
                    carry(source, target, data)
    watch.tracer.settle()
    assert watch.at(ports, 0) == Spans()


def test_a_busy_binary_port(watch: Watch) -> None:
    """40 MB of random bytes both ways at once, on ten connections."""
    blob = random.Random(2).randbytes(1 << 20)
    with Wire() as wire:
        ends = [(wire.client, wire.server)] + [wire.connect() for _ in range(9)]

        def stream(source: socket.socket, target: socket.socket) -> None:
            for k in range(2):
                sender = threading.Thread(target=source.sendall, args=(blob[k:],))
                sender.start()
                receive(target, len(blob) - k)
                sender.join()

        threads = [
            threading.Thread(target=stream, args=way) for a, b in ends for way in ((a, b), (b, a))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client, server in ends[1:]:
            client.close()
            server.close()
        ports = wire.ports()
    assert watch.at(ports, 0) == Spans()


def test_datagrams_files_and_pipes_are_not_connections(watch: Watch, tmp_path: Path) -> None:
    path = unique()
    message = get_head(path) + ok()
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
        two.bind(("127.0.0.1", 0))
        one.sendto(message, two.getsockname())
        two.recv(4096)
    reader, writer = os.pipe()
    os.write(writer, message)
    os.read(reader, 4096)
    os.close(reader)
    os.close(writer)
    (tmp_path / "file").write_bytes(message)
    (tmp_path / "file").read_bytes()
    master, slave = os.openpty()
    os.write(master, message[:100])
    assert select.select([slave], [], [], 5)[0]
    os.read(slave, 100)
    os.close(master)
    os.close(slave)
    watch.tracer.settle()
    assert watch.under(path, 0) == Spans()
