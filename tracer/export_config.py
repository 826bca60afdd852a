"""Where spans and metrics are sent and how: the OTEL_EXPORTER_OTLP_* variables and options.

Source: https://opentelemetry.io/docs/specs/otel/protocol/exporter/ (1.55.0). As it asks,
the protocol is http/protobuf unless told otherwise; here an endpoint with port 4317, the
one registered for OTLP/gRPC, tells otherwise too, since nothing else answers there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args
from urllib.parse import SplitResult, unquote, urlsplit

from tracer.errors import UsageError
from tracer.installed import version

Protocol = Literal["grpc", "http/protobuf"]
PROTOCOLS = ("grpc", "http/protobuf")
Signal = Literal["traces", "metrics"]

DEFAULT_HTTP = "http://localhost:4318"
DEFAULT_GRPC = "http://localhost:4317"

# https://github.com/grpc/grpc/blob/master/doc/naming.md
_GRPC_SCHEMES = ("dns", "unix", "unix-abstract", "ipv4", "ipv6", "vsock", "xds")
_GRPC_PORT = re.compile(r":4317(/.*)?")
# RFC 9110 section 5.1 and 5.5: https://www.rfc-editor.org/rfc/rfc9110#section-5
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md (Custom-Metadata); names in
# -bin stand for bytes, which a variable cannot hold.
_GRPC_NAME = re.compile(r"(?!grpc-)[0-9A-Za-z_.-]+(?<!-bin)")
_GRPC_VALUE = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the exporter.

    queue_spans, queue_bytes: what may wait, requests under way included.
    request_spans, request_bytes: one request; gRPC receivers refuse more than 4 MiB, and
        each is held several times over while it is sent.
    delay_s: how long a span waits for others to share its request.
    backoff_initial_s, backoff_max_s: before a retry, doubled each time, then halved at
        random at most.
    retry_s: a request that is not through by then is dropped.
    """

    queue_spans: int = 65_536
    queue_bytes: int = 32 << 20
    request_spans: int = 4_096
    request_bytes: int = 4_000_000
    delay_s: float = 0.1
    backoff_initial_s: float = 0.25
    backoff_max_s: float = 5.0
    retry_s: float = 60.0


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """A resolved configuration.

    endpoint: for http/protobuf the URL to post to, for grpc a target of the gRPC library.
    secure: TLS; the three files are PEM and count for TLS only.
    headers: lower-case names; values may be secrets and stay out of repr().
    timeout_s: for one attempt; None for no limit.
    signal: what is sent.
    """

    protocol: Protocol
    endpoint: str
    secure: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    gzip: bool = False
    timeout_s: float | None = 10.0
    certificate: str | None = None
    client_key: str | None = None
    client_certificate: str | None = None
    limits: Limits = Limits()
    signal: Signal = "traces"

    @property
    def shown(self) -> str:
        """The endpoint as it may be shown: what is in its query may be a secret."""
        address, query, _ = self.endpoint.partition("?")
        return f"{address}?REDACTED" if query else address

    @staticmethod
    def requested(environ: Mapping[str, str], signal: Signal = "traces") -> bool:
        """Tell whether the environment names an OTLP endpoint for a signal."""
        return _Settings(environ, {}, signal).find("ENDPOINT") is not None

    @classmethod
    def wanted(cls, environ: Mapping[str, str], signal: Signal = "traces") -> bool:
        """Tell whether a signal is to be exported by what the environment says alone."""
        return cls.requested(environ, signal) and "otlp" in _exporters(environ, signal)

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str],
        *,
        endpoint: str | None = None,
        protocol: str | None = None,
        headers: str | None = None,
        compression: str | None = None,
        timeout: str | int | None = None,
        certificate: str | None = None,
        client_key: str | None = None,
        client_certificate: str | None = None,
        insecure: bool | None = None,
        limits: Limits | None = None,
        signal: Signal = "traces",
    ) -> ExportConfig:
        """Read the environment; arguments that are not None win over it.

        Arguments have the form of their variables: `endpoint` is that of all signals (over
        HTTP, the signal's path is appended), `headers` is "name=value,...", `timeout` is in ms.
        An empty variable counts as not set. Raises UsageError.
        """
        given = {
            "ENDPOINT": endpoint,
            "PROTOCOL": protocol,
            "HEADERS": headers,
            "COMPRESSION": compression,
            "TIMEOUT": None if timeout is None else str(timeout),
            "CERTIFICATE": certificate,
            "CLIENT_KEY": client_key,
            "CLIENT_CERTIFICATE": client_certificate,
            "INSECURE": None if insecure is None else str(insecure),
        }
        wanted = {key: v for key, v in given.items() if v is not None}
        settings = _Settings(environ, wanted, signal)
        chosen = _protocol(settings)
        target, secure = _grpc_target(settings) if chosen == "grpc" else _http_url(settings)
        key, chain = settings.find("CLIENT_KEY"), settings.find("CLIENT_CERTIFICATE")
        if (key is None) != (chain is None):
            there = key or chain
            assert there is not None
            raise UsageError(
                f"{there.name}: a client key and a client certificate go together",
                "set both OTEL_EXPORTER_OTLP_CLIENT_KEY and OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
            )
        trusted = settings.find("CERTIFICATE")
        return cls(
            protocol=chosen,
            endpoint=target,
            secure=secure,
            headers=_headers(settings, chosen),
            gzip=_gzip(settings),
            timeout_s=_timeout_s(settings),
            certificate=trusted.value if trusted else None,
            client_key=key.value if key else None,
            client_certificate=chain.value if chain else None,
            limits=limits or Limits(),
            signal=signal,
        )


def user_agent() -> str:
    """Name this exporter, its language and its version, as the specification asks."""
    return f"wirespan-OTLP-Exporter-Python/{version()}"


@dataclass(frozen=True, slots=True)
class _Setting:
    """A value and what to call it in a message; `general`: it is not for one signal alone."""

    name: str
    value: str
    general: bool


def unknown_exporters(environ: Mapping[str, str]) -> list[str]:
    """Say in words which of the exporters that the environment asks for there are not."""
    return [
        f"OTEL_{signal.upper()}_EXPORTER: there is no exporter {name} here, only otlp and none"
        for signal in get_args(Signal)
        for name in _exporters(environ, signal)
        if name not in ("otlp", "none")
    ]


def _exporters(environ: Mapping[str, str], signal: Signal) -> list[str]:
    names = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").split(",")
    return [name.strip() for name in names if name.strip()] or ["otlp"]


@dataclass(frozen=True, slots=True)
class _Settings:
    environ: Mapping[str, str]
    given: Mapping[str, str]
    signal: Signal

    def find(self, option: str) -> _Setting | None:
        """Look up an option: an argument, else the signal's variable, else the general one."""
        if option in self.given:
            name = "OTLP " + option.lower().replace("_", " ")
            return _Setting(name, self.given[option].strip(), True)
        for prefix, general in (
            (f"OTEL_EXPORTER_OTLP_{self.signal.upper()}_", False),
            ("OTEL_EXPORTER_OTLP_", True),
        ):
            if value := self.environ.get(prefix + option, "").strip():
                return _Setting(prefix + option, value, general)
        return None


def _protocol(settings: _Settings) -> Protocol:
    setting = settings.find("PROTOCOL")
    if setting is None:
        endpoint = settings.find("ENDPOINT")
        to_grpc = endpoint is not None and _GRPC_PORT.fullmatch(
            endpoint.value[_port_at(endpoint) :]
        )
        return "grpc" if to_grpc else "http/protobuf"
    if setting.value.lower() not in PROTOCOLS:
        raise UsageError(
            f"{setting.name}: {setting.value!r} is not a protocol wirespan speaks",
            "use grpc or http/protobuf",
        )
    return cast(Protocol, setting.value.lower())


def _port_at(endpoint: _Setting) -> int:
    """Where the port of SCHEME://HOST:PORT/PATH or HOST:PORT starts, or may start."""
    authority = endpoint.value.partition("://")[2] or endpoint.value
    host = authority.partition("/")[0]
    return len(endpoint.value) - len(authority) + max(0, host.rfind(":"))


def _http_url(settings: _Settings) -> tuple[str, bool]:
    setting = settings.find("ENDPOINT") or _Setting("OTLP endpoint", DEFAULT_HTTP, True)
    url = _url(setting)
    path = url.path or "/"
    if setting.general:
        path = f"{path.rstrip('/')}/v1/{settings.signal}"
    return url._replace(path=path, fragment="").geturl(), url.scheme == "https"


def _grpc_target(settings: _Settings) -> tuple[str, bool]:
    setting = settings.find("ENDPOINT") or _Setting("OTLP endpoint", DEFAULT_GRPC, True)
    if setting.value.lower().startswith(("http://", "https://")):
        url = _url(setting)
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        port = url.port or (443 if url.scheme == "https" else 80)
        return f"{host}:{port}", url.scheme == "https"
    scheme, separator, rest = setting.value.partition(":")
    named = separator != "" and scheme in _GRPC_SCHEMES
    host, _, port_text = setting.value.rpartition(":")
    is_address = host != "" and port_text.isdigit() and "/" not in setting.value
    if re.search(r"\s", setting.value) or not (is_address or (named and rest)):
        raise UsageError(
            f"{setting.name}: {_shown(setting.value)!r} is not a gRPC endpoint",
            "write http://HOST:PORT, https://HOST:PORT, HOST:PORT (TLS) or unix:PATH",
        )
    return setting.value, not scheme.startswith("unix") and not _insecure(settings)


def _url(setting: _Setting) -> SplitResult:
    try:
        url = urlsplit(setting.value)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        valid = False
    if not valid and (port := re.search(r":(\d{1,9})(?=[/?#]|$)", setting.value)):
        if not 0 < int(port[1]) < 1 << 16:
            raise UsageError(
                f"{setting.name}: {_shown(setting.value)!r} has a port that there is not",
                "ports are 1 to 65535",
            )
    if not valid or re.search(r"[\s\x00-\x1f\x7f-\U0010ffff]", setting.value):
        raise UsageError(
            f"{setting.name}: {_shown(setting.value)!r} is not a URL with scheme http or https",
            "write http://HOST:PORT, for example http://localhost:4318",
        )
    if "@" in url.netloc:  # and would be shown wherever the endpoint is
        raise UsageError(
            f"{setting.name}: {_shown(setting.value)!r} is given with a user name or a password",
            "take them out, and name a header: --otlp-header 'authorization=Basic ...'",
        )
    return url


def _shown(url: str) -> str:
    """What of an address may be shown: no password before its host, no query behind its path."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = (rest if separator else scheme).partition("/")
    start = scheme + separator if separator else ""
    return f"{start}{authority.rpartition('@')[2]}{slash}{path}".partition("?")[0]


def _insecure(settings: _Settings) -> bool:
    setting = settings.find("INSECURE")
    if setting is None:
        return False
    if setting.value.lower() not in ("true", "false"):
        raise UsageError(f"{setting.name}: {setting.value!r} is neither true nor false", "use true")
    return setting.value.lower() == "true"


def _headers(settings: _Settings, protocol: Protocol) -> tuple[tuple[str, str], ...]:
    setting = settings.find("HEADERS")
    to_grpc = protocol == "grpc"
    names = _GRPC_NAME if to_grpc else _HEADER_NAME
    values = _GRPC_VALUE if to_grpc else _HEADER_VALUE
    headers: dict[str, str] = {}
    for number, item in enumerate(setting.value.split(",") if setting else (), 1):
        if not item.strip():
            continue
        # The format of W3C baggage: values are percent-encoded.
        name, equals, value = (unquote(part).strip() for part in item.partition("="))
        if not equals or not names.fullmatch(name) or not values.fullmatch(value):
            assert setting is not None
            # The value may be a secret, and so may what has no "=": neither is shown.
            item = f"the item {name[:40]!r}" if equals else f"item {number}"
            raise UsageError(
                f"{setting.name}: {item} is not a header",
                "write name=value,name=value with values percent-encoded",
            )
        headers[name.lower()] = value
    return tuple(headers.items())


def _gzip(settings: _Settings) -> bool:
    setting = settings.find("COMPRESSION")
    if setting is None or setting.value == "none":
        return False
    if setting.value != "gzip":
        raise UsageError(
            f"{setting.name}: {setting.value!r} is not a compression wirespan knows",
            "use gzip or none",
        )
    return True


def _timeout_s(settings: _Settings) -> float | None:
    setting = settings.find("TIMEOUT")
    if setting is None:
        return 10.0
    if not re.fullmatch(r"[0-9]{1,9}", setting.value):
        raise UsageError(
            f"{setting.name}: {setting.value!r} is not a number of milliseconds",
            "write a whole number, for example 10000 for ten seconds; 0 means no limit",
        )
    return int(setting.value) / 1000 or None
