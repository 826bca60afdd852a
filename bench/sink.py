"""An OTLP/gRPC receiver in a process of its own, cheap while a load runs.

A request is stamped and spooled to a file as it is; only when asked, between loads, are
spans parsed and counted. Driven by JSON lines on standard input, each answered by one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bench.processes import BenchError, Child, cpu_ns

SERVICE, METHOD = "opentelemetry.proto.collector.trace.v1.TraceService", "Export"
# Its requests are taken and forgotten: what refuses them is no receiver that one would have.
METRICS = "opentelemetry.proto.collector.metrics.v1.MetricsService"


@dataclass(frozen=True, slots=True)
class Collected:
    """Spans of some server ports, and of everything else, since the last collection.

    distinct: span ids among server and client ones; latency_ns: for each of them, from the
    span's end to the arrival of the request that carried it; first_ns: Unix time of the
    first such arrival, 0 for none; total: spans of all ports; size: bytes of all requests.
    """

    server: int
    client: int
    distinct: int
    failed: int
    total: int
    requests: int
    size: int
    first_ns: int
    latency_ns: list[int]


class Sink(Child):
    """The receiver, seen from the benchmark. Raises BenchError where it does not start."""

    def __init__(self) -> None:
        super().__init__([sys.executable, "-m", "bench.sink"], pipes=True)
        try:
            self.port = int(self._line()["port"])
        except BaseException:
            self.stop()
            raise

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def size(self) -> int:
        """Bytes received since the last collection."""
        return int(self._ask({})["size"])

    def collect(self, *ports: int) -> Collected:
        """Parse what came, then forget it. ports: server.port of the spans that count."""
        return Collected(**self._ask({"collect": ports}))

    def cpu_ns(self) -> int:
        """CPU time so far."""
        return cpu_ns(self.pid)

    def settle(self, quiet_s: float, few_bytes: int, timeout: float) -> float:
        """Wait until no more than `few_bytes` came in `quiet_s`; return how long that took.

        The quiet time itself is not counted. Raises BenchError after `timeout` s.
        """
        began = last = time.monotonic()
        before = self.size()
        while True:
            time.sleep(quiet_s / 5)
            now, size = time.monotonic(), self.size()
            if size - before > few_bytes:
                before, last = size, now
            elif now - last >= quiet_s:
                return last - began
            if now - began > timeout:
                raise BenchError(f"spans still came {timeout:g} s after the load")

    def _ask(self, question: dict[str, Sequence[int]]) -> dict[str, Any]:
        assert self.popen.stdin
        try:
            self.popen.stdin.write(json.dumps(question) + "\n")
            self.popen.stdin.flush()
        except OSError:
            raise BenchError(f"the sink has ended:\n{self.said()}") from None
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self.popen.stdout
        line = self.popen.stdout.readline()
        if not line:
            raise BenchError(f"the sink has ended:\n{self.said()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Spool:
    """Requests as they came, with their times."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile()
        self._arrivals: list[tuple[int, int]] = []
        self.size = 0

    def put(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        """Keep a request; the answer is an empty ExportTraceServiceResponse."""
        arrived = time.time_ns()
        with self._lock:
            self._file.write(body)
            self._arrivals.append((arrived, len(body)))
            self.size += len(body)
        return b""

    def take(self) -> Iterable[tuple[int, bytes]]:
        """Yield (Unix ns of arrival, body) of all, and forget them."""
        with self._lock:
            self._file.seek(0)
            for arrived, size in self._arrivals:
                yield arrived, self._file.read(size)
            self._file.seek(0)
            self._file.truncate()
            self._arrivals.clear()
            self.size = 0


def count(requests: Iterable[tuple[int, bytes]], ports: Sequence[int]) -> Collected:
    """Parse requests and count the spans whose server.port is one of `ports`."""
    kinds: Counter[int] = Counter()
    ids: set[bytes] = set()
    latency: list[int] = []
    failed = total = number = size = first = 0
    for arrived, body in requests:
        number += 1
        size += len(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in group.scope_spans:
                total += len(scope.spans)
                for span in scope.spans:
                    if not _to_any(span, ports):
                        continue
                    first = first or arrived
                    kinds[span.kind] += 1
                    ids.add(span.span_id)
                    failed += span.status.code != 0
                    latency.append(arrived - span.end_time_unix_nano)
    return Collected(
        server=kinds[Span.SPAN_KIND_SERVER],
        client=kinds[Span.SPAN_KIND_CLIENT],
        distinct=len(ids),
        failed=failed,
        total=total,
        requests=number,
        size=size,
        first_ns=first,
        latency_ns=latency,
    )


def _to_any(span: Span, ports: Sequence[int]) -> bool:
    return any(
        attribute.key == "server.port" and attribute.value.int_value in ports
        for attribute in span.attributes
    )


def serve() -> None:
    """Receive until standard input ends."""
    spool = Spool()
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(
            pool, options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        )
        handler = grpc.unary_unary_rpc_method_handler(spool.put)
        taken = grpc.unary_unary_rpc_method_handler(lambda body, context: b"")
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),
                grpc.method_handlers_generic_handler(METRICS, {METHOD: taken}),
            )
        )
        _answer({"port": server.add_insecure_port("127.0.0.1:0")})
        server.start()
        for line in sys.stdin:
            question = json.loads(line)
            if "collect" not in question:
                _answer({"size": spool.size})
                continue
            collected = count(spool.take(), question["collect"])
            _answer({name: getattr(collected, name) for name in Collected.__slots__})
        server.stop(0).wait()


def _answer(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
