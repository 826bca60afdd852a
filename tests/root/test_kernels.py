"""Other kernels, in guests: the short pass of `make kernels` (bench/kernels)."""

from __future__ import annotations

import sys

import pytest

from bench.kernels import arm64, guest, images

# The oldest that the programs are made for. Emulated, it takes some 40 s to say so.
KERNEL, LIMIT_S = "6.1", 300

pytestmark = [pytest.mark.root, pytest.mark.slow]


def say(text: str) -> None:
    print(text, file=sys.stderr)


def test_programs_load_on_an_older_kernel() -> None:
    (source,) = [each for each in images.SOURCES if each.name == KERNEL]
    answer = guest.boot(images.fetch(source, say), tests=False, limit_s=LIMIT_S)
    assert answer.release.startswith(KERNEL)
    assert answer.works, {name: check for name, check in answer.checks.items() if check["remedy"]}


def test_programs_trace_on_64_bit_arm() -> None:
    """Another machine's registers and numbers of system calls."""
    found = arm64.boot(images.fetch(images.ARM64, say))
    assert not found["error"]
    assert found["seen"] == {"client 418 /pot": found["made"], "server 418 /pot": found["made"]}
    assert {"sys_enter", "sys_exit"} <= set(found["attached"])
