"""`wirespan collect` as a process: ready, status, restart, and an end that loses nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collector.address import Address
from collector.collector import Collector, Settings
from collector.intake import Intake, IntakeConfig
from collector.limits import Limits
from collector.options import CollectOptions
from tests.collector.otlp_messages import Keep
from tests.collector.test_collector import is_right, two_tracers
from tracer.errors import UsageError
from tracer.export_config import ExportConfig
from tracer.export_grpc import GrpcTransport
from tracer.export_reply import Verdict
from tracer.options import parse

ROOT = Path(__file__).parents[2]


@contextmanager
def backend() -> Iterator[tuple[Keep, int]]:
    """An OTLP receiver that gives out at once what comes."""
    keep = Keep()
    collector = Collector([keep], Settings(Limits(0.01, 0.01, 0.01)))
    intake = Intake(collector, IntakeConfig(grpc=Address("127.0.0.1", 0)))
    try:
        yield keep, intake.ports["grpc"]
    finally:
        intake.close()
        collector.close()


@contextmanager
def collecting(tmp_path: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        [sys.executable, "-m", "tracer.cli", "collect", "--listen-grpc", "127.0.0.1:0",
         "--listen-http", "none", "--ready-file", str(ready), *flags],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + 20
        while not ready.exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        yield process, int(ready.read_text().split()[1])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()


def send(port: int, bodies: list[bytes]) -> None:
    transport = GrpcTransport(ExportConfig("grpc", f"127.0.0.1:{port}"))
    for body in bodies:
        assert transport.send(body, 5).verdict is Verdict.ACCEPTED
    transport.close()


def test_ends_with_all_spans_sent_on_and_starts_again(tmp_path: Path) -> None:
    with backend() as (keep, port):
        endpoint = f"--otlp-endpoint=http://127.0.0.1:{port}"
        flags = (endpoint, "--otlp-protocol=grpc", "--hold=5")
        requests = two_tracers(50)
        for part, count in ((two_tracers(20), 20), (requests, 50)):
            keep.spans.clear()
            with collecting(tmp_path, *flags) as (process, own):
                send(own, part)
                process.send_signal(signal.SIGUSR1)
                assert process.stderr
                lines = [process.stderr.readline() for _ in range(2)]
                assert lines[0].startswith("wirespan: listening: grpc 127.0.0.1:")
                assert f"held {4 * count}" in lines[1]
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
                rest = process.stderr.read()
            assert f"sent {4 * count}" in rest
            assert "clock of two is 300.000 ms ahead of that of one" in rest
            assert not (tmp_path / "ready").exists()
            end = time.monotonic() + 5
            while len(keep.spans) < 4 * count and time.monotonic() < end:
                time.sleep(0.05)
            # The next run's spans are those of this one: the backend knows them by then.
            if count == 20:
                is_right(keep.spans, 20)
            else:
                assert len({s.span_id for s in keep.spans}) == len(keep.spans) == 120


def test_options() -> None:
    options = parse(["collect", "--listen-http", "[::1]:0", "--prefer", "sdk", "--max-hold", "4"])
    assert isinstance(options, CollectOptions)
    assert (options.grpc, options.http) == (Address("127.0.0.1", 4317), Address("::1", 0))
    assert (options.prefer, options.limits.max_hold_s, options.limits.parent_wait_s) == (
        "sdk",
        4,
        4,
    )


@pytest.mark.parametrize(
    "flags",
    ["--listen-grpc here", "--listen-grpc none --listen-http none", "--hold 0", "--hold 20",
     "--tls-key x", "--tls-client-ca x", "--max-spans 0", "--prefer none",
     "--listen-http 127.0.0.1:70000", "--listen-grpc 0.0.0.0:1",
     "--listen-http [::]:1 --tls-certificate x --tls-key x",
     "--listen-grpc 10.0.0.1:1 --token-file x", "--query-listen 0.0.0.0:1",
     "--query-listen 10.0.0.1:1 --open-intake"],
)  # fmt: skip
def test_bad_options(flags: str) -> None:
    with pytest.raises(UsageError):
        parse(["collect", *flags.split()])


@pytest.mark.parametrize(
    "flags",
    ["--open-intake", "--tls-certificate x --tls-key x --token-file x",
     "--tls-certificate x --tls-key x --tls-client-ca x"],
)  # fmt: skip
def test_beyond_this_machine(flags: str) -> None:
    options = parse(["collect", "--listen-grpc", "0.0.0.0:4317", *flags.split()])
    assert isinstance(options, CollectOptions)
    assert options.grpc == Address("0.0.0.0", 4317)


def test_nowhere_to_send(monkeypatch: pytest.MonkeyPatch) -> None:
    from tracer import cli

    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", raising=False)
    assert cli.main(["collect"]) == 2


@pytest.mark.parametrize("endpoint", ["http://localhost:4318", "http://127.0.0.1:4317"])
def test_sends_nothing_to_itself(endpoint: str) -> None:
    from tracer import cli

    assert cli.main(["collect", "--otlp-endpoint", endpoint]) == 2


def test_keeps_spans_in_a_store(tmp_path: Path) -> None:
    flags = (f"--store={tmp_path / 'store'}", "--query-listen=127.0.0.1:0", "--hold=0.1")
    with collecting(tmp_path, *flags) as (process, own):
        send(own, two_tracers(10))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr
        said = process.stderr.read()
    assert "published 40" in said
    assert "lost nothing" in said
    assert any((tmp_path / "store").iterdir())
