"""What a SQL statement does, and to what: the low-cardinality `db.query.summary`.

Not a parser: one pass over the tokens that keeps, for each level of parentheses, whether a
name of a table may come next. What it doesn't know it leaves out, it never guesses.

- Operations and targets stand as the application wrote them, in their order; quotes around
  a name that needs none are left out.
- Names of common table expressions and table functions are no targets.
- Bodies of stored routines, and what follows GRANT, REVOKE and DO, are not looked into.
- At most MAX_LENGTH characters, cut between names.

Source: https://opentelemetry.io/docs/specs/semconv/db/database-spans/, "Generating a
summary of the query".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

MAX_LENGTH = 255

# Kinds of tokens.
SPACE, WORD, QUOTED, LITERAL, OTHER = range(5)

_PLAIN = re.compile(r"""([`"])([^\W\d][\w$]*)\1""")

_DML = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE", "MERGE"})
# What may stand before such an operation inside a statement; elsewhere these words are
# functions (REPLACE), clauses (ON UPDATE, FOR UPDATE) or privileges.
_BEFORE_DML = frozenset({"(", ")", "AS", "EXPLAIN", "ANALYZE", "VERBOSE"})
# IS [NOT] DISTINCT FROM
_OPERATORS = (("DISTINCT", "IS"), ("DISTINCT", "NOT"))
_JOINS = frozenset({"JOIN", "STRAIGHT_JOIN"})
# Words that end a list of tables.
_ENDS = frozenset(
    "WHERE GROUP ORDER HAVING LIMIT UNION EXCEPT INTERSECT WINDOW FOR OFFSET FETCH SET"
    " RETURNING VALUES VALUE PROCEDURE INTO LOCK ON".split()
)
# Words between an operation and its target.
_SKIPPED = frozenset(
    "ONLY LATERAL TABLE INTO IGNORE LOW_PRIORITY HIGH_PRIORITY DELAYED QUICK OVERWRITE IF NOT"
    " EXISTS CONCURRENTLY FULL FREEZE VERBOSE ANALYZE EXTENDED NO_WRITE_TO_BINLOG LOCAL".split()
)
_HINTS = frozenset({"USE", "FORCE", "IGNORE"})
_OBJECT_VERBS = frozenset(
    "CREATE ALTER DROP TRUNCATE RENAME REFRESH LOCK UNLOCK ANALYZE OPTIMIZE REPAIR CHECK"
    " CHECKSUM REINDEX COMMENT".split()
)
_OBJECTS = frozenset(
    "TABLE TABLES VIEW INDEX DATABASE SCHEMA FUNCTION PROCEDURE SEQUENCE TRIGGER EVENT TYPE"
    " DOMAIN EXTENSION USER ROLE SERVER TABLESPACE POLICY RULE AGGREGATE OPERATOR PUBLICATION"
    " SUBSCRIPTION COLUMN".split()
)
_NAMELESS = frozenset({"USER", "ROLE", "COLUMN", "OPERATOR"})
_ROUTINES = frozenset({"FUNCTION", "PROCEDURE", "TRIGGER", "EVENT", "RULE", "AGGREGATE"})
# Verbs whose target comes at once, also without the word TABLE.
_DIRECT = frozenset(
    "INSERT REPLACE UPDATE MERGE TRUNCATE CALL USE COPY TABLE DESCRIBE DESC VACUUM ANALYZE LOCK"
    " CLUSTER OPTIMIZE".split()
)
_OPAQUE = frozenset({"GRANT", "REVOKE", "DO", "SHOW", "EXECUTE", "KILL", "HANDLER"})
_LISTS = frozenset({"DROP", "TRUNCATE", "LOCK", "ANALYZE", "OPTIMIZE", "VACUUM", "UPDATE"})
_COLLECTIONS = (
    _DML
    | frozenset("SELECT TRUNCATE COPY TABLE DESCRIBE DESC VACUUM ANALYZE LOCK CLUSTER LOAD".split())
    | frozenset(f"{verb} {thing}" for verb in _OBJECT_VERBS for thing in ("TABLE", "VIEW"))
)


class Token(NamedTuple):
    """A piece of a statement that holds no literal; end: where it ended in the text."""

    kind: int
    text: str
    end: int


class Summary(NamedTuple):
    """What a statement does; strings are empty where it is not one plain thing.

    collection, procedure, namespace: the target, by what the operation is done to.
    statements: how many there were.
    """

    text: str
    operation: str
    collection: str
    procedure: str
    namespace: str
    statements: int


class _Level:
    """What may come next within one pair of parentheses."""

    __slots__ = ("expect", "names", "tables", "using", "wants", "within")

    def __init__(self, expect: bool = False) -> None:
        self.expect = expect  # a table's name
        self.tables = expect  # commas and joins bring further tables
        self.wants = False  # FROM brings tables
        self.using = False  # USING does
        self.within = False  # a list of common table expressions
        self.names = False  # the name of one


class _Reader:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.parts: list[str] = []
        self.operations: list[str] = []
        self.targets: list[str] = []
        self.common: set[str] = set()
        self.levels = [_Level()]
        self.start = True  # of a statement
        self.opaque = False
        self.routine = False
        self.statements = 0
        self.before = ("", "")

    def next(self) -> str:
        return self.tokens[self.at].text if self.at < len(self.tokens) else ""

    def read(self) -> None:
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            self.at += 1
            word = token.text.upper() if token.kind == WORD else token.text
            if token.kind == WORD or token.kind == QUOTED:
                if self.start or not self.opaque:
                    self._name(token, word)
            elif not self._mark(word):
                self.levels[-1].expect = False
            self.before = (word, self.before[0])
            if self.routine and not self.levels[-1].expect:
                break

    def _mark(self, mark: str) -> bool:
        """Take a punctuation mark; False if it was none of concern."""
        level = self.levels[-1]
        if mark == "(":
            inner = level.expect or (level.tables and self.before[0] == "(")
            level.expect = False
            self.levels.append(_Level(expect=inner))
        elif mark == ")":
            if len(self.levels) > 1:
                self.levels.pop()
        elif mark == ",":
            level.expect = level.tables
            level.names = level.within
        elif mark == ";":
            self.levels = [_Level()]
            self.start, self.opaque = True, False
        else:
            return False
        return True

    def _name(self, token: Token, word: str) -> None:
        level = self.levels[-1]
        quoted = token.kind == QUOTED
        if self.start:
            self.start = False
            self.statements += 1
            if not quoted:
                self._begin(token.text, word)
        elif level.names:
            if quoted or word != "RECURSIVE":
                self.common.add(token.text.lower())
                level.names = False
        elif quoted:
            if level.expect:
                self._target(token.text)
        elif self.before[0] == ".":
            return
        elif word == "SELECT" or (
            word in _DML and self.before[0] in _BEFORE_DML and self.next() != "("
        ):
            self._begin(token.text, word)
        elif word == "WITH" and self.before[0] in ("(", "AS", "EXPLAIN"):
            level.within = level.names = True
        elif word == "FROM":
            if level.wants and self.before not in _OPERATORS:
                level.wants, level.tables, level.expect = False, True, True
        elif word in _JOINS:
            level.expect = level.tables
        elif word == "USING":
            if level.using and self.next() != "(":
                level.using, level.tables, level.expect = False, True, True
        elif level.expect and (word in _SKIPPED or word in _HINTS):
            level.expect = word not in ("USE", "FORCE")
        elif word == "TABLE" and self.before[0] == "INTO":
            level.expect = True
        elif word in _ENDS:
            # ON goes on to other tables of the list, all else ends it.
            level.expect = False
            level.tables = level.tables and word == "ON"
        elif level.expect:
            self._target(token.text)

    def _begin(self, text: str, word: str) -> None:
        """Take an operation."""
        level = self.levels[-1]
        level.within = level.names = level.tables = level.expect = False
        if word == "WITH":
            level.within = level.names = True
            return
        operation, thing = text, ""
        if word in _OBJECT_VERBS:
            operation, thing = self._object(text)
        elif word in ("START", "LOAD") and self.at < len(self.tokens):
            operation = f"{text} {self.next()}"
            self.at += 1
        self.operations.append(operation)
        self.parts.append(operation)
        level.wants = word in ("SELECT", "DELETE", "UPDATE")
        level.using = word in ("DELETE", "MERGE")
        level.tables = word in _LISTS
        level.expect = thing not in _NAMELESS if thing else word in _DIRECT
        self.opaque = word in _OPAQUE
        self.routine = thing in _ROUTINES

    def _object(self, verb: str) -> tuple[str, str]:
        """Find what kind of thing is created, altered or dropped."""
        for at in range(self.at, min(self.at + 16, len(self.tokens))):
            token = self.tokens[at]
            if token.text in ("(", ";"):
                break
            word = token.text.upper()
            if token.kind == WORD and word in _OBJECTS:
                self.at = at + 1
                return f"{verb} {token.text}", word
        return verb, ""

    def _target(self, text: str) -> None:
        """Take a target's name, which may be qualified."""
        self.levels[-1].expect = False
        names = [_unquoted(text)]
        while (
            self.at + 1 < len(self.tokens)
            and self.tokens[self.at].text == "."
            and self.tokens[self.at + 1].kind in (WORD, QUOTED)
        ):
            names.append(_unquoted(self.tokens[self.at + 1].text))
            self.at += 2
        operation = self.operations[-1].upper() if self.operations else ""
        # A function that gives a table, unless it is a list of columns or arguments.
        if self.next() == "(" and operation in ("SELECT", "DELETE", "UPDATE"):
            return
        if len(names) == 1 and text.lower() in self.common:
            return
        name = ".".join(names)
        self.targets.append(name)
        self.parts.append(name)


def summarise(tokens: Sequence[Token]) -> Summary:
    """Say what a statement, or several, do; tokens: without those of SPACE."""
    reader = _Reader(tokens)
    reader.read()
    text = ""
    for part in reader.parts:
        longer = f"{text} {part}" if text else part
        if len(longer) > MAX_LENGTH:
            break
        text = longer
    operation = collection = procedure = namespace = ""
    if len(reader.operations) == 1 and len(reader.operations[0]) <= MAX_LENGTH:
        operation = reader.operations[0]
        if len(set(reader.targets)) == 1 and len(reader.targets[0]) <= MAX_LENGTH:
            verb = operation.upper()
            if verb in _COLLECTIONS or verb == "LOAD DATA":
                collection = reader.targets[0]
            elif verb == "CALL":
                procedure = reader.targets[0]
            elif verb in ("USE", "CREATE DATABASE", "DROP DATABASE"):
                namespace = reader.targets[0]
    return Summary(text, operation, collection, procedure, namespace, reader.statements)


def _unquoted(name: str) -> str:
    plain = _PLAIN.fullmatch(name)
    return plain[2] if plain else name
