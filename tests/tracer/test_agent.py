"""What moves spans inside the agent, around a ring in memory: no root, no eBPF."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tracer import clock
from tracer.agent import Agent
from tracer.errors import AlreadyRunningError, WirespanError
from tracer.instance import InstanceLock
from tracer.match import parse
from tracer.monitor import Rates, cpu_seconds, rss_bytes
from tracer.pipeline import (
    FEW_RECORDS,
    IDLE_WAIT,
    MANY_RECORDS,
    MAX_WAIT,
    MIN_WAIT,
    START_WAIT,
    Pipeline,
    next_wait,
)
from tracer.queues import BoundedQueue
from tracer.sinks import Output, TailHub, batch_bytes
from tracer.spans import KIND_CLIENT, KIND_SERVER, Resource, Shape, SpanBatch

ROOT = Path(__file__).parents[2]
RECORD = np.dtype([("number", "<u8"), ("server", "<u8"), ("filling", "u1", (616,))])
SHAPES = [
    Shape(Resource((("service.name", "web"),)), "GET", kind, 0, "", (), (), ())
    for kind in (KIND_SERVER, KIND_CLIENT)
]
DEADLINE = 20.0


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.002)


class FakeRing:
    """What tracer.kernel.ring.Ring promises, over a growing array; overwrites what is released."""

    def __init__(self, capacity: int) -> None:
        self._records = np.zeros(capacity, RECORD)
        self._event = os.eventfd(0, os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self.awaited = 0
        self._written = self._taken = self._read = 0

    def write(self, count: int) -> None:
        with self._lock:
            new = self._records[self._written : self._written + count]
            new["number"] = np.arange(self._written, self._written + count)
            new["server"] = new["number"] % 2
            self._written += count

    def wake(self) -> None:
        os.eventfd_write(self._event, 1)

    def fileno(self) -> int:
        return self._event

    def wake_me(self) -> None:
        self.awaited += 1

    def read(self, max_records: int) -> NDArray[Any]:
        with self._lock:
            self._read = min(self._written - self._taken, max_records)
            return self._records[self._taken : self._taken + self._read]

    def release(self) -> None:
        with self._lock:
            self._records[self._taken : self._taken + self._read] = np.zeros(1, RECORD)
            self._taken += self._read
            self._read = 0

    def fill(self) -> float:
        return (self._written - self._taken) / len(self._records)

    def close(self) -> None:
        os.close(self._event)


class Collected:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.batches: list[SpanBatch] = []

    def submit(self, batch: SpanBatch) -> None:
        self.batches.append(batch)

    def numbers(self) -> list[int]:
        return [int(each) for batch in self.batches for each in batch.start_ns]


def batch_of(numbers: NDArray[Any], offset_ns: int = 0) -> SpanBatch:
    count = len(numbers)
    start = numbers.astype(np.uint64)
    return SpanBatch(
        np.zeros((count, 16), np.uint8),
        np.zeros((count, 8), np.uint8),
        np.zeros((count, 8), np.uint8),
        start,
        start + np.uint64(offset_ns),
        (start % np.uint64(2)).astype(np.int32),
        SHAPES,
        {},
        {},
    )


def feed(records: NDArray[Any], offset_ns: int) -> SpanBatch:
    return batch_of(records["number"], offset_ns)


@contextlib.contextmanager
def pipeline(
    capacity: int, make: Callable[[Any, int], SpanBatch] = feed, buffer_bytes: int = 1 << 26
) -> Iterator[tuple[FakeRing, Pipeline, Collected, list[BaseException]]]:
    ring, sink, failures = FakeRing(capacity), Collected(), list[BaseException]()
    pipe = Pipeline(ring, make, lambda: 7, [sink], failures.append, buffer_bytes)
    pipe.start()
    try:
        yield ring, pipe, sink, failures
    finally:
        pipe.stop(DEADLINE)
        ring.close()


def test_every_record_becomes_a_span_in_order() -> None:
    with pipeline(100_000) as (ring, pipe, sink, failures):
        for _ in range(100):
            ring.write(1_000)
        wait_until(lambda: pipe.records == 100_000)
        pipe.stop(DEADLINE)
        assert sink.numbers() == list(range(100_000))
        assert (pipe.server_spans, pipe.client_spans) == (50_000, 50_000)
        assert (pipe.reader_full, pipe.failed, failures) == (0, 0, [])
        assert int(sink.batches[0].end_ns[0]) == 7


def test_what_lies_in_the_ring_at_the_end_is_taken_along() -> None:
    with pipeline(10_000) as (ring, pipe, sink, _):
        ring.write(1)
        wait_until(lambda: pipe.records == 1)
        ring.write(9_999)
        pipe.stop(DEADLINE)
        assert len(sink.numbers()) == 10_000


class Waiting:
    """A stitcher that lets a batch go when it has waited for long, and all at the end."""

    def __init__(self, wait_ns: int) -> None:
        self._wait_ns = wait_ns
        self._held: list[tuple[int, SpanBatch]] = []
        self.flushed = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def since_ns(self) -> int:
        return self._held[0][0] if self._held else 0

    def feed(self, batch: SpanBatch, now_ns: int) -> list[SpanBatch]:
        self._held.append((now_ns, batch))
        return self.flush(now_ns)

    def flush(self, now_ns: int, all: bool = False) -> list[SpanBatch]:
        self.flushed += 1
        ready = [one for came, one in self._held if all or came + self._wait_ns <= now_ns]
        self._held = self._held[len(ready) :]
        return ready


def test_spans_that_wait_leave_without_new_records_and_at_the_end() -> None:
    ring, sink = FakeRing(100), Collected()
    waiting, rests = Waiting(150_000_000), []
    pipe = Pipeline(
        ring, feed, lambda: 7, [sink], print, stitch=waiting, rest=lambda: rests.append(1)
    )
    pipe.start()
    began = time.monotonic_ns()
    ring.write(10)
    wait_until(lambda: pipe.records == 10)
    wait_until(lambda: pipe.held_since_ns == waiting.since_ns > began)
    wait_until(lambda: len(sink.numbers()) == 10)
    wait_until(lambda: pipe.held_since_ns == 0)
    assert (pipe.batches, pipe.server_spans) == (len(sink.batches), 5)
    # Nothing is looked at for nothing, save once to give memory back.
    wait_until(lambda: rests == [1])
    before = waiting.flushed
    time.sleep(0.3)
    assert waiting.flushed == before
    ring.write(10)
    wait_until(lambda: pipe.records == 20)
    pipe.stop(DEADLINE)
    ring.close()
    assert sink.numbers() == list(range(20))


def test_traffic_without_end_does_not_keep_the_pipeline_from_ending() -> None:
    with pipeline(3_000_000) as (ring, pipe, _, _):
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set() and ring._written < 2_900_000:
                ring.write(200)

        writer = threading.Thread(target=flood)
        writer.start()
        try:
            began = time.monotonic()
            pipe.stop(2.0)
            assert time.monotonic() - began < 10.0
        finally:
            stop.set()
            writer.join()


def test_a_slow_worker_costs_records_only_beyond_the_buffer() -> None:
    go = threading.Event()

    def slow(records: NDArray[Any], offset_ns: int) -> SpanBatch:
        go.wait(DEADLINE)
        return feed(records, offset_ns)

    with pipeline(50_000, slow, buffer_bytes=8_192 * RECORD.itemsize) as (ring, pipe, sink, _):
        ring.write(50_000)
        wait_until(lambda: pipe.records == 50_000)
        # What was lost found less room than a read brings, a quarter of this buffer at most.
        assert pipe.buffer_fill() >= 0.75
        assert pipe.reader_full > 0
        go.set()
        pipe.stop(DEADLINE)
        numbers = sink.numbers()
        assert len(numbers) == 50_000 - pipe.reader_full
        assert numbers == sorted(numbers)


def test_a_batch_that_cannot_be_made_is_counted_and_told_once() -> None:
    def fail_first(records: NDArray[Any], offset_ns: int) -> SpanBatch:
        if records["number"][0] < 20:
            raise ValueError("no")
        return feed(records, offset_ns)

    with pipeline(100, fail_first) as (ring, pipe, sink, failures):
        for done in range(10, 31, 10):
            ring.write(10)
            wait_until(
                lambda done=done: pipe.records == done and pipe.failed + len(sink.numbers()) == done
            )  # type: ignore[misc]
        assert pipe.alive
        assert pipe.failed == 20
        assert sink.numbers() == list(range(20, 30))
        assert [str(failure) for failure in failures] == ["no"]


def test_a_wake_up_ends_the_wait() -> None:
    with pipeline(10) as (ring, pipe, _, _):
        wait_until(lambda: ring.awaited > 0)  # waits are at their longest now
        waits = []
        for done in range(1, 6):
            began = time.monotonic()
            ring.write(1)
            ring.wake()
            wait_until(lambda done=done: pipe.records == done)  # type: ignore[misc]
            waits.append(time.monotonic() - began)
            wait_until(lambda asked=ring.awaited: ring.awaited > asked)  # type: ignore[misc]
        assert min(waits) < MAX_WAIT / 2


def test_waits_follow_traffic_within_bounds() -> None:
    wait = START_WAIT
    for _ in range(20):
        wait = next_wait(wait, FEW_RECORDS - 1)
    assert wait == MAX_WAIT
    assert next_wait(wait, 0) == next_wait(IDLE_WAIT, 0) == IDLE_WAIT
    assert next_wait(IDLE_WAIT, 1) == MAX_WAIT
    assert next_wait(wait, FEW_RECORDS) == wait == next_wait(wait, MANY_RECORDS)
    for _ in range(20):
        wait = next_wait(wait, MANY_RECORDS + 1)
    assert wait == MIN_WAIT


def test_queue_is_bounded_by_bytes() -> None:
    queue: BoundedQueue[str] = BoundedQueue(100)
    assert queue.put("larger than the queue", 500)
    assert not queue.put("more", 1)
    assert queue.get() == "larger than the queue"
    assert all(queue.put(str(n), 30) for n in range(3))
    assert not queue.put("3", 30)
    assert queue.fill() == pytest.approx(0.9)
    assert queue.get_up_to(60) == ["0", "1"]
    assert len(queue) == 1
    queue.close()
    assert not queue.put("4", 1)
    assert not queue.closed
    assert queue.get_up_to(0) == ["2"]
    assert queue.get_up_to(0) == []
    assert queue.get() is None
    assert queue.closed


def test_queue_wait_ends() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    assert queue.get(0.01) is None
    closing = threading.Timer(0.05, queue.close)
    closing.start()
    assert queue.get() is None
    closing.join()


def test_queue_lingers_for_a_batch_but_not_beyond_its_time() -> None:
    queue: BoundedQueue[str] = BoundedQueue(100)
    queue.put("a", 10)
    more = [threading.Timer(0.05 * n, queue.put, (str(n), 10)) for n in (1, 2)]
    for timer in more:
        timer.start()
    assert queue.get_up_to(30, 10.0, linger=10.0) == ["a", "1", "2"]
    for timer in more:
        timer.join()
    queue.put("b", 10)
    assert queue.get_up_to(30, 10.0, linger=0.01) == ["b"]
    assert queue.get_up_to(30, 0.01, linger=10.0) == []
    queue.put("c", 10)
    closing = threading.Timer(0.05, queue.close)
    closing.start()
    assert queue.get_up_to(30, 10.0, linger=10.0) == ["c"]
    closing.join()


def lines(batch: SpanBatch) -> list[str]:
    return [f"span {number}" for number in batch.start_ns.tolist()]


def test_output_prints_every_span_of_a_burst(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("wb") as file:
        output = Output(file.fileno(), lines, lambda why: None)
        for start in range(0, 200_000, 8_000):
            output.submit(batch_of(np.arange(start, start + 8_000)))
        output.start()
        output.close(DEADLINE)
    assert path.read_text("ascii").splitlines() == [f"span {n}" for n in range(200_000)]
    assert (output.written, output.dropped) == (200_000, 0)


def test_output_into_a_pipe_that_nobody_empties_drops_and_ends() -> None:
    reader, writer = os.pipe()
    one = batch_of(np.arange(5_000))
    output = Output(writer, lines, lambda why: None, max_bytes=batch_bytes(one) * 2)
    output.start()
    for _ in range(20):
        output.submit(one)
    began = time.monotonic()
    output.close(0.2)
    assert time.monotonic() - began < 5.0
    assert output.dropped >= 17 * 5_000
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("nonblocking", [False, True])
def test_output_into_a_slow_pipe_loses_nothing(nonblocking: bool) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, not nonblocking)
    output = Output(writer, lines, lambda why: None)
    output.start()
    output.submit(batch_of(np.arange(50_000)))
    got = b""
    while got.count(b"\n") < 50_000:
        got += os.read(reader, 1 << 16)
    output.close(DEADLINE)
    assert output.written == 50_000
    os.close(reader)
    os.close(writer)


def test_output_whose_reader_has_gone_says_so_once() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    said: list[str] = []
    output = Output(writer, lines, said.append)
    output.start()
    output.submit(batch_of(np.arange(10)))
    wait_until(lambda: bool(said))
    output.submit(batch_of(np.arange(10)))
    output.close(DEADLINE)
    os.close(writer)
    assert said == [""]
    assert output.dropped == 0


def test_output_to_a_full_disk_says_why() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    said: list[str] = []
    output = Output(fd, lines, said.append)
    output.start()
    output.submit(batch_of(np.arange(10)))
    wait_until(lambda: bool(said))
    output.submit(batch_of(np.arange(5)))
    output.close(DEADLINE)
    os.close(fd)
    assert said == ["No space left on device"]
    assert (output.written, output.dropped) == (0, 15)


def test_tail_gets_what_matches_and_counts_what_does_not_fit() -> None:
    hub = TailHub()
    subscriber = hub.subscribe(parse("kind=server"))
    assert subscriber
    hub.submit(batch_of(np.arange(10)))
    batch = subscriber.next(0)
    assert batch is not None
    assert batch.start_ns.tolist() == [0, 2, 4, 6, 8]
    large = batch_of(np.zeros(300_000))
    hub.submit(large)
    hub.submit(large)
    assert subscriber.dropped == hub.dropped == 300_000
    hub.unsubscribe(subscriber)
    assert len(hub) == 0


def test_tails_are_bounded_in_number_and_end_with_the_hub() -> None:
    hub = TailHub()
    subscribers = []
    while (subscriber := hub.subscribe(parse(""))) is not None:
        subscribers.append(subscriber)
    assert len(subscribers) == len(hub) > 1
    hub.close()
    assert all(each.ended for each in subscribers)


def test_offset_brings_monotonic_time_to_unix_time() -> None:
    before = time.time_ns()
    unix = time.monotonic_ns() + clock.unix_offset_ns()
    assert before - 1_000_000 <= unix <= time.time_ns() + 1_000_000


def test_offset_ignores_readings_that_were_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([(0, 1_000, 10), (20, 1_020, 5_000), (6_000, 7_000, 6_010)])
    flat = iter([value for each in readings for value in each])
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: next(flat))
    assert clock.unix_offset_ns(3) == 995


def test_rates_are_over_the_window() -> None:
    rates = Rates()
    assert rates.rates(0.0, {"spans": 5})["spans"].per_second == 0
    for second in range(0, 30, 2):
        rates.sample(float(second), {"spans": second * 100})
    rate = rates.rates(28.5, {"spans": 2_850, "new": 3})
    assert rate["spans"].per_second == pytest.approx(100)
    assert rate["spans"].window_s == pytest.approx(10.5)
    assert rate["new"].per_second > 0


def test_own_cost_is_known() -> None:
    assert rss_bytes() > 1_000_000
    assert sum(cpu_seconds()) > 0


def test_second_instance_is_told_of_the_first(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "control.sock")
    code = (
        "import sys, time\nfrom tracer.instance import InstanceLock\n"
        f"lock = InstanceLock({path!r}); lock.acquire(); print('locked', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "locked\n"
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
        with pytest.raises(AlreadyRunningError, match=rf"pid {other.pid}\b"):
            InstanceLock(path).acquire()
        other.send_signal(signal.SIGKILL)
    lock = InstanceLock(path)
    lock.acquire()
    lock.release()
    lock.release()


def test_stale_socket_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    lock = InstanceLock(str(path))
    lock.acquire()
    assert not path.exists()
    lock.release()
    path.write_text("precious", "ascii")
    with pytest.raises(WirespanError, match="something else has that name"):
        lock.acquire()
    lock.release()
    assert path.read_text("ascii") == "precious"


def test_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WirespanError, match="cannot make the control socket"):
        InstanceLock(str(tmp_path / "file" / "control.sock")).acquire()


def test_nobody_attaches_probes_by_descriptors_that_are_closed() -> None:
    ended: list[str] = []

    class Part:
        def __init__(self, name: str) -> None:
            self.name = name

        def __bool__(self) -> bool:
            return self.name in ("pipeline", "contexts", "kernel")

        def __getattr__(self, word: str) -> Any:
            return lambda *_: ended.append(f"{self.name} {word}")

    agent = Agent.__new__(Agent)
    for name in ("loaded", "governor", "pipeline", "contexts", "kernel", "hub", "output",
                 "exporter", "store", "metrics", "control"):  # fmt: skip
        setattr(agent, f"_{name}", Part(name))
    agent._end()
    order = ["pipeline stop", "contexts close", "kernel close"]
    assert [step for step in ended if step in order] == order
