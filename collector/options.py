"""`wirespan collect` on the command line: what is its own there, and it as data."""

from __future__ import annotations

import argparse
import ipaddress
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from collector.address import Address
from collector.limits import Limits
from tracer.errors import UsageError

EPILOG = (
    "examples:\n"
    "  wirespan collect --otlp-endpoint http://localhost:14317\n"
    "  wirespan collect --listen-grpc 10.0.0.1:4317 --token-file tokens \\\n"
    "    --tls-certificate cert.pem --tls-key key.pem --otlp-endpoint http://otelcol:4317\n"
    "  wirespan collect --listen-grpc none --prefer sdk --otlp-endpoint http://localhost:14318\n"
    "\n"
    "SIGTERM and SIGINT: takes no more, gives out and sends on what is held, prints what the\n"
    "run came to. SIGUSR1 prints it without ending. Needs no privileges."
)
DEFAULT_GRPC, DEFAULT_HTTP = "127.0.0.1:4317", "127.0.0.1:4318"
DEFAULT_QUERY = "127.0.0.1:16686"
DEFAULT = Limits()
MAX_SPANS = 10_000_000


@dataclass(frozen=True, slots=True)
class CollectOptions:
    """`wirespan collect`; otlp: as in RunOptions. None for an address: not listening.

    store: a directory, or "". query_address: HOST:PORT, "" for none; counts with a store.
    peers: URLs of other collectors. open_intake: others than this machine may send spans in
        clear, or without showing who they are.
    """

    grpc: Address | None
    http: Address | None
    token_file: str
    tls_certificate: str
    tls_key: str
    tls_client_ca: str
    prefer: str
    limits: Limits
    store: str
    query_address: str
    status_s: float | None
    ready_file: str
    otlp: tuple[tuple[str, str], ...]
    peers: tuple[str, ...] = ()
    open_intake: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe what no other command has."""
    intake = parser.add_argument_group("OTLP in")
    for name, default, what in (
        ("grpc", DEFAULT_GRPC, "OTLP/gRPC"),
        ("http", DEFAULT_HTTP, "OTLP/HTTP, protobuf or JSON"),
    ):
        intake.add_argument(
            f"--listen-{name}", metavar="ADDRESS:PORT", type=listen_address(f"--listen-{name}"),
            default=listen_address("")(default),
            help=f"for {what}; port 0 for any, none for not at all (default: {default})",
        )  # fmt: skip
    intake.add_argument(
        "--token-file", metavar="FILE", type=_text("--token-file"),
        help="bearer tokens, one a line: senders must show one of them "
        "(OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%%20TOKEN)",
    )  # fmt: skip
    intake.add_argument(
        "--open-intake", action="store_true",
        help="listen beyond this machine without TLS, or for anyone; otherwise an address that is "
        "not of loopback needs --tls-certificate, and --token-file or --tls-client-ca",
    )  # fmt: skip
    for name, what in (
        ("certificate", "PEM file of the certificate chain to show: listen with TLS"),
        ("key", "PEM file of its key"),
        ("client-ca", "PEM file of the authority that must have signed senders' certificates"),
    ):
        intake.add_argument(f"--tls-{name}", metavar="FILE", type=_text(f"--tls-{name}"), help=what)

    stitch = parser.add_argument_group("stitching")
    for flag, default_s, what in (
        ("--hold", DEFAULT.hold_s, "a trace is given out this long after its last span came"),
        ("--parent-wait", DEFAULT.parent_wait_s,
         "but not before this long after its first, where a client's span is still missing"),
        ("--max-hold", DEFAULT.max_hold_s, "and in any case this long after its first"),
    ):  # fmt: skip
        stitch.add_argument(
            flag, metavar="SECONDS", type=_seconds(flag), default=default_s,
            help=f"{what} (default: {default_s:g})",
        )  # fmt: skip
    stitch.add_argument(
        "--max-spans",
        metavar="N",
        type=_max_spans,
        default=DEFAULT.max_spans,
        help=f"held at one time; beyond, the oldest are given out (default: {DEFAULT.max_spans})",
    )
    stitch.add_argument(
        "--prefer",
        choices=("both", "sdk"),
        default="both",
        help="where an application's own SDK has a span of the same exchange: keep both, or the "
        "SDK's only (default: both)",
    )

    stitch.add_argument(
        "--peer", metavar="URL", action="append", default=[], type=_text("--peer"),
        help="OTLP/gRPC of another collector, for example http://10.0.0.2:4317, given once for "
        "each: spans may then be sent to any of them. A token of --token-file is shown to it",
    )  # fmt: skip

    store = parser.add_argument_group("store and query API")
    store.add_argument(
        "--store", metavar="DIRECTORY", type=_text("--store"),
        help="keep spans here too, for `wirespan traces`, Jaeger UI and Grafana (default: "
        "they are only sent on)",
    )  # fmt: skip
    store.add_argument(
        "--query-listen", metavar="ADDRESS:PORT", type=query_address("--query-listen"),
        default=listen_address("")(DEFAULT_QUERY),
        help=f"of the Jaeger-compatible query API; none for none (default: {DEFAULT_QUERY})",
    )  # fmt: skip

    control = parser.add_argument_group("control")
    control.add_argument(
        "--status-interval", metavar="SECONDS", type=_seconds("--status-interval"), default=None,
        help="print what the run came to each so many seconds (default: only at the end)",
    )  # fmt: skip
    control.add_argument(
        "--ready-file", metavar="PATH", type=_text("--ready-file"),
        help="create PATH, with the addresses in it, once all of them are listened on; "
        "removed at exit",
    )  # fmt: skip


def options(found: argparse.Namespace, otlp: Sequence[tuple[str, str]] = ()) -> CollectOptions:
    """Make options of what was parsed; raises UsageError."""
    if found.listen_grpc is None and found.listen_http is None:
        raise UsageError("--listen-grpc and --listen-http: both are none", "give one an address")
    if bool(found.tls_certificate) != bool(found.tls_key):
        raise UsageError("--tls-certificate and --tls-key go together", "give both")
    if found.tls_client_ca and not found.tls_key:
        raise UsageError("--tls-client-ca: there is no TLS without a certificate of our own",
                         "give --tls-certificate and --tls-key")  # fmt: skip
    if not found.open_intake:
        for name in ("grpc", "http"):
            _check_reach(found, name)
    if found.max_hold < found.hold:
        raise UsageError("--max-hold is less than --hold", "give both")
    return CollectOptions(
        found.listen_grpc,
        found.listen_http,
        found.token_file or "",
        found.tls_certificate or "",
        found.tls_key or "",
        found.tls_client_ca or "",
        found.prefer,
        Limits(
            hold_s=found.hold,
            parent_wait_s=min(found.parent_wait, found.max_hold),
            max_hold_s=found.max_hold,
            max_spans=found.max_spans,
        ),
        found.store or "",
        str(found.query_listen or ""),
        found.status_interval,
        found.ready_file or "",
        tuple(otlp),
        tuple(found.peer),
        found.open_intake,
    )


def _check_reach(found: argparse.Namespace, name: str) -> None:
    """Refuse to listen beyond this machine in clear, or for anyone; raises UsageError."""
    address: Address | None = getattr(found, f"listen_{name}")
    if address is None or address.is_loopback:
        return
    lacking = []
    if not found.tls_certificate:
        lacking.append("--tls-certificate and --tls-key")
    if not found.token_file and not found.tls_client_ca:
        lacking.append("--token-file or --tls-client-ca")
    if lacking:
        raise UsageError(
            f"--listen-{name}: {address} can be reached from other machines",
            f"give {' and '.join(lacking)}, or --open-intake where the network is to be trusted",
        )


def query_address(option: str) -> Callable[[str], Address | None]:
    """Where the query API, which asks nobody who he is, may listen; None for "none"."""

    def read(text: str) -> Address | None:
        address = listen_address(option)(text)
        if address and not address.is_loopback:
            raise UsageError(
                f"{option}: {text} can be reached from other machines, and the API asks for no "
                "password",
                "give an address of loopback; others can come by ssh -L or a proxy that asks",
            )
        return address

    return read


def listen_address(option: str) -> Callable[[str], Address | None]:
    """An address and a port to listen on; None for "none"."""

    def read(text: str) -> Address | None:
        if text == "none":
            return None
        host, _, port = text.rpartition(":")
        try:
            numeric = str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
        except ValueError:
            numeric = "127.0.0.1" if host == "localhost" else ""
        if not numeric or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
            raise UsageError(
                f"{option}: {text!r} is not an address and a port",
                "write for example 127.0.0.1:4317, [::1]:4317, or none",
            )
        return Address(numeric, int(port))

    return read


def _text(option: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not text or "\0" in text:
            raise UsageError(f"{option}: the value is empty", "leave the option out instead")
        return text

    return read


def _seconds(option: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0.01 <= seconds <= 3_600:
            raise UsageError(f"{option}: {text!r} is not a time", "0.01 to 3600 seconds")
        return seconds

    return read


def _max_spans(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,8}", text) or not 1 <= int(text) <= MAX_SPANS:
        raise UsageError(f"--max-spans: {text!r} is not a number of spans", f"1 to {MAX_SPANS}")
    return int(text)
