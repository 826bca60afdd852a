"""Metrics on their way to real receivers, read back as protobuf."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from tests.tracer.receivers import SERVE, Answer, Receiver, free_port
from tests.tracer.red.exchanges import NOW, OWN, Row, batch, http
from tracer.export_config import ExportConfig
from tracer.metrics import Meter, Metrics
from tracer.metrics_export import MetricsExporter, Settings
from tracer.metrics_otlp import durations, serialise
from tracer.monitor import Gauges, Monitor
from tracer.red.aggregate import Red
from tracer.sampling import level_threshold
from tracer.spans import Sampling, SpanBatch

DEADLINE = 15.0
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
MONITOR = Monitor(
    lambda: {"server_spans": 5, "client_spans": 6},
    lambda: {"ring_full": 2, "gap": 0},
    lambda: Gauges(1 << 24, 0.25, 1 << 26, 0.5, 9),
)


@dataclass
class Backend:
    """A receiver of metrics."""

    receiver: Receiver
    port: int
    said: list[str] = field(default_factory=list)

    def messages(self) -> list[ExportMetricsServiceRequest]:
        return [ExportMetricsServiceRequest.FromString(each.body) for each in self.accepted()]

    def accepted(self) -> list[Any]:
        with self.receiver.changed:
            return list(self.receiver.accepted)

    def totals(self) -> list[int]:
        """The counts of http.server.request.duration, one for each request."""
        return [
            sum(
                point.count
                for resource in message.resource_metrics
                for metric in resource.scope_metrics[0].metrics
                if metric.name == "http.server.request.duration"
                for point in metric.exponential_histogram.data_points
            )
            for message in self.messages()
        ]

    def wait_for(self, requests: int) -> None:
        self.receiver.wait(lambda: len(self.receiver.accepted) >= requests)


@contextlib.contextmanager
def backend(protocol: str, *script: Answer, port: int = 0) -> Iterator[Backend]:
    receiver = Receiver()
    receiver.script.extend(script)
    with SERVE[protocol](receiver, port) as bound:
        yield Backend(receiver, bound)


@contextlib.contextmanager
def exporting(to: Backend, protocol: str, red: bool = True, **others: str) -> Iterator[Metrics]:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{to.port}",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_METRIC_EXPORT_INTERVAL": "50",
        **others,
    }
    made = Metrics.make(environ, MONITOR, OWN, red, to.said.append)
    assert made is not None
    made.start()
    try:
        yield made
    finally:
        made.close(DEADLINE)


def meter(of: Metrics) -> Meter:
    assert of.meter is not None
    return of.meter


def numbers(message: ExportMetricsServiceRequest) -> dict[tuple[str, ...], float]:
    found = {}
    for resource in message.resource_metrics:
        for metric in resource.scope_metrics[0].metrics:
            data = getattr(metric, str(metric.WhichOneof("data")))
            for point in data.data_points:
                labels = tuple(each.value.string_value for each in point.attributes)
                found[(metric.name, *labels)] = point.as_double or point.as_int
    return found


SHAPES = [http("web"), http("shop", server=False), http("web", status=500)]
ROWS = [Row(0, 2_000_000, 11, 1), Row(1, 3_000_000, 1), Row(2, 0, 12, 2), Row(1, 4_000_000, 2)]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_own_metrics_arrive(protocol: str, compression: str) -> None:
    with (
        backend(protocol) as to,
        exporting(to, protocol, False, OTEL_EXPORTER_OTLP_COMPRESSION=compression) as exported,
    ):
        to.wait_for(1)
    message = to.messages()[0]
    (resource,) = message.resource_metrics
    assert [(each.key, each.value.string_value) for each in resource.resource.attributes] == [
        ("service.name", "wirespan")
    ]
    points = numbers(message)
    assert points["wirespan.spans", "server"] == 5
    assert points["wirespan.spans", "client"] == 6
    assert points["wirespan.losses", "ring_full"] == 2
    assert points["wirespan.losses", "gap"] == 0
    assert points["wirespan.ring.fill",] == 0.25
    assert points["wirespan.buffer.fill",] == 0.5
    assert points["wirespan.export.queue",] == 9
    assert points["process.cpu.time", "user"] > 0
    assert points["process.memory.usage",] > 1_000_000
    counts = exported.counts()
    assert (counts["metrics_failed"], to.said) == (0, [])
    assert counts["metrics_exports"] == len(to.accepted())
    if protocol == "http/protobuf":
        assert {each.path for each in to.accepted()} == {"/v1/metrics"}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_what_is_measured_arrives_whole(protocol: str) -> None:
    with backend(protocol) as to, exporting(to, protocol, OTEL_METRIC_EXPORT_INTERVAL="60000") as m:
        spans = batch(ROWS, SHAPES)
        meter(m).observe(spans)
        meter(m).submit(spans)
    (message,) = to.messages()
    services = {}
    for resource in message.resource_metrics:
        name = {each.key: each.value.string_value for each in resource.resource.attributes}
        assert resource.scope_metrics[0].scope.name == "wirespan"
        services[name["service.name"]] = {
            metric.name: metric for metric in resource.scope_metrics[0].metrics
        }
    assert set(services) == {"wirespan", "web", "shop"}
    server = services["web"]["http.server.request.duration"]
    assert server.unit == "s"
    assert server.exponential_histogram.aggregation_temporality == CUMULATIVE
    good, bad = server.exponential_histogram.data_points
    assert {each.key: each.value.string_value or each.value.int_value for each in good.attributes} \
        == {"http.request.method": "GET", "http.response.status_code": 200, "url.scheme": "http",
            "network.protocol.version": "1.1", "http.route": "/users/{id}"}  # fmt: skip
    assert (good.count, good.sum, good.min, good.max) == (1, 0.002, 0.002, 0.002)
    assert (good.scale, list(good.positive.bucket_counts)) == (8, [1])
    base = 2 ** (2**-good.scale)
    assert base**good.positive.offset < 0.002 <= base ** (good.positive.offset + 1)
    assert (bad.count, bad.zero_count, list(bad.positive.bucket_counts)) == (1, 1, [])
    (exemplar,) = good.exemplars
    assert exemplar.span_id == (11).to_bytes(8, "little")
    assert exemplar.trace_id == exemplar.span_id * 2
    assert (exemplar.as_double, exemplar.time_unix_nano) == (0.002, NOW + 2_000_000)
    assert services["shop"]["http.client.request.duration"].exponential_histogram.data_points[0]

    graph = {name: each for name, each in services["wirespan"].items() if name.startswith("traces")}
    assert set(graph) == {
        "traces_service_graph_request_total", "traces_service_graph_request_failed_total",
        "traces_service_graph_request_server", "traces_service_graph_request_client",
    }  # fmt: skip
    total = graph["traces_service_graph_request_total"].sum
    assert total.is_monotonic
    assert total.aggregation_temporality == CUMULATIVE
    assert sorted(
        (point.as_int, *(each.value.string_value or each.value.bool_value
                         for each in point.attributes))
        for point in total.data_points
    ) == [(1, "shop", "web", False, False), (1, "shop", "web", False, True)]  # fmt: skip
    (failures,) = graph["traces_service_graph_request_failed_total"].sum.data_points
    assert failures.as_int == 1


def test_bytes_that_are_no_utf8_do_not_cost_a_request() -> None:
    shapes = [http("caf\udce9", path="/\udce9")]
    red = Red(OWN, NOW)
    red.observe(batch([Row(0)], shapes), 0)
    (body,) = serialise(durations(red.collect(NOW + 1), "", False, NOW + 1), 1 << 20)
    (resource,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
    assert resource.resource.attributes[0].value.string_value == "caf\ufffd"


def test_many_series_are_several_requests() -> None:
    red = Red(OWN, NOW)
    shapes = [http(f"s{number}") for number in range(500)]
    red.observe(batch([Row(number) for number in range(500)], shapes), 0)
    resources = durations(red.collect(NOW + 1), "", False, NOW + 1)
    bodies = serialise(resources, 20_000)
    assert len(bodies) > 3
    assert all(len(body) <= 20_000 for body in bodies)
    messages = [ExportMetricsServiceRequest.FromString(body) for body in bodies]
    assert [each for message in messages for each in message.resource_metrics] == resources


@pytest.mark.parametrize("preference", ["cumulative", "delta", "LowMemory"])
def test_a_receiver_that_is_down_costs_no_measurement(preference: str) -> None:
    """Cumulative sums tell again what did not arrive; deltas are kept until they do."""
    port = free_port()
    spans = batch([Row(0)] * 3, SHAPES)
    settings = {
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": preference,
        # Long enough for a busy machine to answer: what is sent twice counts twice.
        "OTEL_METRIC_EXPORT_TIMEOUT": "600",
    }
    with exporting(Backend(Receiver(), port), "http/protobuf", **settings) as m:
        end = time.monotonic() + DEADLINE
        for failures in (1, 2, 3):
            meter(m).observe(spans)
            while m.counts()["metrics_failed"] < 2 * failures and time.monotonic() < end:
                time.sleep(0.01)
        assert m.counts()["metrics_failed"] >= 6
        with backend("http/protobuf", port=port) as to:
            to.wait_for(3)
            m.close(DEADLINE)
            totals = to.totals()
            kinds = {
                metric.exponential_histogram.aggregation_temporality
                for message in to.messages()
                for resource in message.resource_metrics
                for metric in resource.scope_metrics[0].metrics
                if metric.HasField("exponential_histogram")
            }
    if preference == "cumulative":
        assert kinds == {CUMULATIVE}
        assert set(totals) == {9}
    else:
        assert kinds == {DELTA}
        assert sum(totals) == 9


def test_a_request_is_tried_again_where_that_may_help() -> None:
    again = Answer(code=503), Answer(code=429, retry_after="0"), Answer(drop=True)
    with backend("http/protobuf", *again) as to:
        with exporting(to, "http/protobuf", OTEL_METRIC_EXPORT_INTERVAL="10000") as m:
            meter(m).observe(batch([Row(0)], SHAPES))
        assert to.totals() == [1]
        assert m.counts()["metrics_failed"] == 0


@pytest.mark.parametrize(
    ("protocol", "code"), [("grpc", grpc.StatusCode.UNIMPLEMENTED), ("http/protobuf", 404)]
)
def test_a_receiver_without_metrics_is_asked_no_more(
    protocol: str, code: grpc.StatusCode | int, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        backend(protocol, *[Answer(code=code)] * 9) as to,
        exporting(to, protocol) as m,
    ):
        to.receiver.wait(lambda: len(to.receiver.refused) == 1)
        time.sleep(0.3)
        assert len(to.receiver.refused) == 1
        meter(m).observe(batch([Row(0)], SHAPES))
        assert m.counts()["red_exchanges"] == 0, "nobody wants to know"
    assert to.said == ["metrics are not exported: the endpoint takes no metrics"]
    assert capfd.readouterr() == ("", "")


def test_a_receiver_that_fails_is_told_of_once() -> None:
    with (
        backend("grpc", *[Answer(code=grpc.StatusCode.INTERNAL)] * 1000) as to,
        exporting(to, "grpc") as m,
    ):
        to.receiver.wait(lambda: len(to.receiver.refused) >= 3)
    assert m.counts()["metrics_failed"] >= 3
    assert len(to.said) == 1
    assert "INTERNAL" in to.said[0]


def test_what_a_receiver_rejects_in_part_is_no_success() -> None:
    partial = ExportMetricsServiceResponse()
    partial.partial_success.rejected_data_points = 2
    partial.partial_success.error_message = "too old"
    with (
        backend("http/protobuf", Answer(body=partial.SerializeToString())) as to,
        exporting(to, "http/protobuf") as m,
    ):
        to.wait_for(2)
    assert m.counts()["metrics_failed"] == 1
    assert to.said == ["metrics are not exported: partial success: too old"]


def test_closing_does_not_wait_for_a_receiver_that_hangs() -> None:
    with backend("http/protobuf", *[Answer(hang=True)] * 9) as to:
        with exporting(to, "http/protobuf") as m:
            to.receiver.wait(lambda: len(to.receiver.refused) == 1)
            began = time.monotonic()
            m.close(0.3)
            assert time.monotonic() - began < 2.0
        to.receiver.release.set()


def test_a_span_that_the_kernel_kept_for_many_counts_for_them() -> None:
    red = Red(OWN, NOW)
    kept = Sampling(np.full(3, level_threshold(2), np.uint64), np.zeros(3, np.int32))
    Meter(red, True, print).observe(replace(batch([Row(0)] * 3, SHAPES), sampling=kept))
    assert red.counts()["red_exchanges"] == 3 * 4


def test_a_defect_in_measuring_ends_measuring_alone() -> None:
    class Broken(Red):
        def observe(self, batch: SpanBatch, now_ns: int, weights: Any = None) -> None:
            raise RuntimeError("boom")

    said: list[str] = []
    broken = Meter(Broken(OWN, NOW), True, said.append)
    for _ in range(3):
        broken.observe(batch([Row(0)], SHAPES))
    assert said == ["RED metrics ended: RuntimeError: boom"]


def test_a_defect_in_collecting_is_told_and_tried_again() -> None:
    class Broken:
        calls = 0

        def collect(self, now_ns: int) -> list[Any]:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("boom")
            return []

        def settle(self, now_ns: int) -> None:
            pass

    with backend("http/protobuf") as to:
        config = ExportConfig.from_environment(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{to.port}"}, signal="metrics"
        )
        exporter = MetricsExporter(
            config, [Broken()], Settings(0.02, 1.0, False, True), to.said.append
        )
        exporter.start()
        end = time.monotonic() + DEADLINE
        while not exporter.exports and time.monotonic() < end:
            time.sleep(0.01)
        exporter.close(DEADLINE)
    assert (exporter.failures, to.said) == (1, ["metrics are not exported: RuntimeError: boom"])
    assert not to.accepted(), "there was nothing to send"


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4317"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_METRICS_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_METRICS_EXPORTER": "console,otlp"}, True),
    ],
)
def test_metrics_are_for_who_wants_them(environ: dict[str, str], wanted: bool) -> None:
    assert ExportConfig.wanted(environ, "metrics") is wanted


def test_settings_of_the_environment() -> None:
    said: list[str] = []
    assert Settings.from_environment({}, said.append) == Settings(60.0, 30.0, False, True)
    assert Settings.from_environment(
        {
            "OTEL_METRIC_EXPORT_INTERVAL": "1500",
            "OTEL_METRIC_EXPORT_TIMEOUT": "700",
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "Delta",
            "OTEL_METRICS_EXEMPLAR_FILTER": "always_off",
        },
        said.append,
    ) == Settings(1.5, 0.7, True, False)
    assert said == []
    nonsense = {
        "OTEL_METRIC_EXPORT_INTERVAL": "1 s",
        "OTEL_METRIC_EXPORT_TIMEOUT": "0",
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "both",
    }
    assert Settings.from_environment(nonsense, said.append) == Settings(60.0, 30.0, False, True)
    assert {text.partition(":")[0] for text in said} == set(nonsense)


def test_an_endpoint_that_is_none_is_told() -> None:
    said: list[str] = []
    environ = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "nonsense"}
    assert Metrics.make(environ, MONITOR, OWN, True, said.append) is None
    assert len(said) == 1
    assert "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT" in said[0]


def test_exemplars_can_be_turned_off() -> None:
    with backend("http/protobuf") as to, exporting(
        to, "http/protobuf", OTEL_METRICS_EXEMPLAR_FILTER="always_off",
        OTEL_METRIC_EXPORT_INTERVAL="60000",
    ) as m:  # fmt: skip
        meter(m).observe(batch([Row(0)], SHAPES))
        meter(m).submit(batch([Row(0)], SHAPES))
    histograms = [
        point
        for resource in to.messages()[0].resource_metrics
        for metric in resource.scope_metrics[0].metrics
        for point in metric.exponential_histogram.data_points
    ]
    assert [(point.count, len(point.exemplars)) for point in histograms] == [(1, 0)]
    assert np.isclose(histograms[0].sum, 0.001)
