"""Do harm while a load runs and count what becomes of it: `make faults`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from bench.faults import page
from bench.faults.scene import Fault, Outcome, Scene
from bench.faults.table import FAULTS
from bench.machine import Machine
from bench.processes import BenchError, ended_by_signals
from tracer.errors import WirespanError

DOCS = Path("docs/reference")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 all held, 1 not, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    chosen = choose(options.fault)
    if not chosen:
        print(f"faults: none is named {' or '.join(options.fault)}", file=sys.stderr)
        print("hint: --list names them", file=sys.stderr)
        return 2
    if options.list:
        for fault in chosen:
            print(f"{fault.name:20} {fault.seconds[0]:5g} {fault.seconds[1]:6g} s  {fault.what}")
        return 0
    try:
        with ended_by_signals():
            outcomes = _run(chosen, options)
    except (BenchError, WirespanError) as error:
        print(f"faults: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("faults: interrupted", file=sys.stderr)
        return 130
    return 0 if all(outcome.held for outcome in outcomes) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults", description=__doc__.split("\n")[0]
    )
    parser.add_argument("fault", nargs="*", help="only these, wildcards allowed (default: all)")
    parser.add_argument("--short", action="store_true", help="seconds each instead of minutes")
    parser.add_argument("--seconds", type=float, metavar="N", help="how long each fault lasts")
    parser.add_argument("--list", action="store_true", help="name the faults and end")
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"put the results into {DOCS / page.PAGE}, which keeps those of other faults",
    )
    return parser


def choose(names: Sequence[str]) -> list[Fault]:
    """The faults that any of the names, with wildcards, means; all for none."""
    return [f for f in FAULTS if not names or any(fnmatch(f.name, name) for name in names)]


def run(fault: Fault, short: bool, seconds: float | None = None) -> Outcome:
    """Run one fault in a directory of its own. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="wirespan-faults-") as name:
        directory = Path(name)
        # nginx's worker is another user where `user root` is not allowed.
        directory.chmod(0o755)
        with Scene(fault, directory, short, _say) as scene:
            if seconds is not None:
                scene.seconds = seconds
            fault.run(scene)
        return scene.outcome


def _run(chosen: Sequence[Fault], options: argparse.Namespace) -> list[Outcome]:
    if os.geteuid() != 0:
        raise BenchError("needs root: it loads eBPF programs")
    machine = Machine.this()
    outcomes: list[Outcome] = []
    for number, fault in enumerate(chosen, 1):
        _say(f"[{number}/{len(chosen)}] {fault.name}: {fault.what}")
        try:
            outcome = run(fault, options.short, options.seconds)
        except BenchError as error:
            outcome = Outcome(fault.name, options.short)
            outcome.checks.append(("it could be tried", False, str(error)))
            _say(f"  FAILED: {error}")
        outcome.version, outcome.kernel = machine.wirespan, machine.kernel
        outcomes.append(outcome)
        if options.write:
            # At once: what is done is not lost when the rest is interrupted.
            page.write(DOCS, outcome, machine)
    print(page.table(outcomes))
    return outcomes


def _say(text: str) -> None:
    print(f"faults: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
