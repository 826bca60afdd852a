"""The tracer and its exporter stay out of what they trace."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.root.harness import (
    Exchange,
    Spans,
    Tracer,
    assert_exact,
    free_port,
    run,
    unique,
    wait_until,
)
from tests.root.load import load
from tests.root.nginx import HELLO, Nginx
from tests.root.otlp import Backend, GrpcBackend, HttpBackend, PlainGrpcBackend

BACKENDS: dict[str, Callable[[], Backend]] = {"http/protobuf": HttpBackend, "grpc": GrpcBackend}


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    nginx = Nginx(tmp_path / "nginx")
    yield nginx
    nginx.stop()


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("protocol", BACKENDS)
def test_exporter_on_the_same_host_is_not_traced(
    start_tracer: Callable[..., Tracer], nginx: Nginx, protocol: str, compression: str
) -> None:
    """Neither its own side nor the backend's: else each export would cause another."""
    backend = BACKENDS[protocol]()
    try:
        tracer = start_tracer(
            env={
                "OTEL_EXPORTER_OTLP_ENDPOINT": backend.url(),
                "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                "OTEL_EXPORTER_OTLP_COMPRESSION": compression,
                "OTEL_METRIC_EXPORT_INTERVAL": "500",
            }
        )
        path = unique()
        expected = load(nginx.port, path, 1000, 8)
        spans = tracer.collect(lambda spans: spans.under(path), 2000)
        assert_exact(spans, expected)
        # Several metric exports and an idle time: nothing may come of them.
        metrics = backend.metrics
        wait_until(lambda: backend.metrics >= metrics + 3, "three exports of metrics")
        tracer.settle()
        wait_until(lambda: len(backend.ids()) >= len(tracer.spans()), "every span exported")
        assert tracer.losses() == {}
        everything = tracer.stop()
        assert sorted(backend.ids()) == sorted(span.raw["span_id"] for span in everything)
        assert everything.at(backend.port) == Spans(), "the exporter's own exchanges"
        assert not everything.process(tracer.process.pid)
        if protocol == "http/protobuf":
            assert compression.replace("none", "identity") in backend.encodings
    finally:
        backend.close()


@pytest.mark.parametrize("backend", [PlainGrpcBackend, partial(HttpBackend, 0, socket.AF_INET6)])
def test_an_exporter_is_known_from_a_socket_of_the_other_family(
    start_tracer: Callable[..., Tracer], nginx: Nginx, backend: Callable[[], Backend]
) -> None:
    """127.0.0.1 at one end of the connection, ::ffff:127.0.0.1 at the other."""
    serving = backend()
    try:
        protocol = "grpc" if isinstance(serving, PlainGrpcBackend) else "http/protobuf"
        tracer = start_tracer("--otlp-endpoint", serving.url(), "--otlp-protocol", protocol)
        for _ in range(3):  # an export each
            path, requests = unique(), serving.requests
            expected = load(nginx.port, path, 20, 2)
            assert_exact(tracer.collect(lambda spans, p=path: spans.under(p), 40), expected)  # type: ignore[misc]
            wait_until(lambda n=requests: serving.requests > n, "an export")  # type: ignore[misc]
        tracer.settle()
        wait_until(lambda: len(serving.ids()) >= len(tracer.spans()), "every span exported")
        assert tracer.stop().at(serving.port) == Spans(), "the exporter's own exchanges"
    finally:
        serving.close()


def test_backend_that_comes_late(start_tracer: Callable[..., Tracer], nginx: Nginx) -> None:
    """No backend at first: spans are kept and tried again, and tracing goes on meanwhile."""
    port, path = free_port(), unique()
    tracer = start_tracer(
        "--otlp-endpoint", f"http://127.0.0.1:{port}", "--otlp-protocol", "http/protobuf"
    )
    expected = load(nginx.port, path, 200, 4)
    assert_exact(tracer.collect(lambda spans: spans.under(path), 400), expected)
    backend = HttpBackend(port)
    try:
        wanted = {span.raw["span_id"] for span in tracer.spans().under(path)}
        wait_until(lambda: wanted <= set(backend.ids()), "all spans after the backend came", 40.0)
        everything = tracer.stop()
        assert len(backend.ids()) == len(set(backend.ids())), "none is sent twice"
        assert everything.at(port) == Spans(), "attempts to export are not traced either"
    finally:
        backend.close()


def test_metrics_of_the_tracer_itself_are_not_spans_of_others(
    start_tracer: Callable[..., Tracer], nginx: Nginx
) -> None:
    """Something else that posts to the same backend is traced as ever."""
    backend = HttpBackend()
    try:
        tracer = start_tracer("--otlp-endpoint", backend.url(), "--otlp-protocol", "http/protobuf")
        path = unique()
        url = f"{backend.url()}{path}"
        run(["curl", "-sS", "-o", "/dev/null", "--data", "x=1", url])
        spans = tracer.collect(lambda spans: spans.under(path), 2)
        assert_exact(spans, [Exchange(path, 200, "POST", 3, 0)])
    finally:
        backend.close()


def test_control_socket_is_not_traced(start_tracer: Callable[..., Tracer], nginx: Nginx) -> None:
    """gRPC over the Unix socket is HTTP/2, whose preface looks like a request."""
    tracer = start_tracer()
    for _ in range(5):
        tracer.status()
    path = unique()
    expected = load(nginx.port, path, 10, 1)
    spans = tracer.collect(lambda spans: spans.under(path), 20)
    assert_exact(spans, expected)
    assert {e.response_body for e in expected} == {HELLO}
    unix = [s for s in tracer.stop() if s.attributes["network.transport"] == "unix"]
    assert not [s for s in unix if s.method == "PRI"], unix
    assert not [s for s in unix if str(tracer.control) in str(s)], unix
