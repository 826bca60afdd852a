"""Everything one run of the benchmark measured, and the line that made it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from bench.compare.rounds import Comparison
from bench.latency import Latency
from bench.machine import Machine
from bench.others import Call, Idle
from bench.pipeline import Cost
from bench.rounds import Load, Programs, Round
from bench.stored import Stored


@dataclass(slots=True)
class Results:
    """Phases that were left out are None or empty."""

    machine: Machine
    command: str
    load: Load
    rounds: list[Round] = dataclasses.field(default_factory=list)
    programs: Programs | None = None
    others: dict[str, Call] = dataclasses.field(default_factory=dict)
    idle: Idle | None = None
    latency: Latency | None = None
    stored: Stored | None = None
    pipeline: dict[str, Cost] = dataclasses.field(default_factory=dict)
    compared: Comparison | None = None

    def json(self) -> str:
        """Every number, for machines."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"
