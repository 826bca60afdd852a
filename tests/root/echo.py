"""The Echo servers and clients of workloads/grpc, each in its own language."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from tests.root.harness import ROOT, WORKLOADS, Process, run

LANGUAGES = ("python", "go", "node", "java")
SERVICE = "wirespan.test.Echo"


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Call:
    """What a client knows of a call it made; messages are those it sent and received."""

    method: str
    status: str
    sent: int
    received: int


@functools.cache
def command(language: str) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a peer, fetched and built where need be."""
    if language == "python":
        return [sys.executable, str(WORKLOADS / "grpc" / "echo.py")], {}
    built = run([ROOT / "scripts" / "peers.sh", language], timeout=600, cwd=ROOT).strip()
    if language == "go":
        return [built], {}
    if language == "node":
        return ["node", str(WORKLOADS / "grpc" / "node" / "echo.js")], {"NODE_PATH": built}
    # The quick compiler alone: these processes live for a second or two.
    return ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{built}:{built}/*", "Echo"], {}


class Server:
    """A running Echo server; `port` is where it listens."""

    def __init__(self, language: str, log: Path) -> None:
        argv, env = command(language)
        self.process = Process([*argv, "serve"], log, env=env, stdout=subprocess.PIPE, text=True)
        assert self.process.popen.stdout is not None
        # Blocks until it is up; a server that fails to start closes its end.
        line = self.process.popen.stdout.readline()
        assert line, f"{language} server: {self.process.said()}"
        self.port = int(line)

    def stop(self) -> None:
        self.process.stop()
        assert self.process.popen.stdout is not None
        self.process.popen.stdout.close()


class Client:
    """A running Echo client, whose connections last until `reconnect` or `stop`."""

    def __init__(self, language: str, port: int, log: Path, connections: int = 1) -> None:
        argv, env = command(language)
        self.language = language
        self.process = Process(
            [*argv, "call", str(port), str(connections)],
            log,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # What hangs is ended, and the reads below see the end of its output.
        self._watchdog = threading.Timer(90.0, self.process.popen.kill)
        self._watchdog.start()

    def calls(self, kind: str, calls: int, concurrency: int = 1, size: int = 10) -> list[Call]:
        """Make calls of a kind and return what the client says of each."""
        out, into = self.process.popen.stdout, self.process.popen.stdin
        assert out is not None and into is not None
        into.write(f"{kind} {calls} {concurrency} {size}\n")
        into.flush()
        done = []
        while (line := out.readline()).strip():
            done.append(Call(**json.loads(line)))
        assert line and len(done) == calls, f"{self.language} client: {self.process.said()}"
        return done

    def all(self, plan: Sequence[tuple[str, int, int, int]]) -> list[Call]:
        return [call for step in plan for call in self.calls(*step)]

    def reconnect(self) -> None:
        self.calls("reconnect", 0)

    def stop(self) -> None:
        self._watchdog.cancel()
        popen = self.process.popen
        assert popen.stdout is not None and popen.stdin is not None
        popen.stdin.close()
        try:
            # Its own end, so that its connections are closed in the regular way.
            popen.wait(10)
        finally:
            self.process.stop()
            popen.stdout.close()
