"""The load: one program that asks services of every kind at once, at their most or at a rate."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError, Child


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked. rate: requests/s, 0 for as many as there can be."""

    kind: str
    port: int
    workers: int
    rate: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of one target.

    requests: all that were answered, with one of each worker before time began; seconds: it
    took from then on; latency_ns: of each of those that came then, at a rate, with the time that
    they had to wait since none of the workers was free.
    """

    requests: int
    seconds: float
    latency_ns: list[int]


class Load(Child):
    """The program of parts.load(), one for all loads of a turn."""

    def __init__(self, program: Path) -> None:
        # The services are to have the other cores.
        super().__init__([program, "ask"], env={**os.environ, "GOMAXPROCS": "1"}, pipes=True)

    def ask(self, seconds: float, targets: Sequence[Target]) -> list[Answered]:
        """Ask all targets for `seconds`. Raises BenchError where a request failed."""
        words = [f"{t.kind},127.0.0.1:{t.port},{t.workers},{t.rate}" for t in targets]
        assert self.popen.stdin and self.popen.stdout
        try:
            self.popen.stdin.write(f"{seconds} {' '.join(words)}\n")
            self.popen.stdin.flush()
        except OSError:
            raise BenchError(f"the load has ended:\n{self.said()}") from None
        answer = self.popen.stdout.readline()
        if not answer:
            raise BenchError(f"the load has ended:\n{self.said()}")
        results = json.loads(answer)
        if any(result.pop("failed") for result in results):
            raise BenchError(f"requests failed:\n{self.said()[:500]}")
        return [Answered(**result) for result in results]
