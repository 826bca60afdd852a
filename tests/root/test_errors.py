"""A user's mistakes and a kernel's lacks: an exit code, one line and a hint, no traceback."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.root.harness import ROOT, Barrier, Tracer, get, unique, wait_until, wirespan_command
from tests.root.unprivileged import ordinary

Start = Callable[..., Tracer]


def wirespan(
    *args: str,
    before: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    timeout: float = 30.0,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, `before` in front of it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    return subprocess.run(
        [*before, *wirespan_command(), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={**clean, **(env or {})},
        stdin=subprocess.DEVNULL,
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """It ended with `code`, said one line with all `words` and a hint, and printed no data."""
    told = f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr and done.stdout == "", told
    assert done.returncode == code, told
    lines = done.stderr.splitlines()
    assert len(lines) == 2, told
    assert lines[0].startswith("wirespan: ") and lines[1].startswith("hint: "), told
    assert len(lines[1]) > len("hint: ") + 3, told
    for word in words:
        assert re.search(word, done.stderr, re.IGNORECASE), f"no {word!r} in:\n{told}"
    assert not re.search(r"\berrno\b|\[Errno", done.stderr, re.IGNORECASE), told


def run_args(tmp_path: Path) -> list[str]:
    """Options that a run of a test needs; --duration ends one that should not have started."""
    return [
        "run", "--output", "json", "--duration", "3", "--store", "none",
        "--ready-file", str(tmp_path / "ready"),
        "--control-socket", str(tmp_path / "control"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--no-such-option"], ["no-such-option"]),
        (["--port", "http"], ["--port", "http"]),
        (["--port", "0"], ["--port", "65535"]),
        (["--port", "65536"], ["--port", "65536"]),
        (["--port"], ["--port"]),
        (["--exclude-port", "-1"], ["--exclude-port"]),
        (["--exe", "relative/path"], ["--exe", "relative/path"]),
        (["--exe", "/no/such/program"], ["/no/such/program"]),
        (["--pid", "zero"], ["--pid", "zero"]),
        (["--pid", "0"], ["--pid"]),
        (["--cgroup", "/no/such/group"], ["/no/such/group"]),
        (["--output", "xml"], ["--output", "xml", "json"]),
        (["--ring-size", "1000000"], ["--ring-size", "power of two"]),
        (["--ring-size", "3M"], ["--ring-size", "power of two"]),
        (["--ring-size", "big"], ["--ring-size", "big"]),
        (["--ring-size", "1K"], ["--ring-size"]),
        (["--ring-size", "0"], ["--ring-size"]),
        (["--max-connections", "0"], ["--max-connections"]),
        (["--duration", "soon"], ["--duration", "soon"]),
        (["--otlp-endpoint", "localhost"], ["--otlp-endpoint", "localhost"]),
        (["--otlp-endpoint", "ftp://localhost:21"], ["--otlp-endpoint", "ftp"]),
        (["--otlp-endpoint", "http://"], ["--otlp-endpoint"]),
        (["--otlp-endpoint", "http://localhost:99999"], ["--otlp-endpoint", "99999"]),
        (["--otlp-protocol", "carrier-pigeon"], ["--otlp-protocol", "grpc"]),
        (["--otlp-compression", "zstd"], ["--otlp-compression", "gzip"]),
        (["--otlp-header", "no-equals-sign"], ["--otlp-header"]),
        (["--otlp-timeout", "never"], ["--otlp-timeout", "never"]),
        (["extra-word"], ["extra-word"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_bad_options(tmp_path: Path, args: list[str], words: list[str]) -> None:
    refused(wirespan(*run_args(tmp_path), *args), 2, *words)
    assert not (tmp_path / "ready").exists()


@pytest.mark.parametrize("args", [[], ["dance"], ["status", "--what"], ["tail", "status=="]])
def test_bad_commands(args: list[str]) -> None:
    refused(wirespan(*args), 2)


ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({ENDPOINT: "ftp://localhost:21"}, [ENDPOINT, "ftp"]),
        ({ENDPOINT: "http://[::1"}, [ENDPOINT]),
        ({ENDPOINT: "http://localhost:port"}, [ENDPOINT]),
        (
            {ENDPOINT: "http://localhost:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"},
            ["OTEL_EXPORTER_OTLP_PROTOCOL", "smoke"],
        ),
        (
            {ENDPOINT: "http://localhost:4318", "OTEL_EXPORTER_OTLP_TIMEOUT": "ten"},
            ["OTEL_EXPORTER_OTLP_TIMEOUT", "ten"],
        ),
        (
            {ENDPOINT: "http://localhost:4318", "OTEL_EXPORTER_OTLP_COMPRESSION": "xz"},
            ["OTEL_EXPORTER_OTLP_COMPRESSION", "xz"],
        ),
        (
            {ENDPOINT: "https://localhost:1", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such.pem"},
            ["/no/such.pem"],
        ),
    ],
    ids=["scheme", "bracket", "port", "protocol", "timeout", "compression", "certificate"],
)
def test_bad_environment(tmp_path: Path, env: dict[str, str], words: list[str]) -> None:
    refused(wirespan(*run_args(tmp_path), env=env), 2, *words)


def test_not_root() -> None:
    """Another user, who holds no capability."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        done = wirespan(*run_args(Path(place)), before=ordinary([], []))
    refused(done, 1, "root|CAP_BPF")


@pytest.mark.parametrize(
    ("dropped", "named"),
    [("-all", "CAP_BPF|root"), ("-sys_admin,-bpf", "CAP_BPF"), ("-sys_admin,-perfmon", "PERFMON")],
)
def test_missing_capability(tmp_path: Path, dropped: str, named: str) -> None:
    """Root in name, without what root may do."""
    before = ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"]
    refused(wirespan(*run_args(tmp_path), before=before), 1, named)


HIDE_BTF = "mount -t tmpfs none /sys/kernel/btf"
HIDE_TRACEFS = (
    "mount -t tmpfs none /sys/kernel/tracing; "
    "if [ -d /sys/kernel/debug/tracing ]; then mount -t tmpfs none /sys/kernel/debug; fi"
)
HIDE_BPFFS = "mount -t tmpfs none /sys/fs/bpf"


def without(hide: str) -> list[str]:
    """Run in a mount namespace where something is hidden."""
    return [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        f'{hide}; exec "$@"',
        "-",
    ]


def test_without_btf(tmp_path: Path) -> None:
    done = wirespan(*run_args(tmp_path), before=without(HIDE_BTF))
    refused(done, 1, "BTF", "CONFIG_DEBUG_INFO_BTF")


def test_too_few_files(tmp_path: Path) -> None:
    done = wirespan(*run_args(tmp_path), before=["prlimit", "--nofile=90"])
    refused(done, 1, "90 files open", "ulimit -n")


def test_without_bpffs(tmp_path: Path) -> None:
    """Either it is not needed, or its lack is named; never a failure later on."""
    done = wirespan(*run_args(tmp_path), before=without(HIDE_BPFFS))
    if done.returncode:
        refused(done, 1, "bpffs|/sys/fs/bpf", "mount")
    else:
        assert done.stderr.count("Traceback") == 0


def test_doctor_and_run_count_programs_alike(start_tracer: Start) -> None:
    told = re.search(
        r"all (\d+) load \(\w+\): (\d+) that `wirespan run`", wirespan("doctor").stdout
    )
    assert told and int(told[1]) >= int(told[2])
    assert f"wirespan: {told[2]} programs attached" in start_tracer().stderr()


def test_tracefs_is_not_needed(tmp_path: Path) -> None:
    args = [*run_args(tmp_path), "--duration", "0.1"]
    done = wirespan(*args, before=without(HIDE_TRACEFS))
    assert done.returncode == 0 and "programs attached" in done.stderr, done.stderr
    assert wirespan("doctor", before=without(HIDE_TRACEFS)).returncode == 0


def test_doctor_names_what_is_missing() -> None:
    done = wirespan("doctor", before=without(HIDE_BTF))
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert "missing" in done.stdout and "remedy" in done.stdout, done.stdout
    assert wirespan("doctor").returncode == 0


def test_second_instance(start_tracer: Start) -> None:
    """The second is refused; the first goes on."""
    tracer = start_tracer()
    args = ["run", "--output", "none", "--store", "none", "--duration", "3"]
    done = wirespan(*args, "--control-socket", str(tracer.control))
    refused(done, 1, "another", str(tracer.process.pid))
    tracer.settle()
    assert tracer.process.alive()


def test_stale_control_socket(start_tracer: Start, tmp_path: Path) -> None:
    """A tracer that was killed leaves its socket; the next one takes its place."""
    first = start_tracer()
    first.process.stop(signal.SIGKILL)
    second = start_tracer("--control-socket", str(first.control))
    second.control = first.control
    assert second.status().pid == second.process.pid


def test_control_socket_in_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    args = run_args(tmp_path)
    args[-1] = str(tmp_path / "file" / "control")
    refused(wirespan(*args), 1, "control")


@pytest.mark.parametrize("command", ["status", "tail"])
def test_no_tracer_is_running(tmp_path: Path, command: str) -> None:
    done = wirespan(command, "--control-socket", str(tmp_path / "none"))
    refused(done, 1, str(tmp_path / "none"))


def test_something_else_at_the_control_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other"))
        other.listen()
        other.settimeout(0)
        done = wirespan("status", "--control-socket", str(tmp_path / "other"))
    refused(done, 1, str(tmp_path / "other"))


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_stops_cleanly(start_tracer: Start, sig: int) -> None:
    """Exit 0, nothing left behind, and the last exchange is in the output."""
    tracer = start_tracer()
    ready, control = tracer.ready_file, tracer.control
    assert int(ready.read_text()) == tracer.process.pid
    path = unique()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        pid = os.spawnlp(
            os.P_NOWAIT, "curl", "curl", "-s", "-o", "/dev/null", f"http://127.0.0.1:{port}{path}"
        )
        server, _ = listener.accept()
        with server:
            server.recv(4096)
            server.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            os.waitpid(pid, 0)
    spans = tracer.stop(sig)
    assert tracer.process.popen.returncode == 0, tracer.stderr()
    assert "Traceback" not in tracer.stderr()
    assert sorted(span.kind for span in spans.under(path)) == ["CLIENT", "SERVER"]
    assert not ready.exists() and not control.exists()


def test_reader_of_the_output_goes_away(tmp_path: Path) -> None:
    """`wirespan run | head -1`: it ends, without a traceback."""
    ready, barrier = tmp_path / "ready", Barrier()
    args = ["run", "--output", "json", "--ready-file", str(ready), "--duration", "30"]
    args += ["--store", "none"]
    process = subprocess.Popen(
        [*wirespan_command(), *args, "--control-socket", str(tmp_path / "control")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    try:
        wait_until(ready.exists, "ready", 60.0)
        assert process.stdout is not None and process.stderr is not None
        get(barrier.port, unique())
        assert process.stdout.readline()
        process.stdout.close()

        def ended() -> bool:
            get(barrier.port, unique())
            return process.poll() is not None

        wait_until(ended, "it ends when nobody reads", 10.0)
        assert "Traceback" not in process.stderr.read()
        assert process.returncode == 0
    finally:
        barrier.close()
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
