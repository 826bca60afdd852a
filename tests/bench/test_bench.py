"""The benchmark's machinery: that it measures what it says, not how fast anything is."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench import empty, latency, markdown, others, pipeline, plot, report, rounds, stored, wrk
from bench.figures import Figure, percentile
from bench.machine import Machine
from bench.nginx import PATH, Nginx
from bench.processes import BenchError, Child, Memory, cpu_ns, free_port
from bench.results import Results
from bench.rounds import Load, Programs, Round, Traced
from bench.sink import METHOD, METRICS, SERVICE, Sink
from bench.traced import ProgramRuns, Status
from tests.tracer.records import record
from tracer.flow import Role

ROOT = Path(__file__).resolve().parents[2]

SUMMARY = """Running 4s test @ http://127.0.0.1:8080/items/0
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   516.08us  182.20us   7.35ms   88.47%
  241037 requests in 4.01s, 37.93MB read
  Socket errors: connect 0, read 2, write 0, timeout 1
  Non-2xx or 3xx responses: 4
Requests/sec:  60119.55
"""


def traced(server: int, client: int) -> Traced:
    memory = Memory(70_000_000, 80_000_000, 33_000_000)
    spans = server + client
    return Traced(
        spans * 2000, spans * 500, 9, spans, spans * 600, server, client, spans, 1, 0.2, 1.0,
        4000.0, memory, 20 << 20, {"gap": 3},
    )  # fmt: skip


def some_rounds() -> list[Round]:
    """Two of each kind; the second pair in the other order."""
    plain = Round(1000, 990, 0, 1.0, 10_000_000, 9_000_000, None)
    slow = Round(500, 490, 0, 1.0, 6_000_000, 5_000_000, traced(500, 499))
    return [plain, slow, slow, plain]


def test_figures_are_medians_with_their_spread() -> None:
    assert Figure.of([3, 1, 2]) == Figure(2, 1, 3)
    assert Figure.of([1234.5]).text(1) == "1,234.5 (1,234.5 to 1,234.5)"
    assert [percentile(range(1, 101), p) for p in (0, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7], 99) == 7
    for nothing in (lambda: Figure.of([]), lambda: percentile([], 50)):
        with pytest.raises(ValueError, match="needs a sample"):
            nothing()


def test_wrk_summary() -> None:
    assert wrk.parse(SUMMARY, 5) == wrk.WrkResult(241037, 4.01, 7, 5)
    with pytest.raises(BenchError, match="no summary"):
        wrk.parse("unable to connect", 5)


def test_cpu_time_is_that_of_all_threads_past_and_present() -> None:
    script = (
        "import threading, time\n"
        "def spin():\n"
        "    while time.thread_time() < 0.2: pass\n"
        "one = threading.Thread(target=spin); one.start(); one.join()\n"
        "print('done', flush=True); time.sleep(60)\n"
    )
    with Child([sys.executable, "-c", script]) as child:
        child.wait_for(lambda: "done" in child.said(), "its thread is done")
        assert 200_000_000 <= cpu_ns(child.pid) < 2_000_000_000
        memory = Memory.of(child.pid)
        assert 1_000_000 < memory.resident <= memory.peak < 1_000_000_000
        assert memory.bpf == 0
    with pytest.raises(BenchError, match="has ended"):
        cpu_ns(child.pid)


def test_child_that_fails_or_hangs() -> None:
    with Child(["sh", "-c", "echo no luck >&2; exit 3"]) as child:
        with pytest.raises(BenchError, match="exited 3:\nno luck"):
            child.finish(10)
    with Child(["sleep", "60"]) as child:
        with pytest.raises(BenchError, match="did not end"):
            child.finish(0.05)
    assert child.popen.returncode == -signal.SIGTERM
    with Child(["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.01; done"]) as child:
        child.wait_for(lambda: "deaf" in child.said(), "it is deaf")
        assert child.stop(timeout=0.1) == -signal.SIGKILL
    with Child(["true"]) as child:
        with pytest.raises(BenchError, match="ended before it flies"):
            child.wait_for(lambda: False, "it flies")


def test_nginx_counts_its_requests_exactly(tmp_path: Path) -> None:
    with Nginx(tmp_path / "nginx") as nginx:
        before = nginx.requests()
        connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=10)
        for _ in range(7):
            connection.request("GET", PATH)
            assert connection.getresponse().read() == b"hello from nginx\n"
        connection.close()
        assert nginx.requests() - before - 1 == 7
        assert 0 < nginx.worker_cpu_ns() < 10**10
        one = rounds.run_untraced(nginx, Load(1, 4))
        assert one.answered <= one.requests <= one.answered + 4
        assert one.errors == 0 and one.nginx_ns > 0 and one.wrk_ns > 0


def export(sink: Sink, port: int, end_ns: int, kinds: list[int]) -> None:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for number, kind in enumerate(kinds):
        span = spans.add(kind=kind, end_time_unix_nano=end_ns, span_id=bytes([number] * 8))
        value = span.attributes.add(key="server.port").value
        value.int_value = port
    with grpc.insecure_channel(f"127.0.0.1:{sink.port}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/{METHOD}", None, None)
        assert call(request.SerializeToString(), timeout=10) == b""


def test_sink_counts_spans_of_one_port_and_their_delay() -> None:
    with Sink() as sink:
        assert sink.endpoint == f"http://127.0.0.1:{sink.port}"
        assert sink.size() == 0
        end = time.time_ns() - 5_000_000_000
        export(sink, 80, end, [2, 2, 3])
        export(sink, 81, end, [3])
        size = sink.size()
        assert sink.settle(0.05, 0, 10.0) < 10.0
        got = sink.collect(80)
        assert (got.server, got.client, got.distinct, got.failed) == (2, 1, 3, 0)
        assert (got.total, got.requests, got.size) == (4, 2, size)
        assert len(got.latency_ns) == 3
        assert all(5e9 <= late < 65e9 for late in got.latency_ns)
        assert got.first_ns - end == got.latency_ns[0]
        with grpc.insecure_channel(f"127.0.0.1:{sink.port}") as channel:
            assert (
                channel.unary_unary(f"/{METRICS}/{METHOD}", None, None)(b"\n\0", timeout=10) == b""
            )
        assert sink.size() == sink.collect(80).total == 0
        os.kill(sink.pid, signal.SIGKILL)
        sink.popen.wait(10)
        with pytest.raises(BenchError, match="sink has ended"):
            sink.size()


def test_pace_keeps_its_rate() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        with latency.Pace(listener.getsockname()[1], 100):
            server, _ = listener.accept()
            with server:
                for _ in range(20):
                    assert server.recv(4096).startswith(b"GET " + PATH.encode())
                    server.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                took = time.monotonic() - began
    assert took >= 0.19


def test_system_calls_are_timed(tmp_path: Path) -> None:
    program = others.build(tmp_path)
    for kind in others.KINDS:
        with Child([program, kind, "1000", "3"]) as child:
            child.finish(30)
            lines = [float(line) for line in child.said().split()]
            assert len(lines) == 3 and all(1 < ns < 1e6 for ns in lines), kind
    assert subprocess.run([program, "zero", "x", "1"], capture_output=True).returncode == 2


def test_empty_programs_compile(tmp_path: Path) -> None:
    assert empty.build(tmp_path, empty.SYSCALLS).read_bytes().count(b"raw_tp/sys_exit") >= 1
    with pytest.raises(BenchError, match="cannot compile"):
        empty.build(tmp_path, ['"'])


@pytest.mark.root
def test_empty_programs_are_attached_for_a_while(tmp_path: Path) -> None:
    made = empty.build(tmp_path, ["raw_tp/sys_exit"])
    with empty.attached(made):
        os.getppid()
    wrong = empty.build(tmp_path, ["raw_tp/sys_nothing"])
    with pytest.raises(BenchError, match="cannot attach"), empty.attached(wrong):
        pass


def test_pipeline_replays_records_with_paths_of_their_own() -> None:
    one = [record(target=PATH, request_seq=seq, response_seq=9) for seq in (5, 5, 7)]
    records = np.concatenate(one)
    assert pipeline.number_paths(records, 98) == 2
    targets = [bytes(text[: len(PATH)]).decode() for text in records["text"]]
    assert targets == ["/items/00000098", "/items/00000098", "/items/00000099"]
    pairs = np.concatenate(
        [
            record(target=PATH, role=role, tgid=int(role), request_seq=seq, response_seq=9)
            for seq in range(4)
            for role in (Role.SERVER, Role.CLIENT)
        ]
    )
    costs = pipeline.run({pipeline.HTTP1: pairs}, 1, 20)
    http1 = [case.name for case in pipeline.CASES if case.traffic == pipeline.HTTP1]
    assert list(costs) == http1 and len(http1) == 3
    for cost in costs.values():
        assert cost.span_bytes > 100 and cost.spans_per_s.median > 0
    records["fields"]["len"][0, 0] -= 1
    with pytest.raises(BenchError, match="another path"):
        pipeline.number_paths(records, 0)


def test_ratios_are_of_neighbours_whatever_their_order() -> None:
    pair = rounds.compare(some_rounds(), lambda one: one.cpu_us(one.nginx_ns))
    assert pair == rounds.Pair(Figure(10, 10, 10), Figure(12, 12, 12), Figure(1.2, 1.2, 1.2))
    assert [one.missing for one, _ in rounds.traced_only(some_rounds())] == [1, 1]


def test_programs_are_told_apart() -> None:
    def status(runs: int) -> Status:
        return Status.of(
            {
                "losses": [{"name": "gap", "value": "1"}],
                "counts": [],
                "maps": [{"bytes": "4096"}, {"bytes": "1"}],
                "programs": [
                    {"name": name, "hook": hook, "run_count": str(runs), "run_ns": str(runs * 9)}
                    for name, hook in (
                        ("a", "raw_tp/sys_enter"),
                        ("b", "raw_tp/sys_exit"),
                        ("c", "uprobe"),
                    )
                ]
                + [{"name": "still", "hook": "tp", "run_count": "5", "run_ns": "6"}],
            }
        )

    assert status(1).map_bytes == 4097
    runs = rounds.difference(status(2), status(12))
    assert {name: (each.runs, each.ns) for name, each in runs.items()} == dict.fromkeys(
        "abc", (10, 90)
    )
    assert rounds.Programs(5, runs).side_ns == 27


def full_results() -> Results:
    figure = Figure(1.0, 0.5, 2.0)
    return Results(
        Machine.this(),
        "python -m bench",
        Load(4, 32),
        some_rounds(),
        Programs(100, {"sys_enter": ProgramRuns("raw_tp/sys_enter", 100, 9)}),
        {
            kind: others.Call(
                dict.fromkeys(others.WAYS, figure), dict.fromkeys(others.WAYS[1:], figure)
            )
            for kind in others.KINDS
        },
        others.Idle(2.0, 4_000_000, 1000, 0),
        latency.Latency(50, 500, 200.0, 300.0, 310.0, 1.5),
        stored.Stored(10.0, Memory(161_000_000, 170_000_000, 8_000_000), {"store_spans": 9}),
        {"one path": pipeline.Cost(*[figure] * 6, 600.0)},
    )


def test_page_and_plot() -> None:
    results = full_results()
    text = report.page(results, {"rounds": "plot.svg"})
    assert "2 of 2,000 spans missing" in text
    assert "0.200 % of a core" in text
    assert "![CPU time per request, untraced and traced](plot.svg)" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert tables and all(line.endswith("|") for line in tables)
    prose = [line for line in text.splitlines() if line[:1] not in ("|", "!")]
    assert max(map(len, prose)) <= markdown.COLUMNS
    host = socket.gethostname()
    assert len(host) < 4 or host not in text
    assert json.loads(results.json())["rounds"][1]["traced"]["losses"] == {"gap": 3}
    picture = ET.fromstring(report.charts(results)["rounds"])
    bars = [r for r in picture.iter("{http://www.w3.org/2000/svg}rect") if r.get("height") != "12"]
    assert len(bars) == 5
    wide, narrow = (
        ET.fromstring(plot.bars("t", "u", ("s",), [("g", [plot.Bar(Figure(v, v, 10), 0)])]))
        for v in (10, 5)
    )
    widths = [float(p.findall(".//{*}rect")[0].get("width", "")) for p in (wide, narrow)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)


def test_targets_are_judged_by_the_results() -> None:
    results = full_results()
    results.rounds = [
        dataclasses.replace(one, traced=traced(one.requests, one.requests) if one.traced else None)
        for one in results.rounds
    ]
    first = verdicts(results)
    assert first["kernel time per HTTP/1 exchange and side"] == "met"
    assert first["nginx, CPU per request, traced / untraced"] == "**missed**"
    assert first["nginx and wrk at their most, both sides traced"] == "met"
    assert first["memory of BPF maps"] == "**missed**"
    assert first["resident memory with the embedded collector"] == "**missed**"
    assert first["the user-space pipeline alone, one core"] == "**missed**"
    assert results.latency and results.programs
    results.rounds = some_rounds()
    results.latency = dataclasses.replace(results.latency, first_span_s=2.5)
    results.programs.runs["sys_enter"] = ProgramRuns("raw_tp/sys_enter", 100, 100 * 1202)
    changed = {name for name, verdict in verdicts(results).items() if verdict != first[name]}
    assert changed == {
        "kernel time per HTTP/1 exchange and side",
        "nginx and wrk at their most, both sides traced",
        "start of `wirespan run` to first span",
    }
    alone = Results(Machine.this(), "python -m bench", Load(1, 1), latency=results.latency)
    assert sorted(set(verdicts(alone).values())) == ["**missed**", "met", "not measured"]


def verdicts(results: Results) -> dict[str, str]:
    """The last column of the page's table of targets, by the first."""
    lines = report.page(results, {}).partition("## Targets")[2].partition("\n## ")[0].splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if "|" in line
    ]
    return {row[0]: row[-1] for row in rows[2:]}


def test_partial_results_make_a_page() -> None:
    text = report.page(Results(Machine.this(), "python -m bench", Load(1, 1)), {})
    assert text.startswith("# Benchmarks") and "##" not in text


def bench(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_wrong_usage() -> None:
    for words in (("--rounds", "0"), ("--phase", "none"), ("--seconds", "x")):
        done = bench(*words)
        assert done.returncode == 2 and "usage:" in done.stderr


@pytest.mark.root
def test_rounds_lose_nothing_and_say_so(tmp_path: Path) -> None:
    done = bench(
        *("--quick", "--rounds", "1", "--connections", "4"),
        *("--phase", "rounds", "--phase", "programs", "--phase", "latency"),
        *("--json", tmp_path / "raw.json", "--docs", tmp_path),
    )
    assert done.returncode == 0, done.stderr
    raw = json.loads((tmp_path / "raw.json").read_text())
    plain, slow = raw["rounds"]
    assert plain["traced"] is None
    requests, spans = slow["requests"], slow["traced"]
    assert spans["server"] == spans["client"] == requests
    assert spans["distinct"] == 2 * requests
    assert spans["tracer_ns"] > 0 and spans["memory"]["bpf"] > 0 and spans["map_bytes"] > 0
    hooks = {run["hook"].rpartition("/")[2] for run in raw["programs"]["runs"].values()}
    assert {"sys_enter", "sys_exit"} <= hooks
    assert raw["latency"]["spans"] > 50 and 0 < raw["latency"]["p50_ms"] < 5000
    page = (tmp_path / "benchmarks.md").read_text()
    assert page == done.stdout and f"0 of {2 * requests:,} spans missing" in page
    ET.parse(tmp_path / "benchmarks.svg")


@pytest.mark.root
def test_interrupt_ends_all_processes() -> None:
    argv = [sys.executable, "-m", "bench", "--phase", "programs", "--seconds", "60"]
    with subprocess.Popen(
        argv,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell has what it runs in the background ignore it, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
        try:
            children = wait_for_children(run.pid, {"nginx", "wrk", "wirespan"})
            run.send_signal(signal.SIGINT)
            out, _ = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 130 and "interrupted" in out
    end = time.monotonic() + 10
    while left := [pid for pid in children if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < end, left
        time.sleep(0.01)


def wait_for_children(pid: int, names: set[str]) -> set[int]:
    """Wait until descendants of those names run; returns the pids of all descendants."""
    end = time.monotonic() + 60
    while True:
        found: dict[int, str] = {}
        todo = [pid]
        while todo:
            parent = todo.pop()
            try:
                line = Path(f"/proc/{parent}/task/{parent}/children").read_text()
                found[parent] = Path(f"/proc/{parent}/comm").read_text().strip()
            except OSError:
                continue
            todo += map(int, line.split())
        if names <= set(found.values()):
            return set(found) - {pid}
        assert time.monotonic() < end, found
        time.sleep(0.02)


@pytest.mark.parametrize("host, family", [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_free_port_is_none_that_a_connection_takes(
    host: str, family: socket.AddressFamily
) -> None:
    given = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    ports = {free_port(family) for _ in range(50)}
    assert len(ports) > 40, "nor what somebody else was told just before"
    assert max(ports) < int(given[0])
    with socket.create_server((host, ports.pop()), family=family):
        pass


def test_a_port_that_is_taken_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        taken = listener.getsockname()[1]
        drawn = iter((taken, taken, free_port()))
        monkeypatch.setattr(random.SystemRandom, "randrange", lambda *_: next(drawn))
        assert free_port() != taken
