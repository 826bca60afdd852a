"""Runs as a table, as a page of the documentation, and as lines of JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from bench import markdown
from bench.machine import Machine
from bench.truth.judge import Counts
from bench.truth.run import Run

HEAD = (
    "workload",
    "calls",
    "in flight",
    "spans",
    "right %",
    "orphan %",
    "wrong %",
    "missing",
    "doubled",
    "split",
    "unpaired",
    "target",
    "",
)

INTRODUCTION = (
    "A front service calls an upstream service one or more times for each request. Every request "
    "has an ID of its own in its path, which the calls carry on, and random upstream delays of 0 "
    "to 30 ms, so that requests overtake each other. The tracer is told nothing of all that. "
    "Each upstream server span is followed up by its parents:",
    "- **right**: that leads to the front service's server span of the same request",
    "- **wrong**: any span on the way is of another request",
    "- **orphan**: the way ends before, which is what happens where there is no evidence",
    "- *missing*, *doubled*: spans of either side of any exchange that are not there, or too often",
    "- *split*: the spans on the way do not all carry one trace ID, or not the one that the "
    "request names in a header",
    "- *unpaired*: server spans whose parent is not the client span of the same exchange, and "
    "client spans whose parent is not the one that the request names in a header",
    "Target: right at least, wrong at most, in %; a row that misses it, or has any of the last "
    "four, says so. *In flight* is the number of requests at any one time.",
)


def table(runs: Iterable[Run]) -> str:
    """Write a table in Markdown, a row for each run."""
    return markdown.table(HEAD, [_row(run) for run in runs])


def _row(run: Run) -> tuple[str, ...]:
    counts = run.counts
    return (
        run.name,
        str(run.calls),
        str(run.concurrency),
        str(counts.upstream),
        *(percent(counts, number) for number in (counts.right, counts.orphan, counts.wrong)),
        *map(str, (counts.missing, counts.doubled, counts.split, counts.unpaired)),
        f"{100 * run.right_target:g} / {100 * run.wrong_target:g}",
        "" if run.met else "**missed**",
    )


def percent(counts: Counts, number: int) -> str:
    """Write a share so that 0 and 100 are only what is exactly so."""
    if number in (0, counts.upstream):
        return "0" if number == 0 else "100"
    return f"{min(99.99, max(0.01, 100 * counts.share(number))):.2f}"


def page(
    runs: Sequence[Run],
    skipped: Mapping[str, str],
    *,
    machine: Machine,
    versions: Mapping[str, str],
    command: str,
    plot: str,
) -> str:
    """Write the whole page.

    skipped: workloads that could not run, and why; versions: of what the services are made with;
    command: that wrote it; plot: the name of its file.
    """
    facts = [
        f"{machine.date}, wirespan {machine.wirespan}",
        f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, Python {machine.python}",
        ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]
    parts = [
        "# How often spans are linked rightly",
        _wrap(f"Written by `{command}`; every figure is of that one run."),
        "\n".join(_wrap(f"- {fact}") for fact in facts if fact),
        *_paragraphs(INTRODUCTION),
        f"![Right, orphan and wrong by requests in flight]({plot})",
    ]
    for family, group in groupby(runs, lambda run: run.family):
        rows = list(group)
        parts += [f"## {family[:1].upper()}{family[1:]}", table(rows)]
        evidence = _evidence(rows)
        if evidence:
            parts.append(_wrap(f"Evidence of the links: {evidence}."))
    if skipped:
        parts += ["## Not run", "\n".join(f"- {name}: {why}" for name, why in skipped.items())]
    return "\n\n".join(parts) + "\n"


def _evidence(runs: Iterable[Run]) -> str:
    total: dict[str, int] = {}
    for run in runs:
        for name, number in run.counts.evidence.items():
            total[name] = total.get(name, 0) + number
    most_first = sorted(total.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {number}" for name, number in most_first)


def _paragraphs(texts: Iterable[str]) -> Iterator[str]:
    """Wrap paragraphs; items of a list are one paragraph."""
    for listed, group in groupby(texts, lambda text: text.startswith("- ")):
        wrapped = [_wrap(text) for text in group]
        yield from ["\n".join(wrapped)] if listed else wrapped


def _wrap(text: str) -> str:
    return markdown.wrap(text, "  " if text.startswith("- ") else "")


def line(run: Run) -> str:
    """Write a run as a line of JSON."""
    return json.dumps(dataclasses.asdict(run) | {"met": run.met})


def read(lines: Iterable[str]) -> Iterator[Run]:
    """Read what `line` wrote."""
    for text in lines:
        fields = json.loads(text)
        del fields["met"]
        fields["counts"] = Counts(**fields["counts"])
        yield Run(**fields)
