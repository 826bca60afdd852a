"""A short pass of every fault; `make faults` is the long one."""

from __future__ import annotations

import subprocess
from mmap import PAGESIZE
from pathlib import Path

import pytest

from bench.faults.__main__ import run
from bench.faults.scene import Fault
from bench.faults.stores import take_room
from bench.faults.table import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_short_pass(fault: Fault) -> None:
    outcome = run(fault, short=True)
    assert outcome.held, [(what, detail) for what, held, detail in outcome.checks if not held]


@pytest.mark.parametrize("pages", [4, 15, 16, 17])
def test_a_disk_is_filled_whatever_room_it_has(tmp_path: Path, pages: int) -> None:
    room = pages * PAGESIZE
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "wirespan-test", str(tmp_path)]
    subprocess.run(mount, check=True, timeout=10)
    try:
        filler = tmp_path / "filler"
        assert take_room(filler) == room
        assert take_room(filler) == room, "and where there is none"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True, timeout=10)
