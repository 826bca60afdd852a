"""A running `wirespan run` whose spans go to the sink."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.processes import STOP_S, BenchError, Child, Memory, cpu_ns

COMMAND = Path(sys.executable).with_name("wirespan")


@dataclass(frozen=True, slots=True)
class ProgramRuns:
    """How often a program ran, and for how long."""

    hook: str
    runs: int
    ns: int


@dataclass(frozen=True, slots=True)
class Status:
    """What of `wirespan status --json` is used; see proto/wirespan/v1/control.proto.

    exported: counts of the exporter, empty without one; last_error: of it. stored: counts of
    the store, empty without one.
    """

    losses: Mapping[str, int]
    counts: Mapping[str, int]
    map_bytes: int
    programs: Mapping[str, ProgramRuns]
    exported: Mapping[str, int] = field(default_factory=dict)
    last_error: str = ""
    stored: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> Status:
        """Read a reply; 64-bit numbers are strings in protobuf's JSON."""
        return cls(
            losses={each["name"]: int(each["value"]) for each in reply["losses"]},
            counts={each["name"]: int(each["value"]) for each in reply["counts"]},
            map_bytes=sum(int(each["bytes"]) for each in reply["maps"]),
            programs={
                each["name"]: ProgramRuns(each["hook"], int(each["run_count"]), int(each["run_ns"]))
                for each in reply["programs"]
            },
            exported={
                each["name"]: int(each["value"])
                for each in reply.get("export", {}).get("counts", ())
            },
            last_error=reply.get("export", {}).get("last_error", ""),
            stored={
                each["name"]: int(each["value"])
                for each in reply.get("store", {}).get("counts", ())
            },
        )


class Tracer(Child):
    """The tracer of this whole host, attached when the constructor returns.

    endpoint: where spans go by OTLP/gRPC, "" for nowhere; within: a command that runs the
    command given behind it, in the same process; env: added to this process's environment;
    limit_s: how long it may take until it is attached.
    started_unix_ns: when it was started; ready_s: how long it took until it was attached.
    """

    def __init__(
        self,
        endpoint: str,
        *arguments: str,
        within: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        limit_s: float = 60.0,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="wirespan-bench-")
        base = Path(self._directory.name)
        ready, self.socket = base / "ready", base / "control.sock"
        if not COMMAND.exists():
            raise BenchError("there is no wirespan command (make build)")
        self.started_unix_ns = time.time_ns()
        super().__init__(
            [
                *(*within, str(COMMAND), "run", "--output", "none", "--ready-file", str(ready)),
                *(("--otlp-endpoint", endpoint, "--otlp-protocol", "grpc") if endpoint else ()),
                *("--control-socket", str(self.socket), *arguments),
            ],
            env={
                **{key: value for key, value in os.environ.items() if not key.startswith("OTEL_")},
                **(env or {}),
            },
        )
        try:
            self.wait_for(ready.exists, "it is attached", limit_s)
        except BaseException:
            self.stop()
            raise
        self.ready_s = (time.time_ns() - self.started_unix_ns) / 1e9

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = STOP_S) -> int:
        """End it: it empties its ring and its queues before."""
        try:
            return super().stop(how, timeout)
        finally:
            self._directory.cleanup()

    def status(self) -> Status:
        """Ask it, by the command that users have."""
        done = subprocess.run(
            [COMMAND, "status", "--json", "--control-socket", self.socket],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise BenchError(f"wirespan status failed: {done.stderr}")
        return Status.of(json.loads(done.stdout))

    def cpu_ns(self) -> int:
        """CPU time so far; that of eBPF programs counts for the processes they run in."""
        return cpu_ns(self.pid)

    def memory(self) -> Memory:
        """Resident memory now, and at its highest."""
        return Memory.of(self.pid)


def others() -> list[int]:
    """Pids of tracers that run already: what they cost would be in every figure."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"run" in words and any(Path(os.fsdecode(w)).name == "wirespan" for w in words[:3]):
            found.append(int(entry.name))
    return found
