"""Spans as the protocols' own modules describe them, and what measures them."""

from __future__ import annotations

from tracer.flow import End, Family, Method
from tracer.protocols import database_shape, grpc_shape, http1_shape
from tracer.protocols.base import Settings
from tracer.protocols.http1_target import TargetClass
from tracer.red.instruments import connection_type, failed, measured, service_of
from tracer.spans import Resource, Shape

ADDRESS = bytes([127, 0, 0, 1]) + bytes(12)
RESOURCE = Resource((("service.name", "shop"), ("process.pid", 7)))


def head(server: bool, status: int = 200, **others: object) -> http1_shape.Head:
    values: dict[str, object] = {
        "server": server, "method": Method.GET, "status": status, "end": End.RESPONSE,
        "version": 11, "truncated": 0, "family": Family.INET, "local_address": ADDRESS,
        "remote_address": ADDRESS, "server_port": 8080, "host": "shop.example",
        "user_agent": "curl/8", "forwarded_for": "", "forwarded_proto": "", "method_text": "",
        "unix_path": "",
    }  # fmt: skip
    return http1_shape.Head(**{**values, **others})  # type: ignore[arg-type]


def http(server: bool, status: int = 200, **others: object) -> Shape:
    target = TargetClass("origin", "/users/{id}", "", "", False, "")
    return http1_shape.shape(head(server, status, **others), target, RESOURCE, Settings())


def test_http_server() -> None:
    instrument, attributes = measured(http(True, 503))
    assert instrument.name == "http.server.request.duration"
    assert dict(attributes) == {
        "http.request.method": "GET", "http.response.status_code": 503, "error.type": "503",
        "network.protocol.version": "1.1", "url.scheme": "http", "http.route": "/users/{id}",
    }  # fmt: skip
    assert failed(http(True, 503))
    assert not failed(http(True, 404))


def test_http_client() -> None:
    instrument, attributes = measured(http(False))
    assert instrument.name == "http.client.request.duration"
    assert dict(attributes) == {
        "http.request.method": "GET", "http.response.status_code": 200,
        "network.protocol.version": "1.1", "url.template": "/users/{id}",
        "server.address": "shop.example", "server.port": 80,
    }  # fmt: skip
    plain = Settings(opt_in=frozenset())
    target = TargetClass("origin", "/users/{id}", "", "", False, "")
    without = http1_shape.shape(head(False), target, RESOURCE, plain)
    assert measured(without) == (instrument, attributes), "whatever spans are asked to carry"


def test_http_that_was_not_answered() -> None:
    _, attributes = measured(http(False, 0, end=End.PEER))
    assert dict(attributes)["error.type"] == "connection_closed"
    assert "http.response.status_code" not in dict(attributes)


def test_http_of_an_unknown_method_and_target() -> None:
    shape = http1_shape.shape(
        head(True, method=http1_shape.METHOD_UNKNOWN), None, RESOURCE, Settings()
    )
    _, attributes = measured(shape)
    assert dict(attributes)["http.request.method"] == "_OTHER"
    assert "http.route" not in dict(attributes)


def test_grpc() -> None:
    call = grpc_shape.Call("/a.B/C", "13", "", 200, True, None)
    for server in (True, False):
        shape = grpc_shape.shape(call, head(server), "http", RESOURCE, Settings())
        instrument, attributes = measured(shape)
        assert instrument.name == f"rpc.{'server' if server else 'client'}.call.duration"
        expected = {
            "rpc.system.name": "grpc", "rpc.method": "a.B/C",
            "rpc.response.status_code": "INTERNAL", "error.type": "INTERNAL",
        }  # fmt: skip
        if not server:
            expected |= {"server.address": "shop.example", "server.port": 80}
        assert dict(attributes) == expected


def test_databases() -> None:
    facts = database_shape.Facts(
        "mysql", "mysql", namespace="shop", operation="SELECT", collection="users",
        summary="SELECT users", text="SELECT * FROM users WHERE id = ?", error=True,
        status_code="1146", message="Table ? doesn't exist",
    )  # fmt: skip
    for server in (True, False):
        ends = database_shape.Ends(server, End.RESPONSE, Family.INET, ADDRESS, ADDRESS, 3306)
        shape = database_shape.shape(ends, facts, RESOURCE, Settings())
        instrument, attributes = measured(shape)
        side = "wirespan.db.server" if server else "db.client"
        assert instrument.name == f"{side}.operation.duration"
        assert dict(attributes) == {
            "db.system.name": "mysql", "db.namespace": "shop", "db.operation.name": "SELECT",
            "db.collection.name": "users", "db.query.summary": "SELECT users",
            "db.response.status_code": "1146", "error.type": "1146",
            "server.address": "127.0.0.1", "server.port": 3306,
        }  # fmt: skip
        assert (connection_type(shape), service_of(shape)) == ("database", "shop")
        assert failed(shape)
    assert connection_type(http(True)) == ""
