"""Records of PostgreSQL exchanges to columns of spans.

`db.namespace` is the database named at the connection's start; the schema (search_path) is
not known. It is absent where the start was not seen. A statement that is executed carries the
text of the Parse of its name, wherever on the connection that was, and one that is executed
through a portal bound before that of the portal's Bind. Startups and logins are
no spans of their own unless they fail. After an error the server passes over what was sent up
to the same Sync: such requests end with `error.type=skipped`.

Sources: https://opentelemetry.io/docs/specs/semconv/db/postgresql/ and
https://www.postgresql.org/docs/current/protocol-message-formats.html.
"""

from __future__ import annotations

from tracer.flow import Database, End
from tracer.protocols.database import (
    Change,
    DatabaseDecoder,
    Exchange,
    Query,
    Reading,
    Session,
    String,
)
from tracer.protocols.database_shape import AFFECTING, RETURNING, Facts, failed

# Methods: types of messages from the client; STARTUP, which has none, is 1.
STARTUP = 1
QUERY, PARSE, BIND, EXECUTE = ord("Q"), ord("P"), ord("B"), ord("E")
DESCRIBE, CLOSE = ord("D"), ord("C")

# Plain numbers, which are quicker than those of an IntEnum.
_QUERY, _STATEMENT, _PORTAL = (
    int(slot) for slot in (Database.QUERY, Database.STATEMENT, Database.PORTAL)
)
_PREFIXES = {PARSE: "PREPARE", BIND: "BIND"}
_NAMES = {
    DESCRIBE: "DESCRIBE",
    CLOSE: "CLOSE",
    EXECUTE: "EXECUTE",
    ord("F"): "FUNCTION_CALL",
    ord("H"): "FLUSH",
    ord("S"): "SYNC",
    ord("X"): "TERMINATE",
}
_RUNS = frozenset({QUERY, EXECUTE})
_WITH_TEXT = frozenset({QUERY, PARSE, EXECUTE})
_SKIPPED = "an earlier request of the same batch failed"
_NAME_MAX = 64  # bytes of a portal's name that are kept: with so many it may be another's
# invalid_cursor_name: the portal ended with its transaction, or was closed.
_NO_PORTAL = "34000"
# What RAISE gives: the message is the application's own, with whatever it put there.
_RAISED = "P0001"


class PostgreSql(DatabaseDecoder):
    """The decoder of FLOW_PROTO_POSTGRESQL."""

    protocol = "postgresql"
    dialect = "postgresql"
    context = ("postgresql", "")
    old_context = ("postgresql", "")
    methods = frozenset({PARSE, BIND, EXECUTE})
    statements = frozenset({QUERY})

    def subject(self, session: Session, stream_id: int, arguments: int, string: String) -> object:
        """Return the statement of the name that was bound, or of the portal bound before."""
        query = None
        if not string(_QUERY):
            portal = string(_PORTAL)
            if arguments:
                query = session.prepared.get(string(_STATEMENT))
            elif len(portal) < _NAME_MAX:
                query = session.portals.get(portal)
        return (query,) if session.failed == stream_id else query

    def read(self, session: Session, exchange: Exchange, subject: object) -> Reading:
        """Say what an exchange means."""
        method = exchange.method
        state = exchange.text(Database.SQLSTATE)
        # Classes 00 and 01 are success and warnings.
        wrong = bool(state or exchange.strings[Database.ERROR]) and state[:2] not in ("00", "01")
        if method == STARTUP:
            return self._startup(session, exchange, wrong)
        raw = exchange.strings[Database.QUERY]
        query = subject if isinstance(subject, Query) else None
        skipped = subject is not None and query is None and not wrong
        if isinstance(subject, tuple) and query is None and isinstance(subject[0], Query):
            query = subject[0]
        gone = state == _NO_PORTAL and method == EXECUTE and not exchange.arguments
        if raw:
            query = self.query(raw, exchange.cut(Database.QUERY))
        elif gone:
            query = None
        facts = self._outcome(self.facts(session, exchange, query), exchange, wrong)
        if skipped:
            facts = facts._replace(error=True, error_type="skipped", message=_SKIPPED)
        if method in _PREFIXES:
            facts = facts._replace(prefix=_PREFIXES[method], about_namespace=query is None)
        elif method != QUERY and (query is None or not query.summary):
            facts = facts._replace(
                operation=_NAMES.get(method, ""), about_namespace=method == EXECUTE
            )
        if method not in _WITH_TEXT and facts.text:
            facts = facts._replace(
                text="", cut=tuple(name for name in facts.cut if name != "db.query.text")
            )
        if method in self.methods and query is None and method != PARSE:
            facts = facts._replace(incomplete=(*facts.incomplete, "statement_unknown"))
        change = None
        name = exchange.strings[Database.STATEMENT]
        portal = None
        if exchange.arguments or gone:
            portal = exchange.strings[Database.PORTAL]
        if method in self.methods and (portal is not None or (raw and query is not None)):
            # Even if the unit failed: what failed may have been its execution.
            change = Change(query=query, name=name, portal=portal, failed=wrong)
        elif wrong and method in self.methods:
            change = Change(failed=True)
        runs = not wrong and not skipped and method in _RUNS and exchange.end == End.RESPONSE
        verb = query.operation.upper() if query is not None else ""
        return Reading(facts, change, runs and verb in RETURNING, runs and verb in AFFECTING)

    def _startup(self, session: Session, exchange: Exchange, wrong: bool) -> Reading:
        """Take a connection's start: which database was asked for."""
        named = exchange.text(Database.DATABASE)
        change = Change(namespace=named, forget=True)
        if not wrong and not failed(exchange.end):
            return Reading(None, change)
        facts = self.facts(session, exchange, None)._replace(
            namespace=named, operation="CONNECT", about_namespace=True
        )
        return Reading(self._outcome(facts, exchange, wrong), change)

    def _outcome(self, facts: Facts, exchange: Exchange, wrong: bool) -> Facts:
        """Add the server's error."""
        if not wrong:
            return facts
        code = exchange.text(Database.SQLSTATE)
        message = self.message(exchange)
        if code == _RAISED and self.settings.sql != "raw":
            message = ""
        return facts._replace(error=True, status_code=code, message=message)
