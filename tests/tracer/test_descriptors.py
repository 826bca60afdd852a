"""The limit of open files, in a process of its own: what is lowered can't be raised again."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, sys
from tracer.descriptors import make_room
from tracer.errors import WirespanError
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
try:
    make_room(100, 400)
except WirespanError as error:
    print(error, "/", error.hint)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "after"),
    [(50, 1000, 400), (50, 200, 200), (399, 399, 399), (500, 1000, 500), (100, 100, 100)],
)
def test_room_is_made_as_far_as_allowed(soft: int, hard: int, after: int) -> None:
    assert told(soft, hard) == [f"{after} {hard}"]


def test_too_little_is_said() -> None:
    why, limits = told(20, 99)
    assert "99 files open, it needs 100" in why and "ulimit -n 400" in why
    assert limits == "99 99"


def told(soft: int, hard: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(soft), str(hard)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()
