"""Unix sockets older than the tracer: nobody knows that they are, so both is tried."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.root.harness import CLIENT, SERVER, Spans, Tracer

QUERY = b"\x03select 1 from older"
OK = b"\7\0\0\1\0\0\0\2\0\0\0"


def queries(spans: Spans) -> Spans:
    return Spans(span for span in spans if "db.query.text" in span.attributes)


@pytest.mark.parametrize("cuts", [(), (4,)], ids=str)
def test_a_command_in_pieces(
    start_tracer: Callable[..., Tracer], tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    """MySQL clients may send a packet's header by itself."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "sock"))
        server, _ = listener.accept()
    with client, server:
        client.sendall(b"before")
        assert server.recv(100) == b"before"
        tracer = start_tracer("--pid", str(os.getpid()))
        command = len(QUERY).to_bytes(3, "little") + b"\0" + QUERY
        for _ in range(2):
            for begin, end in zip((0, *cuts), (*cuts, len(command)), strict=True):
                client.sendall(command[begin:end])
            assert server.recv(100) == command
            server.sendall(OK)
            assert client.recv(100) == OK
        spans = tracer.collect(queries, 4)
    assert [len(spans.of(kind)) for kind in (CLIENT, SERVER)] == [2, 2], spans.show()
    assert {s.attributes["db.query.text"] for s in spans} == {"select ? from older"}
    assert not tracer.losses()
