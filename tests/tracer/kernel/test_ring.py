"""The ring's reader against a model of the kernel's side, in an ordinary file."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.errors import KernelError, LayoutError
from tracer.kernel.ring import BUSY, DISCARDED, Ring

PAGE = mmap.PAGESIZE
# 44 bytes: not a multiple of 8, so that the stride is more than header and record.
RECORD = np.dtype([("number", "<u8"), ("name", "S16"), ("text", "u1", (20,))])
STRIDE = 8 + 48


class Writer:
    """What the kernel does."""

    def __init__(self, size: int = PAGE) -> None:
        self.size = size
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + size)
        self.producer = 0

    def close(self) -> None:
        os.close(self.fd)

    @property
    def consumer(self) -> int:
        return int(struct.unpack("<Q", os.pread(self.fd, 8, 0))[0])

    def reserve(self, number: int) -> int | None:
        """Append a busy record; its position, or None where there is no room."""
        if self.producer + STRIDE - self.consumer > self.size - 1:
            return None
        record = np.zeros(1, RECORD)
        record["number"], record["name"] = number, f"n{number}".encode()
        record["text"] = number & 255
        place = self.producer
        self._put(place, struct.pack("<II", RECORD.itemsize | BUSY, 0) + record.tobytes())
        self.producer += STRIDE
        os.pwrite(self.fd, struct.pack("<Q", self.producer), PAGE)
        return place

    def commit(self, place: int, discard: bool = False) -> None:
        length = RECORD.itemsize | (DISCARDED if discard else 0)
        self._put(place, struct.pack("<II", length, 0))

    def write(self, number: int, discard: bool = False) -> bool:
        place = self.reserve(number)
        if place is None:
            return False
        self.commit(place, discard)
        return True

    def _put(self, place: int, raw: bytes) -> None:
        for i in range(0, len(raw), 8):
            os.pwrite(self.fd, raw[i : i + 8], 2 * PAGE + (place + i) % self.size)


@pytest.fixture
def writer() -> Iterator[Writer]:
    writer = Writer()
    yield writer
    writer.close()


@pytest.fixture
def ring(writer: Writer) -> Iterator[Ring]:
    with Ring(writer.fd, writer.size, RECORD) as ring:
        yield ring


def test_empty(ring: Ring) -> None:
    records = ring.read(10)
    assert records.shape == (0,)
    assert records.dtype == RECORD
    ring.release()
    assert ring.fill() == 0.0


def test_records_come_in_order_and_in_place(writer: Writer, ring: Ring) -> None:
    for number in range(5):
        assert writer.write(number)
    records = ring.read(100)
    assert records["number"].tolist() == [0, 1, 2, 3, 4]
    assert records["name"].tolist() == [b"n0", b"n1", b"n2", b"n3", b"n4"]
    assert not records.flags.owndata and not records.flags.writeable
    assert records.strides == (STRIDE,)
    assert ring.fill() == pytest.approx(5 * STRIDE / PAGE)
    ring.release()
    assert writer.consumer == 5 * STRIDE
    assert ring.fill() == 0.0
    ring.release()  # once more gives nothing back
    assert writer.consumer == 5 * STRIDE


def test_at_most_as_many_as_asked(writer: Writer, ring: Ring) -> None:
    for number in range(5):
        writer.write(number)
    with ring.batch(2) as records:
        assert records["number"].tolist() == [0, 1]
    with ring.batch(0) as records:
        assert len(records) == 0
    with ring.batch(100) as records:
        assert records["number"].tolist() == [2, 3, 4]


def test_without_release_the_same_come_back(writer: Writer, ring: Ring) -> None:
    writer.write(1)
    assert ring.read(9)["number"].tolist() == [1]
    writer.write(2)
    assert ring.read(9)["number"].tolist() == [1, 2]
    assert writer.consumer == 0


def test_stops_at_a_busy_record(writer: Writer, ring: Ring) -> None:
    writer.write(0)
    place = writer.reserve(1)
    writer.write(2)
    assert place is not None
    with ring.batch(9) as records:
        assert records["number"].tolist() == [0]
    assert len(ring.read(9)) == 0
    writer.commit(place)
    with ring.batch(9) as records:
        assert records["number"].tolist() == [1, 2]


def test_passes_over_discarded_records(writer: Writer, ring: Ring) -> None:
    for number in range(9):
        writer.write(number, discard=number % 3 == 0)
    records = ring.read(9)
    assert records["number"].tolist() == [1, 2, 4, 5, 7, 8]
    assert records.flags.owndata
    ring.release()
    assert ring.discarded == 3
    assert writer.consumer == 9 * STRIDE


def test_only_discarded_records(writer: Writer, ring: Ring) -> None:
    writer.write(0, discard=True)
    with ring.batch(9) as records:
        assert len(records) == 0
    assert ring.fill() == 0.0


def test_wraps(writer: Writer, ring: Ring) -> None:
    number = 0
    seen: list[int] = []
    for _ in range(50):
        while writer.write(number):
            number += 1
        while ring.fill():
            with ring.batch(1000) as records:
                seen += records["number"].tolist()
                assert (records["text"] == (records["number"] & 255)[:, None]).all()
                assert not records.flags.writeable
    assert seen == list(range(number))
    assert number > 40 * PAGE // STRIDE


def test_a_record_that_wraps_and_is_discarded(writer: Writer, ring: Ring) -> None:
    last = PAGE // STRIDE  # its header is in the ring's last bytes, the rest in the first
    for number in range(last):
        writer.write(number)
    with ring.batch(1000) as records:
        assert len(records) == last
    for number in range(3):
        writer.write(number, discard=number == 0)
    with ring.batch(1000) as records:
        assert len(records) == 0
    with ring.batch(1000) as records:
        assert records["number"].tolist() == [1, 2]
    assert ring.discarded == 1


def test_a_reader_goes_on_where_another_left_off(writer: Writer) -> None:
    writer.write(1)
    with Ring(writer.fd, writer.size, RECORD) as ring, ring.batch(9) as records:
        assert records["number"].tolist() == [1]
    writer.write(2)
    with Ring(writer.fd, writer.size, RECORD) as ring:
        assert ring.read(9)["number"].tolist() == [2]


def test_another_size_is_refused(writer: Writer) -> None:
    writer.write(1)
    other = np.dtype([("number", "<u8"), ("rest", "u1", (32,))])
    with Ring(writer.fd, writer.size, other) as ring, pytest.raises(LayoutError, match="40 bytes"):
        ring.read(9)


def test_closing(writer: Writer) -> None:
    ring = Ring(writer.fd, writer.size, RECORD)
    writer.write(7)
    view = ring.read(9)
    fd = ring.fileno()
    ring.close()
    ring.close()
    assert view["number"].tolist() == [7]  # the pages stay as long as a view does
    with pytest.raises(OSError):
        os.fstat(fd)
    os.fstat(writer.fd)  # the caller's own fd stays
    with pytest.raises(ValueError, match="closed"):
        ring.read(1)
    assert ring.fill() == 0.0


def test_what_cannot_be_mapped() -> None:
    pipe, other = os.pipe()
    with pytest.raises(KernelError, match="cannot map the ring"):
        Ring(pipe, PAGE, RECORD)
    os.close(pipe)
    os.close(other)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.booleans()),
        st.tuples(st.just("reserve"), st.booleans()),
        st.tuples(st.just("commit"), st.booleans()),
        st.tuples(st.just("read"), st.integers(0, 80)),
    ),
    max_size=300,
)


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_whatever_happens_every_record_comes_once_in_order(
    actions: list[tuple[str, int | bool]],
) -> None:
    writer = Writer()
    expected: list[int] = []
    seen: list[int] = []
    open_records: list[tuple[int, int]] = []
    number = 0
    with Ring(writer.fd, writer.size, RECORD) as ring:
        for action, argument in actions:
            if action in ("write", "reserve"):
                place = writer.reserve(number)
                if place is None:
                    continue
                if action == "write":
                    writer.commit(place, discard=bool(argument))
                    if not argument:
                        expected.append(number)
                else:
                    expected.append(number)
                    open_records.append((place, number))
                number += 1
            elif action == "commit" and open_records:
                writer.commit(open_records.pop(0)[0])
            elif action == "read":
                with ring.batch(int(argument)) as records:
                    seen += records["number"].tolist()
        for place, _ in open_records:
            writer.commit(place)
        while ring.fill():
            with ring.batch(1000) as records:
                seen += records["number"].tolist()
    writer.close()
    assert seen == expected
