"""The opt-in preload of Node.js: calls belong to whom Node itself says, in every release."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.root.harness import (
    CLIENT,
    DEADLINE,
    ROOT,
    SERVER,
    WORKLOADS,
    Process,
    Tracer,
    run,
    running,
    unique,
)

PRELOAD = ROOT / "deploy" / "node" / "wirespan.cjs"
REQUESTS, WAYS = 40, ("few", "fetch", "http2", "late")
EVIDENCE = "wirespan.link.evidence"


@pytest.fixture
def node() -> Path:
    """The Node.js of this host, or the one that $NODE names."""
    found = os.environ.get("NODE") or shutil.which("node")
    if found is None:
        pytest.skip("no Node.js here")
    return Path(found)


def test_calls_belong_to_whom_node_says(
    start_tracer: Callable[..., Tracer], node: Path, tmp_path: Path
) -> None:
    """Timers, few sockets, bodies that come later, HTTP/2, calls that outlive the response."""
    prefix, log = unique(), tmp_path / "node"
    argv: list[str | Path] = [node, WORKLOADS / "node_preload.js", prefix, str(REQUESTS)]
    told = {"NODE_OPTIONS": f"--require {PRELOAD}"}
    process = Process(argv, log, env=told, stdin=subprocess.PIPE)
    with running(process):
        process.wait_for(lambda: "ready" in process.said(), "it is ready")
        tracer = start_tracer()
        assert process.popen.stdin
        process.popen.stdin.write(b"go\n")
        process.popen.stdin.close()
        assert process.popen.wait(DEADLINE) == 0, process.said()
    nobody = int(process.said().split()[-1])
    expected = 2 * (REQUESTS * (1 + len(WAYS)) + nobody)
    spans = tracer.collect(lambda spans: spans.under(prefix), expected)
    served = {s.path: s.raw["span_id"] for s in spans.under(f"{prefix}/r").of(SERVER)}
    assert len(served) == REQUESTS
    calls = spans.under(f"{prefix}/u").of(CLIENT)
    assert len(calls) == REQUESTS * len(WAYS)
    for call in calls:
        _, _, number, _ = call.path.removeprefix(prefix).split("/")
        assert call.raw["parent_span_id"] == served[f"{prefix}/r/{number}"], call
        assert call.attributes[EVIDENCE] == "async", call
    alone = [*spans.under(f"{prefix}/n").of(CLIENT), *spans.under(f"{prefix}/r").of(CLIENT)]
    assert len(alone) == nobody + REQUESTS
    assert not [span for span in alone if span.raw["parent_span_id"]]


def test_an_application_sees_nothing_of_it(node: Path) -> None:
    """Methods look as before, what they throw is thrown, and no tracer is needed."""
    script = """
        const http = require('http')
        const seen = [http.Agent.prototype.addRequest, http.ClientRequest.prototype.onSocket]
        const shape = seen.map((f) => f.name + f.length)
        const server = http.createServer((request) => { throw new Error('its own') })
        process.on('uncaughtException', (error) => {
          console.log(JSON.stringify([shape, Object.keys(new http.Server()), error.message]))
          process.exit()
        })
        server.listen(0, () => http.get({ port: server.address().port }).on('error', () => {}))
    """
    plain = run([node, "-e", script])
    assert "its own" in plain
    assert run([node, "--require", PRELOAD, "-e", script]) == plain
