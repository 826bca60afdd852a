"""Days of traffic in an hour: nothing grows."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from bench.faults.scene import Fault, Scene, status_of
from bench.faults.seen import Seen, count
from bench.processes import Memory
from bench.traced import Tracer

GROUP = "time"
MIB = 2**20
SAMPLES = 24
PLACES = ("anon_inode:bpf_link", "anon_inode:[perf_event]")


@dataclass(frozen=True, slots=True)
class Sample:
    """What a tracer holds: bytes of memory, descriptors, threads, connections in its tables.

    descriptors: without those of programs in their places. There are more of these where other
    programs of this host begin: tests/root/test_link.py sees that they go with them.
    """

    resident: int
    descriptors: int
    threads: int
    connections: int
    map_bytes: int

    @classmethod
    def of(cls, tracer: Tracer) -> Sample:
        """Look at a running tracer."""
        status = status_of(tracer)
        return cls(
            Memory.of(tracer.pid).resident,
            _descriptors(tracer.pid),
            len(os.listdir(f"/proc/{tracer.pid}/task")),
            status.counts["conns"] - status.counts["conns_freed"],
            status.map_bytes,
        )


def _descriptors(pid: int) -> int:
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += os.readlink(entry) not in PLACES
    return found


def soak(scene: Scene) -> None:
    """Long-lived connections, connections that are opened and closed, and processes that are
    forked: all at once."""
    backend = scene.backend()
    tracer = scene.tracer(f"http://127.0.0.1:{backend.port}", exact=True)
    rate = 200 if scene.short else 2500
    # What the busiest load may note down, and then some: it is late at most, never early.
    most = int(1.2 * rate * scene.seconds) + 10_000
    steady = scene.load(rate=rate, connections=8, most=most)
    coming = scene.load(rate=rate / 5, connections=4, per_connection=3, most=most)
    forked = scene.load(rate=rate / 25, connections=1, processes=4, per_connection=5, most=most)
    loads = (steady, coming, forked)
    # Everything that is made once was made by then.
    warm = scene.seconds / 4
    scene.run_for(warm, *loads)
    samples = [Sample.of(tracer)]
    parts = {load.prefix: count([], load.prefix, most) for load in loads}
    end = time.monotonic() + scene.seconds - warm
    while time.monotonic() < end:
        scene.run_for((scene.seconds - warm) / SAMPLES, *loads)
        samples.append(Sample.of(tracer))
        # What came so far is counted at once: an hour of it would not fit.
        bodies = list(backend.bodies())
        for prefix in parts:
            parts[prefix] += count(bodies, prefix, most)
    made = [load.end() for load in loads]
    status = scene.settled(tracer)
    bodies = list(backend.bodies())
    for each in made:
        scene.unharmed(each)
        seen = parts[each.prefix] + count(bodies, each.prefix, most)
        seen = Seen(seen.server[: len(each)], seen.client[: len(each)], seen.beyond)
        scene.outcome.spans += seen.spans
        scene.exact(each, seen)
    lost = {name: n for name, n in status.losses.items() if n}
    scene.outcome.lost |= lost
    scene.check("nothing was lost", not lost, lost)
    last = Sample.of(tracer)
    samples.append(last)
    seconds = max(each.seconds() for each in made)
    scene.figure(
        "lasted", f"{seconds / 60:.1f} min, {sum(map(len, made)) / seconds:,.0f} requests/s"
    )
    half = samples[len(samples) // 2]
    grown = (last.resident - half.resident) / MIB
    memory = ", ".join(
        f"{each.resident / MIB:.0f}" for each in samples[:: max(1, len(samples) // 6)]
    )
    scene.figure("memory in MiB, over time", memory)
    scene.check("memory did not grow in the second half", grown < 4, f"{grown:.1f} MiB")
    scene.figure("descriptors, threads at the end", f"{last.descriptors}, {last.threads}")
    scene.check("nor descriptors", last.descriptors <= samples[0].descriptors + 4, samples[0])
    scene.check("nor threads", last.threads <= samples[0].threads + 2, samples[0])
    scene.check("nor maps", last.map_bytes <= samples[0].map_bytes * 1.01, last.map_bytes)
    scene.check("no connection stays in the tables", last.connections == 0, last.connections)


FAULTS = (
    Fault(
        "soak",
        GROUP,
        "an hour of long-lived connections, of ones that come and go and of forked processes",
        "every exchange has its spans; neither memory nor descriptors nor maps grow",
        (6, 3600),
        soak,
    ),
)
