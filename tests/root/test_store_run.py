"""`wirespan run` without a backend: spans are stored here and can be asked for as traces."""

from __future__ import annotations

import http.client
import http.server
import itertools
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.root.harness import (
    ROOT,
    Tracer,
    free_port,
    get,
    run,
    unique,
    wait_until,
    wirespan_command,
)

Start = Callable[..., Tracer]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers; one that has an upstream asks it first, on a connection of its own."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        upstream = getattr(self.server, "upstream", 0)
        status = get(upstream, self.path) if upstream else 200
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def front() -> Iterator[int]:
    """The port of a service that asks another one, both threads of this process."""
    servers = []
    try:
        for _ in range(2):
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            if servers:
                server.upstream = servers[0].server_port  # type: ignore[attr-defined]
            servers.append(server)
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield servers[1].server_port
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def ask(address: str, target: str) -> Any:
    """What the query API answers."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        assert response.status == 200
        return json.load(response)["data"]
    finally:
        connection.close()


def wirespan(*arguments: str) -> str:
    return run([*wirespan_command(), *arguments], cwd=ROOT)


def test_a_linked_trace_from_the_kernel_to_the_terminal(
    start_tracer: Start, front: int, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    store = ("--store", str(tmp_path / "store"), "--query-address", address)
    tracer = start_tracer(*store)
    at = ("--query-address", address)
    path = unique()
    # curl is a process of its own: the first of three.
    run(["curl", "-sS", "-o", "/dev/null", f"http://127.0.0.1:{front}{path}"])

    def stored() -> Any:
        found = json.loads(wirespan("traces", f"path={path}", "--json", *at))
        return found if found and found[0]["spans"] == 4 else None

    (found,) = tracer.process.wait_for(stored, "one trace of four spans")
    assert found["name"].startswith("GET") and found["errors"] == 0
    listed = wirespan("traces", f"path={path}", *at)
    assert listed.count(found["traceID"]) == 1
    assert f"wirespan traces --query-address {address}" in tracer.stderr()

    (trace,) = ask(address, f"/api/traces/{found['traceID']}")
    by_search = ask(address, "/api/traces?service=curl&limit=1000")
    assert found["traceID"] in {each["traceID"] for each in by_search}
    spans = {span["spanID"]: span for span in trace["spans"]}
    chain = [span for span in spans.values() if not span["references"]]
    assert len(chain) == 1, "one root"
    while below := [s for s in spans.values() if parents(s) == [chain[-1]["spanID"]]]:
        assert len(below) == 1
        chain += below
    assert [tag(span, "span.kind") for span in chain] == ["client", "server"] * 2
    assert [tag(span, "wirespan.link.evidence") for span in chain] == [
        None, "stream", "thread", "stream",
    ]  # fmt: skip
    for above, below in itertools.pairwise(chain):
        assert above["startTime"] <= below["startTime"]

    drawn = wirespan("trace", found["traceID"], *at).splitlines()
    assert sum("GET" in line for line in drawn) >= 4
    told = wirespan("explain", found["traceID"], *at)
    assert "thread" in told and "stream" in told

    status = wirespan("status", "--control-socket", str(tracer.control))
    assert f"stores spans in {tmp_path / 'store'}, queries on http://{address}" in status
    reply = tracer.status().store
    counts = {count.name: count.value for count in reply.counts}
    assert counts["store_spans"] >= 4 and counts["store_bytes"] > 0
    assert (reply.directory, reply.query_address) == (str(tmp_path / "store"), address)
    assert not [name for name in tracer.losses() if name.startswith("store_")]

    # What was stored is there for the next run, and the API's own traffic was not traced.
    tracer.stop()
    again = start_tracer(*store)
    assert json.loads(wirespan("traces", f"path={path}", "--json", *at)) == [found]
    assert ask(address, "/wirespan/traces?q=path~/wirespan/traces") == []
    assert again.status().store.query_address == address


def parents(span: Any) -> list[str]:
    return [reference["spanID"] for reference in span["references"]]


def tag(span: Any, key: str) -> Any:
    return next((each["value"] for each in span["tags"] if each["key"] == key), None)


def test_a_killed_tracer_leaves_its_store_readable(
    start_tracer: Start, front: int, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    store = ("--store", str(tmp_path / "store"), "--query-address", address)
    first = start_tracer(*store)
    path = unique()
    get(front, path)

    def stored() -> Any:
        return ask(address, f"/wirespan/traces?q=path={path}")

    before = first.process.wait_for(lambda: (found := stored()) and found[0]["spans"] == 4, "spans")
    assert before
    first.stop(signal.SIGKILL)
    start_tracer(*store)
    assert [found["spans"] for found in stored()] == [4]


def refused(tmp_path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*wirespan_command(), "run", "--output", "none", "--duration", "1",
         "--control-socket", str(tmp_path / "control"), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[1].startswith("hint: "), done.stderr
    return lines[0]


def test_a_store_that_was_asked_for_and_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = str(tmp_path / "file" / "store")
    assert store in refused(tmp_path, "--store", store, "--query-address", "127.0.0.1:0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = refused(tmp_path, "--store", str(tmp_path / "store"), "--query-address", address)
        assert address in told
    assert "OTLP endpoint" in refused(tmp_path, "--stitch", "collector")


def test_a_store_that_nobody_asked_for_and_cannot_be_had(front: int, tmp_path: Path) -> None:
    """Tracing goes on, and status tells why there is no store."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        control, ready, output = (tmp_path / name for name in ("control", "ready", "spans"))
        with output.open("wb") as out:
            tracer = subprocess.Popen(
                [*wirespan_command(), "run", "--output", "json", "--ready-file", str(ready),
                 "--control-socket", str(control)],
                cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True,
                env={"PATH": "/usr/bin:/bin", "WIRESPAN_QUERY_ADDRESS": address},
            )  # fmt: skip
        try:
            wait_until(ready.exists, "ready", 60.0)
            path = unique()
            get(front, path)
            wait_until(lambda: output.read_text().count(path) >= 4, "spans")
            status = wirespan("status", "--control-socket", str(control))
            assert f"stores nothing: cannot listen on {address}" in status
        finally:
            tracer.send_signal(signal.SIGTERM)
            _, told = tracer.communicate(timeout=20)
    assert tracer.returncode == 0
    assert told.count(f"cannot listen on {address}") == 1
    assert "--store none" in told
