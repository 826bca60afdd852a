"""Child processes: ended by their pid whatever happens, measured in ns.

CPU time is read from each process's own clock, which counts its threads past and present
in ns; /proc/PID/stat would give ticks of 10 ms.
Source: clock_getcpuclockid(3); the number is built as the kernel defines it in
include/linux/posix-timers_types.h (CPUCLOCK_SCHED of a process).
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Self

CPUCLOCK_SCHED = 2
POLL_S = 0.01
STOP_S = 15.0
PORTS_FROM = 10_000


class BenchError(Exception):
    """A measurement that could not be made; the text is for people."""


def cpu_ns(pid: int) -> int:
    """CPU time, user and system, of all threads a live process ever had, in ns.

    Raises BenchError where there is no such process.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | CPUCLOCK_SCHED)
    except OSError:
        raise BenchError(f"process {pid} has ended") from None


def page_faults(pid: int) -> int:
    """Count page faults of a live process that needed no disk: proc_pid_stat(5), minflt."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # The name in brackets may hold anything, so fields are counted from its end.
    return int(text.rpartition(")")[2].split()[7])


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a process in bytes: now and at most (VmRSS, VmHWM).

    bpf: of resident, pages of BPF maps that it has mapped.
    """

    resident: int
    peak: int
    bpf: int

    @classmethod
    def of(cls, pid: int) -> Memory:
        """Look at a live process."""
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        found = {key: int(kib) for key, kib in re.findall(r"^(Vm\w+):\s+(\d+) kB", status, re.M)}
        smaps = Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace")
        maps = re.findall(r"anon_inode:bpf-map\n(?:\w+: .*\n)*?Rss:\s+(\d+) kB", smaps)
        return cls(found["VmRSS"] * 1024, found["VmHWM"] * 1024, sum(map(int, maps)) * 1024)


def free_port(family: socket.AddressFamily = socket.AF_INET) -> int:
    """Return a TCP port of 127.0.0.1, or ::1, on which nothing listens.

    From below those that the kernel gives to connections, where there are enough: until somebody
    listens at the port, any connection of this host would take it.
    """
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    first = int(given.split()[0])
    while True:
        port = random.SystemRandom().randrange(PORTS_FROM, first) if first > 2 * PORTS_FROM else 0
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
            return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether something on 127.0.0.1 accepts connections at a port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def tree(pid: int) -> list[int]:
    """Return a live process and its descendants. Raises BenchError where there is none."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        # Children are listed for the thread that made them.
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                todo += map(int, task.read_text().split())
    if not Path(f"/proc/{pid}").exists():
        raise BenchError(f"process {pid} has ended")
    return found


def tree_cpu_s(pid: int) -> float:
    """CPU time of a live process, its descendants, and those of them that were waited for."""
    ticks = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{one}/stat").read_text(encoding="utf-8", errors="replace")
            # proc_pid_stat(5): utime, stime, cutime, cstime
            ticks += sum(map(int, text.rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


class Child:
    """A process of our own, in a session of its own so that a Ctrl-C reaches only us.

    argv: run through setpriv(1), by which it also ends when we are killed.
    env: its whole environment; None for ours.
    Raises BenchError where the program is missing.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pipes: bool = False,
    ) -> None:
        self.name = Path(argv[0]).name
        self._talk: IO[bytes] = tempfile.TemporaryFile()
        words = ["setpriv", "--pdeathsig", "TERM", *map(str, argv)]
        try:
            self.popen = subprocess.Popen(
                words,
                env=env,
                cwd=cwd,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else self._talk,
                stderr=self._talk,
                start_new_session=True,
                text=pipes,
            )
        except OSError as error:
            raise BenchError(f"cannot run {words[0]}: {error.strerror}") from None
        self.pid = self.popen.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def said(self) -> str:
        """What it printed so far; with pipes, on standard error only."""
        # pread: the offset is shared with the child, which writes at it.
        fd = self._talk.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")

    def wait_for(self, condition: Callable[[], bool], what: str, timeout: float = 30.0) -> None:
        """Poll until `condition()`; BenchError when the process ends first or time is up."""
        end = time.monotonic() + timeout
        while not condition():
            if self.popen.poll() is not None:
                raise BenchError(f"{self.name} has ended before {what}:\n{self.said()}")
            if time.monotonic() > end:
                raise BenchError(f"{self.name}: not within {timeout:g} s: {what}")
            time.sleep(POLL_S)

    def finish(self, timeout: float) -> int:
        """Wait for its own end and return the CPU time it took, in ns.

        Raises BenchError when it fails or takes longer than `timeout` s.
        """
        end = time.monotonic() + timeout
        while True:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                raise BenchError(f"{self.name} did not end in {timeout:g} s")
            time.sleep(POLL_S)
        self.popen.returncode = os.waitstatus_to_exitcode(status)
        if self.popen.returncode:
            raise BenchError(f"{self.name} exited {self.popen.returncode}:\n{self.said()}")
        return round((usage.ru_utime + usage.ru_stime) * 1e9)

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = STOP_S) -> int:
        """End it, by SIGKILL in the end, forget what it said, and return its exit code."""
        try:
            if self.popen.poll() is None:
                self.popen.send_signal(how)
            self.popen.wait(timeout)
        except BaseException as error:
            self.popen.kill()
            self.popen.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            for file in (self.popen.stdin, self.popen.stdout, self._talk):
                if file:
                    # A pipe may hold words for a process that is gone.
                    with contextlib.suppress(OSError):
                        file.close()
        return int(self.popen.returncode)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt, so that they unwind as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
