"""Days of traffic in an hour: nothing grows."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.faults.load import Load
from bench.faults.scene import Fault, Scene, status_of
from bench.faults.seen import Seen
from bench.processes import Memory, tree_cpu_s
from bench.traced import Tracer

GROUP = "time"
MIB = 2**20
# Requests/s on connections that last; a fifth more come on short ones, a twenty-fifth of forks.
# All of it takes half a core, so that an hour of it can run beside other work.
RATE = 800
SAMPLES, SAMPLE_S = 120, 0.3
# What a tracer remembers of processes has its bounds, 4,096 of each kind. An hour would see it
# grow up to them and no further: they are filled first, by a process for each request.
FILL_RATE, FILL_S = 300, 120
# Of Sample: what it is, its unit, and how much its trend may rise in the second half of a short
# pass and of a full one; none: it follows what else runs on this host. A few samples in a few
# seconds, in which a tracer still comes to its size, tell less.
GROWTH: Mapping[str, tuple[str, int, tuple[float, float] | None]] = {
    "resident": ("resident MiB", MIB, (16, 4)),
    "descriptors": ("descriptors", 1, (8, 2)),
    "probes": ("descriptors of probes", 1, None),
    "threads": ("threads", 1, (4, 1)),
    "connections": ("connections in the tables", 1, (40, 8)),
    "map_bytes": ("map KiB", 1024, (1, 1)),
}
PLACES = ("anon_inode:bpf_link", "anon_inode:[perf_event]")


@dataclass(frozen=True, slots=True)
class Sample:
    """What a tracer holds: bytes of memory, descriptors, threads, connections in its tables.

    descriptors: without those of programs in their places, `probes`. There are more of these
    where other programs of this host begin: tests/root/test_probed.py sees that they go with them.
    """

    monotonic_s: float
    resident: int
    descriptors: int
    probes: int
    threads: int
    connections: int
    map_bytes: int

    @classmethod
    def of(cls, tracer: Tracer) -> Sample:
        """Look at a running tracer."""
        status = status_of(tracer)
        targets = _descriptors(tracer.pid)
        probes = sum(target in PLACES for target in targets)
        return cls(
            time.monotonic(),
            Memory.of(tracer.pid).resident,
            len(targets) - probes,
            probes,
            len(os.listdir(f"/proc/{tracer.pid}/task")),
            status.counts["conns"] - status.counts["conns_freed"],
            status.map_bytes,
        )


def _descriptors(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(entry))
    return found


def trend(samples: Sequence[Sample], quantity: str) -> float:
    """How much a quantity grew from the first sample to the last one, by the straight line
    that fits them best: neither a peak at an end nor a slow climb below the noise misleads it."""
    seconds = np.array([each.monotonic_s for each in samples])
    values = np.array([getattr(each, quantity) for each in samples], float)
    slope = np.polyfit(seconds - seconds[0], values, 1)[0]
    return float(slope * (seconds[-1] - seconds[0]))


def _judge(scene: Scene, samples: Sequence[Sample]) -> None:
    """Show how much each quantity came to over time, and check that its trend is flat."""
    judged = samples[len(samples) // 2 :]
    minutes = (judged[-1].monotonic_s - judged[0].monotonic_s) / 60
    scene.figure("judged", f"{len(judged)} samples, the last {minutes:.1f} min")
    for quantity, (what, unit, limits) in GROWTH.items():
        shown = samples[:: max(1, len(samples) // 8)]
        values = ", ".join(f"{getattr(each, quantity) / unit:,.0f}" for each in shown)
        grown = trend(judged, quantity) / unit
        scene.figure(f"{what}, over time", f"{values}; trend {grown:+.2f}")
        if limits:
            most = limits[not scene.short]
            scene.check(f"{what}: the trend is below +{most:g}", grown < most, f"{grown:+.2f}")


def soak(scene: Scene) -> None:
    """Long-lived connections, connections that are opened and closed, and processes that are
    forked: all at once."""
    backend = scene.backend()
    tracer = scene.tracer(f"http://127.0.0.1:{backend.port}", exact=True)
    rate = 200 if scene.short else RATE

    def load(rate: float, **options: Any) -> Load:
        # What it may note down, and then some: it is late at most, never early.
        return scene.load(rate=rate, most=int(1.2 * rate * scene.seconds) + 10_000, **options)

    ended = [] if scene.short else [load(FILL_RATE, connections=1, processes=4, per_connection=1)]
    scene.run_for(FILL_S if ended else 0, *ended)
    made = [each.end() for each in ended]
    loads = (
        load(rate, connections=8),
        load(rate / 5, connections=4, per_connection=3),
        load(rate / 25, connections=1, processes=4, per_connection=5),
    )
    began = time.monotonic()
    cpu_began = tracer.cpu_ns() / 1e9, tree_cpu_s(os.getpid())
    samples = [Sample.of(tracer)]
    parts = {each: Seen.none(each.most) for each in (*ended, *loads)}
    while time.monotonic() < began + scene.seconds:
        scene.run_for(max(SAMPLE_S, scene.seconds / SAMPLES), *loads)
        samples.append(Sample.of(tracer))
        # What came so far is counted at once: an hour of it would not fit.
        bodies = list(backend.bodies())
        for running, seen in parts.items():
            seen.add(bodies, running.prefix)
    lasted = time.monotonic() - began
    cpu = [
        (end - begin) / lasted
        for begin, end in zip(
            cpu_began, (tracer.cpu_ns() / 1e9, tree_cpu_s(os.getpid())), strict=True
        )
    ]
    made += [each.end() for each in loads]
    status = scene.settled(tracer)
    bodies = list(backend.bodies())
    every: list[Seen] = []
    for each, seen in zip(made, parts.values(), strict=True):
        seen.add(bodies, each.prefix)
        every.append(seen.of(len(each)))
        scene.outcome.spans += seen.spans
        # In an hour much else may run on this machine.
        scene.unharmed(each, 10_000)
    seconds = max(each.seconds() for each in made)
    requests = sum(map(len, made))
    scene.figure("lasted", f"{seconds / 60:.1f} min, {requests / seconds:,.0f} requests/s")
    scene.figure("CPU", f"{cpu[1]:.2f} cores in all, {cpu[0]:.2f} of them the tracer's")
    scene.accounted_all(made, every, status)
    _judge(scene, samples)
    last = Sample.of(tracer)
    scene.check("no connection stays in the tables", last.connections == 0, last.connections)


FAULTS = (
    Fault(
        "soak",
        GROUP,
        "an hour of long-lived connections, of ones that come and go and of forked processes",
        "spans and counted losses make up all exchanges; neither memory nor descriptors, threads, "
        "connections or maps grow",
        (6, 3600),
        soak,
    ),
)
