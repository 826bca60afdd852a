"""Traces across three hosts: a tracer on each, collectors between them, Jaeger behind.

a: load -> service a;  a -> b -> c over the bridge, or through NAT on it.
Every request must be one trace of six spans, each hanging on the one before.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.root.harness import ROOT, Process, unique, wait_until
from tests.root.hosts import ADDRESS, HUB, NAMES, VIRTUAL, Hosts, HubJaeger, finish

CHAIN = (
    ("load", "client"),
    ("service-a", "server"),
    ("service-a", "client"),
    ("service-b", "server"),
    ("service-b", "client"),
    ("service-c", "server"),
)
PORTS, OTELCOL_PORT = (4317, 4319), 4320
REQUESTS, CONNECTIONS = 400, 8
SKEW_MS, ROUGHLY_US = 300, 10_000
WHOLE_S = 40.0  # within which all spans of a load are in Jaeger

Paths = Mapping[str, list["Seen"]]


class Seen(NamedTuple):
    """A span as Jaeger shows it; times in us."""

    trace: str
    id: str
    parent: str
    service: str
    kind: str
    start: int
    end: int
    tag: dict[str, Any]


@pytest.fixture(scope="module")
def program() -> Path:
    """Jaeger's program: built, or waited for; 12 minutes where nothing is cached."""
    script = ROOT / "scripts" / "jaeger.sh"
    built = subprocess.run([script], stdout=subprocess.PIPE, text=True, timeout=3000)
    assert built.returncode == 0
    return Path(built.stdout.strip())


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    hosts = Hosts(tmp_path)
    yield hosts
    hosts.close()


@pytest.fixture
def jaeger(hosts: Hosts, program: Path) -> HubJaeger:
    return hosts.jaeger(program)


def to_jaeger(jaeger: HubJaeger) -> tuple[str, ...]:
    port = jaeger.ports["OTLP_GRPC"]
    return "--otlp-endpoint", f"http://127.0.0.1:{port}", "--otlp-protocol", "grpc", "--hold", "1"


def serve(hosts: Hosts, addresses: Mapping[str, str] = ADDRESS) -> None:
    hosts.serve("c")
    hosts.serve("b", addresses["c"])
    hosts.serve("a", addresses["b"])


def seen(jaeger: HubJaeger, prefix: str) -> dict[str, list[Seen]]:
    """All spans of requests under `prefix`, by path."""
    found: dict[str, Seen] = {}
    for service in sorted({service for service, _ in CHAIN}):
        for trace in jaeger.query("traces", service=service, limit=20_000, lookback="1h"):
            for span in trace["spans"]:
                above = [r["spanID"] for r in span["references"] if r["refType"] == "CHILD_OF"]
                tag = {tag["key"]: tag["value"] for tag in span["tags"]}
                start = span["startTime"]
                found[span["spanID"]] = Seen(
                    span["traceID"], span["spanID"], above[0] if above else "",
                    trace["processes"][span["processID"]]["serviceName"],
                    str(tag["span.kind"]), start, start + span["duration"], tag,
                )  # fmt: skip
    paths = defaultdict(list)
    for one in found.values():
        path = one.tag.get("url.path") or urlsplit(one.tag["url.full"]).path
        if path.startswith(prefix + "/"):
            paths[path].append(one)
    return paths


def arrived(jaeger: HubJaeger, prefix: str, count: int) -> Paths:
    """Wait for `count` requests' spans."""

    paths: Paths = {}

    def whole() -> bool:
        nonlocal paths
        paths = seen(jaeger, prefix)
        return sum(map(len, paths.values())) >= count * len(CHAIN)

    with contextlib.suppress(AssertionError):  # what is missing is for the caller to name
        wait_until(whole, f"{count} requests in Jaeger", WHOLE_S)
    return paths


def assert_exact(paths: Paths, answered: list[str]) -> None:
    """Each request is one trace of its own with the exact tree; none is missing."""
    assert sorted(paths) == sorted(answered)
    traces = set()
    for path, spans in paths.items():
        by = {(span.service, span.kind): span for span in spans}
        assert len(spans) == len(by) == len(CHAIN), f"{path}: {sorted(by)}"
        above = ""
        for step in CHAIN:
            assert by[step].parent == above, f"{path}: {step} hangs on {by[step].parent!r}"
            above = by[step].id
        assert len({span.trace for span in spans}) == 1, path
        traces.add(spans[0].trace)
    assert len(traces) == len(paths), "one trace, one request"


def earliest(paths: Paths) -> int:
    """By how many us, at least, children start after their parents."""
    starts = {span.id: span.start for spans in paths.values() for span in spans}
    spans = [span for spans in paths.values() for span in spans if span.parent]
    return min(span.start - starts[span.parent] for span in spans)


def wrong(paths: Paths) -> list[str]:
    """Paths with a span that hangs on, or shares its trace with, one of another request."""
    of_span = {span.id: path for path, spans in paths.items() for span in spans}
    of_trace: dict[str, str] = {}
    for path, spans in paths.items():
        for span in spans:
            of_trace.setdefault(span.trace, path)
    return [
        path
        for path, spans in paths.items()
        for span in spans
        if of_span.get(span.parent, path) != path or of_trace[span.trace] != path
    ]


def answered(load: Process) -> list[str]:
    return [line for line in load.said().splitlines() if line.startswith("/")]


def end(process: Process) -> dict[str, int]:
    """End a collector well; returns its counts."""
    assert process.stop(timeout=40.0) == 0, process.said()
    return counts(process)


def counts(process: Process) -> dict[str, int]:
    """What a collector said last of what it has counted."""
    counted = process.said().rpartition("wirespan: requests ")[2].splitlines()[0]
    return {name.strip(): int(n) for name, n in re.findall(r"([a-z_ ()]+) (\d+)", counted)}


def nothing_lost(tracer: Process) -> None:
    assert tracer.stop(timeout=40.0) == 0, tracer.said()
    assert "lost: nothing" in tracer.said(), tracer.said()


@pytest.mark.parametrize("way", ["plain", "nat"])
def test_three_hosts(hosts: Hosts, jaeger: HubJaeger, way: str) -> None:
    """Each request is one trace, on the bridge and through DNAT and SNAT."""
    if way == "nat":
        hosts.translate()
    serve(hosts, VIRTUAL if way == "nat" else ADDRESS)
    collector = hosts.collect(PORTS[0], *to_jaeger(jaeger))
    tracers = [hosts.trace(name, f"http://{HUB}:{PORTS[0]}") for name in NAMES]
    prefix = unique()
    load = hosts.load(prefix, REQUESTS, CONNECTIONS)
    paths = arrived(jaeger, prefix, REQUESTS)
    assert len(answered(load)) == REQUESTS
    assert_exact(paths, answered(load))
    if way == "nat":
        for spans in paths.values():
            by = {(span.service, span.kind): span.tag for span in spans}
            assert by["service-a", "client"]["network.peer.address"] == VIRTUAL["b"]
            assert by["service-b", "server"]["network.peer.address"] == HUB
    for tracer in tracers:
        nothing_lost(tracer)
    got = end(collector)
    assert got["spans"] == got["sent"] == REQUESTS * len(CHAIN)
    assert not {"split", "unresolved", "late", "duplicate", "evicted"} & got.keys(), got


@pytest.mark.parametrize("skew_ms", [SKEW_MS, -SKEW_MS])
def test_skewed_clock(hosts: Hosts, jaeger: HubJaeger, skew_ms: int) -> None:
    """The clock of b is wrong: no child starts before its parent nonetheless."""
    serve(hosts)
    collector = hosts.collect(PORTS[0], *to_jaeger(jaeger))
    skew = {"WIRESPAN_CLOCK_OFFSET_MS": str(skew_ms)}
    for name in NAMES:
        hosts.trace(name, f"http://{HUB}:{PORTS[0]}", skew if name == "b" else None)
    prefix = unique()
    load = hosts.load(prefix, REQUESTS, CONNECTIONS)
    paths = arrived(jaeger, prefix, REQUESTS)
    assert_exact(paths, answered(load))
    assert earliest(paths) >= 0
    for spans in paths.values():
        for span in spans:
            if span.service == "service-b":
                moved = span.tag["wirespan.clock.skew_ns"] / 1e6
                assert abs(moved - skew_ms) < 50, span
            else:
                assert abs(span.tag.get("wirespan.clock.skew_ns", 0)) / 1e6 < 50, span
    end(collector)
    assert "clock of b is" in collector.said()


def test_tracer_restarts(hosts: Hosts, jaeger: HubJaeger) -> None:
    """The tracer of b ends and comes again under load: what it missed is missing, nothing else."""
    serve(hosts)
    collector = hosts.collect(PORTS[0], *to_jaeger(jaeger))
    endpoint = f"http://{HUB}:{PORTS[0]}"
    tracers = {name: hosts.trace(name, endpoint) for name in NAMES}
    before, during, after = unique(), unique(), unique()
    first = hosts.load(before, 100, CONNECTIONS)
    load = hosts.load(during, REQUESTS, CONNECTIONS, rate=40, wait=False)
    load.wait_for(lambda: len(answered(load)) > 40, "some are answered")
    nothing_lost(tracers["b"])
    tracers["b"] = hosts.trace("b", endpoint)
    finish(load)
    last = hosts.load(after, 100, CONNECTIONS)
    assert_exact(arrived(jaeger, before, 100), answered(first))
    assert_exact(arrived(jaeger, after, 100), answered(last))
    for tracer in tracers.values():
        nothing_lost(tracer)
    got = end(collector)

    paths = seen(jaeger, during)
    assert sorted(paths) == sorted(answered(load))
    assert not wrong(paths)
    steps = {path: {(s.service, s.kind) for s in spans} for path, spans in paths.items()}
    missed = [path for path, have in steps.items() if len(have) < len(CHAIN)]
    for have in steps.values():
        assert set(CHAIN) - have <= {("service-b", "server"), ("service-b", "client")}
    assert 0 < len(missed) < REQUESTS
    # c's spans name a parent that never came: they are roots, and the collector counts them.
    assert got["unresolved"] == sum(("service-b", "client") not in h for h in steps.values())
    assert got["spans"] == got["sent"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_collector_restarts(hosts: Hosts, jaeger: HubJaeger, number: signal.Signals) -> None:
    """The collector ends and comes again under load; tracers keep their spans meanwhile.

    Told to end, it gives out what it holds: every span arrives, traces that were on their
    way in two parts. Killed, what it held is lost; what came before and after is whole.
    """
    serve(hosts)
    collector = hosts.collect(PORTS[0], *to_jaeger(jaeger))
    tracers = [hosts.trace(name, f"http://{HUB}:{PORTS[0]}") for name in NAMES]
    before, during, after = unique(), unique(), unique()
    first = hosts.load(before, 100, CONNECTIONS)
    assert_exact(arrived(jaeger, before, 100), answered(first))
    load = hosts.load(during, REQUESTS, CONNECTIONS, rate=40, wait=False)
    load.wait_for(lambda: len(answered(load)) > 120, "some are answered")
    assert collector.stop(number, timeout=40.0) == (-number if number == signal.SIGKILL else 0)
    load.wait_for(lambda: len(answered(load)) > 200, "more are answered")
    again = hosts.collect(PORTS[0], *to_jaeger(jaeger))
    finish(load)
    last = hosts.load(after, 100, CONNECTIONS)
    assert_exact(arrived(jaeger, after, 100), answered(last))
    paths = arrived(jaeger, during, REQUESTS)
    assert not wrong(paths)
    spans = sum(map(len, paths.values()))
    whole = [path for path, have in paths.items() if len(have) == len(CHAIN)
             and len({span.trace for span in have}) == 1]  # fmt: skip
    assert len(whole) > REQUESTS // 2
    if number == signal.SIGTERM:
        assert sorted(paths) == sorted(answered(load))
        assert spans == REQUESTS * len(CHAIN)
        assert counts(collector)["evicted"] >= REQUESTS - len(whole), "given out before their time"
    else:
        # At 40 requests a second, what it held: about its hold time and the last batches.
        assert REQUESTS - len(whole) < 200
    for tracer in tracers:
        nothing_lost(tracer)
    assert end(again)["spans"] > 0


def test_two_collectors(hosts: Hosts, jaeger: HubJaeger, program: Path) -> None:
    """Tracers -> two collectors -> OpenTelemetry Collector -> Jaeger.

    Each host sends to another collector than its neighbours: they agree nonetheless.
    """
    serve(hosts)
    hosts.otel_collector(program, jaeger, OTELCOL_PORT)
    onward = ("--otlp-endpoint", f"http://127.0.0.1:{OTELCOL_PORT}", "--otlp-protocol", "grpc")
    urls = [f"http://{HUB}:{port}" for port in PORTS]
    collectors = [
        hosts.collect(port, *onward, "--hold", "1", "--peer", other)
        for port, other in zip(PORTS, reversed(urls), strict=True)
    ]
    skew = {"WIRESPAN_CLOCK_OFFSET_MS": str(SKEW_MS)}
    tracers = [
        hosts.trace(name, url, skew if name == "b" else None)
        for name, url in zip(NAMES, (urls[0], urls[1], urls[0]), strict=True)
    ]
    prefix = unique()
    load = hosts.load(prefix, REQUESTS, CONNECTIONS)
    paths = arrived(jaeger, prefix, REQUESTS)
    assert_exact(paths, answered(load))
    early = earliest(paths)
    print(f"a child starts {early} us after its parent, or later")
    assert early > -ROUGHLY_US, "the clock is corrected, by each collector for itself"
    for tracer in tracers:
        nothing_lost(tracer)
    ended = [end(collector) for collector in collectors]
    for count in ended:
        assert count["spans"] == count["sent"]
        assert not {"split", "unresolved", "late", "duplicate", "evicted"} & count.keys(), ended
    # Told of: each side of each exchange between two hosts, by whoever has it.
    assert [count["stubs"] for count in ended] == [2 * REQUESTS, 2 * REQUESTS]
    for collector in collectors:
        assert ", 0 not" in collector.said()


def test_a_collector_of_two_dies(hosts: Hosts, jaeger: HubJaeger) -> None:
    """The other goes on, says so, and what all tracers send to it is whole."""
    serve(hosts)
    urls = [f"http://{HUB}:{port}" for port in PORTS]
    one, two = (
        hosts.collect(port, *to_jaeger(jaeger), "--peer", other)
        for port, other in zip(PORTS, reversed(urls), strict=True)
    )
    for name in NAMES:
        hosts.trace(name, urls[0])
    assert two.stop(signal.SIGKILL) == -signal.SIGKILL
    prefix = unique()
    load = hosts.load(prefix, 100, CONNECTIONS)
    assert_exact(arrived(jaeger, prefix, 100), answered(load))
    one.wait_for(lambda: f"cannot send to {urls[1]}" in one.said(), "it says so")
    got = end(one)
    assert got["spans"] == got["sent"]
    assert ", 0 not" not in one.said()
