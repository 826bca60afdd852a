"""Redis: spans equal what clients sent and what INFO commandstats counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests.root.databases import SQL, Redis, fetched
from tests.root.harness import (
    CLIENT,
    DEADLINE,
    SERVER,
    Spans,
    Tracer,
    Watch,
    assert_sound,
    run,
)

KINDS = (CLIENT, SERVER)


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.stop()


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex[:10]


def names(spans: Spans) -> Counter[str]:
    """Commands by name as `Redis.calls` has them: those refused uncalled are "ERR"."""
    found = Counter(
        "ERR"
        if span.attributes.get("db.response.status_code") == "ERR"
        else str(span.attributes.get("db.operation.name", "?")).upper()
        for span in spans
    )
    del found["INFO"]
    return found


class Session:
    """What a server and a tracer say of the commands sent in a test."""

    def __init__(self, server: Redis, watch: Watch) -> None:
        self.server, self.watch = server, watch
        self.before = server.calls()

    def exact(self) -> Spans:
        """Wait for the spans of all that the server counted and compare them."""
        wanted = self.server.calls() - self.before
        mark = self.watch._mark

        def count(spans: Spans) -> Spans:
            mine = self.server.spans(spans)
            return Spans(s for s in mine if s.attributes.get("db.operation.name") != "INFO")

        spans = self.watch.tracer.collect(count, 2 * wanted.total(), mark=mark)
        for kind in KINDS:
            assert names(spans.of(kind)) == wanted, kind
        assert_sound(spans)
        for span in spans:
            assert span.attributes["db.system.name"] == "redis", span
            assert "wirespan.incomplete" not in span.attributes, span
        return spans


@pytest.fixture
def session(server: Redis, watch: Watch) -> Session:
    return Session(server, watch)


def place(server: Redis, where: str, key: str = "unix_socket_path") -> dict[str, Any]:
    if where == "unix":
        return {key: str(server.socket)}
    return {"host": "127.0.0.1", "port": server.port}


def assert_sent(spans: Spans, sent: dict[str, int]) -> None:
    for kind in KINDS:
        got = names(spans.of(kind))
        assert {name: got[name] for name in sent} == sent, kind


@pytest.mark.parametrize("protocol", ["2", "3"])
@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_redis_py(session: Session, prefix: str, where: str, protocol: str) -> None:
    options = json.dumps(place(session.server, where))
    out = run([sys.executable, SQL / "redis_python.py", prefix, protocol, options])
    spans = session.exact()
    assert_sent(spans, json.loads(out))
    for kind in KINDS:
        (push,) = (s for s in spans.of(kind) if s.attributes["db.operation.name"] == "LPUSH")
        assert push.attributes["db.response.status_code"] == "WRONGTYPE"
        assert push.raw["status"] == "ERROR"
        sets = [s for s in spans.of(kind) if s.attributes["db.operation.name"] == "SET"]
        assert {s.attributes["db.query.text"] for s in sets} == {"SET ? ?"}
        assert {s.attributes["db.namespace"] for s in sets} == {"0"}
    assert prefix not in spans.show(1000), "arguments are never shown"


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_ioredis(session: Session, prefix: str, where: str) -> None:
    options = json.dumps(place(session.server, where, "path"))
    env = {**os.environ, "NODE_PATH": str(fetched("node"))}
    out = run(["node", SQL / "node" / "redis.js", prefix, options], env=env)
    sent = json.loads(out)
    spans = session.exact()
    assert_sent(spans, sent)
    for kind in KINDS:
        last = max(
            (s for s in spans.of(kind) if s.attributes["db.operation.name"] == "GET"),
            key=lambda span: span.start,
        )
        assert last.attributes["db.namespace"] == "2"


def test_redis_cli(session: Session, prefix: str) -> None:
    lines = [f"SET {prefix}:{n} 'a value'" for n in range(40)]
    lines += [f"GET {prefix}:1", f"LPUSH {prefix}:1 x", "NOTACOMMAND 1", "PING"]
    argv = [str(word) for word in session.server.client("tcp")]
    done = subprocess.run(argv, input="\n".join(lines), capture_output=True, text=True, timeout=30)
    assert "WRONGTYPE" in done.stdout
    spans = session.exact()
    assert_sent(spans, {"SET": 40, "GET": 1, "LPUSH": 1, "PING": 1, "ERR": 1})
    failed = [s for s in spans.of(SERVER) if s.error]
    codes = sorted(s.attributes["db.response.status_code"] for s in failed)
    assert codes == ["ERR", "WRONGTYPE"]
    assert {s.resource["service.name"] for s in spans.of(SERVER)} == {"redis-server"}
    assert {s.resource["service.name"] for s in spans.of(CLIENT)} == {"redis-cli"}


def test_mass_insertion(session: Session, prefix: str) -> None:
    """redis-cli --pipe: thousands of commands in few sends."""

    def words(*values: str) -> str:
        parts = "".join(f"${len(value)}\r\n{value}\r\n" for value in values)
        return f"*{len(values)}\r\n{parts}"

    lines = "".join(words("SET", f"{prefix}:{n}", str(n)) for n in range(3000))
    argv = [str(word) for word in session.server.client("tcp", "--pipe")]
    done = subprocess.run(argv, input=lines, capture_output=True, text=True, timeout=30)
    assert "errors: 0, replies: 3000" in done.stdout
    # --pipe ends with an ECHO of its own. So many at once are more than are kept track of,
    # but each is a span or counted.
    wanted = {"SET": 3000, "ECHO": 1}
    assert session.server.calls() - session.before == wanted
    session.watch.allowed.add("pipeline_full")

    def total() -> int:
        spans = session.server.spans(session.watch.tracer.since(session.watch._mark))
        return names(spans).total() + session.watch.lost()["pipeline_full"]

    session.watch.tracer.process.wait_for(lambda: total() >= 6002, "an account of each")
    session.watch.tracer.settle()
    assert total() == 6002


def counted(tracer: Tracer, name: str) -> int:
    """A counter of the tracer's, by name."""
    return sum(count.value for count in tracer.status().counts if count.name == name)


def test_subscriptions_are_left_alone(watch: Watch, server: Redis, prefix: str) -> None:
    before = counted(watch.tracer, "left")
    client = redis.Redis(port=server.port)
    listener = client.pubsub(ignore_subscribe_messages=False)
    listener.subscribe(prefix)
    assert listener.get_message(timeout=DEADLINE)["type"] == "subscribe"
    for n in range(20):
        assert client.publish(prefix, f"message {n}") == 1
    for n in range(20):
        assert listener.get_message(timeout=DEADLINE)["data"] == f"message {n}".encode()
    listener.close()
    client.close()

    def published(spans: Spans) -> Spans:
        mine = server.spans(spans)
        return Spans(s for s in mine if s.attributes["db.operation.name"] == "PUBLISH")

    assert len(watch.tracer.collect(published, 40, mark=watch._mark)) == 40
    assert counted(watch.tracer, "left") - before == 2, "one connection, seen at both ends"


def test_many_connections(watch: Watch, server: Redis, prefix: str) -> None:
    """Blocking commands and quick ones, on 24 connections at once."""
    key = f"{prefix}:queue"

    def work(number: int) -> None:
        client = redis.Redis(port=server.port)
        for n in range(50):
            if number % 2:
                client.rpush(key, n)
            else:
                assert client.blpop([key], timeout=DEADLINE)
        client.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    def chosen(spans: Spans) -> Spans:
        mine = server.spans(spans)
        return Spans(s for s in mine if s.attributes["db.operation.name"] in ("RPUSH", "BLPOP"))

    spans = watch.tracer.collect(chosen, 2400, mark=watch._mark)
    for kind in KINDS:
        assert names(spans.of(kind)) == {"RPUSH": 600, "BLPOP": 600}
    assert_sound(spans)


def test_connections_older_than_the_tracer(
    start_tracer: Callable[..., Tracer], server: Redis, prefix: str
) -> None:
    client = redis.Redis(port=server.port, single_connection_client=True)
    client.set(f"{prefix}:a", 1)
    tracer = start_tracer()
    for _ in range(30):
        client.get(f"{prefix}:a")
    client.execute_command("SELECT", 1)
    client.get(f"{prefix}:a")
    client.close()
    spans = tracer.collect(server.spans, 64)
    assert not tracer.losses()
    for kind in KINDS:
        assert names(spans.of(kind)) == {"GET": 31, "SELECT": 1}
        order = sorted(spans.of(kind), key=lambda span: span.start)
        assert "db.namespace" not in order[0].attributes
        assert order[-1].attributes["db.namespace"] == "1"
