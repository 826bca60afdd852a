"""Faults of the traced: connections, processes and descriptors that come and go, full tables."""

from __future__ import annotations

import socket
import threading
import uuid

import numpy as np

from bench.faults import streams
from bench.faults.load import MADE, Made, compile_c
from bench.faults.scene import Fault, Scene
from bench.faults.seen import count
from bench.processes import Child

GROUP = "the traced"
CHURN_PER_S = 10_000


def churn(scene: Scene) -> None:
    backend = scene.backend()
    tracer = scene.tracer(f"http://127.0.0.1:{backend.port}")
    # No faster: a port of loopback is free again a second after its connection, and there are
    # 28,232 of them.
    load = scene.load(rate=CHURN_PER_S, connections=16, per_connection=1)
    scene.run_for(scene.seconds, load)
    made = load.end()
    status = scene.settled(tracer)
    scene.figure("connections/s", f"{len(made) / made.seconds():,.0f}")
    scene.unharmed(made)
    scene.accounted(made, scene.seen(backend, made), status)
    left = status.counts["conns"] - status.counts["conns_freed"]
    scene.check("no connection stays in the tables", left == 0, left)


def full(scene: Scene) -> None:
    """256 connections, of both ends of which there is room for 64."""
    backend = scene.backend()
    tracer = scene.tracer(f"http://127.0.0.1:{backend.port}", "--max-connections", "64")
    load = scene.load(connections=256, rate=1000)
    scene.run_for(scene.seconds, load)
    made = load.end()
    status = scene.settled(tracer)
    scene.unharmed(made)
    scene.check("the table was full", status.losses["conns_full"] > 0)
    seen = scene.seen(backend, made)
    scene.accounted(made, seen, status)
    # And it is well again, once those are closed.
    load = scene.load(connections=8)
    scene.run_for(1.0, load)
    made = load.end()
    scene.settled(tracer)
    scene.unharmed(made)
    scene.exact(made, scene.seen(backend, made), "afterwards")


def pipelined(scene: Scene) -> None:
    """Eight connections with 400 requests each in flight, of which 1,024 in all find room."""
    backend = scene.backend()
    tracer = scene.tracer(f"http://127.0.0.1:{backend.port}")
    prefix, each, connections = f"f{uuid.uuid4().hex[:8]}", 400, 8
    rounds = 1 if scene.short else 20
    gate = threading.Barrier(connections)
    failed: list[str] = []

    def talk(number: int) -> None:
        with socket.create_connection(("127.0.0.1", scene.nginx.port), timeout=30) as client:
            for turn in range(rounds):
                first = (turn * connections + number) * each
                host = f"Host: 127.0.0.1:{scene.nginx.port}"
                paths = (f"/{prefix}/{n:08}" for n in range(first, first + each))
                # In one go, so that all are in flight before the first answer is read.
                gate.wait(30)
                client.sendall(
                    "".join(f"GET {path} HTTP/1.1\r\n{host}\r\n\r\n" for path in paths).encode()
                )
                answers = client.makefile("rb")
                for _ in range(each):
                    if not answers.readline().startswith(b"HTTP/1.1 200"):
                        failed.append("no answer")
                        return
                    while answers.readline().strip():
                        pass
                    answers.readline()

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    requests = rounds * connections * each
    status = scene.settled(tracer)
    seen = count(backend.bodies(), prefix, requests)
    scene.outcome.made, scene.outcome.failed = requests, len(failed)
    scene.outcome.spans = seen.spans
    scene.check("every request was answered", not failed, len(failed))
    lost = {name: number for name, number in status.losses.items() if number}
    scene.outcome.lost = lost
    scene.check("the table was full", lost.get("pipeline_full", 0) > 0, lost)
    scene.check(
        "spans + losses = exchanges, exactly",
        seen.missing() == lost.get("pipeline_full", 0),
        f"{seen.missing()} missing, lost {lost}",
    )
    scene.check("no span twice", seen.doubled() == 0, seen.doubled())


def forking(scene: Scene) -> None:
    backend = scene.backend()
    tracer = scene.tracer(f"http://127.0.0.1:{backend.port}", exact=True)
    load = scene.load(processes=512, connections=1, per_connection=4, rate=1500)
    scene.run_for(scene.seconds, load)
    made = load.end()
    status = scene.settled(tracer)
    scene.unharmed(made, most_ms=10_000)
    lost = {name: number for name, number in status.losses.items() if number}
    scene.outcome.lost.update(lost)
    scene.exact(made, scene.seen(backend, made))
    scene.figure("memory now", f"{tracer.memory().resident / 2**20:.0f} MiB")


def _program(scene: Scene, *words: str) -> Made:
    """Run races.c, which makes a load of its own and says how many requests it made and failed."""
    prefix = f"f{uuid.uuid4().hex[:8]}"
    program = compile_c("races", "-pthread")
    child = Child([program, words[0], str(scene.nginx.port), prefix, *words[1:]])
    with child:
        child.finish(scene.seconds * 10 + 60)
        begun, failed = map(int, child.said().split())
    return Made(prefix, np.zeros(begun, MADE), failed)


def exec_midway(scene: Scene) -> None:
    backend = scene.backend()
    tracer = scene.tracer(f"http://127.0.0.1:{backend.port}", exact=True)
    load = scene.load()
    made = _program(scene, "exec", "200" if scene.short else "3000")
    steady = load.end()
    scene.settled(tracer)
    bodies = list(backend.bodies())
    for each, label in ((steady, "steady load"), (made, "exec'ing")):
        scene.unharmed(each)
        seen = count(bodies, each.prefix, len(each))
        scene.outcome.spans += seen.spans
        scene.exact(each, seen, label)


def _races(scene: Scene, how: str, requests: int) -> None:
    backend = scene.backend()
    tracer = scene.tracer(f"http://127.0.0.1:{backend.port}")
    made = _program(scene, how, str(requests))
    status = scene.settled(tracer)
    scene.unharmed(made)
    scene.accounted(made, scene.seen(backend, made), status)


def reuse(scene: Scene) -> None:
    _races(scene, "reuse", 3000 if scene.short else 100_000)


def swapped(scene: Scene) -> None:
    _races(scene, "swap", 400 if scene.short else 10_000)


FAULTS = (
    Fault(
        "connections-churn",
        GROUP,
        "connections opened, used once and closed, 10,000 a second where the machine makes as many",
        "spans and counted losses make up all exchanges; no connection stays in the tables",
        (2, 60),
        churn,
    ),
    Fault(
        "connections-full",
        GROUP,
        "256 busy connections where the table has room for 64 ends",
        "spans and counted losses make up all exchanges; afterwards all is well again",
        (2, 30),
        full,
    ),
    Fault(
        "pipeline-full",
        GROUP,
        "3,200 requests in flight at once, in pipelines of 400",
        "spans and counted losses make up all exchanges",
        (1, 20),
        pipelined,
    ),
    Fault(
        "streams-full",
        GROUP,
        "6,000 HTTP/2 streams under way at once (60,000 in a whole pass), with room for 4,096 ends",
        "spans and counted losses make up all exchanges; afterwards all is well again",
        (1, 1),
        streams.full,
    ),
    Fault(
        "forking",
        GROUP,
        "512 processes, each of which forks for every four requests",
        "every exchange has its spans",
        (2, 60),
        forking,
    ),
    Fault(
        "exec",
        GROUP,
        "a client execs a new image with half its request sent; the new one goes on with it",
        "every exchange has its spans",
        (2, 30),
        exec_midway,
    ),
    Fault(
        "fd-reuse",
        GROUP,
        "descriptors closed, taken again by other threads and replaced by dup2, between requests",
        "spans and counted losses make up all exchanges",
        (2, 60),
        reuse,
    ),
    Fault(
        "fd-swapped",
        GROUP,
        "a descriptor becomes another connection's while a thread waits in read() on it",
        "spans and counted losses make up all exchanges, also of what follows",
        (2, 30),
        swapped,
    ),
)
