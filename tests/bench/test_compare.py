"""The comparison with other ways: that it counts what it says, not how they compare."""

from __future__ import annotations

import os
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import markdown
from bench.compare import page, parts
from bench.compare.load import Load, Target
from bench.compare.rounds import LATE_S, MIXED, Comparison, Sample, Turn, adds_bytes, adds_us
from bench.compare.services import (
    EMPTY,
    ENVOY,
    FASTAPI,
    FLASK,
    GRPC_GO,
    MARIADB,
    NGINX,
    NONE,
    OTEL,
    OTEL_SPANS,
    WIRESPAN,
    Envoy,
    PythonService,
)
from bench.nginx import Nginx
from bench.processes import BenchError, Child, answers, free_port, tree
from bench.sink import Sink

# Ways beyond those that every service has.
MORE = {NGINX: (ENVOY,), FLASK: (OTEL, ENVOY), FASTAPI: (OTEL, ENVOY)}
ADDED_US = {NONE: 0, EMPTY: 1, WIRESPAN: 10, OTEL: 0, ENVOY: 40}


def sample(names: tuple[str, ...], way: str, scale: int) -> Sample:
    """100 requests of `scale` x 100 us of the application, 20 more with the SDK in it."""
    app_us = 100 * scale + (20 if way == OTEL else 0)
    return Sample(
        100, 2.0, app_us * 100_000, ADDED_US[way] * 100_000, 7, 200 if way == WIRESPAN else 0, 50,
        dict.fromkeys(names, (1500.0, 2500.0)),
    )  # fmt: skip


def comparison() -> Comparison:
    rates = dict.fromkeys((NGINX, FLASK, FASTAPI, GRPC_GO, MARIADB), 400)
    turns = []
    for scale in (1, 2):
        for name in (*rates, MIXED):
            names = tuple(rates) if name == MIXED else (name,)
            for way in (NONE, EMPTY, WIRESPAN, *MORE.get(name, ())):
                one = sample(names, way, scale)
                app = 70_000_000 if way == OTEL else 50_000_000
                beside = 90_000_000 if way in (WIRESPAN, ENVOY) else 0
                most, losses = None if name == MIXED else one, {"gap": 1} if way == WIRESPAN else {}
                turns.append(Turn(name, way, most, one, app, beside, losses))
    return Comparison(turns, 2, rates, 12, {"flask": "3"})


def test_what_is_added_is_the_difference_within_a_round() -> None:
    turns = comparison().turns
    assert adds_us(turns, NGINX, WIRESPAN, lambda turn: turn.most) == [10.0, 10.0]
    assert adds_us(turns, FLASK, OTEL, lambda turn: turn.most) == [20.0, 20.0]
    assert adds_us(turns, MIXED, EMPTY, lambda turn: turn.rate) == [1.0, 1.0]
    assert adds_us(turns, NGINX, OTEL, lambda turn: turn.most) == []
    assert adds_bytes(turns, FLASK, OTEL) == [20_000_000, 20_000_000]
    assert adds_bytes(turns, FLASK, WIRESPAN) == [90_000_000, 90_000_000]


def test_page_and_plot() -> None:
    text = page.section(comparison(), "plot.svg")
    assert "Rounds: 2;" in text and "12 eBPF programs" in text and "](plot.svg)" in text
    words = " ".join(text.split())
    assert "OTel SDK 2.0 (2.0) times with Flask, 2.0 (2.0) times with FastAPI; Envoy 4.0" in words
    assert "gap 1 with nginx, gap 1 with Flask" in words
    assert "20.0 % were of other traffic" in words
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert rows["Flask, OTel SDK"] == [
        *("170.0 (120.0 to 220.0)", "170.0 (120.0 to 220.0)"),
        *("1.50 (1.50 to 1.50)", "2.50 (2.50 to 2.50)", "20"),
    ]
    assert rows["nginx, at most"] == [
        *("1.0 (1.0 to 1.0)", "10.0 (10.0 to 10.0)", "-", "40.0 (40.0 to 40.0)"),
    ]
    assert rows["all at once, wirespan"][2:4] == ["below", "below"]
    assert rows["MariaDB"] == ["1.50", "2.50"] * 3
    assert "1.08 (1.05 to 1.10)" in text and "2.000" in text
    prose = [line for line in text.splitlines() if line[:1] not in ("|", "!")]
    assert max(map(len, prose)) <= markdown.COLUMNS
    drawn = ET.fromstring(page.chart(comparison()))
    bars = [r for r in drawn.iter("{http://www.w3.org/2000/svg}rect") if r.get("height") != "12"]
    assert len(bars) == 3 + 4 + 4 + 2 + 2


def test_a_process_and_those_it_started() -> None:
    script = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    with Child([sys.executable, "-c", script]) as child:

        def names() -> list[str]:
            return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in tree(child.pid)]

        child.wait_for(lambda: names()[1:] == ["sleep"], "it has a child")
        one, other = tree(child.pid)
        assert one == child.pid
        os.kill(other, 15)
        child.popen.wait(10)
    with pytest.raises(BenchError, match="has ended"):
        tree(child.pid)
    assert not answers(free_port())


@pytest.mark.slow
def test_load_counts_exactly(tmp_path: Path) -> None:
    """The first time here it is built."""
    with Nginx(tmp_path / "nginx") as nginx, Load(parts.load()) as load:
        for rate in (0, 200):
            before = nginx.requests()
            (got,) = load.ask(0.5, [Target("http", nginx.port, 4, rate)])
            assert got.requests == nginx.requests() - before - 1
            if rate:
                assert got.requests == 4 + 100 and len(got.latency_ns) == 100
                assert all(0 < ns < 60e9 for ns in got.latency_ns)
            else:
                assert got.requests > 100 and not got.latency_ns
            assert got.seconds >= 0.49
        with pytest.raises(BenchError, match="connection refused"):
            load.ask(1, [Target("http", free_port(), 1, 0)])


@pytest.mark.slow
def test_every_request_has_its_spans(tmp_path: Path) -> None:
    """What wirespan is compared with does its work; the first time here it is fetched."""
    python = parts.python()
    with (
        Sink() as sink,
        Nginx(tmp_path / "nginx") as nginx,
        Envoy(parts.envoy(), tmp_path, nginx.port, sink.port) as envoy,
        PythonService(FLASK, python, sink.endpoint) as flask,
        PythonService(FASTAPI, python, sink.endpoint) as fastapi,
        Load(parts.load()) as load,
    ):
        for port, spans in (
            (envoy.port, 1),
            (flask.port, OTEL_SPANS[FLASK]),
            (fastapi.port, OTEL_SPANS[FASTAPI]),
        ):
            before = nginx.requests()
            (got,) = load.ask(0.5, [Target("http", port, 4, 100)])
            assert nginx.requests() - before - 1 == (got.requests if port == envoy.port else 0)
            total, end = 0, time.monotonic() + 30
            while total < got.requests * spans and time.monotonic() < end:
                time.sleep(LATE_S)
                total += sink.collect().total
            assert total == got.requests * spans
