"""Both ends of a connection in one thread: each send is followed by the receives that drain it.

So the order of all calls is the script's, and what the tracer must say of them is known.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence

from tests.root.harness import Exchange

Cuts = Sequence[int] | None


class Wire:
    """A connected pair of TCP sockets, `client` and `server`, on `host` and `port`."""

    def __init__(self, host: str = "127.0.0.1", chunk: int = 65536) -> None:
        """chunk: the most bytes one receive asks for."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.create_server((host, 0), family=family)
        self.host, self.port = host, int(self.listener.getsockname()[1])
        self.chunk = chunk
        self.client, self.server = self.connect()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection((self.host, self.port))
        server, _ = self.listener.accept()
        for end in (client, server):
            end.settimeout(15)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client, server

    def ports(self) -> tuple[int, int]:
        """Of the server and of the first client; each is in the spans of the other side."""
        return self.port, int(self.client.getsockname()[1])

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()
        self.listener.close()

    def request(self, data: bytes, sizes: Iterator[int] | None = None) -> None:
        """Client to server, cut into `sizes` (the last one repeated to the end)."""
        carry(self.client, self.server, data, sizes, self.chunk)

    def response(self, data: bytes, sizes: Iterator[int] | None = None) -> None:
        carry(self.server, self.client, data, sizes, self.chunk)


def receive(sock: socket.socket, count: int, chunk: int = 65536) -> bytes:
    """Exactly `count` bytes, at most `chunk` a call."""
    parts = []
    while count:
        part = sock.recv(min(chunk, count))
        assert part, f"{count} bytes early"
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def carry(
    source: socket.socket,
    target: socket.socket,
    data: bytes,
    sizes: Iterator[int] | None = None,
    chunk: int = 65536,
) -> None:
    """Send `data` in pieces of `sizes`, each received whole before the next is sent."""
    done = 0
    while done < len(data):
        size = next(sizes) if sizes is not None else len(data)
        piece = data[done : done + size]
        source.sendall(piece)
        assert receive(target, len(piece), chunk) == piece
        done += len(piece)


def each(size: int) -> Iterator[int]:
    """Pieces of one size."""
    while True:
        yield size


def at_random(rng: random.Random) -> Iterator[int]:
    """Piece sizes that favour cuts inside line ends and chunk lines, with long runs between."""
    while True:
        yield rng.choice((1, 1, 1, 2, 3, 5, 17, 60, 200, 1500))


def head(first: str, *fields: str) -> bytes:
    """A start line and field lines as bytes, with the empty line."""
    return ("\r\n".join((first, *fields)) + "\r\n\r\n").encode()


def get_head(path: str, *fields: str, method: str = "GET") -> bytes:
    return head(f"{method} {path} HTTP/1.1", "Host: wire.test", *fields)


def ok(body: bytes = b"", status: int = 200) -> bytes:
    """A response with Content-Length."""
    return head(f"HTTP/1.1 {status} Fine", f"Content-Length: {len(body)}") + body


def chunked(rng: random.Random, body: bytes) -> bytes:
    """`body` in the chunked coding, with extensions, odd sizes, leading zeros and trailers."""
    out, done = [], 0
    while done < len(body):
        size = min(rng.choice((1, 2, 9, 15, 16, 17, 255, 256, 4096, 20000)), len(body) - done)
        digits = f"{size:x}" if rng.random() < 0.5 else f"{size:04X}"
        extension = rng.choice(("", "", ";name=value", ';q="a b"'))
        out.append(f"{digits}{extension}\r\n".encode())
        out.append(body[done : done + size] + b"\r\n")
        done += size
    trailers = rng.choice(("", "", "Digest: x\r\n", "A: b\r\nServer-Timing: db;dur=1\r\n"))
    out.append(f"0\r\n{trailers}\r\n".encode())
    return b"".join(out)


DECOY = b"\r\n\r\nHTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nGET /decoy HTTP/1.1\r\n\r\n0\r\n\r\n"


def payload(rng: random.Random, most: int) -> bytes:
    """A body of up to `most` bytes with text in it that looks like messages and chunk ends."""
    size = rng.choice((0, 1, 2, 10, 100, 3000, most))
    fill = rng.randbytes(size // 2)
    return (fill + DECOY * (size // len(DECOY) + 1))[:size]


class Script:
    """One exchange: what each side sends in turn, and what a span must say of it."""

    def __init__(self, rng: random.Random, path: str, most: int = 30000) -> None:
        method = rng.choice(("GET", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"))
        status = rng.choice((200, 200, 201, 204, 304, 301, 404, 500, 503))
        sent, answer = b"", payload(rng, most)
        fields = ["X-Filler: " + "f" * rng.choice((0, 1, 30, 700)), "Accept: */*"]
        rng.shuffle(fields)
        self.steps: list[tuple[str, bytes]] = []
        if method in ("POST", "PUT", "PATCH"):
            sent = payload(rng, most)
            if rng.random() < 0.5:
                fields.append("transfer-encoding: chunked")
                body = chunked(rng, sent)
            else:
                fields.append(f"content-LENGTH:{len(sent)}")
                body = sent
            if rng.random() < 0.3:
                start = get_head(path, *fields, "Expect: 100-continue", method=method)
                self.steps.append(("request", start))
                self.steps.append(("response", head("HTTP/1.1 100 Continue")))
                self.steps.append(("request", body))
            else:
                self.steps.append(("request", get_head(path, *fields, method=method) + body))
        else:
            self.steps.append(("request", get_head(path, *fields, method=method)))
        before = b""
        if rng.random() < 0.2:
            before = head("HTTP/1.1 103 Early Hints", "Link: </style.css>; rel=preload")
        bodiless = method == "HEAD" or status in (204, 304)
        if status == 204:
            reply = head("HTTP/1.1 204 No Content", "X: y")
        elif rng.random() < 0.5:
            reply = head(f"HTTP/1.1 {status} X", "Transfer-Encoding:  chunked ", "Server: wire")
            reply += b"" if bodiless else chunked(rng, answer)
        else:
            reply = head(f"HTTP/1.1 {status}", f"Content-Length: {len(answer)}")
            reply += b"" if bodiless else answer
        self.steps.append(("response", before + reply))
        self.exchange = Exchange(path, status, method, len(sent), 0 if bodiless else len(answer))

    @property
    def requests(self) -> bytes:
        return b"".join(data for side, data in self.steps if side == "request")

    @property
    def responses(self) -> bytes:
        return b"".join(data for side, data in self.steps if side == "response")

    def play(self, wire: Wire, sizes: Iterator[int] | None = None) -> None:
        for side, data in self.steps:
            getattr(wire, side)(data, sizes)
