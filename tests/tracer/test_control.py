"""The control service over a real Unix socket, and both commands that talk to it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import socket
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from proto.wirespan.v1 import control_pb2, control_pb2_grpc
from tracer import agent, client, control_server, export
from tracer.control import TAIL_CHUNK, Control, ControlServer
from tracer.errors import UsageError, WirespanError
from tracer.losses import KERNEL, USER
from tracer.sinks import TAIL_SUBSCRIBERS, TailHub
from tracer.spans import KIND_CLIENT, KIND_SERVER, Resource, Shape, SpanBatch
from tracer.status import MEANINGS

DEADLINE = 15.0
SHAPES = [
    Shape(Resource((("service.name", name),)), "GET", kind, 0, "", (), (), ())
    for name, kind in (("web", KIND_SERVER), ("curl", KIND_CLIENT))
]


def batch(*shapes: int) -> SpanBatch:
    count = len(shapes)
    return SpanBatch(
        np.zeros((count, 16), np.uint8),
        np.zeros((count, 8), np.uint8),
        np.zeros((count, 8), np.uint8),
        np.arange(count, dtype=np.uint64),
        np.arange(count, dtype=np.uint64) + np.uint64(1_000_000),
        np.array(shapes, np.int32),
        SHAPES,
        {},
        {},
    )


def text(spans: SpanBatch) -> list[str]:
    return [f"{start} {shape}" for start, shape in zip(spans.start_ns, spans.shape, strict=True)]


def as_json(spans: SpanBatch) -> list[str]:
    return [json.dumps({"shape": shape}) for shape in spans.shape.tolist()]


def reply() -> control_pb2.StatusReply:
    return control_pb2.StatusReply(
        version="1.2.3",
        pid=42,
        uptime_seconds=3_700,
        programs=[
            control_pb2.Program(
                name="enter_write", kind="tracepoint", attached=True, run_count=10, run_ns=2_000,
                hook="tracepoint/syscalls/sys_enter_write",
            ),
            control_pb2.Program(name="parse", kind="tracepoint", hook="tracepoint"),
        ],
        maps=[control_pb2.Map(name="conns", type="hash", max_entries=99, bytes=2_048)],
        counts=[control_pb2.Counter(name="exchanges", value=12_345)],
        losses=[
            control_pb2.Loss(name="ring_full", value=7, meaning="no room"),
            control_pb2.Loss(name="gap", value=0, meaning="unseen"),
        ],
        rates=[control_pb2.Rate(name="exchanges", per_second=99.5, window_seconds=10)],
        ring=control_pb2.Ring(bytes=1 << 24, fill=0.125, buffer_bytes=1 << 26),
        export=control_pb2.Export(
            endpoint="localhost:4317",
            protocol="grpc",
            counts=[control_pb2.Counter(name="exported_spans", value=3)],
            last_error="UNAVAILABLE: refused",
        ),
        filters=["--port=80"],
        process=control_pb2.Process(cpu_seconds=1.5, cpu_fraction=0.02, rss_bytes=50 << 20),
        store=control_pb2.Store(
            directory="/srv/traces",
            query_address="127.0.0.1:16686",
            counts=[
                control_pb2.Counter(name="store_spans", value=4_321),
                control_pb2.Counter(name="store_bytes", value=3 << 20),
            ],
        ),
    )  # fmt: skip


@contextlib.contextmanager
def serving(path: Path) -> Iterator[TailHub]:
    hub = TailHub()
    renders = {control_pb2.FORMAT_TEXT: text, control_pb2.FORMAT_JSON: as_json}
    server = ControlServer(str(path), Control(reply, hub, renders))
    server.start()
    try:
        yield hub
    finally:
        hub.close()
        server.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def wait_for(hub: TailHub, count: int) -> None:
    end = time.monotonic() + DEADLINE
    while len(hub) != count:
        assert time.monotonic() < end, f"{len(hub)} subscribers, not {count}"
        time.sleep(0.005)


def test_only_its_user_may_open_the_socket(path: Path) -> None:
    with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_status_in_tables(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(path):
        assert client.status(str(path), False) == 0
    out = capsys.readouterr().out
    for pattern in (
        r"^wirespan 1\.2\.3, pid 42, up 1 h 1 min$",
        r"^uses 50\.0 MiB of memory, 2\.0% of a core now, 1\.5 s of CPU so far$",
        r"^traces --port=80$",
        r"^exports to localhost:4317 by grpc$",
        r"^  last error: UNAVAILABLE: refused$",
        r"^programs \(1 attached\)$",
        r"^  enter_write +tracepoint/syscalls/sys_enter_write +attached +10 runs +200 ns each$",
        r"^  parse +tracepoint +called by others",
        r"^  conns  hash  99 entries  2\.0 KiB$",
        r"^ring 16\.0 MiB, 12\.5% full; buffer 64\.0 MiB, 0\.0% full$",
        r"^counts \(rate over the last 10 s\)$",
        r"^  exchanges  12345  99\.5/s$",
        r"^  ring_full  7  no room$",
    ):
        assert re.search(pattern, out, re.MULTILINE), (pattern, out)
    assert re.search(r"^  \w+ +0 +unseen$", out, re.MULTILINE), out  # every counter is listed


def test_status_of_a_tracer_without_anything_to_tell() -> None:
    lines = list(client.status_lines(control_pb2.StatusReply()))
    assert "traces this whole host" in lines
    assert "exports nothing: no OTLP endpoint is set" in lines
    assert "stores nothing" in lines
    assert "keeps every trace" in lines
    sampled = control_pb2.StatusReply(sampling="rate=5 (now one in 8)")
    assert "keeps rate=5 (now one in 8)" in client.status_lines(sampled)
    assert lines[-1] == "losses: none"


def test_status_tells_where_spans_are_stored_or_why_not() -> None:
    lines = list(client.status_lines(reply()))
    at = lines.index("stores spans in /srv/traces, queries on http://127.0.0.1:16686")
    assert [line.split() for line in lines[at + 1 : at + 3]] == [
        ["store_spans", "4321"],
        ["store_bytes", "3.0", "MiB"],
    ]
    failed = control_pb2.StatusReply(store=control_pb2.Store(failure="the disk is away"))
    assert "stores nothing: the disk is away" in list(client.status_lines(failed))


def test_status_as_json_has_every_field(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(path):
        client.status(str(path), True)
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {field.name for field in control_pb2.StatusReply.DESCRIPTOR.fields}
    assert found["losses"][1] == {"name": "gap", "value": "0", "meaning": "unseen"}


def test_tail_shows_what_matches_until_the_tracer_ends(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(path) as hub, ThreadPoolExecutor() as pool:
        tail = pool.submit(client.tail, str(path), "kind=server", "text")
        wait_for(hub, 1)
        hub.submit(batch(0, 1, 0))
        hub.submit(batch(1))
        hub.submit(batch(*[0] * (2 * TAIL_CHUNK + 1)))
        hub.close()
        assert tail.result(DEADLINE) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[:2] == ["0 0", "2 0"]
    assert len(lines) == 2 + 2 * TAIL_CHUNK + 1
    assert captured.err == "wirespan: the tracer has ended\n"


def test_tail_as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(path) as hub, ThreadPoolExecutor() as pool:
        tail = pool.submit(client.tail, str(path), "", "json")
        wait_for(hub, 1)
        hub.submit(batch(0, 1))
        hub.close()
        tail.result(DEADLINE)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"shape": 0},
        {"shape": 1},
    ]


def test_a_caller_that_goes_leaves_nothing_behind(path: Path) -> None:
    with serving(path) as hub, grpc.insecure_channel(f"unix:{path}") as channel:
        stream = control_pb2_grpc.ControlStub(channel).Tail(control_pb2.TailRequest())
        assert not next(stream).lines  # the stream has begun
        assert len(hub) == 1
        stream.cancel()
        wait_for(hub, 0)


def test_tails_beyond_the_limit_are_refused_and_status_still_answers(path: Path) -> None:
    with serving(path), grpc.insecure_channel(f"unix:{path}") as channel:
        stub = control_pb2_grpc.ControlStub(channel)
        streams = [stub.Tail(control_pb2.TailRequest()) for _ in range(TAIL_SUBSCRIBERS)]
        for stream in streams:
            next(stream)
        with pytest.raises(grpc.RpcError) as refusal:
            next(stub.Tail(control_pb2.TailRequest()))
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.Status(control_pb2.StatusRequest(), timeout=DEADLINE).pid == 42
        for stream in streams:
            stream.cancel()


def test_callers_that_ask_nothing_keep_nobody_out(path: Path) -> None:
    with serving(path), contextlib.ExitStack() as stack:
        idle = [socket.socket(socket.AF_UNIX) for _ in range(control_server.MAX_CONNECTIONS)]
        for each in map(stack.enter_context, idle):
            each.settimeout(DEADLINE)
            each.connect(str(path))
            assert each.recv(1)  # it is taken in
        with grpc.insecure_channel(f"unix:{path}") as channel:
            stub = control_pb2_grpc.ControlStub(channel)
            assert stub.Status(control_pb2.StatusRequest(), timeout=DEADLINE).pid == 42
        while idle[0].recv(1 << 12):
            pass  # the oldest one was hung up on, and no other


def test_a_tracer_without_a_descriptor_to_spare_answers_later(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(path), socket.socket(socket.AF_UNIX) as caller:
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            # He may get what accept(2) had put aside; then the next one fails.
            caller.connect(str(path))
            time.sleep(0.3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        caller.settimeout(DEADLINE)
        assert caller.recv(1), "he waited in line, if at all"
        assert client.status(str(path), False) == 0


def test_a_method_that_fails_tells_the_caller(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def status(*_: object) -> Iterator[bytes]:
        raise OSError(errno.EMFILE, "no more files")
        yield b""

    monkeypatch.setattr(Control, "status", status)
    with serving(path), pytest.raises(WirespanError, match="no more files"):
        client.status(str(path), False)


def test_a_bad_filter_is_refused_by_the_service_too(path: Path) -> None:
    with serving(path), grpc.insecure_channel(f"unix:{path}") as channel:
        with pytest.raises(grpc.RpcError) as refusal:
            next(control_pb2_grpc.ControlStub(channel).Tail(control_pb2.TailRequest(filter="x")))
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    explained = client._explain(refusal.value, str(path))
    assert isinstance(explained, UsageError)
    assert explained.hint


def test_a_socket_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    server = ControlServer(
        str(tmp_path / "missing" / "control.sock"), Control(reply, TailHub(), {})
    )
    with pytest.raises(WirespanError, match="cannot listen"):
        server.start()


def test_nobody_answers(path: Path) -> None:
    with pytest.raises(WirespanError, match="no tracer answers"):
        client.status(str(path), False)


def test_every_loss_has_a_meaning() -> None:
    assert all(MEANINGS[loss.name] for loss in (*KERNEL.values(), *USER.values()))


def test_every_way_the_exporter_drops_a_span_is_a_loss() -> None:
    assert agent.EXPORT_LOSSES.keys() == export.DROPS.keys()
    assert set(agent.EXPORT_LOSSES.values()) <= USER.keys()
