"""Runtimes: each file once, each process once, and no harm from those that vanish."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

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
    assert runtimes.look(os.getpid()) == replace(one, first=False)
    assert told == [one]
    for afresh in (False, True):  # what is remembered of it isn't the first, either
        again = runtimes.look(os.getpid(), again=afresh)
        assert again is not None and not again.first and again.file == one.file
    runtimes.gone(one.file)
    anew = runtimes.look(os.getpid(), again=True)
    assert anew is not None and anew.first


def test_a_vanished_process() -> None:
    runtimes = Runtimes(lambda found: pytest.fail(f"told of {found}"))
    assert runtimes.look(ended()) is None


def identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def test_a_file_is_in_use_as_long_as_a_process_has_it(tmp_path: Path) -> None:
    runtimes = Runtimes()
    program = tmp_path / "program"
    shutil.copy(shutil.which("sleep") or "", program)
    file, other = identity(program), (identity(program)[0], 1)
    assert not runtimes.in_use({file, other}) & {file, other}
    with subprocess.Popen([program, "60"]) as child:
        assert file in runtimes.in_use({file, other})
        program.unlink()
        assert file in runtimes.in_use({file, other}), "though it was removed"
        child.kill()
    assert not runtimes.in_use({file, other}) & {file, other}


def test_a_library_that_was_removed_is_in_use(tmp_path: Path) -> None:
    """By its number: the path leads nowhere, and map_files takes a right that may be lacking."""
    runtimes, library = Runtimes(), tmp_path / "libpython3.99.so.1.0"
    library.write_bytes(bytes(4096))
    file = identity(library)
    code = (
        "import mmap, sys\n"
        f"with open({str(library)!r}, 'rb') as file:\n"
        "    held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout and child.stdout.readline()
        library.unlink()
        assert file in runtimes.in_use({file})
        child.kill()
    assert file not in runtimes.in_use({file})


def test_that_nobody_can_look_is_not_taken_for_nobody_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(*_: object) -> list[object]:
        raise OSError(errno.EMFILE, "no descriptors")

    monkeypatch.setattr(watch, "mappings", none_left)
    with pytest.raises(OSError, match="no descriptors"):
        Runtimes().in_use({(1, 2)})


def test_what_was_read_of_a_file_is_forgotten_with_it() -> None:
    runtimes = Runtimes()
    one = runtimes.look(os.getpid())
    assert one is not None and any(key[:2] == one.file for key in runtimes._images)
    runtimes.gone(one.file)
    assert not any(key[:2] == one.file for key in runtimes._images)


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


PTRACE_TRACEME, PTRACE_DETACH = 0, 17
LIBRARY = """
const unsigned _PyRuntime = 1, Py_Version = 0x03630000; /* of a CPython 3.99 */
int Py_IsInitialized(void) { return 1; }
"""
PROGRAM = """
#include <unistd.h>
int Py_IsInitialized(void);
int main(void) { return write(1, Py_IsInitialized() ? "ready" : "", 5) < 0 || pause(); }
"""


def test_a_library_that_is_not_mapped_yet(tmp_path: Path) -> None:
    """Looked at before its dynamic linker has run, a process isn't one without a runtime."""
    program, library = tmp_path / "program", tmp_path / "libpython3.99.so.1.0"
    built(LIBRARY, "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library))
    built(PROGRAM, "-o", str(program), str(library), f"-Wl,-rpath,{tmp_path}")
    out, into = os.pipe()
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    pid = os.fork()
    if pid == 0:
        os.dup2(into, 1)
        ptrace(PTRACE_TRACEME, 0, None, None)
        os.execv(program, [str(program)])  # and stops there
    os.close(into)
    try:
        assert os.WIFSTOPPED(os.waitpid(pid, 0)[1])
        told: list[Found] = []
        runtimes = Runtimes(told.append)
        early = runtimes.look(pid)
        assert early is not None and not early.ready and not told
        assert early.reason == f"{library.name} is being loaded"
        assert not ptrace(PTRACE_DETACH, pid, None, None)
        assert os.read(out, 5) == b"ready"
        late = runtimes.look(pid)
        assert late is not None and late.ready and told == [late]
        assert "CPython 3.99.0: no offsets" in late.reason
    finally:
        os.close(out)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def built(source: str, *arguments: str) -> None:
    """Compile C; what else is linked stands behind it."""
    argv = ["gcc", "-x", "c", "-", "-x", "none", *arguments]
    subprocess.run(argv, input=source, text=True, check=True)
