"""What the loader refuses before it asks the kernel anything."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from tests.root.compile import compile_bpf
from tracer.errors import LayoutError, UsageError
from tracer.kernel.loader import Kernel, Settings


@pytest.mark.parametrize(
    "size", [0, -4096, 1, mmap.PAGESIZE - 1, 3 * mmap.PAGESIZE, mmap.PAGESIZE // 2, 1 << 31]
)
def test_ring_sizes_that_are_none(size: int) -> None:
    with pytest.raises(UsageError, match=f"ring size {size} is not a power of two") as caught:
        Settings(ring_bytes=size)
    # What the hint offers is accepted.
    for number in caught.value.hint.removeprefix("try ").split(" or "):
        Settings(ring_bytes=int(number))


@pytest.mark.parametrize("size", [mmap.PAGESIZE, 1 << 20, 1 << 29])
def test_ring_sizes(size: int) -> None:
    assert Settings(ring_bytes=size).ring_bytes == size


@pytest.mark.parametrize("number", [0, -1, 1 << 23])
def test_connections_out_of_range(number: int) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Settings(max_connections=number)


def test_no_object(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="cannot read the eBPF object"):
        Kernel(tmp_path / "absent.bpf.o")


def test_nothing_before_load() -> None:
    kernel = Kernel(compile_bpf("writer"))
    with pytest.raises(ValueError, match="not loaded"):
        _ = kernel.ring
    kernel.close()
    kernel.close()
