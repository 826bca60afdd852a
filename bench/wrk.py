"""wrk, the client: keep-alive connections that are always busy."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.processes import BenchError, Child

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class WrkResult:
    """What wrk says of a run, and the CPU time it took.

    requests: responses read whole before time was up; at that moment each connection has
    a further request under way, which the server answers and wrk leaves uncounted.
    """

    requests: int
    seconds: float
    errors: int
    cpu_ns: int


def start(url: str, seconds: int, connections: int) -> Child:
    """Start wrk with one thread."""
    return Child(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", url])


def finish(wrk: Child, seconds: int) -> WrkResult:
    """Wait for its end, due in `seconds`. Raises BenchError where it fails."""
    cpu_ns = wrk.finish(seconds + 30.0)
    return parse(wrk.said(), cpu_ns)


def parse(text: str, cpu_ns: int) -> WrkResult:
    """Read wrk's summary. Raises BenchError where it has no count."""
    count = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m),", text)
    if not count:
        raise BenchError(f"wrk gave no summary:\n{text}")
    errors = 0
    failed = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    if failed:
        errors += sum(map(int, failed.groups()))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    if refused:
        errors += int(refused[1])
    return WrkResult(int(count[1]), float(count[2]) * UNITS[count[3]], errors, cpu_ns)
