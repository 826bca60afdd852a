"""The query API over real HTTP: what it refuses, and that it stands what is sent to it."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from bench.processes import free_port
from collector.commands import QueryOptions, run
from collector.embedded import Embedded
from collector.http_server import MAX_REQUESTS, split_address
from tests.collector.stored import OTHER, TRACE, everything, many
from tracer.errors import UsageError, WirespanError


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    embedded = Embedded(tmp_path_factory.mktemp("store"), address="127.0.0.1:0")
    embedded.start()
    embedded.submit(everything().spans())
    embedded.submit(many(50, first=1_000))
    assert embedded.flush()
    yield embedded
    embedded.close()


def ask(
    embedded: Embedded, target: str, method: str = "GET", **headers: str
) -> tuple[int, Any, http.client.HTTPResponse]:
    host, _, port = embedded.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request(method, target, headers=headers)
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if body else None, response
    finally:
        connection.close()


def test_an_answer(embedded: Embedded) -> None:
    status, body, response = ask(embedded, "/api/services")
    assert status == 200 and response.getheader("Content-Type") == "application/json"
    assert sorted(body["data"]) == ["api", "missing-service-name", "web"] and body["total"] == 3


@pytest.mark.parametrize(
    "target",
    ["/", "/api", "/api/", "/../../etc/passwd", "/api/%2e%2e/services", "/api/traces/a/b",
     "/api/services/", "//evil/api/services"],
)  # fmt: skip
def test_nothing_else_is_there(embedded: Embedded, target: str) -> None:
    status, body, _ = ask(embedded, target)
    assert status == 404 and body["data"] is None and body["errors"][0]["code"] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW"])
def test_only_get(embedded: Embedded, method: str) -> None:
    status, body, _ = ask(embedded, "/api/services", method)
    assert status in (405, 501) and (body is None or body["data"] is None)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:16686", "localhost.evil.example", ""]
)
def test_names_of_other_hosts_are_refused(embedded: Embedded, host: str) -> None:
    status, body, response = ask(embedded, "/api/services", Host=host)
    assert status == 403 and "Host" in body["errors"][0]["msg"]
    assert response.getheader("Access-Control-Allow-Origin") is None


@pytest.mark.parametrize("host", ["localhost", "localhost:16686", "127.0.0.1:1", "[::1]:16686"])
def test_names_of_this_host(embedded: Embedded, host: str) -> None:
    assert ask(embedded, "/api/services", Host=host)[0] == 200


@pytest.mark.parametrize(
    "tags", ["[]", "1", '{"a":1}', "{", "[" * 5_000], ids=["list", "number", "int", "open", "deep"]
)
def test_bad_tags(embedded: Embedded, tags: str) -> None:
    status, body, _ = ask(embedded, f"/api/traces?service=web&tags={tags}")
    assert status == 400 and "tags" in body["errors"][0]["msg"]


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=10001", "start=1e9", "end=x"])
def test_bad_numbers(embedded: Embedded, query: str) -> None:
    assert ask(embedded, f"/api/traces?service=web&{query}")[0] == 400


def test_too_long_and_too_many(embedded: Embedded) -> None:
    assert ask(embedded, "/api/traces?service=" + "x" * 20_000)[0] == 414
    assert ask(embedded, "/api/traces?service=web&lookback=999999999d")[0] == 200
    assert ask(embedded, "/api/traces?" + "&".join(["a=1"] * 200))[0] == 400


def test_quotes_are_no_sql(embedded: Embedded) -> None:
    target = "/api/operations?service=x%27%20OR%201=1;%20DROP%20TABLE%20spans;--"
    assert ask(embedded, target)[1]["data"] == []
    assert ask(embedded, "/api/services")[1]["total"] == 3


def test_tags_made_of_other_fields_are_found(embedded: Embedded) -> None:
    for tags in ('{"error":"true"}', '{"span.kind":"server"}', '{"otel.status_code":"ERROR"}'):
        found = ask(embedded, f"/api/traces?service=web&lookback=9999d&tags={tags}")[1]["data"]
        assert any(each["traceID"] == TRACE.hex() for each in found), tags


def test_connections_that_say_nothing(embedded: Embedded) -> None:
    """Idle connections take all threads; others are turned away, and served once they end."""
    host, _, port = embedded.address.rpartition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(MAX_REQUESTS)]
    try:
        with pytest.raises((OSError, http.client.HTTPException)):
            for _ in range(20):
                ask(embedded, "/api/services")
    finally:
        for each in idle:
            each.close()
    for _ in range(100):
        try:
            assert ask(embedded, "/api/services")[0] == 200
            return
        except (OSError, http.client.HTTPException):
            continue
    raise AssertionError("not served")


def test_garbage(embedded: Embedded) -> None:
    host, _, port = embedded.address.rpartition(":")
    for sent in (b"\x16\x03\x01\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
    assert ask(embedded, "/api/services")[0] == 200


def test_http_1_0(embedded: Embedded) -> None:
    host, _, port = embedded.address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(b"GET /api/services HTTP/1.0\r\n\r\n")
        data = b""
        while piece := connection.recv(65_536):
            data += piece
    assert json.loads(data.split(b"\r\n\r\n", 1)[1])["total"] == 3


def test_the_port_is_taken(embedded: Embedded, tmp_path: Any) -> None:
    with pytest.raises(WirespanError, match="cannot listen"):
        Embedded(tmp_path / "store", address=embedded.address).start()


@pytest.mark.parametrize("address", ["", "16686", "127.0.0.1:", ":1", "127.0.0.1:99999"])
def test_addresses(address: str) -> None:
    with pytest.raises(WirespanError):
        split_address(address)


def shown(embedded: Embedded, capsys: pytest.CaptureFixture[str], command: str, *words: str) -> str:
    assert run(QueryOptions(command, words, embedded.address, False)) == 0
    return capsys.readouterr().out


def test_the_list(embedded: Embedded, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(embedded, capsys, "traces", "op=serve").splitlines()
    assert len(lines) == 2 and lines[0].startswith("TIME")
    assert TRACE.hex() in lines[1] and "5.23ms" in lines[1] and "web GET /" in lines[1]
    assert len(shown(embedded, capsys, "traces", "status>=500").splitlines()) == 21
    assert "\x1b" not in "".join(lines)


def test_the_waterfall_and_the_reasons(
    embedded: Embedded, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(embedded, capsys, "trace", TRACE.hex()).splitlines()
    assert len(lines) == 9 and "8 spans" in lines[0] and "█" in lines[1]
    said = shown(embedded, capsys, "explain", OTHER.hex())
    assert "its parent 000000000000004d is not here" in said and "a root" in said


def test_what_commands_say_of_failures(embedded: Embedded) -> None:
    with pytest.raises(WirespanError, match="no trace 1 on"):
        run(QueryOptions("trace", ("1",), embedded.address, False))
    with pytest.raises(UsageError, match="not KEY OP VALUE"):
        run(QueryOptions("traces", ("web",), embedded.address, False))
    with pytest.raises(WirespanError, match="nobody answers"):
        run(QueryOptions("traces", (), f"127.0.0.1:{free_port()}", False))
