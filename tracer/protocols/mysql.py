"""Records of MySQL and MariaDB exchanges to columns of spans.

`db.system.name` is mariadb if the server's greeting says so, else mysql. `db.namespace` is the
connection's database: named at login, then by COM_INIT_DB, COM_CHANGE_USER or USE; absent
where the login was not seen. A statement that is executed carries the text it was prepared
with. Logins are no spans of their own unless they fail.

Sources: https://opentelemetry.io/docs/specs/semconv/db/mysql/ and
https://dev.mysql.com/doc/dev/mysql-server/latest/my__command_8h.html.
"""

from __future__ import annotations

from enum import IntEnum

from tracer.flow import Database, End
from tracer.protocols.database import (
    LAST,
    Change,
    DatabaseDecoder,
    Exchange,
    Query,
    Reading,
    Session,
    String,
)
from tracer.protocols.database_shape import AFFECTING, RETURNING, Facts, failed


class Command(IntEnum):
    """enum enum_server_command: the first byte of a request. COM_BULK_EXECUTE is MariaDB's."""

    SLEEP = 0x00
    QUIT = 0x01
    INIT_DB = 0x02
    QUERY = 0x03
    FIELD_LIST = 0x04
    CREATE_DB = 0x05
    DROP_DB = 0x06
    REFRESH = 0x07
    SHUTDOWN = 0x08
    STATISTICS = 0x09
    PROCESS_INFO = 0x0A
    CONNECT = 0x0B  # never sent: stands for the connection phase
    PROCESS_KILL = 0x0C
    DEBUG = 0x0D
    PING = 0x0E
    TIME = 0x0F
    DELAYED_INSERT = 0x10
    CHANGE_USER = 0x11
    BINLOG_DUMP = 0x12
    TABLE_DUMP = 0x13
    CONNECT_OUT = 0x14
    REGISTER_REPLICA = 0x15
    STMT_PREPARE = 0x16
    STMT_EXECUTE = 0x17
    STMT_SEND_LONG_DATA = 0x18
    STMT_CLOSE = 0x19
    STMT_RESET = 0x1A
    SET_OPTION = 0x1B
    STMT_FETCH = 0x1C
    DAEMON = 0x1D
    BINLOG_DUMP_GTID = 0x1E
    RESET_CONNECTION = 0x1F
    CLONE = 0x20
    SUBSCRIBE_GROUP_REPLICATION_STREAM = 0x21
    STMT_BULK_EXECUTE = 0xFA


_NAMES = {int(command): command.name for command in Command}
_EXECUTES = frozenset({int(Command.STMT_EXECUTE), int(Command.STMT_BULK_EXECUTE)})
# What is done with a prepared statement, if not to execute it.
_PREFIXES = {
    int(Command.STMT_PREPARE): "PREPARE",
    int(Command.STMT_SEND_LONG_DATA): "SEND_LONG_DATA",
    int(Command.STMT_CLOSE): "CLOSE",
    int(Command.STMT_RESET): "RESET",
    int(Command.STMT_FETCH): "FETCH",
}
# Their spans carry the statement's text.
_WITH_TEXT = _EXECUTES | {int(Command.STMT_PREPARE), int(Command.STMT_FETCH)}
_DATABASES = frozenset({int(Command.INIT_DB), int(Command.CREATE_DB), int(Command.DROP_DB)})
# ER_SIGNAL_EXCEPTION, and the class of SQLSTATEs for what SIGNAL gives a number of its own: the
# message is the application's, with whatever it put there.
_SIGNALLED, _UNHANDLED = 1644, "45"


class MySql(DatabaseDecoder):
    """The decoder of FLOW_PROTO_MYSQL."""

    protocol = "mysql"
    dialect = "mysql"
    context = ("mysql", "")
    old_context = ("mysql", "")
    methods = _EXECUTES | (frozenset(_PREFIXES) - {int(Command.STMT_PREPARE)})
    statements = frozenset({int(Command.QUERY), int(Command.STMT_PREPARE)})

    def subject(self, session: Session, stream_id: int, arguments: int, string: String) -> object:
        """Return the statement that stream_id is the number of."""
        return session.last if stream_id == LAST else session.prepared.get(stream_id)

    def read(self, session: Session, exchange: Exchange, subject: object) -> Reading:
        """Say what an exchange means."""
        method = exchange.method
        wrong = bool(exchange.code or exchange.strings[Database.ERROR])
        done = not wrong and exchange.end == End.RESPONSE
        if method == Command.CONNECT:
            return self._login(session, exchange, wrong, done)
        query = subject if isinstance(subject, Query) else None
        raw = exchange.strings[Database.QUERY]
        if method in (Command.QUERY, Command.STMT_PREPARE) and raw:
            query = self.query(raw, exchange.cut(Database.QUERY))
        facts = self._outcome(self.facts(session, exchange, query), exchange, wrong)
        change = None
        if method in _PREFIXES:
            facts = facts._replace(prefix=_PREFIXES[method], about_namespace=query is None)
            if method not in _WITH_TEXT:
                facts = facts._replace(text="", cut=_without_text(facts.cut))
        elif method in _EXECUTES:
            if query is None or not query.summary:
                facts = facts._replace(operation="EXECUTE", about_namespace=True)
        elif method != Command.QUERY:
            name = _NAMES.get(method, "")
            facts = facts._replace(operation=name, about_namespace=method in _DATABASES)
        if method in self.methods and query is None:
            facts = facts._replace(incomplete=(*facts.incomplete, "statement_unknown"))

        named = exchange.text(Database.DATABASE)
        if method in _DATABASES or method == Command.CHANGE_USER:
            if named:
                facts = facts._replace(namespace=named)
            if exchange.cut(Database.DATABASE):
                facts = facts._replace(cut=(*facts.cut, "db.namespace"))
        if done and method == Command.STMT_PREPARE and query is not None:
            change = Change(query=query)
        elif done and method == Command.INIT_DB:
            change = Change(namespace=named)
        elif done and method == Command.CHANGE_USER:
            change = Change(namespace=named, forget=True)
        elif done and method == Command.RESET_CONNECTION:
            change = Change(forget=True)
        elif done and method == Command.QUERY and query is not None and query.namespace:
            if query.operation.upper() == "USE":
                change = Change(namespace=query.namespace.strip("`"))
        runs = done and (method in _EXECUTES or method == Command.QUERY)
        verb = query.operation.upper() if query is not None else ""
        return Reading(facts, change, runs and verb in RETURNING, runs and verb in AFFECTING)

    def _login(self, session: Session, exchange: Exchange, wrong: bool, done: bool) -> Reading:
        """Take the connection phase: who the server is, and which database was asked for."""
        version = exchange.text(Database.VERSION)
        system = "mariadb" if "mariadb" in version.lower() else "mysql"
        named = exchange.text(Database.DATABASE)
        if not wrong and not failed(exchange.end):
            # Not complete: what was asked for may have been refused.
            return Reading(None, Change(system, named if done else "", forget=True))
        facts = self.facts(session, exchange, None)._replace(
            system=system, namespace=named, operation="CONNECT", about_namespace=True
        )
        return Reading(self._outcome(facts, exchange, wrong), Change(system, "", forget=True))

    def _outcome(self, facts: Facts, exchange: Exchange, wrong: bool) -> Facts:
        """Add the server's error."""
        if not wrong:
            return facts
        state = exchange.text(Database.SQLSTATE)
        code = str(exchange.code) if exchange.code else state
        message = self.message(exchange)
        signalled = exchange.code == _SIGNALLED or state.startswith(_UNHANDLED)
        if signalled and self.settings.sql != "raw":
            message = ""
        return facts._replace(error=True, status_code=code, message=message)


def _without_text(cut: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in cut if name != "db.query.text")
