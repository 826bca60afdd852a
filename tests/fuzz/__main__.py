"""Run fuzz targets one after the other and write down what they came to: `make fuzz`.

The page keeps the rows of targets that were not run; a line of JSON for each lies beside it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from bench.markdown import table
from tracer.installed import version as wirespan_version

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "reference"
PAGE, LINES = "fuzz.md", "fuzz.jsonl"
WHAT = {
    "http1": "`ebpf/protocols/http1.h`, detection, pairing",
    "http2": "`ebpf/protocols/http2.h`: frames, streams, header blocks",
    "mysql": "`ebpf/protocols/mysql*.h`",
    "postgresql": "`ebpf/protocols/postgresql*.h`",
    "redis": "`ebpf/protocols/redis*.h`",
    "hpack": "`tracer/protocols/hpack_state.py` against the library `hpack`",
    "capture": "`tracer/replay/`: pcap and pcapng files, packets, TCP streams",
}
PYTHON = ("hpack", "capture")
HEADING = """\
Written by `make fuzz` (`FUZZ_SECONDS=600`, the default, for each target; `ARGS=http1` for one).
Each row is that of the target's last run, whose corpus is kept in `build/cache/fuzz/`, reduced
to the inputs that reach what it reached, and begun from by the next one; `tests/corpus/` is
begun from always. *Coverage* counts libFuzzer's edges."""
TARGETS = """\
Targets in C run each input whole, byte by byte and cut at random, and compare the answers
(tests/host/fuzz_connection.c); those in Python compare with the library, and with themselves
without a memo (tests/fuzz/python.py). That the kernel's side gives what the host build gives is
shown by tests/root/test_differential.py."""
HEAD = ("target", "what", "seconds", "inputs run", "coverage", "kept", "found", "run")


@dataclass(frozen=True, slots=True)
class Result:
    """One target. coverage: libFuzzer's edges; kept: inputs in the corpus afterwards."""

    name: str
    seconds: int
    runs: int
    coverage: int
    kept: int
    found: str
    date: str
    wirespan: str
    tools: str


def run(name: str, seconds: int) -> Result:
    """Run one target for some seconds; what it says in case of failure goes to standard error."""
    done = subprocess.run(
        [ROOT / "scripts" / "fuzz.sh", name],
        cwd=ROOT,
        env={**os.environ, "FUZZ_SECONDS": str(seconds)},
        stdout=subprocess.PIPE,
        text=True,
    )
    print(done.stdout, end="", flush=True)
    runs = re.search(r"^Done (\d+) runs in (\d+) second", done.stdout, re.M)
    coverage = re.search(r"cov: (\d+)", done.stdout)
    corpus = ROOT / "build" / "cache" / "fuzz" / name
    return Result(
        name,
        int(runs[2]) if runs else 0,
        int(runs[1]) if runs else 0,
        int(coverage[1]) if coverage else 0,
        len(list(corpus.iterdir())) if corpus.exists() else 0,
        "nothing" if done.returncode == 0 else "**an input that fails**",
        datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        wirespan_version(),
        _tools(name),
    )


def _tools(name: str) -> str:
    if name in PYTHON:
        return f"Atheris {version('atheris')}, Python {platform.python_version()}"
    said = subprocess.run([os.environ.get("CLANG", "clang-19"), "--version"], capture_output=True)
    found = re.search(rb"version (\d[\d.]*)", said.stdout)
    return f"libFuzzer, ASan, UBSan of clang {found[1].decode() if found else '?'}"


def page(results: Sequence[Result]) -> str:
    """Write the whole page."""
    rows = [
        (
            f"`{each.name}`",
            WHAT[each.name],
            str(each.seconds),
            f"{each.runs:,}",
            f"{each.coverage:,}",
            str(each.kept),
            each.found,
            f"{each.date}, {each.wirespan}",
        )
        for each in results
    ]
    tools = sorted({each.tools for each in results})
    return (
        "\n\n".join(
            (
                "# Fuzzing",
                HEADING,
                TARGETS,
                table(HEAD, rows),
                "\n".join(f"- {each}" for each in tools),
            )
        )
        + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 nothing was found, 1 something, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help=f"of {', '.join(WHAT)} (default: all)")
    parser.add_argument("--seconds", type=int, default=600, metavar="N", help="each (default: 600)")
    parser.add_argument("--write", action="store_true", help=f"write docs/reference/{PAGE}")
    options = parser.parse_args(arguments)
    if unknown := set(options.target) - WHAT.keys():
        parser.error(f"no target is named {', '.join(sorted(unknown))}")
    lines = DOCS / LINES
    kept = {}
    if lines.exists():
        kept = {
            one["name"]: Result(**one) for one in map(json.loads, lines.read_text().splitlines())
        }
    failed = False
    for name in options.target or WHAT:
        result = kept[name] = run(name, options.seconds)
        failed |= result.found != "nothing"
        if options.write:
            results = [kept[each] for each in WHAT if each in kept]
            lines.write_text("".join(json.dumps(asdict(each)) + "\n" for each in results))
            (DOCS / PAGE).write_text(page(results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
