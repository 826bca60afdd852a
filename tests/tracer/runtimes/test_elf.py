"""ELF files: the interpreter that runs the tests, and broken ones."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.runtimes.elf import Elf, ElfError
from tracer.runtimes.proc import mappings, opened


def library() -> Path:
    """What holds this interpreter: libpython, or the executable."""
    import os

    found = [m for m in mappings(os.getpid()) if m.name.startswith("libpython3.")]
    return Path(found[0].path) if found else Path(sys.executable).resolve()


def test_symbols_sections_and_places() -> None:
    with opened(library()) as elf:
        found = elf.symbols(("Py_Version", "_PyRuntime", "no_such_symbol_anywhere"))
        assert set(found) == {"Py_Version", "_PyRuntime"}
        assert struct.unpack("<I", elf.read(found["Py_Version"].value, 4))[0] == sys.hexversion
        text = elf.section(".text")
        assert text is not None
        assert elf.file_offset(text.address) == text.offset
        assert elf.file_offset(0xFFFFFFFFFFFF) is None
        assert elf.section(".no_such_section") is None


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_build_id_is_readelfs() -> None:
    notes = subprocess.run(
        ["readelf", "-n", str(library())], capture_output=True, text=True, check=True
    ).stdout
    with opened(library()) as elf:
        assert f"Build ID: {elf.build_id()}" in notes or "Build ID" not in notes


def test_base_of_a_mapping() -> None:
    with opened(library()) as elf:
        first = next(s for s in elf.segments if s.kind == 1)
        # The loader maps whole pages: a base of 1 GiB puts the first one there.
        assert elf.base((1 << 30) + (first.address & ~0xFFF), first.offset & ~0xFFF) == 1 << 30
        with pytest.raises(ElfError, match="no segment"):
            elf.base(1 << 30, 1 << 40)


def test_what_is_no_elf() -> None:
    for data in (b"", b"#!/bin/sh\n" * 20, b"\x7fELF" + bytes([1, 1]) + bytes(64)):
        with pytest.raises(ElfError):
            Elf(data)


HEAD = Path(sys.executable).resolve().read_bytes()[:65536]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 4096), st.lists(st.tuples(st.integers(6, 4095), st.integers(0, 255))))
def test_broken_files_are_said_to_be(length: int, changes: list[tuple[int, int]]) -> None:
    data = bytearray(HEAD[: length or len(HEAD)])
    for at, value in changes:
        if at < len(data):
            data[at] = value
    try:
        elf = Elf(bytes(data))
        elf.build_id()
        elf.symbols(("_PyRuntime",))
    except ElfError:
        pass
