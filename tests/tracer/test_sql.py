"""SQL statements: no literal may be seen of any, and what they do is told apart from what not."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tracer.protocols import sql
from tracer.protocols.sql import NOTHING, Dialect, Statements, analyse
from tracer.protocols.sql_summary import MAX_LENGTH

DIALECTS: tuple[Dialect, ...] = ("mysql", "postgresql")

MASKED: list[tuple[str, str, str]] = [
    # dialect ("" for both), statement, masked
    ("", "SELECT 1", "SELECT ?"),
    ("", "select  *\n\tfrom t where a='x''y'", "select * from t where a=?"),
    ("", "SELECT -1, +.5, 1e-9, 1.5E+3, 0xFF, 1.", "SELECT -?, +?, ?, ?, ?, ?"),
    ("", "SELECT a1, t2.c3 FROM t2", "SELECT a1, t2.c3 FROM t2"),
    ("", "SELECT TRUE, false, NULL", "SELECT ?, ?, NULL"),
    ("", "SELECT x'1F', B'01', N'x'", "SELECT ?, ?, ?"),
    ("", "SELECT ?, :name, %s, %(x)s", "SELECT ?, :name, %s, %(x)s"),
    ("", "SELECT DATE '2024-01-01'", "SELECT DATE ?"),
    ("", "SELECT 1 -- secret\n, 2", "SELECT ? , ?"),
    ("", "SELECT 1 -- secret", "SELECT ?"),
    ("", "SELECT /* secret */ 1 /* cut", "SELECT ?"),
    ("", "SELECT 1;", "SELECT ?"),
    ("", "SELECT 'cut", "SELECT ?"),
    ("", "SELECT caf\u00e9 FROM t", "SELECT caf\u00e9 FROM t"),
    ("mysql", 'SELECT "a""b\\"c", `we"ird 5`', "SELECT ?, `we\"ird 5`"),
    ("mysql", "SELECT 'it\\'s', 'a\\\\', 5", "SELECT ?, ?, ?"),
    ("mysql", "SELECT 1 # secret\n+1", "SELECT ? +?"),
    ("mysql", "SELECT 5--1", "SELECT ?--?"),
    ("mysql", "SELECT _utf8mb4'x', 0b01", "SELECT _utf8mb4?, ?"),
    ("mysql", "SELECT 2*/*secret*/3", "SELECT ?* ?"),
    ("mysql", "/*!40101 SET NAMES 'utf8' */", "SET NAMES ?"),
    ("mysql", "SELECT /*M!100100 1, */ 2", "SELECT ?, ?"),
    ("mysql", "SELECT /*+ MAX_EXECUTION_TIME(9) */ 1", "SELECT ?"),
    ("mysql", "SELECT @a, @@session.x", "SELECT @a, @@session.x"),
    ("mysql", "SELECT `cut", "SELECT ?"),
    ("mysql", "CREATE FUNCTION f() RETURNS INT LANGUAGE JAVASCRIPT AS $$ secret $$",
     "CREATE FUNCTION f() RETURNS INT LANGUAGE JAVASCRIPT AS ?"),
    ("mysql", "SELECT $a$ secret $b$ secret", "SELECT ?"),
    ("mysql", "SELECT a$b, c$$ FROM t", "SELECT a$b, c$$ FROM t"),
    # What settings are given without quotes.
    ("mysql", "SET @@a=secret, @b := secret, c = @d", "SET @@a=?, @b := ?, c = @d"),
    ("mysql", "SET a = DEFAULT, b = ON, c = (SELECT d FROM t)",
     "SET a = DEFAULT, b = ON, c = (SELECT d FROM t)"),
    ("postgresql", "SET app.token TO secret, \"secret\"", "SET app.token TO ?, ?"),
    ("postgresql", "ALTER ROLE a SET b TO secret; SELECT c FROM t WHERE d = e",
     "ALTER ROLE a SET b TO ?; SELECT c FROM t WHERE d = e"),
    ("postgresql", "ALTER TABLE a RENAME TO b", "ALTER TABLE a RENAME TO b"),
    ("postgresql", "UPDATE t SET a = b", "UPDATE t SET a = b"),
    # NO_BACKSLASH_ESCAPES: only this reading has an end.
    ("mysql", "SELECT 'a\\', secret, 1", "SELECT ?, secret, ?"),
    ("postgresql", "SELECT \"a\"\"b 5\" FROM t", "SELECT \"a\"\"b 5\" FROM t"),
    ("postgresql", "SELECT 'C:\\', e'it\\'s', U&'x' UESCAPE '!'", "SELECT ?, ?, ? UESCAPE ?"),
    ("postgresql", "SELECT $$secret$$, $a$ $$ ' $a$, $1", "SELECT ?, ?, $1"),
    ("postgresql", "SELECT $a$ secret $b$", "SELECT ?"),
    ("postgresql", "SELECT a$b$c FROM t", "SELECT a$b$c FROM t"),
    ("postgresql", "SELECT 1$a$ secret$a$, 1$b", "SELECT ??, ?"),
    ("postgresql", "SELECT 1 /* a /* secret */ secret */ + 2", "SELECT ? + ?"),
    ("postgresql", "SELECT 1::int, x[1:2], '{1,2}'::int[]", "SELECT ?::int, x[?:?], ?::int[]"),
    ("postgresql", "SELECT a ->> 'k', b ? 'k', 1_000", "SELECT a ->> ?, b ? ?, ?"),
    # standard_conforming_strings = off
    ("postgresql", "SELECT 'it\\'s secret'", "SELECT ?"),
    ("postgresql", "SELECT \"cut", "SELECT ?"),
    ("postgresql", "DO $$ BEGIN RAISE 'x'; END $$", "DO ?"),
    # Lists.
    ("", "SELECT a FROM t WHERE b IN (1, 2,3)", "SELECT a FROM t WHERE b IN (?)"),
    ("", "SELECT a FROM t WHERE (a,b) IN ((1, 'x'),(2,'y'))", "SELECT a FROM t WHERE (a,b) IN (?)"),
    ("", "SELECT a FROM t WHERE b IN (1, 2, 'cut", "SELECT a FROM t WHERE b IN (?"),
    ("", "SELECT a FROM t WHERE b IN (c, 2)", "SELECT a FROM t WHERE b IN (c, ?)"),
    ("", "SELECT a FROM t WHERE b IN (SELECT 1)", "SELECT a FROM t WHERE b IN (SELECT ?)"),
    ("", "INSERT INTO t VALUES (1,'a'), (2,NULL) ,(-3,'b')", "INSERT INTO t VALUES (?)"),
    ("", "INSERT INTO t VALUES (1,'a'),(2,'cut", "INSERT INTO t VALUES (?)"),
    ("", "INSERT INTO t VALUES (1,'a'),", "INSERT INTO t VALUES (?)"),
    ("", "INSERT INTO t VALUES (1,NOW()),(2,NOW())", "INSERT INTO t VALUES (?,NOW())"),
    ("mysql", "INSERT INTO t VALUES (1) ON DUPLICATE KEY UPDATE a=VALUES(a), b=VALUES(b)",
     "INSERT INTO t VALUES (?) ON DUPLICATE KEY UPDATE a=VALUES(a), b=VALUES(b)"),
    ("mysql", "VALUES ROW(1,2), ROW(3,4)", "VALUES (?)"),
    ("postgresql", "SELECT a FROM t WHERE b IN ($1, $2)", "SELECT a FROM t WHERE b IN ($1)"),
    ("postgresql", "INSERT INTO t VALUES ($1, $2), ($3, $4) RETURNING id",
     "INSERT INTO t VALUES ($1, $2) RETURNING id"),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "text", "masked"), MASKED)
def test_masks(dialect: Dialect, text: str, masked: str) -> None:
    for one in (dialect,) if dialect else DIALECTS:
        assert analyse(text, one).masked == masked


SUMMARIES = [
    # statement, summary, operation, collection
    ("SELECT * FROM wuser_table WHERE username = ?", "SELECT wuser_table", "SELECT", "wuser_table"),
    ("select 1", "select", "select", ""),
    ("INSERT INTO shipping_details (order_id, address) SELECT order_id, address FROM orders",
     "INSERT shipping_details SELECT orders", "", ""),
    ("SELECT * FROM songs, artists WHERE songs.a = artists.a", "SELECT songs artists", "SELECT",
     ""),
    ("SELECT d FROM (SELECT * FROM orders o JOIN customers c ON o.a = c.a)",
     "SELECT SELECT orders customers", "", ""),
    ("SELECT a FROM t x LEFT OUTER JOIN public.u AS y ON x.a=y.a, v WHERE a", "SELECT t public.u v",
     "SELECT", ""),
    ("SELECT a FROM t JOIN t ON 1=1", "SELECT t t", "SELECT", "t"),
    ("SELECT a FROM (t1 JOIN t2 USING (a))", "SELECT t1 t2", "SELECT", ""),
    ("SELECT a FROM x UNION ALL SELECT b FROM y", "SELECT x SELECT y", "", ""),
    ("SELECT n, (SELECT COUNT(*) FROM o WHERE i = c.i) FROM c", "SELECT SELECT o c", "", ""),
    ("SELECT EXTRACT(YEAR FROM ts), a IS DISTINCT FROM b FROM t", "SELECT t", "SELECT", "t"),
    ("SELECT * FROM generate_series(1, 2) g, t", "SELECT t", "SELECT", "t"),
    ("SELECT a FROM t FOR UPDATE", "SELECT t", "SELECT", "t"),
    ("SELECT REPLACE(a, 'x', 'y') FROM t", "SELECT t", "SELECT", "t"),
    ("WITH r AS (SELECT * FROM a), s (x) AS (SELECT 1) SELECT * FROM r, s, b",
     "SELECT a SELECT SELECT b", "", ""),
    ("WITH d AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM d",
     "DELETE a INSERT b SELECT", "", ""),
    ("UPDATE t SET a = 1 WHERE b = 2", "UPDATE t", "UPDATE", "t"),
    ("UPDATE t SET a = s.a FROM s", "UPDATE t s", "UPDATE", ""),
    ("DELETE FROM t WHERE a", "DELETE t", "DELETE", "t"),
    ("INSERT INTO t (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2", "INSERT t", "INSERT", "t"),
    ("MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN UPDATE SET a = 1", "MERGE t s", "MERGE",
     ""),
    ("CREATE  TABLE IF NOT EXISTS a.b (x int DEFAULT 5)", "CREATE TABLE a.b", "CREATE TABLE",
     "a.b"),
    ("CREATE TABLE a AS SELECT * FROM b", "CREATE TABLE a SELECT b", "", ""),
    ("CREATE UNIQUE INDEX i ON t (a)", "CREATE INDEX i", "CREATE INDEX", ""),
    ("CREATE OR REPLACE VIEW v AS SELECT * FROM t", "CREATE VIEW v SELECT t", "", ""),
    ("CREATE PROCEDURE p() BEGIN SELECT 1 FROM t; END", "CREATE PROCEDURE p", "CREATE PROCEDURE",
     ""),
    ("CREATE USER 'bob'@'%' IDENTIFIED BY 'pw'", "CREATE USER", "CREATE USER", ""),
    ("ALTER TABLE t ADD COLUMN a int, ADD b int", "ALTER TABLE t", "ALTER TABLE", "t"),
    ("DROP TABLE IF EXISTS a, b", "DROP TABLE a b", "DROP TABLE", ""),
    ("TRUNCATE t", "TRUNCATE t", "TRUNCATE", "t"),
    ("COPY t (a, b) FROM STDIN", "COPY t", "COPY", "t"),
    ("GRANT SELECT ON t TO u", "GRANT", "GRANT", ""),
    ("EXPLAIN ANALYZE UPDATE t SET a = 1", "EXPLAIN UPDATE t", "", ""),
    ("START TRANSACTION", "START TRANSACTION", "START TRANSACTION", ""),
    ("BEGIN", "BEGIN", "BEGIN", ""),
    ("SET x = 1", "SET", "SET", ""),
    ("LOAD DATA LOCAL INFILE 'x' INTO TABLE t", "LOAD DATA t", "LOAD DATA", "t"),
    ("SELECT 1 FROM a; INSERT INTO b VALUES (1);", "SELECT a INSERT b", "", ""),
    ("(SELECT 1 FROM a)", "SELECT a", "SELECT", "a"),
    ("CALL a.p(1)", "CALL a.p", "CALL", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "summary", "operation", "collection"), SUMMARIES)
def test_summaries(text: str, summary: str, operation: str, collection: str) -> None:
    for dialect in DIALECTS:
        found = analyse(text, dialect)
        assert (found.summary, found.operation, found.collection) == (
            summary, operation, collection,
        )  # fmt: skip


def test_quotes_go_where_a_name_needs_none() -> None:
    assert analyse("SELECT * FROM `shop`.`my table`, `x`", "mysql").summary == (
        "SELECT shop.`my table` x"
    )
    assert analyse('SELECT * FROM "song list", "x"', "postgresql").summary == (
        'SELECT "song list" x'
    )


def test_procedures_databases_and_batches() -> None:
    assert analyse("CALL a.p(1)", "mysql").procedure == "a.p"
    assert analyse("USE shop", "mysql").namespace == "shop"
    assert analyse("SELECT 1; SELECT 2;", "mysql").statements == 2


def test_a_long_summary_is_cut_between_names() -> None:
    tables = ", ".join(f"table_{number}" for number in range(99))
    summary = analyse(f"SELECT * FROM {tables}", "mysql").summary
    assert MAX_LENGTH - 10 < len(summary) <= MAX_LENGTH
    assert summary.endswith(" table_27")
    assert analyse(f"SELECT * FROM {'a' * 300}", "mysql").summary == "SELECT"


@pytest.mark.parametrize("text", ["", " ", "'x'", "ecret', 5)", "42", "; ;", "((", "nonsense 5"])
def test_what_does_not_begin_like_sql_is_not_shown(text: str) -> None:
    for dialect in DIALECTS:
        assert analyse(text, dialect) == NOTHING


# Literals hold no other letter than Z, and nothing else holds it.
INNER = st.lists(
    st.sampled_from(["Z", "ZZ", "'", '"', "\\", "`", "$", "$$", "--", "/*", "*/", "#", " ", "\n",
                     ";", "?", "(", ",", "\u017d"]),
    max_size=8,
).map(lambda parts: "Z" + "".join(parts))  # fmt: skip


def backslashed(inner: str, quote: str) -> str:
    return inner.replace("\\", "\\\\").replace(quote, "\\" + quote)


def doubled(inner: str, quote: str) -> str:
    return inner.replace(quote, quote * 2)


def mysql_literal(inner: str, form: int) -> str:
    quote = "'" if form % 2 else '"'
    if form < 2:
        return quote + backslashed(inner, quote) + quote
    return quote + doubled(inner.replace("\\", "\\\\"), quote) + quote


def postgresql_literal(inner: str, form: int) -> str:
    if form == 0:
        return "'" + doubled(inner, "'") + "'"
    if form == 1:
        return "E'" + backslashed(inner, "'") + "'"
    if form == 2:
        return "$q$" + inner.replace("$", "S") + "$q$"
    return "U&'" + doubled(inner, "'") + "'"


OTHERS = st.sampled_from(
    ["a", "FROM", "t1", ",", "(", ")", "IN", "VALUES", "=", "-", "NULL", "AND", ".", ";", "*",
     "-- x\n", "/* y */", "SELECT", "?"]
)  # fmt: skip


@st.composite
def statements(draw: st.DrawFn, dialect: Dialect) -> tuple[str, bool]:
    """A statement with literals, and whether it was cut."""
    literal = mysql_literal if dialect == "mysql" else postgresql_literal
    pieces = ["SELECT"]
    for _ in range(draw(st.integers(1, 8))):
        if draw(st.booleans()):
            pieces.append(literal(draw(INNER), draw(st.integers(0, 3))))
        else:
            pieces.append(draw(OTHERS))
    text = draw(st.sampled_from([" ", "  "])).join(pieces)
    length = draw(st.integers(0, len(text)))
    return (text[:length], True) if draw(st.booleans()) else (text, False)


@given(statements("mysql"))
@example(("SELECT 'a\\' Z", True))
@example(("SELECT 'Z\\' Z\\' ' ", True))
def test_no_literal_survives_in_mysql(case: tuple[str, bool]) -> None:
    text, cut = case
    for found in (analyse(text, "mysql", cut=cut), Statements("mysql").get(text.encode(), cut)):
        assert "Z" not in found.masked + found.summary, found


@given(statements("postgresql"))
@example(("SELECT E'a\\' Z", True))
@example(("SELECT $q$ Z", True))
def test_no_literal_survives_in_postgresql(case: tuple[str, bool]) -> None:
    text, cut = case
    memo = Statements("postgresql")
    for found in (analyse(text, "postgresql", cut=cut), memo.get(text.encode(), cut)):
        assert "Z" not in found.masked + found.summary, found


SOUP = st.lists(
    st.sampled_from(
        ["SELECT ", "'", '"', "`", "\\", "$", "$$", "$a$", "--", "#", "/*", "*/", "/*!", "1", "1e5",
         ".5", "e'", "x'", "U&'", "a", "IN (", "VALUES (", ",", ")", "?", "$1", ";", "\n", "\0",
         "\ufffd", "FROM ", "WITH ", "CREATE ", "TABLE ", "."]
    ),
    max_size=24,
).map("".join)  # fmt: skip


@given(SOUP, st.sampled_from(DIALECTS), st.booleans())
def test_anything_is_taken(soup: str, dialect: Dialect, cut: bool) -> None:
    text = "SELECT " + soup
    found = analyse(text, dialect, cut=cut)
    assert len(found.summary) <= MAX_LENGTH
    bare = re.sub(r'`[^`]*`|"[^"]*"', "", found.masked)
    assert "'" not in bare
    assert not re.search(r"(?<![\w$])\d", bare)


@given(SOUP, st.sampled_from(DIALECTS))
def test_the_quick_way_says_the_same(soup: str, dialect: Dialect) -> None:
    text = "SELECT " + soup
    found = Statements(dialect).get(text.encode())
    assert found == analyse(text, dialect)


@given(st.binary(max_size=200), st.sampled_from(DIALECTS))
def test_any_bytes_are_taken(raw: bytes, dialect: Dialect) -> None:
    Statements(dialect).get(b"SELECT " + raw)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "piece", ["'", "''", "\\'", "$a$", "/*", "(", "a.", "1e", "`", "IN (1,", "VALUES (1),(", "#\n"]
)
def test_hostile_text_takes_no_longer(dialect: Dialect, piece: str) -> None:
    start = time.perf_counter()
    analyse("SELECT " + piece * (8192 // len(piece)), dialect)
    assert time.perf_counter() - start < 2


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MAX_STATEMENTS", 4)
    memo = Statements("mysql")
    for number in range(40):
        assert memo.get(f"SELECT {number} FROM t{number % 7}".encode()).operation == "SELECT"
        assert len(memo._known) <= 4
    monkeypatch.setattr(sql, "MAX_BYTES", 100)
    memo.get(b"SELECT '" + b"x" * 99)
    memo.get(b"SELECT 2")
    assert memo._bytes < 100


HALVED: list[tuple[Dialect, bytes, str]] = [
    # A byte of 0x80 or more before a backslash or a backtick: one character of GBK, or two.
    ("mysql", b"select '\xbf\\' or 'XYZZY25", "select ?"),
    ("mysql", b"select '\xbf\\' or 'XYZZY25'", "select ?"),
    ("mysql", b"select a, '\xe4\xbd\xa0\\' or 'XYZZY25' from t", "select a, ?"),
    ("mysql", b'select "\xbf\\" or \'XYZZY25"\'', "select ?"),
    ("mysql", b"select '\xbf\\\\' or 'XYZZY25'", "select ?"),
    ("mysql", b"select '\xbf\\' or \"\xbf\\\" or '", "select ?"),
    ("mysql", b"select `\xbf`, 'a`XYZZY25' from t", "select ?"),
    ("mysql", b"select \xbf` from t where a='`XYZZY25'", "select ?"),
    ("postgresql", "select E'\u00e9\\' or 'XYZZY25'".encode(), "select ?"),
    # What all readings agree on stays.
    ("mysql", "select '\u00e9\\n' from t where a='XYZZY25'".encode(), "select ? from t where a=?"),
    ("mysql", "select `\u00e9`, 'XYZZY25' from t".encode(), "select `\u00e9`, ? from t"),
]


@pytest.mark.parametrize(("dialect", "raw", "masked"), HALVED)
def test_what_may_be_half_a_character_hides_what_follows(
    dialect: Dialect, raw: bytes, masked: str
) -> None:
    """In GBK, Big5 and Shift JIS a backslash may be a character's second byte."""
    for cut in (False, True):
        found = Statements(dialect).get(raw, cut)
        assert "XYZZY25" not in "".join(map(str, found))
        assert found.masked == masked


def test_statements_that_differ_in_literals_are_one() -> None:
    memo = Statements("mysql")
    one = memo.get(b"SELECT a FROM t WHERE b = 5 AND c = 'x'")
    assert memo.get(b"SELECT a FROM t WHERE b = 6 AND c = 'y'") is one


# Both readings make sense of each: as one kind of server reads it, one shows a secret.
AMBIGUOUS: list[tuple[Dialect, str]] = [
    # MySQL with NO_BACKSLASH_ESCAPES, PostgreSQL with standard_conforming_strings off.
    ("mysql", "SELECT 'C:\\', 'XYZZY' -- it's"),
    ("mysql", "SELECT 'C:\\', 'XYZZY' # it's"),
    ("mysql", "SELECT 'C:\\', 'XYZZY' /* it's */ FROM t"),
    ("mysql", 'SELECT "C:\\", "XYZZY" -- 5" wide'),
    ("postgresql", "SELECT 'it\\'s XYZZY' -- don't"),
    # What follows E'' on another line is read as that is.
    ("postgresql", "SELECT E'a'\n'b\\'XYZZY' -- don't"),
]


@pytest.mark.parametrize(("dialect", "text"), AMBIGUOUS)
def test_of_two_readings_only_what_they_share_is_shown(dialect: Dialect, text: str) -> None:
    for found in (analyse(text, dialect), Statements(dialect).get(text.encode())):
        assert "XYZZY" not in "".join(map(str, found))
        assert found.masked.startswith("SELECT ?")


CUT: list[tuple[Dialect, str, str, str]] = [
    # dialect, statement, masked if it is all there, if its end is missing
    ("mysql", "select 'a\\'b' from t", "select ? from t", "select ?"),
    ("postgresql", "select 'c:\u00e9\\', 'x' from t", "select ?, ? from t", "select ?"),
    ("mysql", "insert into t values ('C:\\', 'XYZZY', 'xx", "", "insert into t values (?"),
    ("postgresql", "insert into t values ('x\\'s XYZZY', 'a", "", "insert into t values (?"),
    ("mysql", "select 'a\\n' from t where b = 'x", "", "select ? from t where b = ?"),
]


@pytest.mark.parametrize(("dialect", "text", "whole", "cut"), CUT)
def test_without_its_end_a_statement_may_be_read_otherwise(
    dialect: Dialect, text: str, whole: str, cut: str
) -> None:
    memo = Statements(dialect)
    assert memo.get(text.encode(), True).masked == cut
    if whole:
        assert memo.get(text.encode()).masked == whole
