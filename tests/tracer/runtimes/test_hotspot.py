"""HotSpot's own table of its structures: of real JVMs, and of tables that are not good."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tracer.runtimes import hotspot
from tracer.runtimes.elf import Elf
from tracer.runtimes.hotspot import HotSpot, NotReady
from tracer.runtimes.proc import Memory
from tracer.runtimes.watch import Found, Runtimes

BASE, SYMBOL, TABLE, TEXTS = 0x7F00_0000_0000, 0x100, 0x7F00_0000_1000, 0x7F00_0010_0000
ENTRY = struct.Struct("<QQQi4xQQ")
# JDK 25.0.1's, but for the address.
FIELDS = {
    ("ThreadsSMRSupport", "_java_thread_list"): (0, 0xABC0),
    ("ThreadsList", "_length"): (4, 0),
    ("JavaThread", "_threadObj"): (640, 0),
    ("ThreadsList", "_threads"): (16, 0),
    ("JavaThread", "_monitor_owner_id"): (1312, 0),
    ("JavaThread", "_cont_entry"): (1240, 0),
    ("Thread", "_osthread"): (568, 0),
    ("OSThread", "_thread_id"): (8, 0),
    ("OSThread", "_pthread_id"): (16, 0),
}
SLEEPS = (
    "class Sleeps { public static void main(String[] a) throws Exception { Thread.sleep(60000); } }"
)


class Held(Memory):
    """Bytes at their addresses, and nothing else."""

    def __init__(self, pieces: dict[int, bytes]) -> None:
        self._pieces = pieces

    def read(self, address: int, size: int) -> bytes:
        for start, raw in self._pieces.items():
            if start <= address and address + size <= start + len(raw):
                return raw[address - start : address - start + size]
        raise OSError(14, f"no memory at {address:#x}")


def held(fields: dict[tuple[str, str], tuple[int, int]], end: bool = True) -> Held:
    """A process's memory with such a table."""
    texts, rows = bytearray(), b""
    for names, (offset, address) in fields.items():
        at = []
        for name in names:
            at.append(TEXTS + len(texts))
            texts += name.encode() + b"\0"
        rows += ENTRY.pack(*at, 0, 0, offset, address)
    rows += bytes(4096 * ENTRY.size if end else 0)
    pointer = {BASE + SYMBOL: struct.pack("<Q", TABLE)}
    return Held({**pointer, TABLE: rows, TEXTS: bytes(texts) + bytes(64)})


def test_what_a_table_says() -> None:
    found = hotspot.inspect(hotspot.Image(SYMBOL), BASE, held(FIELDS))
    assert found == HotSpot(0xABC0, 4, 16, 568, 16, 1312, 1240)


@pytest.mark.parametrize("field", sorted(hotspot._FIELDS))
def test_a_table_that_lacks_something(field: tuple[str, str]) -> None:
    fields = {name: at for name, at in FIELDS.items() if name != field}
    assert hotspot.inspect(hotspot.Image(SYMBOL), BASE, held(fields)) is None


def test_a_table_that_is_not_filled_in_yet() -> None:
    with pytest.raises(NotReady):
        hotspot.inspect(hotspot.Image(SYMBOL), BASE, held(dict.fromkeys(FIELDS, (0, 0))))
    with pytest.raises(NotReady):
        hotspot.inspect(hotspot.Image(SYMBOL), BASE, Held({BASE + SYMBOL: bytes(8)}))


def test_a_table_that_leads_nowhere() -> None:
    with pytest.raises(OSError, match="no memory"):
        hotspot.inspect(hotspot.Image(SYMBOL), BASE, held(FIELDS, end=False))


def test_no_other_file_is_one() -> None:
    assert hotspot.image(Elf(Path("/bin/true").read_bytes()), "libjvm.so") is None


def versions() -> dict[int, Path]:
    """The JDKs of this host: version -> its `java`."""
    found = {}
    for release in Path("/usr/lib/jvm").glob("*/release"):
        if said := re.search(r'^JAVA_VERSION="(\d+)', release.read_text(), re.MULTILINE):
            found[int(said[1])] = release.parent / "bin" / "java"
    return found


@pytest.mark.parametrize("version", sorted(versions()))
def test_a_real_one(version: int, tmp_path: Path) -> None:
    """Looked at from its first moment on, it is found; only since 24 it has numbers to read."""
    program = tmp_path / "Sleeps.java"
    program.write_text(SLEEPS)
    process = subprocess.Popen([versions()[version], program])
    try:
        runtimes, found = Runtimes(), None
        until = time.monotonic() + 30
        while (found is None or not found.ready) and time.monotonic() < until:
            found = runtimes.look(process.pid, again=True)
        assert isinstance(found, Found) and found.ready and found.reason == ""
        assert os.path.basename(os.path.realpath(found.path)) == "libjvm.so"
        if version < 24:
            assert found.runtime is None
            return
        assert isinstance(found.runtime, HotSpot)
        java, memory = found.runtime, Memory(process.pid)
        while memory.u32(memory.u64(java.threads) + java.count) < 9 and time.monotonic() < until:
            time.sleep(0.1)  # it starts its own one by one
        # They are the process's, and each has a number of its own.
        threads = memory.u64(java.threads)
        array = memory.u64(threads + java.array)
        each = [memory.u64(array + 8 * n) for n in range(memory.u32(threads + java.count))]
        owns = [memory.u64(memory.u64(thread + java.os_thread) + java.pthread) for thread in each]
        assert len(each) > 4 and all(memory.u64(own) == own for own in owns)  # a TCB's first word
        assert len({memory.u64(thread + java.number) for thread in each}) == len(each)
        assert not any(memory.u64(thread + java.continuation) for thread in each)
    finally:
        process.kill()
        process.wait()
