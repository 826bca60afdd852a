"""The load of the fault suite, and what it knows of each request it made."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.processes import BenchError, Child

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "faults"
MOST = 1 << 22
MADE = np.dtype(
    [("start_ns", "u8"), ("end_ns", "u8"), ("status", "u4"), ("begun", "u4")]
)  # struct made of load.c


def compile_c(name: str, *flags: str) -> Path:
    """Build NAME.c of this directory, unless that was done; returns the file."""
    source, target = HERE / f"{name}.c", BUILD / name
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        fresh = BUILD / f"{name}.{os.getpid()}"
        words = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", *flags, "-o", str(fresh), str(source)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"cannot build {source.name}:\n{done.stderr}")
        fresh.replace(target)
    return target


@dataclass(frozen=True, slots=True)
class Made:
    """What a load did. prefix: of its paths; failed: requests without a response,
    and connections that could not be opened; why: what it said of the first of them.

    requests: shape (n,), dtype MADE, by number; times are CLOCK_MONOTONIC ns.
    """

    prefix: str
    requests: NDArray[np.void]
    failed: int
    why: str = ""

    def __len__(self) -> int:
        return len(self.requests)

    def slowest_ns(self) -> int:
        """The longest any request took."""
        taken = self.requests["end_ns"] - self.requests["start_ns"]
        return int(taken.max()) if len(taken) else 0

    def seconds(self) -> float:
        """From the first request's begin to the last one's end."""
        if not len(self):
            return 0.0
        return float(self.requests["end_ns"].max() - self.requests["start_ns"].min()) / 1e9


class Load(Child):
    """A running load of GETs of /PREFIX/NNNNNNNN; see load.c. rate: requests/s, 0 for no limit.

    per_connection: requests until a connection is closed and the next one opened, 0: never.
    processes: forked to make it, each of which forks again for each connection.
    """

    def __init__(
        self,
        port: int,
        prefix: str,
        directory: Path,
        *,
        connections: int = 8,
        rate: float = 0,
        per_connection: int = 0,
        processes: int = 0,
        most: int = MOST,
    ) -> None:
        self.prefix = prefix
        self.most = most
        self._file = directory / f"{prefix}.made"
        words = [compile_c("load", "-pthread"), "-c", connections, "-r", rate]
        words += ["-k", per_connection, "-m", most, "-f", processes]
        super().__init__([*map(str, words), str(port), prefix, self._file])

    def made_so_far(self) -> int:
        """How many requests were begun until now; 0 before there is a file."""
        try:
            with self._file.open("rb") as file:
                file.seek(self.most * MADE.itemsize)
                return int.from_bytes(file.read(4), "little")
        except FileNotFoundError:
            return 0

    def end(self, timeout: float = 60.0) -> Made:
        """Have it finish what it has begun; returns what it did. Raises BenchError."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.ended(timeout)

    def ended(self, timeout: float) -> Made:
        """Wait for its own end; returns what it did. Raises BenchError."""
        self.finish(timeout)
        *why, last = self.said().splitlines()
        begun, failed = map(int, last.split())
        requests = np.fromfile(self._file, MADE, begun)
        self._file.unlink()
        return Made(self.prefix, requests, failed, "; ".join(why))
