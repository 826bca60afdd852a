"""Sampling: whole traces, unbiased, every span kept or counted, the options that say how."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tracer.link.forest import SHAPE, SHAPES, Row, batch, client, server
from tracer import ids
from tracer.errors import UsageError
from tracer.flow import Evidence
from tracer.link.headers import nobody
from tracer.link.stitch import Stitcher
from tracer.match import take
from tracer.sampling import (
    ALL,
    LEVEL,
    REASONS,
    Rate,
    Sampler,
    level_threshold,
    randomness,
    threshold,
    trace_state,
    weights,
)
from tracer.sampling_options import ALWAYS_OFF, ALWAYS_ON, RATE, RATIO, Policy, policy, sampler
from tracer.spans import (
    EVIDENCE,
    SAMPLED_NO,
    SAMPLED_YES,
    STATUS_ERROR,
    Links,
    Sampling,
    SpanBatch,
    Text,
)

MS, S = 1_000_000, 1_000_000_000
FAILED = replace(SHAPE, status=STATUS_ERROR)


def tree(root: int, **values: object) -> list[Row]:
    """A trace of four spans, in the order in which they end; keys are root and root + 1."""
    return [
        server(root + 1),
        client(root + 1, parent=50_000 + root),
        server(root, **values),
        client(root),
    ]


class Kept:
    """A stitcher with a sampler behind it, and what it let through."""

    def __init__(self, policy: Policy) -> None:
        self.sampler = Sampler(policy)
        self.stitcher = Stitcher(sampler=self.sampler)
        self.batches: list[SpanBatch] = []

    def feed(self, spans: SpanBatch, now_ns: int) -> None:
        self._take(self.stitcher.feed(spans, now_ns), now_ns)

    def end(self, now_ns: int) -> None:
        self._take(self.stitcher.flush(now_ns, True), now_ns)

    def _take(self, made: list[SpanBatch], now_ns: int) -> None:
        self.batches += [self.sampler.apply(each, now_ns) for each in made]

    def numbers(self) -> set[int]:
        return {int(number) for each in self.batches for number in each.ints["number"]}

    def count(self) -> int:
        return sum(map(len, self.batches))

    def lost(self) -> int:
        return sum(self.sampler.losses().values())

    def traces(self) -> dict[bytes, int]:
        sizes: dict[bytes, int] = defaultdict(int)
        for each in self.batches:
            for row in range(len(each)):
                sizes[each.trace_id[row].tobytes()] += 1
        return sizes

    def estimate(self) -> float:
        return sum(float(np.sum(weights(each))) for each in self.batches if len(each))


def forest(roots: range) -> SpanBatch:
    """Traces as `tree` makes them, of keys 2 * root, in columns: many are needed."""
    keys = 2 * np.repeat(np.array(roots, dtype=np.uint64), 4)
    at = np.arange(len(keys)) % 4
    below, is_client = at < 2, at % 2 == 1
    key = keys + below.astype(np.uint64)
    count = len(key)
    none = np.zeros(count, dtype=np.uint64)
    above = ids.client_span_id(key).view(np.uint64)[:, 0]
    above[is_client] = np.where(below, ids.mix(keys), none)[is_client]
    return SpanBatch(
        trace_id=ids.trace_id(key),
        span_id=ids.span_id(key, is_client),
        parent_span_id=np.zeros((count, 8), np.uint8),
        start_ns=none,
        end_ns=none,
        shape=np.zeros(count, np.int32),
        shapes=SHAPES,
        ints={"number": key.astype(np.int64)},
        texts={EVIDENCE: Text(np.zeros((count, 0), np.uint8), np.zeros(count, np.uint16))},
        links=Links(
            client=is_client,
            exchange=ids.mix(key),
            parent=above,
            evidence=np.full(count, Evidence.THREAD, dtype=np.uint8),
            start_ns=none,
            end_ns=none,
            process=none,
            content=none,
            near=np.zeros(count, dtype=np.uint16),
            remote=nobody(count),
        ),
    )


def part(spans: SpanBatch, rows: NDArray[Any]) -> SpanBatch:
    """Some rows of a batch, with their links."""
    assert spans.links is not None
    links = spans.links._asdict()
    columns = {name: column[rows] for name, column in links.items() if column is not None
               and name != "remote"}  # fmt: skip
    return replace(take(spans, rows), links=Links(**columns, remote=nobody(len(rows))))


@pytest.mark.parametrize("share", [1 / 3, 0.1, 0.01])
def test_a_ratio_keeps_whole_traces_and_tells_how_many_there_were(share: float) -> None:
    kept = Kept(Policy(RATIO, share))
    total = 20_000
    for start in range(1, total + 1, 4_000):
        kept.feed(forest(range(start, start + 4_000)), 0)
    kept.end(S)
    assert kept.count() + kept.lost() == 4 * total
    assert kept.sampler.losses() == {**dict.fromkeys(REASONS, 0), "sampled_ratio": kept.lost()}
    assert set(kept.traces().values()) == {4}
    # Five standard deviations of a binomial count.
    assert len(kept.traces()) == pytest.approx(total * share, abs=5 * (total * share) ** 0.5)
    assert kept.estimate() == pytest.approx(4 * len(kept.traces()) / share, rel=1e-3)


def test_who_decides_by_the_same_ids_keeps_a_part_of_the_same_traces() -> None:
    """One tracer keeps a half, another a tenth: of the tenth, the first has each."""
    half, tenth = Kept(Policy(RATIO, 0.5)), Kept(Policy(RATIO, 0.1))
    for kept in (half, tenth):
        kept.feed(forest(range(1, 2_000)), 0)
    assert set(tenth.traces()) < set(half.traces())


def test_thresholds_are_those_of_the_specification() -> None:
    assert threshold(1.0) == 0
    assert threshold(0.5) == 0x80000000000000
    assert threshold(0.25) == 0xC0000000000000
    assert f"{threshold(0.01):014x}".rstrip("0") == "fd70a"
    assert threshold(0.0) == ALL
    assert 0 < ALL - threshold(1e-15) <= 2**7
    assert [level_threshold(level) for level in (0, 1, 3)] == [0, ALL // 2, ALL // 8 * 7]


def test_trace_ids_are_random_enough() -> None:
    """Neighbouring connections: their low 56 bits must fill all sixteenths alike."""
    random = randomness(forest(range(1, 40_000)))
    counts = np.bincount((random >> np.uint64(52)).astype(np.int64), minlength=16)
    expected = len(random) / 16
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 60  # 15 degrees of freedom; each row's both sides count twice


def test_errors_and_what_is_slow_stay_with_their_traces() -> None:
    kept = Kept(Policy(ALWAYS_OFF, keep_errors=True, keep_slower_ns=100 * MS))
    rows = [*tree(10), *tree(20), *tree(30, end_ns=100 * MS), *tree(40, end_ns=100 * MS - 1)]
    spans = batch(rows, [SHAPE, FAILED])
    spans.shape[5] = 1  # a call of the second
    kept.feed(spans, 0)
    kept.end(S)
    assert kept.numbers() == {row.number for row in (*tree(20), *tree(30))}
    assert kept.lost() == kept.sampler.losses()["sampled_off"] == 8
    (made,) = kept.batches
    states = trace_state(made)
    assert states is not None and set(states.bytes[:, :7].tobytes().split(b"ot=th:")) == {b"", b"0"}


def test_an_error_that_comes_late_keeps_what_comes_with_it() -> None:
    kept = Kept(Policy(ALWAYS_OFF, keep_errors=True))
    kept.feed(batch(tree(10), [SHAPE, FAILED]), 0)
    assert kept.count() == 0
    late = batch([server(31), client(31, parent=50_010), server(32), client(32, parent=50_010)])
    late.shape[1] = 1
    kept.feed(replace(late, shapes=[SHAPE, FAILED]), S)
    kept.end(2 * S)
    assert kept.numbers() == {31, 1_000_031, 32, 1_000_032}


def test_the_parent_decides_for_those_that_have_one() -> None:
    kept = Kept(Policy(ALWAYS_OFF, parent_based=True))
    named = [(bytes([9] * 15 + [n]), bytes([n] * 8)) for n in range(1, 4)]
    rows = [
        *[replace(row, sampled=SAMPLED_YES, remote=named[0]) for row in [client(10)]],
        replace(client(20), sampled=SAMPLED_NO, remote=named[1]),
        replace(client(30), remote=named[2]),
        client(40),
    ]
    kept.feed(batch(rows), 0)
    kept.end(S)
    assert kept.numbers() == {10}
    assert kept.sampler.losses() == {
        **dict.fromkeys(REASONS, 0),
        "sampled_parent": 1,
        "sampled_off": 2,
    }
    # With which probability its parent was sampled, nobody here knows.
    states = trace_state(kept.batches[0])
    assert states is not None and states.length.tolist() == [0]


def test_a_rate_is_kept_to_and_what_it_costs_is_told() -> None:
    """5,000 traces a second come; 1,000 spans a second are to be kept."""
    kept = Kept(Policy(RATE, 1_000))
    root = 1
    per_second = []
    for tick in range(200):  # 20 s
        before = kept.count()
        kept.feed(forest(range(root, root + 500)), tick * S // 10)
        root += 500
        per_second.append(kept.count() - before)
    kept.end(21 * S)
    assert kept.lost() == kept.sampler.losses()["sampled_rate"]
    assert kept.count() + kept.lost() == 4 * (root - 1)
    assert set(kept.traces().values()) == {4}
    steady = sum(per_second[50:]) / 15
    assert 400 < steady <= 1_000
    assert sum(per_second[:10]) < 6 * 2_000  # the first second, batches of 2,000
    states = {
        bytes(states.bytes[row, : states.length[row]])
        for each in kept.batches
        if (states := trace_state(each)) is not None
        for row in range(len(each))
    }
    assert b"ot=th:f8" in states  # one in 32
    assert kept.estimate() == pytest.approx(4 * (root - 1), rel=0.1)


def test_a_level_changes_between_traces_and_never_within_one() -> None:
    kept = Kept(Policy(RATE, 300))
    first = forest(range(1, 300))
    early = np.flatnonzero(np.arange(len(first)) % 4 >= 2)
    late = np.flatnonzero(np.arange(len(first)) % 4 < 2)

    kept.feed(part(first, early), 0)
    before = kept.sampler.fate
    kept.feed(forest(range(1_000, 2_000)), S // 2)
    kept.feed(forest(range(3_000, 4_000)), S)
    assert kept.sampler.fate > before >= LEVEL
    kept.feed(part(first, late), S)
    kept.end(2 * S)
    assert set(kept.traces().values()) == {4}


def test_what_a_rate_comes_to_is_said() -> None:
    kept = Sampler(Policy(RATE, 10))
    assert kept.words() == "rate=10 (now all of them)"
    assert kept._rate
    kept._rate.level = 3
    assert kept.words() == "rate=10 (now one in 8)"


def test_the_rate_falls_slowly_and_never_swings() -> None:
    rate = Rate(100)
    levels = []
    for second in range(30):
        for tenth in range(10):
            came = 1_000 if second < 10 else 5
            rate.note(second * S + tenth * S // 10, came, came >> rate.level)
        levels.append(rate.level)
    assert levels[9] == 7
    assert levels[29] == 0
    assert all(0 <= a - b <= 1 for a, b in pairwise(levels[9:]))
    steady = Rate(100)
    for tick in range(1_000):
        steady.note(tick * S // 10, 15, 15 >> steady.level)
        assert tick < 20 or steady.level == 1


def test_what_the_kernel_let_go_of_counts_in_the_probability() -> None:
    """Kept one in four by the kernel, a half by ratio: the smaller share holds for both."""
    kept = Kept(Policy(RATIO, 0.5))
    spans = forest(range(1, 5_000))
    random = randomness(spans)
    survivors = np.flatnonzero(np.repeat(random.reshape(-1, 4)[:, 3], 4) >= level_threshold(2))
    left = part(spans, survivors)
    lot = (np.repeat(random.reshape(-1, 4)[:, 3], 4)[survivors] >> np.uint64(40)).astype(np.int32)
    shed = Sampling(np.full(len(left), level_threshold(2), np.uint64), lot)
    kept.feed(replace(left, sampling=shed), 0)
    kept.end(S)
    assert kept.lost() == 0 and kept.count() == len(left)
    for each in kept.batches:
        states = trace_state(each)
        assert states is not None and set(states.length.tolist()) == {len("ot=th:c")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("always_on", Policy()),
        ("always_off", Policy(ALWAYS_OFF)),
        ("traceidratio=0.25", Policy(RATIO, 0.25)),
        ("parentbased_traceidratio=1e-3", Policy(RATIO, 0.001, True)),
        ("parentbased_always_on", Policy(ALWAYS_ON, parent_based=True)),
        ("rate=50", Policy(RATE, 50)),
    ],
)
def test_samplers(text: str, expected: Policy) -> None:
    assert sampler(text) == expected
    assert sampler(expected.words()) == expected


@pytest.mark.parametrize(
    "text",
    ["", "0.1", "traceidratio", "traceidratio=2", "traceidratio=-1", "rate=0", "rate=x",
     "always_on=1", "parentbased_", "jaeger_remote", "traceidratio=nan"],
)  # fmt: skip
def test_what_is_no_sampler(text: str) -> None:
    with pytest.raises(UsageError):
        sampler(text)


@pytest.mark.parametrize(
    ("name", "argument", "expected", "warned"),
    [
        ("", "0.5", Policy(), ""),
        ("always_off", "", Policy(ALWAYS_OFF), ""),
        ("traceidratio", "0.5", Policy(RATIO, 0.5), ""),
        ("traceidratio", "", Policy(RATIO, 1.0), ""),
        ("traceidratio", "1.5", Policy(), "OTEL_TRACES_SAMPLER_ARG: '1.5'"),
        ("parentbased_traceidratio", "x", Policy(parent_based=True), "OTEL_TRACES_SAMPLER_ARG"),
        ("parentbased_always_off", "", Policy(ALWAYS_OFF, parent_based=True), ""),
        ("jaeger_remote", "endpoint=http://x", Policy(), "asks another service"),
        ("sometimes", "", Policy(), "'sometimes' is no sampler"),
        ("rate", "20", Policy(RATE, 20), ""),
    ],
)
def test_the_environment(name: str, argument: str, expected: Policy, warned: str) -> None:
    said: list[str] = []
    environ = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}
    assert policy(None, False, 0, environ, said.append) == expected
    assert len(said) == bool(warned) and all(warned in line for line in said)
    assert policy(Policy(RATIO, 0.2), True, 7, environ, said.append) == Policy(
        RATIO, 0.2, keep_errors=True, keep_slower_ns=7
    )


def test_keeping_everything_decides_nothing() -> None:
    assert Policy().keeps_all and Policy(RATIO, 1.0).keeps_all
    assert not any(
        each.keeps_all for each in (Policy(ALWAYS_OFF), Policy(RATE, 9), Policy(parent_based=True))
    )
