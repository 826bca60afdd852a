"""Faults of the tracer's own process: killed, stopped, starved, its clock stepped."""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.faults.load import Made, compile_c
from bench.faults.scene import Fault, Scene
from bench.faults.seen import count
from bench.processes import BenchError
from tracer.kernel import sys as kernel

GROUP = "the tracer itself"
MIB = 2**20
# What a tracer killed at once takes with it: what it had read and not yet sent.
IN_HAND_NS = 2_000_000_000
# Requests of which the ring can't hold all: 8 MiB, both sides, some 680 bytes each.
FILLING = 8_000
PINS = Path("/sys/fs/bpf")
HOUR_S = 3600
NEAR_NS = 20_000_000  # two clocks read one after the other, on a busy machine


def _ids(pid: int) -> dict[str, set[int]]:
    """Ids of the programs, maps and links that a process holds, by kind."""
    found: dict[str, set[int]] = {"prog": set(), "map": set(), "link": set()}
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        for kind, number in re.findall(r"^(prog|map|link)_id:\s*(\d+)$", entry.read_text(), re.M):
            found[kind].add(int(number))
    return found


def _left(held: dict[str, set[int]]) -> int:
    return sum(len(ids & kernel.ids(kind)) for kind, ids in held.items())


def killed(scene: Scene) -> None:
    backend = scene.backend()
    endpoint = f"http://127.0.0.1:{backend.port}"
    pins = set(PINS.rglob("*"))
    first = scene.tracer(endpoint, exact=True)
    load = scene.load()
    scene.run_for(scene.seconds, load)
    held = _ids(first.pid)
    scene.figure("programs, maps and links held", sum(map(len, held.values())))
    killed_ns = time.monotonic_ns()
    first.stop(signal.SIGKILL)
    end = time.monotonic() + 10
    while _left(held) and time.monotonic() < end:
        time.sleep(0.05)
    scene.check("no program, map or link is left behind", _left(held) == 0, _left(held))
    scene.check("no pin is left behind", set(PINS.rglob("*")) <= pins)
    scene.run_for(1.0, load)
    second = scene.tracer(endpoint, exact=True)
    ready_ns = time.monotonic_ns()
    scene.run_for(scene.seconds, load)
    made = load.end()
    scene.settled(second)
    scene.unharmed(made)
    seen = scene.seen(backend, made)
    times = made.requests
    for label, wanted in (
        ("before", times["end_ns"] < killed_ns - IN_HAND_NS),
        ("after", times["start_ns"] > ready_ns),
    ):
        wrong = int((seen.server[wanted] != 1).sum() + (seen.client[wanted] != 1).sum())
        enough = int(wanted.sum()) > 0
        scene.check(
            f"{label}: two spans for each request", enough and not wrong, f"{wrong} missing"
        )
    scene.check("no span twice", seen.doubled() == 0, seen.doubled())


def stopped(scene: Scene) -> None:
    backend = scene.backend()
    tracer = scene.tracer(f"http://127.0.0.1:{backend.port}")
    load = scene.load(rate=4000)
    scene.run_for(1.0, load)
    before = tracer.memory()
    begun = load.made_so_far()
    os.kill(tracer.pid, signal.SIGSTOP)
    try:
        scene.run_for(scene.seconds, load)
        # However long that takes here.
        load.wait_for(lambda: load.made_so_far() >= begun + FILLING, "the ring is full", 120.0)
    finally:
        os.kill(tracer.pid, signal.SIGCONT)
    scene.run_for(2.0, load)
    made = load.end()
    status = scene.settled(tracer)
    scene.unharmed(made)
    scene.accounted(made, scene.seen(backend, made), status)
    scene.check("the ring overflowed", status.losses["ring_full"] > 0)
    grown = (tracer.memory().peak - before.peak) / MIB
    scene.figure("memory grew by", f"{grown:.0f} MiB")
    scene.check("memory grew by less than 64 MiB", grown < 64, f"{grown:.0f} MiB")


def ring(scene: Scene) -> None:
    backend = scene.backend()
    tracer = scene.tracer(f"http://127.0.0.1:{backend.port}", "--ring-size", "4096")
    load = scene.load(rate=4000)
    scene.run_for(scene.seconds, load)
    made = load.end()
    status = scene.settled(tracer)
    scene.unharmed(made)
    seen = scene.seen(backend, made)
    scene.accounted(made, seen, status)
    scene.figure("of all spans, kept", f"{100 * seen.spans / (2 * len(made)):.1f} %")
    scene.check("some came through", seen.spans > 0)


def descriptors(scene: Scene) -> None:
    backend = scene.backend()
    tracer = scene.tracer(f"http://127.0.0.1:{backend.port}", exact=True)
    load = scene.load()
    scene.run_for(1.0, load)
    limits = resource.prlimit(tracer.pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{tracer.pid}/fd"))
    resource.prlimit(tracer.pid, resource.RLIMIT_NOFILE, (used - 4, limits[1]))
    try:
        # New processes, whose images the tracer would like to look at.
        newcomers = scene.load(processes=8, connections=1, per_connection=3, rate=100)
        scene.run_for(scene.seconds, load, newcomers)
        try:
            tracer.status()
        except BenchError as error:
            scene.figure("`wirespan status` meanwhile", str(error).splitlines()[0][:90])
        fresh = newcomers.end()
    finally:
        resource.prlimit(tracer.pid, resource.RLIMIT_NOFILE, limits)
    scene.run_for(1.0, load)
    made = load.end()
    status = scene.settled(tracer)
    bodies = list(backend.bodies())
    _both(scene, [(made, "long-lived"), (fresh, "new processes")], bodies)
    lost = {name: n for name, n in status.losses.items() if n}
    scene.outcome.lost.update(lost)
    scene.check("nothing was lost", not lost, lost)
    scene.check("the tracer still runs", tracer.popen.poll() is None, tracer.said()[-300:])
    resource.prlimit(tracer.pid, resource.RLIMIT_NOFILE, (used - 4, limits[1]))
    code = tracer.stop(signal.SIGTERM)
    scene.check("it ends well without one, too", code == 0, code)


def _both(scene: Scene, loads: list[tuple[Made, str]], bodies: list[bytes]) -> None:
    for made, label in loads:
        scene.unharmed(made)
        seen = count(bodies, made.prefix, len(made))
        scene.outcome.spans += seen.spans
        scene.exact(made, seen, label)


def clock(scene: Scene) -> None:
    backend = scene.backend()
    page = scene.directory / "clock"
    page.write_bytes(bytes(8))
    shim = compile_c("clock", "-shared", "-fPIC")
    tracer = scene.tracer(
        f"http://127.0.0.1:{backend.port}",
        exact=True,
        env={"LD_PRELOAD": str(shim), "WIRESPAN_CLOCK_FILE": str(page)},
    )
    offset_ns = time.time_ns() - time.monotonic_ns()
    load = scene.load()
    for ahead_s in (0, HOUR_S, -HOUR_S, 0):
        with page.open("r+b") as file:
            file.write((ahead_s * 10**9).to_bytes(8, "little", signed=True))
        scene.run_for(scene.seconds / 3, load)
    made = load.end()
    status = scene.settled(tracer)
    bodies = list(backend.bodies())
    seen = count(bodies, made.prefix, len(made))
    scene.outcome.spans += seen.spans
    scene.unharmed(made)
    lost = {name: n for name, n in status.losses.items() if n}
    scene.outcome.lost.update(lost)
    scene.exact(made, seen)
    scene.check("nothing was lost", not lost, lost)
    at = {ahead: 0 for ahead in (0, HOUR_S, -HOUR_S)}
    astray = longer = 0
    for number, start_ns, end_ns in _times(bodies, made.prefix):
        request = made.requests[number]
        ahead_ns = start_ns - offset_ns - int(request["start_ns"])
        ahead = round(ahead_ns / 1e9 / HOUR_S) * HOUR_S
        taken = int(request["end_ns"] - request["start_ns"])
        late_ns = ahead_ns - ahead * 10**9
        astray += ahead not in at or not -NEAR_NS <= late_ns <= taken + NEAR_NS
        at[ahead] = at.get(ahead, 0) + 1
        longer += not 0 <= end_ns - start_ns <= taken + NEAR_NS
    scene.check("each span lies in its request, by the clock of its moment", not astray, astray)
    scene.check("no span lasts longer than its request", not longer, longer)
    scene.figure("spans 0, 1, -1 h ahead", ", ".join(f"{at[each]:,}" for each in at))
    scene.check("there are spans of each time", all(at.values()), at)


def _times(bodies: list[bytes], prefix: str) -> Iterator[tuple[int, int, int]]:
    """Number of the request, start and end in Unix ns of each span under /PREFIX/."""
    for body in bodies:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            for span in (span for scope in group.scope_spans for span in scope.spans):
                for each in span.attributes:
                    _, found, number = each.value.string_value.partition(f"/{prefix}/")
                    if found:
                        yield int(number), span.start_time_unix_nano, span.end_time_unix_nano


FAULTS = (
    Fault(
        "killed",
        GROUP,
        "SIGKILL to the tracer, another one started a second later",
        "no request fails, nothing of it stays in the kernel, every exchange before (but for the "
        "last 2 s) and after has its spans once",
        (3, 30),
        killed,
    ),
    Fault(
        "stopped",
        GROUP,
        "SIGSTOP to the tracer, SIGCONT later",
        "the ring overflows; spans and counted losses make up all exchanges; memory stays bounded",
        (2, 30),
        stopped,
    ),
    Fault(
        "ring-minimum",
        GROUP,
        "`--ring-size 4096`: room for five records",
        "spans and counted losses make up all exchanges",
        (2, 30),
        ring,
    ),
    Fault(
        "descriptors",
        GROUP,
        "the tracer can open no file, while new processes come and go",
        "every exchange has its spans; it goes on by itself",
        (2, 60),
        descriptors,
    ),
    Fault(
        "clock-stepped",
        GROUP,
        "the tracer's wall clock an hour ahead, then an hour behind, then right",
        "every exchange has its spans; each begins at the clock's time of its moment and lasts no "
        "longer than it did",
        (3, 30),
        clock,
    ),
)
