#!/usr/bin/env python3
"""Generate docs/reference/: no argument writes, --check compares.

cli.md comes from --help, losses.md from the table of losses, http1.md from the docstring
of the module that makes the spans; the other pages are written by hand. Run by the
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
    from collector.collector import MEANINGS
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
        "all of them are losses. Generated from `collector/collector.py`.\n"
    )
    tables = [
        table("In the kernel", KERNEL.values()),
        table("In the tracer", USER.values()),
        table("In a collector", (Loss(*each) for each in MEANINGS.items())),
    ]
    return "\n".join([head, *tables, collected])


def http1() -> str:
    """How HTTP/1 exchanges become spans, from the module that decides it."""
    from tracer.protocols import http1_shape

    doc = http1_shape.__doc__ or ""
    return f"# HTTP/1 spans\n\nGenerated from `tracer/protocols/http1_shape.py`.\n\n{doc}"


PAGES: Mapping[str, Callable[[], str]] = {"cli.md": cli, "losses.md": losses, "http1.md": http1}


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
