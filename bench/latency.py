"""How late a span is: from its exchange's end to its arrival at the sink, at little load."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass

from bench.figures import percentile
from bench.nginx import PATH, Nginx
from bench.processes import BenchError
from bench.rounds import FEW_BYTES, QUIET_S, SETTLE_S
from bench.sink import Sink
from bench.traced import Tracer

# So few that nothing but time ends any wait.
REQUESTS_PER_S = 10


@dataclass(frozen=True, slots=True)
class Latency:
    """Exchange's end to sink, in ms, over `spans` spans; first_span_s: from start to sink."""

    requests_per_s: int
    spans: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    first_span_s: float


def run(nginx: Nginx, sink: Sink, seconds: float) -> Latency:
    """Measure for `seconds` after the tracer has attached; requests come before, too.

    Raises BenchError where no span came.
    """
    with Pace(nginx.port, REQUESTS_PER_S), Tracer(sink.endpoint) as tracer:
        time.sleep(seconds)
        sink.settle(QUIET_S, FEW_BYTES, SETTLE_S)
        started_ns = tracer.started_unix_ns
    spans = sink.collect(nginx.port)
    late_ms = [ns / 1e6 for ns in spans.latency_ns]
    if not late_ms:
        raise BenchError("no span came at little load")
    return Latency(
        REQUESTS_PER_S,
        len(late_ms),
        percentile(late_ms, 50),
        percentile(late_ms, 99),
        max(late_ms),
        (spans.first_ns - started_ns) / 1e9,
    )


class Pace:
    """Sends requests at a steady rate over one connection, from a thread."""

    def __init__(self, port: int, per_s: int) -> None:
        self._port, self._per_s = port, per_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pace", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        request = f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", self._port), 10) as connection:
            due = time.monotonic()
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                due += 1 / self._per_s
                connection.sendall(request)
                # A small answer comes whole.
                if not connection.recv(4096):
                    return
