"""What hooks cost, side by side on one kernel: `python -m bench.kernels.cost FILE` writes JSON.
Without FILE it prints which hooks there are.

In an emulated guest a nanosecond is no nanosecond of a processor: what counts is how the ways
compare with each other.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import others, wrk
from bench.nginx import Nginx
from bench.traced import Tracer
from tracer.kernel import hooks

# By name: the kind of call that others.measure() knows.
CALLS = {"zero": "read of /dev/zero", "tcp": "write or read of a TCP socket, no protocol"}
REQUEST, PROGRAMS = "request", "programs"
MEASURES = {
    **{kind: f"{what}, ns" for kind, what in CALLS.items()},
    REQUEST: "nginx, CPU µs a request",
    PROGRAMS: "programs, ns an exchange and side",
}
READY_S = 300.0
CONNECTIONS = 4


def measure(calls: int = 20_000, seconds: int = 8) -> dict[str, dict[str, float]]:
    """Measure each way that this kernel has, one after the other; by way and MEASURES."""
    ways = ["untraced", *here()]
    with tempfile.TemporaryDirectory(prefix="wirespan-cost-") as directory:
        program = others.build(Path(directory))
        with Nginx(Path(directory) / "nginx") as nginx:
            return {way: _one(way, program, nginx, calls, seconds) for way in ways}


def here() -> list[str]:
    """The hooks that this kernel has."""
    return ["tracepoint"] if hooks.lacking() else ["tracepoint", "fentry"]


def _one(way: str, program: Path, nginx: Nginx, calls: int, seconds: int) -> dict[str, float]:
    if way == "untraced":
        return _loads(program, nginx, calls, seconds)[0]
    options = ("--hooks", way, "--store", "none", "--program-stats", "--max-cpu", "none")
    with Tracer("", *options, limit_s=READY_S) as tracer:
        before = tracer.status()
        found, exchanges = _loads(program, nginx, calls, seconds)
        time.sleep(1.0)
        after = tracer.status()
    spent = sum(each.ns - before.programs[name].ns for name, each in after.programs.items())
    return {**found, PROGRAMS: spent / exchanges / 2}


def _loads(program: Path, nginx: Nginx, calls: int, seconds: int) -> tuple[dict[str, float], int]:
    found = {kind: others.measure(program, kind, calls) for kind in CALLS}
    requests, cpu = nginx.requests(), nginx.worker_cpu_ns()
    wrk.finish(wrk.start(nginx.url, seconds, CONNECTIONS), seconds)
    cpu, requests = nginx.worker_cpu_ns() - cpu, nginx.requests() - requests
    return {**found, REQUEST: cpu / requests / 1e3}, requests


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write, or print."""
    paths = sys.argv[1:] if arguments is None else arguments
    if not paths:
        print(*here(), sep="\n")
    for path in paths:
        Path(path).write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
