"""A short pass of every fault; `make faults` is the long one."""

from __future__ import annotations

import pytest

from bench.faults.__main__ import run
from bench.faults.scene import Fault
from bench.faults.table import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_short_pass(fault: Fault) -> None:
    outcome = run(fault, short=True)
    assert outcome.held, [(what, detail) for what, held, detail in outcome.checks if not held]
