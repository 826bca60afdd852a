"""Send damaged OTLP to a real intake for a while: `python -m tests.collector.fuzz_intake SECONDS`.

Mutated bytes go over real connections: OTLP/HTTP as a whole (head, body, chunks, gzip), and
OTLP/gRPC as frames of HTTP/2, recorded from real calls. The intake must answer or hang up
in time, go on taking good requests, hold no memory, count what it sent away, and let no
exception escape. The seed is printed; `fuzz_intake SECONDS SEED` sends the same again.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import secrets
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from collector.address import Address
from collector.collector import Collector, Settings
from collector.intake import Intake, IntakeConfig
from collector.limits import Limits
from tests.collector.otlp_messages import Keep, message, request
from tracer.export_config import ExportConfig
from tracer.export_grpc import GrpcTransport
from tracer.export_reply import Verdict
from tracer.monitor import rss_bytes

READ_S = 0.3
ANSWER_S = 5.0  # a loaded machine may take long, an intake that hangs takes for ever
CHECK_EVERY = 200
GROWTH_BYTES = 64 << 20
CUT = (b"\r\n", b"\r\n\r\n", b"\0", b":", b" ", b"chunked", b"gzip", b"4294967295", b"-1", b"0x10")

Host = tuple[str, int]


@dataclass(slots=True)
class Outcome:
    """What became of the inputs, by the status of the answer or what came in its place."""

    inputs: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    sent_away: dict[str, int] = field(default_factory=dict)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Damage bytes in one to four places: flip, cut, repeat, insert, or splice what is special."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at : at + rng.randint(1, 16)]
            case 2:
                out[at:at] = out[at : at + rng.randint(1, 64)] * rng.randint(1, 20)
            case 3:
                out[at:at] = rng.randbytes(rng.randint(1, 16))
            case 4:
                out[at:at] = rng.choice(CUT)
            case _:
                del out[at:]
    return bytes(out)


def http_seeds() -> list[bytes]:
    """Good requests of every kind that OTLP/HTTP has."""
    body = request([message(1, number, 1) for number in range(2, 6)])
    spans = [{"traceId": "01" * 16, "spanId": "02" * 8, "name": "x", "kind": 2}]
    document = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode()

    def whole(content: bytes, *fields: str) -> bytes:
        head = ["POST /v1/traces HTTP/1.1", "host: x", *fields, f"content-length: {len(content)}"]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + content

    protobuf, as_json = "content-type: application/x-protobuf", "content-type: application/json"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:]))
    chunked = (
        f"POST /v1/traces HTTP/1.1\r\nhost: x\r\n{protobuf}\r\ntransfer-encoding: chunked\r\n\r\n"
    ).encode()
    return [
        whole(body, protobuf),
        whole(gzip.compress(body), protobuf, "content-encoding: gzip"),
        whole(gzip.compress(bytes(1 << 20)), protobuf, "content-encoding: gzip"),
        whole(document, as_json),
        chunked + chunks + b"0\r\n\r\n",
        whole(body, protobuf) + whole(document, as_json, "connection: close"),
    ]


def grpc_seeds(target: Host) -> list[bytes]:
    """What a real exporter sends, recorded by a proxy: preface, settings, headers, data."""
    seeds = []
    for packed in (False, True):
        with Recorder(target) as recorder:
            config = ExportConfig("grpc", f"127.0.0.1:{recorder.port}", gzip=packed)
            with closing(GrpcTransport(config)) as transport:
                body = request([message(1, 2)])
                assert transport.send(body, ANSWER_S).verdict is Verdict.ACCEPTED
        seeds.append(bytes(recorder.sent))
    return seeds


class Recorder:
    """A proxy for one connection that keeps what its client sent."""

    def __init__(self, target: Host) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.sent = bytearray()
        self._target = target
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(ANSWER_S)
        self._listener.close()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection(self._target) as server:

            def answers() -> None:
                while part := server.recv(65536):
                    client.sendall(part)

            thread = threading.Thread(target=answers, daemon=True)
            thread.start()
            while part := client.recv(65536):
                self.sent += part
                server.sendall(part)
            server.shutdown(socket.SHUT_WR)
            thread.join(ANSWER_S)


def connected(target: Host) -> socket.socket:
    """Connect; an intake that starts one of its servers anew is waited for."""
    end = time.monotonic() + ANSWER_S
    while True:
        try:
            return socket.create_connection(target, ANSWER_S)
        except ConnectionRefusedError:
            assert time.monotonic() < end, "nobody listens any more"
            time.sleep(0.01)


def talk(target: Host, data: bytes) -> str:
    """Send bytes and the end of the stream; return what the answer was.

    Raises AssertionError where the intake neither answers nor hangs up.
    """
    got = b""
    try:
        with connected(target) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(65536):
                got += part
    except TimeoutError:
        raise AssertionError(f"no end within {ANSWER_S} s of {data[:200]!r}") from None
    except (ConnectionResetError, BrokenPipeError):
        return "reset"
    if got.startswith(b"HTTP/1.1 "):
        return got[9:12].decode()
    return "frames" if got else "closed"


def run(seconds: float, seed: int, say: Callable[[str], None] = lambda _: None) -> Outcome:
    """Fuzz for a time; raises AssertionError at the first thing that must not be."""
    rng, outcome = random.Random(seed), Outcome()
    escaped: list[dict[str, Any]] = []
    keep = Keep()
    collector = Collector([keep], Settings(Limits(0.05, 0.05, 0.05, max_spans=10_000)))
    any_port = Address("127.0.0.1", 0)
    config = IntakeConfig(
        grpc=any_port, http=any_port, max_message_bytes=256 << 10, read_s=READ_S, idle_s=READ_S
    )
    intake = Intake(collector, config)
    try:
        intake.on_escape(escaped.append)
        http, grpc = ("127.0.0.1", intake.ports["http"]), ("127.0.0.1", intake.ports["grpc"])
        inputs = _inputs(rng, [(http, http_seeds()), (grpc, grpc_seeds(grpc))])
        before = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            target, data = next(inputs)
            outcome.inputs += 1
            outcome.answers[talk(target, data)] += 1
            keep.spans.clear()
            if outcome.inputs % CHECK_EVERY == 0:
                assert not escaped, escaped
                assert talk(http, http_seeds()[0]) == "200", "a good request is not taken"
                # What a first round makes caches hold is no growth.
                before = before or rss_bytes()
                grown = rss_bytes() - before
                assert grown < GROWTH_BYTES, f"{grown} bytes more after {outcome.inputs} inputs"
                say(f"{outcome.inputs} inputs, {dict(outcome.answers)}")
        assert not escaped, escaped
        with closing(GrpcTransport(ExportConfig("grpc", f"{grpc[0]}:{grpc[1]}"))) as transport:
            good = transport.send(request([message(3, 4)]), ANSWER_S)
            assert good.verdict is Verdict.ACCEPTED, good
        outcome.sent_away = intake.counts() | {"malformed": collector.counts()["malformed"]}
    finally:
        intake.close()
        collector.close()
    return outcome


def _inputs(
    rng: random.Random, targets: list[tuple[Host, list[bytes]]]
) -> Iterator[tuple[Host, bytes]]:
    while True:
        target, seeds = rng.choice(targets)
        yield target, mutate(rng.choice(seeds), rng)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="fuzz_intake")
    parser.add_argument("seconds", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=secrets.randbits(32))
    found = parser.parse_args()
    print(f"fuzz intake: {found.seconds:g} s, seed {found.seed}", flush=True)
    try:
        outcome = run(found.seconds, found.seed)
    except AssertionError as error:
        print(f"fuzz intake: failed: {error}", file=sys.stderr)
        return 1
    answers = ", ".join(f"{name} {count}" for name, count in outcome.answers.most_common())
    counted = ", ".join(f"{name} {count}" for name, count in outcome.sent_away.items() if count)
    print(f"fuzz intake: {outcome.inputs} inputs; answers: {answers}; counted: {counted}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
