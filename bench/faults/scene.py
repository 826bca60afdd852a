"""What a fault is, what it is made of, and what it came to."""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.json_format import MessageToDict

from bench.faults.backend import GRPC, Backend
from bench.faults.load import Load, Made
from bench.faults.seen import Seen, count
from bench.nginx import Nginx
from bench.processes import BenchError
from bench.traced import Status, Tracer
from proto.wirespan.v1 import control_pb2, control_pb2_grpc

SETTLE_S = 60.0
STILL_S = 1.0  # that counts must stand still until nothing more is taken to come
# Losses of the tracer that each stand for one span of one side of one exchange.
SPAN_LOSSES = (
    "ring_full",
    "conns_full",
    "pipeline_full",
    "streams_full",
    "shed",
    "reader_full",
    "feed_failed",
    "export_queue_full",
    "export_failed",
    "export_rejected",
    "export_encode",
    "export_unsent",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the page. seconds: how long the fault lasts, in a short pass and in a full one."""

    name: str
    group: str
    what: str
    expected: str
    seconds: tuple[float, float]
    run: Callable[[Scene], None]


@dataclass(slots=True)
class Outcome:
    """What a fault came to.

    made: requests; failed: those without a response; spans: of both sides, in the backend;
    lost: counted by the tracer, by name; checks: what was expected and whether it held;
    figures: what else was measured; date, version, kernel: of the run.
    """

    name: str
    short: bool
    seconds: float = 0.0
    made: int = 0
    failed: int = 0
    spans: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    checks: list[tuple[str, bool, str]] = field(default_factory=list)
    figures: dict[str, str] = field(default_factory=dict)
    date: str = ""
    version: str = ""
    kernel: str = ""

    @property
    def held(self) -> bool:
        """Whether everything that was expected came true."""
        return bool(self.checks) and all(held for _, held, _ in self.checks)


def status_of(tracer: Tracer) -> Status:
    """Ask a tracer by its socket: the command takes a moment that a loaded machine lacks.

    Raises BenchError where it does not answer.
    """
    with grpc.insecure_channel(f"unix:{tracer.socket}") as channel:
        try:
            reply = control_pb2_grpc.ControlStub(channel).Status(
                control_pb2.StatusRequest(), timeout=30
            )
        except grpc.RpcError as error:
            raise BenchError(f"wirespan does not answer: {error}") from None
    return Status.of(
        MessageToDict(
            reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    )


class Scene:
    """An nginx, a load, tracers of that nginx's port alone; everything ends with the scene."""

    def __init__(
        self, fault: Fault, directory: Path, short: bool, say: Callable[[str], None]
    ) -> None:
        self.fault = fault
        self.directory = directory
        self.short = short
        self.seconds = fault.seconds[0 if short else 1]
        self.outcome = Outcome(fault.name, short)
        self._say = say
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self.nginx = self._stack.enter_context(Nginx(self.directory / "nginx"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self.outcome.seconds = round(time.monotonic() - self._began, 1)
        self.outcome.date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")

    def backend(self, protocol: str = GRPC) -> Backend:
        """A backend that lives as long as the scene."""
        backend = Backend(protocol)
        self._stack.callback(backend.close)
        return backend

    def later(self, undo: Callable[[], Any]) -> None:
        """Have something done when the scene ends."""
        self._stack.callback(undo)

    def tracer(
        self,
        endpoint: str,
        *arguments: str,
        exact: bool = False,
        within: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Tracer:
        """A tracer of nginx's port, attached.

        exact: every span is to come, so it may take what CPU time the machine makes it need.
        """
        words = ["--port", str(self.nginx.port), *arguments]
        words += ["--max-cpu", "none"] if exact else []
        tracer = Tracer(endpoint, *words, within=within, env=env)
        return self._stack.enter_context(tracer)

    def load(self, **options: Any) -> Load:
        """A load on nginx that runs until told to end; see bench.faults.load."""
        prefix = f"f{uuid.uuid4().hex[:8]}"
        options.setdefault("rate", 500 if self.short else 1000)
        load = Load(self.nginx.port, prefix, self.directory, **options)
        self._stack.enter_context(load)
        load.wait_for(lambda: load.made_so_far() > 0, "its first request", 10.0)
        return load

    def run_for(self, seconds: float, *processes: Load) -> None:
        """Let the load run. Raises BenchError where it ends meanwhile."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for each in processes:
                if each.popen.poll() is not None:
                    raise BenchError(f"{each.name} has ended:\n{each.said()}")
            time.sleep(min(0.1, left))

    def settled(self, tracer: Tracer, timeout: float = SETTLE_S) -> Status:
        """The tracer's status once nothing waits any more in it and its counts stand still."""
        end = time.monotonic() + timeout
        before, since = None, time.monotonic()
        while True:
            status = status_of(tracer)
            waiting = status.counts["held_spans"] + status.exported.get("queued_spans", 0)
            # Not records: those of other processes' execs are among them.
            counts = (status.counts["server_spans"], status.counts["client_spans"])
            now = (counts, status.exported.get("exported_spans"), waiting)
            if now != before:
                before, since = now, time.monotonic()
            elif not waiting and time.monotonic() - since > STILL_S:
                return status
            if time.monotonic() > end:
                raise BenchError(f"spans still wait after {timeout:g} s: {waiting}")
            time.sleep(0.3)

    # What came true.

    def check(self, what: str, held: bool, detail: object = "") -> None:
        """Note whether something expected came true, and what was found instead."""
        self.outcome.checks.append((what, bool(held), "" if held else str(detail)))
        self._say(f"  {'holds' if held else 'MISSED'}: {what}{f' ({detail})' if detail else ''}")

    def figure(self, name: str, value: object) -> None:
        """Note a figure."""
        self.outcome.figures[name] = str(value)
        self._say(f"  {name}: {value}")

    def unharmed(self, made: Made, most_ms: float = 2000.0) -> None:
        """Check that the application noticed nothing."""
        self.outcome.made += len(made)
        self.outcome.failed += made.failed
        answered = made.failed == 0 and len(made) > 0
        self.check("every request was answered", answered, f"{made.failed} {made.why}".strip())
        slowest = made.slowest_ns() / 1e6
        self.figure("slowest request", f"{slowest:.0f} ms")
        self.check(f"none took {most_ms / 1000:g} s", slowest < most_ms, f"{slowest:.0f} ms")

    def seen(self, backend: Backend, made: Made, *, once: bool = False) -> Seen:
        """The spans of a load that a backend accepted, which are taken out of it.

        once: a request that came again to the byte counts once.
        """
        bodies = backend.bodies()
        if once:
            came = list(bodies)
            bodies = iter(dict.fromkeys(came))
            self.figure(f"{backend.protocol}: came again", len(came) - len(set(came)))
        seen = count(bodies, made.prefix, len(made))
        self.outcome.spans += seen.spans
        return seen

    def accounted(
        self, made: Made, seen: Seen, status: Status, label: str = "", more: int = 0
    ) -> None:
        """Check that spans and counted losses make up what was made, exactly.

        more: losses known otherwise.
        """
        self.accounted_all([made], [seen], status, label, more)

    def accounted_all(
        self,
        made: Sequence[Made],
        seen: Sequence[Seen],
        status: Status,
        label: str = "",
        more: int = 0,
    ) -> None:
        """The same of several loads of one tracer."""
        lost = {name: status.losses[name] for name in SPAN_LOSSES if status.losses.get(name)}
        for name, number in status.losses.items():
            if number:
                self.outcome.lost[name] = self.outcome.lost.get(name, 0) + number
        total = sum(lost.values()) + more
        sides = 2 * sum(map(len, made))
        missing, doubled = (sum(f(each) for each in seen) for f in (Seen.missing, Seen.doubled))
        label = f"{label}: " if label else ""
        self.check(
            f"{label}spans + losses = exchanges, exactly",
            missing == total,
            f"{sides} sides, {missing} without a span, {total} counted as lost",
        )
        self.check(f"{label}no span twice", doubled == 0, doubled)

    def exact(self, made: Made, seen: Seen, label: str = "") -> None:
        """Check that each request has its two spans, once."""
        label = f"{label}: " if label else ""
        wrong = f"{seen.missing()} missing, {seen.doubled()} too many"
        self.check(
            f"{label}two spans for each request",
            not seen.missing() and not seen.doubled() and len(made) > 0,
            wrong,
        )
