"""Results as a page in Markdown, and its plot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from bench.compare import page as compared
from bench.figures import Figure
from bench.markdown import paragraphs, table, wrap
from bench.others import EMPTY, EXCLUDED, KINDS, UNTRACED
from bench.plot import Bar, bars
from bench.results import Results
from bench.rounds import Pair, Programs, Round, Traced, compare, traced_only
from bench.stored import REQUESTS_PER_S
from bench.targets import Measured, Target, judged

MIB = 2**20


def page(results: Results, plots: Mapping[str, str]) -> str:
    """Write the whole page. plots: the names of files with plots, by phase."""
    parts = [_head(results)]
    rows = judged(results)
    if any(measured for _, measured in rows):
        parts.append(_targets(rows))
    if results.rounds:
        parts += [_cost(results, plots.get("rounds", "")), _loss(results), _tracer(results)]
    if results.programs:
        parts.append(_programs(results.programs))
    if results.others:
        parts.append(_others(results))
    if results.latency or results.idle or results.stored:
        parts.append(_quiet(results))
    if results.pipeline:
        parts.append(_pipeline(results))
    if results.compared:
        parts.append(compared.section(results.compared, plots.get("compare", "")))
    return "\n\n".join(parts) + "\n"


def charts(results: Results) -> dict[str, str]:
    """Draw the plots that there are figures for, by phase."""
    drawn = {"rounds": _chart(results)} if results.rounds else {}
    if results.compared:
        drawn["compare"] = compared.chart(results.compared)
    return drawn


def _chart(results: Results) -> str:
    """Draw CPU time per request, untraced and traced."""
    groups = []
    for name, value in (("nginx", _nginx_us), ("wrk", _wrk_us)):
        pair = compare(results.rounds, value)
        groups.append((name, [Bar(pair.untraced, 0), Bar(pair.traced, 1)]))
    tracer = Figure.of(one.cpu_us(traced.tracer_ns) for one, traced in traced_only(results.rounds))
    groups.append(("tracer", [Bar(tracer, 2)]))
    return bars(
        "CPU time per request, both sides traced",
        "us of CPU time per request, user and system",
        ("untraced", "traced", "tracer"),
        groups,
    )


def _nginx_us(one: Round) -> float:
    return one.cpu_us(one.nginx_ns)


def _wrk_us(one: Round) -> float:
    return one.cpu_us(one.wrk_ns)


def _rate(one: Round) -> float:
    return one.requests / one.seconds


def _head(results: Results) -> str:
    machine = results.machine
    facts = [
        f"{machine.date}, wirespan {machine.wirespan}",
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:.0f} GiB, {machine.kernel}; "
        f"load average before the run {machine.load:.2f}",
        f"nginx {machine.nginx} (one worker, `return 200` of 17 bytes, no access log), "
        f"wrk {machine.wrk} (`-t1 -c{results.load.connections}`), Python {machine.python}",
    ]
    if machine.tracers:
        facts.append(
            f"**{machine.tracers} other tracer ran on this host when the run began**: what it cost "
            "is in every figure, untraced ones too"
        )
    return paragraphs(
        "# Benchmarks",
        f"Written by `{results.command}`; every figure is of that one run.",
        "\n".join(wrap(f"- {fact}", "  ") for fact in facts),
        "Figures are medians, with the lowest and the highest sample in brackets. CPU times are "
        "user and system time of whole processes, in ns from the kernel; eBPF programs run inside "
        "system calls, so what they take is in the figures of nginx and wrk, not in those of the "
        "tracer. nginx, wrk, the tracer and the receiver of its spans share the cores: throughput "
        "shows what is left over, CPU time per request shows what things cost.",
    )


def _targets(rows: Sequence[tuple[Target, Measured | None]]) -> str:
    cells = []
    for target, measured in rows:
        verdict = "not measured"
        if measured:
            verdict = "met" if measured.met else "**missed**"
        cells.append((target.name, target.limit, measured.text if measured else "", verdict))
    found = [measured for _, measured in rows if measured]
    return paragraphs(
        "## Targets",
        f"{sum(each.met for each in found)} of {len(found)} measured targets are met, each judged "
        "by the median of this run; details are below.",
        table(("", "target", "measured", ""), cells),
    )


def _cost(results: Results, plot: str) -> str:
    rounds = results.rounds
    rows = [
        _pair("nginx, CPU us per request", compare(rounds, _nginx_us)),
        _pair("wrk, CPU us per request", compare(rounds, _wrk_us)),
        _pair("requests/s", compare(rounds, _rate), 0),
    ]
    figures = table(("", "untraced", "traced", "traced / untraced"), rows)
    picture = [f"![CPU time per request, untraced and traced]({plot})"] if plot else []
    return paragraphs(
        "## nginx, untraced and traced",
        f"{len(rounds) // 2} rounds of each, in turns, {results.load.seconds} s a round. The "
        "tracer traces the whole host, both sides of each request, and exports over OTLP/gRPC. "
        "The ratio is that of neighbouring rounds.",
        figures,
        *picture,
    )


def _tracer(results: Results) -> str:
    rounds = list(traced_only(results.rounds))
    rows = [
        (
            "CPU us per span, ring to bytes sent",
            _each(rounds, lambda t: t.tracer_ns / t.spans / 1000),
        ),
        ("CPU us per request (two spans)", _of(one.cpu_us(t.tracer_ns) for one, t in rounds)),
        ("receiver's CPU us per request", _of(one.cpu_us(t.sink_ns) for one, t in rounds)),
        ("page faults per span", _each(rounds, lambda t: t.page_faults / t.spans)),
        ("records per batch", _each(rounds, lambda t: t.batch_records, 0)),
        ("OTLP bytes per span", _each(rounds, lambda t: t.span_bytes / t.spans, 0)),
        ("last span after the end of the load, s", _each(rounds, lambda t: t.behind_s)),
        ("start to attached, s", _each(rounds, lambda t: t.ready_s)),
        ("resident memory after the load, MB", _each(rounds, lambda t: t.memory.resident / 1e6, 1)),
        ("resident memory at its highest, MB", _each(rounds, lambda t: t.memory.peak / 1e6, 1)),
        ("of it pages of the ring, MB", _each(rounds, lambda t: t.memory.bpf / 1e6, 1)),
        ("memory of BPF maps, MiB", _each(rounds, lambda t: t.map_bytes / MIB)),
    ]
    return paragraphs(
        "## The tracer under that load",
        "Of resident memory, the ring's pages are BPF map memory too.",
        table(("", "per traced round"), rows),
    )


def _loss(results: Results) -> str:
    rows = []
    for number, (one, traced) in enumerate(traced_only(results.rounds), 1):
        losses = ", ".join(f"{name} {value}" for name, value in traced.losses.items())
        rows.append(
            (
                str(number),
                f"{one.requests:,}",
                f"{one.answered:,}",
                f"{traced.server:,}",
                f"{traced.client:,}",
                f"{one.missing:,}",
                losses or "none",
            )
        )
    each = table(
        ("round", "nginx's requests", "wrk's", "server spans", "client spans", "missing", "losses"),
        rows,
    )
    total = sum(one.requests for one, _ in traced_only(results.rounds))
    missing = sum(one.missing for one, _ in traced_only(results.rounds))
    return paragraphs(
        "## Loss",
        f"{missing:,} of {2 * total:,} spans missing. nginx's own count (`stub_status`) is the "
        "measure: each request must give one server and one client span, told apart by their ids. "
        "wrk's count is smaller by up to one request a connection: when its time is up it closes "
        "connections whose answers it has not read. Those are exchanges too, with a span on "
        "either side, which may be marked as cut short. Losses are all counters of `wirespan "
        "status` that are not 0, of the whole host.",
        each,
    )


def _programs(programs: Programs) -> str:
    rows = [
        (
            f"`{name}`",
            f"{program.runs / programs.requests:.3f}",
            f"{program.ns / program.runs:,.0f}",
            f"{program.ns / programs.requests:,.1f}",
        )
        for name, program in sorted(programs.runs.items(), key=lambda item: -item[1].ns)
    ]
    return paragraphs(
        "## Kernel time of the eBPF programs",
        "A load of its own with `--program-stats`, which by itself adds some 20 ns to a run, part "
        f"of it in these figures; {programs.requests:,} requests. Per exchange and side: "
        f"{programs.side_ns:,.0f} ns. `sys_enter` and `sys_exit` see every system call, of nginx "
        "and wrk and of all other processes of the host, the tracer included; all of it is in "
        "here.",
        table(("program", "runs per request", "ns per run", "ns per request"), rows),
    )


def _others(results: Results) -> str:
    rows = [
        (
            KINDS[kind],
            call.ns[UNTRACED].text(0),
            *(
                f"{adds.median:+.0f} ({adds.low:+.0f} to {adds.high:+.0f})"
                for adds in call.adds.values()
            ),
        )
        for kind, call in results.others.items()
    ]
    ways = next(iter(results.others.values())).adds
    return paragraphs(
        "## Cost to others",
        "CPU time of 64-byte reads and writes in a C program that has nothing to do with HTTP. "
        f'"{EMPTY}" are programs that return at once, at the same system calls as the tracer\'s: '
        f'what this kernel takes to call programs at all. "{EXCLUDED}" is the tracer with '
        "`--exclude-exe`. What is added is the difference within a round.",
        table(("ns per call", UNTRACED, *(f"{way}, added" for way in ways)), rows),
    )


def _quiet(results: Results) -> str:
    rows = []
    late, idle = results.latency, results.idle
    if late:
        at = f"{late.requests_per_s} requests/s, {late.spans} spans"
        rows += [
            (f"exchange's end to span in the receiver, p50 ({at})", f"{late.p50_ms:.0f} ms"),
            ("the same, p99", f"{late.p99_ms:.0f} ms"),
            ("the same, at most", f"{late.max_ms:.0f} ms"),
            ("start of `wirespan run` to first span in the receiver", f"{late.first_span_s:.2f} s"),
        ]
    if idle:
        busy = f"{idle.calls / idle.seconds / 1e6:.1f} million calls/s on a pipe by another process"
        rows.append(
            (
                f"tracer's CPU with nothing to trace ({idle.spans} spans), but {busy}",
                f"{idle.percent:.3f} % of a core",
            )
        )
    if held := results.stored:
        at = f"{REQUESTS_PER_S} requests/s for {held.seconds:.0f} s"
        rows.append(
            (
                f"resident memory with the embedded collector and its store ({at})",
                f"{held.memory.resident / 1e6:.1f} MB",
            )
        )
    return paragraphs("## Little load and none", table(("", ""), rows))


def _pipeline(results: Results) -> str:
    rows = [
        (
            name,
            cost.feed_us.text(),
            cost.stitch_us.text(),
            cost.measure_us.text(),
            cost.encode_us.text(),
            cost.total_us.text(),
            cost.spans_per_s.text(0),
            f"{cost.span_bytes:.0f}",
        )
        for name, cost in results.pipeline.items()
    ]
    header = (
        *("", "records to spans, us", "linking, us", "metrics, us"),
        *("spans to OTLP, us", "in all, us"),
        *("spans/s a core", "bytes a span"),
    )
    return paragraphs(
        "## The user-space pipeline alone",
        "Records captured from the ring, replayed from record to OTLP bytes in one thread; CPU "
        "time per span, without kernel and network. HTTP/1 is wrk and nginx; gRPC is grpcio on "
        "both sides, with records of header blocks beside those of calls; MySQL is PyMySQL and "
        "MariaDB, each statement with values of its own.",
        table(header, rows),
    )


def _pair(name: str, pair: Pair, digits: int = 2) -> tuple[str, ...]:
    return name, pair.untraced.text(digits), pair.traced.text(digits), pair.ratio.text(3)


def _of(samples: Iterable[float], digits: int = 2) -> str:
    return Figure.of(samples).text(digits)


def _each(
    rounds: Sequence[tuple[Round, Traced]],
    value: Callable[[Traced], float],
    digits: int = 2,
) -> str:
    return _of((value(traced) for _, traced in rounds), digits)
