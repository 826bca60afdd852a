"""One run: a workload's services, a tracer of what we started, the load, and the verdict."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError, Child, answers, free_port
from bench.traced import COMMAND, Status
from bench.truth import load
from bench.truth.headers import named
from bench.truth.judge import Counts, Truth, judge, read
from bench.truth.workload import Service, Workload
from tracer.link.stitch import LINK_WAIT_NS

START_S = 60.0
# How long nothing must have come before it is taken for all: where as many spans have come as
# must be; and where not, as the tracer may hold some.
QUIET_S, MISSING_S, SETTLE_S = 0.5, LINK_WAIT_NS / 1e9 + 2.0, 60.0
LOG_BYTES = 4000


ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Run:
    """One row of the table.

    name, family, calls, right_target, wrong_target: of the workload.
    requests: answered as they should be; failed: not so.
    losses: what the tracer counted as lost, by name.
    """

    name: str
    family: str
    calls: int
    right_target: float
    wrong_target: float
    concurrency: int
    requests: int
    failed: int
    seconds: float
    counts: Counts
    losses: dict[str, int]

    @property
    def met(self) -> bool:
        """Whether both targets are, nothing is missing, doubled or split, and pairs are exact."""
        counts = self.counts
        return (
            counts.upstream > 0
            and counts.share(counts.right) >= self.right_target
            and counts.share(counts.wrong) <= self.wrong_target
            and not (
                self.failed or counts.missing or counts.doubled or counts.split or counts.unpaired
            )
        )


class Front(Child):
    """A front service, listening when the constructor returns."""

    def __init__(self, workload: Workload, port: int, upstream: str) -> None:
        argv, extra = workload.command(port, upstream)
        contract = {"PORT": str(port), "UPSTREAM": upstream, "CALLS": str(workload.calls)}
        super().__init__(argv, env={**os.environ, **extra, **contract}, cwd=ROOT)
        listens = self._ready if workload.ready else lambda: answers(port)
        try:
            self.wait_for(listens, "it listens", START_S)
        except BaseException:
            self.stop()
            raise

    def _ready(self) -> bool:
        return "ready" in self.said().splitlines()


class Upstream(Child):
    """The upstream service, listening when the constructor returns."""

    def __init__(self, port: int) -> None:
        super().__init__([sys.executable, "-m", "bench.truth.upstream", str(port)], cwd=ROOT)
        try:
            self.wait_for(lambda: "ready" in self.said(), "it listens", START_S)
        except BaseException:
            self.stop()
            raise


class Tracer(Child):
    """A tracer of this process and all it started, writing JSON to a file.

    It is attached when the constructor returns.
    """

    def __init__(self, directory: Path, *arguments: str) -> None:
        ready, self._socket = directory / "ready", directory / "control.sock"
        self.output = directory / "spans.jsonl"
        self.log = directory / "tracer.log"
        if not COMMAND.exists():
            raise BenchError("there is no wirespan command (make build)")
        argv = [str(COMMAND), "run", "--output", "json", "--ready-file", str(ready)]
        argv += ["--control-socket", str(self._socket), "--pid", str(os.getpid())]
        argv += ["--store", "none"]
        # The shell is replaced by the tracer: the same pid, its output in files of its own.
        shell = ["sh", "-c", 'exec "$@" >"$0" 2>"$LOG"', str(self.output), *argv, *arguments]
        env = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        super().__init__(shell, env={**env, "LOG": str(self.log)})
        try:
            self.wait_for(ready.exists, "it is attached", START_S)
        except BaseException:
            self.stop()
            raise

    def said(self) -> str:
        """What it said to people so far."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-LOG_BYTES:]
        return ""

    def settle(self, expected: int) -> None:
        """Wait until no spans have come for a while; longer while they are less than expected."""
        begin = since = time.monotonic()
        found = 0
        with self.output.open("rb") as output:
            while (now := time.monotonic()) - begin < SETTLE_S:
                if more := output.read():
                    found += more.count(b"\n")
                    since = now
                elif now - since > (QUIET_S if found >= expected else MISSING_S):
                    break
                time.sleep(0.05)

    def losses(self) -> dict[str, int]:
        """What it counted as lost, by name."""
        done = subprocess.run(
            [COMMAND, "status", "--json", "--control-socket", self._socket],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise BenchError(f"wirespan status failed: {done.stderr}")
        losses = Status.of(json.loads(done.stdout)).losses
        return {name: number for name, number in losses.items() if number}


def run(
    workload: Workload,
    *,
    requests: int,
    concurrency: int,
    seed: int,
    keep: Path | None = None,
    tracer_arguments: tuple[str, ...] = (),
) -> Run:
    """Start everything, load it, end everything, judge.

    keep: a file to copy the tracer's output to. Raises BenchError where something does not work.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wirespan-truth-")))
        directory.chmod(0o755)
        upstream = stack.enter_context((workload.upstream or _http)(directory))
        port = free_port()
        front = stack.enter_context(Front(workload, port, upstream.url))
        tracer = stack.enter_context(Tracer(directory, *tracer_arguments))
        try:
            done = load.run(
                port,
                requests=requests,
                concurrency=concurrency,
                calls=workload.calls,
                seed=seed,
                header=workload.header,
            )
        except BenchError as error:
            raise BenchError(f"{error}\n{front.said()[-LOG_BYTES:]}") from None
        tracer.settle(2 * len(done.ids) * (1 + workload.calls))
        losses = tracer.losses()
        if tracer.stop():
            raise BenchError(f"the tracer failed:\n{tracer.said()}")
        with tracer.output.open(encoding="utf-8") as lines:
            spans = list(read(lines))
        if workload.own_spans:
            spans += read(front.said().splitlines(), own=True)
        if keep:
            keep.write_bytes(tracer.output.read_bytes())
    truth = Truth(
        requests=frozenset(done.ids),
        calls=workload.calls,
        front_port=port,
        upstream_port=upstream.port,
        upstream_pid=upstream.pid,
        load_address=load.ADDRESS,
        named={each: named(workload.header, each)[1:] for each in done.ids},
    )
    return Run(
        workload.name,
        workload.family,
        workload.calls,
        workload.right_target,
        workload.wrong_target,
        concurrency,
        len(done.ids),
        len(done.failed),
        done.seconds,
        judge(spans, truth),
        losses,
    )


@contextlib.contextmanager
def _http(directory: Path) -> Iterator[Service]:
    port = free_port()
    with Upstream(port) as upstream:
        yield Service(port, upstream.pid, f"http://127.0.0.1:{port}")
