"""What the control service answers to Status: the monitor's numbers and the kernel's lists."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.kernel.loader import Kernel, MapInfo, Program
from tracer.losses import KERNEL, LOSSES
from tracer.monitor import Monitor, cpu_seconds, rss_bytes

if TYPE_CHECKING:
    from proto.wirespan.v1 import control_pb2

COUNT_PREFIX = "FLOW_COUNT_"

MEANINGS: Mapping[str, str] = {loss.name: loss.meaning for loss in LOSSES.values()}


@dataclass(frozen=True, slots=True)
class Export:
    """Where spans go, how, and how it fares; counts are of spans and requests."""

    endpoint: str
    protocol: str
    counts: Mapping[str, int]
    last_error: str


@dataclass(frozen=True, slots=True)
class Stored:
    """Where spans are kept, who answers queries, and counts of the store; or why it isn't."""

    directory: str
    address: str
    counts: Mapping[str, int]
    failure: str = ""


class KernelView:
    """The loaded kernel side for many threads, which the loader is not made for.

    After `close` the numbers stay at their last values.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._lock = threading.Lock()
        self._closed = False
        self._read()

    def _read(self) -> None:
        self._read_counts()
        self._read_losses()
        self._read_missed()
        self._read_fill()

    def _read_counts(self) -> None:
        self._counts = {
            name.removeprefix(COUNT_PREFIX).lower(): value
            for name, value in self._kernel.counts().items()
        }

    def _read_losses(self) -> None:
        self._losses = {KERNEL[name].name: value for name, value in self._kernel.losses().items()}

    def _read_missed(self) -> None:
        self._missed = self._kernel.missed()

    def _read_fill(self) -> None:
        self._ring_fill = self._kernel.ring.fill()

    def _refresh(self, *parts: Callable[[], None]) -> None:
        """Read from the kernel; nothing after `close`."""
        with self._lock:
            if not self._closed:
                for read in parts:
                    read()

    def counts(self) -> dict[str, int]:
        """What the kernel side counted, by short name."""
        self._refresh(self._read_counts)
        return dict(self._counts)

    def losses(self) -> dict[str, int]:
        """What the kernel side lost, by short name."""
        self._refresh(self._read_losses, self._read_missed)
        return {**self._losses, "hook_missed": self._missed}

    def ring_full(self) -> int:
        """How many records the ring had no room for; asked often, so it is all that is read."""
        self._refresh(self._read_losses)
        return self._losses["ring_full"]

    def ring_fill(self) -> float:
        """How full the ring is, from 0 to 1."""
        self._refresh(self._read_fill)
        return self._ring_fill

    def shed(self, value: int) -> None:
        """Say how many traces are to be let go; nothing after `close`."""
        with self._lock:
            if not self._closed:
                self._kernel.shed(value)

    def programs(self) -> list[Program]:
        """The programs loaded; none after `close`."""
        with self._lock:
            return [] if self._closed else self._kernel.programs()

    def maps(self) -> list[MapInfo]:
        """The maps loaded; none after `close`."""
        with self._lock:
            return [] if self._closed else self._kernel.maps()

    def close(self) -> None:
        """Read the counters for the last time, detach and unload."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._read()
                self._kernel.close()


def reply(
    version: str,
    filters: tuple[str, ...],
    kernel: KernelView,
    monitor: Monitor,
    export: Callable[[], Export | None],
    subscribers: int,
    stored: Stored | None = None,
    sampling: str = "",
) -> control_pb2.StatusReply:
    """Gather a whole answer."""
    # Not before somebody asks: protobuf takes 4 MB.
    from proto.wirespan.v1 import control_pb2

    rates = monitor.rates()
    cpu_rate = rates.pop("cpu_seconds")
    gauges = monitor.gauges()
    leaving = export()
    return control_pb2.StatusReply(
        version=version,
        pid=os.getpid(),
        uptime_seconds=monitor.uptime_s(),
        programs=[
            control_pb2.Program(
                name=program.name,
                kind=program.kind,
                attached=program.attached,
                run_count=program.run_count,
                run_ns=program.run_ns,
                hook=program.hook,
            )
            for program in kernel.programs()
        ],
        maps=[
            control_pb2.Map(
                name=each.name, type=each.type, max_entries=each.max_entries, bytes=each.bytes
            )
            for each in kernel.maps()
        ],
        counts=_counters(monitor.counts()),
        losses=[
            control_pb2.Loss(name=name, value=value, meaning=MEANINGS.get(name, ""))
            for name, value in monitor.losses().items()
        ],
        rates=[
            control_pb2.Rate(name=name, per_second=rate.per_second, window_seconds=rate.window_s)
            for name, rate in rates.items()
        ],
        ring=control_pb2.Ring(
            bytes=gauges.ring_bytes,
            fill=gauges.ring_fill,
            buffer_bytes=gauges.buffer_bytes,
            buffer_fill=gauges.buffer_fill,
        ),
        export=control_pb2.Export(
            endpoint=leaving.endpoint,
            protocol=leaving.protocol,
            counts=_counters(leaving.counts),
            last_error=leaving.last_error,
        )
        if leaving
        else None,
        filters=filters,
        process=control_pb2.Process(
            cpu_seconds=sum(cpu_seconds()),
            cpu_fraction=cpu_rate.per_second,
            rss_bytes=rss_bytes(),
        ),
        tail_subscribers=subscribers,
        sampling=sampling,
        store=control_pb2.Store(
            directory=stored.directory,
            query_address=stored.address,
            counts=_counters(stored.counts),
            failure=stored.failure,
        )
        if stored
        else None,
    )


def _counters(values: Mapping[str, int]) -> list[control_pb2.Counter]:
    from proto.wirespan.v1 import control_pb2

    return [control_pb2.Counter(name=name, value=value) for name, value in values.items()]
