"""All faults, in the order of the page."""

from __future__ import annotations

from bench.faults import backends, connections, soak, stores, tracers
from bench.faults.scene import Fault

FAULTS: tuple[Fault, ...] = (
    *tracers.FAULTS,
    *backends.FAULTS,
    *connections.FAULTS,
    *stores.FAULTS,
    *soak.FAULTS,
)
