"""A trace of the query API as a waterfall, and lists of traces, for terminals.

Pure: no sockets, files, threads or clocks.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEAST_WIDTH, MOST_WIDTH = 60, 200
# The part of the width that names take, and columns of a duration.
NAMES = 0.5
DURATION = 8

_BOLD, _DIM, _RED, _PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[0m"
_SERVICES = ("\x1b[36m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[33m")
_EIGHTHS = " ▏▎▍▌▋▊▉█"

Json = Mapping[str, Any]


@dataclass(slots=True, eq=False)
class Node:
    """A span of an answer of the API. Times in µs."""

    span_id: str
    parent_id: str
    service: str
    name: str
    kind: str
    start_us: int
    duration_us: int
    error: bool
    tags: Mapping[str, Any]
    process: Mapping[str, Any]
    children: list[Node] = field(default_factory=list)


def tree(trace: Json) -> list[Node]:
    """Return the roots of a trace, each with what hangs below it, by start.

    A span whose parent is not in the trace is a root; so is the first of a ring of parents.
    """
    nodes: dict[str, Node] = {}
    for span in trace["spans"]:
        process = trace["processes"][span["processID"]]
        tags = {tag["key"]: tag["value"] for tag in span["tags"]}
        parents = (
            reference["spanID"]
            for reference in span["references"]
            if reference["refType"] == "CHILD_OF" and reference["traceID"] == span["traceID"]
        )
        node = Node(
            span["spanID"],
            next(parents, ""),
            process["serviceName"],
            span["operationName"],
            str(tags.get("span.kind", "")),
            span["startTime"],
            span["duration"],
            tags.get("error") is True,
            tags,
            {tag["key"]: tag["value"] for tag in process["tags"]},
        )
        nodes.setdefault(node.span_id, node)
    ordered = sorted(nodes.values(), key=lambda node: (node.start_us, -node.duration_us))
    roots = []
    for node in ordered:
        parent = nodes.get(node.parent_id)
        if parent is None or parent is node:
            roots.append(node)
        else:
            parent.children.append(node)
    reached = {id(node) for _, node, _ in walk(roots)}
    for node in ordered:
        if id(node) not in reached:  # in a ring, which is cut here
            nodes[node.parent_id].children.remove(node)
            roots.append(node)
            reached |= {id(each) for _, each, _ in walk([node])}
    return roots


def walk(roots: Sequence[Node]) -> Iterator[tuple[int, Node, str]]:
    """Yield (depth, node, the lines that lead to it) from top to bottom."""
    stack = [(0, node, "", "") for node in reversed(roots)]
    while stack:
        depth, node, before, last = stack.pop()
        yield depth, node, before + last
        if last:
            before += "   " if last == "└─ " else "│  "
        for at, child in enumerate(reversed(node.children)):
            stack.append((depth + 1, child, before, "├─ " if at else "└─ "))


def waterfall(trace: Json, width: int, color: bool = False) -> Iterator[str]:
    """Draw a trace: a line a span, with what it is, how long it took, and when.

    width: columns of the terminal. color: by ANSI codes.
    """
    width = max(LEAST_WIDTH, min(width, MOST_WIDTH))
    roots = tree(trace)
    if not roots:
        return
    nodes = [node for _, node, _ in walk(roots)]
    start_us = min(node.start_us for node in nodes)
    total_us = max(1, max(node.start_us + node.duration_us for node in nodes) - start_us)
    services = list(dict.fromkeys(node.service for node in nodes))
    errors = sum(node.error for node in nodes)
    paint = _painter(color)

    head = f"trace {trace['traceID']}"
    facts = [
        _local(start_us),
        _duration(total_us),
        _count(len(nodes), "span"),
        _count(len(services), "service"),
    ]
    if errors:
        facts.append(_count(errors, "error"))
    yield paint(_BOLD, head) + "  " + "  ".join(facts)

    names = int(width * NAMES)
    bars = width - names - DURATION - 3
    for depth, node, lines in walk(roots):
        # Deep trees would push the names out of the picture.
        room = names - 12
        lead = lines if len(lines) <= room else "…" + lines[-room + 1 :]
        label = f"{printable(node.service)} {printable(node.name)}"
        mark = {"client": " →", "producer": " →"}.get(node.kind, "")
        label = cut(label, names - len(lead) - len(mark) - 2) + mark
        if node.error:
            label += " ✗"
        text = pad(lead + label, names)
        hue = _RED if node.error else _SERVICES[services.index(node.service) % len(_SERVICES)]
        shown = paint(_DIM, text[: len(lead)]) + paint(hue, text[len(lead) :])
        if depth == 0 and node.parent_id:
            shown = paint(hue, text)
        bar = _bar(node.start_us - start_us, node.duration_us, total_us, bars)
        yield f"{shown} {_duration(node.duration_us):>{DURATION}} {paint(hue, bar)}".rstrip()


def listing(summaries: Sequence[Json], width: int, color: bool = False) -> Iterator[str]:
    """List traces: time, id, duration, spans, errors, services, and what they are of."""
    paint = _painter(color)
    width = max(LEAST_WIDTH, width)
    header = f"{'TIME':<19} {'TRACE':<32} {'DURATION':>8} {'SPANS':>5} {'ERR':>4} {'SVC':>4}  ROOT"
    yield paint(_DIM, header)
    for each in summaries:
        facts = (
            f"{_local(each['start_ns'] // 1000, False)} {each['traceID']:<32} "
            f"{_duration(each['duration_ns'] // 1000):>8} {each['spans']:>5} "
        )
        errors = f"{each['errors'] or '-':>4}"
        root = f"{printable(each['service'])} {printable(each['name'])}"
        # What is left of the line, but enough to tell one from another.
        room = max(24, width - len(facts) - 11)
        yield (
            facts
            + (paint(_RED, errors) if each["errors"] else errors)
            + f" {each['services']:>4}  {cut(root, room)}"
        )


def printable(text: str) -> str:
    """Escape what would move a terminal's cursor or turn its writing direction."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "backslashreplace").decode()
        for each in text
    )


def columns(text: str) -> int:
    """Count the columns that a terminal takes for a text."""
    if text.isascii():
        return len(text)
    return sum(_width(each) for each in text)


def cut(text: str, room: int) -> str:
    """Shorten to `room` columns, the end being replaced by an ellipsis."""
    if columns(text) <= room:
        return text
    taken, used = [], 1
    for each in text:
        used += _width(each)
        if used > room:
            break
        taken.append(each)
    return "".join(taken) + "…"


def pad(text: str, room: int) -> str:
    """Fill up to `room` columns."""
    return text + " " * max(0, room - columns(text))


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _bar(offset_us: int, duration_us: int, total_us: int, room: int) -> str:
    """Draw when and how long, to an eighth of a column; never nothing at all."""
    start = min(offset_us * room // total_us, room - 1)
    eighths = max(1, min(round(duration_us * room * 8 / total_us), (room - start) * 8))
    full, rest = divmod(eighths, 8)
    return " " * start + "█" * full + (_EIGHTHS[rest] if rest else "")


def _duration(us: int) -> str:
    """Write a duration with three digits: `87µs`, `1.24ms`, `12.3ms`, `2.50s`."""
    if us < 1000:
        return f"{us}µs"
    value, unit = (us / 1e3, "ms") if us < 999_500 else (us / 1e6, "s")
    if unit == "s" and value >= 600:
        return f"{value / 60:.1f}min"
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"


def _local(us: int, millis: bool = True) -> str:
    seconds, rest = divmod(us, 1_000_000)
    try:
        text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return "----------" + " --:--:--"
    return f"{text}.{rest // 1000:03}" if millis else text


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _painter(color: bool) -> Any:
    return (lambda code, text: f"{code}{text}{_PLAIN}") if color else (lambda code, text: text)
