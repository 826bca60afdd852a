"""Records of Redis exchanges to columns of spans.

A command is named as the client wrote it, with its subcommand where it has some. Arguments
are never seen here: `db.query.text` has a `?` for each, up to a number. `db.namespace` is the
index of the database, 0 until SELECT; absent where the connection's beginning was not seen
and none has been selected since. It is not in span names, being but a number.

Source: https://opentelemetry.io/docs/specs/semconv/db/redis/.
"""

from __future__ import annotations

import re

from tracer.flow import Database, End
from tracer.protocols.database import (
    Change,
    DatabaseDecoder,
    Exchange,
    Reading,
    Session,
    String,
)
from tracer.protocols.database_batch import MAX_ARGUMENTS

# Commands of modules have a dot: JSON.GET.
_COMMAND = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*(?: [A-Za-z][A-Za-z0-9_-]*)?")
_INDEX = re.compile(r"\d{1,9}")
# The first word of an error, if it is one of those that classify.
_PREFIX = re.compile(r"-?([A-Z][A-Z0-9_]*)(?:\s|$)")
_NO_SUBCOMMAND = re.compile(r"-?ERR unknown subcommand", re.IGNORECASE)


class Redis(DatabaseDecoder):
    """The decoder of FLOW_PROTO_REDIS."""

    protocol = "redis"
    context = ("redis", "0")
    old_context = ("redis", "")

    def subject(self, session: Session, stream_id: int, arguments: int, string: String) -> object:
        """No command refers to another."""
        return None

    def read(self, session: Session, exchange: Exchange, subject: object) -> Reading:
        """Say what an exchange means."""
        facts = self.facts(session, exchange, None)
        command = exchange.text(Database.QUERY)
        error = exchange.text(Database.ERROR).strip()
        if _NO_SUBCOMMAND.match(error) or command.upper().startswith("DEBUG "):
            # Its second word is no name then, but anything; of DEBUG no error tells.
            command = command.partition(" ")[0]
        if _COMMAND.fullmatch(command):
            facts = facts._replace(operation=command)
            if self.settings.sql != "drop":
                facts = facts._replace(text=command + _arguments(exchange.arguments))
            if exchange.cut(Database.QUERY):
                facts = facts._replace(cut=("db.operation.name", *facts.cut))
        if error:
            prefix = _PREFIX.match(error)
            facts = facts._replace(
                error=True,
                status_code=prefix[1] if prefix else "",
                message=self.message(exchange).removeprefix("-"),
            )
        change = None
        if not error and exchange.end == End.RESPONSE:
            index = exchange.text(Database.DATABASE)
            if command.upper() == "SELECT" and _INDEX.fullmatch(index):
                change = Change(namespace=str(int(index)))
            elif command.upper() == "RESET":
                change = Change(namespace="0")
        return Reading(facts, change)


def _arguments(count: int) -> str:
    """Show how many arguments there were; many are many."""
    return " ?" * count if count < MAX_ARGUMENTS else " ?" * MAX_ARGUMENTS + " ..."
