"""The tracer's own metrics, by the OpenTelemetry SDK over OTLP.

Only where an OTLP endpoint is set, and as the SDK's variables say: OTEL_METRICS_EXPORTER
(`none` turns them off), OTEL_METRIC_EXPORT_INTERVAL, OTEL_EXPORTER_OTLP_METRICS_*.
Span export is not touched by anything that goes wrong here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from tracer.monitor import Monitor, cpu_seconds, rss_bytes
from tracer.spans import AttributeValue

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.sdk.metrics.export import MetricExporter

_GENERIC = "OTEL_EXPORTER_OTLP_"
_OWN = "OTEL_EXPORTER_OTLP_METRICS_"
DEFAULT_TIMEOUT_S = 10.0

# The endpoint is there and knows no metrics: gRPC UNIMPLEMENTED, or these statuses.
_HTTP_REFUSALS = (404, 405, 501)


def setting(environ: Mapping[str, str], name: str) -> str:
    """A variable of the OTLP exporter, for metrics if it is set for them, else for all."""
    return environ.get(_OWN + name) or environ.get(_GENERIC + name) or ""


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether to export metrics: an endpoint is set and `otlp` is among the exporters."""
    exporters = environ.get("OTEL_METRICS_EXPORTER") or "otlp"
    return bool(setting(environ, "ENDPOINT")) and "otlp" in exporters.split(",")


class Metrics:
    """Exports at an interval, in a thread of the SDK.

    warn: told once, in words, why metrics do not arrive.
    """

    def __init__(
        self,
        monitor: Monitor,
        resource: Iterable[tuple[str, AttributeValue]],
        environ: Mapping[str, str],
        default_protocol: str,
        warn: Callable[[str], None],
    ) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource

        self.failures = 0  # exports that did not arrive
        exporter = _counted(_exporter(environ, default_protocol), self._count)
        self._log = _QuietLog(warn)
        self._log.install()
        self._provider = MeterProvider(
            metric_readers=[PeriodicExportingMetricReader(exporter)],
            resource=Resource(dict(resource)),
            shutdown_on_exit=False,
        )
        self._log.on_refused = self._stop
        _instruments(self._provider.get_meter("wirespan"), monitor)

    def close(self, timeout: float) -> None:
        """Export once more and stop, in `timeout` seconds at most."""
        self._stop(timeout).join(timeout)
        self._log.mute()

    def _count(self) -> None:
        self.failures += 1

    def _stop(self, timeout: float = DEFAULT_TIMEOUT_S) -> threading.Thread:
        # Not in this thread: it may be the SDK's own, which shutting down waits for.
        closing = threading.Thread(
            target=self._provider.shutdown, args=(timeout * 1000,), daemon=True
        )
        closing.start()
        return closing


def _exporter(environ: Mapping[str, str], default_protocol: str) -> MetricExporter:
    # In the specification the variable counts milliseconds, in this SDK seconds.
    try:
        timeout = float(setting(environ, "TIMEOUT")) / 1000
    except ValueError:
        timeout = DEFAULT_TIMEOUT_S
    protocol = setting(environ, "PROTOCOL") or default_protocol
    # Nor does its gRPC exporter know the specification's `none`.
    gzip = setting(environ, "COMPRESSION") == "gzip"
    if protocol == "grpc":
        from grpc import Compression as GrpcCompression
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
            OTLPMetricExporter as GrpcExporter,
        )

        grpc_compression = GrpcCompression.Gzip if gzip else GrpcCompression.NoCompression
        return GrpcExporter(timeout=timeout, compression=grpc_compression)
    from opentelemetry.exporter.otlp.proto.http import Compression as HttpCompression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
        OTLPMetricExporter as HttpExporter,
    )

    http_compression = HttpCompression.Gzip if gzip else HttpCompression.NoCompression
    return HttpExporter(timeout=timeout, compression=http_compression)


def _counted(exporter: MetricExporter, on_failure: Callable[[], None]) -> MetricExporter:
    """Wrap an exporter to see its results: its log, which drops repetitions, is no count."""
    from opentelemetry.sdk.metrics import export as sdk

    class Counted(sdk.MetricExporter):
        def export(
            self, metrics_data: sdk.MetricsData, timeout_millis: float = 10_000, **kwargs: object
        ) -> sdk.MetricExportResult:
            result = exporter.export(metrics_data, timeout_millis, **kwargs)
            if result is not sdk.MetricExportResult.SUCCESS:
                on_failure()
            return result

        def force_flush(self, timeout_millis: float = 10_000) -> bool:
            return exporter.force_flush(timeout_millis)

        def shutdown(self, timeout_millis: float = 30_000, **kwargs: object) -> None:
            exporter.shutdown(timeout_millis, **kwargs)

    return Counted(exporter._preferred_temporality, exporter._preferred_aggregation)


class _QuietLog(logging.Handler):
    """Takes what the SDK would print: passes on the first error, ends on a refusal."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn
        self._warned = False
        self.on_refused: Callable[[], object] = lambda: None

    def install(self) -> None:
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(self)
        logger.propagate = False
        # It drops whatever has the same template as the message before: a refusal, too.
        for name in logging.root.manager.loggerDict:
            if name.startswith("opentelemetry.exporter."):
                logging.getLogger(name).filters.clear()

    def mute(self) -> None:
        """Say nothing more; the SDK may still talk while it ends."""
        self._warned = True
        self.on_refused = lambda: None

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            return  # a retry under way
        refused = _refused(record)
        if refused:
            self.on_refused()
        if not self._warned:
            self._warned = True
            why = "the endpoint takes no metrics" if refused else record.getMessage()
            self._warn(f"own metrics are not exported: {why}")


def _refused(record: logging.LogRecord) -> bool:
    arguments = record.args if isinstance(record.args, tuple) else ()
    return any(
        getattr(argument, "name", "") == "UNIMPLEMENTED" or argument in _HTTP_REFUSALS
        for argument in arguments
        if isinstance(argument, int) or hasattr(argument, "name")
    )


def _instruments(meter: Meter, monitor: Monitor) -> None:
    """Declare what is measured; names under `process.` are those of the semantic conventions."""
    from opentelemetry.metrics import Observation

    def labelled(
        values: Callable[[], Iterable[tuple[str, float]]], attribute: str
    ) -> list[Callable[[CallbackOptions], Iterable[Observation]]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for label, value in values():
                yield Observation(value, {attribute: label} if label else {})

        return [observe]

    def plain(
        value: Callable[[], float],
    ) -> list[Callable[[CallbackOptions], Iterable[Observation]]]:
        return labelled(lambda: [("", value())], "")

    def spans() -> Iterator[tuple[str, float]]:
        counts = monitor.counts()
        yield "server", counts.get("server_spans", 0)
        yield "client", counts.get("client_spans", 0)

    meter.create_observable_counter(
        "wirespan.spans", labelled(spans, "wirespan.span.kind"), "{span}", "Spans made"
    )
    meter.create_observable_counter(
        "wirespan.losses",
        labelled(lambda: monitor.losses().items(), "wirespan.loss.reason"),
        "{event}",
        "What was lost or passed over, by reason",
    )
    meter.create_observable_gauge(
        "wirespan.ring.fill", plain(lambda: monitor.gauges().ring_fill), "1",
        "How full the ring between kernel and tracer is",
    )  # fmt: skip
    meter.create_observable_gauge(
        "wirespan.buffer.fill", plain(lambda: monitor.gauges().buffer_fill), "1",
        "How full the buffer behind the ring is",
    )  # fmt: skip
    meter.create_observable_gauge(
        "wirespan.export.queue", plain(lambda: monitor.gauges().export_queued), "{span}",
        "Spans that wait to be exported",
    )  # fmt: skip
    meter.create_observable_counter(
        "process.cpu.time",
        labelled(lambda: zip(("user", "system"), cpu_seconds(), strict=True), "cpu.mode"),
        "s",
        "CPU time of the tracer",
    )
    meter.create_observable_up_down_counter(
        "process.memory.usage", plain(rss_bytes), "By", "Resident memory of the tracer"
    )
