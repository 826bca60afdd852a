"""The ring against the real kernel: every record once, in order, across many wraps."""

from __future__ import annotations

import ctypes
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.root.compile import compile_bpf
from tracer.kernel.loader import Kernel, Settings

WRITE, DISCARD = 1000, 1001
MOST = 64  # records a call
RING = 64 << 10
STRIDE = 688
ROOM = (RING - 1) // STRIDE  # records that fit; the kernel leaves the last byte free

# Write `argv[1]` records, MOST a call, as soon as a line comes in.
WRITER = f"""
import ctypes, sys
libc = ctypes.CDLL(None)
print(flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[1]) // {MOST}):
    libc.getpriority({WRITE}, {MOST})
"""


def call(operation: int, count: int) -> None:
    """Have the program act; the system call itself fails with EINVAL."""
    ctypes.CDLL(None).getpriority(operation, count)


@pytest.fixture
def start() -> Iterator[Callable[..., Kernel]]:
    kernels: list[Kernel] = []

    def begin(ring_bytes: int = RING, **knobs: int) -> Kernel:
        kernel = Kernel(
            compile_bpf("writer"), settings=Settings(ring_bytes=ring_bytes, knobs=knobs)
        )
        kernels.append(kernel)
        kernel.load()
        kernel.attach()
        return kernel

    yield begin
    for kernel in kernels:
        kernel.close()


@contextmanager
def writer(records: int) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(records)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout
        child.stdout.readline()
        try:
            yield child
        finally:
            child.kill()


def emptied(kernel: Kernel) -> NDArray[np.void]:
    """Read all there is: a record that wraps comes by itself."""
    parts = []
    while kernel.ring.fill():
        with kernel.ring.batch(1000) as records:
            parts.append(records.copy())
    return np.concatenate(parts)


def test_every_record_across_wraps(start: Callable[..., Kernel]) -> None:
    kernel = start()
    expected = 0
    for turn in range(200):
        count = turn % MOST + 1
        call(WRITE, count)
        records = emptied(kernel)
        numbers = np.arange(expected, expected + count)
        assert (records["start_ns"] == numbers).all() and len(records) == count
        assert (records["text"] == (numbers & 255)[:, None]).all()
        assert (records["text_len"] == numbers & 0xFFFF).all()
        expected += count
    assert expected * STRIDE > 50 * RING
    assert kernel.losses()["FLOW_LOSS_RING_FULL"] == 0
    assert kernel.counts()["FLOW_COUNT_EXCHANGES"] == expected


def test_small_reads(start: Callable[..., Kernel]) -> None:
    kernel = start()
    seen: list[int] = []
    for _ in range(20):
        call(WRITE, MOST)
        while kernel.ring.fill():
            with kernel.ring.batch(7) as records:
                assert 1 <= len(records) <= 7
                seen += records["start_ns"].tolist()
    assert seen == list(range(20 * MOST))


def test_discarded_records_are_passed_over(start: Callable[..., Kernel]) -> None:
    kernel = start()
    seen: list[int] = []
    for _ in range(30):
        call(DISCARD, 50)
        seen += emptied(kernel)["start_ns"].tolist()
    assert seen == [number for number in range(1500) if number % 3 != 2]
    assert kernel.ring.discarded == 500
    assert kernel.ring.fill() == 0.0


def test_a_full_ring_loses_the_newest_and_counts_them(start: Callable[..., Kernel]) -> None:
    kernel = start()
    for _ in range(10):
        call(WRITE, MOST)
    assert kernel.losses()["FLOW_LOSS_RING_FULL"] == 10 * MOST - ROOM
    assert kernel.ring.fill() == pytest.approx(ROOM * STRIDE / RING)
    with kernel.ring.batch(1000) as records:
        assert records["start_ns"].tolist() == list(range(ROOM))
    call(WRITE, 1)
    assert emptied(kernel)["start_ns"].tolist() == [10 * MOST]
    assert kernel.counts()["FLOW_COUNT_EXCHANGES"] == ROOM + 1


def test_room_is_given_back_at_release_only(start: Callable[..., Kernel]) -> None:
    kernel = start()
    for _ in range(3):
        call(WRITE, MOST)
    records = kernel.ring.read(1000)
    before = records.copy()
    call(WRITE, MOST)
    assert (records == before).all()
    kernel.ring.release()
    call(WRITE, MOST)
    assert emptied(kernel)["start_ns"].tolist() == list(range(4 * MOST, 5 * MOST))


def test_a_writer_on_another_cpu(start: Callable[..., Kernel]) -> None:
    total = 192_000
    with writer(total) as child:
        kernel = start(1 << 20, cfg_writer=child.pid)
        assert child.stdin
        child.stdin.write("\n")
        child.stdin.flush()
        received, last = 0, -1
        deadline = time.monotonic() + 60
        done = False
        while not done or kernel.ring.fill():
            assert time.monotonic() < deadline
            done = child.poll() is not None
            with kernel.ring.batch(512) as records:
                if len(records):
                    numbers = records["start_ns"].astype(np.int64)
                    assert numbers[0] > last and (np.diff(numbers) > 0).all()
                    assert (records["text"] == (numbers & 255)[:, None]).all()
                    last, received = int(numbers[-1]), received + len(numbers)
        assert child.returncode == 0
    assert received + kernel.losses()["FLOW_LOSS_RING_FULL"] == total
    assert received == kernel.counts()["FLOW_COUNT_EXCHANGES"] > 0


def test_poll_sees_unread_records(start: Callable[..., Kernel]) -> None:
    kernel = start()
    poll = select.poll()
    poll.register(kernel.ring.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    call(WRITE, 1)
    assert poll.poll(0) == [(kernel.ring.fileno(), select.POLLIN)]
    with kernel.ring.batch(1):
        pass
    assert poll.poll(0) == []


def test_the_next_record_wakes_who_asked(start: Callable[..., Kernel]) -> None:
    kernel = start()
    with select.epoll() as poll:
        poll.register(kernel.ring.fileno(), select.EPOLLIN | select.EPOLLET)
        call(WRITE, 1)
        assert poll.poll(0.1) == []
        kernel.ring.wake_me()
        assert poll.poll(0.1) == []
        call(WRITE, 1)
        assert poll.poll(5) == [(kernel.ring.fileno(), select.EPOLLIN)]
        call(WRITE, 1)
        assert poll.poll(0.1) == []
    assert len(emptied(kernel)) == 3


def test_a_view_outlives_the_kernel_side(start: Callable[..., Kernel]) -> None:
    kernel = start()
    call(WRITE, 5)
    records = kernel.ring.read(5)
    kernel.close()
    assert records["start_ns"].tolist() == [0, 1, 2, 3, 4]
    assert set(records["comm"].tolist()) == {Path("/proc/self/comm").read_bytes().strip()}
