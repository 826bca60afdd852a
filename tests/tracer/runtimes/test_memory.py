"""However large a file, little of it is held while it is looked at, and less afterwards."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tracer.runtimes import dwarf, golang, node
from tracer.runtimes.elf import PIECE, Elf, ElfError
from tracer.runtimes.proc import opened

MIB = 1 << 20
GO = shutil.which("go")
NODE = shutil.which("node")
INFO, ABBREV, NAMES = 1, 2, 3


@contextmanager
def at_most(peak: int, kept: int = MIB // 8) -> Iterator[None]:
    """Fail where more bytes are taken meanwhile, or more are left."""
    tracemalloc.start()
    try:
        yield
        left, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < peak
    assert left < kept


def with_dwarf(info: bytes, abbrev: bytes = b"\0", flags: int = 0x800) -> bytes:
    """An ELF file of debug information only; flags 0x800: compressed."""
    names = b"\0.debug_info\0.debug_abbrev\0.shstrtab\0"
    packed = info
    if flags:
        packed = struct.pack("<IIQQ", 1, 0, len(info), 1) + zlib.compress(info, 1)
    rows, content = [(0, 0, 0, 0)], b""
    for name, bits, part in ((1, flags, packed), (13, 0, abbrev), (27, 0, names)):
        rows.append((name, bits, 64 + len(content), len(part)))
        content += part
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, 1, bits, 0, at, size, 0, 0, 1, 0)
        for name, bits, at, size in rows
    )
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, 64 + len(content), 0, 64, 56, 0, 64, len(rows), NAMES
    )
    return head + content + table


def unit(body: bytes) -> bytes:
    return struct.pack("<IHIB", len(body) + 7, 4, 0, 8) + body


def uleb(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80, value >> 7])


# Code 5: a struct with children, its name in place; code 6: a member, its name and location.
ABBREVIATIONS = b"\x05\x13\x01\x03\x08\0\0" + b"\x06\x0d\0\x03\x08\x38\x0f\0\0" + b"\0"
STRUCT = b"\x05runtime.g\0" + b"\x06m\0\x30" + b"\x06goid\0" + uleb(152) + b"\0"
WANTED = (("runtime.g", "goid"), ("runtime.g", "m"))
FOUND = {WANTED[0]: 152, WANTED[1]: 48}


@pytest.mark.parametrize("flags", [0, 0x800], ids=["plain", "compressed"])
def test_a_struct_wherever_a_piece_ends(flags: int) -> None:
    begins = 11 + 5  # of the name, in a second unit after the first one's bytes
    for place in (*range(PIECE - 40, PIECE + 8, 3), *range(PIECE - 2, PIECE + 8), 2 * PIECE):
        first = unit(bytes(place - begins - 11))
        info = first + unit(bytes(4) + STRUCT)
        assert info.index(b"runtime.g\0") == place
        elf = Elf(with_dwarf(info, ABBREVIATIONS, flags))
        assert dwarf.members(elf, WANTED) == FOUND


def test_dwarf_of_64_mib() -> None:
    data = with_dwarf(unit(bytes(64 * MIB)) + unit(STRUCT), ABBREVIATIONS)
    with at_most(6 * MIB):
        assert dwarf.members(Elf(data), WANTED) == FOUND


def test_dwarf_that_is_too_large() -> None:
    data = bytearray(with_dwarf(unit(STRUCT), ABBREVIATIONS))
    struct.pack_into("<Q", data, 64 + 8, 300 * MIB)  # what it would be inflated
    with pytest.raises(dwarf.TooLarge, match="300 MiB of DWARF are not searched"):
        dwarf.members(Elf(bytes(data)), WANTED)
    struct.pack_into("<Q", data, 64 + 8, MIB)
    with pytest.raises(ElfError, match="cut short"):
        dwarf.members(Elf(bytes(data)), (*WANTED, ("runtime.m", "curg")))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if GO is None:
        pytest.skip("no Go here")
    directory = tmp_path_factory.mktemp("go")
    (directory / "go.mod").write_text("module example.com/large\n\ngo 1.18\n")
    (directory / "main.go").write_text(
        'package main\n\nimport "net/http"\n\nfunc main() { _, _ = http.Get("") }\n'
    )
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false"}
    command = [GO, "build", "-o", "large", "."]
    subprocess.run(command, cwd=directory, env=environment, check=True)
    return directory / "large"


@pytest.mark.parametrize(
    "what",
    [golang.image, lambda elf: dwarf.members(elf, golang.WANTED_MEMBERS)],
    ids=["image", "dwarf"],
)
def test_go(program: Path, what: Callable[[Elf], object]) -> None:
    with opened(program) as elf:
        assert what(elf)  # whatever is imported or compiled at the first use is not counted
    with at_most(4 * MIB), opened(program) as elf:
        assert what(elf)


@pytest.mark.skipif(NODE is None, reason="no Node.js here")
def test_node() -> None:
    path = Path(str(NODE)).resolve()
    with at_most(4 * MIB), opened(path) as elf:
        elf.symbols(("_PyRuntime",))
        assert node.image(elf, path.name) is not None
