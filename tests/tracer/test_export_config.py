"""The OTLP exporter's variables and options, as the specification has them."""

from __future__ import annotations

from typing import Any

import pytest

from tracer.errors import UsageError
from tracer.export_config import ExportConfig, Limits, unknown_exporters, user_agent

P = "OTEL_EXPORTER_OTLP_"
T = "OTEL_EXPORTER_OTLP_TRACES_"


def config(environ: dict[str, str] | None = None, **overrides: Any) -> ExportConfig:
    return ExportConfig.from_environment(environ or {}, **overrides)


def test_defaults() -> None:
    made = config()
    assert made == ExportConfig("http/protobuf", "http://localhost:4318/v1/traces")
    assert (made.secure, made.gzip, made.timeout_s, made.headers) == (False, False, 10.0, ())
    assert config({P + "PROTOCOL": "grpc"}).endpoint == "localhost:4317"


def test_export_is_requested_by_an_endpoint() -> None:
    assert not ExportConfig.requested({})
    assert not ExportConfig.requested({P + "ENDPOINT": "  "})
    assert ExportConfig.requested({P + "ENDPOINT": "http://h"})
    assert ExportConfig.requested({T + "ENDPOINT": "http://h"})
    assert not ExportConfig.requested({P + "METRICS_ENDPOINT": "http://h"})


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://h:1", "http://h:1/v1/traces"),
        ("http://h:1/", "http://h:1/v1/traces"),
        ("http://h/base", "http://h/base/v1/traces"),
        ("http://h/base//", "http://h/base/v1/traces"),
        ("https://[::1]:1/x?key=1#part", "https://[::1]:1/x/v1/traces?key=1"),
    ],
)
def test_the_general_endpoint_gets_a_path(endpoint: str, url: str) -> None:
    for made in (config({P + "ENDPOINT": endpoint}), config(endpoint=endpoint)):
        assert made.endpoint == url
        assert made.shown == url.replace("?key=1", "?REDACTED")
        assert made.secure == url.startswith("https")


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://h:1", "http://h:1/"),
        ("http://h:1/", "http://h:1/"),
        ("https://h/my/traces/", "https://h/my/traces/"),
    ],
)
def test_the_traces_endpoint_is_used_as_it_is(endpoint: str, url: str) -> None:
    assert config({T + "ENDPOINT": endpoint, P + "ENDPOINT": "http://other"}).endpoint == url


@pytest.mark.parametrize(
    ("endpoint", "target", "secure"),
    [
        ("http://h:4317", "h:4317", False),
        ("https://h:1", "h:1", True),
        ("HTTP://h:1/ignored", "h:1", False),
        ("https://h", "h:443", True),
        ("http://h", "h:80", False),
        ("http://[::1]:9", "[::1]:9", False),
        ("h:1", "h:1", True),
        ("dns:///h:1", "dns:///h:1", True),
        ("unix:/run/otel.sock", "unix:/run/otel.sock", False),
    ],
)
def test_grpc_targets(endpoint: str, target: str, secure: bool) -> None:
    for variable in (P, T):
        made = config({variable + "ENDPOINT": endpoint, P + "PROTOCOL": "grpc"})
        assert (made.endpoint, made.secure) == (target, secure)


def test_insecure_counts_only_without_a_scheme() -> None:
    environ = {P + "PROTOCOL": "grpc", P + "INSECURE": "True"}
    assert not config({**environ, P + "ENDPOINT": "h:1"}).secure
    assert not config({**environ, P + "ENDPOINT": "dns:h:1"}).secure
    assert config({**environ, P + "ENDPOINT": "https://h:1"}).secure
    assert config({**environ, P + "ENDPOINT": "h:1", T + "INSECURE": "false"}).secure
    assert not config({P + "PROTOCOL": "grpc"}, endpoint="h:1", insecure=True).secure
    assert config({P + "ENDPOINT": "https://h:1", P + "INSECURE": "true"}).secure


@pytest.mark.parametrize(
    ("endpoint", "protocol"),
    [
        ("http://h:4317", "grpc"),
        ("https://h:4317/", "grpc"),
        ("h:4317", "grpc"),
        ("http://[::1]:4317", "grpc"),
        ("http://h:4318", "http/protobuf"),
        ("http://h:43170", "http/protobuf"),
        ("http://h/4317", "http/protobuf"),
        ("http://h/a:4317", "http/protobuf"),
        ("http://h", "http/protobuf"),
    ],
)
def test_protocol_by_port_where_none_is_set(endpoint: str, protocol: str) -> None:
    assert config(endpoint=endpoint).protocol == protocol
    if endpoint.startswith("http"):
        assert config(endpoint=endpoint, protocol="http/protobuf").protocol == "http/protobuf"


def test_variables_for_traces_win_and_arguments_win_over_both() -> None:
    environ = {
        P + "PROTOCOL": "grpc", T + "PROTOCOL": "http/protobuf",
        P + "ENDPOINT": "http://general", T + "ENDPOINT": "http://traces/",
        P + "HEADERS": "a=1,b=2", T + "HEADERS": "a=3",
        P + "COMPRESSION": "none", T + "COMPRESSION": "gzip",
        P + "TIMEOUT": "1", T + "TIMEOUT": "2500",
        P + "CERTIFICATE": "ca", T + "CERTIFICATE": "ca2",
        P + "CLIENT_KEY": "k", T + "CLIENT_KEY": "k2",
        P + "CLIENT_CERTIFICATE": "c", T + "CLIENT_CERTIFICATE": "c2",
    }  # fmt: skip
    assert config(environ) == ExportConfig(
        "http/protobuf", "http://traces/", False, (("a", "3"),), True, 2.5, "ca2", "k2", "c2"
    )
    limits = Limits(queue_spans=5)
    made = config(
        environ, endpoint="h:1", protocol="grpc", headers="x=y", compression="none", timeout=7,
        certificate="ca3", client_key="k3", client_certificate="c3", insecure=False, limits=limits,
    )  # fmt: skip
    assert made == ExportConfig(
        "grpc", "h:1", True, (("x", "y"),), False, 0.007, "ca3", "k3", "c3", limits
    )


def test_empty_variables_count_as_not_set() -> None:
    names = ("ENDPOINT", "PROTOCOL", "HEADERS", "COMPRESSION", "TIMEOUT", "CERTIFICATE", "INSECURE")
    empty = {prefix + name: " " for prefix in (P, T) for name in names}
    assert config(empty) == config()
    assert config({**empty, P + "TIMEOUT": "5"}).timeout_s == 0.005


def test_no_limit_of_time() -> None:
    assert config(timeout=0).timeout_s is None


def test_headers_are_baggage() -> None:
    made = config(headers=" Api-Key = a%20b%3D%2C , x=1=2,, y=")
    assert made.headers == (("api-key", "a b=,"), ("x", "1=2"), ("y", ""))
    assert "a b" not in repr(made)


@pytest.mark.parametrize(
    "environ",
    [
        {P + "ENDPOINT": "htp://bob:SECRET@h:4318"},
        {P + "ENDPOINT": "http://bob:SECRET@h:4318"},
        {P + "ENDPOINT": "https://SECRET@h", P + "PROTOCOL": "grpc"},
        {P + "ENDPOINT": "htp://h:4318/?apikey=SECRET"},
        {P + "PROTOCOL": "grpc", P + "ENDPOINT": "bob:SECRET@h"},
        {P + "HEADERS": "Authorization: Bearer SECRET"},
    ],
)
def test_what_may_be_a_secret_is_not_shown(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        config(environ)
    assert "SECRET" not in f"{caught.value} {caught.value.hint}"


def test_protocols_are_named_in_any_case() -> None:
    assert config({P + "PROTOCOL": "GRPC"}).protocol == "grpc"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({P + "PROTOCOL": "http/json"}, ["OTLP_PROTOCOL", "http/json"]),
        ({T + "PROTOCOL": "THRIFT"}, ["TRACES_PROTOCOL", "THRIFT"]),
        ({P + "ENDPOINT": "localhost"}, ["OTLP_ENDPOINT", "localhost"]),
        ({P + "ENDPOINT": "ftp://h"}, ["ftp://h"]),
        ({P + "ENDPOINT": "http://a:b@h"}, ["OTLP_ENDPOINT", "'http://h'", "password"]),
        ({P + "ENDPOINT": "http://"}, ["http://"]),
        ({P + "ENDPOINT": "http://h:port"}, ["http://h:port"]),
        ({P + "ENDPOINT": "http://h:99999"}, ["http://h:99999"]),
        ({P + "ENDPOINT": "http://h:0"}, ["http://h:0"]),
        ({P + "ENDPOINT": "http://[::1"}, ["http://[::1"]),
        ({P + "ENDPOINT": "http://h/a b"}, ["a b"]),
        ({P + "ENDPOINT": "http://h/é"}, ["é"]),
        ({P + "PROTOCOL": "grpc", P + "ENDPOINT": "ftp://h:1"}, ["ftp://h:1"]),
        ({P + "PROTOCOL": "grpc", P + "ENDPOINT": "nothing"}, ["nothing"]),
        ({P + "PROTOCOL": "grpc", P + "ENDPOINT": "a b:1"}, ["a b:1"]),
        ({P + "PROTOCOL": "grpc", P + "ENDPOINT": "http://h:x"}, ["http://h:x"]),
        (
            {P + "PROTOCOL": "grpc", P + "ENDPOINT": "h:1", P + "INSECURE": "maybe"},
            ["INSECURE", "maybe"],
        ),
        ({P + "HEADERS": "a=1,novalue"}, ["OTLP_HEADERS", "item 2"]),
        ({P + "HEADERS": "bad name=1"}, ["bad name"]),
        ({P + "HEADERS": "a=b%0d%0ac: d"}, ["'a'"]),
        ({P + "HEADERS": "token-bin=1", P + "PROTOCOL": "grpc"}, ["token-bin"]),
        ({P + "HEADERS": "grpc-timeout=1", P + "PROTOCOL": "grpc"}, ["grpc-timeout"]),
        ({P + "COMPRESSION": "zstd"}, ["OTLP_COMPRESSION", "zstd"]),
        ({P + "ENDPOINT": "http://h:99999/x"}, ["OTLP_ENDPOINT", "h:99999", "port"]),
        ({P + "TIMEOUT": "10s"}, ["OTLP_TIMEOUT", "10s"]),
        ({P + "TIMEOUT": "-1"}, ["-1"]),
        ({T + "CLIENT_KEY": "k"}, ["TRACES_CLIENT_KEY"]),
        ({P + "CLIENT_CERTIFICATE": "c"}, ["OTLP_CLIENT_CERTIFICATE"]),
    ],
)
def test_bad_values_are_named_with_a_hint(environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        config(environ)
    assert raised.value.hint
    for word in words:
        assert word in str(raised.value)


def test_a_secret_is_not_in_the_message() -> None:
    with pytest.raises(UsageError) as raised:
        config(headers="x=sesame%01")
    assert "sesame" not in str(raised.value) + raised.value.hint


def test_other_exporters_are_told_of() -> None:
    endpoint = {P + "ENDPOINT": "http://h"}
    for value, exported, unknown in (
        ("", True, []),
        ("otlp", True, []),
        ("none", False, []),
        ("zipkin", False, ["zipkin"]),
        ("otlp, console", True, ["console"]),
    ):
        environ = {**endpoint, "OTEL_TRACES_EXPORTER": value}
        assert ExportConfig.wanted(environ) is exported
        assert ExportConfig.wanted(environ, "metrics")
        said = unknown_exporters(environ)
        assert len(said) == len(unknown) and all(name in said[0] for name in unknown)
        assert all("OTEL_TRACES_EXPORTER" in text for text in said)


def test_user_agent_names_exporter_language_and_version() -> None:
    name, _, version = user_agent().partition("/")
    assert name == "wirespan-OTLP-Exporter-Python"
    assert version
