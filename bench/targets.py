"""What tracing may cost, and whether this run met it: judged from results, never typed in."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from bench.compare.rounds import of
from bench.compare.services import GRPC_GO, MARIADB, WIRESPAN
from bench.figures import Figure
from bench.others import EMPTY, EXCLUDED, TRACED
from bench.results import Results
from bench.rounds import Round, Traced, compare, traced_only

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Measured:
    """What one target's figure was. text: for people, with its unit."""

    text: str
    met: bool


@dataclass(frozen=True, slots=True)
class Target:
    """A row. measure: results -> the figure, None where its phase did not run."""

    name: str
    limit: str
    measure: Callable[[Results], Measured | None]


def judged(results: Results) -> list[tuple[Target, Measured | None]]:
    """Judge every target; None where its phase did not run."""
    return [(target, target.measure(results)) for target in TARGETS]


def _at_most(value: float, limit: float, text: str) -> Measured:
    return Measured(text, value <= limit)


def _exchange(results: Results) -> Measured | None:
    if not results.programs:
        return None
    ns = results.programs.side_ns
    return _at_most(ns, 600.0, f"{ns / 1000:.2f} us")


def _added(way: str, *kinds: str) -> Callable[[Results], Measured | None]:
    """Judge the kind of call to which `way` adds most."""

    def measure(results: Results) -> Measured | None:
        if not results.others:
            return None
        worst = max((results.others[kind] for kind in kinds), key=lambda c: c.adds[way].median)
        text = f"{worst.adds[way].median:.0f} ns"
        if EMPTY in worst.adds:
            text += f" (empty programs {worst.adds[EMPTY].median:.0f} ns)"
        return _at_most(worst.adds[way].median, 80.0, text)

    return measure


def _traced(results: Results, value: Callable[[Round, Traced], float]) -> float | None:
    """Return the median of the traced rounds, None without any."""
    found = [value(one, traced) for one, traced in traced_only(results.rounds)]
    return statistics.median(found) if found else None


def _span_cpu(results: Results) -> Measured | None:
    us = _traced(results, lambda _, traced: traced.tracer_ns / traced.spans / 1000)
    return None if us is None else _at_most(us, 2.0, f"{us:.2f} us")


def _service_cpu(service: str) -> Callable[[Results], Measured | None]:
    """Judge the tracer's CPU time per span while a service is loaded at its most."""

    def measure(results: Results) -> Measured | None:
        if not results.compared:
            return None
        turns = of(results.compared.turns, service, WIRESPAN)
        us = Figure.of(t.most.added_ns / t.most.spans / 1000 for t in turns if t.most)
        return _at_most(us.median, 5.0, f"{us.median:.2f} us ({service})")

    return measure


def _sustained(results: Results) -> Measured | None:
    rate = _traced(results, lambda one, _: one.requests / one.seconds)
    if rate is None:
        return None
    # Losses are those of the whole host, so they are told and don't judge this load.
    rounds = list(traced_only(results.rounds))
    missing = sum(abs(one.missing) for one, _ in rounds)
    losses = sum(sum(traced.losses.values()) for _, traced in rounds)
    text = f"{rate:,.0f} requests/s, {missing:,} spans missing, {losses:,} losses counted"
    return Measured(text, missing == 0)


def _burst(results: Results) -> Measured | None:
    if not results.pipeline:
        return None
    per_s = next(iter(results.pipeline.values())).spans_per_s.median
    return Measured(f"{per_s:,.0f} spans/s", per_s >= 400_000)


def _nginx(results: Results) -> Measured | None:
    if not results.rounds:
        return None
    ratio: Figure = compare(results.rounds, lambda one: one.cpu_us(one.nginx_ns)).ratio
    return _at_most(ratio.median, 1.10, ratio.text(3))


def _late(results: Results) -> Measured | None:
    late = results.latency
    if not late:
        return None
    text = f"{late.p99_ms / 1000:.2f} s at {late.requests_per_s} requests/s"
    return _at_most(late.p99_ms, 500.0, text)


def _idle(results: Results) -> Measured | None:
    idle = results.idle
    return _at_most(idle.percent, 0.2, f"{idle.percent:.3f} %") if idle else None


def _resident(results: Results) -> Measured | None:
    size = _traced(results, lambda _, traced: float(traced.memory.resident))
    return None if size is None else _at_most(size, 80e6, f"{size / 1e6:.1f} MB after the load")


def _resident_store(results: Results) -> Measured | None:
    if not results.stored:
        return None
    size = results.stored.memory.resident
    return _at_most(size, 160e6, f"{size / 1e6:.1f} MB")


def _maps(results: Results) -> Measured | None:
    size = _traced(results, lambda _, traced: float(traced.map_bytes))
    return None if size is None else _at_most(size, 16 * MIB, f"{size / MIB:.2f} MiB")


def _start(results: Results) -> Measured | None:
    late = results.latency
    return _at_most(late.first_span_s, 2.0, f"{late.first_span_s:.2f} s") if late else None


TARGETS = (
    Target("kernel time per HTTP/1 exchange and side", "<= 0.6 us", _exchange),
    Target(
        "added to a read or write that is no socket's",
        "<= 80 ns",
        _added(TRACED, "zero", "null", "pipe"),
    ),
    Target(
        "added to a read or write of a socket, process filtered out",
        "<= 80 ns",
        _added(EXCLUDED, "unix", "tcp"),
    ),
    Target("tracer CPU per HTTP/1 span, ring to bytes sent", "<= 2 us", _span_cpu),
    Target("tracer CPU per gRPC span", "<= 5 us", _service_cpu(GRPC_GO)),
    Target("tracer CPU per MySQL span", "<= 5 us", _service_cpu(MARIADB)),
    Target("nginx and wrk at their most, both sides traced", "no loss", _sustained),
    Target("the user-space pipeline alone, one core", ">= 400,000 spans/s", _burst),
    Target("nginx, CPU per request, traced / untraced", "<= 1.10", _nginx),
    Target("exchange's end to span in the receiver, p99", "<= 0.5 s", _late),
    Target("CPU with nothing to trace on a busy host, of a core", "<= 0.2 %", _idle),
    Target("resident memory, exporting OTLP", "<= 80 MB", _resident),
    Target("resident memory with the embedded collector", "<= 160 MB", _resident_store),
    Target("memory of BPF maps", "<= 16 MiB", _maps),
    Target("start of `wirespan run` to first span", "<= 2 s", _start),
)
