"""Uprobes go with the last process of the file that they are on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.root.harness import Tracer, wait_until
from tests.root.test_http1_servers import gohttp as gohttp
from tracer.probed import EVERY_S

PROGRAMS = 12


def links(pid: int) -> int:
    """How many programs a tracer has in their places."""
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += os.readlink(entry) in ("anon_inode:bpf_link", "anon_inode:[perf_event]")
    return found


@contextmanager
def serving(program: Path) -> Iterator[None]:
    with subprocess.Popen([program, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as it:
        assert it.stdout and it.stdout.readline()
        try:
            yield
        finally:
            it.kill()


def test_programs_that_come_and_go_leave_nothing(
    start_tracer: Callable[..., Tracer], gohttp: Path, tmp_path: Path
) -> None:
    """Each a file of its own, as where programs are built: so are its uprobes."""
    lasting = tmp_path / "lasting"
    shutil.copy(gohttp, lasting)
    pid = start_tracer().process.pid
    none = links(pid)
    with serving(lasting):
        # net/http's round trip, and a channel's two ends.
        wait_until(lambda: links(pid) >= none + 3, "the first is looked at")
        for number in range(PROGRAMS):
            program = tmp_path / f"program{number}"
            shutil.copy(gohttp, program)
            before = links(pid)
            with serving(program):
                wait_until(lambda n=before: links(pid) > n, "it is looked at")  # type: ignore[misc]
            program.unlink()
        wait_until(lambda: links(pid) <= none + 3, "they are let go", 5 * EVERY_S)
        assert links(pid) == none + 3, "and not those of the one that runs on"
    wait_until(lambda: links(pid) <= none, "nor is that one kept", 5 * EVERY_S)
    # That is not for good.
    with serving(lasting):
        wait_until(lambda: links(pid) >= none + 3, "it is looked at again")
