"""A short pass of every libFuzzer target; `make fuzz` is the long one."""

from __future__ import annotations

import os
import subprocess

from tests.host.lib import ROOT

SECONDS = 3  # a target, beside what was found before


def test_short_pass() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "fuzz.sh"],
        cwd=ROOT,
        env={**os.environ, "FUZZ_SECONDS": str(SECONDS)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Done") == 7, done.stdout
