"""The governor: what it tells the kernel, and how long the worker waits; time is made up."""

from __future__ import annotations

import threading
import time

import pytest

from tracer.governor import CALM_LOOKS, MAX_LEVEL, MAX_PAUSE_S, PERIOD_S, WINDOW, Governor, Look


class Load:
    """A process whose CPU goes with the records that the kernel lets through."""

    def __init__(self, cores: float, cost_s: float) -> None:
        self.told: list[int] = []
        self.cost_s, self.fill = cost_s, 0.0
        self.now = Look(0.0, 0.0, 0, 0)
        self.governor = Governor(cores, lambda: self.now, lambda: self.fill, self.told.append)

    def run(self, seconds: float, records_s: float, room: float = 1e9, other: float = 0.0) -> float:
        """Let time pass: `records_s` come, `room` find room; returns the cores used at its end."""
        used = 0.0
        for _ in range(round(seconds / PERIOD_S)):
            came = round(records_s * PERIOD_S / 2**self.governor.level)
            taken = min(came, round(room * PERIOD_S))
            cpu = taken * self.cost_s + other * PERIOD_S
            now = self.now
            self.now = Look(
                now.time_s + PERIOD_S,
                now.cpu_s + cpu,
                now.arrived + taken,
                now.worked + taken,
                now.lost + came - taken,
            )
            self.governor.step(self.now, self.fill)
            used = cpu / PERIOD_S
        return used


def test_what_the_cap_allows_is_left_alone() -> None:
    load = Load(1.0, 3e-6)
    load.run(30, 160_000)  # 0.48 of a core
    assert load.told == []


def test_near_the_cap_fates_are_noted_first() -> None:
    load = Load(1.0, 3e-6)
    load.run(30, 250_000)
    assert load.told == [1] and load.governor.level == 0
    load.run(10, 10_000)
    assert load.told == [1, 0]


@pytest.mark.parametrize("times", [1.5, 3, 10, 1_000])
def test_the_cap_holds_and_no_more_is_shed_than_that_takes(times: float) -> None:
    load = Load(0.5, 3e-6)
    load.run(10, times * 0.5 / 3e-6)
    level = load.governor.level
    used = load.run(60, times * 0.5 / 3e-6)
    assert load.governor.level == level, "it swings"
    assert 0.4 * 0.5 < used <= 0.5
    assert load.told[0] == 1 and load.told[-1] == level + 1
    assert "--max-cpu 0.5" in load.governor.words()


def test_it_is_undone_step_by_step() -> None:
    load = Load(0.5, 3e-6)
    load.run(10, 3e6)
    top = load.governor.level
    load.run((top + 1) * (CALM_LOOKS + WINDOW) * PERIOD_S, 3_000)
    assert load.governor.level == 0 and load.governor.words() == ""
    assert load.told[-top - 1 :] == [*range(top, 0, -1), 0]


def test_a_burst_of_less_than_a_second_is_the_buffer_s() -> None:
    load = Load(1.0, 3e-6)
    load.run(10, 1_000)
    load.run(2 * PERIOD_S, 500_000)
    load.run(10, 1_000)
    assert load.governor.level == 0 and set(load.told) <= {0, 1}


def test_cpu_that_no_record_costs_sheds_nothing() -> None:
    load = Load(0.5, 3e-6)
    load.run(20, 100, other=2.0)  # as at the start, when processes are looked at
    assert load.told == []


def test_a_ring_that_overflows_sheds_though_the_cpu_is_not_the_tracer_s() -> None:
    load = Load(1.0, 1e-6)
    load.run(2, 80_000, room=10_000)
    assert load.governor.level == 3
    load.run(120, 80_000, room=10_000)
    # Less is shed now and then, to see whether there is room again; seldom, if there isn't.
    before = load.now
    load.run(120, 80_000, room=10_000)
    assert load.governor.level in (2, 3)
    assert load.now.lost - before.lost < 0.05 * (load.now.arrived - before.arrived)


def test_the_level_has_an_end() -> None:
    load = Load(0.02, 1.0)
    load.run(60, 1e9)
    assert load.governor.level == MAX_LEVEL and max(load.told) == MAX_LEVEL + 1


def test_the_worker_waits_for_what_it_used_ahead() -> None:
    governor = Governor(0.1, lambda: Look(0, 0, 0, 0), lambda: 0.0, lambda _: None)
    assert governor.owed(100.0, 5.0) == 0.0  # what was used before counts for nothing
    assert governor.owed(101.0, 5.05) == 0.0
    assert governor.owed(101.0, 5.15) == pytest.approx(0.5)
    assert governor.owed(101.5, 5.15) == pytest.approx(0.0)
    assert governor.owed(200.0, 5.15) == 0.0
    assert governor.owed(200.0, 5.25) == pytest.approx(0.0)  # a second is saved up, no more
    assert governor.owed(200.0, 9.0) == MAX_PAUSE_S


def test_the_end_is_not_waited_for() -> None:
    looks = iter([(0.0, 0.0), (0.0, 1.0)])
    governor = Governor(0.1, lambda: Look(0, 0, 0, 0), lambda: 0.0, lambda _: None)
    governor.owed(*next(looks))
    governor.start()
    threading.Timer(0.2, governor.close).start()
    before = time.monotonic()
    governor.owed(*next(looks))
    governor.pause()
    assert time.monotonic() - before < MAX_PAUSE_S
