"""MySQL and MariaDB: spans equal what clients were told and what the server logged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mysql.connector
import pymysql
import pytest

from tests.root.databases import DATABASE, GUARDED, PASSWORD, SQL, USER, Logged, MySql, fetched
from tests.root.harness import CLIENT, SERVER, Span, Spans, Tracer, Watch, assert_sound, run
from tests.root.workloads.sql.script import ANSWERS, LARGE, PARAMETERS, statements

KINDS = (CLIENT, SERVER)
Steps = list[list[Any]]

# Commands that are not statements: db.operation.name, and what the general log and
# performance_schema call them. Where the log says None it leaves them out.
COMMANDS: dict[str, tuple[str | None, str | None]] = {
    "PREPARE": (None, "Prepare"),
    "CLOSE": (None, "Close stmt"),
    "RESET": (None, "Reset stmt"),
    "FETCH": (None, "Fetch"),
    "SEND_LONG_DATA": (None, "Long data"),
    "INIT_DB": (None, "Init db"),
    "PING": (None, "Ping"),
    "STATISTICS": (None, "Statistics"),
    "FIELD_LIST": (None, "Field list"),
    "CHANGE_USER": ("Change user", "Change user"),
    "RESET_CONNECTION": (None, "Reset connection"),
    "SET_OPTION": (None, "Set option"),
    "QUIT": (None, "Quit"),
}
LOGGED = {log: name for name, (log, _) in COMMANDS.items() if log}


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Iterator[MySql]:
    server = MySql(request.param)
    yield server
    server.stop()


@pytest.fixture
def watch(watch: Watch, server: MySql) -> Watch:
    """Begin once the statements that set the server up have come."""
    watch.tracer.settle()
    watch._mark = watch.tracer.mark()
    return watch


@pytest.fixture
def table() -> str:
    return f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two rows for LOAD DATA."""
    file = tmp_path / "rows.tsv"
    file.write_text("900\tone\n901\ttwo\n")
    return file


def text(span: Span) -> str:
    return str(span.attributes.get("db.query.text", ""))


def verb(span: Span) -> str:
    """What a span did: a command by its name, a statement by its first word."""
    name = str(span.attributes.get("db.operation.name", ""))
    if name in COMMANDS:
        return name
    return (text(span) or name or "?").split(None, 1)[0].upper().rstrip(";")


def said(entry: Logged) -> str | None:
    """The same of an entry of the general log; None where spans are none of it."""
    if entry.command in ("Query", "Execute"):
        statement = entry.text
        while statement.startswith("/*"):
            statement = statement.split("*/", 1)[1].lstrip()
        return statement.split(None, 1)[0].upper().rstrip(";")
    return LOGGED.get(entry.command)


def step(span: Span) -> list[Any]:
    return [
        verb(span),
        span.attributes.get("db.response.returned_rows"),
        span.attributes.get("wirespan.db.affected_rows"),
        span.attributes.get("db.response.status_code"),
    ]


class Session:
    """What a server and a tracer say of the commands sent in a test."""

    def __init__(self, server: MySql, watch: Watch) -> None:
        self.server, self.watch = server, watch
        self.before, self.mark = server.counts(), server.mark()

    def exact(self) -> Spans:
        """Wait for spans of all that was sent, compare with the server's accounts, return them."""
        wait = self.watch.tracer.process.wait_for
        mark = self.watch._mark

        def chosen() -> Spans:
            return self.server.spans(self.watch.tracer.since(mark))

        # The server may come to a QUIT after the client has gone.
        def same() -> bool:
            return self._counted(chosen().of(SERVER)) == self.server_counts()

        try:
            wait(same, "spans of what the server counted", 8.0)
        except AssertionError:
            pass
        self.watch.tracer.settle()
        spans = chosen()
        logged = [name for entry in self.server.logged(self.mark) if (name := said(entry))]
        counts = self.server_counts()
        for kind in KINDS:
            ordered = sorted(spans.of(kind), key=lambda span: span.start)
            in_log = [v for s in ordered if (v := verb(s)) not in COMMANDS or COMMANDS[v][0]]
            assert in_log == logged, f"{kind}\n{spans.of(kind).show()}"
            assert self._counted(spans.of(kind)) == counts, kind
        assert len(spans.of(CLIENT)) == len(spans.of(SERVER)) == len(spans) / 2
        assert_sound(spans)
        for span in spans:
            assert span.attributes["db.system.name"] == self.server.name, span
            assert span.attributes["wirespan.protocol"] == "mysql", span
            # mysql2 closes statements that COM_CHANGE_USER has closed already.
            assert "wirespan.incomplete" not in span.attributes or verb(span) == "CLOSE", span
        return spans

    def _counted(self, spans: Spans) -> Counter[str]:
        return Counter(COMMANDS[v][1] for s in spans if (v := verb(s)) in COMMANDS)  # type: ignore[misc]

    def server_counts(self) -> Counter[str]:
        names = {count for _, count in COMMANDS.values()}
        delta = self.server.counts() - self.before
        return Counter({name: n for name, n in delta.items() if name in names})


@pytest.fixture
def session(server: MySql, watch: Watch) -> Session:
    return Session(server, watch)


def assert_told(spans: Spans, table: str, told: Steps) -> None:
    """Each kind's spans of statements say what the client was told."""
    for kind in KINDS:
        got = [
            step(span)
            for span in sorted(spans.of(kind), key=lambda span: span.start)
            if verb(span) not in COMMANDS and is_of(span, table)
        ]
        assert got == told, f"{kind}\n{spans.of(kind).show(60)}"


def is_of(span: Span, table: str) -> bool:
    """Whether the workload sent it, rather than its driver by itself."""
    words = text(span)
    return verb(span) in ("BEGIN", "ROLLBACK", "CALL") or any(
        name in words for name in (f" {table}", " ten", "shop.ten")
    )


def place(server: MySql, where: str) -> dict[str, Any]:
    """How Python's drivers and mysql2 connect."""
    if where == "unix":
        return {"unix_socket": str(server.socket), "user": USER, "database": DATABASE}
    return {"host": "127.0.0.1", "port": server.port, "user": USER, "database": DATABASE}


def python(driver: str) -> Callable[[MySql, str, str, Path], Steps]:
    def client(server: MySql, where: str, table: str, file: Path) -> Steps:
        argv = [sys.executable, SQL / "mysql_python.py", driver, table, file]
        told: Steps = json.loads(run([*argv, json.dumps(place(server, where))]))
        return told

    return client


def fed(argv: Sequence[str | Path], lines: str, **options: Any) -> str:
    """Run with standard input; returns standard output."""
    words = [str(word) for word in argv]
    done = subprocess.run(
        words, input=lines, capture_output=True, text=True, timeout=60, check=False, **options
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def go(server: MySql, where: str, table: str, file: Path) -> Steps:
    address = f"unix({server.socket})" if where == "unix" else f"tcp(127.0.0.1:{server.port})"
    dsn = f"{USER}@{address}/{DATABASE}?multiStatements=true"
    told: Steps = json.loads(fed([fetched("go"), table, file, dsn], json.dumps(statements(table))))
    return told


def node(server: MySql, where: str, table: str, file: Path) -> Steps:
    options = place(server, where)
    if where == "unix":
        options["socketPath"] = options.pop("unix_socket")
    argv = ["node", SQL / "node" / "mysql.js", table, file, json.dumps(options)]
    env = {**os.environ, "NODE_PATH": str(fetched("node"))}
    told: Steps = json.loads(fed(argv, json.dumps(statements(table)), env=env))
    return told


def java(server: MySql, where: str, table: str, file: Path) -> Steps:
    assert where == "tcp"
    options = (
        f"user={USER}&sslMode=DISABLED&allowMultiQueries=true&allowLoadLocalInfile=true"
        "&useServerPrepStmts=true&useCursorFetch=true"
    )
    url = f"jdbc:mysql://127.0.0.1:{server.port}/{DATABASE}?{options}"
    home = fetched("java")
    argv = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", f"{home}:{home}/*", "Sql"]
    told: Steps = json.loads(fed([*argv, table, file, url], "\n".join(statements(table))))
    return told


def command_line(server: MySql, where: str, table: str, file: Path) -> Steps:
    """The server's own client, which goes on after errors and counts nothing for programs."""
    lines = "".join(f"{statement};\n" for statement in statements(table))
    argv = [*server.client(where, "--force", "--local-infile=1"), DATABASE]
    words = [str(word) for word in argv]
    lines += f"LOAD DATA LOCAL INFILE '{file}' INTO TABLE {table} (id, name);\nCALL two();\n"
    done = subprocess.run(words, input=lines, capture_output=True, text=True, timeout=60)
    errors = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("ERROR")]
    assert errors == ["1062", "1064"], done.stderr
    assert len(done.stdout.splitlines()) > 10_000
    return [*ANSWERS, ["LOAD", None, 2, None], ["CALL", 8, None, None]]


CLIENTS: dict[str, Callable[[MySql, str, str, Path], Steps]] = {
    "pymysql": python("pymysql"),
    "connector": python("connector"),
    "asyncmy": python("asyncmy"),
    "go": go,
    "node": node,
    "java": java,
    "cli": command_line,
}


@pytest.mark.kernels("mariadb-pymysql-tcp")
# Connector/J reaches Unix sockets only with a library of another project.
@pytest.mark.parametrize(
    ("name", "where"),
    [(n, w) for n in CLIENTS for w in ("tcp", "unix") if (n, w) != ("java", "unix")],
)
def test_clients(session: Session, table: str, file: Path, name: str, where: str) -> None:
    told = CLIENTS[name](session.server, where, table, file)
    assert told[: len(ANSWERS)] == ANSWERS
    spans = session.exact()
    if name == "java":
        # The last one's rows come by a cursor, none with its opening.
        told[-1][1] = 0
    assert_told(spans, table, told)
    for kind in KINDS:
        fetched_rows = [step(s)[1] or 0 for s in spans.of(kind) if verb(s) == "FETCH"]
        assert sum(fetched_rows) == (30 if name == "java" else 0)
        prepared = f"SELECT id, name FROM {table} WHERE id = ?"
        same = [verb(s) for s in spans.of(kind) if text(s) == prepared]
        if name in ("connector", "go", "node", "java"):
            # Connector/Python prepares anew for each execution.
            assert same.count("PREPARE") == (len(PARAMETERS) if name == "connector" else 1)
            assert same.count("SELECT") == 1 + len(PARAMETERS), "one was sent as a literal"


def connect(server: MySql, **options: Any) -> Any:
    where = {k: v for k, v in place(server, "tcp").items() if k not in options}
    return pymysql.connect(**{**where, **options}, autocommit=True, ssl_disabled=True)


def test_attributes(session: Session, table: str) -> None:
    server = session.server
    with connect(server) as connection, connection.cursor() as cursor:
        for statement in statements(table)[:3]:
            cursor.execute(statement)
        with pytest.raises(pymysql.err.IntegrityError):
            cursor.execute(f"INSERT INTO {table} (id, name) VALUES (1, 'a secret')")
        cursor.execute(f"SELECT name FROM {table} WHERE name LIKE 'a secret%' AND id = 1")
    spans = session.exact()
    for kind in KINDS:
        one = Spans(s for s in spans.of(kind) if f" {table}" in text(s))
        create, insert, select, failed, like = sorted(one, key=lambda span: span.start)
        assert [s.raw["name"] for s in (create, insert, select)] == [
            f"CREATE TABLE {table}",
            f"INSERT {table}",
            f"SELECT {table}",
        ]
        assert text(insert) == f"INSERT INTO {table} (id, name) VALUES (?)"
        assert text(select) == f"SELECT id, name FROM {table} WHERE id = ?"
        assert text(like) == f"SELECT name FROM {table} WHERE name LIKE ? AND id = ?"
        assert insert.attributes["wirespan.db.affected_rows"] == 3
        assert select.attributes["db.response.returned_rows"] == 1
        assert like.attributes["db.response.returned_rows"] == 0
        assert failed.attributes["db.response.status_code"] == "1062"
        assert failed.error == "1062" and failed.raw["status"] == "ERROR"
        assert "Duplicate entry" in failed.raw["status_message"]
        assert "secret" not in str(failed) + str(like)
        for span in one:
            assert span.attributes["db.namespace"] == DATABASE, span
            assert span.attributes["db.collection.name"] == table, span
            assert span.attributes["server.port"] == server.port, span
            assert span.attributes["server.address"] == "127.0.0.1", span
    names = {span.resource["service.name"] for span in spans.of(SERVER)}
    assert names == {"mariadbd" if server.name == "mariadb" else "mysqld"}
    assert {s.resource["process.pid"] for s in spans.of(CLIENT)} == {os.getpid()}


def test_namespace_follows_the_connection(session: Session) -> None:
    with connect(session.server) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        connection.select_db("other")
        cursor.execute("SELECT 2")
        cursor.execute(f"USE {DATABASE}")
        cursor.execute("SELECT 3")
        with pytest.raises(pymysql.MySQLError):
            connection.select_db("missing")
        cursor.execute("SELECT 4")
    spans = session.exact()
    for kind in KINDS:
        chosen = [s for s in spans.of(kind) if text(s) == "SELECT ?"]
        order = [s.attributes["db.namespace"] for s in sorted(chosen, key=lambda s: s.start)]
        assert order == [DATABASE, "other", DATABASE, DATABASE]


@pytest.mark.parametrize("command", [0xFE, 0x63, 0x20])
def test_commands_that_the_server_refuses(
    watch: Watch, server: MySql, table: str, command: int
) -> None:
    """Numbers without a meaning, and COM_CLONE where nothing can be cloned."""
    mark = watch.tracer.mark()
    with connect(server) as connection:
        for _ in range(2):
            connection.query(f"SELECT n AS {table} FROM ten")
            connection._execute_command(command, b"")
            with pytest.raises(pymysql.MySQLError) as refused:
                connection._read_packet()
            connection.query(f"SELECT n AS {table} FROM ten")
    code = str(refused.value.args[0])
    # Without QUIT, which a server may come to when its client has gone.
    spans = watch.tracer.collect(
        lambda s: Spans(x for x in server.spans(s) if table in text(x) or x.error), 12, mark=mark
    )
    for kind in KINDS:
        order = sorted(spans.of(kind), key=lambda span: span.start)
        codes = [span.attributes.get("db.response.status_code") for span in order]
        assert codes == [None, code, None] * 2, spans.show()
        assert [table in text(span) for span in order] == [True, False, True] * 2


def test_a_statement_beyond_one_packet(session: Session, table: str) -> None:
    """16 MiB - 1 is the most that a packet of the protocol holds."""
    body = LARGE * 250
    assert len(body) > 17_000_000
    with connect(session.server) as connection, connection.cursor() as cursor:
        cursor.execute(statements(table)[0])
        cursor.execute(f"INSERT INTO {table} (id, body) VALUES (1, '{body}')")
        cursor.execute(f"SELECT body FROM {table} WHERE id = 1")
        assert len(cursor.fetchall()[0][0]) == len(body)
        cursor.execute(f"SELECT id FROM {table}")
    spans = session.exact()
    for kind in KINDS:
        one = [s for s in spans.of(kind) if f" {table}" in text(s)]
        assert [step(s) for s in sorted(one, key=lambda span: span.start)] == [
            ["CREATE", None, None, None],
            ["INSERT", None, 1, None],
            ["SELECT", 1, None, None],
            ["SELECT", 1, None, None],
        ]
        (insert,) = (s for s in one if verb(s) == "INSERT")
        assert "db.query.text" in insert.truncated
        assert "large" not in text(insert)


def test_many_connections(watch: Watch, server: MySql, table: str) -> None:
    connections = [connect(server) for _ in range(16)]
    for n in range(800):
        with connections[n % 16].cursor() as cursor:
            cursor.execute(f"SELECT {n} AS {table}, n FROM ten WHERE n < {n % 10}")
            assert len(cursor.fetchall()) == n % 10
    for connection in connections:
        connection.close()

    def chosen(spans: Spans) -> Spans:
        return Spans(s for s in server.spans(spans) if table in text(s))

    spans = watch.tracer.collect(chosen, 1600, mark=watch._mark)
    for kind in KINDS:
        rows = Counter(s.attributes["db.response.returned_rows"] for s in spans.of(kind))
        assert rows == {n: 80 for n in range(10)}
    assert_sound(spans)


def test_logins(session: Session) -> None:
    """A login is no span unless it fails; what is said during it is none of the session's."""
    server = session.server
    with connect(server, user=GUARDED, password=PASSWORD) as connection:
        connection.query("SELECT 1 + 1")
    with pytest.raises(pymysql.err.OperationalError) as refused:
        connect(server, user=GUARDED, password="wrong")
    assert refused.value.args[0] == 1045

    def failed(spans: Spans) -> Spans:
        return Spans(s for s in server.spans(spans) if s.error)

    spans = session.watch.tracer.collect(failed, 2, mark=session.watch._mark)
    assert sorted(span.kind for span in spans) == sorted(KINDS)
    for span in spans:
        assert span.attributes["db.operation.name"] == "CONNECT", span
        assert span.attributes["db.response.status_code"] == "1045", span
        assert GUARDED not in str(span.raw["attributes"]) + span.raw["status_message"], span


def counted(tracer: Tracer, name: str) -> int:
    """A counter of the tracer's, by name."""
    return sum(count.value for count in tracer.status().counts if count.name == name)


@pytest.mark.parametrize("how", ["encrypted", "compressed"])
def test_left_alone(watch: Watch, server: MySql, table: str, how: str) -> None:
    before = counted(watch.tracer, how)
    options: dict[str, Any] = place(server, "tcp")
    if how == "compressed":
        options |= {"compress": True, "ssl_disabled": True}
    with mysql.connector.connect(**options, use_pure=True) as connection:
        with connection.cursor() as cursor:
            for n in range(20):
                cursor.execute(f"SELECT {n} AS {table}, n FROM ten")
                assert len(cursor.fetchall()) == 10
    where = "tcp" if how == "encrypted" else "unix"
    option = "--ssl" if how == "encrypted" else "--compress"
    if how == "encrypted" and server.name == "mysql":
        option = "--ssl-mode=REQUIRED"
    run([*server.client(where, option), "-e", f"SELECT n AS {table} FROM {DATABASE}.ten"])
    watch.tracer.settle()
    assert counted(watch.tracer, how) - before == 4, "two connections, seen at both ends"
    assert not server.spans(watch.tracer.since(watch._mark))


def test_connections_older_than_the_tracer(
    start_tracer: Callable[..., Tracer], server: MySql, table: str
) -> None:
    options = place(server, "tcp")
    with mysql.connector.connect(**options, use_pure=True, ssl_disabled=True) as connection:
        cursor = connection.cursor()
        cursor.execute(statements(table)[0])
        before = connection.cursor(prepared=True)
        before.execute("SELECT n FROM ten WHERE n < %s", (3,))
        before.fetchall()
        tracer = start_tracer()
        for n in range(5):
            cursor.execute(f"INSERT INTO {table} (id) VALUES ({n})")
        cursor.execute(f"SELECT id FROM {table}")
        assert len(cursor.fetchall()) == 5
        before.execute("SELECT n FROM ten WHERE n < %s", (7,))
        assert len(before.fetchall()) == 7
        after = connection.cursor(prepared=True)
        for n in (1, 2):
            after.execute("SELECT n FROM ten WHERE n = %s", (n,))
            assert len(after.fetchall()) == 1
        cursor.execute(f"SELECT id FROM {table} WHERE id = 1")
        cursor.fetchall()
    spans = tracer.collect(server.spans, 2 * 12)
    assert not tracer.losses()
    for kind in KINDS:
        order = sorted(spans.of(kind), key=lambda span: span.start)
        mine = [step(s) for s in order if f" {table}" in text(s)]
        assert mine == [["INSERT", None, 1, None]] * 5 + [
            ["SELECT", 5, None, None],
            ["SELECT", 1, None, None],
        ]
        (unknown,) = (
            s
            for s in order
            if "statement_unknown" in s.attributes.get("wirespan.incomplete", "")
            and s.attributes["db.operation.name"] == "EXECUTE"
        )
        assert unknown.attributes["db.response.returned_rows"] == 7
        known = [s for s in order if text(s) == "SELECT n FROM ten WHERE n = ?"]
        assert [verb(s) for s in known] == ["PREPARE", "SELECT", "SELECT"]
        assert not any("db.namespace" in s.attributes for s in order)
