"""How often spans are linked rightly: `python -m bench.truth`, or `make truth ARGS=...`.

Runs each workload at each concurrency under a tracer of its ports, and judges every upstream
span by what is known of its request. Everything it starts is ended by pid, also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.files import save
from bench.machine import Machine
from bench.processes import BenchError, ended_by_signals
from bench.truth import page
from bench.truth.plot import chart
from bench.truth.run import Run, run
from bench.truth.workload import Workload
from bench.truth.workloads import WORKLOADS, chosen, versions
from tracer.errors import WirespanError

CONCURRENCY = (1, 8, 32, 128)
REQUESTS = 2000
DOCS = Path("docs/reference")
PAGE, PLOT = "linking.md", "linking.svg"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(words)
    try:
        workloads = chosen(options.workload)
        if options.list:
            _list(workloads)
            return 0
        with ended_by_signals():
            runs, skipped = _read(options.read) if options.read else _run(workloads, options)
        if options.output == "markdown":
            print(page.table(runs))
        for name, why in skipped.items():
            _say(f"{name} was not run: {why}")
        if options.write:
            command = shlex.join(["python", "-m", "bench.truth", *words])
            text = page.page(
                runs,
                skipped,
                machine=Machine.this(),
                versions=versions(),
                command=command,
                plot=PLOT,
            )
            save(DOCS / PAGE, text, _say)
            save(DOCS / PLOT, chart(runs), _say)
    except (BenchError, WirespanError) as error:
        print(f"truth: {error}", file=sys.stderr)
        if isinstance(error, WirespanError) and error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("truth: interrupted; nothing written", file=sys.stderr)
        return 130
    return 1 if options.strict and not all(each.met for each in runs) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.truth", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "workload",
        nargs="*",
        help="only these: names or families, with wildcards (default: all; --list names them)",
    )
    parser.add_argument(
        "--concurrency",
        type=_counts,
        default=CONCURRENCY,
        metavar="N,...",
        help=f"requests in flight (default: {','.join(map(str, CONCURRENCY))})",
    )
    parser.add_argument(
        "--requests",
        type=_count,
        default=REQUESTS,
        metavar="N",
        help=f"of each run; a quarter of them where one is in flight (default: {REQUESTS})",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the delays (default: 1)")
    parser.add_argument("--output", choices=("markdown", "json"), default="markdown")
    parser.add_argument("--list", action="store_true", help="name the workloads and end")
    parser.add_argument(
        "--write", action="store_true", help=f"write {DOCS / PAGE} and its plot, {PLOT}"
    )
    parser.add_argument(
        "--read",
        type=Path,
        action="append",
        metavar="FILE",
        help="run nothing, take what --output json wrote; may be repeated",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep the tracer's spans there, a file a run"
    )
    parser.add_argument(
        "--tracer-argument",
        action="append",
        default=[],
        metavar="WORD",
        help="passed on to `wirespan run`; may be repeated (write --tracer-argument=--WORD)",
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 where a target is missed")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(each) for each in text.split(","))


def _list(workloads: Sequence[Workload]) -> None:
    for each in workloads:
        calls = f"{each.calls} calls" if each.calls > 1 else "1 call"
        target = f"right >= {each.right_target:.1%}, wrong <= {each.wrong_target:.1%}"
        print(f"{each.family:12} {each.name:30} {calls:8} {target}")


def _run(
    workloads: Sequence[Workload], options: argparse.Namespace
) -> tuple[list[Run], dict[str, str]]:
    """Return the runs, and the workloads that could not run with the reason."""
    if os.geteuid() != 0:
        raise BenchError("needs root: it loads eBPF programs")
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    runs: list[Run] = []
    skipped: dict[str, str] = {}
    for number, workload in enumerate(workloads, 1):
        where = f"[{number}/{len(workloads)}] {workload.name}"
        try:
            if workload.build:
                workload.build()
            for concurrency in options.concurrency:
                done = _one(workload, concurrency, options)
                runs.append(done)
                if options.output == "json":
                    # At once: what is done is not lost when the rest is interrupted.
                    print(page.line(done), flush=True)
                _say(f"{where}, {concurrency} in flight: {_sum(done)}")
        except BenchError as error:
            # One service that does not start must not cost the other rows.
            _say(f"{where}: {error}")
            skipped[workload.name] = str(error).splitlines()[0]
    if not runs:
        raise BenchError("no workload could run")
    return runs, skipped


def _one(workload: Workload, concurrency: int, options: argparse.Namespace) -> Run:
    return run(
        workload,
        requests=options.requests if concurrency > 1 else max(1, options.requests // 4),
        concurrency=concurrency,
        seed=options.seed,
        keep=options.keep and options.keep / f"{workload.name}-{concurrency}.jsonl",
        tracer_arguments=tuple(options.tracer_argument),
    )


def _sum(done: Run) -> str:
    counts = done.counts
    text = f"{done.requests} requests in {done.seconds:.1f} s, right {counts.right}, "
    text += f"orphan {counts.orphan}, wrong {counts.wrong}"
    rest = {
        "failed": done.failed,
        "missing": counts.missing,
        "doubled": counts.doubled,
        "split": counts.split,
        "unpaired": counts.unpaired,
    }
    text += "".join(f", {name} {number}" for name, number in rest.items() if number)
    if counts.evidence:
        text += f"; evidence {dict(counts.evidence)}"
    return text + (f"; lost {done.losses}" if done.losses else "")


def _read(files: Sequence[Path]) -> tuple[list[Run], dict[str, str]]:
    """Read runs back, later files over earlier ones, in the order of the table."""
    order = {each.name: at for at, each in enumerate(WORKLOADS)}
    runs: dict[tuple[str, int], Run] = {}
    for file in files:
        try:
            with file.open(encoding="utf-8") as lines:
                runs.update({(each.name, each.concurrency): each for each in page.read(lines)})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise BenchError(f"cannot read {file}: {error}") from None
    last = len(order)
    return sorted(runs.values(), key=lambda r: (order.get(r.name, last), r.concurrency)), {}


def _say(text: str) -> None:
    print(f"truth: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
