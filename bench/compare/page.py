"""The comparison as a part of the page, and its plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench.compare.rounds import MIXED, Comparison, Sample, Turn, adds_bytes, adds_us, beside, of
from bench.compare.services import EMPTY, ENVOY, NONE, OTEL, WAYS, WIRESPAN
from bench.figures import Figure
from bench.markdown import paragraphs, table, wrap
from bench.plot import Bar, bars

OTHERS = WAYS[1:]


def section(compared: Comparison, plot: str) -> str:
    """Write the part of the page. plot: the name of the file with the plot, "" for none."""
    made = ", ".join(f"{name} {version}" for name, version in compared.versions.items())
    ways = [
        f"- {NONE}: no tracing at all",
        f"- {EMPTY}: {compared.hooks} eBPF programs that return at once, at the tracer's system "
        "calls; what is below that no tracer can reach that hooks them",
        f"- {WIRESPAN}: traces the whole host, so that the load's side of each request has a span, "
        "too, and their metrics; nothing is changed in any service",
        f"- {OTEL}: `opentelemetry-instrument`, traces only, in the service's own process",
        f"- {ENVOY}: a sidecar with one worker before the service, with a span for each request",
    ]
    picture = [f"![CPU time per request that each way adds]({plot})"] if plot else []
    return paragraphs(
        "## Beside what one would choose instead",
        f"Rounds: {_rounds(compared)}; in each, every service goes through its ways in turns: "
        f"first at its most for {compared.seconds} s, then at a fixed rate for as long. The last "
        "three ways export over OTLP/gRPC to the same receiver, half a second after a span has "
        "ended at the latest.",
        "\n".join(wrap(way, "  ") for way in ways),
        "The whole path is the application's processes and what stands beside them, sidecar or "
        "tracer, also what these do after the load has ended; eBPF programs run in the "
        "application's system calls. The load and the receiver are not in it, but share the cores "
        f"with it. Made with {made}.",
        "### Added to the whole path, CPU us per request",
        f"{_cheaper(compared)} What a way takes for itself, whatever the load, weighs more at a "
        "fixed rate, and so does work done for few requests at a time.",
        table(("", *OTHERS), list(_added(compared))),
        *picture,
        "### At their most",
        "Spans are those that have come to the receiver: less than a whole number of them a "
        f"request, and some are lost. Losses that the tracer counted: {_losses(compared)}. "
        f"Of all its spans {_others(compared):.1f} % were of other traffic on this host; what they "
        "cost is in its figures.",
        table(
            (
                *("", "application, CPU us", "whole path, CPU us", "whole path / none"),
                *("requests/s", "spans a request"),
            ),
            list(_most(compared)),
        ),
        "### At a fixed rate",
        f"{_rates(compared)}. Memory is what is resident after the loads: of the tracer with its "
        "BPF maps, of the sidecar, and what the application has more with the SDK in it.",
        table(
            (
                *("", "application, CPU us", "whole path, CPU us", "p50, ms", "p99, ms"),
                "memory added, MB",
            ),
            list(_rate(compared)),
        ),
        "### All at once",
        f"All services at the same time, each at its rate: p50 and p99 in ms, with {NONE}, "
        f"{EMPTY} and {WIRESPAN}.",
        table(
            ("", *(f"{p}, {way}" for way in OTHERS_AND_NONE for p in ("p50", "p99"))),
            list(_together(compared)),
        ),
    )


# The ways that every service has.
OTHERS_AND_NONE = (NONE, EMPTY, WIRESPAN)


def chart(compared: Comparison) -> str:
    """Draw what each way adds to the whole path, by service."""
    return bars(
        "What each way adds to the whole path",
        "us of CPU time per request",
        OTHERS,
        [
            (
                service,
                [
                    Bar(Figure.of(added), OTHERS.index(way))
                    for way in OTHERS
                    if (added := adds_us(compared.turns, service, way, _at_most))
                ],
            )
            for service in compared.rates
        ],
    )


def _at_most(turn: Turn) -> Sample | None:
    return turn.most


def _at_rate(turn: Turn) -> Sample | None:
    return turn.rate


def _rounds(compared: Comparison) -> int:
    return len(of(compared.turns, compared.turns[0].service, NONE))


def _rates(compared: Comparison) -> str:
    return ", ".join(f"{name} {rate:,} requests/s" for name, rate in compared.rates.items())


def _added(compared: Comparison) -> Iterator[tuple[str, ...]]:
    rows = [(f"{service}, at most", service, _at_most) for service in compared.rates]
    rows += [(f"{name}, {rate:,}/s", name, _at_rate) for name, rate in compared.rates.items()]
    rows.append((MIXED, MIXED, _at_rate))
    for name, service, sample in rows:
        taken = (adds_us(compared.turns, service, way, sample) for way in OTHERS)
        yield name, *(Figure.of(each).text(1) if each else "-" for each in taken)


def _cheaper(compared: Comparison) -> str:
    """Say how many times as much the others add, by the medians."""
    said = []
    for way in (OTEL, ENVOY):
        ratios = []
        for service in compared.rates:
            if not of(compared.turns, service, way):
                continue
            most, rate = (
                _times(
                    adds_us(compared.turns, service, way, sample),
                    adds_us(compared.turns, service, WIRESPAN, sample),
                )
                for sample in (_at_most, _at_rate)
            )
            ratios.append(f"{most} ({rate}) times with {service}")
        said.append(f"{way} {', '.join(ratios)}")
    return f"Of what {WIRESPAN} adds at the services' most (at a fixed rate): {'; '.join(said)}."


def _times(theirs: list[float], ours: list[float]) -> str:
    """Write how many times as much; "?" where ours is lost in the noise."""
    base = Figure.of(ours).median
    return f"{Figure.of(theirs).median / base:.1f}" if base > 0 else "?"


def _losses(compared: Comparison) -> str:
    found = [
        f"{name} {number:,} with {turn.service}"
        for turn in compared.turns
        for name, number in turn.losses.items()
    ]
    return ", ".join(found) or "none"


def _others(compared: Comparison) -> float:
    """Return the share of the tracer's spans that were not of the loads, in %."""
    samples = [
        sample
        for turn in compared.turns
        if turn.way == WIRESPAN
        for sample in (turn.most, turn.rate)
        if sample
    ]
    others = sum(sample.others for sample in samples)
    return 100 * others / max(1, others + sum(sample.spans for sample in samples))


def _rows(compared: Comparison, services: tuple[str, ...]) -> Iterator[tuple[str, list[Turn]]]:
    for service in services:
        for way in WAYS:
            if turns := of(compared.turns, service, way):
                yield f"{service}, {way}", turns


def _figure(turns: list[Turn], value: Callable[[Turn], float], digits: int = 1) -> str:
    return Figure.of(map(value, turns)).text(digits)


def _most(compared: Comparison) -> Iterator[tuple[str, ...]]:
    def most(turn: Turn) -> Sample:
        assert turn.most
        return turn.most

    for name, turns in _rows(compared, tuple(compared.rates)):
        ratio = Figure.of(
            most(turn).path_us / most(none).path_us
            for none, turn in beside(compared.turns, turns[0].service, turns[0].way)
        )
        spans = Figure.of(most(turn).spans / most(turn).requests for turn in turns)
        yield (
            name,
            _figure(turns, lambda turn: most(turn).app_us),
            _figure(turns, lambda turn: most(turn).path_us),
            ratio.text(2),
            _figure(turns, lambda turn: most(turn).requests / most(turn).seconds, 0),
            f"{spans.median:.3f}",
        )


def _rate(compared: Comparison) -> Iterator[tuple[str, ...]]:
    for name, turns in _rows(compared, (*compared.rates, MIXED)):
        first = turns[0]
        alone = first.service != MIXED
        memory = Figure.of(
            size / 1e6 for size in adds_bytes(compared.turns, first.service, first.way)
        )
        yield (
            name,
            _figure(turns, lambda turn: turn.rate.app_us),
            _figure(turns, lambda turn: turn.rate.path_us),
            *(_late(turns, at) if alone else "below" for at in (0, 1)),
            f"{memory.median:.0f}",
        )


def _late(turns: list[Turn], at: int) -> str:
    """Write p50 (at 0) or p99 (at 1) of one service in ms."""
    return _figure(turns, lambda turn: turn.rate.latency_us[turn.service][at] / 1000, 2)


def _together(compared: Comparison) -> Iterator[tuple[str, ...]]:
    for service in compared.rates:
        yield (
            service,
            *(
                f"{Figure.of(t.rate.latency_us[service][at] / 1000 for t in turns).median:.2f}"
                for way in OTHERS_AND_NONE
                if (turns := of(compared.turns, MIXED, way))
                for at in (0, 1)
            ),
        )
