"""Rounds of the comparison: each service in each way, at its most and at a fixed rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import empty
from bench.compare import parts
from bench.compare.load import Answered, Load, Target
from bench.compare.services import (
    EMPTY,
    NONE,
    OTEL,
    WAYS,
    WIRESPAN,
    Service,
    running,
)
from bench.figures import percentile
from bench.processes import Memory, cpu_ns, tree
from bench.sink import Sink
from bench.traced import Tracer

Say = Callable[[str], None]

# Of a load that does not count.
WARM_S = 0.5
MIXED = "all at once"
# After a load: how often is looked whether all spans have come, and for how long without any.
LOOK_S, LATE_S = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One load in one way.

    requests: answered; seconds: of the load; app_ns, added_ns, load_ns: CPU time of the
    application's processes, of what a way adds beside them (sidecar, tracer), of the load.
    spans: of these requests that came to the sink; others: all others that did meanwhile.
    latency_us: at a fixed rate, (p50, p99) by service; else empty.
    """

    requests: int
    seconds: float
    app_ns: int
    added_ns: int
    load_ns: int
    spans: int
    others: int
    latency_us: dict[str, tuple[float, float]]

    @property
    def app_us(self) -> float:
        """The application's CPU time per request."""
        return self.app_ns / 1000 / self.requests

    @property
    def path_us(self) -> float:
        """CPU time per request of the application and of all that is added."""
        return (self.app_ns + self.added_ns) / 1000 / self.requests


@dataclass(frozen=True, slots=True)
class Turn:
    """One service in one way, once. most: None where there is only a fixed rate.

    app_bytes, added_bytes: resident memory after both loads, with that of BPF maps.
    losses: what the tracer counted as lost, of the whole host, by name.
    """

    service: str
    way: str
    most: Sample | None
    rate: Sample
    app_bytes: int
    added_bytes: int
    losses: dict[str, int]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All turns, in the order in which they were made.

    rates: requests/s by service; hooks: how many empty programs there were; versions: of what
    the services are made with, by name.
    """

    turns: list[Turn]
    seconds: int
    rates: dict[str, int]
    hooks: int
    versions: dict[str, str]


def run(directory: Path, sink: Sink, rounds: int, seconds: int, say: Say) -> Comparison:
    """Start the services and make rounds; each service goes through its ways in turns."""
    say("fetching and building what is not there yet")
    program = parts.load()
    hooks = empty.hooks(sink)
    empty_object = empty.build(directory, hooks)
    turns = []
    with running(directory, sink, program) as services:
        places = [*([service] for service in services), services]
        for number in range(rounds):
            for loaded in places:
                ways = [way for way in WAYS if all(way in each.places for each in loaded)]
                for way in ways if number % 2 == 0 else ways[::-1]:
                    with _tracing(way, sink, empty_object) as tracer, Load(program) as load:
                        turn = _Bench(load, sink, seconds, loaded, way, tracer).turn()
                    turns.append(turn)
                    say(f"round {number + 1}/{rounds} {turn.service}, {way}: {_summary(turn)}")
        rates = {service.name: service.rate for service in services}
    return Comparison(turns, seconds, rates, len(hooks), parts.versions())


def _summary(turn: Turn) -> str:
    text = f"{turn.rate.path_us:,.1f} us a request at a fixed rate"
    return f"{turn.most.path_us:,.1f} us a request at most, {text}" if turn.most else text


@contextmanager
def _tracing(way: str, sink: Sink, empty_object: Path) -> Iterator[Tracer | None]:
    if way == EMPTY:
        with empty.attached(empty_object):
            yield None
    elif way == WIRESPAN:
        with Tracer(sink.endpoint) as tracer:
            yield tracer
    else:
        yield None


@dataclass(frozen=True, slots=True)
class _Bench:
    """What one turn needs."""

    load: Load
    sink: Sink
    seconds: int
    services: Sequence[Service]
    way: str
    tracer: Tracer | None

    def turn(self) -> Turn:
        alone = len(self.services) == 1
        # What is done once for a process or a connection is not a request's.
        self._sample(WARM_S, paced=not alone)
        most = self._sample(self.seconds, paced=False) if alone else None
        rate = self._sample(self.seconds, paced=True)
        app = sum(Memory.of(pid).resident for pid in self._app())
        added = sum(Memory.of(pid).resident for pid in self._sidecars())
        losses: dict[str, int] = {}
        if self.tracer:
            # Pages of maps that it has mapped are counted with the maps, and once.
            memory, status = self.tracer.memory(), self.tracer.status()
            added += memory.resident - memory.bpf + status.map_bytes
            losses = {name: number for name, number in status.losses.items() if number}
        name = self.services[0].name if alone else MIXED
        return Turn(name, self.way, most, rate, app, added, losses)

    def _app(self) -> list[int]:
        roots = (pid for service in self.services for pid in service.places[self.way].app)
        return [pid for root in roots for pid in tree(root)]

    def _sidecars(self) -> list[int]:
        return [pid for service in self.services for pid in service.places[self.way].added]

    def _sample(self, seconds: float, *, paced: bool) -> Sample:
        targets = [
            Target(each.kind, each.places[self.way].port, each.workers, each.rate if paced else 0)
            for each in self.services
        ]
        self.sink.collect()
        app = self._app()
        added = [*self._sidecars(), *([self.tracer.pid] if self.tracer else [])]
        app_ns, added_ns, load_ns = _cpu(app), _cpu(added), cpu_ns(self.load.pid)
        answered = self.load.ask(seconds, targets)
        spans, others = self._spans(answered)
        app_ns, added_ns = _cpu(app) - app_ns, _cpu(added) - added_ns
        load_ns = cpu_ns(self.load.pid) - load_ns
        late = {
            service.name: [ns / 1000 for ns in each.latency_ns]
            for service, each in zip(self.services, answered, strict=True)
        }
        return Sample(
            sum(each.requests for each in answered),
            max(each.seconds for each in answered),
            app_ns,
            added_ns,
            load_ns,
            spans,
            others,
            {n: (percentile(us, 50), percentile(us, 99)) for n, us in late.items() if us},
        )

    def _spans(self, answered: Sequence[Answered]) -> tuple[int, int]:
        """Count spans that come, until they are as many as there must be or no more do.

        Returns how many are of these requests, and all others.
        """
        places = [service.places[self.way] for service in self.services]
        expected = sum(
            each.requests * place.spans for each, place in zip(answered, places, strict=True)
        )
        found, total, last = 0, 0, time.monotonic()
        while found < expected and time.monotonic() - last < LATE_S:
            time.sleep(LOOK_S)
            got = self.sink.collect(*(place.port for place in places))
            # The tracer's are those of the whole host, and only they all name the server's port.
            total += got.total
            if more := got.server + got.client if self.tracer else got.total:
                found, last = found + more, time.monotonic()
        return found, total - found


def _cpu(pids: Sequence[int]) -> int:
    return sum(map(cpu_ns, pids))


def of(turns: Sequence[Turn], service: str, way: str) -> list[Turn]:
    """Return the turns of one service in one way, one a round."""
    return [turn for turn in turns if (turn.service, turn.way) == (service, way)]


def beside(turns: Sequence[Turn], service: str, way: str) -> list[tuple[Turn, Turn]]:
    """Return, for each round, the turn with no tracing and that of a way; none where it has not."""
    return list(zip(of(turns, service, NONE), of(turns, service, way), strict=False))


def adds_bytes(turns: Sequence[Turn], service: str, way: str) -> list[int]:
    """Return, for each round, the memory that a way adds, in the application and beside it."""
    return [
        turn.added_bytes + (turn.app_bytes - none.app_bytes if way == OTEL else 0)
        for none, turn in beside(turns, service, way)
    ]


def adds_us(
    turns: Sequence[Turn], service: str, way: str, sample: Callable[[Turn], Sample | None]
) -> list[float]:
    """Return, for each round, the CPU time per request that a way adds to the whole path."""
    return [
        after.path_us - before.path_us
        for none, turn in beside(turns, service, way)
        if (before := sample(none)) and (after := sample(turn))
    ]
