"""HTTP/1 spans, attribute by attribute, against the OpenTelemetry HTTP conventions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.tracer.records import Processes, Routes, attributes_of, batch_of, record, shapes_of
from tracer.flow import End, Family, Method, Role, Slot
from tracer.flows import Reassembler
from tracer.protocols.base import OPT_IN, Settings
from tracer.protocols.http1_target import MAX_BYTES, REDACTED, mask, parse
from tracer.spans import (
    KIND_CLIENT,
    KIND_SERVER,
    STATUS_ERROR,
    STATUS_UNSET,
    AttributeValue,
    Shape,
    SpanBatch,
)

ABSENT = object()
LOCAL = frozenset({"network.local.address", "network.local.port"})


def feed(opt_in: frozenset[str] = OPT_IN, query: Any = "mask", **values: Any) -> SpanBatch:
    tracer = Reassembler(Processes(), Routes(), Settings(query=query, opt_in=opt_in))
    return tracer.feed(record(**values), 0)


def served(**values: Any) -> dict[str, Any]:
    return attributes_of(feed(role=Role.SERVER, **values))


def called(**values: Any) -> dict[str, Any]:
    values = {"local": "127.0.0.1:40000", "remote": "127.0.0.1:8080", **values}
    if values.get("family") == Family.UNIX:
        del values["local"], values["remote"]
    return attributes_of(feed(role=Role.CLIENT, **values))


def shape(**values: Any) -> Shape:
    return shapes_of(feed(**values))[0]


def test_a_served_exchange_whole() -> None:
    batch = feed(
        method=Method.POST, target="/users/12/orders?limit=5", host="shop.example",
        user_agent="curl/8.5", status=201, request_body_bytes=10, response_body_bytes=20,
        local="10.0.0.1:8080", remote="10.0.0.9:51000",
    )  # fmt: skip
    one = shapes_of(batch)[0]
    assert (one.name, one.kind) == ("POST /users/{id}/orders", KIND_SERVER)
    assert (one.status, one.status_message) == (STATUS_UNSET, "")
    assert one.resource.attributes == (("service.name", "app"), ("process.pid", 77))
    assert attributes_of(batch) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "url.path": "/users/12/orders",
        "url.query": "limit=REDACTED",
        "server.address": "shop.example",
        "server.port": 80,
        "client.address": "10.0.0.9",
        "client.port": 51000,
        "network.peer.address": "10.0.0.9",
        "network.peer.port": 51000,
        "network.transport": "tcp",
        "network.type": "ipv4",
        "network.protocol.version": "1.1",
        "user_agent.original": "curl/8.5",
        "http.response.status_code": 201,
        "http.request.body.size": 10,
        "http.response.body.size": 20,
        "thread.id": 78,
        "wirespan.time_to_first_byte_ns": 250_000,
        "wirespan.protocol": "http1",
    }


def test_a_called_exchange_whole() -> None:
    batch = feed(
        role=Role.CLIENT, target="/users/12?limit=5", host="api.example:8080", status=404,
        user_agent="httpx", version=10, local="10.0.0.9:51000", remote="10.0.0.1:8080",
    )  # fmt: skip
    one = shapes_of(batch)[0]
    assert (one.name, one.kind) == ("GET /users/{id}", KIND_CLIENT)
    assert (one.status, one.status_message) == (STATUS_ERROR, "")
    assert attributes_of(batch) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.full": "http://api.example:8080/users/12?limit=REDACTED",
        "url.template": "/users/{id}",
        "server.address": "api.example",
        "server.port": 8080,
        "network.peer.address": "10.0.0.1",
        "network.peer.port": 8080,
        "network.transport": "tcp",
        "network.type": "ipv4",
        "network.protocol.version": "1.0",
        "user_agent.original": "httpx",
        "http.response.status_code": 404,
        "error.type": "404",
        "http.request.body.size": 0,
        "http.response.body.size": 0,
        "thread.id": 78,
        "wirespan.time_to_first_byte_ns": 250_000,
        "wirespan.protocol": "http1",
    }


def test_what_the_conventions_only_require() -> None:
    nothing = frozenset[str]()
    batch = feed(nothing, role=Role.CLIENT, host="h", user_agent="x", remote="10.0.0.1:80")
    assert set(attributes_of(batch)) == {
        "http.request.method", "url.full", "server.address", "server.port",
        "network.peer.address", "network.peer.port", "network.protocol.version",
        "http.response.status_code", "wirespan.time_to_first_byte_ns", "wirespan.protocol",
    }  # fmt: skip
    assert "url.scheme" in attributes_of(feed(nothing, role=Role.SERVER))


METHODS = [
    ({"method": Method.DELETE}, "DELETE", ABSENT, "DELETE /"),
    ({"method": Method.QUERY}, "QUERY", ABSENT, "QUERY /"),
    ({"method": Method.OTHER, "method_text": "PURGE"}, "_OTHER", "PURGE", "HTTP /"),
    # Methods are case-sensitive: this is none that is known.
    ({"method": Method.OTHER, "method_text": "get"}, "_OTHER", "get", "HTTP /"),
    ({"method": 99}, "_OTHER", ABSENT, "HTTP /"),
]


@pytest.mark.parametrize(("values", "method", "original", "name"), METHODS)
def test_methods(values: dict[str, Any], method: str, original: Any, name: str) -> None:
    attributes = served(**values)
    assert attributes["http.request.method"] == method
    assert attributes.get("http.request.method_original", ABSENT) == original
    assert shape(**values).name == name


# Status and errors.

OUTCOMES = [
    # role, end, status: span status, error.type
    (Role.SERVER, End.RESPONSE, 200, STATUS_UNSET, ABSENT),
    (Role.SERVER, End.RESPONSE, 304, STATUS_UNSET, ABSENT),
    (Role.SERVER, End.RESPONSE, 404, STATUS_UNSET, ABSENT),
    (Role.SERVER, End.RESPONSE, 500, STATUS_ERROR, "500"),
    (Role.SERVER, End.EOF, 200, STATUS_UNSET, ABSENT),
    (Role.SERVER, End.UPGRADE, 101, STATUS_UNSET, ABSENT),
    (Role.CLIENT, End.RESPONSE, 302, STATUS_UNSET, ABSENT),
    (Role.CLIENT, End.RESPONSE, 400, STATUS_ERROR, "400"),
    (Role.CLIENT, End.EOF, 503, STATUS_ERROR, "503"),
    (Role.CLIENT, End.RESPONSE, 99, STATUS_ERROR, "99"),
    (Role.CLIENT, End.RESPONSE, 999, STATUS_ERROR, "999"),
    (Role.CLIENT, End.PEER, 0, STATUS_ERROR, "connection_closed"),
    (Role.SERVER, End.PEER, 0, STATUS_ERROR, "cancelled"),
    (Role.CLIENT, End.LOCAL, 200, STATUS_ERROR, "cancelled"),
    (Role.SERVER, End.LOCAL, 200, STATUS_ERROR, "connection_closed"),
    (Role.CLIENT, End.RESET, 0, STATUS_ERROR, "connection_reset"),
    (Role.SERVER, End.RESET, 200, STATUS_ERROR, "connection_reset"),
    (Role.CLIENT, End.TIMEOUT, 0, STATUS_ERROR, "timeout"),
    (Role.SERVER, End.TIMEOUT, 0, STATUS_ERROR, "timeout"),
    (Role.CLIENT, End.INVALID, 0, STATUS_ERROR, "invalid_response"),
    (Role.SERVER, End.GAP, 0, STATUS_UNSET, ABSENT),
    (Role.SERVER, End.GAP, 500, STATUS_ERROR, "500"),
]


@pytest.mark.parametrize(("role", "end", "code", "status", "error"), OUTCOMES)
def test_outcomes(role: Role, end: End, code: int, status: int, error: Any) -> None:
    values = {"role": role, "end": end, "status": code}
    attributes, made = attributes_of(feed(**values)), shape(**values)
    assert made.status == status
    assert attributes.get("error.type", ABSENT) == error
    assert attributes.get("http.response.status_code", 0) == code
    # A message only where the status code doesn't already say it.
    aborted = error is not ABSENT and not str(error).isdigit()
    assert bool(made.status_message) == aborted
    assert attributes.get("wirespan.incomplete") == ("gap" if end == End.GAP else None)
    assert ("http.response.body.size" in attributes) == bool(code)


# Who is who.

SERVERS: list[tuple[dict[str, Any], Any, Any]] = [
    ({"host": "a.example"}, "a.example", 80),
    ({"host": "a.example:8080"}, "a.example", 8080),
    ({"host": "a.example:"}, "a.example", 80),
    ({"host": "[2001:db8::1]:8080"}, "2001:db8::1", 8080),
    ({"host": "[2001:db8::1]"}, "2001:db8::1", 80),
    ({"host": "user:secret@a.example:81"}, "a.example", 81),
    ({"host": "a.example:99999"}, "a.example:99999", 80),
    # What is no host may be anything.
    ({"host": "a b:c:d"}, "127.0.0.1", 8080),
    ({"host": "h?t=SECRET"}, "127.0.0.1", 8080),
    ({"host": "h/SECRET"}, "127.0.0.1", 8080),
    ({"host": "u:SECR", "cut": [Slot.HOST]}, "127.0.0.1", 8080),
    ({"target": "http://u:SECRET?x@h/"}, "127.0.0.1", 8080),
    ({"target": "http://u:SECRET#x@h/", "host": "a.example"}, "127.0.0.1", 8080),
    ({"host": "a.exam", "cut": [Slot.HOST]}, "a.exam", ABSENT),
    ({"host": "a.example", "forwarded_proto": "https"}, "a.example", 443),
    # HTTP/1.0 needs no Host.
    ({}, "127.0.0.1", 8080),
    ({"target": "http://b.example:81/x", "host": "a.example"}, "b.example", 81),
    ({"target": "https://b.example/x"}, "b.example", 443),
    ({"target": "ftp://b.example/x"}, "b.example", ABSENT),
    ({"target": "h.example:443", "method": Method.CONNECT}, "h.example", 443),
    ({"family": Family.UNIX, "unix_path": "/run/a.sock"}, "/run/a.sock", ABSENT),
    ({"family": Family.UNIX, "unix_path": b"\0abstract\0"}, "@abstract", ABSENT),
    ({"family": Family.UNIX, "unix_path": "/run/a.sock", "host": "a.b"}, "a.b", ABSENT),
    ({"family": Family.UNIX, "host": "a.b:8"}, "a.b", 8),
    ({"family": Family.UNIX}, ABSENT, ABSENT),
    ({"family": 0}, ABSENT, ABSENT),
]


@pytest.mark.parametrize(("values", "address", "port"), SERVERS)
def test_server_address_and_port(values: dict[str, Any], address: Any, port: Any) -> None:
    attributes = served(**values)
    assert attributes.get("server.address", ABSENT) == address
    assert attributes.get("server.port", ABSENT) == port
    if "forwarded_proto" not in values and values.get("family", 2):
        # The same for the client, as far as it depends on what was sent.
        attributes = called(**values)
        assert attributes.get("server.address", ABSENT) == address
        assert attributes.get("server.port", ABSENT) == port


@pytest.mark.parametrize(
    ("header", "address", "port"),
    [
        ("203.0.113.7", "203.0.113.7", ABSENT),
        ("203.0.113.7, 10.0.0.2", "203.0.113.7", ABSENT),
        (" 203.0.113.7:4711 ,10.0.0.2", "203.0.113.7", 4711),
        ("2001:db8::7", "2001:db8::7", ABSENT),
        ("[2001:db8::7]:4711", "2001:db8::7", 4711),
        ("unknown, 10.0.0.2", "127.0.0.1", 40000),
        ("sesame, 10.0.0.2", "127.0.0.1", 40000),
        ("me:sesame@203.0.113.7", "127.0.0.1", 40000),
        ('"[::1]:sesame"', "127.0.0.1", 40000),
        ("", "127.0.0.1", 40000),
    ],
)
def test_clients_behind_proxies(header: str, address: str, port: Any) -> None:
    attributes = served(forwarded_for=header)
    assert attributes["client.address"] == address
    assert attributes.get("client.port", ABSENT) == port
    assert attributes["network.peer.address"] == "127.0.0.1"
    assert attributes["network.peer.port"] == 40000


def test_forwarded_headers_mean_nothing_on_the_client_s_side() -> None:
    attributes = called(forwarded_for="203.0.113.7", forwarded_proto="https", host="h")
    assert "client.address" not in attributes
    assert attributes["url.full"] == "http://h/"
    tracer = Reassembler(Processes(), Routes())
    rows = (record(role=Role.CLIENT, forwarded_for=f"203.0.113.{i}") for i in range(9))
    assert len(tracer.feed(batch_of(*rows), 0).shapes) == 1


@pytest.mark.parametrize(
    ("values", "scheme"),
    [
        ({}, "http"),
        ({"forwarded_proto": "HTTPS, http"}, "https"),
        ({"forwarded_proto": "!?"}, "http"),
        ({"forwarded_proto": "http", "cut": [Slot.FORWARDED_PROTO]}, "http"),
        ({"target": "HTTPS://h/x"}, "https"),
        ({"target": "https://h/x", "forwarded_proto": "http"}, "http"),
    ],
)
def test_schemes(values: dict[str, Any], scheme: str) -> None:
    assert served(**values)["url.scheme"] == scheme


@pytest.mark.parametrize(
    ("family", "address", "shown", "kind"),
    [
        (Family.INET, "10.1.2.3:1", "10.1.2.3", "ipv4"),
        (Family.INET6, "[2001:db8::1]:1", "2001:db8::1", "ipv6"),
        (Family.INET6, "[::1]:1", "::1", "ipv6"),
        (Family.INET6, "[::ffff:10.1.2.3]:1", "10.1.2.3", "ipv4"),
    ],
)
def test_addresses(family: Family, address: str, shown: str, kind: str) -> None:
    attributes = attributes_of(feed(OPT_IN | LOCAL, family=family, remote=address, local=address))
    assert attributes["network.peer.address"] == attributes["client.address"] == shown
    assert (attributes["network.type"], attributes["network.transport"]) == (kind, "tcp")
    assert (attributes["network.local.address"], attributes["network.local.port"]) == (shown, 1)
    host = f"[{shown}]" if ":" in shown else shown
    assert called(family=family, remote=address)["url.full"] == f"http://{host}:1/"


def test_a_default_port_is_not_in_the_url() -> None:
    assert called(remote="10.0.0.1:80")["url.full"] == "http://10.0.0.1/"


def test_unix_sockets() -> None:
    unix = {"family": Family.UNIX, "unix_path": "/run/a.sock"}
    server = attributes_of(feed(OPT_IN | LOCAL, **unix))
    assert server["network.transport"] == "unix"
    assert server["network.local.address"] == "/run/a.sock"
    assert not {"network.peer.address", "client.address", "network.type"} & set(server)
    assert not any(key.endswith(".port") for key in server)
    client = called(**unix, target="/info", host="docker")
    assert client["network.peer.address"] == "/run/a.sock"
    assert client["url.full"] == "http://docker/info"
    assert not any(key.endswith(".port") for key in client)
    assert called(**unix, target="/info")["url.full"] == "http+unix://%2Frun%2Fa.sock/info"


@pytest.mark.parametrize(("version", "shown"), [(9, "0.9"), (10, "1.0"), (11, "1.1"), (0, ABSENT)])
def test_versions(version: int, shown: Any) -> None:
    assert served(version=version).get("network.protocol.version", ABSENT) == shown


# Targets.

TARGETS: list[tuple[dict[str, Any], Any, Any, Any, str]] = [
    # record, url.path, url.query, url.full, name
    ({"target": "/"}, "/", ABSENT, "http://h/", "GET /"),
    ({"target": "/a?"}, "/a", ABSENT, "http://h/a", "GET /a"),
    ({"target": "/a?x=1&y=&z"}, "/a", "x=REDACTED&y=&REDACTED",
     "http://h/a?x=REDACTED&y=&REDACTED", "GET /a"),
    ({"target": "//x/y"}, "//x/y", ABSENT, "http://h//x/y", "GET //x/y"),
    ({"target": "http://o:81/p/7?q=1"}, "/p/7", "q=REDACTED",
     "http://o:81/p/7?q=REDACTED", "GET /p/{id}"),
    ({"target": "http://o"}, "/", ABSENT, "http://o/", "GET /"),
    ({"target": "http://o?q=1"}, "/", "q=REDACTED", "http://o/?q=REDACTED", "GET /"),
    ({"target": "http://me:pw@o/p"}, "/p", ABSENT, "http://REDACTED:REDACTED@o/p", "GET /p"),
    ({"target": "http://token@o/p"}, "/p", ABSENT, "http://REDACTED:REDACTED@o/p", "GET /p"),
    ({"target": "http://a@b:pw@o/p"}, "/p", ABSENT, "http://REDACTED:REDACTED@o/p", "GET /p"),
    ({"target": "o:443", "method": Method.CONNECT}, "", ABSENT, "http://o:443", "CONNECT"),
    ({"target": "u:p@o:443", "method": Method.CONNECT}, "", ABSENT,
     "http://REDACTED:REDACTED@o:443", "CONNECT"),
    ({"target": "*", "method": Method.OPTIONS}, "*", ABSENT, "http://h", "OPTIONS *"),
    # What is no target at all must not become a name.
    ({"target": "nonsense-123"}, "nonsense-123", ABSENT, ABSENT, "GET"),
    ({"target": ""}, ABSENT, ABSENT, "http://h", "GET"),
    # Bytes: UTF-8 stays, what is not UTF-8 becomes what it should have been.
    ({"target": "/caf\u00e9"}, "/caf\u00e9", ABSENT, "http://h/caf\u00e9", "GET /caf\u00e9"),
    ({"target": b"/\xff\xfe?\xff=1"}, "/%FF%FE", "%FF=REDACTED",
     "http://h/%FF%FE?%FF=REDACTED", "GET /%FF%FE"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "path", "query", "full", "name"), TARGETS)
def test_targets(values: dict[str, Any], path: Any, query: Any, full: Any, name: str) -> None:
    server = served(host="h", **values)
    assert server.get("url.path", ABSENT) == path
    assert server.get("url.query", ABSENT) == query
    assert called(host="h", **values).get("url.full", ABSENT) == full
    assert shape(host="h", **values).name == name


def test_a_query_may_be_kept_or_dropped() -> None:
    values = {"target": "/a?x=1&y", "host": "h"}
    raw, dropped = served(query="raw", **values), served(query="drop", **values)
    assert raw["url.query"] == "x=1&y"
    assert "url.query" not in dropped and dropped["url.path"] == "/a"
    assert called(query="raw", **values)["url.full"] == "http://h/a?x=1&y"
    assert called(query="drop", **values)["url.full"] == "http://h/a"
    # Credentials go in any case.
    raw = called(query="raw", target="http://me:pw@o/?x=1")
    assert raw["url.full"] == "http://REDACTED:REDACTED@o/?x=1"


CUTS: list[tuple[dict[str, Any], list[Slot], str, str]] = [
    # record, cut slots: wirespan.truncated of the server's span, of the client's
    ({"target": "/long/pa"}, [Slot.TARGET], "url.path", "url.full"),
    ({"target": "/long?a=1&b"}, [Slot.TARGET], "url.query", "url.full"),
    ({"target": "http://o/p"}, [Slot.TARGET], "url.path", "url.full"),
    ({"user_agent": "Mozil"}, [Slot.USER_AGENT], "user_agent.original", "user_agent.original"),
    ({"host": "a.exam"}, [Slot.HOST], "server.address", "server.address"),
    ({"method": Method.OTHER, "method_text": "VERYLO"}, [Slot.METHOD],
     "http.request.method_original", "http.request.method_original"),
    ({"forwarded_for": "10.0.0.1"}, [Slot.FORWARDED_FOR], "client.address", ""),
    # No address yet.
    ({"forwarded_for": "2001:db8:"}, [Slot.FORWARDED_FOR], "", ""),
    # The first address is all there.
    ({"forwarded_for": "10.0.0.1, 10."}, [Slot.FORWARDED_FOR], "", ""),
    ({"family": Family.UNIX, "unix_path": "/ru"}, [Slot.UNIX_PATH], "server.address",
     "server.address,network.peer.address"),
    ({"target": "/pa", "host": "h", "user_agent": "M"},
     [Slot.TARGET, Slot.HOST, Slot.USER_AGENT], "url.path,server.address,user_agent.original",
     "url.full,server.address,user_agent.original"),
    # A header that no attribute shows.
    ({"host": "h"}, [Slot.TRACEPARENT], "", ""),
]  # fmt: skip


@pytest.mark.parametrize(("values", "cut", "server", "client"), CUTS)
def test_what_was_cut_is_named(
    values: dict[str, Any], cut: list[Slot], server: str, client: str
) -> None:
    assert served(cut=cut, **values).get("wirespan.truncated", "") == server
    assert called(cut=cut, **values).get("wirespan.truncated", "") == client


@pytest.mark.parametrize(
    ("target", "name", "path"),
    [
        # The last segment may be half of `123` or of `search`: nobody knows.
        ("/users/12/or", "GET /users/{id}/*", "/users/12/or"),
        ("/us", "GET /*", "/us"),
        ("/users/12?tok", "GET /users/{id}", "/users/12"),
        (b"/caf\xc3", "GET /*", "/caf"),
    ],
)
def test_a_cut_target_keeps_what_there_is(target: Any, name: str, path: str) -> None:
    values = {"target": target, "cut": [Slot.TARGET]}
    assert shape(**values).name == name
    assert served(**values)["url.path"] == path


@pytest.mark.parametrize("target", ["http://user:sec", "http://user:secret", "http://user"])
def test_credentials_cut_before_their_at_sign_are_not_shown(target: str) -> None:
    for attributes in (
        served(target=target, host="h", cut=[Slot.TARGET]),
        called(target=target, host="h", cut=[Slot.TARGET]),
    ):
        assert "user" not in repr(attributes) and attributes["server.address"] == "h"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/x/https://u:SECRET@evil/y", "/x/https://REDACTED:REDACTED@evil/y"),
        ("//u:SECRET@h/p?q=1", "//REDACTED:REDACTED@h/p"),
        ("http:/u:SECRET@h/", "http:/REDACTED:REDACTED@h/"),
        ("jdbc:mysql://u:SECRET@h/db", "/REDACTED:REDACTED@h/db"),
        ("/a/http://h:80/b@c/@d", "/a/http://h:80/b@c/@d"),
        ("/a/https%3A%2F%2fu%3ASECRET%40h/b", "/a/https%3A%2F%2fREDACTED%3AREDACTED%40h/b"),
        ("/mail/joe%40x.example", "/mail/joe%40x.example"),
        ("http:u:SECRET@h/a", "REDACTED@h/a"),
        ("SECRET@h", "REDACTED@h"),
        ("http://u:p/SECRET@h/a", "/a"),
    ],
)
def test_credentials_of_a_url_in_a_path_are_not_shown(target: str, path: str) -> None:
    for attributes in (served(target=target), called(target=target, host="h")):
        assert "SECRET" not in str(attributes)
    assert served(target=target)["url.path"] == path or target.startswith("jdbc")


def test_credentials_of_a_url_in_a_user_agent_are_not_shown() -> None:
    agent = "curl (http://u:SECRET@h/?SECRET; +https://x.example/y)"
    assert served(user_agent=agent)["user_agent.original"] == (
        "curl (http://REDACTED:REDACTED@h/?REDACTED; +https://x.example/y)"
    )


def test_credentials_of_a_url_in_a_path_that_is_cut_are_not_shown() -> None:
    cut = served(target="/x/https://u:SECR", cut=[Slot.TARGET])
    assert cut["url.path"] == "/x/https://REDACTED"


def test_connect_cut_before_its_at_sign_shows_no_credentials() -> None:
    values = {"target": "user:sec", "method": Method.CONNECT, "cut": [Slot.TARGET], "host": "h"}
    for attributes in (served(**values), called(**values)):
        assert "sec" not in repr(attributes)


SECRET = "s3cr3t"


@given(
    st.lists(st.sampled_from([SECRET, "=", "&", "?", ";", "%", "\n", "a", "é"]), max_size=12).map(
        "".join
    )
)
@example(f"={SECRET}")
@example(f"a=={SECRET}=&{SECRET}")
def test_no_value_gets_through_a_mask(query: str) -> None:
    names = {part.partition("=")[0] for part in query.split("&") if "=" in part}
    masked = mask(query)
    values = [part.partition("=")[2] for part in masked.split("&") if "=" in part]
    assert all(value in ("", "REDACTED") for value in values)
    if not any(SECRET in name for name in names):
        assert SECRET not in masked
    assert masked.count("&") == query.count("&")


@pytest.mark.parametrize(
    ("query", "masked"),
    [
        ("c2VjcmV0cw==", "REDACTED"),
        ("a=1&dXNlckBleGFtcGxlLmNvbTox=&b", "a=REDACTED&REDACTED&REDACTED"),
        ("q=&page=2", "q=&page=REDACTED"),
    ],
)
def test_padding_is_no_empty_value(query: str, masked: str) -> None:
    assert mask(query) == masked


@pytest.mark.parametrize("target", ["/a#token=s3cr3t", "/a#x?b=s3cr3t", "http://h/a#s3cr3t"])
def test_a_fragment_is_not_shown(target: str) -> None:
    attributes = called(target=target, host="h")
    assert attributes["url.full"] == "http://h/a"
    assert served(target=target, host="h")["url.path"] == "/a"


@given(st.binary(max_size=432), st.booleans(), st.booleans(), st.sampled_from(["mask", "raw"]))
@example(b"/" + b"\xff" * 431, False, False, "mask")
@example(b"/?" + b"&a=1" * 107, False, False, "mask")
@example(b"/" + b"\xff" * 200 + b"?" + b"a=1&" * 50, False, True, "raw")
def test_any_target_is_taken(raw: bytes, connect: bool, cut: bool, query: str) -> None:
    target = parse(raw, connect=connect, cut=cut, query=query, routes=Routes())
    path, text = target.path.decode(), target.query.decode()
    assert len(target.path) + len(target.query) < MAX_BYTES + 1
    # What did not fit is named like what was cut in the kernel.
    if not target.kind.cut and target.kind.form == "origin" and raw.isascii() and b"#" not in raw:
        whole = raw.decode().partition("?")
        masked = REDACTED in path and ("@" in whole[0] or "%40" in whole[0])
        assert path == whole[0] or masked
        assert text == (whole[2] if query == "raw" else mask(whole[2]))


def test_a_query_that_masking_makes_too_long_is_cut() -> None:
    attributes = served(target="/?" + "a=1&" * 100)
    assert len(attributes["url.query"]) == MAX_BYTES - 2
    assert attributes["wirespan.truncated"] == "url.query"


# What tells shapes apart.

DIFFERENCES: list[dict[str, AttributeValue]] = [
    {"tgid": 1}, {"task_start_ns": 1}, {"role": 1}, {"method": 3}, {"version": 10},
    {"status": 201}, {"end": 1}, {"local_port": 1}, {"local_addr": 1}, {"remote_addr": 1},
    {"family": 10}, {"host": "g"}, {"host": ""}, {"user_agent": "v"}, {"forwarded_for": "f"},
    {"forwarded_proto": "q"}, {"method_text": "M"}, {"unix_path": "/q"}, {"truncated": 1},
    {"truncated": 2}, {"truncated": 4}, {"target": "/o"}, {"host": "hu", "user_agent": ""},
]  # fmt: skip


def test_every_difference_makes_a_shape_of_its_own() -> None:
    base = {"host": "h", "user_agent": "u"}
    rows = batch_of(record(**base), *(record(**{**base, **values}) for values in DIFFERENCES))
    batch = Reassembler(Processes(), Routes()).feed(rows, 0)
    assert batch.shape.tolist() == list(range(1 + len(DIFFERENCES)))


SAME = [
    {"remote_port": 1}, {"conn_id": 1}, {"request_seq": 9}, {"start_ns": 1}, {"netns": 1},
    {"request_body_bytes": 5}, {"response_body_bytes": 5}, {"request_tid": 9}, {"comm": b"x"},
    {"flags": 6}, {"truncated": 8}, {"target": "/?a=1"}, {"first_byte_ns": 0}, {"cgroup_id": 1},
]  # fmt: skip


def test_what_differs_from_span_to_span_makes_no_shapes() -> None:
    rows = batch_of(record(), *(record(**values) for values in SAME))
    assert len(Reassembler(Processes(), Routes()).feed(rows, 0).shapes) == 1
