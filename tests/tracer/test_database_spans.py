"""Spans of exchanges with databases, attribute by attribute, against the conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.tracer.records import (
    Processes,
    Routes,
    attributes_of,
    batch_of,
    database_record,
    names_of,
    shapes_of,
)
from tracer.flow import Database, End, Family, Flag, Kind, Protocol, Role
from tracer.flows import Reassembler
from tracer.protocols import database, database_plain
from tracer.protocols.base import OPT_IN, Settings
from tracer.protocols.database import LAST
from tracer.protocols.messages import masked_error, masked_message
from tracer.protocols.mysql import Command, MySql
from tracer.protocols.postgresql import STARTUP, PostgreSql
from tracer.protocols.redis import Redis
from tracer.spans import KIND_CLIENT, KIND_SERVER, STATUS_ERROR, STATUS_UNSET, SpanBatch

DECODERS: dict[int, Any] = {
    Protocol.MYSQL: MySql,
    Protocol.POSTGRESQL: PostgreSql,
    Protocol.REDIS: Redis,
}
Records = NDArray[np.void]


@pytest.fixture(autouse=True, params=[1 << 30, 1], ids=["one by one", "in columns"])
def min_records(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have few records read in either way."""
    monkeypatch.setattr(database_plain, "MIN_RECORDS", request.param)


def tracer(opt_in: frozenset[str] = OPT_IN, sql: Any = "mask") -> Reassembler:
    settings = Settings(sql=sql, opt_in=opt_in)
    return Reassembler(Processes(), Routes(), settings, DECODERS)


def feed(*records: Records, **settings: Any) -> SpanBatch:
    return tracer(**settings).feed(batch_of(*records), 0)


def mysql(method: int = Command.QUERY, **values: Any) -> Records:
    return database_record(Protocol.MYSQL, method, **values)


def postgresql(method: str = "Q", **values: Any) -> Records:
    number = STARTUP if method == "startup" else ord(method)
    return database_record(Protocol.POSTGRESQL, number, **values)


def redis(query: str, arguments: int = 0, **values: Any) -> Records:
    return database_record(Protocol.REDIS, 0, query=query, request_messages=arguments, **values)


def login(version: str = "8.4.3", named: str = "shop", **values: Any) -> Records:
    return mysql(Command.CONNECT, server_version=version, database=named, **values)


def last(*records: Records, **settings: Any) -> dict[str, Any]:
    """Attributes of the last span."""
    batch = feed(*records, **settings)
    return attributes_of(batch, len(batch) - 1)


def test_a_query_whole() -> None:
    batch = feed(
        login(),
        mysql(query="SELECT * FROM orders WHERE id = 5", rows_returned=3),
    )
    assert len(batch) == 1
    one = shapes_of(batch)[0]
    assert (one.name, one.kind) == ("SELECT orders", KIND_CLIENT)
    assert (one.status, one.status_message) == (STATUS_UNSET, "")
    assert attributes_of(batch) == {
        "db.system.name": "mysql",
        "db.namespace": "shop",
        "db.operation.name": "SELECT",
        "db.collection.name": "orders",
        "db.query.summary": "SELECT orders",
        "db.query.text": "SELECT * FROM orders WHERE id = ?",
        "db.response.returned_rows": 3,
        "server.address": "10.0.0.5",
        "server.port": 3306,
        "network.peer.address": "10.0.0.5",
        "network.peer.port": 3306,
        "network.transport": "tcp",
        "network.type": "ipv4",
        "thread.id": 78,
        "wirespan.time_to_first_byte_ns": 250_000,
        "wirespan.protocol": "mysql",
    }


def test_a_served_query() -> None:
    batch = feed(mysql(query="SELECT 1", role=Role.SERVER))
    assert shapes_of(batch)[0].kind == KIND_SERVER
    attributes = attributes_of(batch)
    assert attributes["server.address"] == "10.0.0.5"
    assert attributes["server.port"] == 3306
    assert attributes["client.address"] == attributes["network.peer.address"] == "10.0.0.9"
    assert attributes["client.port"] == attributes["network.peer.port"] == 40000


def test_what_the_conventions_only_require() -> None:
    assert set(last(mysql(query="SELECT 1"), opt_in=frozenset())) == {
        "db.system.name", "db.operation.name", "db.query.summary", "db.query.text",
        "server.address", "server.port", "network.peer.address", "network.peer.port",
        "wirespan.time_to_first_byte_ns", "wirespan.protocol",
    }  # fmt: skip


def test_unix_sockets() -> None:
    values = {"family": Family.UNIX, "unix_path": "/run/mysqld.sock"}
    client = last(mysql(query="SELECT 1", **values))
    assert client["server.address"] == client["network.peer.address"] == "/run/mysqld.sock"
    assert client["network.transport"] == "unix"
    server = last(mysql(query="SELECT 1", role=Role.SERVER, **values))
    assert server["server.address"] == "/run/mysqld.sock"
    assert not [key for key in (*client, *server) if key.endswith(".port")]
    assert "client.address" not in server
    cut = last(mysql(query="SELECT 1", cut=[Database.UNIX_PATH], **values))
    assert cut["wirespan.truncated"] == "server.address,network.peer.address"


@pytest.mark.parametrize(
    ("version", "system"),
    [
        ("8.4.3", "mysql"),
        ("5.5.5-10.11.6-MariaDB-1", "mariadb"),
        ("11.4.2-MariaDB", "mariadb"),
        ("", "mysql"),
    ],
)
def test_systems(version: str, system: str) -> None:
    assert last(login(version), mysql(query="SELECT 1"))["db.system.name"] == system


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("mask", "SELECT a FROM t WHERE b = ?"),
        ("raw", "SELECT a FROM t WHERE b = 'x'"),
        ("drop", None),
    ],
)
def test_statements_may_be_kept_or_dropped(sql: str, text: str | None) -> None:
    batch = feed(mysql(query="SELECT a FROM t WHERE b = 'x'"), sql=sql)
    assert attributes_of(batch).get("db.query.text") == text
    assert names_of(batch) == ["SELECT t"]
    cut = last(mysql(query="SELECT a FROM t WHERE b = 'x", cut=[Database.QUERY]), sql=sql)
    assert cut.get("wirespan.truncated") == ("db.query.text" if text else None)


# Errors.


def test_an_error_of_mysql() -> None:
    values = {"code": 1062, "sqlstate": "23000"}
    message = "Duplicate entry 'it's me' for key 'users.email'"
    batch = feed(mysql(query="INSERT INTO users VALUES ('it')", error=message, **values))
    one = shapes_of(batch)[0]
    assert (one.status, one.status_message) == (STATUS_ERROR, "Duplicate entry ?")
    attributes = attributes_of(batch)
    assert attributes["db.response.status_code"] == attributes["error.type"] == "1062"
    assert "wirespan.db.affected_rows" not in attributes
    raw = feed(mysql(query="INSERT", error=message, **values), sql="raw")
    assert shapes_of(raw)[0].status_message == message
    for code, state in ((1644, ""), (30001, "45000")):
        values = {"error": "bob is no user", "code": code, "sqlstate": state}
        signal = feed(mysql(query="CALL p()", **values))
        assert shapes_of(signal)[0].status_message == ""
        assert attributes_of(signal)["db.response.status_code"] == str(code)


@pytest.mark.parametrize(
    ("message", "cut", "masked"),
    [
        ("Table 'shop.x' doesn't exist", False, "Table ? doesn't exist"),
        ("Unknown column 'a' in 'field list'", False, "Unknown column ?"),
        ("Duplicate entry 'secr", True, "Duplicate entry ?"),
        ("Duplicate entry 'a' b", True, "Duplicate entry ?"),
        ("Duplicate entry 'secr", False, "Duplicate entry ?"),
        ('relation "x" does not exist', False, "relation ? does not exist"),
        ("Lock wait timeout exceeded", False, "Lock wait timeout exceeded"),
    ],
)
def test_messages(message: str, cut: bool, masked: str) -> None:
    assert masked_message(message, cut) == masked


@pytest.mark.parametrize(
    ("message", "masked"),
    [
        ("date field value out of range: 1974-13-05", "date field value out of range: ?"),
        ("Unknown thread id: 7741", "Unknown thread id: ?"),
        ("value -4.5e7 is out of bounds (1..5)", "value ? is out of bounds (?)"),
        ("Table 't2' of md5 doesn't exist at line 3", "Table ? of md5 doesn't exist at line ?"),
    ],
)
def test_numbers_in_errors(message: str, masked: str) -> None:
    assert masked_error(message, False) == masked


def test_an_error_of_postgresql() -> None:
    batch = feed(
        postgresql(
            query="SELECT 'abc'::int", sqlstate="22P02",
            error='invalid input syntax for type integer: "abc"',
        ),
        postgresql(query="SELECT f()", sqlstate="P0001", error="bob is no user"),
        postgresql(query="SELECT 1", sqlstate="01000", error="be warned"),
    )  # fmt: skip
    bad, raised, warned = shapes_of(batch)
    assert bad.status_message == "invalid input syntax for type integer: ?"
    attributes = attributes_of(batch)
    assert attributes["db.response.status_code"] == attributes["error.type"] == "22P02"
    assert (raised.status, raised.status_message) == (STATUS_ERROR, "")
    assert warned.status == STATUS_UNSET


@pytest.mark.parametrize(
    ("error", "code", "kind", "message"),
    [
        ("WRONGTYPE Operation against a key", "WRONGTYPE", "WRONGTYPE",
         "WRONGTYPE Operation against a key"),
        ("ERR unknown command 'x', with args beginning with: 'secret'", "ERR", "ERR",
         "ERR unknown command ?"),
        ("odd", None, "_OTHER", "odd"),
    ],
)  # fmt: skip
def test_errors_of_redis(error: str, code: Any, kind: str, message: str) -> None:
    batch = feed(redis("GET", 1, error=error))
    attributes = attributes_of(batch)
    assert (attributes.get("db.response.status_code"), attributes["error.type"]) == (code, kind)
    assert shapes_of(batch)[0].status_message == message


def test_what_is_no_subcommand_is_not_shown() -> None:
    error = "ERR unknown subcommand 'hunter2'. Try CONFIG HELP."
    batch = feed(redis("CONFIG hunter2", 0, error=error))
    assert attributes_of(batch)["db.operation.name"] == "CONFIG"
    assert "hunter2" not in repr(attributes_of(batch)) + repr(shapes_of(batch)[0])


@pytest.mark.parametrize(
    ("role", "end", "kind"),
    [
        (Role.CLIENT, End.PEER, "connection_closed"),
        (Role.CLIENT, End.LOCAL, "cancelled"),
        (Role.SERVER, End.PEER, "cancelled"),
        (Role.SERVER, End.LOCAL, "connection_closed"),
        (Role.CLIENT, End.RESET, "connection_reset"),
        (Role.SERVER, End.TIMEOUT, "timeout"),
        (Role.CLIENT, End.INVALID, "invalid_response"),
    ],
)
def test_exchanges_that_did_not_end_well(role: Role, end: End, kind: str) -> None:
    batch = feed(mysql(query="SELECT 1", role=role, end=end))
    assert attributes_of(batch)["error.type"] == kind
    one = shapes_of(batch)[0]
    assert one.status == STATUS_ERROR and one.status_message
    assert "HTTP" not in one.status_message
    assert "db.response.status_code" not in attributes_of(batch)
    assert "db.response.returned_rows" not in attributes_of(batch)


def test_a_gap_is_no_error() -> None:
    batch = feed(mysql(query="SELECT 1", end=End.GAP))
    assert attributes_of(batch)["wirespan.incomplete"] == "gap"
    assert shapes_of(batch)[0].status == STATUS_UNSET


# Rows.


@pytest.mark.parametrize(
    ("query", "returned", "affected", "shown"),
    [
        ("SELECT 1 FROM t", 0, 0, (0, None)),
        ("SHOW TABLES", 2, 0, (2, None)),
        ("INSERT INTO t VALUES (1)", 0, 1, (None, 1)),
        ("UPDATE t SET a = 1", 0, 0, (None, 0)),
        ("DELETE FROM t RETURNING a", 2, 2, (2, 2)),
        ("SET x = 1", 0, 0, (None, None)),
        ("BEGIN", 0, 0, (None, None)),
    ],
)
def test_rows(query: str, returned: int, affected: int, shown: Any) -> None:
    values: dict[str, Any] = {"rows_returned": returned, "rows_affected": affected}
    for one in (mysql(query=query, **values), postgresql(query=query, **values)):
        attributes = last(one)
        assert shown == (
            attributes.get("db.response.returned_rows"),
            attributes.get("wirespan.db.affected_rows"),
        )


# Namespaces.


def test_the_database_of_a_mysql_connection() -> None:
    select = mysql(query="SELECT 1")
    batch = feed(
        login(named="a"), select,
        mysql(Command.INIT_DB, database="b"), select,
        mysql(query="USE `c`"), select,
        mysql(query="USE nope", code=1049, error="Unknown database 'nope'"), select,
        mysql(Command.INIT_DB, database="nope", code=1049), select,
        mysql(Command.CHANGE_USER, database="d"), select,
        mysql(Command.RESET_CONNECTION), select,
        mysql(query="SELECT 1", conn_id=6),
    )  # fmt: skip
    found = [attributes_of(batch, row).get("db.namespace") for row in range(len(batch))]
    assert found == ["a", "b", "b", "b", "c", "c", "c", "nope", "c", "d", "d", "d", "d", None]
    assert names_of(batch)[1] == "INIT_DB b"
    assert names_of(batch)[9] == "CHANGE_USER"


def test_an_old_connection_has_no_namespace_until_one_is_chosen() -> None:
    old = {"flags": Flag.OLD}
    batch = feed(
        mysql(query="SELECT 1", **old), mysql(query="USE c", **old), mysql(query="SELECT 1", **old)
    )
    assert [attributes_of(batch, row).get("db.namespace") for row in range(3)] == [None, None, "c"]
    # Lost track of.
    assert "db.namespace" not in last(login(), mysql(query="SELECT 1", **old))
    assert "db.namespace" not in last(redis("GET", 1, flags=Flag.OLD))


def test_a_closed_connection_is_forgotten() -> None:
    closed = mysql(0, kind=Kind.CLOSED)
    assert "db.namespace" not in last(login(), closed, mysql(query="SELECT 1"))
    # So is one whose end was missed: the same number, other ends.
    other = mysql(query="SELECT 1", local="10.0.0.9:40001")
    assert "db.namespace" not in last(login(), other)


def test_the_database_of_redis() -> None:
    batch = feed(
        redis("GET", 1), redis("SELECT", 1, database="3"), redis("get", 1),
        redis("SELECT", 1, database="99", error="ERR DB index is out of range"), redis("GET", 1),
        redis("RESET"), redis("GET", 1),
    )  # fmt: skip
    found = [attributes_of(batch, row)["db.namespace"] for row in range(len(batch))]
    assert found == ["0", "0", "3", "3", "3", "3", "0"]
    assert names_of(batch) == ["GET", "SELECT", "get", "SELECT", "GET", "RESET", "GET"]


def test_the_database_of_postgresql() -> None:
    batch = feed(postgresql("startup", database="shop"), postgresql(query="SELECT 1 FROM t"))
    assert names_of(batch) == ["SELECT t"]
    attributes = attributes_of(batch)
    assert (attributes["db.system.name"], attributes["db.namespace"]) == ("postgresql", "shop")


# Commands.


def test_logins_are_spans_only_if_they_fail() -> None:
    assert len(feed(login(), postgresql("startup", database="x"))) == 0
    assert len(feed(login(end=End.GAP))) == 0
    batch = feed(
        login("11.4-MariaDB", code=1045, error="Access denied for user 'bob'@'h' (using password)"),
        postgresql("startup", conn_id=7, database="x", sqlstate="28P01", error='no "x"'),
        mysql(Command.CONNECT, conn_id=8, end=End.RESET),
    )
    assert names_of(batch) == ["CONNECT shop", "CONNECT x", "CONNECT"]
    attributes = attributes_of(batch)
    assert (attributes["db.system.name"], attributes["error.type"]) == ("mariadb", "1045")
    assert shapes_of(batch)[0].status_message == "Access denied for user ? (using password)"
    assert attributes_of(batch, 1)["db.response.status_code"] == "28P01"


@pytest.mark.parametrize(
    ("method", "name"),
    [
        (Command.PING, "PING"),
        (Command.STATISTICS, "STATISTICS"),
        (Command.QUIT, "QUIT"),
        (0x7F, "mysql"),
    ],
)
def test_commands_without_sql(method: int, name: str) -> None:
    batch = feed(login(), mysql(method))
    assert names_of(batch) == [name]
    assert attributes_of(batch).get("db.operation.name") == (None if name == "mysql" else name)


def test_a_statement_that_is_none() -> None:
    batch = feed(mysql(query="ecret', 5)"), postgresql(query=""))
    assert names_of(batch) == ["mysql", "postgresql"]
    assert not {"db.query.text", "db.query.summary"} & set(attributes_of(batch))


def test_procedures_and_batches() -> None:
    attributes = last(mysql(query="CALL pay(5)"))
    assert attributes["db.stored_procedure.name"] == "pay"
    assert last(mysql(query="SELECT 1; SELECT 2"))["db.operation.batch.size"] == 2


def test_redis_commands() -> None:
    assert last(redis("HSET", 3))["db.query.text"] == "HSET ? ? ?"
    assert last(redis("MSET", 500))["db.query.text"] == "MSET" + " ?" * 9 + " ..."
    attributes = last(redis("CONFIG GET", 1))
    assert attributes["db.operation.name"] == "CONFIG GET"
    assert attributes["wirespan.protocol"] == "redis"
    assert "db.query.text" not in last(redis("GET", 1), sql="drop")
    assert "db.response.returned_rows" not in attributes
    odd = feed(redis("\x01\x02 secret"))
    assert names_of(odd) == ["redis"] and "secret" not in repr(attributes_of(odd))
    cut = last(redis("AVERYLONGNAME", 1, cut=[Database.QUERY]))
    assert cut["wirespan.truncated"] == "db.operation.name"


# Prepared statements.

SQL = "SELECT a FROM t WHERE b = ?"


def test_prepared_statements_of_mysql() -> None:
    batch = feed(
        mysql(Command.STMT_PREPARE, query=SQL, stream_id=7),
        mysql(Command.STMT_EXECUTE, stream_id=7, rows_returned=0),
        mysql(Command.STMT_EXECUTE, stream_id=LAST),
        mysql(Command.STMT_FETCH, stream_id=7, rows_returned=1),
        mysql(Command.STMT_RESET, stream_id=7),
        mysql(Command.STMT_CLOSE, stream_id=7, first_byte_ns=0),
        mysql(Command.STMT_EXECUTE, stream_id=8),
        mysql(Command.STMT_EXECUTE, stream_id=7, conn_id=6),
    )
    assert names_of(batch) == [
        "PREPARE SELECT t", "SELECT t", "SELECT t", "FETCH SELECT t", "RESET SELECT t",
        "CLOSE SELECT t", "EXECUTE", "EXECUTE",
    ]  # fmt: skip
    found = [attributes_of(batch, row) for row in range(len(batch))]
    assert [one.get("db.query.text") for one in found] == [SQL] * 4 + [None] * 4
    assert found[0]["db.operation.name"] == "PREPARE"
    assert found[1]["db.operation.name"] == "SELECT"
    assert found[1]["db.response.returned_rows"] == 0
    assert "db.response.returned_rows" not in found[0]
    assert found[6]["wirespan.incomplete"] == found[7]["wirespan.incomplete"] == "statement_unknown"


def test_what_ends_prepared_statements() -> None:
    prepare = mysql(Command.STMT_PREPARE, query=SQL, stream_id=1)
    execute = mysql(Command.STMT_EXECUTE, stream_id=1)
    for ended in (Command.RESET_CONNECTION, Command.CHANGE_USER):
        assert "db.query.text" not in last(prepare, mysql(ended), execute)
    failed = mysql(Command.STMT_PREPARE, query=SQL, stream_id=1, code=1064)
    assert "db.query.text" not in last(failed, execute)


def test_prepared_statements_of_postgresql() -> None:
    batch = feed(
        postgresql("P", statement="s1", query=SQL),
        postgresql("E", statement="s1", request_messages=1),
        postgresql("E", query="SELECT 1 FROM u", request_messages=1),
        postgresql("E", request_messages=1),
        postgresql("E", statement="s2", request_messages=1),
        postgresql("D", statement="s1"),
    )
    assert names_of(batch) == [
        "PREPARE SELECT t", "SELECT t", "SELECT u", "SELECT u", "EXECUTE", "DESCRIBE",
    ]  # fmt: skip
    assert attributes_of(batch, 1)["db.query.text"] == SQL
    assert attributes_of(batch, 4)["wirespan.incomplete"] == "statement_unknown"


def test_portals_of_postgresql() -> None:
    """An Execute without a Bind is of the statement that its portal was bound to."""
    bound = {"request_messages": 1}
    batch = feed(
        postgresql("P", statement="s1", query="SELECT 1 FROM a"),
        postgresql("B", statement="s1", portal="c1", **bound),
        postgresql("E", portal="c1"),
        postgresql("E", query="SELECT 1 FROM b", portal="c2", **bound),
        postgresql("E", query="SELECT 1 FROM c", **bound),
        postgresql("E", portal="c2"),
        postgresql("E"),
        postgresql("E", portal="c1"),
        postgresql("E", portal="c3"),
        postgresql("B", statement="s9", portal="c2", **bound),
        postgresql("E", portal="c2"),
        postgresql("E", portal="c1", sqlstate="34000", error="no portal"),
        postgresql("E", portal="c1"),
        postgresql("E", portal="c" * 64),
        postgresql("E", statement="s1", portal="c" * 64, **bound),
        postgresql("E", portal="c" * 64),
    )
    assert names_of(batch) == [
        "PREPARE SELECT a", "BIND SELECT a", "SELECT a", "SELECT b", "SELECT c", "SELECT b",
        "SELECT c", "SELECT a", "EXECUTE", "BIND", "EXECUTE", "EXECUTE", "EXECUTE", "EXECUTE",
        "SELECT a", "EXECUTE",
    ]  # fmt: skip
    unknown = [attributes_of(batch, n).get("wirespan.incomplete") for n in range(len(batch))]
    assert [n for n, why in enumerate(unknown) if why] == [8, 9, 10, 11, 12, 13, 15]
    assert set(unknown) == {None, "statement_unknown"}


def test_what_follows_an_error_in_a_batch_of_postgresql() -> None:
    batch = feed(
        postgresql("E", query="SELECT 1 FROM a", stream_id=3, sqlstate="42P01", error="no a"),
        postgresql("E", query="SELECT 1 FROM b", stream_id=3),
        postgresql("E", query="SELECT 1 FROM c", stream_id=4),
    )
    assert [attributes_of(batch, row).get("error.type") for row in range(3)] == [
        "42P01", "skipped", None,
    ]  # fmt: skip
    assert names_of(batch) == ["SELECT a", "SELECT b", "SELECT c"]


def test_statements_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MAX_PREPARED", 2)
    monkeypatch.setattr(database, "MAX_SESSIONS", 2)
    prepares = [mysql(Command.STMT_PREPARE, query=SQL, stream_id=number) for number in range(3)]
    assert "db.query.text" not in last(*prepares, mysql(Command.STMT_EXECUTE, stream_id=0))
    assert "db.query.text" in last(*prepares, mysql(Command.STMT_EXECUTE, stream_id=2))
    logins = [login(conn_id=number) for number in range(3)]
    assert "db.namespace" not in last(*logins, mysql(query="SELECT 1", conn_id=0))
    assert "db.namespace" in last(*logins, mysql(query="SELECT 1", conn_id=2))


# Strings in parts.


def parts(text: str, size: int, **values: Any) -> list[Records]:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    made = [
        mysql(kind=Kind.PART, query=piece, version=number % 256, **values)
        for number, piece in enumerate(pieces[:-1], 1)
    ]
    return [*made, mysql(query=pieces[-1], version=len(made) % 256, **values)]


def test_strings_in_parts_are_joined() -> None:
    text = "SELECT " + ", ".join(f"c{number}" for number in range(300)) + " FROM t WHERE a = 'x'"
    between = mysql(query="SELECT 1", request_seq=9)
    rows = parts(text, 400)
    batch = feed(*rows[:-1], between, rows[-1])
    assert attributes_of(batch, 1)["db.query.text"] == text.replace("'x'", "?")
    assert names_of(batch) == ["SELECT", "SELECT t"]
    # Over several batches, too, and remembered.
    one = tracer()
    for _ in range(2):
        for row in rows:
            batch = one.feed(row, 0)
    assert names_of(batch) == ["SELECT t"]


def test_strings_of_lost_parts_are_not_shown() -> None:
    rows = parts("SELECT 'a' " + "secret " * 400, 400)
    for lost in range(len(rows) - 1):
        batch = feed(*rows[:lost], *rows[lost + 1 :])
        assert names_of(batch) == ["mysql"]
        assert "db.query.text" not in attributes_of(batch)
        assert attributes_of(batch)["wirespan.incomplete"] == "gap"
    assert "db.query.text" not in attributes_of(feed(rows[-1]))


def test_parts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MAX_TEXT", 500)
    attributes = last(*parts("SELECT " + "a, " * 400, 400))
    assert len(attributes["db.query.text"]) <= 500
    assert attributes["wirespan.truncated"] == "db.query.text"
    monkeypatch.setattr(database, "MAX_UNDER_WAY", 2)
    one = tracer()
    for seq in range(9):
        one.feed(mysql(kind=Kind.PART, query="SELECT", request_seq=seq, version=1), 0)
    decoder: Any = one._decoders[Protocol.MYSQL]
    assert [len(session.parts) for session in decoder._sessions.values()] == [2]


# What tells shapes apart.


def test_statements_that_differ_in_literals_share_a_shape() -> None:
    rows = [mysql(query=f"SELECT a FROM t WHERE b = {number}") for number in range(9)]
    rows += [mysql(query="SELECT a FROM t WHERE b = 5", conn_id=9, remote_port=3306)]
    assert len(feed(*rows).shapes) == 1


def test_statements_are_read_once_however_their_literals_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    original = MySql.read

    def counted(self: MySql, session: Any, exchange: Any, subject: object) -> Any:
        read.append(exchange.text(Database.QUERY))
        return original(self, session, exchange, subject)

    monkeypatch.setattr(MySql, "read", counted)
    queries = [mysql(query=f"SELECT a FROM t WHERE id = {number}") for number in range(9)]
    failed = mysql(query="SELECT a FROM t WHERE id = 9", error="no such row", code=1054)
    elsewhere = [login(named="b", conn_id=8), mysql(query="SELECT a FROM t", conn_id=8)]
    batch = feed(*queries, failed, *queries, *elsewhere, mysql(query="SELECT a FROM t", conn_id=9))
    assert len(read) == 5  # of the eighteen one; the error, the login; two without a literal
    assert len(set(batch.shape[[*range(9), *range(10, 19)]].tolist())) == 1
    assert attributes_of(batch, 9)["db.response.status_code"] == "1054"
    assert attributes_of(batch, 19)["db.namespace"] == "b"
    assert "db.namespace" not in attributes_of(batch, 20)


def test_rows_and_numbers_are_columns() -> None:
    batch = feed(
        login(), mysql(query="SELECT 1", rows_returned=1), mysql(query="SELECT 1", rows_returned=2)
    )
    found = [attributes_of(batch, row)["db.response.returned_rows"] for row in range(2)]
    assert found == [1, 2] and len(batch.shapes) == 1


def test_a_new_list_of_shapes_is_filled_anew() -> None:
    one = Reassembler(Processes(), Routes(), Settings(max_shapes=2), DECODERS)
    for number in range(12):
        batch = one.feed(batch_of(login(), mysql(query=f"SELECT 1 FROM t{number % 3}")), 0)
        assert names_of(batch) == [f"SELECT t{number % 3}"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(DECODERS)), st.sampled_from([1, 3, 4, 5]), st.integers(0, 255),
            st.binary(max_size=432), st.binary(min_size=32, max_size=32), st.integers(0, 2**32 - 1),
            st.integers(0, 8),
        ),
        max_size=8,
    )
)  # fmt: skip
def test_any_record_is_taken(rows: list[Any]) -> None:
    made = []
    for protocol, kind, method, text, fields, number, end in rows:
        one = database_record(protocol, method, kind=kind, stream_id=number, code=number, end=end)
        one["text"][0, : len(text)] = np.frombuffer(text, np.uint8)
        one["text_len"] = number % 1000
        one["fields"] = np.frombuffer(fields, one["fields"].dtype).reshape(1, 8)
        made.append(one)
    batch = feed(*made) if made else feed(mysql())
    for row in range(len(batch)):
        assert names_of(batch)[row]
        attributes_of(batch, row)
