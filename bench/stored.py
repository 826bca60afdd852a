"""The tracer with its own collector and store: what it takes in memory, at a moderate load."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass

from bench.latency import Pace
from bench.nginx import Nginx
from bench.processes import BenchError, Memory
from bench.traced import Tracer

REQUESTS_PER_S = 500


@dataclass(frozen=True, slots=True)
class Stored:
    """Memory after `seconds` of REQUESTS_PER_S. counts: of the store, by name."""

    seconds: float
    memory: Memory
    counts: dict[str, int]


def run(nginx: Nginx, seconds: float) -> Stored:
    """Measure after the load, with a store of its own that is removed then.

    Raises BenchError where nothing was stored.
    """
    with tempfile.TemporaryDirectory(prefix="wirespan-bench-store-") as directory:
        options = ("--store", directory, "--query-address", "127.0.0.1:0")
        with Tracer("", *options) as tracer, Pace(nginx.port, REQUESTS_PER_S):
            time.sleep(seconds)
            memory, counts = tracer.memory(), dict(tracer.status().stored)
    if not counts.get("store_spans"):
        raise BenchError("the tracer stored nothing")
    return Stored(seconds, memory, counts)
