"""Metrics to a receiver: one thread that collects, serialises and sends at an interval.

Nothing here touches spans: another connection, another thread, and whatever goes wrong is
counted and told of once. A sum or histogram that is cumulative loses nothing by a request
that does not arrive, for the next one tells it again. One that is delta is kept, in order,
until it arrives or UNSENT_BYTES are exceeded.

Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tracer.export import Transport, connect
from tracer.export_config import ExportConfig
from tracer.export_reply import Reply, Verdict

if TYPE_CHECKING:
    from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics

UNSENT_BYTES = 16 << 20
INTERVAL_MS, TIMEOUT_MS = 60_000, 30_000
TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


@dataclass(frozen=True, slots=True)
class Settings:
    """How metrics are collected.

    delta: sums and histograms count from one export to the next. `lowmemory` means just
        that as well, as all that is measured here is measured where it happens.
    exemplars: whether histograms name a trace.
    """

    interval_s: float
    timeout_s: float
    delta: bool
    exemplars: bool

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], warn: Callable[[str], None] = lambda _: None
    ) -> Settings:
        """Read the environment; a value that makes no sense is told of and not taken."""

        def milliseconds(name: str, default: int) -> float:
            text = environ.get(name, "").strip()
            if text and not (text.isascii() and text.isdigit() and int(text)):
                warn(f"{name}: {text!r} is not a number of milliseconds; {default} is taken")
                text = ""
            return (int(text) if text else default) / 1000

        preference = environ.get(TEMPORALITY, "").strip().lower() or "cumulative"
        if preference not in ("cumulative", "delta", "lowmemory"):
            warn(f"{TEMPORALITY}: {preference!r} is not known; cumulative is taken")
            preference = "cumulative"
        return cls(
            interval_s=milliseconds("OTEL_METRIC_EXPORT_INTERVAL", INTERVAL_MS),
            timeout_s=milliseconds("OTEL_METRIC_EXPORT_TIMEOUT", TIMEOUT_MS),
            delta=preference != "cumulative",
            exemplars=environ.get("OTEL_METRICS_EXEMPLAR_FILTER", "").strip() != "always_off",
        )


class Source(Protocol):
    """What has metrics. Called by the exporter's thread alone; Unix time, ns."""

    def collect(self, now_ns: int) -> Sequence[ResourceMetrics]:
        """Take a picture."""

    def settle(self, now_ns: int) -> None:
        """Take note that the last picture is with the receiver, or safely kept for it."""


class MetricsExporter:
    """Exports at an interval, and once more when it is closed.

    settings: how often, and whether sums and histograms of sources are delta.
    warn: told once, in words, why metrics do not arrive.
    on_refused: called when the receiver turns out to take no metrics at all; nothing is
        exported from then on.
    """

    def __init__(
        self,
        config: ExportConfig,
        sources: Sequence[Source],
        settings: Settings,
        warn: Callable[[str], None],
        on_refused: Callable[[], None] = lambda: None,
        transport: Transport | None = None,
    ) -> None:
        self._config = config
        self._sources = tuple(sources)
        self._settings = settings
        self._warn = warn
        self._on_refused = on_refused
        self._transport = transport or connect(config)
        self._unsent: list[bytes] = []
        self._closing = threading.Event()
        self._give_up_at = float("inf")
        self._refused = self._warned = False
        self.exports = 0
        self.failures = 0  # exports that did not arrive, or not in time
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self) -> None:
        """Begin; the first export comes after one interval."""
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Export once more and stop, in `timeout` seconds at most."""
        self._warned = True
        self._give_up_at = time.monotonic() + timeout
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
            if self._thread.is_alive():
                self._transport.abort()
                self._thread.join(timeout)

    def _run(self) -> None:
        try:
            due = time.monotonic() + self._settings.interval_s
            while not self._closing.wait(max(0.0, due - time.monotonic())):
                # Late is late: what could not be done in time is not made up for.
                due = max(due + self._settings.interval_s, time.monotonic())
                self._export()
                if self._refused:
                    return
            self._export()
        finally:
            self._transport.close()

    def _export(self) -> None:
        try:
            arrived = self._collect_and_send()
        except Exception as error:
            # Nothing may end this thread: metrics would stop without a word.
            arrived = False
            self._tell(f"{type(error).__name__}: {error}")
        self.exports += arrived
        self.failures += not arrived

    def _collect_and_send(self) -> bool:
        # Loads the generated classes, in this thread and not at the start.
        from tracer.metrics_otlp import serialise

        now_ns = time.time_ns()
        resources = [made for source in self._sources for made in source.collect(now_ns)]
        requests = serialise(resources, self._config.limits.request_bytes)
        if not self._settings.delta:
            self._unsent.clear()
        self._unsent += requests
        give_up = min(time.monotonic() + self._settings.timeout_s, self._give_up_at)
        arrived = True
        while self._unsent:
            verdict = self._deliver(self._unsent[0], give_up)
            arrived &= verdict is Verdict.ACCEPTED
            if verdict is Verdict.RETRY:
                break
            self._unsent.pop(0)
        while sum(map(len, self._unsent)) > UNSENT_BYTES:
            self._unsent.pop(0)
        if arrived or self._settings.delta:
            for source in self._sources:
                source.settle(now_ns)
        return arrived

    def _deliver(self, request: bytes, give_up: float) -> Verdict:
        """Send one request, again where that may help, until give_up (monotonic s).

        REJECTED: it, or a part of it, was refused for good. RETRY: it has not arrived yet.
        """
        body = self._transport.prepare(request)
        limits = self._config.limits
        backoff = limits.backoff_initial_s
        while True:
            left = give_up - time.monotonic()
            if left <= 0:
                return Verdict.RETRY
            timeout = self._config.timeout_s
            reply = self._send(body, left if timeout is None else min(timeout, left))
            if reply.verdict is Verdict.ACCEPTED:
                if reply.message:
                    self._tell(reply.message)
                return Verdict.REJECTED if reply.rejected_spans else Verdict.ACCEPTED
            if reply.unknown_signal:
                self._refused = True
                self._tell("the endpoint takes no metrics")
                self._on_refused()
                return Verdict.RETRY
            self._tell(reply.message)
            if reply.verdict is Verdict.REJECTED:
                return Verdict.REJECTED
            pause = max(backoff * random.uniform(0.5, 1.0), reply.retry_after_s or 0.0)
            backoff = min(2 * backoff, limits.backoff_max_s)
            if time.monotonic() + pause >= min(give_up, self._give_up_at):
                return Verdict.RETRY
            self._closing.wait(pause)
            if self._closing.is_set():
                give_up = min(give_up, self._give_up_at)
                time.sleep(min(pause, 0.05))

    def _send(self, body: bytes, timeout_s: float) -> Reply:
        try:
            return self._transport.send(body, timeout_s)
        except Exception as error:
            return Reply(Verdict.RETRY, repr(error))

    def _tell(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            self._warn(f"metrics are not exported: {why}")
