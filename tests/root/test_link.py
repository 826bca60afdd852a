"""Links inside processes, of real services: all that can be right is, and none is wrong.

The services, the load and the verdict are those of `make truth` (bench/truth/), which
measures more of them at more requests. Requests overtake each other, for their upstream
calls take random times.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.processes import BenchError, free_port
from bench.truth import judge, load
from bench.truth.headers import named
from bench.truth.judge import Counts, Truth
from bench.truth.run import Front, Upstream
from bench.truth.workload import Command, Service, Workload
from bench.truth.workloads import chosen
from bench.truth.workloads_other import _built, virtual_java
from tests.root.conftest import Shared
from tests.root.harness import DEADLINE, WORKLOADS, Spans, Tracer, get, wait_until
from tests.tracer.runtimes.test_cpython import FOUND, KNOWN

Start = Callable[..., Tracer]
REQUESTS, CONCURRENCY = 48, 12
LINK_FRONT = WORKLOADS / "link_front.py"
EVIDENCE = "wirespan.link.evidence"


@dataclass(frozen=True, slots=True)
class Case:
    """A workload of `make truth`; evidence: what its links may be by.

    all: every upstream span is right; else as many as there is evidence for, and none wrong.
    """

    name: str
    evidence: str
    all: bool = True


VIRTUAL = (
    (
        Case("java-virtual", "checkout connect"),
        Case("java-virtual-urlconnection-3", "thread connect"),
        Case("java-virtual-executor", "", all=False),
        Case("java-to-virtual-3", "", all=False),
    )
    if virtual_java()
    else ()
)
CASES = (
    Case("gunicorn-gthread", "thread"),  # its workers are forked and never exec
    Case("waitress", "", all=False),
    Case("flask-executor-3", "queue"),
    Case("starlette-sync", "context"),
    Case("fastapi-executor", "queue"),
    Case("fastapi-httpx", "context"),
    Case("fastapi-httpx-reset-3", "context"),
    Case("fastapi-trio-3", "context"),
    Case("aiohttp-gather-3", "context"),
    Case("sanic-gather-3", "context"),
    Case("tornado-3", "context"),
    Case("tornado-10-clients-3", "context"),
    Case("go-http", "goroutine"),
    Case("go-errgroup-3", "goroutine"),
    Case("go-worker", "goroutine"),
    Case("go-worker-buffered-3", "", all=False),
    Case("go-grpc", "goroutine"),
    Case("go-sql", "goroutine"),
    Case("node", "loop connect"),
    Case("node-8-sockets", "loop connect", all=False),
    Case("node-timer", "loop connect", all=False),
    Case("java-httpclient", "checkout connect"),
    Case("java-urlconnection", "thread connect"),
    Case("java-forkjoin", "", all=False),
    *VIRTUAL,
    Case("java-async-3", "", all=False),
    Case("java-httpclient-agent", "async"),
    Case("java-async-3-agent", "async"),
    Case("netty-shared-pool-agent", "async"),
    Case("nginx", "thread loop connect content"),
    Case("haproxy", "thread loop content"),
    Case("nginx-flask-grpc-mysql", "loop connect thread goroutine wakeup", all=False),
)


def called(name: str) -> Workload:
    """The workload of a name; `chosen` takes that of a family, too."""
    (found,) = (each for each in chosen([name]) if each.name == name)
    return found


class Verdict(NamedTuple):
    """counts: of bench.truth.judge; spans: all of the requests'; ids: of the requests."""

    counts: Counts
    spans: Spans
    ids: tuple[str, ...]

    def all_right(self) -> bool:
        counts = self.counts
        return counts.right == counts.upstream > 0 and not (
            counts.missing or counts.doubled or counts.split or counts.unpaired
        )


class Running(NamedTuple):
    """A front service and the upstream service that it calls."""

    workload: Workload
    port: int
    front: Front
    upstream: Service


@contextmanager
def services(workload: Workload, directory: Path) -> Iterator[Running]:
    """Start a workload's services; skip where it can't be had here."""
    with ExitStack() as stack:
        directory.chmod(0o755)
        try:
            if workload.build:
                workload.build()
        except BenchError as error:
            pytest.skip(str(error))
        if workload.upstream:
            upstream = stack.enter_context(workload.upstream(directory))
        else:
            port = free_port()
            child = stack.enter_context(Upstream(port))
            upstream = Service(port, child.pid, f"http://127.0.0.1:{port}")
        port = free_port()
        front = stack.enter_context(Front(workload, port, upstream.url))
        yield Running(workload, port, front, upstream)


def measure(
    tracer: Tracer,
    running: Running,
    seed: int,
    requests: int = REQUESTS,
    concurrency: int = CONCURRENCY,
    settle: bool = True,
) -> Verdict:
    """Load, wait for the spans, judge; no request may fail."""
    workload, port, front, _ = running
    mark = tracer.mark()
    done = load.run(
        port,
        requests=requests,
        concurrency=concurrency,
        calls=workload.calls,
        seed=seed,
        header=workload.header,
    )
    assert not done.failed, f"{done.failed[:3]}\n{front.said()}"
    return verdict(tracer, running, mark, done.ids, settle)


def verdict(
    tracer: Tracer,
    running: Running,
    mark: int,
    ids: tuple[str, ...],
    settle: bool = True,
) -> Verdict:
    """Wait for the spans of requests that were answered, and judge them."""
    workload, port, _, upstream = running
    wanted = frozenset(ids)

    def of_requests(spans: Spans) -> Spans:
        return Spans(span for span in spans if judge.Span.of(span.raw).request in wanted)

    expected = 2 * len(ids) * (1 + workload.calls)
    tracer.process.wait_for(
        lambda: len(of_requests(tracer.since(mark))) >= expected, f"{expected} spans", 2 * DEADLINE
    )
    if settle:  # spans too many, if there are any, come before the barrier's
        # This process serves nothing: its requests need not wait for what they could be part of.
        http_upstream = upstream.url.startswith("http:")
        tracer.settle((lambda path: get(upstream.port, path)) if http_upstream else None)
    spans = of_requests(tracer.since(mark))
    truth = Truth(
        requests=wanted,
        calls=workload.calls,
        front_port=port,
        upstream_port=upstream.port,
        upstream_pid=upstream.pid,
        load_address=load.ADDRESS,
        named={each: named(workload.header, each)[1:] for each in ids},
    )
    # Between front and upstream there may be spans that tell no request.
    counts = judge.judge((judge.Span.of(span.raw) for span in tracer.since(mark)), truth)
    return Verdict(counts, spans, ids)


def warm(tracer: Tracer, running: Running, seed: int) -> None:
    """Wait until the tracer has found out what runs in a service that has just started."""
    seeds = iter(range(seed, seed + 1000))
    tried: list[Counts] = []

    def linked() -> bool:
        found = measure(tracer, running, next(seeds), 4, 1, settle=False)
        tried.append(found.counts)
        return found.all_right()

    try:
        wait_until(linked, "links", 2 * DEADLINE)
    except AssertionError as error:
        last = tried[-1] if tried else "none"
        said = f"{error}, {len(tried)} tries, the last one: {last}\n{tracer.stderr()}"
        raise AssertionError(said) from None


def assert_sound(spans: Spans, everything: Spans) -> None:
    """Parents are there, in the same trace, and each link says by what evidence."""
    by_id = {span.raw["span_id"]: span for span in everything}
    for span in spans:
        parent = span.raw["parent_span_id"]
        assert bool(parent) == (EVIDENCE in span.attributes), span
        if parent:
            assert parent in by_id, f"its parent is not there: {span}"
            assert by_id[parent].raw["trace_id"] == span.raw["trace_id"], span
            assert by_id[parent].kind != span.kind, span


def by(counts: Counts) -> set[str]:
    """What evidence the links were by."""
    return {name.split()[0] for name in counts.evidence}


def options_for_uprobes() -> tuple[str, ...]:
    """Before Linux 6.6 they are for CAP_SYS_ADMIN (docs/howto/least-privilege.md)."""
    release = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    return ("--keep-capability", "CAP_SYS_ADMIN") if release < (6, 6) else ()


@pytest.fixture(scope="module")
def tracer(tmp_path_factory: pytest.TempPathFactory, shared: Shared) -> Iterator[Tracer]:
    """A tracer of this process and all it starts, older than every service."""
    shared.stop()
    tracer = Tracer(
        tmp_path_factory.mktemp("link"), "--pid", str(os.getpid()), *options_for_uprobes()
    )
    yield tracer
    tracer.stop()


@pytest.mark.kernels("gunicorn-gthread", "aiohttp-gather-3")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_links(tracer: Tracer, tmp_path: Path, case: Case) -> None:
    workload = called(case.name)
    losses = tracer.losses()
    seed = 10_000 * (1 + CASES.index(case))
    with services(workload, tmp_path) as running:
        if case.all:
            warm(tracer, running, seed + 1)
        else:  # nothing tells that it was looked at, but it is by the end of this
            measure(tracer, running, seed + 1, 4, 1)
        found = measure(tracer, running, seed)
    counts = found.counts
    assert counts.wrong == 0, counts
    assert not counts.missing and not counts.doubled and not counts.split, counts
    assert not counts.unpaired, counts
    assert counts.upstream == REQUESTS * workload.calls
    if case.all:
        assert counts.right == counts.upstream, counts
    assert by(counts) <= set(case.evidence.split()), counts
    assert_sound(found.spans, tracer.spans())
    lost = tracer.losses() - losses
    assert not {name for name in lost if name.startswith("link_")}, lost


def script(mode: str, python: str = sys.executable) -> Workload:
    """A service of tests/root/workloads/link_front.py, in one of its modes."""
    like = called("flask")

    def command(port: int, upstream: str) -> Command:
        return [python, str(LINK_FRONT)], {"MODE": mode}

    return replace(like, name=f"script-{mode}", command=command, build=None)


def test_forked_at_once(tracer: Tracer, tmp_path: Path) -> None:
    """Children that were forked before anyone could look at their parent, and never exec."""
    with services(script("fork"), tmp_path) as running:
        warm(tracer, running, 1_000_000)
        found = measure(tracer, running, 1_100_000)
    assert found.all_right(), found.counts
    assert by(found.counts) == {"thread"}


def test_handed_over_by_a_lock(tracer: Tracer, tmp_path: Path) -> None:
    """What passes through a queue written in Python is seen by whom its answer wakes."""
    with services(script("hand"), tmp_path) as running:
        warm(tracer, running, 1_200_000)
        found = measure(tracer, running, 1_300_000)
    assert found.all_right(), found.counts
    assert by(found.counts) == {"wakeup"}


@pytest.mark.parametrize("version", KNOWN)
def test_work_for_a_pool_of_threads(tracer: Tracer, tmp_path: Path, version: str) -> None:
    """In each version of CPython here; that of the distribution has no symbols."""
    with services(script("pool", FOUND[version]), tmp_path) as running:
        wait_until(
            lambda: by(measure(tracer, running, 1_400_000, 4, 1, settle=False).counts) == {"queue"},
            "links by the queue",
            2 * DEADLINE,
        )
        found = measure(tracer, running, 1_500_000)
    assert found.all_right(), found.counts
    assert by(found.counts) == {"queue"}


@pytest.mark.parametrize("version", [each for each in KNOWN if each.startswith("3.1")])
def test_requests_queued_by_tornado(tracer: Tracer, tmp_path: Path, version: str) -> None:
    """Its client sends them where another one ended, in that one's context."""
    workload = called("tornado-10-clients-3")
    argv, told = workload.command(0, "")
    packages = {"PYTHONPATH": sysconfig.get_path("purelib")}
    tried = [FOUND[version], "-c", "import tornado.web"]
    if subprocess.run(tried, env={**os.environ, **packages}, capture_output=True).returncode:
        pytest.skip(f"tornado is not for CPython {version}")
    command: Command = [FOUND[version], *argv[1:]], {**told, **packages}
    with services(replace(workload, command=lambda *_: command), tmp_path) as running:
        warm(tracer, running, 1_600_000)
        found = measure(tracer, running, 1_700_000, 48, 24)
    assert found.all_right(), found.counts
    assert by(found.counts) == {"context"}


def test_numbers_of_threads_are_used_again(tracer: Tracer, tmp_path: Path) -> None:
    with services(script("tids"), tmp_path) as running:
        warm(tracer, running, 2_000_000)
        for turn in range(5):
            found = measure(tracer, running, 2_100_000 + turn, 8, 4, settle=False)
            assert found.all_right(), found.counts
            assert by(found.counts) == {"thread"}
        if Path("/proc/sys/kernel/ns_last_pid").exists():
            assert "again" in running.front.said()


def test_contexts_are_used_again(tracer: Tracer, tmp_path: Path) -> None:
    """New connections, whose contexts have the addresses of those before them."""
    workload = called("aiohttp")
    with services(workload, tmp_path) as running:
        warm(tracer, running, 3_000_000)
        for turn in range(6):
            found = measure(tracer, running, 3_100_000 + turn, 16, 8, settle=False)
            assert found.all_right(), found.counts
            assert by(found.counts) == {"context"}


@pytest.mark.parametrize(
    "name", ["aiohttp", "aiohttp-uvloop", "fastapi-httpx-uvloop", "fastapi-trio", "tornado"]
)
def test_accepted_and_read_at_once(tracer: Tracer, tmp_path: Path, name: str) -> None:
    """A loop that was held up accepts several connections, and reads requests of others, in the
    same turn: which contexts are made for what?
    """
    with services(called(name), tmp_path) as running, ExitStack() as stack:
        warm(tracer, running, 5_000_000)
        mark = tracer.mark()
        connections: list[http.client.HTTPConnection] = []
        ids: list[str] = []
        for turn in range(4):
            os.kill(running.front.pid, signal.SIGSTOP)
            try:
                for _ in range(4):
                    connection = connected(running.port)
                    stack.callback(connection.close)
                    connection.connect()
                    connections.append(connection)
                here = [f"held{turn}x{at}" for at in range(len(connections))]
                for at, (connection, id) in enumerate(zip(connections, here, strict=True)):
                    connection.request("GET", f"/t/{id}?d={5 + at}")
            finally:
                os.kill(running.front.pid, signal.SIGCONT)
            for connection, id in zip(connections, here, strict=True):
                assert connection.getresponse().read().strip() == id.encode()
            ids += here
        found = verdict(tracer, running, mark, tuple(ids))
    assert found.all_right(), found.counts
    assert by(found.counts) == {"context"}


def test_pipelined_requests_of_a_goroutine(tracer: Tracer, tmp_path: Path) -> None:
    """It reads them at once and serves them in turn: whose a call is can't be told.

    Requests that come one after the other on the same connection are linked again.
    """
    with services(called("go-http"), tmp_path) as running, ExitStack() as stack:
        warm(tracer, running, 4_000_000)
        connection = connected(running.port)
        stack.callback(connection.close)
        ask(connection, "before")
        mark = tracer.mark()
        ids = tuple(f"pipelined{at}" for at in range(4))
        requests = (f"GET /t/{id}?d=5 HTTP/1.1\r\nHost: front\r\n\r\n" for id in ids)
        connection.sock.sendall("".join(requests).encode())
        answers = b""
        while answers.count(b"\r\n\r\npipelined") < len(ids):
            more = connection.sock.recv(65536)
            assert more, answers
            answers += more
        ask(connection, "after", 5)
        found = verdict(tracer, running, mark, (*ids, "after"))
    counts = found.counts
    assert counts.wrong == 0 and not counts.missing and not counts.doubled, counts
    assert (counts.right, counts.upstream) == (1, len(ids) + 1), counts
    assert by(counts) == {"goroutine"}


@pytest.mark.parametrize(
    ("name", "evidence"), [("gunicorn-gthread", {"thread"}), ("aiohttp", {"thread", "context"})]
)
def test_older_than_the_tracer(
    start_tracer: Start, tmp_path: Path, name: str, evidence: set[str]
) -> None:
    """Processes, their threads and their connections were there before the tracer.

    What was begun before it in an event loop can't be told apart: then there is no link.
    """
    workload = called(name)
    number = 4
    with services(workload, tmp_path) as running, ExitStack() as stack:
        connections = [connected(running.port) for _ in range(number)]
        for at, connection in enumerate(connections):
            stack.callback(connection.close)
            ask(connection, f"before{at}")
        tracer = start_tracer("--pid", str(os.getpid()))
        mark = tracer.mark()
        for turn in range(3):
            at_once(connections, turn)
        ids = tuple(f"after{at}x{turn}" for turn in range(3) for at in range(number))
        found = verdict(tracer, running, mark, ids)
    counts = found.counts
    assert counts.wrong == 0 and not counts.missing and not counts.doubled, counts
    assert not counts.unpaired, counts
    if evidence == {"thread"}:
        assert counts.right == counts.upstream, counts
    assert by(counts) <= evidence, counts
    assert_sound(found.spans, tracer.spans())


def ask(connection: http.client.HTTPConnection, id: str, delay: int = 0) -> None:
    """Make the request with an ID on a connection that is kept open."""
    connection.request("GET", f"/t/{id}?d={delay}")
    response = connection.getresponse()
    assert (response.status, response.read().strip()) == (200, id.encode())


def connected(port: int) -> http.client.HTTPConnection:
    """A connection of the load's."""
    return http.client.HTTPConnection(
        "127.0.0.1", port, timeout=DEADLINE, source_address=(load.ADDRESS, 0)
    )


def at_once(connections: list[http.client.HTTPConnection], turn: int) -> None:
    """Make one request on each of the connections, all at the same time."""
    threads = [
        threading.Thread(target=ask, args=(connection, f"after{at}x{turn}", 5 * (at + 1)))
        for at, connection in enumerate(connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_what_cannot_be_read_links_nothing_and_says_so(tracer: Tracer, tmp_path: Path) -> None:
    """A Go program that says it was built by a version nobody knows."""
    like = called("go-http")
    try:
        assert like.build
        like.build()
    except BenchError as error:
        pytest.skip(str(error))
    program = tmp_path / "aged"
    image = bytearray(Path(_built("go")).read_bytes())
    # Build information: 32 bytes of header, then the version with its length before it.
    at = image.index(b"\xff Go buildinf:") + 33
    assert image[at : at + 4] == b"go1."
    image[at + 4 : at + 6] = b"17"
    program.write_bytes(image)
    program.chmod(0o755)
    tmp_path.chmod(0o755)
    workload = replace(like, command=lambda port, upstream: ([str(program)], {"MODE": "http"}))
    with services(workload, tmp_path) as running:
        tracer.process.wait_for(lambda: str(program) in tracer.stderr(), "it is said")
        found = measure(tracer, running, 4_000_000)
    counts = found.counts
    assert counts.orphan == counts.upstream == REQUESTS, counts
    assert not counts.missing and not counts.doubled, counts
    (line,) = [line for line in tracer.stderr().splitlines() if str(program) in line]
    assert "contexts in" in line and "1.18 is the oldest known" in line
    assert_sound(found.spans, tracer.spans())
