"""HotSpot's own table of its structures: of real JVMs, and of tables that are not good."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from pathlib import Path

import pytest

from bench.truth.workloads_other import javas
from tracer.runtimes import hotspot
from tracer.runtimes.elf import Elf
from tracer.runtimes.hotspot import HotSpot, NotReady
from tracer.runtimes.proc import Memory, mappings, opened
from tracer.runtimes.watch import Found, Runtimes

BASE, SYMBOL, TABLE, TEXTS = 0x7F00_0000_0000, 0x100, 0x7F00_0000_1000, 0x7F00_0010_0000
LIST, ARRAY, THREADS = 0x7F00_0020_0000, 0x7F00_0021_0000, 0x7F00_0030_0000
ENTRY = struct.Struct("<QQQi4xQQ")
# JDK 25.0.1's, but for the address.
FIELDS = {
    ("ThreadsSMRSupport", "_java_thread_list"): (0, LIST),
    ("ThreadsList", "_length"): (4, 0),
    ("JavaThread", "_threadObj"): (640, 0),
    ("ThreadsList", "_threads"): (16, 0),
    ("JavaThread", "_monitor_owner_id"): (1312, 0),
    ("JavaThread", "_cont_entry"): (1240, 0),
    ("Thread", "_osthread"): (568, 0),
    ("OSThread", "_thread_id"): (8, 0),
    ("OSThread", "_pthread_id"): (16, 0),
}
SLEEPS = """
class Sleeps {
    public static void main(String[] arguments) throws Exception {
        System.out.println("ready");
        Thread.sleep(60000);
    }
}
"""


class Held(Memory):
    """Bytes at their addresses, and nothing else."""

    def __init__(self, pieces: dict[int, bytes]) -> None:
        self._pieces = pieces

    def read(self, address: int, size: int) -> bytes:
        for start, raw in self._pieces.items():
            if start <= address and address + size <= start + len(raw):
                return raw[address - start : address - start + size]
        raise OSError(14, f"no memory at {address:#x}")


def held(
    fields: dict[tuple[str, str], tuple[int, int]], *, end: bool = True, threads: int = 5
) -> Held:
    """A process's memory with such a table, and threads whose JavaThread is in TLS block 3."""
    texts, rows = bytearray(), b""
    for names, (offset, address) in fields.items():
        at = []
        for name in names:
            at.append(TEXTS + len(texts))
            texts += name.encode() + b"\0"
        rows += ENTRY.pack(*at, 0, 0, offset, address)
    rows += bytes(4096 * ENTRY.size if end else 0)
    pieces = {BASE + SYMBOL: struct.pack("<Q", TABLE), TABLE: rows, TEXTS: bytes(texts) + bytes(64)}
    each = [THREADS + number * 0x10000 for number in range(threads)]
    pieces[LIST] = struct.pack("<Q", LIST + 8) + struct.pack("<4xI8xQ", threads, ARRAY)
    pieces[ARRAY] = struct.pack(f"<{threads}Q", *each)
    for java in each:
        os_thread, base, vector, block = (java + n * 0x1000 for n in (1, 2, 3, 4))
        pieces[java] = bytes(568) + struct.pack("<Q", os_thread) + bytes(1024)
        pieces[os_thread] = struct.pack("<QQQ", 0, 7, base)
        pieces[base] = struct.pack("<QQ", base, vector)
        blocks = (2, 0, block - 64, 0, 2**64 - 1, 0, block, 0)
        pieces[vector] = struct.pack("<8Q", *blocks) + bytes(1024)
        pieces[block - 64] = struct.pack("<8Q", 1, 2, 3, 4, 5, 6, 7, 8)
        pieces[block] = struct.pack("<QQQ", 0, 5, java) + bytes(128)
    return Held(pieces)


def inspect(memory: Memory, threads: int = 5) -> HotSpot | None:
    return hotspot.inspect(hotspot.Image(SYMBOL), BASE, memory, threads)


def test_what_a_table_says() -> None:
    assert inspect(held(FIELDS)) == HotSpot(48, 16, 1312, 1240)


def test_a_jvm_that_is_coming_up() -> None:
    for threads in (0, 1, 4):
        with pytest.raises(NotReady):
            inspect(held(FIELDS, threads=threads))
        with pytest.raises(NotReady):  # a table that lacks something may yet be filled in
            inspect(held({}), threads)


def test_threads_that_have_it_elsewhere() -> None:
    memory = held(FIELDS)
    last = THREADS + 4 * 0x10000 + 4 * 0x1000
    memory._pieces[last] = struct.pack("<QQQ", 0, THREADS + 4 * 0x10000, 5) + bytes(128)
    with pytest.raises(NotReady):
        inspect(memory)


@pytest.mark.parametrize("field", sorted(hotspot._FIELDS))
def test_a_table_that_lacks_something(field: tuple[str, str]) -> None:
    fields = {name: at for name, at in FIELDS.items() if name != field}
    assert inspect(held(fields)) is None


def test_a_table_that_is_not_filled_in_yet() -> None:
    with pytest.raises(NotReady):
        inspect(held(dict.fromkeys(FIELDS, (0, 0))))
    with pytest.raises(NotReady):
        inspect(Held({BASE + SYMBOL: bytes(8)}))


def test_a_table_that_leads_nowhere() -> None:
    with pytest.raises(NotReady):
        inspect(held(FIELDS, end=False))


def test_a_process_that_may_not_be_read() -> None:
    class Kept(Memory):
        def read(self, address: int, size: int) -> bytes:
            raise PermissionError(1, "Operation not permitted")

    with pytest.raises(PermissionError):
        inspect(Kept(1))


def test_no_other_file_is_one() -> None:
    assert hotspot.image(Elf(Path("/bin/true").read_bytes()), "libjvm.so") is None


@pytest.mark.parametrize("version", sorted(javas()))
def test_a_real_one(version: int, tmp_path: Path) -> None:
    """Looked at from its first moment on, it is found; only since 24 it has numbers to read."""
    program = tmp_path / "Sleeps.java"
    program.write_text(SLEEPS)
    process = subprocess.Popen([javas()[version], program], stdout=subprocess.PIPE)
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
        assert process.stdout and process.stdout.readline() == b"ready\n"
        # Each of its threads has a number of its own, and none is a virtual one's.
        java, memory = found.runtime, Memory(process.pid)
        mapping = next(each for each in mappings(process.pid) if each.name == "libjvm.so")
        with opened(found.path) as elf:
            image, base = hotspot.image(elf, mapping.name), elf.base(mapping.start, mapping.offset)
        assert image
        table = hotspot._fields(memory.u64(base + image.structs), memory)
        threads = hotspot._threads(table, memory)
        place = java.dtv, java.thread
        assert [hotspot._at(fs_base, place, memory) for _, fs_base in threads] == [
            thread for thread, _ in threads
        ]
        assert len({memory.u64(thread + java.number) for thread, _ in threads}) == len(threads)
        assert not any(memory.u64(thread + java.continuation) for thread, _ in threads)
    finally:
        process.kill()
        process.communicate()
