"""Tracing with three capabilities and nothing else: an ordinary user's, and what root leaves."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.truth.workload import Command
from tests.root.conftest import Shared
from tests.root.harness import (
    ROOT,
    Tracer,
    assert_exact,
    run,
    running,
    unique,
    wirespan_command,
)
from tests.root.load import load
from tests.root.nginx import Nginx
from tests.root.test_link import called, measure, services, warm
from tests.root.unprivileged import UID, mounted, ordinary
from tracer.kernel.privileges import NUMBERS, TRACING

REQUESTS, CONNECTIONS = 600, 16
MASK = sum(1 << NUMBERS[name] for name in TRACING)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that an ordinary user may enter and write to, as pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="wirespan-test-") as name:
        os.chown(name, UID, UID)
        yield Path(name)


@pytest.fixture
def start(shared: Shared, directory: Path) -> Iterator[Callable[..., Tracer]]:
    """Start tracers that end before the directory they may use is removed."""
    shared.stop()
    tracers: list[Tracer] = []

    def begin(*args: Any, wrap: Callable[[list[str]], list[str]] = list) -> Tracer:
        # Of what this process starts: others may be busy on the host.
        tracers.append(Tracer(*args, "--pid", str(os.getpid()), wrap=wrap))
        return tracers[-1]

    yield begin
    for tracer in tracers:
        tracer.stop()


def statuses(pid: int) -> list[dict[str, str]]:
    """What the kernel says of each thread, by the name before the colon."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    assert len(texts) > 5  # libraries have threads of their own, too
    return [
        {name: value.strip() for name, _, value in (line.partition(":") for line in t.splitlines())}
        for t in texts
    ]


def assert_least(tracer: Tracer, uid: int, mask: int = MASK) -> None:
    """No thread holds, or can ever get, more than the capabilities of `mask`."""
    for status in statuses(tracer.process.pid):
        sets = {name: int(status[name], 16) for name in status if name.startswith("Cap")}
        assert sets == {"CapInh": 0, "CapPrm": mask, "CapEff": mask, "CapBnd": mask, "CapAmb": 0}
        assert status["Uid"].split() == [str(uid)] * 4, status
        assert status["NoNewPrivs"] == "1", status
        if uid:
            assert status["Gid"].split() == [str(pwd.getpwuid(uid).pw_gid)] * 4, status
            assert status["Groups"] == "", status


def in_reach(command: Callable[[int, str], Command], port: int, upstream: str) -> Command:
    argv, env = command(port, upstream)
    return mounted(argv), env


def assert_traces(tracer: Tracer, tmp_path: Path) -> None:
    """It sees another user's exchanges exactly, and reads their runtimes."""
    prefix, mark = unique(), tracer.mark()
    nginx = Nginx(tmp_path / "nginx")
    with running(nginx.process):
        done = load(nginx.port, prefix, REQUESTS, CONNECTIONS)
        spans = tracer.collect(lambda s: s.under(prefix), 2 * REQUESTS, mark=mark)
    assert_exact(spans, done)
    (name,) = {span.resource["service.name"] for span in spans.of("SERVER")}
    assert name == "nginx"  # which /proc/PID/exe of root's process tells
    for workload, evidence in (("fastapi-httpx", "context"), ("go-http", "goroutine")):
        (tmp_path / workload).mkdir()
        # In reach of an ordinary user, as software that is installed is.
        kind = called(workload)
        kind = replace(kind, command=partial(in_reach, kind.command))
        with services(kind, tmp_path / workload) as service:
            warm(tracer, service, seed=1_000)
            verdict = measure(tracer, service, seed=1)
        assert verdict.all_right(), verdict.counts
        assert evidence in {s.attributes.get("wirespan.link.evidence") for s in verdict.spans}
    assert not tracer.losses()


def test_an_ordinary_user_with_three_capabilities(
    start: Callable[..., Tracer], directory: Path, tmp_path: Path
) -> None:
    tracer = start(directory, wrap=partial(ordinary, capabilities=TRACING))
    assert_least(tracer, UID)
    assert_traces(tracer, tmp_path)


def test_root_becomes_an_ordinary_user(
    start: Callable[..., Tracer], directory: Path, tmp_path: Path
) -> None:
    user = pwd.getpwuid(UID).pw_name
    own = directory.parent / f"{directory.name}-own"
    try:
        store = ("--store", str(own / "store"), "--query-address", "none")
        tracer = start(directory, "--user", user, *store, wrap=mounted)
        assert_least(tracer, UID)
        assert (own / "store").stat().st_uid == UID
        assert_traces(tracer, tmp_path)
        tracer.stop()
    finally:
        run(["rm", "-rf", own])


def test_root_keeps_three_capabilities(start: Callable[..., Tracer], tmp_path: Path) -> None:
    assert_least(start(tmp_path), 0)


def test_a_capability_that_is_kept(start: Callable[..., Tracer], tmp_path: Path) -> None:
    kept = MASK | 1 << NUMBERS["CAP_DAC_READ_SEARCH"]
    assert_least(start(tmp_path, "--keep-capability", "CAP_DAC_READ_SEARCH"), 0, kept)


def test_its_memory_goes_into_no_core(start: Callable[..., Tracer], tmp_path: Path) -> None:
    script = 'ulimit -c unlimited; exec "$@"'
    tracer = start(tmp_path, wrap=lambda argv: ["sh", "-c", script, "sh", *argv])
    pid = tracer.process.pid
    assert "unlimited" in Path(f"/proc/{pid}/limits").read_text().split("core file size")[1][:60]
    assert int(Path(f"/proc/{pid}/coredump_filter").read_text(), 16) == 0
    # A debugger that root attaches heeds it as well; what it writes is registers and threads.
    run(["gcore", "-o", tmp_path / "core", str(pid)], timeout=60)
    (core,) = tmp_path.glob("core.*")
    assert core.stat().st_size < 1 << 20
    tracer.stop()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--user", "no-such-user"), "there is no user"),
        (("--keep-capability", "CAP_NONE"), "is no capability"),
    ],
)
def test_flags_that_cannot_be(tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    argv = [*wirespan_command(), "run", "--control-socket", str(tmp_path / "socket"), *flags]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr
