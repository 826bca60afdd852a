"""Outcomes as a table, and as a page that keeps those of other faults and their dates.

Beside the page lies what it is made of, a line of JSON for each fault, so that faults can be
run one by one and the page be written anew.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from bench.faults.scene import Fault, Outcome
from bench.faults.table import FAULTS
from bench.files import save
from bench.machine import Machine
from bench.markdown import table as written
from bench.markdown import wrap

PAGE, LINES = "faults.md", "faults.jsonl"
HEAD = ("fault", "requests", "failed", "spans", "lost, by counter", "outcome", "seconds", "run")


def table(outcomes: Iterable[Outcome]) -> str:
    """Write a table in Markdown, a row for each outcome."""
    return written(HEAD, [_row(each) for each in outcomes])


def _row(one: Outcome) -> tuple[str, ...]:
    lost = ", ".join(f"{name} {number:,}" for name, number in one.lost.items())
    missed = [what for what, held, _ in one.checks if not held]
    return (
        f"`{one.name}`",
        f"{one.made:,}",
        str(one.failed),
        f"{one.spans:,}",
        lost or "nothing",
        f"**missed**: {'; '.join(missed)}" if missed else "as expected",
        f"{one.seconds:.0f}",
        f"{one.date}{' (short)' if one.short else ''}",
    )


def page(outcomes: Sequence[Outcome], machine: Machine) -> str:
    """Write the whole page. outcomes: the latest of each fault that was run."""
    by_name = {each.name: each for each in outcomes}
    parts = [
        "# Faults",
        wrap(
            "Written by `make faults ARGS=--write`, which does harm to a running tracer, its "
            "backend or the processes it traces while a load of HTTP requests runs, numbers each "
            "request and looks for its spans, the client's and the server's, among what the "
            "backend accepted. *Requests* is what the load made, *failed* those that got no "
            "response, *spans* those that arrived, *lost* all of the tracer's own counters of "
            "losses that are not 0 (see [losses](losses.md)). Each fault can be run by its name, "
            "so each row has its own date; *short* rows are of the pass that `make test` makes. "
            "Where every exchange is to have its spans the tracer runs without a cap on its CPU "
            "time."
        ),
        f"- {machine.cpu}, {machine.cores} cores, {machine.kernel}\n"
        f"- nginx {machine.nginx}, Python {machine.python}",
    ]
    for group, faults in groupby(FAULTS, lambda fault: fault.group):
        parts.append(f"## {group[:1].upper()}{group[1:]}")
        rows = list(faults)
        parts.append(table(by_name[each.name] for each in rows if each.name in by_name))
        parts += [_about(each, by_name.get(each.name)) for each in rows]
    return "\n\n".join(parts) + "\n"


def _about(fault: Fault, outcome: Outcome | None) -> str:
    lines = [wrap(f"**{fault.name}**: {fault.what}. Expected: {fault.expected}.")]
    if outcome is None:
        return "\n".join([*lines, "Not run yet."])
    said = [f"{name}: {value}" for name, value in outcome.figures.items()]
    said += [
        f"{'holds' if held else '**missed**'}: {what}{f' ({detail})' if detail else ''}"
        for what, held, detail in outcome.checks
    ]
    said.append(f"wirespan {outcome.version}, {outcome.kernel}")
    return "\n".join([*lines, "", *(wrap(f"- {each}", "  ") for each in said)])


def write(directory: Path, outcome: Outcome, machine: Machine) -> None:
    """Put an outcome into the page of `directory` and its lines. Raises BenchError."""
    lines = directory / LINES
    kept = read(lines.read_text(encoding="utf-8")) if lines.exists() else {}
    kept[outcome.name] = outcome
    order = [each.name for each in FAULTS]
    outcomes = sorted(
        (o for o in kept.values() if o.name in order), key=lambda o: order.index(o.name)
    )
    text = "".join(json.dumps(dataclasses.asdict(each)) + "\n" for each in outcomes)
    save(lines, text, lambda _: None)
    save(directory / PAGE, page(outcomes, machine), lambda _: None)


def read(text: str) -> dict[str, Outcome]:
    """Read the lines that `write` wrote, by name."""
    found: dict[str, Outcome] = {}
    for line in text.splitlines():
        fields = json.loads(line)
        fields["checks"] = [tuple(each) for each in fields["checks"]]
        found[fields["name"]] = Outcome(**fields)
    return found
