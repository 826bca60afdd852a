"""The command line as data: what can be asked for, its defaults, units and help."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from collector import commands as querying
from collector import options as collecting
from collector.commands import QueryOptions
from collector.options import CollectOptions
from tracer import option_values as values
from tracer import sampling_options, store_options
from tracer.errors import UsageError
from tracer.installed import version
from tracer.instance import DEFAULT_SOCKET, SOCKET_VARIABLE
from tracer.replay.options import EPILOG, ReplayOptions, add_arguments
from tracer.sampling_options import Policy
from tracer.store_options import StoreOptions

RING_BYTES = 8 << 20
CONNECTIONS = 4096


@dataclass(frozen=True, slots=True)
class Selection:
    """Processes and connections, each list or'ed: as chosen by --port, --exe, --pid, --cgroup."""

    ports: tuple[int, ...] = ()
    exes: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    cgroups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunOptions:
    """`wirespan run`.

    otlp: by the last part of OTEL_EXPORTER_OTLP_... in lower case, what stands above the
        environment; in the form of the variable.
    downstream: whether a `wirespan collect` behind the endpoint joins hosts.
    red_metrics: whether rate, errors and durations of what is traced are exported; None: where
        metrics are.
    sample: None: as the environment says. keep_slower_ns: 0 for none.
    user: whom to become; "" for nobody else. keep: capabilities that stay besides those that
        tracing takes.
    max_cpu: in cores; 0 for no cap.
    """

    include: Selection
    exclude: Selection
    output: str
    ready_file: str
    ring_bytes: int
    max_connections: int
    query: str
    sql: str
    otlp: tuple[tuple[str, str], ...]
    downstream: bool
    red_metrics: bool | None
    sample: Policy | None
    keep_errors: bool
    keep_slower_ns: int
    max_cpu: float
    store: StoreOptions
    socket: str
    duration_s: float | None
    program_stats: bool
    hooks: str
    user: str = ""
    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StatusOptions:
    """`wirespan status`."""

    socket: str
    json: bool


@dataclass(frozen=True, slots=True)
class TailOptions:
    """`wirespan tail`."""

    socket: str
    filter: str
    output: str


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """`wirespan doctor`."""

    json: bool


@dataclass(frozen=True, slots=True)
class VersionOptions:
    """`wirespan version`."""


Options = (
    RunOptions
    | ReplayOptions
    | CollectOptions
    | QueryOptions
    | StatusOptions
    | TailOptions
    | DoctorOptions
    | VersionOptions
)


class _Parser(argparse.ArgumentParser):
    """argparse, with this program's form of error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "), f"see {self.prog} --help")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, max_help_position=32, **settings)


def parse(arguments: Sequence[str]) -> Options:
    """Read the command line; raises UsageError, or SystemExit(0) after --help."""
    parser = build_parser()
    found = parser.parse_args(arguments)
    make: Callable[[argparse.Namespace], Options] = found.make
    return make(found)


def build_parser() -> argparse.ArgumentParser:
    """Describe the whole command line."""
    parser = _Parser(
        prog="wirespan",
        formatter_class=_Formatter,
        allow_abbrev=False,
        description="Trace this host's exchanges from its kernel, as OpenTelemetry spans.",
        epilog=(
            "examples:\n"
            "  wirespan doctor                 can this kernel and user trace?\n"
            "  wirespan run                    a line for each exchange of this host\n"
            "  wirespan traces                 the newest traces that it has stored\n"
            "  wirespan trace ID               one of them, as a waterfall\n"
            "  wirespan status                 what runs, how fast, what was lost\n"
            "  wirespan tail 'status>=500'     only failures, from the tracer that runs\n"
            "\n"
            "exit status: 0 done, 1 failed, 2 wrong usage"
        ),
    )
    parser.add_argument("--version", action="version", version=f"wirespan {version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_replay(commands)
    _add_collect(commands)
    querying.add_commands(commands, _Formatter)
    _add_status(commands)
    _add_tail(commands)
    _add_doctor(commands)
    show = _command(commands, "version", "print the version and exit", "")
    show.set_defaults(make=lambda _: VersionOptions())
    return parser


def _command(commands: Any, name: str, help_: str, epilog: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_,
        description=help_[0].upper() + help_[1:] + ".",
        epilog=epilog,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    return parser


def _add_run(commands: Any) -> None:
    run = _command(
        commands,
        "run",
        "trace until SIGINT or SIGTERM",
        "examples:\n"
        "  wirespan run\n"
        "  wirespan run --port 8080 --exclude-exe /usr/bin/curl\n"
        "  wirespan run --output none --store /srv/traces --store-size 20G --store-age 14d\n"
        "  wirespan run --output json --cgroup system.slice/nginx.service > spans.jsonl\n"
        "  wirespan run --output none --otlp-endpoint http://localhost:4317\n"
        "  OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 \\\n"
        "    OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf wirespan run\n"
        "\n"
        "Needs root, or CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE; `wirespan doctor` tells.",
    )
    which = run.add_argument_group(
        "what to trace",
        "Filtered in the kernel. Each option may be repeated: any of its values will do, but an\n"
        "exchange must pass every kind of option given. Excluding wins. Default: everything.",
    )
    for prefix, verb in (("", "only"), ("exclude-", "not")):
        which.add_argument(
            f"--{prefix}port", metavar="N", type=values.port(f"--{prefix}port"), action="append",
            default=[], help=f"{verb} connections with this TCP port on either end",
        )  # fmt: skip
        which.add_argument(
            f"--{prefix}exe", metavar="EXE", type=values.exe(f"--{prefix}exe"), action="append",
            default=[], help=f"{verb} processes that run this executable: a path, or a file name",
        )  # fmt: skip
        which.add_argument(
            f"--{prefix}pid", metavar="PID", type=values.pid(f"--{prefix}pid"), action="append",
            default=[], help=f"{verb} this process and what it starts",
        )  # fmt: skip
        which.add_argument(
            f"--{prefix}cgroup", metavar="PATH", type=values.words(f"--{prefix}cgroup"),
            action="append", default=[],
            help=f"{verb} processes in this cgroup or below it: a directory, absolute or "
            "relative to where cgroup v2 is mounted",
        )  # fmt: skip

    out = run.add_argument_group("output")
    _add_output(out)
    out.add_argument(
        "--ready-file", metavar="PATH", type=values.words("--ready-file"),
        help="create PATH, with the process id in it, once every program is attached; "
        "removed at exit",
    )  # fmt: skip
    out.add_argument(
        "--duration", metavar="SECONDS", type=values.seconds("--duration"), default=None,
        help="stop by itself after this time (default: never)",
    )  # fmt: skip

    _add_otlp(run, ", OTEL_RESOURCE_ATTRIBUTES and OTEL_METRICS_EXPORTER")
    metrics = run.add_argument_group("metrics")
    metrics.add_argument(
        "--red-metrics", choices=("on", "off"),
        help="rate, errors and durations of every exchange, by service, route and status and by "
        "pair of services, to the OTLP endpoint (default: on; OTEL_METRICS_EXPORTER=none: no "
        "metrics at all)",
    )  # fmt: skip
    linking = run.add_argument_group("linking")
    linking.add_argument(
        "--stitch", choices=("host", "collector"), default="host",
        help="where traces are put together: here alone; or collector: here what is of this host, "
        "and across hosts by the `wirespan collect` at the OTLP endpoint (default: host)",
    )  # fmt: skip
    sampling_options.add_arguments(run)
    store_options.add_arguments(run)
    limits = run.add_argument_group("limits")
    limits.add_argument(
        "--ring-size", metavar="BYTES", type=values.ring_size, default=RING_BYTES,
        help="of the ring between kernel and tracer: a power of two, suffixes K, M, G "
        f"(default: {RING_BYTES // 1024**2}M)",
    )  # fmt: skip
    limits.add_argument(
        "--max-connections", metavar="N", type=values.count("--max-connections"),
        default=CONNECTIONS,
        help=f"connections followed at one time (default: {CONNECTIONS})",
    )  # fmt: skip
    rights = run.add_argument_group(
        "privileges",
        "At start every capability but CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE is given up.",
    )
    rights.add_argument(
        "--user", metavar="NAME", type=values.words("--user"),
        help="become this user; directories of the socket and the store are made for it "
        "(default: stay who started it)",
    )  # fmt: skip
    rights.add_argument(
        "--keep-capability", metavar="CAP", type=values.capability, action="append", default=[],
        help="do not give it up; CAP_DAC_READ_SEARCH: to read programs that only their user can, "
        "CAP_CHECKPOINT_RESTORE: those replaced while they run",
    )  # fmt: skip
    control = run.add_argument_group("control")
    _add_socket(control)
    control.add_argument(
        "--hooks", choices=("auto", "tracepoint", "fentry"), default="auto",
        help="where programs are hooked in: at system calls (tracepoint), or in functions of the "
        "kernel (fentry: cheaper for the rest of the host, and io_uring is seen); auto: fentry "
        "where the kernel has it, see `wirespan doctor` (default: auto)",
    )  # fmt: skip
    control.add_argument(
        "--program-stats", action="store_true",
        help="have the kernel count and time the runs of each program, for `wirespan status`; "
        "costs some 20 ns a run",
    )  # fmt: skip
    run.set_defaults(make=_run_options)


def _add_replay(commands: Any) -> None:
    replay = _command(commands, "replay", "make spans of a capture file", EPILOG)
    add_arguments(replay)
    _add_output(replay.add_argument_group("output"))
    _add_otlp(replay)
    replay.set_defaults(
        make=lambda found: ReplayOptions(
            found.file, found.side, found.output, found.query, found.sql, _otlp_flags(found)
        )
    )


def _add_collect(commands: Any) -> None:
    collect = _command(
        commands, "collect", "put the spans of many tracers together and send them on",
        collecting.EPILOG,
    )  # fmt: skip
    collecting.add_arguments(collect)
    _add_otlp(collect)
    collect.set_defaults(make=lambda found: collecting.options(found, _otlp_flags(found)))


def _add_output(out: Any) -> None:
    out.add_argument(
        "--output", choices=("text", "json", "none"), default="text",
        help="one line a span on standard output, for people or as JSON (default: text)",
    )  # fmt: skip
    out.add_argument(
        "--query", choices=("mask", "raw", "drop"), default="mask",
        help="url.query: values replaced by REDACTED, as sent, or absent; what gRPC says of "
        "errors: without what it quotes, unless raw (default: mask)",
    )  # fmt: skip
    out.add_argument(
        "--sql", choices=("mask", "raw", "drop"), default="mask",
        help="db.query.text of SQL: literals replaced by ?, as sent, or absent; what servers say "
        "in errors: without numbers and what they quote, unless raw (default: mask)",
    )  # fmt: skip


def _add_otlp(parser: Any, others: str = "") -> None:
    otlp = parser.add_argument_group(
        "OTLP export",
        "Each option overrides the OTEL_* variable named; all other variables of the OTLP\n"
        f"exporter specification{others} count too.\n"
        "Without an endpoint nothing is exported.",
    )
    otlp.add_argument(
        "--otlp-endpoint", metavar="URL", type=values.endpoint,
        help="for example http://localhost:4317 (OTEL_EXPORTER_OTLP_ENDPOINT)",
    )  # fmt: skip
    otlp.add_argument(
        "--otlp-protocol", choices=("grpc", "http/protobuf"),
        help="default: grpc for port 4317, else http/protobuf (OTEL_EXPORTER_OTLP_PROTOCOL)",
    )  # fmt: skip
    otlp.add_argument(
        "--otlp-header", metavar="NAME=VALUE", type=values.header, action="append", default=[],
        help="sent with every request; may be repeated (OTEL_EXPORTER_OTLP_HEADERS)",
    )  # fmt: skip
    otlp.add_argument(
        "--otlp-compression", choices=("none", "gzip"),
        help="default: none (OTEL_EXPORTER_OTLP_COMPRESSION)",
    )  # fmt: skip
    otlp.add_argument(
        "--otlp-timeout", metavar="SECONDS", type=values.seconds("--otlp-timeout"),
        help="per request, default: 10 (OTEL_EXPORTER_OTLP_TIMEOUT, in ms)",
    )  # fmt: skip
    otlp.add_argument(
        "--otlp-certificate", metavar="FILE", type=values.words("--otlp-certificate"),
        help="PEM file of the authority to trust (OTEL_EXPORTER_OTLP_CERTIFICATE)",
    )  # fmt: skip
    otlp.add_argument(
        "--insecure", action="store_true",
        help="no TLS for a gRPC endpoint HOST:PORT (OTEL_EXPORTER_OTLP_INSECURE)",
    )  # fmt: skip


def _add_status(commands: Any) -> None:
    status = _command(
        commands,
        "status",
        "show what the running tracer has attached, counted and lost",
        "examples:\n  wirespan status\n  wirespan status --json | jq .losses",
    )
    status.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    _add_socket(status)
    status.set_defaults(make=lambda found: StatusOptions(found.control_socket, found.json))


def _add_tail(commands: Any) -> None:
    tail = _command(
        commands,
        "tail",
        "show exchanges of the running tracer as they end",
        "A filter is terms, all of which must hold: KEY OP VALUE without spaces.\n"
        "  KEY  service, kind, method, path, route, status, duration, peer, pid, name,\n"
        "       or an attribute's full name\n"
        "  OP   = != > >= < <=, ~ (contains), !~ (does not contain)\n"
        "  durations have a unit: ns, us, ms or s\n"
        "\n"
        "examples:\n"
        "  wirespan tail\n"
        "  wirespan tail 'service=web status>=500'\n"
        "  wirespan tail kind=server method=GET 'path~/api' 'duration>100ms'\n"
        "  wirespan tail --output json user_agent.original~curl",
    )
    tail.add_argument("filter", metavar="FILTER", nargs="*", help="default: every span")
    tail.add_argument(
        "--output", choices=("text", "json"), default="text",
        help="lines for people, or a JSON object a line (default: text)",
    )  # fmt: skip
    _add_socket(tail)
    tail.set_defaults(
        make=lambda found: TailOptions(found.control_socket, " ".join(found.filter), found.output)
    )


def _add_doctor(commands: Any) -> None:
    doctor = _command(
        commands,
        "doctor",
        "say what this kernel and user can and cannot do",
        "examples:\n  wirespan doctor\n  wirespan doctor --json\n\n"
        "exit status: 0 where tracing will work, 1 where not",
    )
    doctor.add_argument("--json", action="store_true", help="one JSON object instead of words")
    doctor.set_defaults(make=lambda found: DoctorOptions(found.json))


def _add_socket(parser: Any) -> None:
    parser.add_argument(
        "--control-socket", metavar="PATH", type=values.socket,
        default=values.FromVariable.get(SOCKET_VARIABLE) or DEFAULT_SOCKET,
        help=f"Unix socket of the tracer's control service (default: {DEFAULT_SOCKET}, "
        f"or {SOCKET_VARIABLE})",
    )  # fmt: skip


def _run_options(found: argparse.Namespace) -> RunOptions:
    def selection(prefix: str) -> Selection:
        return Selection(
            *(tuple(getattr(found, prefix + name)) for name in ("port", "exe", "pid", "cgroup"))
        )

    return RunOptions(
        include=selection(""),
        exclude=selection("exclude_"),
        output=found.output,
        ready_file=found.ready_file or "",
        ring_bytes=found.ring_size,
        max_connections=found.max_connections,
        query=found.query,
        sql=found.sql,
        otlp=_otlp_flags(found),
        downstream=found.stitch == "collector",
        red_metrics=found.red_metrics and found.red_metrics == "on",
        sample=found.sample,
        keep_errors=found.keep_errors,
        keep_slower_ns=found.keep_slower,
        max_cpu=found.max_cpu,
        store=store_options.options(found),
        socket=found.control_socket,
        duration_s=found.duration,
        program_stats=found.program_stats,
        hooks=found.hooks,
        user=found.user or "",
        keep=tuple(found.keep_capability),
    )


def _otlp_flags(found: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """The OTLP flags given, named and written as the variables are: headers in one, ms."""
    timeout = found.otlp_timeout
    flags = {
        "endpoint": found.otlp_endpoint,
        "protocol": found.otlp_protocol,
        "headers": ",".join(found.otlp_header),
        "compression": found.otlp_compression,
        "timeout": str(round(timeout * 1000)) if timeout is not None else None,
        "certificate": found.otlp_certificate,
        "insecure": "true" if found.insecure else None,
    }
    return tuple((name, value) for name, value in flags.items() if value)


def environment(options: RunOptions | ReplayOptions, environ: Mapping[str, str]) -> dict[str, str]:
    """What `environ` becomes under the flags of `options`; `environ` stays as it is.

    A flag speaks for traces and metrics alike, so it also hides what the environment
    says for one signal only (OTEL_EXPORTER_OTLP_TRACES_...).
    Source: https://opentelemetry.io/docs/specs/otel/protocol/exporter/
    """
    merged = dict(environ)
    for name, value in options.otlp:
        merged[f"OTEL_EXPORTER_OTLP_{name.upper()}"] = value
        for signal in ("TRACES", "METRICS"):
            merged.pop(f"OTEL_EXPORTER_OTLP_{signal}_{name.upper()}", None)
    return merged
