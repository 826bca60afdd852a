"""HTTP/2 and gRPC spans, attribute by attribute, from header blocks as clients encode them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tracer.http2_wire import CALL, DONE, GET, OK, Pairs, Rows, Wire, feed, one
from tests.tracer.records import attributes_of, shapes_of
from tracer.flow import End, Family, Flag, Role
from tracer.protocols import http2_batch
from tracer.spans import KIND_CLIENT, KIND_SERVER, STATUS_ERROR, STATUS_UNSET

ABSENT = object()


@pytest.fixture(autouse=True, params=[1 << 30, 1], ids=["walked", "in columns"])
def min_records(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have few records read in either way."""
    monkeypatch.setattr(http2_batch, "MIN_RECORDS", request.param)


# HTTP.


def test_a_served_exchange_whole() -> None:
    wire = Wire()
    attributes, shape = one([
        *wire.ask(1, [*GET, ("traceparent", "00-1-2-01")], Flag.END_STREAM),
        *wire.answer(1, [(":status", "201"), ("server", "x")]),
        *wire.over(1, response_body_bytes=20),
    ])  # fmt: skip
    assert (shape.name, shape.kind, shape.status) == ("GET /users/{id}", KIND_SERVER, STATUS_UNSET)
    assert attributes == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/users/12",
        "url.query": "limit=REDACTED",
        "server.address": "shop.example",
        "server.port": 8080,
        "client.address": "10.0.0.9",
        "client.port": 51000,
        "network.peer.address": "10.0.0.9",
        "network.peer.port": 51000,
        "network.transport": "tcp",
        "network.type": "ipv4",
        "network.protocol.version": "2",
        "user_agent.original": "curl/8.5",
        "http.response.status_code": 201,
        "http.request.body.size": 0,
        "http.response.body.size": 20,
        "thread.id": 78,
        "wirespan.time_to_first_byte_ns": 250_000,
        "wirespan.protocol": "http2",
    }


def test_a_called_exchange_whole() -> None:
    wire = Wire(Role.CLIENT)
    attributes, shape = one([
        *wire.ask(1, GET), *wire.answer(1, [(":status", "404")]), *wire.over(1)
    ])  # fmt: skip
    assert (shape.name, shape.kind, shape.status) == ("GET /users/{id}", KIND_CLIENT, STATUS_ERROR)
    assert attributes["url.full"] == "http://shop.example:8080/users/12?limit=REDACTED"
    assert attributes["error.type"] == "404" and attributes["url.template"] == "/users/{id}"
    assert attributes["network.protocol.version"] == "2"
    assert attributes["network.peer.port"] == 50051


def test_interim_responses_and_trailers_are_not_the_response() -> None:
    wire = Wire()
    attributes, _ = one([
        *wire.ask(1, GET), *wire.answer(1, [(":status", "100")]),
        *wire.answer(1, [(":status", "103"), ("link", "x")]), *wire.answer(1, [(":status", "200")]),
        *wire.answer(1, [("x-checksum", "1")], Flag.END_STREAM), *wire.over(1),
    ])  # fmt: skip
    assert attributes["http.response.status_code"] == 200
    assert "wirespan.incomplete" not in attributes


REQUESTS: list[tuple[Pairs, str, dict[str, Any]]] = [
    ([(":method", "PURGE"), (":path", "/a"), (":scheme", "https"), (":authority", "h")],
     "HTTP /a", {"http.request.method": "_OTHER", "http.request.method_original": "PURGE",
                 "url.scheme": "https", "server.port": 443}),
    ([(":method", "CONNECT"), (":authority", "h:443")], "CONNECT",
     {"server.address": "h", "server.port": 443, "url.path": ""}),
    ([(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/ws"),
      (":authority", "h")], "CONNECT /ws", {"url.path": "/ws"}),
    ([(":method", "OPTIONS"), (":path", "*"), (":scheme", "http"), ("host", "h:1")], "OPTIONS *",
     {"server.port": 1}),
    ([(":method", "GET"), (":path", "/"), ("user-agent", "u" * 600)], "GET /",
     {"user_agent.original": "u" * 512, "wirespan.truncated": "user_agent.original"}),
    ([(":method", "POST"), (":path", "/a"), ("content-type", "application/grpc-web+proto")],
     "POST /a", {"http.request.method": "POST"}),
    ([(":method", "GET"), (":path", "/a"), (":authority", "h"), ("x-forwarded-for", "1.2.3.4")],
     "GET /a", {"client.address": "1.2.3.4"}),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "name", "expected"), REQUESTS)
def test_requests(headers: Pairs, name: str, expected: dict[str, Any]) -> None:
    wire = Wire()
    attributes, shape = one([
        *wire.ask(1, headers), *wire.answer(1, [(":status", "200")]), *wire.over(1)
    ])  # fmt: skip
    assert shape.name == name
    assert {key: attributes.get(key) for key in expected} == expected


RESETS = [
    # role, end, code, by the server, answered: error.type
    (Role.CLIENT, End.RESET, 8, False, False, "cancelled"),
    (Role.SERVER, End.RESET, 8, False, True, "cancelled"),
    (Role.CLIENT, End.RESET, 8, True, True, "CANCEL"),
    (Role.CLIENT, End.RESET, 7, True, False, "REFUSED_STREAM"),
    (Role.SERVER, End.RESET, 99, True, False, "99"),
    # RFC 9113 section 8.1: the rest of the request isn't wanted.
    (Role.CLIENT, End.RESET, 0, True, True, ABSENT),
    (Role.CLIENT, End.RESET, 0, True, False, "NO_ERROR"),
    (Role.CLIENT, End.RESET, 0, False, False, "connection_reset"),
    (Role.CLIENT, End.PEER, 0, False, False, "connection_closed"),
]


@pytest.mark.parametrize(("role", "end", "code", "by_server", "answered", "error"), RESETS)
def test_resets(
    role: Role, end: End, code: int, by_server: bool, answered: bool, error: Any
) -> None:
    wire = Wire(role)
    rows = wire.ask(1, GET)
    if answered:
        rows += wire.answer(1, [(":status", "200")])
    first_byte = {} if answered else {"first_byte_ns": 0}
    flags = Flag.RESPONSE if by_server else 0
    attributes, shape = one(rows + wire.over(1, end=end, code=code, flags=flags, **first_byte))
    assert attributes.get("error.type", ABSENT) == error
    assert (shape.status == STATUS_ERROR) == (error is not ABSENT)
    assert ("http.response.body.size" in attributes) == answered
    assert "wirespan.incomplete" not in attributes


# gRPC.


def test_a_served_call_whole() -> None:
    wire = Wire()
    attributes, shape = one([
        *wire.ask(1, CALL), *wire.answer(1, OK), *wire.answer(1, DONE, Flag.END_STREAM),
        *wire.over(1, request_messages=2, response_messages=3, request_body_bytes=10,
                   response_body_bytes=20),
    ])  # fmt: skip
    assert (shape.name, shape.kind) == ("shop.v1.Orders/Place", KIND_SERVER)
    assert (shape.status, shape.status_message) == (STATUS_UNSET, "")
    assert attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "shop.v1.Orders/Place",
        "rpc.response.status_code": "OK",
        "server.address": "shop.example",
        "server.port": 50051,
        "client.address": "10.0.0.9",
        "client.port": 51000,
        "network.peer.address": "10.0.0.9",
        "network.peer.port": 51000,
        "network.transport": "tcp",
        "network.type": "ipv4",
        "network.protocol.name": "http",
        "network.protocol.version": "2",
        "wirespan.rpc.request.messages": 2,
        "wirespan.rpc.response.messages": 3,
        "wirespan.rpc.request.size": 10,
        "wirespan.rpc.response.size": 20,
        "thread.id": 78,
        "wirespan.time_to_first_byte_ns": 250_000,
        "wirespan.protocol": "http2",
    }


STATUSES = [
    # grpc-status: name, error at the client, at the server
    ("1", "CANCELLED", True, False),
    ("2", "UNKNOWN", True, True),
    ("3", "INVALID_ARGUMENT", True, False),
    ("4", "DEADLINE_EXCEEDED", True, True),
    ("5", "NOT_FOUND", True, False),
    ("8", "RESOURCE_EXHAUSTED", True, False),
    ("12", "UNIMPLEMENTED", True, True),
    ("13", "INTERNAL", True, True),
    ("14", "UNAVAILABLE", True, True),
    ("15", "DATA_LOSS", True, True),
    ("16", "UNAUTHENTICATED", True, False),
    ("77", "77", True, True),
]


@pytest.mark.parametrize(("number", "name", "client", "server"), STATUSES)
@pytest.mark.parametrize("only", [False, True])
def test_statuses(number: str, name: str, client: bool, server: bool, only: bool) -> None:
    for role, failed in ((Role.CLIENT, client), (Role.SERVER, server)):
        wire = Wire(role)
        trailers = [("grpc-status", number), ("grpc-message", "no %C3%A9 %zz 100%")]
        rows = wire.ask(1, CALL)
        if only:
            # "Trailers-Only": all in one block.
            rows += wire.answer(1, [*OK, *trailers], Flag.END_STREAM)
        else:
            rows += wire.answer(1, OK) + wire.answer(1, trailers, Flag.END_STREAM)
        attributes, shape = one(rows + wire.over(1))
        assert attributes["rpc.response.status_code"] == name
        assert attributes.get("error.type") == (name if failed else None)
        assert shape.status == (STATUS_ERROR if failed else STATUS_UNSET)
        assert shape.status_message == ("no é %zz 100%" if failed else "")
        if role == Role.SERVER and name == "UNIMPLEMENTED":
            assert (shape.name, attributes["rpc.method"]) == ("grpc", "_OTHER")
            assert attributes["rpc.method_original"] == "shop.v1.Orders/Place"
        else:
            assert shape.name == attributes["rpc.method"] == "shop.v1.Orders/Place"


@pytest.mark.parametrize("role", [Role.CLIENT, Role.SERVER])
@pytest.mark.parametrize(
    "path",
    [
        "/shop.v1.Orders/Place?token=XYZZY",
        "/shop?token=XYZZY",
        "http://ann:XYZZY@shop.v1/Orders?token=XYZZY",
    ],
)
def test_a_call_shows_neither_query_nor_credentials(role: Role, path: str) -> None:
    wire = Wire(role)
    ask = [(name, path if name == ":path" else value) for name, value in CALL]
    trailers = [("grpc-status", "12" if role == Role.SERVER else "0")]
    rows = wire.ask(1, ask) + wire.answer(1, [*OK, *trailers], Flag.END_STREAM)
    attributes, shape = one(rows + wire.over(1))
    assert "XYZZY" not in repr(attributes) + shape.name
    if path.startswith("/shop.v1.Orders/Place") and role == Role.CLIENT:
        assert shape.name == attributes["rpc.method"] == "shop.v1.Orders/Place"


ENDS = [
    # end, code, by the server, HTTP status: rpc.response.status_code, error.type
    (End.RESET, 8, False, "", "CANCELLED", "CANCELLED"),
    (End.RESET, 8, False, "200", "CANCELLED", "CANCELLED"),
    (End.RESET, 7, True, "", "UNAVAILABLE", "UNAVAILABLE"),
    (End.RESET, 11, True, "", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"),
    (End.RESET, 2, True, "200", "INTERNAL", "INTERNAL"),
    (End.RESET, 0, False, "", ABSENT, "connection_reset"),
    (End.PEER, 0, False, "200", ABSENT, "connection_closed"),
    (End.TIMEOUT, 0, False, "", ABSENT, "timeout"),
    (End.RESPONSE, 0, False, "503", "UNAVAILABLE", "UNAVAILABLE"),
    (End.RESPONSE, 0, False, "404", "UNIMPLEMENTED", "UNIMPLEMENTED"),
    (End.RESPONSE, 0, False, "200", "UNKNOWN", "UNKNOWN"),
]


@pytest.mark.parametrize(("end", "code", "by_server", "http", "status", "error"), ENDS)
def test_calls_without_a_status(
    end: End, code: int, by_server: bool, http: str, status: Any, error: str
) -> None:
    wire = Wire(Role.CLIENT)
    rows = wire.ask(1, CALL)
    if http:
        rows += wire.answer(1, [(":status", http)], Flag.END_STREAM)
    flags = Flag.RESPONSE if by_server else 0
    attributes, shape = one(rows + wire.over(1, end=end, code=code, flags=flags))
    assert attributes.get("rpc.response.status_code", ABSENT) == status
    assert (attributes["error.type"], shape.status) == (error, STATUS_ERROR)
    assert shape.status_message


def test_lost_trailers_are_no_error() -> None:
    wire = Wire()
    attributes, shape = one(wire.ask(1, CALL) + wire.answer(1, OK) + wire.over(1))
    assert (shape.status, attributes["wirespan.incomplete"]) == (STATUS_UNSET, "gap")
    assert not {"rpc.response.status_code", "error.type"} & set(attributes)


def test_a_call_cancelled_by_the_client_is_no_error_of_the_server() -> None:
    wire = Wire()
    attributes, shape = one(wire.ask(1, CALL) + wire.over(1, end=End.RESET, code=8))
    assert attributes["rpc.response.status_code"] == "CANCELLED"
    assert shape.status == STATUS_UNSET and "error.type" not in attributes


SECOND = 1_000_000_000
CANCELS = [
    # grpc-timeout, after (s), end, code, by the server: rpc.response.status_code
    ("2S", 2.0, End.RESET, 8, False, "DEADLINE_EXCEEDED"),
    ("1990m", 1.98, End.RESET, 8, False, "DEADLINE_EXCEEDED"),  # rounded up by the client
    ("100m", 0.09, End.RESET, 8, False, "DEADLINE_EXCEEDED"),
    ("100m", 0.085, End.RESET, 8, False, "CANCELLED"),
    ("20m", 0.0175, End.RESET, 8, False, "CANCELLED"),
    ("200000u", 3.0, End.RESET, 8, False, "DEADLINE_EXCEEDED"),
    ("2S", 1.5, End.RESET, 8, False, "CANCELLED"),
    ("1H", 2.0, End.RESET, 8, False, "CANCELLED"),
    ("2S", 2.0, End.RESET, 8, True, "DEADLINE_EXCEEDED"),  # grpc-go's server
    ("2S", 2.0, End.RESET, 7, False, "UNAVAILABLE"),
    *(
        (text, 2.0, End.RESET, 8, False, "CANCELLED")
        for text in ("", "S", "2", "-1S", "123456789n")
    ),
]


@pytest.mark.parametrize(("timeout", "after", "end", "code", "by_server", "status"), CANCELS)
@pytest.mark.parametrize("role", [Role.CLIENT, Role.SERVER])
def test_a_deadline_that_passed(
    role: Role, timeout: str, after: float, end: End, code: int, by_server: bool, status: str
) -> None:
    """It shows as RST_STREAM(CANCEL), after as long as grpc-timeout says."""
    wire = Wire(role)
    flags = Flag.RESPONSE if by_server else 0
    rows: Rows = []
    for stream, seconds in ((1, 0.001), (3, after)):
        rows += wire.ask(stream, [*CALL, ("grpc-timeout", timeout)])
        times = {"start_ns": SECOND, "end_ns": SECOND + int(seconds * SECOND)}
        rows += wire.over(stream, end=end, code=code, flags=flags, **times)
    batch = feed(rows)
    early, late = attributes_of(batch, 0), attributes_of(batch, 1)
    assert early["rpc.response.status_code"] != "DEADLINE_EXCEEDED"
    assert late["rpc.response.status_code"] == status
    if status == "DEADLINE_EXCEEDED":
        assert late["error.type"] == status
        assert "deadline" in shapes_of(batch)[int(batch.shape[1])].status_message


def test_a_status_outlives_a_reset() -> None:
    wire = Wire(Role.CLIENT)
    rows = wire.ask(1, CALL) + wire.answer(1, [*OK, *DONE], Flag.END_STREAM)
    attributes, shape = one(rows + wire.over(1, end=End.RESET, code=0, flags=Flag.RESPONSE))
    assert (attributes["rpc.response.status_code"], shape.status) == ("OK", STATUS_UNSET)


@pytest.mark.parametrize("path", ["/nonsense", "nonsense", "/", "/a/b/c", "/a/", "//b"])
def test_what_is_no_method_names_no_span(path: str) -> None:
    attributes, shape = one(Wire().call(1, [(":path", path) if key == ":path" else (key, value)
                                            for key, value in CALL]))  # fmt: skip
    assert (shape.name, attributes["rpc.method"]) == ("grpc", "_OTHER")


def test_unix_sockets() -> None:
    wire = Wire(family=Family.UNIX, unix_path="/run/a.sock")
    rows = wire.ask(1, [pair for pair in CALL if pair[0] != ":authority"])
    rows += wire.answer(1, [*OK, *DONE]) + wire.over(1)
    attributes, _ = one(rows)
    assert attributes["server.address"] == "/run/a.sock"
