"""The files that uprobes are on, each of them until no process runs it any more.

A uprobe keeps its file, and the file system that this is on, from being let go, and a host
that builds or unpacks programs runs ever new ones. That the last process of a file has
ended nobody tells, so it is looked for: cheaply where a process that is known lives on, and
else in what all processes map.
"""

from __future__ import annotations

import os
import time

from tracer.kernel import uprobes
from tracer.runtimes.watch import FileId, Runtimes

# How often processes are looked for at most, in seconds, and as a part of all time.
EVERY_S, SHARE = 10.0, 0.01


class Probed:
    """Used from one thread at a time."""

    def __init__(self, runtimes: Runtimes) -> None:
        self._runtimes = runtimes
        self._probes: dict[FileId, list[uprobes.Uprobe]] = {}
        self._users: dict[int, tuple[FileId, ...]] = {}
        self.due = time.monotonic() + EVERY_S

    def add(self, file: FileId, probe: uprobes.Uprobe) -> None:
        """Keep a uprobe that is on a file."""
        self._probes.setdefault(file, []).append(probe)

    def has(self, file: FileId) -> bool:
        """Tell whether there are uprobes on a file."""
        return file in self._probes

    def uses(self, pid: int, *files: FileId) -> None:
        """Take note of what a process runs."""
        probed = tuple(file for file in files if file in self._probes)
        if probed:
            self._users[pid] = probed
        else:
            self._users.pop(pid, None)

    def let_go(self, file: FileId) -> None:
        """Take the uprobes off a file; the next process that runs it is its first."""
        self._runtimes.gone(file)
        uprobes.take_off(self._probes.pop(file, ()))

    def sweep(self) -> None:
        """Let go of the files that nobody runs; to be called once it is due."""
        began = time.monotonic()
        self._users = {
            pid: files for pid, files in self._users.items() if os.path.exists(f"/proc/{pid}")
        }
        idle = self._probes.keys() - {file for files in self._users.values() for file in files}
        if idle:
            try:
                idle -= self._runtimes.in_use(idle)
            except OSError:  # no descriptor to look with: nobody knows
                idle = set()
        now = time.monotonic()
        self.due = now + max(EVERY_S, (now - began) / SHARE)
        for file in idle:
            self.let_go(file)

    def close(self) -> None:
        """Take all uprobes off."""
        probes = [probe for of_file in self._probes.values() for probe in of_file]
        self._probes.clear()
        uprobes.take_off(probes)
