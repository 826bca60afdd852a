"""What the root tests share: a running tracer, spans read back from it, processes that always end.

A test never sleeps to give the tracer time. It waits, with a deadline, until the spans it
expects have come, then sends one exchange of its own (a barrier) and waits for that one's
spans: the ring is first in, first out, so whatever the tracer made of the traffic before
the barrier is in the output by then, doubled spans included.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc

from bench.processes import free_port as free_port
from proto.wirespan.v1 import control_pb2, control_pb2_grpc
from tracer.link.stitch import LINK_WAIT_NS

ROOT = Path(__file__).resolve().parents[2]
WORKLOADS = Path(__file__).resolve().parent / "workloads"
BUILD = ROOT / "build" / "root-tests"
WIRESPAN = ROOT / ".venv" / "bin" / "wirespan"

# How many times longer than usual anything may take: emulated processors are slow.
SLOW = float(os.environ.get("WIRESPAN_TEST_SLOW", "1"))
HOOKS = os.environ.get("WIRESPAN_TEST_HOOKS", "auto")
DEADLINE = 15.0 * SLOW  # seconds that anything asynchronous is given
CLIENT, SERVER = "CLIENT", "SERVER"
PORT_KEYS = ("server.port", "client.port", "network.peer.port", "network.local.port")


def wirespan_command() -> list[str]:
    """The installed command, else the module, so that tests run before `make build` too."""
    if WIRESPAN.exists():
        return [str(WIRESPAN)]
    return [sys.executable, "-m", "tracer.cli"]


def wait_until(condition: Callable[[], Any], what: str, timeout: float = DEADLINE) -> Any:
    """Poll until `condition()` is true and return its value; AssertionError past `timeout` s."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(0.005)
    return value


def listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts on the port, asked of /proc so that no connection is made."""
    family = "tcp6" if ":" in host else "tcp"
    for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        if state == "0A" and int(local.rsplit(":", 1)[1], 16) == port:
            return True
    return False


class Process:
    """A child that is ended by its pid, with what it printed kept in a file."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        without: str = "\0",
        **options: Any,
    ) -> None:
        """env: variables added to this process's own, less those whose name begins `without`."""
        self.log = log
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(without)}
        with log.open("wb") as out:
            options.setdefault("stdout", out)
            self.popen = subprocess.Popen(
                [str(word) for word in argv],
                stderr=out,
                stdin=options.pop("stdin", subprocess.DEVNULL),
                env={**inherited, **(env or {})},
                **options,
            )
        self.pid = self.popen.pid

    def alive(self) -> bool:
        return self.popen.poll() is None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], Any], what: str, timeout: float = DEADLINE) -> Any:
        """Like wait_until, but fails with its output, and at once when the process has ended."""

        def check() -> Any:
            if value := condition():
                return value
            assert self.alive(), f"ended with {self.popen.returncode}: {what}"
            return None

        try:
            return wait_until(check, what, timeout)
        except AssertionError as error:
            error.add_note(f"{self.popen.args} said: {self.said()[-2000:]}")
            raise

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 10.0) -> int:
        """End it and return its exit code.

        One that does not heed `sig` within `timeout` s gets SIGABRT, on which a Python with
        PYTHONFAULTHANDLER writes its stacks to the log, and then SIGKILL.
        """
        for number, patience in ((sig, timeout), (signal.SIGABRT, 5.0), (signal.SIGKILL, None)):
            if self.alive():
                self.popen.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.popen.wait(patience)
        raise AssertionError(f"process {self.pid} outlived SIGKILL")


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """One line of `--output json`."""

    raw: Mapping[str, Any]

    @property
    def attributes(self) -> Mapping[str, Any]:
        return self.raw["attributes"]  # type: ignore[no-any-return]

    @property
    def resource(self) -> Mapping[str, Any]:
        return self.raw["resource"]  # type: ignore[no-any-return]

    @property
    def kind(self) -> str:
        return str(self.raw["kind"])

    @property
    def method(self) -> str:
        """The method as sent, whatever its place in the conventions."""
        known = self.attributes.get("http.request.method", "")
        return str(self.attributes.get("http.request.method_original", known))

    @property
    def path(self) -> str:
        if "url.path" in self.attributes:
            return str(self.attributes["url.path"])
        return urlsplit(str(self.attributes.get("url.full", ""))).path

    @property
    def status(self) -> int | None:
        return self.attributes.get("http.response.status_code")

    @property
    def request_body(self) -> int:
        return int(self.attributes.get("http.request.body.size", 0))

    @property
    def response_body(self) -> int:
        return int(self.attributes.get("http.response.body.size", 0))

    @property
    def error(self) -> str | None:
        return self.attributes.get("error.type")

    @property
    def truncated(self) -> set[str]:
        value = self.attributes.get("wirespan.truncated", "")
        return {name.strip() for name in value.split(",") if name.strip()}

    @property
    def ports(self) -> set[int]:
        return {int(self.attributes[key]) for key in PORT_KEYS if key in self.attributes}

    @property
    def first_byte(self) -> int:
        return int(self.attributes["wirespan.time_to_first_byte_ns"])

    @property
    def start(self) -> int:
        return int(self.raw["start_time_unix_nano"])

    @property
    def end(self) -> int:
        return int(self.raw["end_time_unix_nano"])

    def __str__(self) -> str:
        return json.dumps(dict(self.raw), sort_keys=True)


class Spans(list[Span]):
    """Spans, narrowed step by step."""

    def of(self, kind: str) -> Spans:
        return Spans(span for span in self if span.kind == kind)

    def under(self, prefix: str) -> Spans:
        """Those whose path is `prefix` or lies beneath it."""
        inside = prefix.rstrip("/") + "/"
        return Spans(s for s in self if s.path == prefix or s.path.startswith(inside))

    def at(self, *ports: int) -> Spans:
        """Those with one of `ports` at either end, by any attribute."""
        wanted = set(ports)
        return Spans(span for span in self if span.ports & wanted)

    def process(self, pid: int) -> Spans:
        return Spans(s for s in self if s.resource.get("process.pid") == pid)

    def show(self, most: int = 20) -> str:
        lines = [str(span) for span in self[:most]]
        if len(self) > most:
            lines.append(f"... and {len(self) - most} more")
        return "\n".join(lines) or "(no spans)"


class Barrier:
    """A small HTTP server whose exchanges the tests use as marks in the stream of spans."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.thread = threading.Thread(target=self._serve, name="barrier", daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            with conn:
                if conn.recv(4096):
                    conn.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(DEADLINE)


def get(port: int, path: str, host: str = "127.0.0.1") -> int:
    """One GET on a connection of its own; returns the status."""
    connection = http.client.HTTPConnection(host, port, timeout=DEADLINE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


class Tracer:
    """A running `wirespan run --output json`, and the spans it has written so far."""

    def __init__(
        self,
        directory: Path,
        *args: str,
        env: Mapping[str, str] | None = None,
        wrap: Callable[[list[str]], list[str]] = list,
    ) -> None:
        """wrap: makes of the command line one that runs it in another way."""
        directory.mkdir(parents=True, exist_ok=True)
        self.output = directory / "spans.jsonl"
        self.ready_file = directory / "ready"
        self.control = directory / "control.sock"
        self.argv = [*wirespan_command(), "run", "--output", "json", "--store", "none"]
        self.argv += ["--hooks", HOOKS]
        # Tests count every span while the spans of all are printed: that costs more than a core.
        self.argv += ["--max-cpu", "none"]
        # And they ask whether exchanges are read rightly, not how soon a busy machine lets them be:
        # the ring holds the largest load of a test, both sides of 5,000 exchanges, several times.
        self.argv += ["--ring-size", "32M"]
        self.argv += ["--ready-file", str(self.ready_file), "--control-socket", str(self.control)]
        self.argv = wrap([*self.argv, *args])
        with self.output.open("wb") as out:
            self.process = Process(
                self.argv,
                directory / "stderr",
                stdout=out,
                env={"PYTHONFAULTHANDLER": "1", **(env or {})},
                without="OTEL_",
                cwd=ROOT,
            )
        self._read = 0
        self._rest = b""
        self._all = Spans()
        self._barrier: Barrier | None = None
        try:
            self.process.wait_for(self.ready_file.exists, "the tracer is ready", 60.0 * SLOW)
        except BaseException:
            self.stop()
            raise

    def stderr(self) -> str:
        return self.process.said()

    def spans(self) -> Spans:
        """All spans written so far, whole lines only; reads just what is new."""
        with self.output.open("rb") as out:
            out.seek(self._read)
            data = out.read()
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._all.extend(Span(json.loads(line)) for line in lines if line.strip())
        return self._all

    def mark(self) -> int:
        """A place in the stream: spans from here on are `since(mark)`."""
        return len(self.spans())

    def since(self, mark: int) -> Spans:
        return Spans(self.spans()[mark:])

    def settle(
        self, request: Callable[[str], Any] | None = None, kinds: Sequence[str] = (CLIENT, SERVER)
    ) -> None:
        """Return once everything that ended before this call is in `spans()`.

        request: makes one traced exchange for the path it is given, where the tracer's
            filters would pass over the barrier's own; kinds: the sides the filters let through.
        """
        path, mark = f"/barrier/{uuid.uuid4().hex}", self.mark()
        if request is None:
            get(self.barrier().port, path)
        else:
            request(path)

        def passed() -> bool:
            return {span.kind for span in self.since(mark) if span.path == path} >= set(kinds)

        self.process.wait_for(passed, f"the barrier's spans {kinds}")
        now = time.monotonic()
        made = self.process.wait_for(
            lambda: self._made_if_none_waits_since(now),
            "the spans that were held back",
            LINK_WAIT_NS / 1e9 + DEADLINE,  # for a parent that was lost
        )
        self.process.wait_for(
            lambda: self.counts().get("output_spans", made) >= made, "all spans are printed"
        )

    def barrier(self) -> Barrier:
        """The server of this tracer's marks."""
        if self._barrier is None:
            self._barrier = Barrier()
        return self._barrier

    def counts(self) -> dict[str, int]:
        """What the control socket says it counted, by name."""
        return {count.name: count.value for count in self.status().counts}

    def _made_if_none_waits_since(self, when: float) -> int:
        """How many spans there are, once none waits for its trace that came before `when`.

        When all wait for nothing is not asked: the traffic of others may bring new ones for ever.
        """
        asked = time.monotonic()
        counts = self.counts()
        longest_ms = counts["held_longest_ms"]
        if longest_ms and asked - longest_ms / 1000 <= when:
            return 0
        return counts["server_spans"] + counts["client_spans"]

    def collect(
        self,
        select: Callable[[Spans], Spans],
        count: int,
        *,
        mark: int = 0,
        timeout: float = DEADLINE,
    ) -> Spans:
        """Wait for `count` spans chosen by `select`, then for the barrier; return all chosen.

        More or fewer than `count` is for the caller's assertion to name.
        """
        with contextlib.suppress(AssertionError):
            self.process.wait_for(
                lambda: len(select(self.since(mark))) >= count, f"{count} spans", timeout
            )
        self.settle()
        return select(self.since(mark))

    def status(self) -> control_pb2.StatusReply:
        """What the control socket says."""
        with grpc.insecure_channel(f"unix:{self.control}") as channel:
            stub = control_pb2_grpc.ControlStub(channel)
            return stub.Status(control_pb2.StatusRequest(), timeout=DEADLINE)

    def hooks(self) -> str:
        """Where its programs are: "tracepoint" or "fentry"."""
        hooked = {program.hook.partition("/")[0] for program in self.status().programs}
        return "fentry" if "fentry" in hooked else "tracepoint"

    def losses(self) -> Counter[str]:
        """Every loss counter above zero, by name."""
        return Counter({loss.name: loss.value for loss in self.status().losses if loss.value})

    def stop(self, sig: int = signal.SIGTERM) -> Spans:
        """End the tracer, see that it ends well, and return every span it wrote."""
        if self._barrier is not None:
            self._barrier.close()
            self._barrier = None
        if self.process.alive():
            code = self.process.stop(sig, timeout=20.0)
            wanted = -sig if sig == signal.SIGKILL else 0
            assert code == wanted, f"ended with {code}:\n{self.stderr()}"
        return self.spans()


class Watch:
    """One test's view of a tracer that runs on: what came, and what was lost, since it began."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self._mark = tracer.mark()
        self._losses = tracer.losses()
        self.allowed: set[str] = set()

    def under(self, prefix: str, count: int) -> Spans:
        return self.tracer.collect(lambda spans: spans.under(prefix), count, mark=self._mark)

    def now(self, prefix: str) -> Spans:
        """What is there already, without waiting."""
        return self.tracer.since(self._mark).under(prefix)

    def at(self, ports: Sequence[int], count: int) -> Spans:
        return self.tracer.collect(lambda spans: spans.at(*ports), count, mark=self._mark)

    def exact(
        self, prefix: str, expected: Sequence[Exchange], kinds: Sequence[str] = (CLIENT, SERVER)
    ) -> Spans:
        """Wait for, check and return the spans under `prefix`: `expected` on each of `kinds`."""
        spans = self.under(prefix, len(expected) * len(kinds))
        assert_exact(spans, expected, kinds)
        return spans

    def lost(self) -> Counter[str]:
        """Losses since the test began."""
        return self.tracer.losses() - self._losses


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Exchange:
    """What a client knows of a request it made; sizes are of the bodies alone, in bytes."""

    path: str
    status: int | None = 200
    method: str = "GET"
    request_body: int = 0
    response_body: int = 0


def seen(span: Span) -> Exchange:
    return Exchange(span.path, span.status, span.method, span.request_body, span.response_body)


def assert_exact(
    spans: Spans, expected: Sequence[Exchange], kinds: Sequence[str] = (CLIENT, SERVER)
) -> None:
    """Each exchange is there exactly once on each of `kinds`, as sent, and nothing else is.

    Ids are all distinct, no time is impossible, and a response has a first byte.
    """
    wanted = Counter(expected)
    for kind in kinds:
        got = Counter(seen(span) for span in spans.of(kind))
        missing, extra = wanted - got, got - wanted
        assert not missing and not extra, (
            f"{kind}: {got.total()} spans for {wanted.total()} exchanges\n"
            f"missing: {list(missing.items())[:5]}\nextra: {list(extra.items())[:5]}"
        )
    assert len(spans) == sum(len(spans.of(kind)) for kind in kinds), spans.show()
    assert_sound(spans)


def assert_sound(spans: Spans) -> None:
    """What holds for any spans: distinct ids, times in order, no status without a first byte."""
    ids = Counter(span.raw["span_id"] for span in spans)
    assert all(n == 1 for n in ids.values()), f"doubled span ids: {ids.most_common(3)}"
    for span in spans:
        assert len(span.raw["span_id"]) == 16 and len(span.raw["trace_id"]) == 32, span
        assert int(span.raw["span_id"], 16) and int(span.raw["trace_id"], 16), span
        assert span.start <= span.end, f"ends before it starts: {span}"
        if span.status is not None:
            assert 0 <= span.first_byte <= span.end - span.start, span


@contextlib.contextmanager
def running(*processes: Process) -> Iterator[None]:
    """End the processes however the block is left."""
    try:
        yield
    finally:
        for process in processes:
            process.stop()


def unique() -> str:
    """A path that belongs to one test alone."""
    return f"/t{uuid.uuid4().hex[:12]}"


def run(argv: Sequence[str | Path], timeout: float = 120.0, **options: Any) -> str:
    """Run to the end and return stdout; a failure shows all that was said."""
    done = subprocess.run(
        [str(word) for word in argv],
        capture_output=True,
        stdin=options.pop("stdin", subprocess.DEVNULL),
        timeout=timeout,
        text=True,
        **options,
    )
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def compile_c(name: str, *flags: str) -> Path:
    """workloads/NAME.c -> build/root-tests/NAME, kept while the source is not newer."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source, program = WORKLOADS / f"{name}.c", BUILD / name
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        fresh = BUILD / f"{name}.{os.getpid()}"
        run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", *flags, "-o", fresh, source])
        fresh.replace(program)
    return program
