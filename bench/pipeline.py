"""The user-space pipeline alone: records as the ring gave them, to OTLP bytes, on one core.

Neither kernel nor network takes part: what is timed is Reassembler.feed, Stitcher.feed,
Red.observe and Encoder.encode, in the largest batches that the tracer makes and in small ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.figures import Figure
from bench.nginx import PATH
from bench.processes import BenchError, Child
from tracer import installed
from tracer.flow import Kind, Slot
from tracer.flows import Reassembler
from tracer.kernel.loader import Filters, Kernel
from tracer.link.stitch import Stitcher
from tracer.otlp import Encoder
from tracer.pipeline import BATCH_RECORDS
from tracer.process import ProcessTable
from tracer.red.aggregate import Red
from tracer.routes import RouteTable
from tracer.spans import Resource

Records = NDArray[np.void]

KEEP_RECORDS = 8 * BATCH_RECORDS
MAX_ROUTES = 1_000
DIGITS = len(PATH) - len(PATH.rstrip("0"))
SMALL_RECORDS = 512
# From an exchange's end to the batch that it is in.
READ_NS = 20_000_000
_TIMES = ("start_ns", "request_end_ns", "first_byte_ns", "end_ns")


@dataclass(frozen=True, slots=True)
class Case:
    """What is replayed. traffic: whose records; distinct: each request has its own path."""

    traffic: str
    batch_records: int
    distinct: bool = False

    @property
    def name(self) -> str:
        paths = ", a path of its own for each request" if self.distinct else ""
        return f"{self.traffic}{paths}, {self.batch_records:,} records a batch"


HTTP1, GRPC, MYSQL = "HTTP/1", "gRPC", "MySQL"
CASES = (
    Case(HTTP1, BATCH_RECORDS),
    Case(HTTP1, SMALL_RECORDS),
    Case(HTTP1, BATCH_RECORDS, distinct=True),
    Case(GRPC, BATCH_RECORDS),
    Case(MYSQL, BATCH_RECORDS),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time a span, in us, and spans a second on one core."""

    feed_us: Figure
    stitch_us: Figure
    measure_us: Figure
    encode_us: Figure
    total_us: Figure
    spans_per_s: Figure
    span_bytes: float


def capture(port: int, load: Callable[[], Child], keep: int | None = None) -> Records:
    """Trace a server's port in this process until a load has ended; returns its records.

    keep: of exchanges alone, so many, in whole batches; None: all of every kind, with the
    connections' ends, so that they make sense when played again.
    Raises BenchError where less came than a batch.
    """
    kernel = Kernel(installed.object_path(), Filters(ports=(port,)))
    kept: list[Records] = []
    count = 0
    with kernel:
        kernel.load()
        kernel.attach()
        with load() as client:
            while client.popen.poll() is None or kernel.ring.fill() > 0:
                view: NDArray[Any] = kernel.ring.read(BATCH_RECORDS)
                taken = view.copy() if keep is None else view[view["kind"] == Kind.EXCHANGE]
                kernel.ring.release()
                if len(taken) and (keep is None or count < keep):
                    kept.append(taken)
                    count += len(taken)
                time.sleep(0.002)
    if count < BATCH_RECORDS:
        raise BenchError(f"only {count} records came")
    records = np.concatenate(kept)
    return records if keep is None else records[: count // BATCH_RECORDS * BATCH_RECORDS]


def run(traffic: Mapping[str, Records], rounds: int, spans: int) -> dict[str, Cost]:
    """Replay records until `spans` spans were made, for each of CASES in turns.

    traffic: records by Case.traffic; cases without are left out.
    """
    cases = [case for case in CASES if case.traffic in traffic]
    samples: dict[str, list[tuple[list[float], float]]] = {c.name: [] for c in cases}
    for _ in range(rounds):
        for case in cases:
            samples[case.name].append(_replay(traffic[case.traffic].copy(), spans, case))
    costs = {}
    for name, taken in samples.items():
        feed, stitch, measure, encode = (
            Figure.of(parts[number] for parts, _ in taken) for number in range(4)
        )
        total = Figure.of(sum(parts) for parts, _ in taken)
        per_second = Figure.of(1e6 / sum(parts) for parts, _ in taken)
        costs[name] = Cost(feed, stitch, measure, encode, total, per_second, taken[0][1])
    return costs


def _replay(records: Records, spans: int, case: Case) -> tuple[list[float], float]:
    """Return us a span of each part, in Cost's order, and bytes; tables are empty, as at start.

    Raises BenchError where a pass over the records gives no span.
    """
    reassembler = Reassembler(ProcessTable(()), RouteTable(MAX_ROUTES))
    stitcher = Stitcher()
    red = Red(Resource(()), 0)
    encoder = Encoder("bench")
    parts = [0, 0, 0, 0]
    made = size = paths = now_ns = 0
    step_ns = int(records["end_ns"].max() - records["start_ns"].min()) + READ_NS
    while made < spans:
        before = made
        if case.distinct:
            paths += number_paths(records, paths)
        for at in range(0, len(records), case.batch_records):
            chunk = records[at : at + case.batch_records]
            now_ns = max(now_ns, int(chunk["end_ns"].max()) + READ_NS)
            times = [time.thread_time_ns()]
            batch = reassembler.feed(chunk, 0)
            times.append(time.thread_time_ns())
            ready = stitcher.feed(batch, now_ns)
            times.append(time.thread_time_ns())
            for each in ready:
                red.observe(each, now_ns)
                red.exemplify(each)
            times.append(time.thread_time_ns())
            size += sum(len(encoder.encode(each)) for each in ready)
            times.append(time.thread_time_ns())
            parts = [
                part + end - begin
                for part, (begin, end) in zip(parts, pairwise(times), strict=True)
            ]
            made += sum(len(each) for each in ready)
        if made == before:
            raise BenchError("the records give no spans")
        later(records, step_ns)
    return [part / made / 1000 for part in parts], size / made


def later(records: Records, step_ns: int) -> None:
    """Make of records those of the same exchanges, later and on other connections."""
    for name in _TIMES:
        times = records[name]
        times[times != 0] += np.uint64(step_ns)
    # Inode numbers, and streams' places: some way from what any other record has.
    records["conn_id"] += np.uint64(1 << 40)
    records["request_seq"] += np.uint32(0x10E5)
    records["response_seq"] += np.uint32(0x2C1B3C6D)


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
