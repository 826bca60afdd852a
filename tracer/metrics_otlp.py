"""Metrics to OTLP, by the generated classes: it is done once an interval.

Imported only where metrics are exported, for those classes take memory.
Source: opentelemetry-proto 1.x, metrics/v1/metrics.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    ExponentialHistogramDataPoint,
    Metric,
    ResourceMetrics,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as OtlpResource

from tracer.otlp import SCOPE_NAME
from tracer.red.aggregate import Measurement
from tracer.red.instruments import Attributes, Instrument
from tracer.spans import AttributeValue, Resource

_NS_PER_S = 1e9
# Resources, and sets of attributes, whose bytes are kept.
REMEMBERED = 2_048


class Number(NamedTuple):
    """A metric that is a number for each set of attributes; total: it only ever grows.

    total None: it is a gauge; False: a sum that may become less.
    """

    name: str
    unit: str
    description: str
    total: bool | None
    values: Sequence[tuple[Attributes, float]]


def serialise(resources: Iterable[ResourceMetrics], limit: int) -> list[bytes]:
    """Make requests of up to `limit` bytes, or of a single resource that is longer."""
    requests: list[bytes] = []
    parts: list[bytes] = []
    size = 0
    for resource in resources:
        # Messages that are joined are one, with the parts of both.
        part = ExportMetricsServiceRequest(resource_metrics=[resource]).SerializeToString()
        if parts and size + len(part) > limit:
            requests.append(b"".join(parts))
            parts, size = [], 0
        parts.append(part)
        size += len(part)
    return [*requests, b"".join(parts)] if parts else requests


def numbers(
    resource: Resource, version: str, metrics: Iterable[Number], start_ns: int, now_ns: int
) -> ResourceMetrics:
    """Describe plain numbers of one resource, sums since start_ns; Unix time."""
    made = _resource(resource, version)
    for name, unit, description, total, values in metrics:
        metric = made.scope_metrics[0].metrics.add(name=name, unit=unit, description=description)
        if total is None:
            points = metric.gauge.data_points
        else:
            metric.sum.aggregation_temporality = (
                AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
            )
            metric.sum.is_monotonic = total
            points = metric.sum.data_points
        for attributes, value in values:
            point = points.add(time_unix_nano=now_ns, attributes=_attributes(attributes))
            if total is not None:
                point.start_time_unix_nano = start_ns
            if isinstance(value, int):
                point.as_int = value
            else:
                point.as_double = value
    return made


def durations(
    measurements: Iterable[Measurement], version: str, delta: bool, now_ns: int
) -> list[ResourceMetrics]:
    """Describe histograms of durations, and the counts of those that have a counter as well."""
    temporality = (
        AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
        if delta
        else AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
    )
    resources: dict[Resource, ResourceMetrics] = {}
    metrics: dict[tuple[Resource, str], Metric] = {}

    def metric_of(resource: Resource, instrument: Instrument, name: str) -> Metric:
        found = metrics.get((resource, name))
        if found is None:
            if resource not in resources:
                resources[resource] = _resource(resource, version)
            found = resources[resource].scope_metrics[0].metrics.add(name=name)
            metrics[resource, name] = found
            if name == instrument.name:
                found.unit, found.description = "s", instrument.description
                found.exponential_histogram.aggregation_temporality = temporality
            else:
                found.unit = "{request}"
                found.sum.aggregation_temporality = temporality
                found.sum.is_monotonic = True
        return found

    for each in measurements:
        resource, instrument, attributes = each.key
        histogram = metric_of(resource, instrument, instrument.name).exponential_histogram
        _point(histogram.data_points.add(), each, now_ns)
        names = [instrument.total] if instrument.total else []
        if instrument.failed_total and ("failed", True) in attributes:
            names.append(instrument.failed_total)
        for name in names:
            metric_of(resource, instrument, name).sum.data_points.add(
                attributes=_attributes(attributes),
                start_time_unix_nano=each.start_ns,
                time_unix_nano=now_ns,
                as_int=each.point.total,
            )
    return list(resources.values())


def _point(data: ExponentialHistogramDataPoint, each: Measurement, now_ns: int) -> None:
    point, exemplar = each.point, each.exemplar
    data.MergeFromString(_point_bytes(each.key.attributes))
    data.start_time_unix_nano, data.time_unix_nano = each.start_ns, now_ns
    data.count, data.zero_count, data.scale = point.total, point.zero, point.scale
    data.sum = point.sum_ns / _NS_PER_S
    if point.total:
        data.min, data.max = point.min_ns / _NS_PER_S, point.max_ns / _NS_PER_S
    data.positive.offset = point.offset
    data.positive.bucket_counts.extend(point.counts)
    if exemplar is not None:
        data.exemplars.add(
            time_unix_nano=exemplar.end_ns,
            as_double=exemplar.duration_ns / _NS_PER_S,
            trace_id=exemplar.trace_id,
            span_id=exemplar.span_id,
        )


def _resource(resource: Resource, version: str) -> ResourceMetrics:
    made = ResourceMetrics()
    made.resource.MergeFromString(_resource_bytes(resource))
    made.scope_metrics.add().scope.name = SCOPE_NAME
    made.scope_metrics[0].scope.version = version
    return made


# A series is described anew at each export, and its attributes stay: parsing them again takes
# a fraction of the time that putting them together does.
@lru_cache(REMEMBERED)
def _resource_bytes(resource: Resource) -> bytes:
    return OtlpResource(attributes=_attributes(resource.attributes)).SerializeToString()


@lru_cache(REMEMBERED)
def _point_bytes(attributes: Attributes) -> bytes:
    return ExponentialHistogramDataPoint(attributes=_attributes(attributes)).SerializeToString()


def _attributes(attributes: Attributes) -> list[KeyValue]:
    return [KeyValue(key=_text(key), value=_any(value)) for key, value in attributes]


def _any(value: AttributeValue) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, tuple):
        made = AnyValue()
        made.array_value.values.extend(_any(item) for item in value)
        return made
    return AnyValue(string_value=_text(value))


def _text(text: str) -> str:
    """Return what UTF-8 can say of a string: bytes that were none came as lone surrogates."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
