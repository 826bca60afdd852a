"""The user-space pipeline alone: records as the ring gave them, to OTLP bytes, on one core.

Neither kernel nor network takes part: what is timed is Reassembler.feed and
Encoder.encode, in the largest batches that the tracer makes and in small ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import wrk
from bench.figures import Figure
from bench.nginx import PATH, Nginx
from bench.processes import BenchError
from tracer import installed
from tracer.flow import Kind, Slot
from tracer.flows import Reassembler
from tracer.kernel.loader import Filters, Kernel
from tracer.otlp import Encoder
from tracer.pipeline import BATCH_RECORDS
from tracer.process import ProcessTable
from tracer.routes import RouteTable

Records = NDArray[np.void]

KEEP_RECORDS = 8 * BATCH_RECORDS
MAX_ROUTES = 1_000
DIGITS = len(PATH) - len(PATH.rstrip("0"))
SMALL_RECORDS = 512


@dataclass(frozen=True, slots=True)
class Case:
    """What is replayed. distinct: whether each request has a path of its own."""

    distinct: bool
    batch_records: int

    @property
    def name(self) -> str:
        paths = "a path of its own for each request" if self.distinct else "one path"
        return f"{paths}, {self.batch_records:,} records a batch"


CASES = (Case(False, BATCH_RECORDS), Case(False, SMALL_RECORDS), Case(True, BATCH_RECORDS))


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time a span, in us, and spans a second on one core."""

    feed_us: Figure
    encode_us: Figure
    total_us: Figure
    spans_per_s: Figure
    span_bytes: float


def capture(nginx: Nginx, connections: int) -> Records:
    """Trace a short load in this process; returns records of both sides, a batch or more.

    Raises BenchError where too few came.
    """
    kernel = Kernel(installed.object_path(), Filters(ports=(nginx.port,)))
    kept: list[Records] = []
    count = 0
    with kernel:
        kernel.load()
        kernel.attach()
        with wrk.start(nginx.url, 1, connections) as client:
            while client.popen.poll() is None or kernel.ring.fill() > 0:
                view: NDArray[Any] = kernel.ring.read(BATCH_RECORDS)
                exchanges = view[view["kind"] == Kind.EXCHANGE]
                kernel.ring.release()
                if len(exchanges) and count < KEEP_RECORDS:
                    kept.append(exchanges)
                    count += len(exchanges)
                time.sleep(0.002)
    if count < BATCH_RECORDS:
        raise BenchError(f"only {count} records came")
    return np.concatenate(kept)[: count // BATCH_RECORDS * BATCH_RECORDS]


def run(records: Records, rounds: int, spans: int) -> dict[str, Cost]:
    """Replay records until `spans` spans were made, for each of CASES in turns."""
    samples: dict[str, list[tuple[float, float, float]]] = {case.name: [] for case in CASES}
    for _ in range(rounds):
        for case in CASES:
            samples[case.name].append(_replay(records.copy(), spans, case))
    return {
        name: Cost(
            Figure.of(feed for feed, _, _ in taken),
            Figure.of(encode for _, encode, _ in taken),
            Figure.of(feed + encode for feed, encode, _ in taken),
            Figure.of(1e6 / (feed + encode) for feed, encode, _ in taken),
            taken[0][2],
        )
        for name, taken in samples.items()
    }


def _replay(records: Records, spans: int, case: Case) -> tuple[float, float, float]:
    """Return feed us, encode us and bytes a span; starts with empty tables, as a tracer does."""
    reassembler = Reassembler(ProcessTable(()), RouteTable(MAX_ROUTES))
    encoder = Encoder("bench")
    fed = encoded = made = size = paths = 0
    while made < spans:
        if case.distinct:
            paths += number_paths(records, paths)
        for at in range(0, len(records), case.batch_records):
            began = time.thread_time_ns()
            batch = reassembler.feed(records[at : at + case.batch_records], 0)
            between = time.thread_time_ns()
            size += len(encoder.encode(batch))
            encoded += time.thread_time_ns() - between
            fed += between - began
            made += len(batch)
    return fed / made / 1000, encoded / made / 1000, size / made


def number_paths(records: Records, first: int) -> int:
    """Give each request's records a path of their own; returns how many there are.

    The numbers from `first` on go into the digits at the end of PATH. Both sides of a request
    are told by its sequence number, so they keep a path in common.
    Raises BenchError where a record's target is not PATH.
    """
    field = records["fields"][:, Slot.TARGET]
    if (field["off"] != 0).any() or (field["len"] != len(PATH)).any():
        raise BenchError("a record of another path was captured")
    distinct, numbers = np.unique(records["request_seq"], return_inverse=True)
    numbers = numbers + first
    for place in range(DIGITS):
        records["text"][:, len(PATH) - 1 - place] = numbers % 10 + ord("0")
        numbers //= 10
    return len(distinct)
