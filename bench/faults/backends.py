"""Faults of the OTLP backend, over gRPC and over HTTP at once: a tracer for each.

A short pass has one of both alone, in turns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.faults.backend import GRPC, HTTP, PARTLY_REJECTED, Backend, Mode, Relay
from bench.faults.load import Load, Made
from bench.faults.scene import SPAN_LOSSES, Fault, Scene, status_of
from bench.processes import BenchError
from bench.traced import Tracer

GROUP = "the backend"
MIB = 2**20
# What waits for a backend is bounded (tracer.export_config.Limits), and what holds it.
MOST_GROWN_MIB = 128
AFTER_S = 1.0


class Side:
    """A tracer, its backend, and the relay between them."""

    def __init__(self, scene: Scene, protocol: str) -> None:
        self.name = protocol.split("/")[0]
        self.backend: Backend = scene.backend(protocol)
        self.relay = Relay(self.backend.port)
        scene.later(self.relay.down)
        self.tracer: Tracer = scene.tracer(
            f"http://127.0.0.1:{self.relay.port}", "--otlp-protocol", protocol
        )
        self.before = self.tracer.memory()


@contextmanager
def _sides(scene: Scene, short: str, rate: float = 400) -> Iterator[tuple[list[Side], Load]]:
    """The sides and a load that has run for a second; it runs on after the fault.

    short: the protocol of a short pass.
    """
    sides = [Side(scene, each) for each in ((short,) if scene.short else (GRPC, HTTP))]
    load = scene.load(rate=rate)
    scene.run_for(1.0, load)
    yield sides, load
    scene.run_for(AFTER_S, load)


def _judge(scene: Scene, sides: list[Side], made: Made, *, again: bool = False) -> None:
    """again: requests may have come twice, whole, the answer to the first having been lost."""
    scene.unharmed(made)
    for side in sides:
        status = scene.settled(side.tracer, 90.0)
        seen = scene.seen(side.backend, made, once=again)
        rejected = side.backend.rejected
        lost = {name: status.losses[name] for name in SPAN_LOSSES if status.losses.get(name)}
        told = sum(lost.values()) - rejected
        for name, number in lost.items():
            scene.outcome.lost[name] = scene.outcome.lost.get(name, 0) + number
        scene.check(
            f"{side.name}: spans + losses = exchanges, exactly",
            seen.missing() == told,
            f"{2 * len(made)} sides, {seen.missing()} without a span, lost {lost or 'nothing'}",
        )
        scene.check(f"{side.name}: no span twice", seen.doubled() == 0, seen.doubled())
        scene.check(
            f"{side.name}: submitted = exported + dropped",
            status.counts["server_spans"] + status.counts["client_spans"]
            == status.exported["exported_spans"]
            + sum(n for name, n in lost.items() if name.startswith("export_")),
            f"{status.counts}, {status.exported}, {lost}",
        )
        grown = (side.tracer.memory().peak - side.before.peak) / MIB
        scene.figure(f"{side.name}: memory grew by", f"{grown:.0f} MiB")
        scene.check(f"{side.name}: by less than {MOST_GROWN_MIB} MiB", grown < MOST_GROWN_MIB)


def down(scene: Scene) -> None:
    with _sides(scene, GRPC) as (sides, load):
        for side in sides:
            side.relay.down()
        scene.run_for(scene.seconds, load)
        failing = [status_of(side.tracer).last_error for side in sides]
        scene.check("`wirespan status` says so meanwhile", all(failing), failing)
        for side in sides:
            side.relay.up()
        began = time.monotonic()
        for side in sides:
            back = status_of(side.tracer).exported["exported_spans"]
            while status_of(side.tracer).exported["exported_spans"] == back:
                if time.monotonic() - began > 30:
                    raise BenchError(f"{side.name}: nothing was exported in 30 s")
                time.sleep(0.2)
        scene.figure("export went on after", f"{time.monotonic() - began:.1f} s")
    _judge(scene, sides, load.end(), again=True)


def resetting(scene: Scene) -> None:
    with _sides(scene, HTTP) as (sides, load):
        end = time.monotonic() + scene.seconds
        while time.monotonic() < end:
            scene.run_for(0.15, load)
            for side in sides:
                side.relay.cut()
        for side in sides:
            scene.figure(f"{side.name}: connections reset", side.relay.resets // 2)
    _judge(scene, sides, load.end(), again=True)


def _misbehaving(scene: Scene, short: str, mode: Mode, rate: float = 400) -> list[Side]:
    """Have the backends answer as `mode` says for a while. Returns the sides, judged."""
    with _sides(scene, short, rate) as (sides, load):
        for side in sides:
            side.backend.mode = mode
        scene.run_for(scene.seconds, load)
        for side in sides:
            side.backend.mode = Mode.ACCEPT
    _judge(scene, sides, load.end())
    return sides


def slow(scene: Scene) -> None:
    _misbehaving(scene, GRPC, Mode.SLOW, 2000)


def rejecting(scene: Scene) -> None:
    _misbehaving(scene, HTTP, Mode.REJECT)
    scene.check("spans were refused", scene.outcome.lost.get("export_rejected", 0) > 0)


def retrying(scene: Scene) -> None:
    _misbehaving(scene, HTTP, Mode.RETRY)


def partial(scene: Scene) -> None:
    sides = _misbehaving(scene, GRPC, Mode.PARTIAL)
    refused = sum(side.backend.rejected for side in sides)
    scene.check(
        "what the backend says it refused is counted",
        refused > 0 and refused == scene.outcome.lost.get("export_rejected", 0),
        f"{refused}, {scene.outcome.lost}",
    )
    scene.figure("of each request refused", f"{PARTLY_REJECTED} spans")


_EXACT = (
    "the application notices nothing; spans and counted losses make up all exchanges; memory "
    "stays bounded"
)

FAULTS = (
    Fault(
        "backend-down",
        GROUP,
        "nothing listens where spans should go, and connections there were are reset",
        f"{_EXACT}; `wirespan status` says what is wrong; export goes on by itself; a request "
        "whose answer was lost may come twice",
        (3, 300),
        down,
    ),
    Fault("backend-slow", GROUP, "each request takes a second", _EXACT, (2, 60), slow),
    Fault(
        "backend-resetting",
        GROUP,
        "every connection is reset each 150 ms, whatever is under way on it",
        f"{_EXACT}; a request whose answer was lost may come twice",
        (2, 60),
        resetting,
    ),
    Fault(
        "backend-rejecting",
        GROUP,
        "every request is refused for good (INVALID_ARGUMENT, 400)",
        f"{_EXACT}; nothing is sent again",
        (2, 60),
        rejecting,
    ),
    Fault(
        "backend-retrying",
        GROUP,
        "every request is to be tried again (UNAVAILABLE, 503)",
        _EXACT,
        (2, 30),
        retrying,
    ),
    Fault(
        "backend-partial",
        GROUP,
        "every request is taken but for three of its spans (partial success)",
        f"{_EXACT}; what was refused is counted, and not sent again",
        (2, 60),
        partial,
    ),
)
