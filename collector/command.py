"""`wirespan collect`: wires intake, collector and sinks, and ends them in order."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from collector import peers
from collector.collector import Collector, Settings
from collector.forward import Forwarder, ForwardStats
from collector.intake import MEANINGS, Intake, IntakeConfig, Tls, read_tokens, server_context
from collector.model import Sink
from collector.options import CollectOptions
from tracer import ready
from tracer.errors import UsageError
from tracer.export_config import ExportConfig
from tracer.export_tls import invalid

if TYPE_CHECKING:
    from collector.embedded import Embedded

FORWARD_S = 10.0
PEER_S = 1.0
LOOK_S = 1.0
# What is listed of the clocks that differ.
MAX_CLOCKS = 10
# Counters that are not worth a word while they are 0.
QUIET = frozenset(
    {
        "malformed", "refused", "rejected", "duplicate", "joined", "late", "split", "evicted",
        "renamed", "unresolved", "replaced", "shifted", "sink_failed", "held", *MEANINGS,
    }
)  # fmt: skip


def collect(options: CollectOptions, sinks: Sequence[Sink] = ()) -> int:
    """Collect until told to stop. Returns the exit code; raises WirespanError.

    sinks: others than the OTLP receiver of the options; they are the caller's to close.
    """
    environ = environment(options.otlp, os.environ)
    ready.check(options.ready_file)
    intake_config = _intake_config(options)
    _remark(intake_config.tls)
    with ExitStack() as stack:
        everything = list(sinks)
        forwarder: Forwarder | None = None
        endpoint = ""
        if ExportConfig.requested(environ):
            config = ExportConfig.from_environment(environ)
            endpoint = config.shown
            _check_endpoint(config, options)
            forwarder = Forwarder(config)
            stack.callback(forwarder.close, 0.0)
            everything.append(forwarder)
        embedded = _store(options)
        if embedded:
            stack.callback(embedded.close)
            everything.append(embedded)
        if not everything:
            raise UsageError(
                "spans would go to nobody",
                "set --otlp-endpoint, for example http://HOST:4317, or --store",
            )
        others = peers.connect(options.peers, intake_config.tokens, intake_config.tls)
        for other in others.values():
            stack.callback(other.close, 0.0)
        failed = _FirstOfEach()
        collector = Collector(
            everything,
            Settings(options.limits, options.prefer),
            peers=tuple(others.values()),
            on_failure=failed.tell,
        )
        stack.callback(collector.close)
        stop, status = threading.Event(), threading.Event()
        with _signals(stop, status):
            intake = Intake(collector, intake_config)
            stack.callback(intake.close)
            _banner(intake, options, filter(None, (endpoint, options.store)))
            with ready.kept(options.ready_file, _ways_in(intake.ports)):
                receivers = dict(others)
                if forwarder:
                    receivers[endpoint] = forwarder
                tell = partial(_tell, collector, intake, forwarder)
                _wait(stop, status, options.status_s, tell, receivers)
            # In the order in which spans flow, so that nothing is left between.
            intake.close()
            collector.close()
            for other in others.values():
                other.close(PEER_S)
            if forwarder:
                forwarder.close(FORWARD_S)
            if embedded:
                embedded.close()
        _tell(collector, intake, forwarder)
        for endpoint, other in others.items():
            stats = other.stats()
            say(f"peer {endpoint}: told of {stats.sent} spans, {sum(stats.dropped.values())} not")
        if embedded:
            lost = {name: value for name, value in embedded.losses().items() if value}
            say(f"store {options.store}: lost {lost or 'nothing'}")
    return 0


def environment(otlp: Sequence[tuple[str, str]], environ: Mapping[str, str]) -> dict[str, str]:
    """What `environ` becomes under the OTLP flags given; see tracer.options.environment."""
    merged = dict(environ)
    for name, value in otlp:
        merged[f"OTEL_EXPORTER_OTLP_{name.upper()}"] = value
        merged.pop(f"OTEL_EXPORTER_OTLP_TRACES_{name.upper()}", None)
    return merged


def summary(counts: Mapping[str, int], stats: ForwardStats | None) -> str:
    """One line on what a run came to."""
    parts = [f"{name} {value}" for name, value in counts.items() if value or name not in QUIET]
    if stats:
        parts.append(f"sent {stats.sent}")
        parts += [f"unsent ({reason}) {count}" for reason, count in stats.dropped.items() if count]
        if stats.queued:
            parts.append(f"queued {stats.queued}")
        if any(stats.dropped.values()) and stats.last_error:
            parts.append(f"the last error was: {stats.last_error}")
    return ", ".join(parts)


def say(text: str) -> None:
    """Talk on standard error, even where nobody listens any more."""
    with contextlib.suppress(OSError, ValueError):
        print(f"wirespan: {text}", file=sys.stderr, flush=True)


class _FirstOfEach:
    """Tells of each kind of failure once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, error: Exception) -> None:
        kind = type(error).__name__
        if kind not in self._told:
            self._told.add(kind)
            say(f"spans could not be handed on: {kind}: {error}")


def _intake_config(options: CollectOptions) -> IntakeConfig:
    tls = None
    if options.tls_certificate:
        tls = Tls(options.tls_certificate, options.tls_key, options.tls_client_ca)
    tokens = read_tokens(options.token_file) if options.token_file else ()
    return IntakeConfig(grpc=options.grpc, http=options.http, tokens=tokens, tls=tls)


def _store(options: CollectOptions) -> Embedded | None:
    """Open the store the options ask for; raises WirespanError."""
    if not options.store:
        return None
    # The store's database takes time and memory that a collector without it need not spend.
    from collector.embedded import Embedded

    embedded = Embedded(options.store, address=options.query_address)
    embedded.start()
    return embedded


def _check_endpoint(config: ExportConfig, options: CollectOptions) -> None:
    """Raise UsageError where spans would come back for ever."""
    found = re.search(r"(?:^|//)(\[[^\]]+\]|[^/:]+):(\d+)", config.endpoint)
    if found is None:
        return
    host, port = found[1].strip("[]"), int(found[2])
    here = {"localhost", "127.0.0.1", "::1"}
    for address in (options.grpc, options.http):
        if address and port == address.port and host in {address.host, *here}:
            raise UsageError(
                f"--otlp-endpoint {config.shown} is this collector's own intake",
                "name where its spans shall go, or listen elsewhere (--listen-grpc, --listen-http)",
            )


def _remark(tls: Tls | None) -> None:
    """Say what senders will say of our certificate. Raises UsageError where it can't be used."""
    if tls and (why := invalid(server_context(tls), tls.certificate)):
        say(f"--tls-certificate {tls.certificate}: {why}; no sender that looks will trust it")


def _banner(intake: Intake, options: CollectOptions, places: Iterable[str]) -> None:
    addresses = {"grpc": options.grpc, "http": options.http}
    where = []
    for name, port in intake.ports.items():
        address = addresses[name]
        assert address is not None
        where.append(f"{name} {type(address)(address.host, port)}")
        if not address.is_loopback and options.open_intake:
            say(f"who reaches {address} may send spans, and read others' (--open-intake)")
    say(f"listening: {', '.join(where)}; spans go to {' and '.join(places)}")


def _ways_in(ports: Mapping[str, int]) -> str:
    return "".join(f"{name} {port}\n" for name, port in ports.items())


def _wait(
    stop: threading.Event,
    status: threading.Event,
    status_s: float | None,
    tell: Callable[[], None],
    receivers: Mapping[str, Forwarder],
) -> None:
    """Say what there is to say until it is time to stop."""
    failing = dict.fromkeys(receivers, "")
    next_status = time.monotonic() + status_s if status_s else float("inf")
    while not stop.wait(min(LOOK_S, status_s or LOOK_S)):
        for endpoint, receiver in receivers.items():
            now_failing = receiver.stats().failing
            if now_failing and not failing[endpoint]:
                say(f"cannot send to {endpoint}: {now_failing}; trying on")
            if failing[endpoint] and not now_failing:
                say(f"sending to {endpoint} again")
            failing[endpoint] = now_failing
        if status.is_set() or time.monotonic() >= next_status:
            status.clear()
            next_status = time.monotonic() + (status_s or float("inf"))
            tell()


def _tell(collector: Collector, intake: Intake, forwarder: Forwarder | None) -> None:
    counts = {**collector.counts(), **intake.counts()}
    say(summary(counts, forwarder.stats() if forwarder else None))
    offsets = sorted(collector.clock_offsets().items(), key=lambda item: -abs(item[1]))
    for (one, other), offset_ns in offsets[:MAX_CLOCKS]:
        ahead = "ahead of" if offset_ns > 0 else "behind"
        say(f"clock of {other} is {abs(offset_ns) / 1e6:.3f} ms {ahead} that of {one}")


@contextlib.contextmanager
def _signals(stop: threading.Event, status: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM end, SIGUSR1 asks for the status; a second one ends at once."""

    def end(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stop.set()

    handlers = {signal.SIGINT: end, signal.SIGTERM: end, signal.SIGUSR1: lambda *_: status.set()}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
