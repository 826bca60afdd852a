"""gRPC by four implementations: spans on both sides equal what the client counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.root.echo import LANGUAGES, SERVICE, Call, Client, Server
from tests.root.harness import (
    CLIENT,
    SERVER,
    Span,
    Spans,
    Tracer,
    Watch,
    assert_sound,
    free_port,
    running,
)
from tests.root.nginx import Nginx

SENT, RECEIVED = "wirespan.rpc.request.messages", "wirespan.rpc.response.messages"
# What a server is at fault for, by the conventions.
SERVER_ERRORS = {
    "UNKNOWN",
    "DEADLINE_EXCEEDED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
}
# The kinds of call whose outcome does not depend on who is first: (kind, calls, at once, size).
PLAN = (
    ("unary", 40, 8, 10),
    ("server", 10, 4, 10),
    ("client", 10, 4, 200),
    ("bidi", 10, 4, 200),
    ("fail", 16, 4, 1),
    ("late", 16, 4, 1),
    ("unary", 2, 1, 1_000_000),
    ("unary", 2, 1, 0),
)


class Servers:
    """One server of each language, started when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.servers: dict[str, Server] = {}

    def port(self, language: str) -> int:
        if language not in self.servers:
            self.servers[language] = Server(language, self.directory / language)
        return self.servers[language].port

    def stop(self) -> None:
        for server in self.servers.values():
            server.stop()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("echo"))
    yield servers
    servers.stop()


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Start a client; ended when the test is."""
    clients: list[Client] = []

    def start(language: str, port: int, connections: int = 1) -> Client:
        clients.append(Client(language, port, tmp_path / f"client{len(clients)}", connections))
        return clients[-1]

    yield start
    for client in clients:
        client.stop()


def called(span: Span) -> Call:
    a = span.attributes
    return Call(
        str(a.get("rpc.method_original", a.get("rpc.method"))),
        str(a.get("rpc.response.status_code")),
        int(a.get(SENT, -1)),
        int(a.get(RECEIVED, -1)),
    )


def assert_calls(
    spans: Spans, expected: Sequence[Call], kinds: Sequence[str] = (CLIENT, SERVER), times: int = 1
) -> None:
    """Each call is there `times` times on each of `kinds`, as made, and nothing else is."""
    wanted = Counter(list(expected) * times)
    for kind in kinds:
        got = Counter(called(span) for span in spans.of(kind))
        missing, extra = wanted - got, got - wanted
        assert not missing and not extra, (
            f"{kind}: {got.total()} spans for {wanted.total()} calls\n"
            f"missing: {list(missing.items())[:5]}\nextra: {list(extra.items())[:5]}"
        )
    assert len(spans) == wanted.total() * len(kinds), spans.show()
    assert_sound(spans)
    for span in spans:
        assert_said_well(span)


def assert_said_well(span: Span) -> None:
    """What the conventions say of any gRPC span whose method and status are known."""
    a = span.attributes
    code = a["rpc.response.status_code"]
    assert a["rpc.system.name"] == "grpc", span
    assert "wirespan.incomplete" not in a, span
    # A method that a server denies having is no name to group by.
    denied = span.kind == SERVER and code == "UNIMPLEMENTED"
    assert (a["rpc.method"] == "_OTHER") == denied, span
    assert span.raw["name"] == ("grpc" if denied else a["rpc.method"]), span
    failed = code != "OK" if span.kind == CLIENT else code in SERVER_ERRORS
    assert (span.raw["status"] == "ERROR") == failed, span
    assert span.error == (code if failed else None), span
    if failed and a.get("rpc.method", "").endswith(("/Fail", "/Late")):
        assert span.raw["status_message"].startswith("as asked for"), span


def overlap(spans: Spans) -> int:
    """The most spans that were under way at one time."""
    steps = sorted([(s.start, 1) for s in spans] + [(s.end, -1) for s in spans])
    most = now = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


@pytest.mark.kernels("python-python")
@pytest.mark.parametrize("server", LANGUAGES)
@pytest.mark.parametrize("client", LANGUAGES)
def test_every_client_with_every_server(
    watch: Watch, servers: Servers, connect: Callable[..., Client], client: str, server: str
) -> None:
    port = servers.port(server)
    # From here: what an earlier test's connections of this server still do is not this one's.
    mark = watch.tracer.mark()
    expected = connect(client, port).all(PLAN)
    assert Counter(call.status for call in expected)["OK"] == 74
    assert len({call.status for call in expected}) == 17
    spans = watch.tracer.collect(lambda s: s.at(port), 2 * len(expected), mark=mark)
    assert_calls(spans, expected)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_hundred_streams_at_once_on_one_connection(
    watch: Watch, servers: Servers, connect: Callable[..., Client], language: str
) -> None:
    port, mark = servers.port(language), watch.tracer.mark()
    expected = connect(language, port).calls("slow", 100, 100)
    spans = watch.tracer.collect(lambda s: s.at(port), 200, mark=mark)
    assert_calls(spans, expected)
    for kind in (CLIENT, SERVER):
        assert overlap(spans.of(kind)) >= 50, "they were at once on the wire"
        assert all(s.end - s.start >= 290_000_000 for s in spans.of(kind))
    assert len({s.attributes.get("client.port") for s in spans.of(SERVER)}) == 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_several_connections(
    watch: Watch, servers: Servers, connect: Callable[..., Client], language: str
) -> None:
    port, mark = servers.port(language), watch.tracer.mark()
    client = connect(language, port, connections=4)
    expected = client.calls("unary", 200, 16) + client.calls("bidi", 40, 8)
    client.reconnect()
    expected += client.calls("unary", 40, 4)
    spans = watch.tracer.collect(lambda s: s.at(port), 2 * len(expected), mark=mark)
    assert_calls(spans, expected)
    assert len({s.attributes.get("client.port") for s in spans.of(SERVER)}) == 8


@pytest.mark.parametrize("server", LANGUAGES)
@pytest.mark.parametrize("client", ["python", "go"])
def test_unknown_methods(
    watch: Watch, servers: Servers, connect: Callable[..., Client], client: str, server: str
) -> None:
    """A server may answer before the message is sent, which is then never sent or counted."""
    port, mark = servers.port(server), watch.tracer.mark()
    expected = connect(client, port).calls("unknown", 5)
    spans = watch.tracer.collect(lambda s: s.at(port), 10, mark=mark)
    for kind in (CLIENT, SERVER):
        got = [called(span) for span in spans.of(kind)]
        assert [(c.method, c.status, c.received) for c in got] == [
            (f"{SERVICE}/Unknown", "UNIMPLEMENTED", 0) for _ in expected
        ]
        assert all(c.sent in (0, 1) for c in got), got
    assert len(spans) == 10, spans.show()


@pytest.mark.parametrize("server", LANGUAGES)
@pytest.mark.parametrize("client", LANGUAGES)
def test_cancelled_calls(
    watch: Watch, servers: Servers, connect: Callable[..., Client], client: str, server: str
) -> None:
    port, mark = servers.port(server), watch.tracer.mark()
    peer = connect(client, port)
    expected = peer.calls("cancel", 5, 5)
    assert set(expected) == {Call(f"{SERVICE}/Chat", "CANCELLED", 1, 1)}
    # The connection is as good as before.
    expected += peer.calls("unary", 5)
    spans = watch.tracer.collect(lambda s: s.at(port), 2 * len(expected), mark=mark)
    assert_calls(spans.of(CLIENT), expected, (CLIENT,))
    server_side = spans.of(SERVER)
    if client == "node":
        # Node's http2 half-closes a stream before it resets it: a server may see the regular
        # end of the requests first, and answer OK.
        kept = [s for s in server_side if called(s) != Call(f"{SERVICE}/Chat", "OK", 1, 1)]
        expected = expected[len(server_side) - len(kept) :]
        server_side = Spans(kept)
    assert_calls(server_side, expected, (SERVER,))


@pytest.mark.parametrize("server", LANGUAGES)
@pytest.mark.parametrize("client", LANGUAGES)
def test_deadlines(
    watch: Watch, servers: Servers, connect: Callable[..., Client], client: str, server: str
) -> None:
    """Both ends have the deadline: the one gives up, the other answers so, and either is first."""
    port, mark = servers.port(server), watch.tracer.mark()
    peer = connect(client, port)
    # A call whose deadline has passed before there is a connection is never on the wire.
    others = peer.calls("unary", 5)
    expected = peer.calls("deadline", 4, 4)
    assert {call.status for call in expected} <= {"DEADLINE_EXCEEDED", "CANCELLED"}
    others += peer.calls("unary", 5)
    spans = watch.tracer.collect(lambda s: s.at(port), 28, mark=mark)
    late = Spans(s for s in spans if s.attributes.get("rpc.method") == f"{SERVICE}/Slow")
    for kind in (CLIENT, SERVER):
        assert len(late.of(kind)) == 4, late.show()
    for span in late:
        code = span.attributes["rpc.response.status_code"]
        assert code in ("CANCELLED", "DEADLINE_EXCEEDED"), span
        assert 50_000_000 < span.end - span.start < 5_000_000_000, span
    # Where the server's RST_STREAM(CANCEL) is first, some clients make CANCELLED of it.
    codes = Counter(s.attributes["rpc.response.status_code"] for s in late.of(CLIENT))
    told = Counter(call.status for call in expected)
    assert codes["DEADLINE_EXCEEDED"] >= told["DEADLINE_EXCEEDED"] > 0, late.of(CLIENT).show()
    assert_calls(Spans(s for s in spans if s not in late), others)


def test_nginx_in_the_middle(
    watch: Watch, servers: Servers, connect: Callable[..., Client], tmp_path: Path
) -> None:
    """Client, both sides of nginx's grpc_pass and server: four spans for each call."""
    back, front = servers.port("go"), free_port()
    extra = f"listen 127.0.0.1:{front} http2;"
    extra += f" location /{SERVICE}/ {{ grpc_pass grpc://127.0.0.1:{back}; }}"
    nginx = Nginx(tmp_path / "nginx", extra=extra)
    mark = watch.tracer.mark()
    with running(nginx.process):
        expected = connect("python", front).all([*PLAN[:6]])
        count = 4 * len(expected)
        spans = watch.tracer.collect(lambda s: s.at(front, back), count, mark=mark)
    middle = Spans(s for s in spans if s.resource["service.name"] == "nginx")
    ends = Spans(s for s in spans if s not in middle)
    assert_calls(ends, expected)
    assert_calls(middle, expected)


@pytest.mark.parametrize("language", ["python", "go"])
def test_connections_older_than_the_tracer(
    start_tracer: Callable[..., Tracer],
    servers: Servers,
    connect: Callable[..., Client],
    language: str,
) -> None:
    """HPACK's table is unknown then: what depends on it is said to be, and nothing is wrong."""
    port = servers.port(language)
    client = connect(language, port)
    for kind in ("unary", "server", "fail"):
        client.calls(kind, 20, 4)
    tracer = start_tracer()
    expected = client.calls("unary", 30, 4) + client.calls("bidi", 10, 2)
    expected += client.calls("fail", 16)
    # A method that the connection has not seen yet: its name is sent in full.
    expected += client.calls("slow", 4, 4)
    spans = tracer.collect(lambda s: s.at(port), 2 * len(expected))
    assert_sound(spans)
    wanted = Counter(expected)
    for kind in (CLIENT, SERVER):
        assert len(spans.of(kind)) == len(expected), kind
        whole = [s for s in spans.of(kind) if "wirespan.incomplete" not in s.attributes]
        known = Counter(called(span) for span in whole)
        assert not known - wanted, f"{kind}: wrong: {known - wanted}"
    for span in spans:
        a = span.attributes
        if "wirespan.incomplete" in a:
            method = a.get("rpc.method_original", a.get("rpc.method"))
            assert method in (None, *{c.method for c in expected}), span
            assert a.get("rpc.response.status_code") in (None, *{c.status for c in expected}), span
    slow = [s for s in spans if s.attributes.get("rpc.method") == f"{SERVICE}/Slow"]
    assert slow, "a method sent in full is known"

    mark = tracer.mark()
    client.reconnect()
    expected = client.all(PLAN)
    spans = tracer.collect(lambda s: s.at(port), 2 * len(expected), mark=mark)
    assert_calls(spans, expected)
    assert not tracer.losses()


@pytest.mark.parametrize("language", LANGUAGES)
def test_sizes(
    watch: Watch, servers: Servers, connect: Callable[..., Client], language: str
) -> None:
    """Sizes are of DATA: each message, and the five bytes before it."""
    port, mark = servers.port(language), watch.tracer.mark()
    client = connect(language, port)
    expected = [(call, 3_000_000) for call in client.calls("unary", 2, 2, 3_000_000)]
    expected += [(call, 70_000) for call in client.calls("bidi", 5, 1, 70_000)]
    spans = watch.tracer.collect(lambda s: s.at(port), 2 * len(expected), mark=mark)
    assert_calls(spans, [call for call, _ in expected])
    wanted = Counter((c.sent * (5 + size), c.received * (5 + size)) for c, size in expected)
    for kind in (CLIENT, SERVER):
        got = [span.attributes for span in spans.of(kind)]
        sizes = [(a["wirespan.rpc.request.size"], a["wirespan.rpc.response.size"]) for a in got]
        assert Counter(sizes) == wanted


def test_the_processes_of_both_sides(
    watch: Watch, servers: Servers, connect: Callable[..., Client]
) -> None:
    server = servers.port("go")
    pid = servers.servers["go"].process.pid
    client = connect("python", server)
    mark = watch.tracer.mark()
    client.calls("unary", 3)
    spans = watch.tracer.collect(lambda s: s.at(server), 6, mark=mark)
    assert {s.resource["process.pid"] for s in spans.of(SERVER)} == {pid}
    assert {s.resource["process.pid"] for s in spans.of(CLIENT)} == {client.process.pid}
