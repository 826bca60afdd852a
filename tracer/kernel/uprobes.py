"""Loaded programs put on instructions of executables and libraries.

A probe is on a place in a file, so one serves every process that maps the file, those
still to come and those in containers too. pylibbpf knows neither uprobes nor program
fds (tracer/kernel/loader.py finds those).
They are BPF links, which CAP_PERFMON suffices for, or on older kernels perf events.
Source: https://man7.org/linux/man-pages/man2/perf_event_open.2.html (config1, config2),
Documentation/ABI/testing/sysfs-bus-event_source-devices.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType

from tracer.errors import KernelError
from tracer.kernel import sys

_NUMBERS = {"x86_64": 298, "aarch64": 241, "riscv64": 241}  # perf_event_open
_ATTR_BYTES = 72  # PERF_ATTR_SIZE_VER1, the first with config2
_CLOSE_ON_EXEC = 8  # PERF_FLAG_FD_CLOEXEC
_SET_BPF = 0x40042408  # PERF_EVENT_IOC_SET_BPF
_PERF_EVENT_ARRAY = 4  # BPF_MAP_TYPE_PERF_EVENT_ARRAY
_ENABLE = 0x2400  # PERF_EVENT_IOC_ENABLE
CLOSERS = 32
_DEVICE = Path("/sys/bus/event_source/devices/uprobe")


class Uprobe:
    """One program at one place; gone after close() or with this process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> Uprobe:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the perf event's fd, -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Take the program off; harmless when repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def attach(
    program_fd: int, path: Path | str, offset: int, *, at_return: bool = False, pid: int = -1
) -> Uprobe:
    """Run a program of type kprobe whenever the instruction at a file's offset is reached.

    path: as this process sees it; /proc/PID/root/... or /proc/PID/map_files/... for one in
    another mount namespace. It is resolved here and now: the probe stays on the inode.
    offset: bytes into the file, not an address. at_return: when the function that begins
    there returns (never in Go: its stacks move). pid: -1 for every process.
    Raises KernelError where the kernel refuses or has no uprobes.
    """
    raw_path = os.fsencode(path)
    try:
        return Uprobe(sys.uprobe_link(program_fd, raw_path, offset, at_return, pid))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.E2BIG):
            raise _refusal(error.errno or 0, path, offset) from None
    # Before Linux 6.6 (commit 89ae89f53d20) there are perf events only, and for CAP_SYS_ADMIN.
    kind, return_bit = _device()
    name = ctypes.create_string_buffer(raw_path)
    # struct perf_event_attr: type, size, config, sample_period, sample_type, read_format,
    # flags, wakeup_events, bp_type, config1 (the path's address), config2 (the offset).
    raw = struct.pack(
        "=IIQQQQQIIQQ",
        kind,
        _ATTR_BYTES,
        1 << return_bit if at_return else 0,
        0,
        0,
        0,
        0,
        0,
        0,
        ctypes.addressof(name),
        offset,
    )
    attributes = ctypes.create_string_buffer(raw, len(raw))
    # For every process the event must name a CPU; the probe itself fires on all of them.
    fd = _perf_event_open(attributes, pid, 0 if pid == -1 else -1)
    if fd < 0:
        raise _refusal(ctypes.get_errno(), path, offset)
    try:
        fcntl.ioctl(fd, _SET_BPF, program_fd)
        fcntl.ioctl(fd, _ENABLE, 0)
    except OSError as error:
        os.close(fd)
        raise _refusal(error.errno or 0, path, offset) from None
    return Uprobe(fd)


def take_off(probes: Iterable[Uprobe]) -> None:
    """Close many probes without waiting for each, see left_to_kernel().

    Links can't be left to anybody, but wait side by side.
    """
    probes = tuple(probes)
    with (
        left_to_kernel([fd for probe in probes if (fd := probe.fileno()) >= 0]),
        ThreadPoolExecutor(max(1, min(len(probes), CLOSERS))) as pool,
    ):
        list(pool.map(Uprobe.close, probes))


@contextmanager
def left_to_kernel(fds: Sequence[int]) -> Iterator[None]:
    """Make it quick to close perf events: they end soon after, not before close() returns.

    The end of each waits 0.1 s for whoever may be in its program, and ends stand in line,
    so that closing from many threads takes as long. A map is made their last owner
    instead: what it holds is let go by a worker of the kernel's.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # without such a map each close() waits
            owner = sys.map_create(_PERF_EVENT_ARRAY, 4, 4, max(1, len(fds)))
            stack.callback(os.close, owner)
            for index, fd in enumerate(fds):
                sys.map_update(owner, struct.pack("=I", index), struct.pack("=I", fd))
        yield


def _perf_event_open(attributes: ctypes.Array[ctypes.c_char], pid: int, cpu: int) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise KernelError(f"perf_event_open(2) has no known number on {platform.machine()}")
    return int(
        _libc().syscall(
            ctypes.c_long(number),
            ctypes.byref(attributes),
            ctypes.c_int(pid),
            ctypes.c_int(cpu),
            ctypes.c_int(-1),
            ctypes.c_ulong(_CLOSE_ON_EXEC),
        )
    )


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _device() -> tuple[int, int]:
    """Return the PMU's type and the bit of `config` that asks for the return."""
    try:
        kind = int((_DEVICE / "type").read_text(encoding="ascii"))
        text = (_DEVICE / "format" / "retprobe").read_text(encoding="ascii")
    except OSError:
        raise KernelError(
            "this kernel has no uprobes",
            "a kernel built with CONFIG_UPROBE_EVENTS, and sysfs on /sys, are needed",
        ) from None
    match = re.search(r"\d+", text)
    return kind, int(match[0]) if match else 0


def _refusal(code: int, path: Path | str, offset: int) -> KernelError:
    return KernelError(
        f"cannot put a uprobe on {path} at {offset:#x}: {os.strerror(code)}",
        "needs Linux 6.6, or --keep-capability CAP_SYS_ADMIN" if code in (1, 13) else "",
    )
