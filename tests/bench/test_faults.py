"""The fault suite's own parts: what it counts, and the page that it keeps."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.faults import page
from bench.faults.__main__ import choose, main
from bench.faults.backend import HTTP, PARTLY_REJECTED, Backend, Mode
from bench.faults.load import Load
from bench.faults.scene import Outcome
from bench.faults.seen import Seen, count
from bench.faults.soak import Sample, trend
from bench.faults.table import FAULTS
from bench.machine import Machine
from bench.nginx import Nginx


def body(*paths: str) -> bytes:
    """An OTLP request with a span for each path: a client's where it has an address."""
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for path in paths:
        key = "url.full" if path.startswith("http") else "url.path"
        span = spans.add(name="GET /{prefix}/{id}", span_id=b"/fault/0")
        span.attributes.add(key=key).value.string_value = path
    return request.SerializeToString()


def test_each_side_of_each_request_is_counted() -> None:
    first = body("/fault/00000000", "http://127.0.0.1:80/fault/00000000", "/fault/00000002")
    seen = count([first, body("/fault/00000002", "/other/00000001")], "fault", 3)
    assert seen.server.tolist() == [1, 0, 2]
    assert seen.client.tolist() == [1, 0, 0]
    assert (seen.spans, seen.missing(), seen.doubled()) == (4, 3, 1)


def test_a_span_of_no_request_is_one_too_many() -> None:
    seen = count([body("/fault/00000000", "/fault/00000007")], "fault", 1)
    assert (seen.missing(), seen.beyond, seen.doubled()) == (1, 1, 1)


def test_a_load_that_made_fewer_requests_than_there_was_room_for() -> None:
    seen = Seen.none(5)
    seen.add([body("/fault/00000000", "/fault/00000003")], "fault")
    seen.add([body("/fault/00000001", "/other/00000001")], "fault")
    of_two = seen.of(2)
    assert (of_two.server.tolist(), of_two.beyond) == ([1, 1], 1)
    assert (of_two.missing(), of_two.doubled()) == (2, 1)


def samples(resident: Iterable[float]) -> list[Sample]:
    return [Sample(30.0 * n, int(value), 50, 13, 7, 30, 1) for n, value in enumerate(resident)]


def test_a_trend_is_no_peak_and_hides_in_no_noise() -> None:
    noise = np.random.default_rng(1).normal(100e6, 2e6, 60)
    assert abs(trend(samples(noise), "resident")) < 2e6
    assert trend(samples(noise + np.linspace(0, 8e6, 60)), "resident") > 6e6
    assert abs(trend(samples([*noise[:-1], 110e6]), "resident")) < 3e6
    assert trend(samples(noise), "threads") == pytest.approx(0)


@pytest.mark.parametrize("options", [{}, {"per_connection": 2}, {"processes": 3, "rate": 600}])
def test_a_load_knows_what_it_did(tmp_path: Path, options: dict[str, int]) -> None:
    with Nginx(tmp_path / "nginx") as nginx:
        before = nginx.requests()
        with Load(nginx.port, "truth", tmp_path, most=200, **options) as load:
            made = load.ended(30)
        assert nginx.requests() - before - 1 == len(made) == 200
    assert made.failed == 0 and (made.requests["status"] == 200).all()
    assert (made.requests["start_ns"] < made.requests["end_ns"]).all()


def test_a_load_counts_what_fails(tmp_path: Path) -> None:
    nginx = Nginx(tmp_path / "nginx")
    with Load(nginx.port, "truth", tmp_path, rate=200) as load:
        load.wait_for(lambda: load.made_so_far() > 20, "it runs")
        nginx.stop()
        load.wait_for(lambda: "connect" in load.said(), "it finds nobody")
        made = load.end()
    unanswered = int((made.requests["status"] == 0).sum())
    assert made.failed > unanswered, "a connection that is refused is no request"
    assert np.count_nonzero(made.requests["begun"]) == len(made) > 20


@pytest.mark.parametrize("mode", [Mode.ACCEPT, Mode.REJECT, Mode.PARTIAL])
def test_a_backend_keeps_what_it_accepted(mode: Mode) -> None:
    backend = Backend(HTTP)
    backend.mode = mode
    one, four = (body(*(f"/fault/{n:08}" for n in range(count))) for count in (1, 4))
    try:
        for path, sent in (("traces", one), ("metrics", one), ("traces", four)):
            url = f"http://127.0.0.1:{backend.port}/v1/{path}"
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(url, sent, 10).close()
        kept = list(backend.bodies())
    finally:
        backend.close()
    assert backend.requests == 2, "metrics are no spans"
    assert kept == ([] if mode is Mode.REJECT else [one, four])
    # It can't refuse more than came.
    assert backend.rejected == (1 + PARTLY_REJECTED if mode is Mode.PARTIAL else 0)


def test_the_page_keeps_what_it_had(tmp_path: Path) -> None:
    machine = Machine.this()
    older = Outcome(FAULTS[1].name, False, made=10, date="2020-01-01 00:00")
    older.checks.append(("all is well", True, ""))
    page.write(tmp_path, older, machine)
    newer = Outcome(FAULTS[0].name, True, made=5, lost={"ring_full": 3}, date="2021-01-01 00:00")
    newer.checks.append(("all is well", False, "it is not"))
    page.write(tmp_path, newer, machine)
    text = (tmp_path / page.PAGE).read_text()
    assert "2020-01-01 00:00 |" in text and "2021-01-01 00:00 (short) |" in text
    assert text.index(f"`{FAULTS[0].name}`") < text.index(f"`{FAULTS[1].name}`")
    assert "**missed**: all is well" in text and "ring_full 3" in text and "it is not" in text
    assert page.read((tmp_path / page.LINES).read_text())[older.name] == older


def test_faults_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert choose([]) == list(FAULTS)
    assert [fault.name for fault in choose([FAULTS[0].name])] == [FAULTS[0].name]
    assert main(["no such fault"]) == 2
    assert "--list" in capsys.readouterr().err


def test_without_any_check_nothing_held() -> None:
    assert not Outcome("nothing", True).held
