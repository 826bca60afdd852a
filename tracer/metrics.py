"""Which metrics leave: what the tracer knows of itself, and rate, errors and durations.

Only where an OTLP endpoint is set, and `otlp` is in OTEL_METRICS_EXPORTER (`none` turns them
off); when and how they leave is in tracer.metrics_export.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tracer.errors import UsageError
from tracer.export_config import ExportConfig
from tracer.installed import version
from tracer.metrics_export import MetricsExporter, Settings, Source
from tracer.monitor import Monitor, cpu_seconds, rss_bytes
from tracer.red.aggregate import Red
from tracer.sampling import weights
from tracer.spans import Resource, SpanBatch

if TYPE_CHECKING:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics


class Metrics:
    """All that a tracer has to do with metrics: `start`, `close`, counts and losses.

    environ: as the flags leave it. own: the tracer's resource. red: whether to measure what
        is traced. warn: is told, in words, why metrics do not arrive.
    Raises UsageError where the environment makes no sense.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        monitor: Monitor,
        own: Resource,
        red: bool,
        warn: Callable[[str], None],
    ) -> None:
        config = ExportConfig.from_environment(environ, signal="metrics")
        settings = Settings.from_environment(environ, warn)
        sources: list[Source] = [OwnSource(monitor, own)]
        self._red = Red(own, time.time_ns(), settings.delta) if red else None
        self.meter: Meter | None = None
        if self._red:
            self.meter = Meter(self._red, settings.exemplars, warn)
            sources.append(RedSource(self._red, settings.delta))
        self._exporter = MetricsExporter(config, sources, settings, warn, self._refused)

    @classmethod
    def make(
        cls,
        environ: Mapping[str, str],
        monitor: Monitor,
        own: Resource,
        red: bool,
        warn: Callable[[str], None],
    ) -> Metrics | None:
        """Return None where nobody asked for metrics, or asked for what makes no sense."""
        if not ExportConfig.wanted(environ, "metrics"):
            return None
        try:
            return cls(environ, monitor, own, red, warn)
        except UsageError as error:
            warn(f"metrics are not exported: {error}")
            return None

    def start(self) -> None:
        """Begin to export."""
        self._exporter.start()

    def close(self, timeout: float) -> None:
        """Export once more and stop, in `timeout` seconds at most."""
        self._exporter.close(timeout)

    def counts(self) -> dict[str, int]:
        """Count what was measured and sent, for `wirespan status`."""
        sent = {
            "metrics_exports": self._exporter.exports,
            "metrics_failed": self._exporter.failures,
        }
        return sent | self._red.counts() if self._red else sent

    def losses(self) -> dict[str, int]:
        """Count what was measured less finely than it should be; keys of tracer.losses.USER."""
        return {"metrics_overflow": self._red.overflow} if self._red else {}

    def _refused(self) -> None:
        if self.meter:
            self.meter.stop()


class Meter:
    """The pipeline's end of tracer.red: it never raises, and ends itself where that fails."""

    def __init__(self, red: Red, exemplars: bool, warn: Callable[[str], None]) -> None:
        self._red = red
        self._warn = warn
        self._on = True
        self._exemplars = exemplars

    def observe(self, batch: SpanBatch) -> None:
        """Count every span of a batch, before any is left out."""
        if self._on:
            self._try(lambda: self._red.observe(batch, time.monotonic_ns(), weights(batch)))

    def submit(self, batch: SpanBatch) -> None:
        """Choose exemplars among the spans that leave: a sink as others are."""
        if self._on and self._exemplars:
            self._try(lambda: self._red.exemplify(batch))

    def stop(self) -> None:
        """Count nothing more: nobody takes metrics."""
        self._on = False

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # metrics must not cost a span
            self.stop()
            self._warn(f"RED metrics ended: {type(error).__name__}: {error}")


class RedSource:
    """The metrics of tracer.red, for the exporter."""

    def __init__(self, red: Red, delta: bool) -> None:
        self._red = red
        self._delta = delta

    def collect(self, now_ns: int) -> list[ResourceMetrics]:
        """Take a picture of all series."""
        from tracer.metrics_otlp import durations

        return durations(self._red.collect(now_ns), version(), self._delta, now_ns)

    def settle(self, now_ns: int) -> None:
        """Let go of series that are idle."""
        self._red.settle(now_ns)


class OwnSource:
    """What the tracer knows of itself; names under `process.` are the conventions'.

    Its sums are cumulative whatever is preferred: that is how they are counted.
    """

    def __init__(self, monitor: Monitor, resource: Resource) -> None:
        self._monitor = monitor
        self._resource = resource
        self._start_ns = time.time_ns()

    def collect(self, now_ns: int) -> Sequence[ResourceMetrics]:
        """Ask the monitor."""
        from tracer.metrics_otlp import Number, numbers

        counts, gauges = self._monitor.counts(), self._monitor.gauges()
        losses = self._monitor.losses()
        plain = ()
        metrics = (
            Number(
                "wirespan.spans", "{span}", "Spans made", True,
                [((("wirespan.span.kind", kind),), counts.get(f"{kind}_spans", 0))
                 for kind in ("server", "client")],
            ),
            Number(
                "wirespan.losses", "{event}", "What was lost or passed over, by reason", True,
                [((("wirespan.loss.reason", name),), count) for name, count in losses.items()],
            ),
            Number(
                "wirespan.ring.fill", "1", "How full the ring between kernel and tracer is",
                None, [(plain, gauges.ring_fill)],
            ),
            Number(
                "wirespan.buffer.fill", "1", "How full the buffer behind the ring is",
                None, [(plain, gauges.buffer_fill)],
            ),
            Number(
                "wirespan.export.queue", "{span}", "Spans that wait to be exported",
                None, [(plain, gauges.export_queued)],
            ),
            Number(
                "process.cpu.time", "s", "CPU time of the tracer", True,
                [((("cpu.mode", mode),), seconds)
                 for mode, seconds in zip(("user", "system"), cpu_seconds(), strict=True)],
            ),
            Number(
                "process.memory.usage", "By", "Resident memory of the tracer",
                False, [(plain, rss_bytes())],
            ),
        )  # fmt: skip
        return [numbers(self._resource, version(), metrics, self._start_ns, now_ns)]

    def settle(self, now_ns: int) -> None:
        """Nothing is kept from one time to the next."""
