#!/usr/bin/env python3
"""Generate docs/reference/cli.md from --help: no argument writes, --check compares.

Run by the project's own Python: `.venv/bin/python scripts/gen_reference.py`.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLI = ROOT / "docs" / "reference" / "cli.md"


def cli() -> str:
    """The command line reference: the help of every command, as a terminal shows it."""
    # argparse fills lines to the terminal's width, and would put this machine's values in.
    os.environ["COLUMNS"] = "100"
    os.environ.pop("WIRESPAN_SOCKET", None)
    sys.path.insert(0, str(ROOT))
    from tracer.options import build_parser

    parser = build_parser()
    parts = ["# Command line\n", "Generated from `--help` by `scripts/gen_reference.py`.\n"]
    parts += [_section("wirespan", parser)]
    parts += [_section(command.prog, command) for command in _commands(parser)]
    return "\n".join(parts)


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    return f"## {name}\n\n```text\n{parser.format_help()}```\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def main() -> int:
    """Write, or with --check compare and return 1 where the file is out of date."""
    made = cli()
    if sys.argv[1:] != ["--check"]:
        CLI.parent.mkdir(parents=True, exist_ok=True)
        CLI.write_text(made, encoding="utf-8")
        return 0
    found = CLI.read_text(encoding="utf-8") if CLI.exists() else ""
    if found == made:
        return 0
    name = str(CLI.relative_to(ROOT))
    sys.stdout.writelines(
        difflib.unified_diff(found.splitlines(True), made.splitlines(True), name, "generated")
    )
    print(f"wirespan: {name} is not what --help says", file=sys.stderr)
    print("hint: make fix", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
