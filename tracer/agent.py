"""`wirespan run`: wires kernel, pipeline, sinks, exporter and control, and ends them in order.

The only module that knows all the others.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Literal, cast

from collector.options import DEFAULT_QUERY
from tracer import installed, metrics, ready, render, status
from tracer.clock import unix_offset_ns
from tracer.contexts import Announced, Contexts
from tracer.control import JSON, TEXT, Control, ControlServer
from tracer.descriptors import make_room
from tracer.errors import UsageError, WirespanError
from tracer.export import Exporter
from tracer.export_config import ExportConfig, unknown_exporters
from tracer.export_reply import NOT_OTLP
from tracer.flows import Reassembler
from tracer.governor import Governor, Look
from tracer.instance import InstanceLock
from tracer.kernel import hooks, memory, privileges
from tracer.kernel.loader import Filters, Settings
from tracer.link.stitch import Stitcher
from tracer.losses import KERNEL, USER
from tracer.monitor import SAMPLE_S, Gauges, Monitor
from tracer.options import RunOptions, environment
from tracer.pipeline import Pipeline
from tracer.process import ProcessTable
from tracer.protocols import base
from tracer.resource import host_attributes, tracer_attributes
from tracer.routes import RouteTable
from tracer.sampling import Sampler
from tracer.sampling_options import policy
from tracer.sinks import Output, Render, Sink, TailHub
from tracer.spans import Resource
from tracer.startup import Taken

if TYPE_CHECKING:
    from proto.wirespan.v1 import control_pb2
    from tracer.store import StoreSink

TWICE_S = 1.0
# How long each part of the end may take: the ring, then output, spans, store, metrics.
DRAIN_S, OUTPUT_S, EXPORT_S, STORE_S, METRICS_S = 3.0, 20.0, 5.0, 10.0, 1.0
STORE_FAILED_S = 2.0
MAX_ROUTES = 1_000
# What a time of many processes, or of a backend that is away, has needed for a while lies in the
# middle of the heap then: 13 of 139 MB after 30,000 processes.
GIVE_BACK_S = 60.0
# How long a thread may keep the interpreter from another, in seconds: the ring fills meanwhile.
SWITCH_S = 0.001

# What tracer.export calls its reasons -> what tracer.losses does.
EXPORT_LOSSES: Mapping[str, str] = {
    "queue_full": "export_queue_full",
    "rejected": "export_rejected",
    "failed": "export_failed",
    "encode": "export_encode",
    "closed": "export_unsent",
}

RENDERS: Mapping[int, Render] = {
    TEXT: render.text_lines,
    JSON: render.json_lines,
}


def run(options: RunOptions, taken: Taken | None = None) -> int:
    """Trace until told to stop. Returns the exit code; raises WirespanError.

    taken: what startup.begin() took, whose fd becomes this run's to close.
    """
    sys.setswitchinterval(SWITCH_S)
    make_room()
    with ExitStack() as stack:
        return Agent(options, stack, taken or Taken()).run()


class Agent:
    """One run. Everything that must be undone is on `stack`, in case of failure as well."""

    def __init__(self, options: RunOptions, stack: ExitStack, taken: Taken) -> None:
        """Load the programs and connect all parts; nothing is attached yet."""
        self._options = options
        self._stop = threading.Event()
        self._failure = ""
        self._remarked = False
        if taken.stats_fd is not None:
            stack.callback(os.close, taken.stats_fd)
        environ = environment(options, os.environ)
        for text in unknown_exporters(environ):
            say(text)
        ready.check(options.ready_file)
        config = _export_config(options)
        self._config = config
        if options.downstream and not config:
            raise UsageError(
                "--stitch collector: there is no OTLP endpoint that a collector could be at",
                "give --otlp-endpoint, for example http://HOST:4317",
            )

        if options.red_metrics and not ExportConfig.wanted(environ, "metrics"):
            raise UsageError(
                "--red-metrics on: metrics are exported to nobody",
                "give --otlp-endpoint, for example http://HOST:4317, and no "
                "OTEL_METRICS_EXPORTER=none",
            )

        lock = InstanceLock(options.socket)
        lock.acquire()
        stack.callback(lock.release)

        self._exporter: Exporter | None = None
        if config:
            self._exporter = Exporter(config)
            stack.callback(self._exporter.close, 0.0)

        kernel, self._hooks = hooks.load(
            options.hooks,
            _filters(options),
            Settings(
                ring_bytes=options.ring_bytes,
                max_connections=options.max_connections,
                knobs={"cfg_link": 1},
            ),
            say,
        )
        self._kernel = status.KernelView(kernel)
        stack.callback(self._kernel.close)
        self._loaded = kernel

        self._store_failure = ""
        self._store = self._open_store()
        if self._store:
            stack.callback(self._store.close, STORE_FAILED_S)

        self._hub = TailHub()
        self._output: Output | None = None
        if options.output != "none":
            self._output = Output(
                1,
                _render(options.output),
                self._output_broken,
                lambda: self._pipeline.busy(),
            )
        self._contexts = Contexts(kernel, say)
        stack.callback(self._contexts.close)
        self._reassembler = Reassembler(
            Announced(ProcessTable(host_attributes(environ)), self._contexts),
            RouteTable(MAX_ROUTES),
            base.Settings(
                query=cast(Literal["mask", "raw", "drop"], options.query),
                sql=cast(Literal["mask", "raw", "drop"], options.sql),
                seed=int.from_bytes(os.urandom(8), "little"),
            ),
        )
        kept = policy(options.sample, options.keep_errors, options.keep_slower_ns, environ, say)
        self._sampler = None if kept.keeps_all else Sampler(kept)
        self._looked = 0, 0  # records, and how many the ring had no room for
        self._governor: Governor | None = None
        if options.max_cpu:
            self._governor = Governor(
                options.max_cpu,
                self._look,
                lambda: self._pipeline.buffer_fill(),
                self._kernel.shed,
            )
        self._stitcher = Stitcher(options.downstream, sampler=self._sampler)
        sinks: list[Sink] = [self._hub]
        sinks += [sink for sink in (self._exporter, self._output, self._store) if sink]
        self._monitor = Monitor(self._counts, self._losses, self._gauges)
        self._metrics = metrics.Metrics.make(
            environ,
            self._monitor,
            Resource(tracer_attributes(environ)),
            options.red_metrics is not False,
            say,
        )
        meter = self._metrics.meter if self._metrics else None
        if meter and self._exporter:
            sinks.append(meter)
        self._pipeline = Pipeline(
            kernel.ring,
            self._reassembler.feed,
            unix_offset_ns,
            sinks,
            self._feed_failed,
            stitch=self._stitcher,
            observe=meter.observe if meter else None,
            sample=self._sampler,
            rest=memory.give_back,
            pause=self._governor.pause if self._governor else None,
        )
        self._control = ControlServer(
            options.socket,
            Control(self._status, self._hub, RENDERS),
        )

    def _open_store(self) -> StoreSink | None:
        """Open the store, where there should be one; raises WirespanError if it was asked for."""
        options = self._options.store
        if not options.wanted(exported=self._config is not None):
            return None
        # Its database takes time and memory that a tracer without it need not spend.
        from tracer.store import StoreSink

        store = StoreSink(options, lambda: self._pipeline.busy(), say)
        try:
            store.start()
        except WirespanError as error:
            if options.asked:
                raise
            self._store_failure = str(error)
            say(f"traces are not stored: {error} (--store, --query-address; --store none)")
            return None
        return store

    def run(self) -> int:
        """Attach, serve, wait, and end in the order in which spans flow."""
        with _signals(self._stop):
            if self._output:
                self._output.start()
            self._pipeline.start()
            try:
                self._control.start()
                if self._metrics:
                    self._metrics.start()
                self._contexts.start()
                self._loaded.attach()
                # What is there by now stays: not to be looked through time and again.
                gc.collect()
                gc.freeze()
                memory.give_back()
                if self._governor:
                    self._governor.start()
                self._banner()
                with ready.kept(self._options.ready_file, f"{os.getpid()}\n"):
                    self._wait()
            finally:
                self._end()
                gc.unfreeze()  # or extension modules take what is frozen for leaked, and say so
        say(summary(self._counts(), self._losses()))
        if self._store:
            stored = self._store.counts()["store_spans"]
            say(f"{stored} spans stored in {self._store.directory}, to be asked for while one runs")
        if self._failure:
            raise WirespanError(self._failure)
        return 0

    def _wait(self) -> None:
        """Sample counts now and then until it is time to stop."""
        duration = self._options.duration_s
        end = time.monotonic() + duration if duration is not None else float("inf")
        self._monitor.sample()
        failing = ""
        give_back = time.monotonic() + GIVE_BACK_S
        while not self._stop.wait(max(0.0, min(SAMPLE_S, end - time.monotonic()))):
            self._monitor.sample()
            failing = self._tell_export(failing)
            if time.monotonic() >= give_back:
                memory.give_back()
                give_back = time.monotonic() + GIVE_BACK_S
            if time.monotonic() >= end:
                return
            if not self._pipeline.alive:
                self._failure = "tracing stopped: the ring could not be read any more"
                return

    def _tell_export(self, before: str) -> str:
        """Say when exporting begins to fail and when it goes on; returns what is wrong now."""
        if self._exporter is None or self._config is None:
            return ""
        stats = self._exporter.stats()
        if stats.last_error == NOT_OTLP and not self._remarked:
            self._remarked = True
            say(f"{self._config.shown}: {NOT_OTLP}")
        if stats.failing and not before:
            say(f"cannot export to {self._config.shown}: {stats.failing}; trying on")
        if before and not stats.failing:
            say(f"exporting to {self._config.shown} again")
        return stats.failing

    def _end(self) -> None:
        """Take what is on its way to where it goes, each part in bounded time."""
        self._loaded.silence()
        if self._governor:
            self._governor.close()
        self._pipeline.stop(DRAIN_S)
        # Before the kernel's descriptors go, which its thread attaches probes by.
        self._contexts.close()
        self._kernel.close()
        self._hub.close()
        if self._output:
            self._output.close(OUTPUT_S)
        if self._exporter:
            self._exporter.close(EXPORT_S)
        if self._store:
            self._store.close(STORE_S)
        if self._metrics:
            self._metrics.close(METRICS_S)
        self._control.close()

    def _output_broken(self, why: str) -> None:
        # Nobody reads any more, as in `wirespan run | head`: done, unless something failed.
        if why:
            self._failure = f"cannot write to standard output: {why}"
        self._stop.set()

    def _feed_failed(self, error: BaseException) -> None:
        say(f"records could not be made into spans: {type(error).__name__}: {error}")

    def _counts(self) -> dict[str, int]:
        pipeline = self._pipeline
        counts = self._kernel.counts()
        # Before the counts of spans: those that came before are counted by then.
        since_ns = pipeline.held_since_ns
        held_ns = time.monotonic_ns() - since_ns if since_ns else 0
        counts |= {
            "records": pipeline.records,
            "batches": pipeline.batches,
            "server_spans": pipeline.server_spans,
            "client_spans": pipeline.client_spans,
            "held_spans": len(self._stitcher),
            "held_longest_ms": -(-held_ns // 1_000_000),
        }
        if self._output:
            counts["output_spans"] = self._output.written
        if self._metrics:
            counts |= self._metrics.counts()
        return counts

    def _losses(self) -> dict[str, int]:
        """Every loss there can be, by short name, the kernel's first."""
        losses = {loss.name: 0 for loss in (*KERNEL.values(), *USER.values())}
        losses |= self._kernel.losses()
        losses |= self._reassembler.losses() | self._stitcher.losses() | self._contexts.losses()
        if self._sampler:
            losses |= self._sampler.losses()
        losses["reader_full"] = self._pipeline.reader_full
        losses["feed_failed"] = self._pipeline.failed
        losses["tail_full"] = self._hub.dropped
        if self._metrics:
            losses |= self._metrics.losses()
        if self._output:
            losses["output_full"] = self._output.dropped
        if self._exporter:
            dropped = self._exporter.stats().dropped
            losses |= {EXPORT_LOSSES[reason]: count for reason, count in dropped.items()}
        if self._store:
            losses |= self._store.losses()
        return losses

    def _gauges(self) -> Gauges:
        return Gauges(
            ring_bytes=self._loaded.settings.ring_bytes or 0,
            ring_fill=self._kernel.ring_fill(),
            buffer_bytes=self._pipeline.buffer_bytes,
            buffer_fill=self._pipeline.buffer_fill(),
            export_queued=self._exporter.stats().queued_spans if self._exporter else 0,
        )

    def _status(self) -> control_pb2.StatusReply:
        return status.reply(
            installed.version(),
            filter_flags(self._options),
            self._kernel,
            self._monitor,
            self._export_status,
            len(self._hub),
            self._stored(),
            self._sampling(),
        )

    def _look(self) -> Look:
        """What the process used so far, and for how much."""
        pipeline, arrived = self._pipeline, self._pipeline.records
        if arrived != self._looked[0]:  # else the ring wasn't full, and idleness costs nothing
            self._looked = arrived, self._kernel.ring_full()
        lost = pipeline.reader_full + self._looked[1]
        return Look(time.monotonic(), time.process_time(), arrived, pipeline.worked, lost)

    def _sampling(self) -> str:
        """Which traces are kept, in words."""
        kept = [self._sampler.words()] if self._sampler else []
        if self._governor and (shed := self._governor.words()):
            kept.append(shed)
        return "; of these ".join(kept)

    def _stored(self) -> status.Stored | None:
        if self._store is None:
            failure = self._store_failure
            return status.Stored("", "", {}, failure) if failure else None
        return status.Stored(self._store.directory, self._store.address, self._store.counts())

    def _export_status(self) -> status.Export | None:
        if self._config is None or self._exporter is None:
            return None
        stats = self._exporter.stats()
        counts = {
            "exported_spans": stats.exported_spans,
            "exported_bytes": stats.exported_bytes,
            "queued_spans": stats.queued_spans,
            "requests": stats.requests,
            "retries": stats.retries,
        }
        return status.Export(self._config.shown, self._config.protocol, counts, stats.last_error)

    def _banner(self) -> None:
        attached = sum(program.attached for program in self._kernel.programs())
        what = " ".join(filter_flags(self._options)) or "this whole host"
        say(f"{attached} programs attached ({self._hooks}), tracing {what}")
        if self._loaded.path == installed.OLD_OBJECT:
            say(f"this kernel is older than Linux 5.17: {installed.OLD_MEANS}")
        if "CAP_SYS_PTRACE" not in privileges.held():
            say(
                "without CAP_SYS_PTRACE processes of other users can't be looked into: what their "
                "runtimes know links no requests, and they go by their program's short name"
            )
        if self._sampler:
            say(f"traces are sampled: {self._sampler.words()}")
        say(f"spans go to {self._destinations()}; status and tail: {self._options.socket}")
        if self._store and (address := self._store.address):
            flag = "" if address == DEFAULT_QUERY else f" --query-address {address}"
            say(f"traces: {installed.command()} traces{flag}; Jaeger's API: http://{address}")

    def _destinations(self) -> str:
        places = []
        if self._output:
            places.append(f"standard output ({self._options.output})")
        export = self._export_status()
        if export:
            places.append(f"{export.endpoint} ({export.protocol})")
        if self._store:
            places.append(self._store.directory)
        return " and ".join(places) or "nobody (set --otlp-endpoint or --store)"


def say(text: str) -> None:
    """Talk on standard error, even where nobody listens any more."""
    with contextlib.suppress(OSError, ValueError):
        print(f"wirespan: {text}", file=sys.stderr, flush=True)


def summary(counts: Mapping[str, int], losses: Mapping[str, int]) -> str:
    """One line on what a run came to."""
    server, client = counts["server_spans"], counts["client_spans"]
    lost = ", ".join(f"{name} {value}" for name, value in losses.items() if value)
    return f"{server + client} spans ({server} server, {client} client); lost: {lost or 'nothing'}"


def filter_flags(options: RunOptions) -> tuple[str, ...]:
    """The filters of a run, written as its flags."""
    flags: list[str] = []
    for prefix, chosen in (("", options.include), ("exclude-", options.exclude)):
        for name, values in (
            ("port", chosen.ports),
            ("exe", chosen.exes),
            ("pid", chosen.pids),
            ("cgroup", chosen.cgroups),
        ):
            flags += [f"--{prefix}{name}={value}" for value in values]
    return tuple(flags)


def _render(output: str) -> Render:
    """How to print on standard output; colours only for a terminal, see https://no-color.org/."""
    if output == "json":
        return render.json_lines
    color = os.isatty(1) and not os.environ.get("NO_COLOR")
    return partial(render.text_lines, color=color)


def _filters(options: RunOptions) -> Filters:
    keep, leave = options.include, options.exclude
    return Filters(
        ports=keep.ports,
        exclude_ports=leave.ports,
        pids=keep.pids,
        exclude_pids=leave.pids,
        exes=keep.exes,
        exclude_exes=leave.exes,
        cgroups=keep.cgroups,
        exclude_cgroups=leave.cgroups,
    )


def _export_config(options: RunOptions) -> ExportConfig | None:
    """Where spans are exported to; None where nothing names an endpoint.

    OTEL_TRACES_EXPORTER=none keeps spans here although an endpoint is set.
    """
    flags = dict(options.otlp)
    if "endpoint" not in flags and not ExportConfig.wanted(os.environ):
        return None
    try:
        return ExportConfig.from_environment(
            os.environ,
            endpoint=flags.get("endpoint"),
            protocol=flags.get("protocol"),
            headers=flags.get("headers"),
            compression=flags.get("compression"),
            timeout=flags.get("timeout"),
            certificate=flags.get("certificate"),
            insecure=True if "insecure" in flags else None,
        )
    except UsageError as error:
        # What it calls an argument is a flag here.
        text = re.sub(r"^OTLP (\w+):", r"--otlp-\1:", str(error))
        raise UsageError(text.replace("--otlp-headers:", "--otlp-header:"), error.hint) from None


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP set `stop`; a second one ends the process as usual.

    One within TWICE_S is the same wish told twice, as timeout(1) does to a whole group. SIGHUP
    stays ignored where it was (nohup).
    """
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in wanted}

    since = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal since
        since = since or time.monotonic()
        if stop.is_set() and time.monotonic() - since > TWICE_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    for number in wanted:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
