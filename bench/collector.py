"""What one `wirespan collect` sustains: `python -m bench.collector [--rates N,N,...]`.

Requests through three hosts (five spans each, every host with a trace id of its own) are
sent over OTLP/gRPC at growing rates, on a connection for each host, and go on to a receiver
that only keeps them. A rate is sustained while no request is refused, none waits longer
than LATE_S for its answer, and the senders keep to their schedule. Senders and receiver share
the cores. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from bench.processes import BenchError, Child, Memory, cpu_ns, ended_by_signals
from bench.sink import Sink
from collector.forward import encode
from collector.model import Resource
from collector.model import Span as Held
from tracer.export_reply import METHODS

ROOT = Path(__file__).resolve().parents[1]
RATES = (5_000, 10_000, 15_000, 20_000, 25_000, 30_000, 40_000)
SECONDS = 8.0
MAX_SPANS_IN_ALL = 2_000_000
REQUEST_S = 0.2  # how often a tracer sends
LATE_S = 2.0  # an answer, or a sender behind its schedule, that is not sustained any more
TIMEOUT_S = 20.0
IN_FLIGHT = 4  # requests of one host that may await their answer
START_NS = time.time_ns()

# Of a trace: (host, number of the span, of its parent, kind). 0: none.
HOSTS = 3
TREE = ((0, 1, 0, 2), (0, 2, 1, 3), (1, 3, 2, 2), (1, 4, 3, 3), (2, 5, 4, 2))


@dataclass(frozen=True, slots=True)
class Template:
    """The bytes of a span around its ids."""

    raw: bytes
    cuts: tuple[int, int, int]
    tree: tuple[int, int, int, int]

    def fill(self, base: int) -> bytes:
        """Return the span of trace number `base` / 8."""
        host, own, parent, _ = self.tree
        trace, span, above = self.cuts
        raw = bytearray(self.raw)
        raw[trace : trace + 16] = (base + host + 1 << 64 | base).to_bytes(16, "big")
        raw[span : span + 8] = (base + own).to_bytes(8, "big")
        if parent:
            raw[above : above + 8] = (base + parent).to_bytes(8, "big")
        return bytes(raw)


@dataclass(slots=True)
class Step:
    """A rate in spans/s, and what became of it; times in s, memory in bytes."""

    rate: int
    sent: int = 0
    refused: int = 0
    accepted: float = 0.0
    slowest_s: float = 0.0
    behind_s: float = 0.0
    cpu_us: float = 0.0
    cores: float = 0.0
    resident: int = 0
    reasons: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sustained(self) -> bool:
        """Whether the collector kept up."""
        return not self.refused and max(self.behind_s, self.slowest_s) < LATE_S


def template(tree: tuple[int, int, int, int]) -> Template:
    """Make a span as a tracer does, with as many attributes."""
    kind = tree[3]
    attributes: dict[str, str | int] = {
        "http.request.method": "GET", "url.scheme": "http", "network.protocol.version": "1.1",
        "server.address": "10.0.0.12", "server.port": 8080, "network.peer.port": 43_210,
        "network.peer.address": "10.0.0.11", "http.response.status_code": 200,
        "http.response.body.size": 512, "url.path": "/api/things/123456/parts",
        "user_agent.original": "python-requests/2.32", "thread.id": 4242,
        "wirespan.protocol": "http/1.1", "wirespan.time_to_first_byte_ns": 1_234_567,
        "wirespan.link.evidence": "stream" if kind == 2 else "thread",
    }  # fmt: skip
    marks = [bytes([0xF0 + n]) * size for n, size in enumerate((16, 8, 8))]
    span = Span(
        trace_id=marks[0], span_id=marks[1], parent_span_id=marks[2] if tree[2] else b"",
        name="GET /api/things/{id}/parts", kind=kind,  # type: ignore[arg-type]
        start_time_unix_nano=START_NS + tree[1] * 1000,
        end_time_unix_nano=START_NS + 10**7 - tree[1],
        attributes=[
            KeyValue(key=key, value=AnyValue(string_value=value) if isinstance(value, str)
                     else AnyValue(int_value=value))
            for key, value in attributes.items()
        ],
    )  # fmt: skip
    raw = span.SerializeToString()
    return Template(raw, (raw.find(marks[0]), raw.find(marks[1]), raw.find(marks[2])), tree)


class Sender(threading.Thread):
    """One host's tracers: more than one, for requests do not wait for each other's answers."""

    def __init__(self, host: int, port: int, steps: Iterator[int], step: Step) -> None:
        super().__init__(daemon=True)
        self._templates = [template(tree) for tree in TREE if tree[0] == host]
        self._resource = Resource(_resource(host))
        self._port, self._bases, self._step = port, list(steps), step

    def run(self) -> None:
        """Send on schedule; spans are made in the same time."""
        channel = grpc.insecure_channel(f"127.0.0.1:{self._port}")
        export = channel.unary_unary(METHODS["traces"], None, None)
        free = threading.Semaphore(IN_FLIGHT)
        step = self._step
        per_request = max(1, round(step.rate / len(TREE) * REQUEST_S))
        begin = time.monotonic()
        for number, at in enumerate(range(0, len(self._bases), per_request)):
            bases = self._bases[at : at + per_request]
            spans = [one.fill(base) for base in bases for one in self._templates]
            body = encode([_held(raw, self._resource) for raw in spans])
            wait = begin + number * REQUEST_S - time.monotonic()
            time.sleep(max(0.0, wait))
            free.acquire()
            step.behind_s = max(step.behind_s, time.monotonic() - begin - number * REQUEST_S)
            call = export.future(body, timeout=TIMEOUT_S, wait_for_ready=True)
            call.add_done_callback(partial(self._answered, free, len(spans), time.monotonic()))
        for _ in range(IN_FLIGHT):
            free.acquire()
        channel.close()

    def _answered(
        self, free: threading.Semaphore, spans: int, sent: float, call: grpc.Call
    ) -> None:
        with self._step.lock:
            self._step.slowest_s = max(self._step.slowest_s, time.monotonic() - sent)
            if call.code() is grpc.StatusCode.OK:
                self._step.sent += spans
            else:
                self._step.refused += 1
                self._step.reasons.add(f"{call.code().name}: {call.details()}")
        free.release()


def measure(rates: Sequence[int], seconds: float, flags: Sequence[str]) -> list[Step]:
    """Run the steps until one is not sustained; raises BenchError."""
    steps: list[Step] = []
    with tempfile.TemporaryDirectory() as directory, Sink() as sink:
        ready = Path(directory) / "ready"
        argv = [
            sys.executable, "-m", "tracer.cli", "collect", "--listen-grpc", "127.0.0.1:0",
            "--listen-http", "none", "--otlp-endpoint", sink.endpoint, "--otlp-protocol", "grpc",
            "--ready-file", str(ready), *flags,
        ]  # fmt: skip
        with Child(argv, cwd=ROOT) as collector:
            collector.wait_for(ready.exists, "it is ready")
            port = int(ready.read_text().split()[1])
            base = 8
            for rate in rates:
                step = Step(rate)
                traces = round(rate / len(TREE) * seconds)
                if base // 8 + traces > MAX_SPANS_IN_ALL // len(TREE):
                    break
                # Looked at in its middle: after the start, before the queues run empty.
                before, began = cpu_ns(collector.pid), time.monotonic()
                numbers = range(base, base + 8 * traces, 8)
                senders = [Sender(host, port, iter(numbers), step) for host in range(HOSTS)]
                base += 8 * traces
                for sender in senders:
                    sender.start()
                for sender in senders:
                    sender.join()
                wall = time.monotonic() - began
                step.cores = (cpu_ns(collector.pid) - before) / 1e9 / wall
                step.accepted = step.sent / wall
                step.resident = Memory.of(collector.pid).resident
                # What is held goes out before the next step: all of its cost is counted.
                sink.settle(3.0, 0, 60.0)
                step.cpu_us = (cpu_ns(collector.pid) - before) / 1e3 / max(1, step.sent)
                steps.append(step)
                if not step.sustained:
                    break
            collector.popen.send_signal(signal.SIGTERM)
            collector.popen.wait(60)
            said = collector.said()
        found = re.search(r"\bspans (\d+).*\bsent (\d+)", said)
        total = sum(step.sent for step in steps)
        if not found or not int(found[1]) == int(found[2]) == total or "split" in said:
            raise BenchError(f"of {total} spans not all came through whole:\n{said}")
    return steps


def page(steps: Sequence[Step]) -> str:
    """Make the table."""
    lines = [
        "| spans/s offered | accepted | requests refused | slowest answer, s |"
        " senders behind, s | cores | CPU us per span | resident, MB | sustained |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for step in steps:
        lines.append(
            f"| {step.rate:,} | {step.accepted:,.0f} | {step.refused} | {step.slowest_s:.2f} | "
            f"{step.behind_s:.2f} | {step.cores:.2f} | "
            f"{step.cpu_us:.1f} | {step.resident / 1e6:.0f} | "
            f"{'yes' if step.sustained else 'no'} |"
        )
    reasons = sorted({reason for step in steps for reason in step.reasons})
    return "\n".join([*lines, *(f"\nRefused with: {reason}" for reason in reasons)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rates", default=",".join(map(str, RATES)), help="spans/s, growing")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each (default: 8)")
    parser.add_argument("flags", nargs="*", help="after --: of `wirespan collect`")
    options = parser.parse_args(arguments)
    try:
        with ended_by_signals():
            rates = [int(rate) for rate in options.rates.split(",")]
            print(page(measure(rates, options.seconds, options.flags)))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _resource(host: int) -> bytes:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add().resource
    for key, value in (("service.name", f"service-{host}"), ("host.id", f"host-{host}"),
                       ("host.name", f"host-{host}"), ("telemetry.sdk.language", "c")):  # fmt: skip
        resource.attributes.append(KeyValue(key=key, value=AnyValue(string_value=value)))
    raw: bytes = resource.SerializeToString()
    return raw


_SCOPE = b"\x0a\x08wirespan"  # an InstrumentationScope with only its name


def _held(raw: bytes, resource: Resource) -> Held:
    return Held(b"", b"", b"", "", 0, 0, 0, resource, raw=raw, scope_raw=_SCOPE)


if __name__ == "__main__":
    sys.exit(main())
