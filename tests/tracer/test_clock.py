"""The distance between the kernel's clock and Unix time."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tracer.clock import OFFSET_VARIABLE, unix_offset_ns


def measured(offset_ms: str) -> subprocess.CompletedProcess[str]:
    """unix_offset_ns() in a process whose clock is said to be wrong."""
    return subprocess.run(
        [sys.executable, "-c", "from tracer.clock import *; print(unix_offset_ns())"],
        env={**os.environ, OFFSET_VARIABLE: offset_ms},
        capture_output=True, text=True,
    )  # fmt: skip


def test_monotonic_and_offset_make_unix_time() -> None:
    now = time.monotonic_ns() + unix_offset_ns()
    assert abs(now - time.time_ns()) < 50_000_000


@pytest.mark.parametrize("offset_ms", [300, -300])
def test_skewed(offset_ms: int) -> None:
    got = int(measured(str(offset_ms)).stdout)
    assert abs(got - unix_offset_ns() - offset_ms * 1_000_000) < 50_000_000


def test_skewed_by_something_else() -> None:
    done = measured("soon")
    assert done.returncode != 0
    assert "WIRESPAN_CLOCK_OFFSET_MS: 'soon' is not a whole number of ms" in done.stderr
