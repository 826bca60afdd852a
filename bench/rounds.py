"""The main comparison: the same load on nginx, untraced and traced, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench import wrk
from bench.figures import Figure
from bench.nginx import Nginx
from bench.processes import BenchError, Memory, page_faults
from bench.sink import Sink
from bench.traced import ProgramRuns, Status, Tracer

Say = Callable[[str], None]

# After a load: no more than a few other spans of this host come for so long.
QUIET_S, FEW_BYTES, SETTLE_S = 0.6, 100_000, 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """Size of a load. seconds: of each run."""

    seconds: int
    connections: int


@dataclass(frozen=True, slots=True)
class Traced:
    """What a traced round shows beyond an untraced one.

    page_faults: of the tracer, while tracer_ns was spent.
    spans: at the sink, of all of this host; server, client, distinct, failed: of this load.
    behind_s: from the end of the load to the last spans of it. ready_s: start to attached.
    batch_records: records that were made into spans at a time, on average.
    """

    tracer_ns: int
    sink_ns: int
    page_faults: int
    spans: int
    span_bytes: int
    server: int
    client: int
    distinct: int
    failed: int
    behind_s: float
    ready_s: float
    batch_records: float
    memory: Memory
    map_bytes: int
    losses: dict[str, int]


@dataclass(frozen=True, slots=True)
class Round:
    """One run of the load. requests: as nginx counted them; answered: as wrk did."""

    requests: int
    answered: int
    errors: int
    seconds: float
    nginx_ns: int
    wrk_ns: int
    traced: Traced | None

    def cpu_us(self, ns: int) -> float:
        """CPU time per request, in us."""
        return ns / 1000 / self.requests

    @property
    def missing(self) -> int:
        """Exchanges' sides without a span of their own; below 0: spans too many."""
        assert self.traced
        return 2 * self.requests - self.traced.distinct


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure of untraced and of traced rounds.

    ratio: traced / untraced of rounds that were neighbours, so that slow swings of the
    machine cancel out.
    """

    untraced: Figure
    traced: Figure
    ratio: Figure


def run(nginx: Nginx, sink: Sink, load: Load, rounds: int, say: Say) -> list[Round]:
    """Return 2 * rounds rounds: each untraced one is followed or preceded by a traced one."""
    done = []
    for number in range(rounds):
        for traced in (False, True) if number % 2 == 0 else (True, False):
            one = run_traced(nginx, sink, load) if traced else run_untraced(nginx, load)
            name = "traced" if traced else "untraced"
            say(f"round {number + 1}/{rounds} {name}: {one.requests / one.seconds:,.0f} requests/s")
            done.append(one)
    return done


def compare(rounds: list[Round], value: Callable[[Round], float]) -> Pair:
    """Sum up one value of all rounds."""
    pairs = [sorted(rounds[at : at + 2], key=_is_traced) for at in range(0, len(rounds), 2)]
    return Pair(
        Figure.of(value(untraced) for untraced, _ in pairs),
        Figure.of(value(traced) for _, traced in pairs),
        Figure.of(value(traced) / value(untraced) for untraced, traced in pairs),
    )


def traced_only(rounds: list[Round]) -> Iterator[tuple[Round, Traced]]:
    """Yield the traced rounds with what they alone have."""
    for one in rounds:
        if one.traced:
            yield one, one.traced


def _is_traced(one: Round) -> bool:
    return one.traced is not None


def run_untraced(nginx: Nginx, load: Load) -> Round:
    """Run the load with no tracer."""
    before, cpu = nginx.requests(), nginx.worker_cpu_ns()
    result, nginx_ns = _drive(nginx, load, cpu)
    # The second question counts itself.
    return _round(nginx.requests() - before - 1, result, nginx_ns, None)


def _drive(nginx: Nginx, load: Load, cpu_before: int) -> tuple[wrk.WrkResult, int]:
    with wrk.start(nginx.url, load.seconds, load.connections) as client:
        result = wrk.finish(client, load.seconds)
    return result, nginx.worker_cpu_ns() - cpu_before


def _round(requests: int, result: wrk.WrkResult, nginx_ns: int, traced: Traced | None) -> Round:
    if requests < 1:
        raise BenchError("the load made no request")
    return Round(
        requests, result.requests, result.errors, result.seconds, nginx_ns, result.cpu_ns, traced
    )


def run_traced(nginx: Nginx, sink: Sink, load: Load) -> Round:
    """Run the load with a tracer that exports to the sink."""
    # nginx is asked for its count while nothing traces: the question would be an exchange.
    before = nginx.requests()
    with Tracer(sink.endpoint) as tracer:
        cpu, tracer_ns, sink_ns = nginx.worker_cpu_ns(), tracer.cpu_ns(), sink.cpu_ns()
        faults = page_faults(tracer.pid)
        result, nginx_ns = _drive(nginx, load, cpu)
        behind_s = sink.settle(QUIET_S, FEW_BYTES, SETTLE_S)
        tracer_ns, sink_ns = tracer.cpu_ns() - tracer_ns, sink.cpu_ns() - sink_ns
        faults = page_faults(tracer.pid) - faults
        memory = tracer.memory()
        status = tracer.status()
        ready_s = tracer.ready_s
        tracer.stop()
    requests = nginx.requests() - before - 1
    spans = sink.collect(nginx.port)
    traced = Traced(
        tracer_ns=tracer_ns,
        sink_ns=sink_ns,
        page_faults=faults,
        spans=spans.total,
        span_bytes=spans.size,
        server=spans.server,
        client=spans.client,
        distinct=spans.distinct,
        failed=spans.failed,
        behind_s=behind_s,
        ready_s=ready_s,
        batch_records=status.counts["records"] / max(1, status.counts["batches"]),
        memory=memory,
        map_bytes=status.map_bytes,
        losses={name: value for name, value in status.losses.items() if value},
    )
    return _round(requests, result, nginx_ns, traced)


@dataclass(frozen=True, slots=True)
class Programs:
    """What eBPF programs took in one load. runs: of those that ran; by name."""

    requests: int
    runs: dict[str, ProgramRuns]

    @property
    def side_ns(self) -> float:
        """Kernel time per exchange and side: a request has two sides here, wrk's and nginx's.

        The programs see all system calls of the host, and what is not HTTP counts, too.
        """
        return sum(program.ns for program in self.runs.values()) / self.requests / 2


def programs(nginx: Nginx, sink: Sink, load: Load) -> Programs:
    """Have the kernel time each program's runs during a load.

    Timing itself costs some 20 ns a run, so this load counts for nothing else.
    """
    before = nginx.requests()
    with Tracer(sink.endpoint, "--program-stats") as tracer:
        start = tracer.status()
        _drive(nginx, load, 0)
        end = tracer.status()
    requests = nginx.requests() - before - 1
    sink.collect(nginx.port)
    return Programs(requests, difference(start, end))


def difference(start: Status, end: Status) -> dict[str, ProgramRuns]:
    """Return how much programs ran between two statuses, of those that did."""
    grown = {
        name: ProgramRuns(
            after.hook, after.runs - start.programs[name].runs, after.ns - start.programs[name].ns
        )
        for name, after in end.programs.items()
    }
    return {name: program for name, program in grown.items() if program.runs > 0}
