"""Which traces are kept, and with which probability: consistent probability sampling.

A trace has 56 random bits, the last seven bytes of its id, and is kept if they, read as a
number, are at least a threshold t: of all traces 1 - t / 2**56 are. Whoever decides by the
same bits keeps the same traces, or a part of them where its threshold is higher. A kept span
says t in its trace state (`ot=th:...`), so that what it stands for is known: 1 / probability
spans. Sources: OpenTelemetry, "TraceState: Probability Sampling",
https://opentelemetry.io/docs/specs/otel/trace/tracestate-probability-sampling/, and
W3C Trace Context 2, https://www.w3.org/TR/trace-context-2/#randomness-of-trace-id.

What is decided is the *fate* of a trace, once: when the first of its spans leaves the
stitcher, which remembers it for those that come later (tracer/link/stitch.py). So a
threshold that changes with the load changes between traces and never within one. A fate is
a small number; its threshold is `thresholds[fate]`.

Pure: time is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tracer.match import take
from tracer.sampling_options import ALWAYS_OFF, ALWAYS_ON, RATE, RATIO, Policy
from tracer.spans import (
    SAMPLED_NO,
    SAMPLED_YES,
    STATUS_ERROR,
    Sampling,
    Shape,
    SpanBatch,
    Text,
)

U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]

RANDOM_BITS = 56
# One more than any random number: nothing is kept. Of a span that was kept: nobody knows.
ALL = 1 << RANDOM_BITS
LOT_BITS = 16
_LOW = np.uint64((1 << (RANDOM_BITS - LOT_BITS)) - 1)
_LOT_SHIFT = np.uint64(RANDOM_BITS - LOT_BITS)
_RANDOM = np.uint64(ALL - 1)
_DIGITS = RANDOM_BITS // 4
# Digits of a threshold that say more than how many f it begins with.
_PRECISION = 4

# What a span says of its trace, in marks: an error or slow; the parent it names is sampled, or
# isn't.
KEEP, SAMPLED, UNSAMPLED = 1, 2, 4
# Fates. From LEVEL on by rate: one in 2 ** (fate - LEVEL).
UNDECIDED, KEPT, BY_PARENT, NOT_BY_PARENT, FIXED, LEVEL = 0, 1, 2, 3, 4, 16
LEVELS = RANDOM_BITS + 1

REASONS = ("sampled_off", "sampled_ratio", "sampled_rate", "sampled_parent")
SECOND_NS = 1_000_000_000
# A lower level is taken only if it fills no more than this of the rate.
_CALM = 0.8


def threshold(probability: float) -> int:
    """Return the rejection threshold of a probability from 0 to 1, with few digits."""
    if probability <= 0:
        return ALL
    exact = round((1 - probability) * ALL)
    digits = min(_DIGITS, max(0, math.floor(-math.log(probability, 16))) + _PRECISION)
    unit: int = 16 ** (_DIGITS - digits)
    return min(round(exact / unit) * unit, ALL - 1)


def level_threshold(level: int) -> int:
    """Return the rejection threshold that keeps one in 2 ** level."""
    return ALL - (ALL >> min(level, RANDOM_BITS))


def weights(batch: SpanBatch) -> NDArray[np.float64] | None:
    """Return how many spans each of a batch stands for, (n,), as far as is known; None: one."""
    if batch.sampling is None:
        return None
    rejected = batch.sampling.threshold.astype(np.float64) / ALL
    return 1 / np.where(rejected < 1, 1 - rejected, 1.0)


def randomness(batch: SpanBatch) -> U64:
    """Return what is compared with thresholds, (n,), 56 bits."""
    random: U64 = np.ascontiguousarray(batch.trace_id).view(">u8")[:, 1].astype(np.uint64) & _RANDOM
    if batch.sampling is not None:
        lot = batch.sampling.lot
        drawn = np.maximum(lot, 0).astype(np.uint64) << _LOT_SHIFT | random & _LOW
        random = np.where(lot >= 0, drawn, random)
    return random


class Sampler:
    """Decides by a policy; used from the worker's thread."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._shapes: Sequence[Shape] = ()
        self._errors: list[bool] = []
        self._rate = Rate(policy.argument) if policy.sampler == RATE else None
        table = np.full(256, ALL, dtype=np.uint64)
        table[KEPT] = 0
        table[FIXED] = {
            ALWAYS_ON: 0,
            ALWAYS_OFF: ALL,
            RATIO: threshold(policy.argument),
        }.get(policy.sampler, ALL)
        for level in range(LEVELS):
            table[LEVEL + level] = level_threshold(level)
        self._thresholds = table
        # The reasons by fate, where a trace can be let go.
        self._reasons = {
            NOT_BY_PARENT: "sampled_parent",
            FIXED: "sampled_off" if policy.sampler == ALWAYS_OFF else "sampled_ratio",
        }
        self._let_go = np.zeros(256, dtype=np.int64)
        # Weakest first: what a mark on any span of a trace makes of it; KEEP is stronger still.
        self.rules = ((UNSAMPLED, NOT_BY_PARENT), (SAMPLED, BY_PARENT))

    @property
    def fate(self) -> int:
        """The fate of a trace that no mark speaks for, as of now."""
        return LEVEL + self._rate.level if self._rate else FIXED

    def losses(self) -> dict[str, int]:
        """Count the spans that were let go, by reason; keys of tracer.losses.USER."""
        losses = dict.fromkeys(REASONS, 0)
        for fate in np.flatnonzero(self._let_go).tolist():
            losses[self._reasons.get(fate, "sampled_rate")] += int(self._let_go[fate])
        return losses

    def words(self) -> str:
        """Write what is in force now."""
        if not self._rate:
            return self.policy.words()
        level = self._rate.level
        return f"{self.policy.words()} (now {f'one in {1 << level}' if level else 'all of them'})"

    def marks(self, batch: SpanBatch) -> U8:
        """Return what spans that come from the kernel say of their traces, (n,)."""
        marks = np.zeros(len(batch), dtype=np.uint8)
        if self.policy.keep_errors:
            marks[self._error_shapes(batch)[batch.shape]] |= KEEP
        if self.policy.keep_slower_ns:
            slow = batch.end_ns - batch.start_ns >= np.uint64(self.policy.keep_slower_ns)
            marks[slow] |= KEEP
        if self.policy.parent_based and batch.links is not None:
            said = batch.links.remote.sampled
            marks[said == SAMPLED_YES] |= SAMPLED
            marks[said == SAMPLED_NO] |= UNSAMPLED
        return marks

    def _error_shapes(self, batch: SpanBatch) -> NDArray[np.bool_]:
        if batch.shapes is not self._shapes:
            self._shapes, self._errors = batch.shapes, []
        new = batch.shapes[len(self._errors) :]
        self._errors.extend(shape.status == STATUS_ERROR for shape in new)
        return np.array(self._errors, dtype=np.bool_)

    def apply(self, batch: SpanBatch, now_ns: int) -> SpanBatch:
        """Let go of the spans whose traces are; the others say with which probability.

        batch.fate: that of each span's trace. now_ns: of any steady clock.
        """
        if not len(batch):
            return batch
        assert batch.fate is not None, "the stitcher decides"
        least = self._thresholds[batch.fate]
        known = batch.fate != BY_PARENT
        kept = (randomness(batch) >= least) | ~known
        self._let_go += np.bincount(batch.fate[~kept], minlength=256)
        if self._rate:
            levelled = batch.fate >= LEVEL
            came = int(np.count_nonzero(levelled))
            self._rate.note(now_ns, came, int(np.count_nonzero(levelled & kept)))
        lot = np.full(len(batch), -1, dtype=np.int32)
        if batch.sampling is not None:
            least = np.maximum(least, batch.sampling.threshold)
            lot = batch.sampling.lot
        done = replace(batch, sampling=Sampling(least, lot), fate=None)
        return done if kept.all() else take(done, np.flatnonzero(kept))


class Rate:
    """The level that keeps a number of spans a second: one in 2 ** level.

    It rises as soon as a second's spans are used up, and falls by one a second at most.
    """

    def __init__(self, target: float) -> None:
        self.level = 0
        self._target = target
        self._since_ns = -1
        self._came = self._kept = 0

    def note(self, now_ns: int, came: int, kept: int) -> None:
        """Take note of spans that came, by fates of this rate, and how many were kept."""
        if self._since_ns < 0:
            self._since_ns = now_ns
        self._came += came
        self._kept += kept
        passed = now_ns - self._since_ns
        if passed >= SECOND_NS:
            a_second = self._came * SECOND_NS / passed
            wanted = self._wanted(a_second)
            if wanted < self.level:
                calm = a_second / 2 ** (self.level - 1) <= self._target * _CALM
                wanted = self.level - 1 if calm else self.level
            self.level = wanted
        elif self._kept > self._target and self.level < RANDOM_BITS:
            self.level += 1
            self._kept = 0
            return
        else:
            return
        self._since_ns, self._came, self._kept = now_ns, 0, 0

    def _wanted(self, a_second: float) -> int:
        if a_second <= self._target:
            return 0
        return min(RANDOM_BITS, math.ceil(math.log2(a_second / self._target)))


_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_SHIFTS = np.arange(RANDOM_BITS - 4, -1, -4, dtype=np.uint64)
_TH, _RV = b"ot=th:", b"ot=rv:"
_BEHIND_RV = b";th:"


def trace_state(batch: SpanBatch) -> Text | None:
    """Write the trace state of each span; none where nothing is known of its probability.

    `ot=th:T`, or `ot=rv:R;th:T` where the random bits are not those of the trace id; T without
    the zeros at its end.
    """
    if batch.sampling is None:
        return None
    least, lot = batch.sampling
    digits = _hex(least)
    digit = np.arange(1, _DIGITS + 1) * (digits != ord("0"))
    used = np.maximum(digit.max(axis=1), 1)
    random = randomness(batch)
    own: U64 = np.ascontiguousarray(batch.trace_id).view(">u8")[:, 1].astype(np.uint64) & _RANDOM
    drawn = (lot >= 0) & (random != own)
    room = len(_TH) + _DIGITS
    if drawn.any():
        room += _DIGITS + len(_BEHIND_RV)
    cells = np.zeros((len(batch), room), dtype=np.uint8)
    _lay(cells, ~drawn, (_TH, digits))
    if drawn.any():
        _lay(cells, drawn, (_RV, _hex(random), _BEHIND_RV, digits))
    length = len(_TH) + used + np.where(drawn, _DIGITS + len(_BEHIND_RV), 0)
    length[least >= ALL] = 0
    return Text(cells, length.astype(np.uint16))


def _hex(values: U64) -> U8:
    """Write numbers of 56 bits in hexadecimal, (n, 14)."""
    digits: U8 = _HEX[(values[:, np.newaxis] >> _SHIFTS & np.uint64(15)).astype(np.intp)]
    return digits


def _lay(cells: U8, rows: NDArray[np.bool_], parts: Sequence[bytes | U8]) -> None:
    """Write parts one behind the other into some rows."""
    at = 0
    for part in parts:
        column = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part[rows]
        width = column.shape[-1]
        cells[rows, at : at + width] = column
        at += width
