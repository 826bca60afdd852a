"""Rate, errors and durations equal to what the load itself counted, whatever becomes of spans."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.root.harness import Exchange, Tracer, get, run
from tests.root.load import load
from tests.root.nginx import Nginx
from tests.root.otlp import HttpBackend
from tracer.export_config import Limits

SERVER, CLIENT = "http.server.request.duration", "http.client.request.duration"
GRAPH = "traces_service_graph_request_total"


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    nginx = Nginx(tmp_path / "nginx")
    yield nginx
    nginx.stop()


@pytest.fixture
def backend() -> Iterator[HttpBackend]:
    backend = HttpBackend()
    yield backend
    backend.close()


def attributes(of: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in of}


def points(backend: HttpBackend, name: str) -> list[tuple[dict[str, Any], Any]]:
    """Each point of a metric in the last export, with its attributes and its resource's."""
    found = []
    for resource in backend.last.resource_metrics:
        for metric in resource.scope_metrics[0].metrics:
            if metric.name == name:
                data = getattr(metric, metric.WhichOneof("data")).data_points
                known = attributes(resource.resource.attributes)
                found += [({**known, **attributes(point.attributes)}, point) for point in data]
    return found


def by_status(backend: HttpBackend, name: str, service: str, route: str) -> Counter[int]:
    """How many exchanges a service had below a route, by status."""
    counts: Counter[int] = Counter()
    for known, point in points(backend, name):
        path = str(known.get("http.route", known.get("url.template", "")))
        if known["service.name"] == service and f"{path}/".startswith(f"{route}/"):
            assert point.count == point.zero_count + sum(point.positive.bucket_counts)
            counts[known["http.response.status_code"]] += point.count
    return counts


def statuses(done: list[Exchange]) -> Counter[int]:
    return Counter(each.status for each in done if each.status is not None)


def assert_counted(
    backend: HttpBackend, done: list[Exchange], route: str, client: str, elsewhere: int = 0
) -> None:
    """The last export has each exchange once on each side, and once as a pair's.

    elsewhere: exchanges that were not under the route, all of which went well.
    """
    assert by_status(backend, SERVER, "nginx", route) == statuses(done)
    assert by_status(backend, CLIENT, client, route) == statuses(done)
    pairs: Counter[bool] = Counter()
    for known, point in points(backend, GRAPH):
        if known["client"] == client and known["server"] == "nginx":
            pairs[known["failed"]] += point.as_int
    failed = sum(1 for each in done if each.status is not None and each.status >= 400)
    assert pairs == Counter({True: failed, False: len(done) - failed + elsewhere})


def test_counts_are_those_of_the_load(
    start_tracer: Callable[..., Tracer], nginx: Nginx, backend: HttpBackend
) -> None:
    tracer = start_tracer("--port", str(nginx.port), "--otlp-endpoint", backend.url())
    path = "/shop"
    done: list[Exchange] = []
    for part in ("", "/missing", "/broken"):
        done += load(nginx.port, f"{path}{part}", 300, 8)
    url = f"http://127.0.0.1:{nginx.port}{path}curl"
    run(["curl", "-sS", "-o", "/dev/null", url])
    tracer.settle(lambda mark: get(nginx.port, mark))
    assert tracer.losses() == {}
    spans = tracer.stop()
    assert len(spans) == 2 * (900 + 1 + 1)
    client = str(spans.under(path).of("CLIENT")[0].resource["service.name"])

    assert_counted(backend, done, path, client, elsewhere=1)
    assert by_status(backend, SERVER, "nginx", path + "curl") == Counter({200: 1})
    assert by_status(backend, CLIENT, "curl", path + "curl") == Counter({200: 1})
    pairs = {(known["client"], known["server"]) for known, _ in points(backend, GRAPH)}
    assert pairs == {(client, "nginx"), ("curl", "nginx")}
    # Every duration is some span's, and so is every exemplar.
    ids = {(span.raw["trace_id"], span.raw["span_id"]): span for span in spans}
    for name in (SERVER, CLIENT):
        for known, point in points(backend, name):
            assert "process.pid" in known
            (exemplar,) = point.exemplars
            span = ids[exemplar.trace_id.hex(), exemplar.span_id.hex()]
            assert exemplar.as_double == pytest.approx((span.end - span.start) / 1e9)
            assert span.status == known["http.response.status_code"]
    total = sum(point.sum for _, point in points(backend, SERVER))
    served = sum(span.end - span.start for span in spans.of("SERVER"))
    assert total == pytest.approx(served / 1e9)


@pytest.mark.parametrize("sampler", ["always_off", "traceidratio=0.25"])
def test_nothing_is_missing_where_spans_are_sampled(
    start_tracer: Callable[..., Tracer], nginx: Nginx, backend: HttpBackend, sampler: str
) -> None:
    """Exemplars are of traces that went on, and only of those."""
    requests = 1_000
    tracer = start_tracer(
        "--port", str(nginx.port), "--sample", sampler, "--otlp-endpoint", backend.url()
    )
    done = load(nginx.port, "/shop", requests, 8)
    tracer.process.wait_for(
        lambda: counted(tracer, "red_exchanges") + lost(tracer) >= 2 * requests, "all are measured"
    )
    tracer.stop()
    (client,) = {str(known["service.name"]) for known, _ in points(backend, CLIENT)}
    assert_counted(backend, done, "/shop", client)
    exported = set(backend.ids())
    assert len(exported) == 0 if sampler == "always_off" else 200 < len(exported) < 1_000
    exemplars = {
        exemplar.span_id.hex()
        for name in (SERVER, CLIENT)
        for _, point in points(backend, name)
        for exemplar in point.exemplars
    }
    assert exemplars <= exported
    assert bool(exemplars) == bool(exported)


def test_nothing_is_missing_where_spans_find_no_room(
    start_tracer: Callable[..., Tracer], nginx: Nginx, backend: HttpBackend
) -> None:
    """A backend for spans that never answers: its queue is soon full."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracer = start_tracer(
            "--port", str(nginx.port), "--output", "none",
            env={
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{backend.url()}/v1/metrics",
                "OTEL_METRIC_EXPORT_INTERVAL": "500",
            },
        )  # fmt: skip
        path = "/shop"
        requests = Limits().queue_spans // 2 + 2_000
        done = load(nginx.port, path, requests, 16)
        # A side that was lost before it could be measured ends the wait, too, and the test then.
        tracer.process.wait_for(
            lambda: counted(tracer, "red_exchanges") + lost(tracer) >= 2 * requests,
            "all are measured",
            30.0,
        )
        losses = tracer.losses()
        assert set(losses) == {"export_queue_full"}, losses
        assert losses["export_queue_full"] >= 4_000
        tracer.stop()
    (client,) = {str(known["service.name"]) for known, _ in points(backend, CLIENT)}
    assert_counted(backend, done, path, client)


def counted(tracer: Tracer, name: str) -> int:
    return next(count.value for count in tracer.status().counts if count.name == name)


def lost(tracer: Tracer) -> int:
    """Spans that were lost before they could be measured, or exchanges before they were spans."""
    later = ("export_", "sampled_")
    return sum(count for name, count in tracer.losses().items() if not name.startswith(later))


def test_red_metrics_can_be_turned_off(
    start_tracer: Callable[..., Tracer], nginx: Nginx, backend: HttpBackend
) -> None:
    tracer = start_tracer(
        "--port", str(nginx.port), "--red-metrics", "off", "--otlp-endpoint", backend.url()
    )
    load(nginx.port, "/shop", 10, 1)
    tracer.settle(lambda mark: get(nginx.port, mark))
    assert len(tracer.stop()) == 22
    assert backend.metrics
    names = {
        metric.name
        for resource in backend.last.resource_metrics
        for metric in resource.scope_metrics[0].metrics
    }
    assert "wirespan.spans" in names
    assert not {name for name in names if "request" in name}
