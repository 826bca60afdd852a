"""A load of keep-alive connections on one thread, with its own count of all it did."""

from __future__ import annotations

import selectors
import socket
from dataclasses import dataclass, field

from tests.root.harness import Exchange


@dataclass(slots=True)
class Connection:
    sock: socket.socket
    path: str = ""
    got: bytearray = field(default_factory=bytearray)


def parse(got: bytes) -> tuple[int, int] | None:
    """Status and body size of a whole response with Content-Length, None where bytes lack."""
    end = got.find(b"\r\n\r\n")
    if end < 0:
        return None
    fields = bytes(got[:end]).lower()
    at = fields.index(b"\r\ncontent-length:") + len(b"\r\ncontent-length:")
    size = int(fields[at:].split(b"\r\n", 1)[0])
    if len(got) < end + 4 + size:
        return None
    assert len(got) == end + 4 + size, "more than was asked for"
    return int(got[9:12]), size


def load(
    port: int, prefix: str, requests: int, connections: int, host: str = "127.0.0.1"
) -> list[Exchange]:
    """`requests` GETs of PREFIX/N over `connections`, each always busy; returns what came."""
    done: list[Exchange] = []
    numbers = iter(range(requests))
    selector = selectors.DefaultSelector()

    def ask(connection: Connection) -> bool:
        n = next(numbers, None)
        if n is None:
            return False
        connection.path = f"{prefix}/{n}"
        connection.got.clear()
        connection.sock.sendall(
            b"GET %s HTTP/1.1\r\nHost: %s:%d\r\n\r\n"
            % (connection.path.encode(), host.encode(), port)
        )
        return True

    live = 0
    for _ in range(connections):
        connection = Connection(socket.create_connection((host, port)))
        if ask(connection):
            selector.register(connection.sock, selectors.EVENT_READ, connection)
            live += 1
        else:
            connection.sock.close()
    while live:
        events = selector.select(15)
        assert events, f"nothing for 15 s with {live} connections waiting"
        for key, _ in events:
            connection = key.data
            part = connection.sock.recv(65536)
            assert part, "closed by the server"
            connection.got += part
            if (answer := parse(connection.got)) is None:
                continue
            done.append(Exchange(connection.path, answer[0], "GET", 0, answer[1]))
            if not ask(connection):
                selector.unregister(connection.sock)
                connection.sock.close()
                live -= 1
    selector.close()
    return done
