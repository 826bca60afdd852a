"""What tracing costs here: `python -m bench`, or `make bench ARGS=...`.

Runs nginx and wrk untraced and traced in turns, then smaller phases, prints a page and
writes it with its plot. Everything it starts is ended by pid, also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import latency, loads, others, pipeline, report, rounds, stored, wrk
from bench.compare import rounds as compare
from bench.files import save
from bench.machine import Machine
from bench.mariadb import MariaDb
from bench.nginx import Nginx
from bench.processes import BenchError, ended_by_signals, free_port
from bench.results import Results
from bench.rounds import Load
from bench.sink import Sink
from tracer.errors import WirespanError

PHASES = {
    "rounds": "nginx untraced and traced in turns",
    "programs": "kernel time of each eBPF program",
    "others": "cost to system calls that are not traced",
    "idle": "the tracer's CPU time with nothing to trace",
    "latency": "exchange's end to span in the receiver",
    "store": "memory with the embedded collector and its store",
    "pipeline": "the user-space pipeline alone",
    "compare": "beside OpenTelemetry's SDK and Envoy",
}
PAGE = "benchmarks.md"
# By phase.
PLOTS = {"rounds": "benchmarks.svg", "compare": "benchmarks-compare.svg"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(words)
    try:
        with ended_by_signals():
            results = _run(options, shlex.join(["python", "-m", "bench", *words]))
            _write(results, options)
    except (BenchError, WirespanError) as error:
        print(f"bench: {error}", file=sys.stderr)
        if isinstance(error, WirespanError) and error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; nothing written", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rounds", type=_count, metavar="N", help="of each kind (default: 5; 2 with --quick)"
    )
    parser.add_argument(
        "--seconds", type=_count, metavar="N", help="of each load (default: 4; 1 with --quick)"
    )
    parser.add_argument(
        "--connections", type=_count, default=32, metavar="N", help="of wrk (default: 32)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short pass: shows that it works, not how fast"
    )
    parser.add_argument(
        "--phase",
        action="append",
        choices=PHASES,
        help="only this one; may be repeated (default: all)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all raw numbers there")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="DIR",
        help=f"write {PAGE} and its plots there (default: docs after a whole run, else nowhere)",
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _run(options: argparse.Namespace, command: str) -> Results:
    quick = options.quick
    load = Load(options.seconds or (1 if quick else 4), options.connections)
    turns = options.rounds or (2 if quick else 5)
    results = Results(Machine.this(), command, load)
    if os.geteuid() != 0:
        raise BenchError("needs root: it loads eBPF programs")
    if results.machine.tracers:
        _say("another tracer runs already: what it costs is in every figure")
    chosen = [phase for phase in PHASES if not options.phase or phase in options.phase]

    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wirespan-bench-")))
        # nginx's worker is another user where `user root` is not allowed.
        directory.chmod(0o755)
        nginx = stack.enter_context(Nginx(directory / "nginx"))
        sink = stack.enter_context(Sink())
        program = others.build(directory)

        def run_rounds() -> None:
            results.rounds = rounds.run(nginx, sink, load, turns, _say)

        def run_programs() -> None:
            results.programs = rounds.programs(nginx, sink, load)

        def run_others() -> None:
            calls = 20_000 if quick else 200_000
            results.others = others.run(program, sink, min(turns, 3), calls, _say)

        def run_idle() -> None:
            results.idle = others.idle(program, sink, 1.0 if quick else 10.0, 50_000)

        def run_latency() -> None:
            results.latency = latency.run(nginx, sink, 2.0 if quick else 20.0)

        def run_store() -> None:
            results.stored = stored.run(nginx, 2.0 if quick else 10.0)

        def run_pipeline() -> None:
            traffic = _capture(nginx, load.connections, directory, 2 if quick else 3)
            results.pipeline = pipeline.run(traffic, min(turns, 3), 50_000 if quick else 1_000_000)

        def run_compare() -> None:
            place = directory / "compare"
            place.mkdir(mode=0o755)
            compared = options.rounds or (1 if quick else 3)
            results.compared = compare.run(place, sink, compared, 1 if quick else 2, _say)

        phases: dict[str, Callable[[], None]] = {
            "rounds": run_rounds,
            "programs": run_programs,
            "others": run_others,
            "idle": run_idle,
            "latency": run_latency,
            "store": run_store,
            "pipeline": run_pipeline,
            "compare": run_compare,
        }
        for number, phase in enumerate(chosen, 1):
            _say(f"[{number}/{len(chosen)}] {PHASES[phase]}")
            phases[phase]()
    return results


def _capture(
    nginx: Nginx, connections: int, directory: Path, seconds: int
) -> dict[str, pipeline.Records]:
    """Record traffic of each kind that the pipeline is to be measured with."""
    traffic = {
        pipeline.HTTP1: pipeline.capture(
            nginx.port, lambda: wrk.start(nginx.url, 1, connections), pipeline.KEEP_RECORDS
        )
    }
    port = free_port()
    with loads.child("serve-grpc", port, 600):
        load = partial(loads.child, "grpc", port, seconds)
        traffic[pipeline.GRPC] = pipeline.capture(port, load)
    with MariaDb(directory / "mariadb") as server:
        load = partial(loads.child, "mysql", server.port, seconds)
        traffic[pipeline.MYSQL] = pipeline.capture(server.port, load)
    return traffic


def _write(results: Results, options: argparse.Namespace) -> None:
    whole = not options.quick and not options.phase
    directory: Path | None = options.docs or (Path("docs") if whole else None)
    drawn = report.charts(results) if directory else {}
    text = report.page(results, {phase: PLOTS[phase] for phase in drawn})
    print(text, end="")
    if options.json:
        save(options.json, results.json(), _say)
    if directory:
        save(directory / PAGE, text, _say)
        for phase, picture in drawn.items():
            save(directory / PLOTS[phase], picture, _say)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
