"""A BPF ring buffer, read in place as an array of fixed-size records.

The map's fd maps to one page with the consumer's position (ours to write), one
with the producer's, then the data twice in a row. It is mapped once, for each mapping
counts as resident memory: a record that wraps is read by itself, as a copy. Each record
has an 8-byte header: length, bit 31 while the program still fills it in, bit 30 where the
program discarded it, and a page offset that is the kernel's own. Positions count bytes
for ever; both are multiples of 8.

All records here have one size, so a batch is one numpy view with a fixed stride,
header and all: no copy, no loop, save where discarded records lie between others.

Source: Linux kernel/bpf/ringbuf.c and
https://www.kernel.org/doc/html/latest/bpf/ringbuf.html
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import TypeAlias

import numpy as np

from tracer.errors import KernelError, LayoutError

HEADER_BYTES = 8
BUSY = 1 << 31
DISCARDED = 1 << 30

Records: TypeAlias = np.ndarray[tuple[int], np.dtype[np.void]]


class Ring:
    """The consumer of one ring buffer. There may be only one at a time.

    Not thread-safe: one thread reads and releases.
    """

    def __init__(
        self,
        map_fd: int,
        map_bytes: int,
        record_dtype: np.dtype[np.void],
        awaited: tuple[int, int] | None = None,
    ) -> None:
        """Map the ring.

        map_fd: of a BPF_MAP_TYPE_RINGBUF; duplicated, so the caller keeps its own.
        map_bytes: the map's max_entries: a power of two, a multiple of the page.
        record_dtype: of every record in the ring.
        awaited: descriptor of an array map, and where in it the programs find whether they are
            to wake the reader (u32); None: nobody can be asked to.
        Raises KernelError where the kernel will not map it.
        """
        self.record_dtype = record_dtype
        self.bytes = map_bytes
        self.stride = HEADER_BYTES + -(-record_dtype.itemsize // 8) * 8
        self.discarded = 0  # records passed over since the start
        self._fd = os.dup(map_fd)
        page = mmap.PAGESIZE
        try:
            consumer = mmap.mmap(self._fd, page)
            data = mmap.mmap(self._fd, page + map_bytes, prot=mmap.PROT_READ, offset=page)
            self._maps: tuple[mmap.mmap, ...] = (consumer, data)
            self._awaited = np.zeros(1, np.uint32)
            if awaited:
                fd, at = awaited
                knobs = mmap.mmap(fd, page, offset=at // page * page)
                self._maps = (*self._maps, knobs)
                self._awaited = np.frombuffer(knobs, np.uint32, 1, at % page)
        except (OSError, ValueError) as error:
            os.close(self._fd)
            raise KernelError(
                f"cannot map the ring buffer of {map_bytes} bytes: {error}",
                "try a smaller ring: --ring-bytes",
            ) from None
        self._consumer = np.frombuffer(consumer, np.uint64, 1)
        self._producer = np.frombuffer(data, np.uint64, 1)
        # Views are made of this array and not of the mmap itself: np.ndarray would hold
        # the object but not its buffer, and close() would unmap it under their feet.
        self._data: np.ndarray[tuple[int], np.dtype[np.uint8]] | None = np.frombuffer(
            data, np.uint8, offset=page
        )
        self._position = int(self._consumer[0])
        self._taken = 0  # bytes that the next release gives back,
        self._passed = 0  # and discarded records among them
        self._lock = threading.Lock()

    def __enter__(self) -> Ring:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Return an fd that poll(2) finds readable when asked while anything is unread.

        Programs that submit with BPF_RB_NO_WAKEUP wake no sleeper, and epoll looks again
        only when woken: with them, read by time.
        """
        return self._fd

    def wake_me(self) -> None:
        """Have the next record make fileno() readable at once.

        One that is being written just now may not: don't wait for ever.
        """
        self._awaited[0] = 1
        self._fence()  # whoever reads next sees what came before the program could see this

    def fill(self) -> float:
        """Return how much of the ring is in use, 0.0 to 1.0."""
        return (int(self._producer[0]) - self._position) / self.bytes

    def read(self, max_records: int) -> Records:
        """Return the oldest unread records, at most `max_records`, without waiting.

        Shape (n,), n >= 0, read-only, in the order of reservation. A view of the ring
        itself, good until release(); a copy only where some were discarded. Ends
        before a record that is still being written, and before and after the one that
        wraps: none is left when n is 0. Read again before release() and the same records
        come back, newer ones after them.
        Raises LayoutError where a record has another size than the dtype.
        """
        if self._data is None:
            raise ValueError("the ring is closed")
        self._taken = 0
        count = min((int(self._producer[0]) - self._position) // self.stride, max_records)
        if count <= 0:
            return np.empty(0, self.record_dtype)
        self._fence()  # the kernel's store to the position comes after those to the headers
        start = self._position % self.bytes
        stride = (self.stride,)
        whole = (self.bytes - start) // self.stride
        count = min(count, max(1, whole))
        heads = np.ndarray((count,), np.uint32, self._data, start, stride).copy()
        busy = heads >= BUSY
        if busy.any():
            count = int(busy.argmax())
            heads = heads[:count]
        self._fence()  # likewise a header's busy bit after the record
        if ((heads & ~np.uint32(DISCARDED)) != self.record_dtype.itemsize).any():
            raise LayoutError(
                f"the ring holds a record that is not {self.record_dtype.itemsize} bytes long",
                "the eBPF object and this wirespan do not belong together: make build",
            )
        keep = heads < DISCARDED
        self._taken = count * self.stride
        self._passed = count - int(np.count_nonzero(keep))
        data, start = (self._data, start) if whole else (self._wrapped(start), 0)
        records: Records = np.ndarray(
            (count,), self.record_dtype, data, start + HEADER_BYTES, stride
        )
        return records[keep] if self._passed else records

    def _wrapped(self, start: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """Return a copy of the record that begins at `start` and goes on at 0, header first."""
        assert self._data is not None
        data = np.concatenate((self._data[start:], self._data[: start + self.stride - self.bytes]))
        data.flags.writeable = False
        return data

    def release(self) -> None:
        """Give the records last read back to the kernel; their view is void from here on."""
        if self._taken == 0:
            return
        self.discarded += self._passed
        self._position += self._taken
        self._taken = 0
        self._fence()  # no read of a record may come after its room is given away
        self._consumer[0] = self._position

    @contextlib.contextmanager
    def batch(self, max_records: int) -> Iterator[Records]:
        """Read, and release on the way out, whatever happened in between."""
        records = self.read(max_records)
        try:
            yield records
        finally:
            self.release()

    def close(self) -> None:
        """Unmap the ring and close the fd; harmless when repeated.

        A view that someone still holds keeps the pages mapped until it goes.
        """
        if self._data is None:
            return
        self._data = None
        self._consumer = self._producer = np.zeros(1, np.uint64)
        self._awaited = np.zeros(1, np.uint32)
        self._position = self._taken = 0
        for pages in self._maps:
            with contextlib.suppress(BufferError):
                pages.close()
        self._maps = ()
        os.close(self._fd)

    def _fence(self) -> None:
        """Keep loads and stores before this from moving past it, and the other way round.

        x86 keeps loads in order by itself, arm64 doesn't. Two rounds of one lock are a
        full barrier everywhere: nothing sinks below the first release, nothing rises
        above the second acquire, and that waits for the first release. About 0.1 us.
        """
        with self._lock:
            pass
        with self._lock:
            pass
