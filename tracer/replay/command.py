"""`wirespan replay`: wires capture, streams, engine, span maker, stitcher and where spans go.

Nothing is lost for want of speed: who is slow is waited for.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import BinaryIO, Literal, cast

from tracer import render
from tracer.errors import WirespanError
from tracer.export import Exporter
from tracer.export_config import ExportConfig, unknown_exporters
from tracer.flows import Reassembler
from tracer.installed import object_path
from tracer.kernel.layout import load_layout
from tracer.link.stitch import Stitcher
from tracer.options import environment
from tracer.protocols.base import OPT_IN, Settings
from tracer.replay.capture import Capture
from tracer.replay.engine import Engine
from tracer.replay.options import ReplayOptions
from tracer.replay.packet import Segment, Skipped, segment_of
from tracer.replay.sockets import Services, Side, Sockets
from tracer.replay.tcp import Streams
from tracer.routes import RouteTable
from tracer.sinks import Render
from tracer.spans import SpanBatch

# Records made into spans at once, and how long they wait for that many, in seconds.
BATCH_RECORDS = 8_192
BATCH_S = 0.2
MAX_ROUTES = 1_000
# An exporter that takes no span for so long is given up, in seconds; how often it is asked.
STUCK_S, ASK_S = 5.0, 0.01

# The latest time that counts: what is beyond is a damaged packet's.
MAX_NS = 1 << 62

# Why a packet was passed over -> the name of that loss; the rest is none.
SKIPS = {Skipped.FRAGMENT: "fragments", Skipped.MALFORMED: "malformed_packets"}


def run(options: ReplayOptions) -> int:
    """Make spans of a capture. Returns the exit code; raises WirespanError."""
    with ExitStack() as stack:
        name = "standard input" if options.file == "-" else options.file
        capture = Capture(stack.enter_context(_source(options.file)), name)
        return Replay(options, capture, name, stack).run()


class Replay:
    """One run over one capture."""

    def __init__(
        self, options: ReplayOptions, capture: Capture, name: str, stack: ExitStack
    ) -> None:
        """Connect all parts. capture: called `name` in messages."""
        layout = load_layout(object_path())
        self._capture = capture
        self._name = name
        self._engine = Engine(layout)
        self._streams = Streams()
        self._sockets = Sockets(self._engine, cast(Side, options.side))
        self._services = Services()
        self._reassembler = Reassembler(
            self._services,
            RouteTable(MAX_ROUTES),
            Settings(
                query=cast(Literal["mask", "raw", "drop"], options.query),
                sql=cast(Literal["mask", "raw", "drop"], options.sql),
                # There are no threads in a capture.
                opt_in=OPT_IN - {"thread.id"},
                seed=secrets.randbits(64),
            ),
        )
        self._stitcher = Stitcher()
        self._sink = Sink(options, stack)
        self._room = self._engine.room(BATCH_RECORDS)
        self._filled = 0
        self._fed_s = time.monotonic()
        self._now_ns = 0
        self._skipped: Counter[Skipped] = Counter()
        self.spans = 0

    def run(self) -> int:
        """Read all, tell what it came to; Ctrl-C ends the capture early."""
        code = 0
        try:
            self._read()
        except KeyboardInterrupt:
            code = 130  # as a shell reports SIGINT
        self._sockets.feed(self._streams.finish())
        self._take(last=True)
        self._sink.close()
        if self._capture.broken:
            raise WirespanError(
                f"cannot replay {self._name}: {self._capture.warning}",
                "it should be a capture file",
            )
        if self._capture.warning:
            say(f"warning: {self._name}: {self._capture.warning}")
        if self._capture.link_types:
            types = ", ".join(map(str, sorted(self._capture.link_types)))
            say(f"warning: {self._name}: packets of link types that are not supported: {types}")
        say(self._summary())
        self._sink.check()
        return code

    def _read(self) -> None:
        skipped, feed, streams = self._skipped, self._sockets.feed, self._streams
        for packet in self._capture:
            self._now_ns = max(self._now_ns, min(packet.time_ns, MAX_NS))
            segment = segment_of(packet.link_type, packet.data, packet.time_ns)
            if not isinstance(segment, Segment):
                skipped[segment] += 1
            elif events := streams.take(segment):
                feed(events)
                self._take()

    def _take(self, last: bool = False) -> None:
        """Take records out of the engine, and make spans of them once they are worth it."""
        while True:
            self._filled += self._engine.take(self._room[self._filled :])
            full = self._filled == len(self._room)
            late = time.monotonic() - self._fed_s > BATCH_S
            if self._filled and (full or last or late):
                records = self._room[: self._filled]
                self._services.number(records)
                batch = self._reassembler.feed(records, 0)
                self._filled = 0
                self._submit(self._stitcher.feed(batch, self._now_ns))
                self._fed_s = time.monotonic()
            if not full:
                break
        if last:
            self._submit(self._stitcher.flush(self._now_ns, all=True))

    def _submit(self, batches: Sequence[SpanBatch]) -> None:
        for batch in batches:
            self.spans += len(batch)
            self._sink.submit(batch)

    def _losses(self) -> dict[str, int]:
        lost = {name: self._skipped[why] for why, name in SKIPS.items()}
        lost["unsupported_packets"] = self._capture.unsupported
        lost["missing_bytes"] = self._streams.missing_bytes
        lost["connections_evicted"] = self._streams.evicted
        lost["connections_disordered"] = self._streams.disordered
        lost |= self._engine.losses() | self._reassembler.losses() | self._stitcher.losses()
        return lost | self._sink.losses()

    def _summary(self) -> str:
        lost = ", ".join(f"{name} {value}" for name, value in self._losses().items() if value)
        return (
            f"{self._capture.packets} packets, {self._streams.connections} connections, "
            f"{self.spans} spans; lost: {lost or 'nothing'}"
        )


class Sink:
    """Where spans go: standard output, an OTLP endpoint, both or neither."""

    def __init__(self, options: ReplayOptions, stack: ExitStack) -> None:
        self._render = _render(options.output)
        self._config = _export_config(options)
        self._exporter: Exporter | None = None
        if self._config:
            self._exporter = Exporter(self._config)
            stack.callback(self._exporter.close, 0.0)

    def submit(self, batch: SpanBatch) -> None:
        """Write and send a batch; waits until there is room for it."""
        if self._render:
            text = "".join(f"{line}\n" for line in self._render(batch))
            try:
                sys.stdout.buffer.write(text.encode(errors="backslashreplace"))
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                raise
            except OSError as error:
                raise WirespanError(f"cannot write to standard output: {error.strerror}") from None
        if self._exporter and self._config:
            limits = self._config.limits
            if not self._wait(limits.queue_spans // 4, limits.queue_bytes // 4):
                why = self._exporter.stats().last_error or "it takes nothing"
                raise WirespanError(
                    f"cannot export to {self._config.endpoint}: {why}", "see --otlp-endpoint"
                )
            self._exporter.submit(batch)

    def close(self) -> None:
        """Wait until everything is sent."""
        if self._exporter:
            self._wait(0, 0)
            self._exporter.close(ASK_S)

    def check(self) -> None:
        """Raise WirespanError if spans were not exported."""
        if self._exporter and self._config and (lost := sum(self.losses().values())):
            why = self._exporter.stats().last_error or "it takes too long"
            raise WirespanError(
                f"{lost} spans were not exported to {self._config.endpoint}: {why}",
                "see --otlp-endpoint",
            )

    def losses(self) -> dict[str, int]:
        """Count spans that were not exported, by the short names of tracer.losses.USER."""
        if not self._exporter:
            return {}
        names = {"closed": "export_unsent"}
        dropped = self._exporter.stats().dropped
        return {names.get(why, f"export_{why}"): count for why, count in dropped.items()}

    def _wait(self, spans: int, size: int) -> bool:
        """Wait until no more is queued than that; returns False where nothing moves any more."""
        assert self._exporter
        since, before = time.monotonic(), -1
        while True:
            stats = self._exporter.stats()
            if stats.queued_spans <= spans and stats.queued_bytes <= size:
                return True
            now = time.monotonic()
            if stats.queued_spans != before:
                since, before = now, stats.queued_spans
            if now - since > STUCK_S:
                return False
            time.sleep(ASK_S)


def say(text: str) -> None:
    """Talk on standard error, even where nobody listens any more."""
    with contextlib.suppress(OSError, ValueError):
        print(f"wirespan: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _source(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = open(name, "rb")
    except OSError as error:
        raise WirespanError(
            f"cannot read {name}: {error.strerror}", "give a capture file"
        ) from None
    with file:
        yield file


def _render(output: str) -> Render | None:
    """How to print on standard output; colours only for a terminal, see https://no-color.org/."""
    if output == "none":
        return None
    if output == "json":
        return render.json_lines
    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return partial(render.text_lines, color=color)


def _export_config(options: ReplayOptions) -> ExportConfig | None:
    """Where spans are exported to; None where nothing names an endpoint."""
    environ = environment(options, os.environ)
    for text in unknown_exporters(environ):
        say(f"warning: {text}")
    if not ExportConfig.wanted(environ) and "endpoint" not in dict(options.otlp):
        return None
    return ExportConfig.from_environment(environ)
