"""Other kernels, in guests: the short pass of `make kernels` (bench/kernels)."""

from __future__ import annotations

import sys

import pytest

from bench.kernels import arm64, guest, images

# The oldest that each object is made for, and by which hooks they load there. Emulated, they take
# 40 to 120 s to say so.
KERNELS, LIMIT_S = {"5.10": "tracepoint", "6.1": "tracepoint", "6.12": "fentry"}, 600

pytestmark = [pytest.mark.root, pytest.mark.slow]


def say(text: str) -> None:
    print(text, file=sys.stderr)


@pytest.mark.parametrize(("kernel", "hooks"), KERNELS.items())
def test_programs_load_on_another_kernel(kernel: str, hooks: str) -> None:
    (source,) = [each for each in images.SOURCES if each.name == kernel]
    answer = guest.boot(images.fetch(source, say), parts=(), limit_s=LIMIT_S)
    assert answer.release.startswith(kernel)
    assert answer.works, {name: check for name, check in answer.checks.items() if check["remedy"]}
    assert f"load ({hooks})" in answer.checks["programs"]["seen"]


def test_programs_trace_on_64_bit_arm() -> None:
    """Another machine's registers and numbers of system calls."""
    found = arm64.boot(images.fetch(images.ARM64, say))
    assert not found["error"]
    assert found["seen"] == {"client 418 /pot": found["made"], "server 418 /pot": found["made"]}
    assert {"sys_enter", "sys_exit"} <= set(found["attached"])
