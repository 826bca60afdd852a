"""What the tracer costs those it does not trace: small reads and writes of a C program."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import empty
from bench.figures import Figure
from bench.processes import BenchError, Child
from bench.sink import Sink
from bench.traced import Tracer

Say = Callable[[str], None]

SOURCE = Path(__file__).with_name("syscalls.c")
KINDS = {
    "zero": "read of /dev/zero",
    "null": "write to /dev/null",
    "pipe": "write or read of a pipe",
    "unix": "write or read of a Unix stream socket, not HTTP",
    "tcp": "write or read of a TCP socket over loopback, not HTTP",
}
UNTRACED, EMPTY, TRACED, EXCLUDED = "untraced", "empty programs", "traced", "filtered out"
WAYS = (UNTRACED, EMPTY, TRACED, EXCLUDED)
REPEATS = 3


@dataclass(frozen=True, slots=True)
class Call:
    """CPU time of one system call in ns, and what is added to it, by way.

    An empty program at each of the tracer's hooks is the floor: below it is what the
    kernel takes to call programs at all.
    """

    ns: dict[str, Figure]
    adds: dict[str, Figure]


@dataclass(frozen=True, slots=True)
class Idle:
    """CPU time of the tracer over `seconds` in which another process made system calls.

    spans: of whatever else went on on this host; more than a few, and it was not idle.
    """

    seconds: float
    tracer_ns: int
    calls: int
    spans: int

    @property
    def percent(self) -> float:
        """Of one core."""
        return self.tracer_ns / self.seconds / 1e7


def build(directory: Path) -> Path:
    """Compile the C program. Raises BenchError with what the compiler said."""
    program = directory / "syscalls"
    done = subprocess.run(
        ["gcc", "-O2", "-Wall", "-Wextra", "-o", program, SOURCE],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BenchError(f"cannot compile {SOURCE.name}:\n{done.stderr}")
    return program


def run(program: Path, sink: Sink, rounds: int, calls: int, say: Say) -> dict[str, Call]:
    """Measure each kind of call in each of WAYS, in turns."""
    samples: dict[tuple[str, str], list[float]] = {}
    empty_object = empty.build(program.parent, empty.hooks(sink))
    for number in range(rounds):
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            say(f"round {number + 1}/{rounds} {way}")
            with _tracing(way, program, sink, empty_object):
                for kind in KINDS:
                    samples.setdefault((way, kind), []).append(measure(program, kind, calls))
    sink.collect(0)
    return {kind: _call({way: samples[way, kind] for way in WAYS}) for kind in KINDS}


def idle(program: Path, sink: Sink, seconds: float, calls: int) -> Idle:
    """Measure the tracer while there is nothing to trace but many system calls."""
    with Tracer(sink.endpoint) as tracer:
        # What it does once, after it started, is not what it does all the time.
        time.sleep(1.0)
        with Child([program, "pipe", str(calls), "1000000"]) as busy:
            time.sleep(0.2)
            began, before = time.monotonic(), tracer.cpu_ns()
            made = len(busy.said().splitlines())
            time.sleep(seconds)
            took, cpu = time.monotonic() - began, tracer.cpu_ns() - before
            made = len(busy.said().splitlines()) - made
    return Idle(took, cpu, made * calls, sink.collect(0).total)


@contextmanager
def _tracing(way: str, program: Path, sink: Sink, empty_object: Path) -> Iterator[None]:
    if way == UNTRACED:
        yield
        return
    if way == EMPTY:
        with empty.attached(empty_object):
            yield
        return
    arguments = ["--exclude-exe", str(program)] if way == EXCLUDED else []
    with Tracer(sink.endpoint, *arguments):
        yield


def measure(program: Path, kind: str, calls: int) -> float:
    """Return the least of a few repeats: what the others have more is not the calls'."""
    with Child([program, kind, str(calls), str(REPEATS)]) as child:
        child.finish(120.0)
        return min(float(line) for line in child.said().split())


def _call(samples: dict[str, list[float]]) -> Call:
    base = samples[UNTRACED]
    return Call(
        {way: Figure.of(taken) for way, taken in samples.items()},
        {
            way: Figure.of(b - a for a, b in zip(base, taken, strict=True))
            for way, taken in samples.items()
            if way != UNTRACED
        },
    )
