"""Bounds of the hold, apart from it: the command line needs them and nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the hold; times in seconds.

    hold_s: after the last span of a trace came; parent_wait_s, max_hold_s: after the first.
    max_spans, max_bytes: held at one time.
    remember_s: at least so long, and at most twice, is known what was given out, unless
        that is more than max_remembered spans.
    """

    hold_s: float = 2.0
    parent_wait_s: float = 6.0
    max_hold_s: float = 10.0
    max_spans: int = 200_000
    max_bytes: int = 256 << 20
    remember_s: float = 60.0
    max_remembered: int = 400_000
