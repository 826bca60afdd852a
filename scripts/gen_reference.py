#!/usr/bin/env python3
"""Generate docs/reference/: no argument writes, --check compares.

cli.md comes from --help, losses.md from the table of losses, metrics.md from the tables of
metrics, http1.md from the docstring of the module that makes the spans; the other pages are
written by hand. Run by the
project's own Python: `.venv/bin/python scripts/gen_reference.py`.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
sys.path.insert(0, str(ROOT))


def cli() -> str:
    """The command line reference: the help of every command, as a terminal shows it."""
    # argparse fills lines to the terminal's width, and would put this machine's values in.
    os.environ["COLUMNS"] = "100"
    os.environ.pop("WIRESPAN_SOCKET", None)
    from tracer.options import build_parser

    parser = build_parser()
    parts = ["# Command line\n", "Generated from `--help` by `scripts/gen_reference.py`.\n"]
    parts += [_section("wirespan", parser)]
    parts += [_section(command.prog, command) for command in _commands(parser)]
    return "\n".join(parts)


def losses() -> str:
    """Every loss counter and its meaning."""
    from collector import collector, intake
    from tracer.losses import KERNEL, USER, Loss

    def table(title: str, rows: Iterable[Loss]) -> str:
        lines = [f"| `{loss.name}` | {loss.meaning} |" for loss in rows]
        return "\n".join([f"## {title}\n", "| counter | one more means |", "|---|---|", *lines, ""])

    head = (
        "# What can be lost\n\n"
        "`wirespan status` shows each of these, `wirespan run` sums them up when it ends, and\n"
        "they leave as metrics over OTLP. Generated from `tracer/losses.py`.\n"
    )
    collected = (
        "Printed by `wirespan collect` when it ends, at SIGUSR1 and each `--status-interval`; not\n"
        "all of them are losses. Generated from `collector/collector.py` and\n"
        "`collector/intake.py`.\n"
    )
    taken = {**collector.MEANINGS, **intake.MEANINGS}
    tables = [
        table("In the kernel", KERNEL.values()),
        table("In the tracer", USER.values()),
        table("In a collector", (Loss(*each) for each in taken.items())),
    ]
    return "\n".join([head, *tables, collected])


def http1() -> str:
    """How HTTP/1 exchanges become spans, from the module that decides it."""
    from tracer.protocols import http1_shape

    doc = http1_shape.__doc__ or ""
    return f"# HTTP/1 spans\n\nGenerated from `tracer/protocols/http1_shape.py`.\n\n{doc}"


def metrics() -> str:
    """Every metric, what makes its series, and what bounds them."""
    from tracer.metrics import OwnSource
    from tracer.monitor import Gauges, Monitor
    from tracer.red import instruments, pairs, series
    from tracer.red.buckets import SCALE
    from tracer.red.histograms import BUCKETS
    from tracer.spans import Resource

    monitor = Monitor(dict, lambda: {"reason": 0}, lambda: Gauges(0, 0.0, 0, 0.0, 0))
    (own,) = OwnSource(monitor, Resource(())).collect(0)
    return METRICS.format(
        decisions=(instruments.__doc__ or "").partition("\n\n")[2].strip(),
        red=_metric_rows(
            (each.name, "s", ", ".join(f"`{key}`" for key in each.attributes))
            for each in instruments.INSTRUMENTS
        ),
        totals=_metric_rows(
            (name, "{request}", ", ".join(f"`{key}`" for key in each.attributes))
            for each in instruments.INSTRUMENTS
            for name in (each.total, each.failed_total)
            if name
        ),
        own=_metric_rows(
            (metric.name, metric.unit, metric.description)
            for metric in own.scope_metrics[0].metrics
        ),
        series=f"{series.MAX_SERIES:,}",
        idle=series.IDLE_NS // (60 * 10**9),
        age=pairs.AGE_NS // 10**9,
        buckets=BUCKETS,
        scale=SCALE,
    )


def _metric_rows(rows: Iterable[tuple[str, str, str]]) -> str:
    return "\n".join(f"| `{name}` | {unit} | {text} |" for name, unit, text in rows)


METRICS = """\
# Metrics

Generated from `tracer/red/instruments.py` and `tracer/metrics.py`.

With an OTLP endpoint set, `wirespan run` exports metrics to it, by the same variables and flags
as spans (`OTEL_EXPORTER_OTLP_METRICS_*` where they differ). `--red-metrics off` leaves out those
of what is traced, `OTEL_METRICS_EXPORTER=none` all of them. An endpoint that takes no metrics is
asked once; Jaeger and `wirespan collect` take none, so that with those
`OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` names who does.

## Rate, errors, durations

Every exchange that became a span is counted, before any is sampled or finds a queue full: rates
are right whatever becomes of the spans. The histogram's count is the number of exchanges; those
that failed have `error.type`. Durations are those of the spans.

| histogram | unit | attributes, as far as a span has them |
|---|---|---|
{red}

They stand under the resource of the process that they are about, as its spans do; the
`traces_service_graph_*` under the tracer's own, along with

| counter | unit | attributes |
|---|---|---|
{totals}

{decisions}

## How they are kept

- ExponentialHistograms of at most {buckets} buckets, as fine as their values allow from scale
  {scale} down; count, sum, minimum and maximum are exact to the nanosecond.
- Cumulative, or delta by `OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta` (`lowmemory`
  means the same here). What does not arrive is told again by the next export if it is
  cumulative, and kept until it arrives if it is delta, up to 16 MiB.
- Every `OTEL_METRIC_EXPORT_INTERVAL` (60000 ms) and once more at the end.
- An exemplar each: trace and span id of the slowest exchange since the last export, of those
  whose spans went on to the exporter. `OTEL_METRICS_EXEMPLAR_FILTER=always_off`: none.
- A pair of services is known where both sides of an exchange were traced by this tracer. A side
  waits {age} s and more for the other; where too many wait, `red_unpaired` counts those that go.
- {series} series, and besides one with `otel.metric.overflow=true` for each resource and metric
  that finds no place for another (for the tracer's own where there are too many of those, too):
  `metrics_overflow` in `wirespan status`. Series of what is quiet for {idle} minutes are
  forgotten, and where more than half of the places are taken those that have been quiet for
  longest. One that comes back begins anew, with a start time of its own.

## The tracer's own

| metric | unit | what |
|---|---|---|
{own}
"""


PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": cli,
    "losses.md": losses,
    "http1.md": http1,
    "metrics.md": metrics,
}


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    return f"## {name}\n\n```text\n{parser.format_help()}```\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def check(page: Path, made: str) -> bool:
    """Is the page what would be generated? Prints the difference if not."""
    found = page.read_text(encoding="utf-8") if page.exists() else ""
    if found == made:
        return True
    name = str(page.relative_to(ROOT))
    sys.stdout.writelines(
        difflib.unified_diff(found.splitlines(True), made.splitlines(True), name, "generated")
    )
    print(f"wirespan: {name} is out of date", file=sys.stderr)
    print("hint: make fix", file=sys.stderr)
    return False


def main() -> int:
    """Write, or with --check compare and return 1 where a page is out of date."""
    if sys.argv[1:] == ["--check"]:
        return 0 if all([check(REFERENCE / name, make()) for name, make in PAGES.items()]) else 1
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
