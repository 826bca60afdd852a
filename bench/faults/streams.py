"""More HTTP/2 streams under way than the table has room for."""

from __future__ import annotations

import socket
import uuid

from bench.faults.scene import Scene
from bench.faults.seen import count

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS = 4, 1
ENDED = 0x5  # END_STREAM and END_HEADERS
CONNECTIONS = 4
# Frames of one call: the kernel's side looks at so many pieces of a call and no more.
AT_ONCE = 16


def _frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """A frame, RFC 9113 section 4.1."""
    head = len(content).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + content


def _field(index: int, value: bytes) -> bytes:
    """A literal of a name of the static table, not indexed: RFC 7541 section 6.2.2."""
    return bytes([index, len(value)]) + value


def _carry(one: socket.socket, other: socket.socket, frames: list[bytes]) -> None:
    for at in range(0, len(frames), AT_ONCE):
        data = b"".join(frames[at : at + AT_ONCE])
        one.sendall(data)
        assert len(other.recv(len(data), socket.MSG_WAITALL)) == len(data)


def full(scene: Scene) -> None:
    """Requests on all connections first, then the answers; then once more with room for all."""
    backend = scene.backend()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        endpoint = f"http://127.0.0.1:{backend.port}"
        tracer = scene.tracer(endpoint, "--port", str(port), exact=True)
        for streams, label in ((1500 if scene.short else 15_000, "full"), (100, "afterwards")):
            prefix = f"f{uuid.uuid4().hex[:8]}"
            _converse(listener, prefix, streams)
            made = CONNECTIONS * streams
            status = scene.settled(tracer)
            seen = count(backend.bodies(), prefix, made)
            scene.outcome.made += made
            scene.outcome.spans += seen.spans
            scene.outcome.lost = {name: n for name, n in status.losses.items() if n}
            lost = scene.outcome.lost.get("streams_full", 0) if label == "full" else 0
            scene.check(
                f"{label}: spans + losses = exchanges, exactly",
                seen.missing() == lost,
                f"{2 * made} sides, {seen.missing()} without a span, lost {scene.outcome.lost}",
            )
            scene.check(f"{label}: no span twice", seen.doubled() == 0, seen.doubled())
        scene.check("the table was full", scene.outcome.lost.get("streams_full", 0) > 0)


def _converse(listener: socket.socket, prefix: str, streams: int) -> None:
    port = int(listener.getsockname()[1])
    pairs = []
    for _ in range(CONNECTIONS):
        client = socket.create_connection(("127.0.0.1", port), timeout=30)
        server, _ = listener.accept()
        server.settimeout(30)
        pairs.append((client, server))
    authority = _field(1, b"127.0.0.1:%d" % port)
    for number, (client, server) in enumerate(pairs):
        _carry(client, server, [PREFACE + _frame(SETTINGS, 0, 0)])
        _carry(server, client, [_frame(SETTINGS, 0, 0)])
        paths = (b"/%s/%08d" % (prefix.encode(), number * streams + n) for n in range(streams))
        fields = [b"\x82\x86" + _field(4, path) + authority for path in paths]
        requests = [_frame(HEADERS, ENDED, 2 * n + 1, each) for n, each in enumerate(fields)]
        _carry(client, server, requests)
    for client, server in pairs:
        _carry(server, client, [_frame(HEADERS, ENDED, 2 * n + 1, b"\x88") for n in range(streams)])
    for client, server in pairs:
        client.close()
        server.close()
