"""CPython: threads of real interpreters with known contexts, found again from outside."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tracer.runtimes import cpython
from tracer.runtimes.cpython import CPython
from tracer.runtimes.proc import Memory, opened
from tracer.runtimes.watch import Found, Runtimes

# Each thread runs in a copy of a context, behind which is the one that CPython gave it to copy,
# and tells its id, its state and that copy.
PROGRAM = """
import contextvars, ctypes, os, sys, threading, time
api = ctypes.pythonapi
api.PyThreadState_Get.restype = ctypes.c_void_p
lines, done = [], threading.Semaphore(0)
def body():
    context = contextvars.copy_context()
    def inside():
        lines.append("%d %d %d" % (threading.get_ident(), api.PyThreadState_Get(), id(context)))
        done.release()
        time.sleep(60)
    context.run(inside)
def tell():
    for _ in range(3):
        threading.Thread(target=body, daemon=True).start()
    for _ in range(3):
        done.acquire()
    print(os.getpid())
    print("\\n".join(lines), flush=True)
    sys.stdin.read()
if "fork" in sys.argv and os.fork():
    os.wait()
else:
    tell()
"""


def interpreters() -> dict[str, str]:
    """Version -> path of every CPython this machine has, the one running included."""
    candidates = [sys.executable, "/usr/bin/python3"]
    pyenv = shutil.which("pyenv")
    if pyenv:
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True).stdout.strip()
        candidates += map(str, sorted(Path(root, "versions").glob("3.*/bin/python3")))
    found: dict[str, str] = {}
    for path in candidates:
        if not Path(path).exists():
            continue
        asked = subprocess.run(
            [path, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"],
            capture_output=True,
            text=True,
        )
        if asked.returncode == 0:
            found.setdefault(asked.stdout.strip(), path)
    return found


PREVIOUS = 16  # ctx_prev of PyContext, with the GIL
FOUND = interpreters()
KNOWN = [v for v in FOUND if tuple(map(int, v.split(".")[:2])) in cpython.OFFSETS]
# Before 3.7 there are neither contexts nor _PyRuntime.
UNKNOWN = [v for v in FOUND if v not in KNOWN and not v.startswith("3.6.")]


@contextmanager
def running(path: str, *arguments: str) -> Iterator[tuple[int, list[tuple[int, int, int]]]]:
    """Start the program; its pid, and (thread id, thread state, context) of three threads."""
    process = subprocess.Popen(
        [path, "-c", PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        pid = int(process.stdout.readline())
        truth = []
        for _ in range(3):
            thread, state, context = process.stdout.readline().split()
            truth.append((int(thread), int(state), int(context)))
        yield pid, truth
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


def walk(found: CPython, memory: Memory) -> dict[int, tuple[int, int]]:
    """Do what the eBPF program does: thread id -> (thread state, context)."""
    result = {}
    interpreter = memory.u64(found.runtime_addr + found.interpreters_main)
    state = memory.u64(interpreter + found.threads_head)
    while state:
        context = memory.u64(state + found.tstate_context)
        result[memory.u64(state + found.tstate_thread_id)] = (state, context)
        state = memory.u64(state + found.tstate_next)
    return result


def look(pid: int) -> Found:
    found = Runtimes().look(pid)
    assert found is not None
    return found


@pytest.mark.parametrize("version", KNOWN)
@pytest.mark.parametrize("arguments", [(), ("fork",)], ids=["plain", "forked"])
def test_contexts_of_threads(version: str, arguments: tuple[str, ...]) -> None:
    with running(FOUND[version], *arguments) as (pid, truth):
        runtime = look(pid).runtime
        assert isinstance(runtime, CPython), look(pid).reason
        assert runtime.version[:2] == tuple(map(int, version.split(".")[:2]))
        assert not runtime.free_threaded
        assert runtime.copy_current is not None
        memory = Memory(pid)
        threads = walk(runtime, memory)
        for thread, state, context in truth:
            assert threads[thread] == (state, context)
            given = memory.u64(context + PREVIOUS)
            assert memory.u32(context + runtime.context_entered) == 1
            assert memory.u32(given + runtime.context_entered) == 0
            if runtime.tls_tstate is not None:
                assert memory.u64(thread + runtime.tls_tstate) == state


@pytest.mark.parametrize("version", KNOWN)
def test_what_makes_contexts(version: str) -> None:
    """Found by what a file exports, stripped or not; where it isn't, symbols tell the same."""
    with running(FOUND[version]) as (pid, _truth):
        found = look(pid)
        assert isinstance(found.runtime, CPython), found.reason
        assert len(found.runtime.new) == 4
        with opened(found.path) as elf:
            for symbol in elf.symbols(("context_tp_new", "_contextvars_Context_copy")).values():
                assert elf.file_offset(symbol.value) in found.runtime.new


@pytest.mark.parametrize("version", UNKNOWN)
def test_a_version_without_offsets(version: str) -> None:
    with running(FOUND[version]) as (pid, _truth):
        found = look(pid)
        assert found.runtime is None
        assert "no offsets for this version" in found.reason


def test_a_table_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offsets of another version lead to a reason, not to a wrong context."""
    version = next(v for v in KNOWN if not v.startswith(("3.13.", "3.14.")))
    major, minor = map(int, version.split(".")[:2])
    table = dict(cpython.OFFSETS)
    own = table[major, minor]
    with running(FOUND[version]) as (pid, _truth):
        for other in table.values():
            if (other.threads_head, other.context) != (own.threads_head, own.context):
                monkeypatch.setattr(cpython, "OFFSETS", {(major, minor): other})
                found = look(pid)
                assert found.runtime is None, other


def test_what_is_no_python() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"begun\n")
        process.stdin.flush()
        process.stdout.readline()
        found = look(process.pid)
        assert (found.runtime, found.reason) == (None, "")
    finally:
        process.kill()
        process.communicate()
