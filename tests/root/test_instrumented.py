"""Applications that export spans of their own: theirs and wirespan's are one trace.

    client (SDK) -> front (SDK; its own call is not instrumented) -> plain

The SDK's spans and wirespan's go to one collector, and from there to a backend.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.root.harness import (
    ROOT,
    WORKLOADS,
    Process,
    Tracer,
    free_port,
    listening,
    running,
    unique,
    wait_until,
    wirespan_command,
)
from tests.root.otlp import GrpcBackend

REQUESTS = 24
WHOLE_S = 30.0  # within which all spans are at the backend

# Span: the one above it. (Who made it, kind, whose side.)
BOTH = {
    "sdk internal": "",
    "sdk client": "sdk internal",
    "sdk server": "sdk client",
    "wirespan client to front": "sdk client",
    "wirespan server front": "wirespan client to front",
    "wirespan client to plain": "wirespan server front",
    "wirespan server plain": "wirespan client to plain",
}
SDK = {
    "sdk internal": "",
    "sdk client": "sdk internal",
    "sdk server": "sdk client",
    "wirespan client to plain": "sdk server",
    "wirespan server plain": "wirespan client to plain",
}


class Seen(NamedTuple):
    """A span as the backend got it."""

    path: str
    name: str  # as in the trees above
    trace: bytes
    id: bytes
    parent: bytes


class Trees(GrpcBackend):
    """Keeps what came in full. services: by port."""

    def __init__(self, services: dict[int, str]) -> None:
        super().__init__()
        self.services = services
        self.seen: list[Seen] = []

    def take(self, request: Any) -> None:
        super().take(request)
        with self.lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    by = "wirespan" if scope.scope.name == "wirespan" else "sdk"
                    self.seen += [self._seen(by, span) for span in scope.spans]

    def _seen(self, by: str, span: Any) -> Seen:
        values = {one.key: one.value for one in span.attributes}
        path = values["url.path" if "url.path" in values else "url.full"].string_value
        name = f"{by} {span.SpanKind.Name(span.kind).removeprefix('SPAN_KIND_').lower()}"
        if by == "wirespan":
            name += " to " if name.endswith("client") else " "
            name += self.services[values["server.port"].int_value]
        return Seen(urlsplit(path).path, name, span.trace_id, span.span_id, span.parent_span_id)

    def under(self, prefix: str) -> list[Seen]:
        with self.lock:
            return [span for span in self.seen if span.path.startswith(prefix + "/")]


@contextmanager
def collector(directory: Path, backend: GrpcBackend, *flags: str) -> Iterator[str]:
    """Run `wirespan collect`; gives its endpoint."""
    port, ready = free_port(), directory / "collector.ready"
    argv: list[str | Path] = [
        *wirespan_command(), "collect", "--listen-grpc", f"127.0.0.1:{port}",
        "--listen-http", "none", "--hold", "1", "--ready-file", ready,
        "--otlp-endpoint", backend.url(), "--otlp-protocol", "grpc", *flags,
    ]  # fmt: skip
    process = Process(argv, directory / "collector", without="OTEL_", cwd=ROOT)
    with running(process):
        process.wait_for(ready.exists, "the collector is ready", 60.0)
        yield f"http://127.0.0.1:{port}"


def start(directory: Path, endpoint: str, role: str, *words: str) -> Process:
    return Process(
        [sys.executable, WORKLOADS / "instrumented.py", role, *words],
        directory / role,
        env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": role},
        without="OTEL_",
    )


@pytest.mark.parametrize(("prefer", "tree"), [("both", BOTH), ("sdk", SDK)])
def test_one_trace(
    start_tracer: Callable[..., Tracer], tmp_path: Path, prefer: str, tree: dict[str, str]
) -> None:
    front, plain = free_port(), free_port()
    backend = Trees({front: "front", plain: "plain"})
    prefix = unique()
    with collector(tmp_path, backend, "--prefer", prefer) as endpoint:
        start_tracer(
            "--port", str(front), "--port", str(plain), "--stitch", "collector",
            "--otlp-endpoint", endpoint, "--otlp-protocol", "grpc",
        )  # fmt: skip
        services = (
            start(tmp_path, endpoint, "plain", str(plain)),
            start(tmp_path, endpoint, "front", str(front), f"http://127.0.0.1:{plain}"),
        )
        with running(*services):
            services[0].wait_for(lambda: listening(plain), "it listens")
            services[1].wait_for(lambda: listening(front), "it listens")
            url = f"http://127.0.0.1:{front}{prefix}"
            client = start(tmp_path, endpoint, "client", url, str(REQUESTS))
            with running(client):
                wait_until(lambda: not client.alive(), "all requests are answered", WHOLE_S)
                assert client.popen.returncode == 0, client.said()
            count = REQUESTS * len(tree)
            wait_until(lambda: len(backend.under(prefix)) >= count, "all spans came", WHOLE_S)
    backend.close()
    paths = defaultdict(list)
    for span in backend.under(prefix):
        paths[span.path].append(span)
    assert len(paths) == REQUESTS
    for spans in paths.values():
        names = {span.id: span.name for span in spans}
        assert {span.name: names.get(span.parent, "") for span in spans} == tree
        assert len(spans) == len(tree) and len({span.trace for span in spans}) == 1
        (root,) = [span for span in spans if span.name == "sdk internal"]
        assert root.parent == b""
