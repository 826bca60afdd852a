"""Runtimes: each file once, each process once, and no harm from those that vanish."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tracer.runtimes import watch
from tracer.runtimes.cpython import CPython
from tracer.runtimes.node import Node
from tracer.runtimes.watch import Found, Runtimes


def ended() -> int:
    """A pid whose process is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_process_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Found] = []
    runtimes = Runtimes(told.append)
    one = runtimes.look(os.getpid())
    assert one is not None and isinstance(one.runtime, CPython) and one.first
    assert runtimes.look(os.getpid()) is one
    assert told == [one]
    again = runtimes.look(os.getpid(), again=True)
    assert again is not None and not again.first and again.file == one.file
    runtimes.detached(one.file)
    runtimes.forget(os.getpid())
    anew = runtimes.look(os.getpid())
    assert anew is not None and anew.first


def test_a_vanished_process() -> None:
    runtimes = Runtimes(lambda found: pytest.fail(f"told of {found}"))
    assert runtimes.look(ended()) is None
    runtimes.forget(ended())


def test_many_threads_and_one_first() -> None:
    runtimes = Runtimes()
    start = threading.Barrier(8)

    def look(_number: int) -> bool:
        start.wait()
        found = runtimes.look(os.getpid(), again=True)
        return found is not None and found.first

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(look, range(8))) == 1


def test_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_PROCESSES", 1)
    told: list[Found] = []
    runtimes = Runtimes(told.append)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        runtimes.look(os.getpid())
        runtimes.look(process.pid)
        # The first has been pushed out, and is looked at anew.
        runtimes.look(os.getpid())
        assert len([found for found in told if found.pid == os.getpid()]) == 2
    finally:
        process.communicate(b"\n")


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js here")
def test_node() -> None:
    node = str(shutil.which("node"))
    process = subprocess.Popen(
        [node, "-e", "console.log(process.version); setTimeout(() => {}, 60000)"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        version = process.stdout.readline().strip()
        found = Runtimes().look(process.pid)
        assert found is not None and isinstance(found.runtime, Node)
        assert "v{}.{}.{}".format(*found.runtime.version) == version
        assert (found.runtime.push_async_context is None) == bool(found.runtime.reason)
    finally:
        process.kill()
        process.communicate()
