"""What the figures were measured on: nothing that names the machine or its user."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.traced import others
from tracer.installed import version


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts, for people. load: runnable tasks before the benchmark began, 1 minute's mean;
    tracers: others that ran then."""

    date: str
    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    load: float
    tracers: int
    wirespan: str
    python: str
    nginx: str
    wrk: str

    @classmethod
    def this(cls) -> Machine:
        """Look around."""
        return cls(
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            cpu=_find(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text())
            or platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30,
            kernel=f"Linux {platform.release()} {platform.machine()}",
            load=os.getloadavg()[0],
            tracers=len(others()),
            wirespan=version(),
            python=platform.python_version(),
            nginx=_find(r"nginx/(\S+)", _says("nginx", "-v")),
            wrk=_find(r"wrk (?:debian/)?(\S+)", _says("wrk", "-v")),
        )


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.M)
    return found[1].strip() if found else ""


def _says(*argv: str) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout
