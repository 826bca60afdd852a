"""grpcio's Echo: server and client of the service that README.md describes.

echo.py serve
echo.py call PORT CONNECTIONS
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

SERVICE = "wirespan.test.Echo"
CODES = {code.value[0]: code for code in grpc.StatusCode}
UNLIMITED = [("grpc.max_receive_message_length", -1)]


def say(request: bytes, _: grpc.ServicerContext) -> bytes:
    return request


def spread(request: bytes, _: grpc.ServicerContext) -> Iterator[bytes]:
    for n in range(int(request)):
        yield b"%d" % n


def gather(requests: Iterator[bytes], _: grpc.ServicerContext) -> bytes:
    return b"%d" % sum(1 for _ in requests)


def chat(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
    yield from requests


def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
    context.abort(CODES[int(request)], "as asked for")


def late(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    yield b"first"
    yield b"second"
    context.abort(CODES[int(request)], "as asked for, but late")


def slow(request: bytes, context: grpc.ServicerContext) -> bytes:
    end = time.monotonic() + int(request) / 1000
    while context.is_active() and time.monotonic() < end:
        time.sleep(0.01)
    return b"at last"


def serve() -> None:
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Spread": grpc.unary_stream_rpc_method_handler(spread),
        "Gather": grpc.stream_unary_rpc_method_handler(gather),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Late": grpc.unary_stream_rpc_method_handler(late),
        "Slow": grpc.unary_unary_rpc_method_handler(slow),
    }
    server = grpc.server(ThreadPoolExecutor(128), options=UNLIMITED)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


class Client:
    def __init__(self, port: int, connections: int) -> None:
        # Channels of equal arguments share a connection unless told not to.
        options = [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]
        self.channels = [
            grpc.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(connections)
        ]

    def call(self, kind: str, n: int, size: int) -> dict[str, Any]:
        """Make call number n of a kind; returns what is printed of it."""
        channel = self.channels[n % len(self.channels)]
        payload, code = b"x" * size, b"%d" % (1 + n % 16)
        method, inputs, timeout = {
            "unary": ("Say", [payload], 30.0),
            "server": ("Spread", [b"%d" % (n % 5)], 30.0),
            "client": ("Gather", [payload] * (n % 5), 30.0),
            "bidi": ("Chat", [payload] * (n % 5), 30.0),
            "fail": ("Fail", [code], 30.0),
            "late": ("Late", [code], 30.0),
            "unknown": ("Unknown", [payload], 30.0),
            "slow": ("Slow", [b"300"], 30.0),
            "deadline": ("Slow", [b"10000"], 0.1),
            "cancel": ("Chat", [payload], 30.0),
        }[kind]
        full = f"{SERVICE}/{method}"
        requests: Iterable[bytes] = iter(inputs)
        sent, received = len(inputs), 0
        if kind == "cancel":
            requests = self._then_wait(payload)
        replies = channel.stream_stream("/" + full)(requests, timeout=timeout)
        try:
            for _ in replies:
                received += 1
                if kind == "cancel":
                    replies.cancel()
        except grpc.RpcError:
            pass
        return {
            "method": full,
            "status": replies.code().name,
            "sent": sent,
            "received": received,
        }

    @staticmethod
    def _then_wait(payload: bytes) -> Iterator[bytes]:
        yield payload
        time.sleep(1)

    def close(self) -> None:
        for channel in self.channels:
            channel.close()


def call(port: int, connections: int) -> None:
    client = Client(port, connections)
    for line in sys.stdin:
        kind, calls, concurrency, size = line.split()
        if kind == "reconnect":
            client.close()
            client = Client(port, connections)
        with ThreadPoolExecutor(int(concurrency)) as pool:
            numbers = range(int(calls))
            for done in pool.map(lambda n: client.call(kind, n, int(size)), numbers):  # noqa: B023
                print(json.dumps(done))
        print(flush=True)
    client.close()


if sys.argv[1] == "serve":
    serve()
else:
    call(int(sys.argv[2]), int(sys.argv[3]))
