"""Where queue.SimpleQueue is, in the interpreters that are installed here; and what is loaded."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.tracer.runtimes.test_cpython import FOUND, KNOWN
from tracer.runtimes import pyqueue
from tracer.runtimes.modules import loaded
from tracer.runtimes.proc import opened

WHERE = "import _queue; print(getattr(_queue, '__file__', ''))"


@pytest.mark.parametrize("version", KNOWN)
def test_by_symbols_and_without(version: str) -> None:
    done = subprocess.run([FOUND[version], "-c", WHERE], capture_output=True, text=True, check=True)
    file = done.stdout.strip()
    if not file:
        with opened(Path(FOUND[version]).resolve()) as elf:  # it is the interpreter's own
            assert pyqueue.by_methods(elf) is None or pyqueue.by_symbols(elf) is not None
        return
    with opened(file) as elf:
        found = pyqueue.by_methods(elf)
        assert found is not None and len({found.put, *found.got}) == 3
        assert pyqueue.by_symbols(elf) in (found, None)


def test_what_is_loaded() -> None:
    script = f"{WHERE}; import sys; sys.stdout.flush(); sys.stdin.read()"
    with subprocess.Popen(
        [FOUND[KNOWN[-1]], "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        file = process.stdout.readline().strip()
        found = loaded(process.pid)
        process.communicate("")
    assert not found.tornado
    if file:
        status = Path(file).stat()
        assert found.queue is not None and found.queue[0] == (status.st_dev, status.st_ino)
    assert loaded(process.pid) == type(found)()


MAPS = """
import mmap, sys
files = [open(path) for path in sys.argv[1:]]
held = [mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) for file in files]
print("ready", flush=True)
sys.stdin.read()
"""


def test_clients_that_mix_contexts(tmp_path: Path) -> None:
    names = ("tornado/speedups.abi3.so", "_pycurl.cpython-311-x86_64-linux-gnu.so")
    files = [tmp_path / name for name in names]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(bytes(64))
    for mapped in (files[:1], files[1:], files):
        with subprocess.Popen(
            [FOUND[KNOWN[-1]], "-c", MAPS, *mapped],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            assert loaded(process.pid).mixes == (mapped == files)
            process.communicate("")
