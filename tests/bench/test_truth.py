"""The linking benchmark's verdicts, its table of workloads and its pages; nothing is traced."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import socket
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import markdown
from bench.machine import Machine
from bench.processes import BenchError, Child, free_port
from bench.truth import __main__ as command
from bench.truth import load, page, plot
from bench.truth.headers import named
from bench.truth.judge import CLIENT, SERVER, Counts, Span, Truth, judge, read
from bench.truth.run import Run, Upstream
from bench.truth.workloads import WORKLOADS, chosen
from tracer.link.headers import remote_parent

HERE = "127.0.0.1"
FRONT_PORT, UPSTREAM_PORT, FRONT_PID, UPSTREAM_PID, LOAD_PID = 8000, 9000, 20, 30, 10


def truth(requests: int, calls: int = 1) -> Truth:
    names = frozenset(f"r{number}" for number in range(requests))
    return Truth(names, calls, FRONT_PORT, UPSTREAM_PORT, UPSTREAM_PID, load.ADDRESS)


def spans_of(request: str, calls: int = 1) -> list[Span]:
    """One request as it should be: load, front, and both sides of each call."""
    path = f"/t/{request}"
    spans = [
        Span(request, f"{request}-load", "", CLIENT, LOAD_PID, HERE, FRONT_PORT, path),
        Span(
            request,
            f"{request}-front",
            f"{request}-load",
            SERVER,
            FRONT_PID,
            load.ADDRESS,
            50001,
            path,
        ),
    ]
    for call in range(calls):
        path, id = f"/u/{request}/{call}", f"{request}-{call}"
        spans += [
            Span(
                request,
                f"{id}-client",
                f"{request}-front",
                CLIENT,
                FRONT_PID,
                HERE,
                UPSTREAM_PORT,
                path,
                "thread",
            ),
            Span(
                request,
                f"{id}-server",
                f"{id}-client",
                SERVER,
                UPSTREAM_PID,
                HERE,
                60001,
                path,
                "stream",
            ),
        ]
    return spans


def change(spans: list[Span], id: str, **values: str) -> list[Span]:
    assert any(each.id == id for each in spans)
    return [dataclasses.replace(s, **values) if s.id == id else s for s in spans]  # type: ignore[arg-type]


def test_all_right() -> None:
    spans = spans_of("r0", 3) + spans_of("r1", 3)
    counts = judge(spans, truth(2, calls=3))
    assert counts == Counts(right=6, evidence={"thread right": 6})
    assert counts.upstream == 6 and counts.share(counts.right) == 1.0


def test_unlinked_client_is_an_orphan() -> None:
    spans = change(spans_of("r0") + spans_of("r1"), "r0-0-client", parent="")
    counts = judge(spans, truth(2))
    assert (counts.right, counts.orphan, counts.wrong, counts.unpaired) == (1, 1, 0, 0)


def test_a_parent_that_is_nowhere_is_an_orphan() -> None:
    spans = change(spans_of("r0"), "r0-0-client", parent="gone")
    assert judge(spans, truth(1)).orphan == 1


def test_unlinked_server_is_an_orphan_and_unpaired() -> None:
    counts = judge(change(spans_of("r0"), "r0-0-server", parent=""), truth(1))
    assert (counts.orphan, counts.unpaired) == (1, 1)


def test_a_front_span_of_another_request_is_wrong() -> None:
    spans = change(spans_of("r0") + spans_of("r1"), "r0-0-client", parent="r1-front")
    counts = judge(spans, truth(2))
    assert (counts.right, counts.orphan, counts.wrong) == (1, 0, 1)
    assert counts.split == 1
    assert counts.evidence == {"thread right": 1, "thread wrong": 1}


def own_spans(spans: list[Span], trace: str) -> list[Span]:
    """A service that traces itself hangs its call below spans of its own."""
    server = Span(trace, "own-server", "", SERVER, FRONT_PID, "", 0, "/t/r0", own=True)
    client = Span(trace, "own-client", "own-server", CLIENT, FRONT_PID, "", 0, "/u/r0/0", own=True)
    return [*change(spans, "r0-0-client", parent="own-client"), server, client]


def test_a_way_may_end_at_a_server_span_of_the_services_own() -> None:
    counts = judge(own_spans(spans_of("r0"), "r0"), truth(1))
    assert (counts.right, counts.doubled, counts.split, counts.unpaired) == (1, 0, 0, 0)
    foreign = change(own_spans(spans_of("r0"), "r0"), "own-server", path="/t/r1")
    assert judge(foreign, truth(1)).wrong == 1
    cut = change(own_spans(spans_of("r0"), "r0"), "own-client", parent="")
    assert judge(cut, truth(1)).orphan == 1


def test_own_spans_and_the_tracers_are_one_trace() -> None:
    assert judge(own_spans(spans_of("r0"), "own"), truth(1)).split == 1
    spans = own_spans(spans_of("r0"), "r0")
    for id in ("r0-load", "r0-front"):
        spans = change(spans, id, trace="apart")
    assert judge(spans, truth(1)).split == 1


def test_a_front_span_of_a_request_that_failed_is_wrong_too() -> None:
    spans = change(spans_of("r0") + spans_of("failed"), "r0-0-client", parent="failed-front")
    assert judge(spans, truth(1)).wrong == 1


def test_the_client_span_of_another_call_is_wrong() -> None:
    spans = change(spans_of("r0", 2), "r0-0-server", parent="r0-1-client")
    counts = judge(spans, truth(1, calls=2))
    assert (counts.right, counts.wrong, counts.unpaired) == (1, 1, 1)


def test_a_circle_ends() -> None:
    spans = change(spans_of("r0"), "r0-0-client", parent="r0-0-server")
    assert judge(spans, truth(1)).orphan == 1


def test_missing_and_doubled_count_both_sides_of_both_services() -> None:
    spans = spans_of("r0") + spans_of("r1")
    counts = judge([s for s in spans if s.request == "r1" or s.kind == CLIENT], truth(2))
    assert (counts.right, counts.missing, counts.doubled) == (1, 2, 0)
    again = [dataclasses.replace(s, id=f"{s.id}-again") for s in spans_of("r0")]
    counts = judge(spans + again, truth(2))
    assert (counts.right, counts.missing, counts.doubled) == (2, 0, 4)


def test_front_spans_must_hang_on_the_load() -> None:
    assert judge(change(spans_of("r0"), "r0-front", parent=""), truth(1)).unpaired == 1


def test_one_trace_id_from_top_to_bottom() -> None:
    for id in ("r0-load", "r0-front", "r0-0-client", "r0-0-server"):
        assert judge(change(spans_of("r0"), id, trace="other"), truth(1)).split == 1


def test_the_trace_that_a_request_names() -> None:
    same = dataclasses.replace(truth(1), named={"r0": ("r0", "outside")})
    counts = judge(change(spans_of("r0"), "r0-load", parent="outside"), same)
    assert (counts.right, counts.split, counts.unpaired) == (1, 0, 0)
    counts = judge(spans_of("r0"), same)
    assert (counts.right, counts.split, counts.unpaired) == (1, 0, 1)
    other = dataclasses.replace(truth(1), named={"r0": ("other", "outside")})
    assert judge(spans_of("r0"), other).split == 1


@pytest.mark.parametrize("header", ["traceparent", "b3", "uber-trace-id", "sw8"])
def test_headers_are_those_that_the_tracer_reads(header: str) -> None:
    line, trace, parent = named(header, "r0")
    name, _, value = line.rstrip("\r\n").partition(": ")
    assert name == header and line.endswith("\r\n")
    assert remote_parent(value.encode()) == (bytes.fromhex(trace), bytes.fromhex(parent))
    assert named(header, "r1").trace != trace
    assert named("", "r0") == ("", "", "")


def test_a_service_between() -> None:
    """load -> front -> middle -> upstream, as behind a proxy; ports may be of the same number."""
    path = "/t/r0"
    middle = [
        Span("r0", "out", "r0-front", CLIENT, FRONT_PID, HERE, 7000, path, "content"),
        Span("r0", "in", "out", SERVER, 21, HERE, 50001, path, "stream"),
    ]
    spans = change(spans_of("r0"), "r0-0-client", parent="in") + middle
    counts = judge(spans, truth(1))
    assert counts == Counts(right=1, evidence={"thread right": 1, "content right": 1})
    # Up to the service between is not yet home.
    counts = judge(change(spans, "out", parent=""), truth(1))
    assert (counts.right, counts.orphan) == (0, 1)


def test_a_path_passed_on_unchanged_is_call_0() -> None:
    spans = [
        dataclasses.replace(s, path="/t/r0") if s.path.startswith("/u/") else s
        for s in spans_of("r0")
    ]
    assert judge(spans, truth(1)).right == 1


LINKS = st.sampled_from(["", "own", "other", "self", "nowhere"])


@given(st.lists(LINKS, min_size=1, max_size=12), st.integers(1, 3), st.randoms())
@settings(deadline=None, max_examples=60)
def test_counts_add_up_in_any_order(links: list[str], calls: int, chance: random.Random) -> None:
    requests = len(links)
    spans: list[Span] = []
    for number, link in enumerate(links):
        own = spans_of(f"r{number}", calls)
        other = f"r{(number + 1) % requests}-front"
        for call in range(calls):
            id = f"r{number}-{call}-client"
            above = {"own": f"r{number}-front", "other": other, "self": id}.get(link, link)
            own = change(own, id, parent=above)
        spans += own
    right = sum(link == "own" or (link == "other" and requests == 1) for link in links)
    wrong = sum(link == "other" and requests > 1 for link in links)
    chance.shuffle(spans)
    counts = judge(spans, truth(requests, calls))
    assert (counts.right, counts.wrong) == (right * calls, wrong * calls)
    assert counts.upstream == requests * calls
    assert counts.missing == counts.doubled == counts.unpaired == 0


@given(st.sets(st.integers(0, 19)))
@settings(deadline=None, max_examples=60)
def test_what_is_taken_away_is_missing(gone: set[int]) -> None:
    spans = [s for number in range(5) for s in spans_of(f"r{number}")]
    left = [s for at, s in enumerate(spans) if at not in gone]
    counts = judge(left, truth(5))
    assert counts.missing == len(gone)
    assert counts.upstream + sum(spans[at].id.endswith("0-server") for at in gone) == 5
    assert counts.wrong == counts.doubled == 0


def line(**values: object) -> str:
    span = {
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "parent_span_id": "",
        "kind": SERVER,
        "resource": {"process.pid": 7},
        "attributes": {},
    }
    return json.dumps(span | values) + "\n"


def test_read_takes_paths_of_both_sides_and_statements() -> None:
    lines = [
        "wirespan: attached\n",
        line(attributes={"url.path": "/t/x", "network.peer.port": 5}),
        line(kind=CLIENT, attributes={"url.full": "http://127.0.0.1:9/u/x/2?d=REDACTED"}),
        line(attributes={"db.query.text": "SELECT SLEEP(?) AS `/u/x/1`"}),
        line(attributes={"rpc.system.name": "grpc"}),
    ]
    spans = list(read(lines))
    assert [(s.request, s.call) for s in spans] == [("x", 0), ("x", 2), ("x", 1), ("", 0)]
    assert (spans[0].pid, spans[0].peer_port) == (7, 5)


def test_workloads_are_told_apart_and_can_be_asked_for() -> None:
    names = [each.name for each in WORKLOADS]
    assert len(set(names)) == len(names)
    assert chosen([]) == list(WORKLOADS)
    assert [each.name for each in chosen(["flask"])] == ["flask"]
    assert {each.family for each in chosen(["threads"])} == {"threads"}
    assert all(each.name.startswith("aiohttp") for each in chosen(["aiohttp*"]))
    with pytest.raises(BenchError, match="no workload is called 'nothing'"):
        chosen(["nothing"])
    for each in WORKLOADS:
        assert 0 <= each.wrong_target <= 0.001 and 0 <= each.right_target <= 1


def a_run(**values: object) -> Run:
    run = Run(
        "flask", "threads", 1, 0.999, 0.0, 8, 2000, 0, 1.5, Counts(1998, 1, 1, evidence={}), {}
    )
    return dataclasses.replace(run, **values)  # type: ignore[arg-type]


def test_targets() -> None:
    good = Counts(right=1999, orphan=1)
    assert a_run(counts=good).met
    assert not a_run().met
    assert not a_run(counts=good, failed=1).met
    assert not a_run(counts=Counts()).met
    for flaw in ("missing", "doubled", "split", "unpaired"):
        assert not a_run(
            counts=dataclasses.replace(good, **{flaw: 1})  # type: ignore[arg-type]
        ).met


def test_percent_rounds_nothing_away() -> None:
    counts = Counts(right=199_999, wrong=1)
    assert page.percent(counts, counts.right) == "99.99"
    assert page.percent(counts, counts.wrong) == "0.01"
    assert page.percent(counts, 0) == "0"
    assert page.percent(Counts(right=5), 5) == "100"


@pytest.fixture
def machine() -> Machine:
    return Machine(
        "2026-01-01 00:00 UTC", "a CPU", 2, 8.0, "Linux 6.1", 0.1, 0, "0.1", "3.11", "", ""
    )


def test_page_and_plot(machine: Machine) -> None:
    runs = [a_run(), a_run(concurrency=128, counts=Counts(5, 5, 0, evidence={"loop right": 5}))]
    text = page.page(
        runs,
        {"envoy": "not installed"},
        machine=machine,
        versions={"flask": "3.1.3"},
        command="make truth",
        plot="linking.svg",
    )
    assert "## Threads" in text and "| flask" in text and "- envoy: not installed" in text
    assert "loop right 5" in text and "**missed**" in text
    prose = [row for row in text.splitlines() if row[:1] not in "|-"]
    assert max(map(len, prose)) <= markdown.COLUMNS
    assert len({row.count("|") for row in text.splitlines() if row[:1] == "|"}) == 1
    drawn = ET.fromstring(plot.chart(runs))
    assert drawn.tag.endswith("svg")
    assert "50.0 %" in plot.chart(runs)


def test_runs_are_read_back() -> None:
    runs = [a_run(), a_run(concurrency=32)]
    assert list(page.read(map(page.line, runs))) == runs


def test_command_lists_and_reads(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list", "event loops"]) == 0
    assert "aiohttp-gather-3" in capsys.readouterr().out
    assert command.main(["no-such-workload"]) == 1
    assert "hint" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        command.main(["--concurrency", "0"])
    assert wrong.value.code == 2


@pytest.fixture
def upstream() -> Iterator[int]:
    port = free_port()
    with Upstream(port):
        yield port


def test_load_against_the_upstream_itself(upstream: int) -> None:
    done = load.run(upstream, requests=40, concurrency=8, calls=1, seed=3)
    assert len(set(done.ids)) == 40 and not done.failed
    assert done.seconds < 20


def test_load_says_when_nobody_listens(upstream: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(BenchError, match="no request was answered"):
            load.run(taken.getsockname()[1], requests=2, concurrency=1, calls=1, seed=1)


def test_load_takes_chunks_and_short_connections() -> None:
    """A server that answers the first request in chunks, and closes after the second."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                for kind in ("chunks", "close"):
                    head = connection.recv(4096).decode()
                    id = head.split(" ")[1].removeprefix("/t/").partition("?")[0]
                    fields = "HTTP/1.1 200 OK\r\n"
                    if kind == "chunks":
                        fields += "Transfer-Encoding: chunked\r\n\r\n"
                        body = f"3\r\n{id[:3]}\r\n{len(id) - 3:x};x=1\r\n{id[3:]}\r\n0\r\n\r\n"
                    else:
                        fields, body = fields + "Connection: close\r\n\r\n", id
                    connection.sendall((fields + body).encode())

    thread = threading.Thread(target=serve)
    thread.start()
    done = load.run(listener.getsockname()[1], requests=4, concurrency=1, calls=2, seed=1)
    thread.join(10)
    listener.close()
    assert len(done.ids) == 4 and not done.failed


def test_children_end() -> None:
    """What a run starts is gone when it is left by an error."""
    child: Child
    port = free_port()
    with pytest.raises(RuntimeError), Upstream(port) as child:
        raise RuntimeError
    assert child.popen.returncode is not None
    with pytest.raises(OSError):
        asyncio.run(asyncio.open_connection("127.0.0.1", port))
