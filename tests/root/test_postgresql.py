"""PostgreSQL: spans equal what clients were told and what the server logged."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import psycopg
import pytest

from tests.root.databases import DATABASE, SQL, USER, PostgreSql
from tests.root.harness import CLIENT, SERVER, Span, Spans, Tracer, Watch, assert_sound, run
from tests.root.workloads.sql.script import ANSWERS, PARAMETERS, statements

KINDS = (CLIENT, SERVER)
# What is no execution of a statement.
COMMANDS = ("PREPARE", "BIND", "DESCRIBE", "CLOSE", "FLUSH", "SYNC")
SQLSTATES = {"1062": "23505", "1064": "42601"}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSql]:
    server = PostgreSql()
    yield server
    server.stop()


@pytest.fixture
def watch(watch: Watch, server: PostgreSql) -> Watch:
    """Begin once the statements that set the server up have come."""
    watch.tracer.settle()
    watch._mark = watch.tracer.mark()
    return watch


@pytest.fixture
def table() -> str:
    return f"t{uuid.uuid4().hex[:10]}"


def text(span: Span) -> str:
    return str(span.attributes.get("db.query.text", ""))


def is_command(span: Span) -> bool:
    """Whether it is of the protocol alone, not a statement; PREPARE is one in SQL too."""
    name = str(span.attributes.get("db.operation.name", ""))
    return name in COMMANDS and not span.error and not text(span).upper().startswith(name)


def verb(span: Span) -> str:
    """What a span did: a command by its name, a statement by its first word.

    One that can't be prepared is a statement that failed.
    """
    name = str(span.attributes.get("db.operation.name", ""))
    if is_command(span):
        return name
    return (text(span) or name or "?").split(None, 1)[0].upper().rstrip(";")


def step(span: Span) -> list[Any]:
    return [
        verb(span),
        span.attributes.get("db.response.returned_rows"),
        span.attributes.get("wirespan.db.affected_rows"),
        span.attributes.get("db.response.status_code"),
    ]


def answers() -> list[list[Any]]:
    return [[*a[:3], SQLSTATES.get(a[3], a[3])] for a in ANSWERS]


class Session:
    """What a server and a tracer say of the statements run in a test."""

    def __init__(self, server: PostgreSql, watch: Watch) -> None:
        self.server, self.watch = server, watch
        self.before = len(server.logged())

    def exact(self) -> Spans:
        """Wait for spans of all that the server logged, compare, and return them all."""
        logged = self.server.logged()[self.before :]
        wanted = [statement.split(None, 1)[0].upper().rstrip(";") for statement in logged]
        mark = self.watch._mark

        def executed(spans: Spans) -> Spans:
            return Spans(s for s in self.server.spans(spans) if not is_command(s))

        spans = self.watch.tracer.collect(executed, 2 * len(wanted), mark=mark)
        for kind in KINDS:
            order = sorted(spans.of(kind), key=lambda span: span.start)
            assert [verb(s) for s in order] == wanted, f"{kind}\n{spans.of(kind).show(50)}"
        every = self.server.spans(self.watch.tracer.since(mark))
        for span in every:
            assert span.attributes["db.system.name"] == "postgresql", span
            assert span.attributes["db.namespace"] == DATABASE, span
            assert "wirespan.incomplete" not in span.attributes, span
        assert len(every.of(CLIENT)) == len(every.of(SERVER)) == len(every) / 2
        assert_sound(every)
        return every


@pytest.fixture
def session(server: PostgreSql, watch: Watch) -> Session:
    return Session(server, watch)


def assert_told(spans: Spans, table: str, told: list[list[Any]]) -> None:
    """Each kind's spans of statements say what the client was told."""
    for kind in KINDS:
        order = sorted(spans.of(kind), key=lambda span: span.start)
        mine = [
            step(s)
            for s in order
            if not is_command(s) and (table in text(s) or verb(s) in ("BEGIN", "ROLLBACK"))
        ]
        assert mine == told, f"{kind}\n{spans.of(kind).show(60)}"


@pytest.mark.parametrize("where", ["tcp", "unix"])
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_python(session: Session, table: str, driver: str, where: str) -> None:
    server = session.server
    host = "127.0.0.1" if where == "tcp" else str(server.directory)
    argv = [sys.executable, SQL / "postgresql_python.py", driver, table, host, str(server.port)]
    told = json.loads(run([*argv, USER, DATABASE]))
    assert told[: len(ANSWERS)] == answers()
    spans = session.exact()
    assert_told(spans, table, told)
    for kind in KINDS:
        prepared = [s for s in spans.of(kind) if text(s).endswith(f"{table} WHERE id = $1")]
        assert [verb(s) for s in prepared if not is_command(s)] == ["SELECT"] * len(PARAMETERS)


@pytest.mark.parametrize("where", ["tcp", "unix"])
def test_psql(session: Session, table: str, where: str) -> None:
    lines = "".join(f"{statement};\n" for statement in statements(table, "TEXT"))
    lines += f"COPY {table} (id, name) FROM STDIN;\n900\tone\n901\ttwo\n\\.\n"
    lines += f"PREPARE p AS SELECT id FROM {table} WHERE id = $1;\nEXECUTE p(1);\n"
    argv = [str(word) for word in session.server.client(where, "-d", DATABASE)]
    env = {**os.environ, "PGSSLMODE": "disable"}
    done = subprocess.run(argv, input=lines, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0 and done.stderr.count("ERROR") == 2, done.stderr
    spans = session.exact()
    for kind in KINDS:
        order = sorted(spans.of(kind), key=lambda span: span.start)
        assert [step(s) for s in order][: len(ANSWERS)] == answers()
        assert [step(s) for s in order][len(ANSWERS)] == ["COPY", None, 2, None]
    assert {s.resource["service.name"] for s in spans.of(CLIENT)} == {"psql"}


def connect(server: PostgreSql, **options: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host="127.0.0.1",
        port=server.port,
        user=USER,
        dbname=DATABASE,
        autocommit=True,
        **{"sslmode": "disable", **options},
    )


def test_portals_that_are_fetched_from_again(server: PostgreSql, watch: Watch, table: str) -> None:
    """A cursor of asyncpg: bound in one unit, executed in others."""

    async def fetch() -> list[int]:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=server.port, user=USER, database=DATABASE, ssl=False
        )
        found = []
        async with connection.transaction():
            cursor = await connection.cursor(f"SELECT n AS {table} FROM ten WHERE n > $1", 0)
            other = await connection.cursor(f"SELECT -n AS {table} FROM ten")
            for each in (cursor, other, cursor, other):
                found.append(len(await each.fetch(3)))
        await connection.close()
        return found

    mark = watch.tracer.mark()
    assert asyncio.run(fetch()) == [3, 3, 3, 3]

    def executed(spans: Spans) -> Spans:
        return Spans(s for s in server.spans(spans) if table in text(s) and not is_command(s))

    spans = watch.tracer.collect(executed, 8, mark=mark)
    one, other = f"SELECT n AS {table} FROM ten WHERE n > $1", f"SELECT -n AS {table} FROM ten"
    for kind in KINDS:
        order = sorted(spans.of(kind), key=lambda span: span.start)
        assert [text(span) for span in order] == [one, other, one, other], spans.show()
        assert {span.attributes["db.response.returned_rows"] for span in order} == {3}
    every = server.spans(watch.tracer.since(mark))
    assert not [span for span in every if "wirespan.incomplete" in span.attributes]


def test_attributes(session: Session, table: str) -> None:
    with connect(session.server) as connection:
        for statement in statements(table, "TEXT")[:3]:
            connection.execute(statement)
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(f"INSERT INTO {table} (id, name) VALUES (1, 'a secret')")
        connection.execute("SELECT 1; SELECT n FROM ten; SELECT 2")
    spans = session.exact()
    for kind in KINDS:
        create, insert, select, failed, several = sorted(spans.of(kind), key=lambda s: s.start)
        assert [s.raw["name"] for s in (create, insert, select)] == [
            f"CREATE TABLE {table}",
            f"INSERT {table}",
            f"SELECT {table}",
        ]
        assert text(insert) == f"INSERT INTO {table} (id, name) VALUES (?)"
        assert text(select) == f"SELECT id, name FROM {table} WHERE id = ?"
        assert insert.attributes["wirespan.db.affected_rows"] == 3
        assert select.attributes["db.response.returned_rows"] == 1
        assert failed.attributes["db.response.status_code"] == "23505"
        assert failed.error == "23505" and failed.raw["status"] == "ERROR"
        assert "secret" not in str(failed)
        assert several.attributes["db.operation.batch.size"] == 3
        assert several.attributes["db.response.returned_rows"] == 12
    # PostgreSQL names its processes after what they do; the program is what counts.
    assert {s.resource["service.name"] for s in spans.of(SERVER)} == {"postgres"}


def test_an_error_within_a_pipeline(watch: Watch, server: PostgreSql, table: str) -> None:
    """What was sent after the statement that failed is passed over by the server."""
    with connect(server) as connection:
        with pytest.raises(psycopg.errors.DivisionByZero), connection.pipeline():
            connection.execute(f"SELECT n AS {table} FROM ten WHERE n < %s", (3,))
            connection.execute(f"SELECT 1 / (n - %s) AS {table} FROM ten", (1,))
            connection.execute(f"SELECT n AS {table} FROM ten WHERE n > %s", (3,))

    def chosen(spans: Spans) -> Spans:
        return Spans(s for s in server.spans(spans) if table in text(s))

    spans = watch.tracer.collect(chosen, 6, mark=watch._mark)
    for kind in KINDS:
        codes = [s.attributes.get("db.response.status_code") for s in spans.of(kind)]
        assert Counter(codes)["22012"] == 1, spans.of(kind).show()
    assert_sound(spans)


def test_a_login_that_is_refused(watch: Watch, server: PostgreSql) -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(
            host="127.0.0.1", port=server.port, user=USER, dbname="missing", sslmode="disable"
        )
    spans = watch.tracer.collect(server.spans, 2, mark=watch._mark)
    assert sorted(span.kind for span in spans) == sorted(KINDS)
    for span in spans:
        assert span.attributes["db.operation.name"] == "CONNECT", span
        assert span.attributes["db.response.status_code"] == "3D000", span


def counted(tracer: Tracer, name: str) -> int:
    """A counter of the tracer's, by name."""
    return sum(count.value for count in tracer.status().counts if count.name == name)


def test_encrypted_connections_are_left_alone(watch: Watch, server: PostgreSql) -> None:
    before = counted(watch.tracer, "encrypted")
    with connect(server, sslmode="require") as connection:
        for _ in range(20):
            assert len(connection.execute("SELECT n FROM ten").fetchall()) == 10
    watch.tracer.settle()
    assert counted(watch.tracer, "encrypted") - before == 2, "one connection, seen at both ends"
    assert not server.spans(watch.tracer.since(watch._mark))


def test_encryption_refused(session: Session, table: str) -> None:
    """Over a Unix socket the server answers N, and what follows is plain.

    libpq doesn't ask there, so the request is made by hand.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(session.server.socket))
        sock.sendall(struct.pack(">ii", 8, 80877103))
        assert sock.recv(1) == b"N"
        start = f"user\0{USER}\0database\0{DATABASE}\0\0".encode()
        sock.sendall(struct.pack(">ii", 8 + len(start), 196608) + start)
        answer = b""
        while not answer.endswith(b"Z\0\0\0\5I"):
            answer += sock.recv(4096)
        query = f"SELECT n AS {table} FROM ten\0".encode()
        sock.sendall(b"Q" + struct.pack(">i", 4 + len(query)) + query)
        answer = b""
        while not answer.endswith(b"Z\0\0\0\5I"):
            answer += sock.recv(4096)
        sock.sendall(b"X\0\0\0\4")
    spans = session.exact()
    assert [step(s) for s in spans] == [["SELECT", 10, None, None]] * 2


def test_cancelled(watch: Watch, server: PostgreSql, table: str) -> None:
    with connect(server, options="-c statement_timeout=200") as connection:
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(f"SELECT pg_sleep(20) AS {table}")
        connection.cancel()
        connection.execute(f"SELECT n AS {table} FROM ten")
    spans = watch.tracer.collect(
        lambda all_: Spans(s for s in server.spans(all_) if table in text(s)), 4, mark=watch._mark
    )
    for kind in KINDS:
        order = sorted(spans.of(kind), key=lambda span: span.start)
        codes = [s.attributes.get("db.response.status_code") for s in order]
        assert codes == ["57014", None]
        assert order[0].end - order[0].start > 150_000_000


def test_connections_older_than_the_tracer(
    start_tracer: Callable[..., Tracer], server: PostgreSql, table: str
) -> None:
    with connect(server) as connection:
        connection.execute(statements(table, "TEXT")[0])
        # psycopg prepares it by a name.
        connection.execute("SELECT n FROM ten WHERE n < %s", (3,), prepare=True)
        tracer = start_tracer()
        for n in range(5):
            connection.execute(f"INSERT INTO {table} (id) VALUES ({n})")
        connection.execute("SELECT n FROM ten WHERE n < %s", (7,), prepare=True)
        connection.execute(f"SELECT id FROM {table}")
    spans = tracer.collect(server.spans, 14)
    assert not tracer.losses()
    for kind in KINDS:
        order = sorted(spans.of(kind), key=lambda span: span.start)
        assert [step(s) for s in order] == [["INSERT", None, 1, None]] * 5 + [
            ["EXECUTE", 7, None, None],
            ["SELECT", 5, None, None],
        ]
        assert "statement_unknown" in order[5].attributes["wirespan.incomplete"]
        assert not any("db.namespace" in s.attributes for s in order)
