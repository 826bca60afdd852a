"""The command line from outside: messages, exit codes, help; no root needed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tracer import option_values, options
from tracer.errors import UsageError
from tracer.kernel import loader
from tracer.replay.options import ReplayOptions

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "run", "replay", "collect", "traces", "trace", "explain", "status", "tail", "doctor", "version",
)  # fmt: skip


def wirespan(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if "OTEL_" not in name}
    return subprocess.run(
        [sys.executable, "-m", "tracer.cli", *arguments],
        cwd=ROOT,
        env={**environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def check_failure(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """One line that says what and why, perhaps one with a hint, and nothing else."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith("wirespan: ")
    assert message in first
    assert len(rest) <= 1
    assert all(line.startswith("hint: ") for line in rest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "COMMAND"),
        (("walk",), "invalid choice: 'walk'"),
        (("run", "--nonsense"), "unrecognized arguments: --nonsense"),
        (("run", "--outp", "json"), "unrecognized arguments"),
        (("run", "--output", "xml"), "--output: invalid choice: 'xml'"),
        (("run", "--port", "http"), "--port: 'http' is not a TCP port"),
        (("run", "--port", "65536"), "--port: '65536' is not a TCP port"),
        (("run", "--exclude-port", "0"), "--exclude-port: '0' is not a TCP port"),
        (("run", "--pid", "-1"), "--pid"),
        (("run", "--sample", "0.1"), "--sample: '0.1' is no sampler"),
        (("run", "--sample", "traceidratio=2"), "--sample: '2' is not a share from 0 to 1"),
        (("run", "--max-cpu", "0"), "--max-cpu: '0' is not a number of cores"),
        (("run", "--max-cpu", "all"), "--max-cpu: 'all' is not a number of cores"),
        (("run", "--keep-slower", "250"), "--keep-slower: '250' is not a duration"),
        (("run", "--keep-slower", "0ms"), "--keep-slower: '0ms' is not a duration"),
        (("run", "--pid", "9" * 40), "is not a process id"),
        (("run", "--exe", ""), "--exe: the value is empty"),
        (("run", "--exe", "bin/x"), "--exe: 'bin/x' is neither an absolute path nor a file name"),
        (("run", "--ring-size", "3000"), "--ring-size: 3000 is not a power of two"),
        (("run", "--ring-size", "0"), "--ring-size: 0 is not a power of two"),
        (("run", "--ring-size", "2K"), "--ring-size: 2K is out of range"),
        (("run", "--ring-size", "2G"), "--ring-size: 2G is out of range"),
        (("run", "--ring-size", "big"), "--ring-size: 'big' is not a size in bytes"),
        (("run", "--max-connections", "0"), "is not a number of connections"),
        (("run", "--query", "all"), "--query: invalid choice"),
        (("run", "--sql", "all"), "--sql: invalid choice"),
        (("replay", "--sql", "", "traffic.pcap"), "--sql: invalid choice"),
        (("replay",), "FILE"),
        (("run", "--duration", "nan"), "--duration: 'nan' is not a time"),
        (("run", "--duration", "-1"), "--duration"),
        (("run", "--otlp-endpoint", "localhost"), "--otlp-endpoint: 'localhost' is not a URL"),
        (("run", "--otlp-endpoint", "ftp://x", "--otlp-protocol", "grpc"), "not a gRPC endpoint"),
        (("run", "--otlp-protocol", "http/json"), "--otlp-protocol: invalid choice"),
        (("run", "--otlp-header", "nothing"), "--otlp-header: that is not NAME=VALUE"),
        (("run", "--otlp-timeout", "soon"), "--otlp-timeout: 'soon' is not a time"),
        (("run", "--control-socket", "/" + "x" * 200), "longer than 107 bytes"),
        (("run", "--store", "none", "--store-size", "1G"), "there is no store with --store none"),
        (("run", "--stitch", "collector"), "there is no OTLP endpoint"),
        (("run", "--red-metrics", "on"), "--red-metrics on: metrics are exported to nobody"),
        (("trace", "xyz"), "'xyz' is not a trace id"),
        (("tail", "status"), "filter: 'status' is not a term"),
        (("tail", "duration>5"), "not a comparison with a duration"),
        (("tail", "kind=internal"), "no such kind"),
        (("tail", "status>=many"), "'many' is not a number"),
        (("tail", "name='GET"), "filter: No closing quotation"),
        (("tail", "status=abc"), "filter: 'status=abc': 'abc' is not a number"),
        (("tail", "pid!=nginx"), "filter: 'pid!=nginx': 'nginx' is not a number"),
        (
            ("collect", "--peer", "nowhere", "--otlp-endpoint", "http://[::1]:1"),
            "--peer: 'nowhere'",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    at = ("--control-socket", str(tmp_path / "control.sock"))
    here = at if arguments and arguments[0] in ("run", "tail") else ()
    check_failure(
        wirespan(arguments[0], *here, *arguments[1:]) if here else wirespan(*arguments), 2, message
    )


@pytest.mark.parametrize(
    ("command", "variable", "value", "message"),
    [
        ("traces", "WIRESPAN_QUERY_ADDRESS", "here", "WIRESPAN_QUERY_ADDRESS: 'here' is not"),
        ("status", "WIRESPAN_SOCKET", "/" + "x" * 200, "WIRESPAN_SOCKET: the path is longer"),
    ],
)
def test_what_is_wrong_in_a_variable_is_called_so(
    command: str, variable: str, value: str, message: str
) -> None:
    check_failure(wirespan(command, **{variable: value}), 2, message)


def test_metrics_asked_for_and_turned_off(tmp_path: Path) -> None:
    done = wirespan(
        "run", "--red-metrics", "on", "--otlp-endpoint", "http://[::1]:1",
        "--control-socket", str(tmp_path / "control.sock"), OTEL_METRICS_EXPORTER="none",
    )  # fmt: skip
    check_failure(done, 2, "--red-metrics on: metrics are exported to nobody")


def test_endpoint_of_the_environment_is_checked(tmp_path: Path) -> None:
    done = wirespan(
        "run", "--control-socket", str(tmp_path / "control.sock"),
        OTEL_EXPORTER_OTLP_ENDPOINT="nowhere at all",
    )  # fmt: skip
    check_failure(done, 2, "OTEL_EXPORTER_OTLP_ENDPOINT")


@pytest.mark.parametrize("command", ["status", "tail"])
def test_no_tracer_runs(command: str, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    check_failure(wirespan(command, "--control-socket", str(path)), 1, "no tracer answers")
    path.write_text("not a socket", "ascii")
    check_failure(wirespan(command, WIRESPAN_SOCKET=str(path)), 1, "not a socket")


def test_stale_socket_is_no_tracer(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    check_failure(wirespan("status", "--control-socket", str(path)), 1, "no tracer answers")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_other_place(command: str) -> None:
    done = wirespan(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: wirespan {command}")
    if command != "version":
        assert "examples:" in done.stdout


def test_help_of_run_states_defaults_and_variables() -> None:
    text = wirespan("run", "--help", COLUMNS="200").stdout
    for word in (
        "default: 8M",
        "0.02 or more",
        "default: text",
        "default: mask",
        "OTEL_EXPORTER_OTLP_HEADERS",
    ):
        assert word in text
    for name in ("port", "exe", "pid", "cgroup"):
        assert f"--{name} " in text
        assert f"--exclude-{name} " in text


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from tracer.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['run', '--help'])\n"
        "heavy = {'numpy', 'grpc', 'pylibbpf', 'opentelemetry', 'duckdb'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("words", ["foo", "min=5", "status>=x", "duration>5"])
def test_a_bad_search_is_bad_whether_or_not_anybody_answers(words: str) -> None:
    check_failure(wirespan("traces", "--query-address", "127.0.0.1:1", words), 2, words)


def test_an_interrupt_while_it_is_imported() -> None:
    code = (
        "import signal, sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'tracer.options': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from tracer.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "version"], cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_closed_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tracer.cli", "version"],
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_output_is_no_error(closed: str) -> None:
    done = subprocess.run(
        f"exec {sys.executable} -m tracer.cli version {closed}",
        shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_options_become_data() -> None:
    found = options.parse(
        [
            "run", "--port", "80", "--port", "443", "--exclude-exe", "/usr/bin/curl",
            "--exclude-pid", "12", "--cgroup", "system.slice", "--ring-size", "64k",
            "--otlp-header", "authorization=Bearer a,b", "--otlp-header", "x-team=blue",
            "--otlp-timeout", "2.5", "--insecure", "--control-socket", "/tmp/w.sock",
        ]
    )  # fmt: skip
    assert isinstance(found, options.RunOptions)
    assert found.include == options.Selection(ports=(80, 443), cgroups=("system.slice",))
    assert found.exclude == options.Selection(exes=("/usr/bin/curl",), pids=(12,))
    assert found.ring_bytes == 65_536
    assert dict(found.otlp) == {
        "headers": "authorization=Bearer%20a%2Cb,x-team=blue",
        "timeout": "2500",
        "insecure": "true",
    }
    assert found.socket == "/tmp/w.sock"


@pytest.mark.parametrize("command", [("run",), ("replay", "traffic.pcap")])
def test_what_is_shown_of_statements(command: tuple[str, ...]) -> None:
    for arguments, sql in (((), "mask"), (("--sql", "raw"), "raw"), (("--sql", "drop"), "drop")):
        found = options.parse([*command, *arguments])
        assert isinstance(found, options.RunOptions | ReplayOptions)
        assert (found.sql, found.query) == (sql, "mask")


def test_flags_hide_what_the_environment_says_for_one_signal() -> None:
    found = options.parse(["run", "--otlp-endpoint", "http://here:4317"])
    assert isinstance(found, options.RunOptions)
    before = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://there:4318",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://there:4318",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=b",
    }
    assert options.environment(found, before) == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://here:4317",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=b",
    }


@pytest.mark.parametrize("size", ["4096", "4K", "16M", "512M", "16MiB", "64kB"])
def test_ring_sizes(size: str) -> None:
    found = options.parse(["run", "--ring-size", size])
    assert isinstance(found, options.RunOptions)
    loader.Settings(ring_bytes=found.ring_bytes)


def test_limits_are_the_loader_s() -> None:
    assert option_values.MAX_RING_BYTES == loader.MAX_RING_BYTES
    assert option_values.MAX_CONNECTIONS == loader.MAX_CONNECTIONS
    loader.Settings(ring_bytes=options.RING_BYTES, max_connections=options.CONNECTIONS)


def test_tail_words_are_one_filter() -> None:
    found = options.parse(["tail", "service=web", "status>=500", "--output", "json"])
    assert isinstance(found, options.TailOptions)
    assert (found.filter, found.output) == ("service=web status>=500", "json")


def test_a_prefix_of_an_option_is_not_the_option() -> None:
    with pytest.raises(UsageError, match="--ring"):
        options.parse(["run", "--ring", "4096"])
