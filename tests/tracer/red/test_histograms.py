"""Buckets against integers and against the SDK's, histograms against the SDK's."""

from __future__ import annotations

from fractions import Fraction
from math import frexp

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics._internal.exponential_histogram.mapping.logarithm_mapping import (
    LogarithmMapping,
)
from opentelemetry.sdk.metrics.export import ExponentialHistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View

from tracer.red.buckets import PER_OCTAVE, SCALE, indices
from tracer.red.histograms import BUCKETS, MAX_SERIES, Histograms

LONGEST = (1 << 63) - 1


def index(duration_ns: int) -> int:
    return int(indices(np.array([duration_ns], dtype=np.int64))[0])


def holds(bucket: int, value: Fraction) -> bool:
    """Whether a bucket at SCALE holds a value, exactly: borders to the power of 256."""
    power = value**PER_OCTAVE
    return Fraction(2) ** bucket < power <= Fraction(2) ** (bucket + 1)


@given(st.one_of(st.integers(1, LONGEST), st.integers(1, 10**10)))
def test_a_bucket_holds_what_is_put_in_it(duration_ns: int) -> None:
    assert holds(index(duration_ns), Fraction(duration_ns / 1e9))


def test_values_beside_every_border_are_put_right() -> None:
    # 2**60 ns: so long that neighbouring integers are neighbouring doubles.
    octave = np.array([(1 << 60) * 2 ** (k / PER_OCTAVE) for k in range(PER_OCTAVE)])
    near = (octave.astype(np.int64)[:, np.newaxis] + np.arange(-3, 4) * 256).reshape(-1)
    for duration_ns, found in zip(near.tolist(), indices(near).tolist(), strict=True):
        assert holds(found, Fraction(duration_ns / 1e9)), duration_ns


@pytest.mark.parametrize("exponent", range(-9, 34))
def test_a_power_of_two_ends_a_bucket(exponent: int) -> None:
    duration = Fraction(2) ** exponent * 10**9
    assert duration.denominator == 1, "whole nanoseconds"
    assert index(int(duration)) == exponent * PER_OCTAVE - 1
    assert index(int(duration) + (1 << max(0, exponent))) == exponent * PER_OCTAVE


def test_buckets_are_the_sdks() -> None:
    random = np.random.default_rng(5)
    durations = np.exp(random.uniform(0, np.log(1e13), 20_000)).astype(np.int64) + 1
    found = indices(durations)
    for scale in (SCALE, 5, 1):
        mapping = LogarithmMapping(scale)
        wanted = [mapping.map_to_index(duration / 1e9) for duration in durations.tolist()]
        assert (found >> (SCALE - scale)).tolist() == wanted


def test_the_last_durations_have_a_bucket() -> None:
    assert index(1) == -7654
    assert frexp(LONGEST / 1e9)[1] == 34
    assert holds(index(LONGEST), Fraction(LONGEST / 1e9))


def sdk_point(durations_ns: list[int]) -> ExponentialHistogramDataPoint:
    reader = InMemoryMetricReader()
    view = View(
        instrument_name="*",
        aggregation=ExponentialBucketHistogramAggregation(max_size=BUCKETS, max_scale=SCALE),
    )
    provider = MeterProvider([reader], views=[view], shutdown_on_exit=False)
    histogram = provider.get_meter("test").create_histogram("d")
    for duration in durations_ns:
        histogram.record(duration / 1e9)
    data = reader.get_metrics_data()
    assert data is not None
    point = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]
    assert isinstance(point, ExponentialHistogramDataPoint)
    provider.shutdown()
    return point


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("batches", [1, 7])
def test_histograms_are_the_sdks(spread: float, batches: int) -> None:
    random = np.random.default_rng(int(spread * 10) + batches)
    durations = np.exp(random.normal(13, spread, 2_000)).astype(np.int64)
    durations[random.integers(0, 2_000, 5)] = 0
    histograms = Histograms()
    # Two other rows, and rows out of order: none may touch another.
    for part in np.array_split(durations, batches):
        series = np.tile([2, 0, 1], len(part))[: 3 * len(part)].astype(np.int32)
        histograms.observe(series, np.repeat(part, 3))
    wanted = sdk_point(durations.tolist())
    for point in histograms.points(np.arange(3)):
        assert (point.total, point.zero, point.scale) == (2_000, wanted.zero_count, wanted.scale)
        assert point.sum_ns == int(durations.sum())
        assert (point.min_ns, point.max_ns) == (durations.min(), durations.max())
        assert point.offset == wanted.positive.offset
        trailing = list(wanted.positive.bucket_counts)
        while trailing and not trailing[-1]:
            trailing.pop()
        assert point.counts == trailing


@given(st.lists(st.lists(st.integers(0, 1 << 45), min_size=1, max_size=20), max_size=8))
def test_no_measurement_is_lost_by_coarsening(batches: list[list[int]]) -> None:
    histograms = Histograms()
    every: list[int] = []
    for durations in batches:
        every += durations
        histograms.observe(np.zeros(len(durations), np.int32), np.array(durations, np.int64))
    (point,) = histograms.points(np.array([0]))
    assert len(point.counts) <= BUCKETS
    assert point.total == len(every) == point.zero + sum(point.counts)
    counted: dict[int, int] = {}
    for duration in every:
        if duration:
            bucket = index(duration) >> (SCALE - point.scale)
            counted[bucket] = counted.get(bucket, 0) + 1
    shown = {point.offset + i: count for i, count in enumerate(point.counts) if count}
    assert shown == counted


def test_a_row_that_is_cleared_begins_anew() -> None:
    histograms = Histograms()
    series = np.zeros(2, np.int32)
    histograms.observe(series, np.array([1, 1 << 50], np.int64))
    histograms.clear(np.array([0]))
    histograms.observe(series[:1], np.array([5_000_000], np.int64))
    (point,) = histograms.points(np.array([0]))
    assert point == (1, 0, 5_000_000, 5_000_000, 5_000_000, SCALE, index(5_000_000), [1])


def test_rows_grow_and_keep_what_they_hold() -> None:
    histograms = Histograms()
    histograms.observe(np.array([3], np.int32), np.array([7_000], np.int64))
    before = histograms.points(np.array([3]))
    histograms.reserve(5_000)
    assert len(histograms) >= 5_000
    assert histograms.points(np.array([3])) == before
    with pytest.raises(ValueError, match=str(MAX_SERIES)):
        histograms.reserve(MAX_SERIES + 1)


def test_a_negative_duration_is_none() -> None:
    histograms = Histograms()
    histograms.observe(np.zeros(1, np.int32), np.array([-5], np.int64))
    (point,) = histograms.points(np.array([0]))
    assert (point.total, point.zero, point.sum_ns, point.counts) == (1, 1, 0, [])
