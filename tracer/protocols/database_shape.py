"""What exchanges with databases have in common as spans: the stable OpenTelemetry conventions.

Decisions where the conventions leave room:

- The span name is `db.query.summary`; without one the command's name, with the namespace
  where the command is about one; else the system's name.
- `db.operation.name` and `db.collection.name` are taken from the statement where it has
  just one of each. A command that only prepares, or closes, what a statement is (PREPARE,
  CLOSE) is an operation of its own and stands before the statement's summary.
- `db.operation.batch.size` is given for several statements in one request.
- `server.address` is the address at the server's end of the connection.
- Numbers of rows are given where the statement can have such a number, 0 too.
- `error.type` is the server's code (`db.response.status_code`), else, for exchanges that
  did not end by themselves:

    enum flow_end  client span          server span
    -------------  -------------------  -------------------
    PEER           connection_closed    cancelled
    LOCAL          cancelled            connection_closed
    RESET          connection_reset     connection_reset
    TIMEOUT        timeout              timeout
    INVALID        invalid_response     invalid_response

GAP is no error but `wirespan.incomplete=gap`; `statement_unknown` there says that a prepared
statement was executed whose text was not seen.

Source: https://opentelemetry.io/docs/specs/semconv/db/database-spans/.
"""

from __future__ import annotations

from typing import NamedTuple

from tracer.flow import End, Family, Role
from tracer.protocols.base import Settings
from tracer.protocols.http1_shape import FAILURES, FIRST_BYTE, PEER_PORT, THREAD, Outcome
from tracer.protocols.network import address_of, transport_of
from tracer.spans import (
    KIND_CLIENT,
    KIND_SERVER,
    STATUS_ERROR,
    STATUS_UNSET,
    AttributeValue,
    IntColumn,
    Resource,
    Shape,
)

# Columns of a batch that shapes refer to, besides those of HTTP/1.
RETURNED_ROWS = "db.response.returned_rows"
AFFECTED_ROWS = "wirespan.db.affected_rows"

MAX_NAME = 255

# Statements that return rows, also when there are none, and those that change some.
RETURNING = frozenset(
    "SELECT SHOW DESCRIBE DESC EXPLAIN TABLE VALUES WITH FETCH ANALYZE CHECK HELP".split()
)
AFFECTING = frozenset("INSERT UPDATE DELETE REPLACE MERGE COPY LOAD".split())

_INVALID = Outcome("invalid_response", "the response was not what the protocol allows")


class Ends(NamedTuple):
    """Both ends of a connection, and how an exchange on it ended."""

    server: bool  # the record is the server's
    end: int
    family: int
    local_address: bytes
    remote_address: bytes
    server_port: int


class Facts(NamedTuple):
    """What of an exchange is in its shape besides process and Ends; "" stands for absent.

    error: the server answered with one; message: its words; error_type: unless it is the code.
    prefix: what is done with the statement that summary is of (PREPARE), if not to run it.
    cut: attributes whose end is missing. incomplete: what is not known, and why.
    """

    protocol: str
    system: str
    namespace: str = ""
    operation: str = ""
    prefix: str = ""
    collection: str = ""
    procedure: str = ""
    summary: str = ""
    text: str = ""
    batch: int = 0
    about_namespace: bool = False
    error: bool = False
    error_type: str = ""
    status_code: str = ""
    message: str = ""
    unix_path: str = ""
    incomplete: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()


def shape(ends: Ends, facts: Facts, resource: Resource, settings: Settings) -> Shape:
    """Build what all exchanges with these facts have in common."""
    wanted = settings.opt_in
    attributes: list[tuple[str, AttributeValue]] = [("db.system.name", facts.system)]
    ints: list[IntColumn] = []
    cut = list(facts.cut)
    summary = _joined(facts.prefix, facts.summary) if facts.summary else ""
    for key, value in (
        ("db.namespace", facts.namespace),
        ("db.operation.name", facts.prefix or facts.operation),
        ("db.collection.name", facts.collection),
        ("db.stored_procedure.name", facts.procedure),
        ("db.query.summary", summary),
        ("db.query.text", facts.text),
    ):
        if value:
            attributes.append((key, value))
    if facts.batch > 1:
        attributes.append(("db.operation.batch.size", facts.batch))
    _network(ends, facts, settings, attributes, ints, cut)

    outcome = _outcome(ends, facts)
    if facts.status_code:
        attributes.append(("db.response.status_code", facts.status_code))
    if outcome:
        attributes.append(("error.type", outcome.error_type))
    attributes.append(("wirespan.protocol", facts.protocol))
    incomplete = (("gap",) if ends.end == End.GAP else ()) + facts.incomplete
    if incomplete:
        attributes.append(("wirespan.incomplete", ",".join(dict.fromkeys(incomplete))))
    if cut:
        attributes.append(("wirespan.truncated", ",".join(cut)))
    for key in (RETURNED_ROWS, AFFECTED_ROWS, THREAD):
        if key in wanted:
            ints.append(IntColumn(key, key))
    ints.append(IntColumn(FIRST_BYTE, FIRST_BYTE))

    operation = facts.prefix or facts.operation
    name = summary or operation
    if operation and not summary and facts.about_namespace and facts.namespace:
        name = _joined(operation, facts.namespace)
    return Shape(
        resource=resource,
        name=name or facts.system,
        kind=KIND_SERVER if ends.server else KIND_CLIENT,
        status=STATUS_ERROR if outcome else STATUS_UNSET,
        status_message=outcome.message if outcome else "",
        attributes=tuple(attributes),
        ints=tuple(ints),
        texts=(),
    )


def failed(end: int) -> bool:
    """Whether an exchange with this enum flow_end is an error whatever was answered."""
    return (Role.CLIENT, end) in FAILURES


def _outcome(ends: Ends, facts: Facts) -> Outcome | None:
    """Return `error.type` and the status message of an exchange that failed."""
    if facts.error:
        return Outcome(facts.error_type or facts.status_code or "_OTHER", facts.message)
    if ends.end == End.INVALID:
        return _INVALID
    return FAILURES.get((Role.SERVER if ends.server else Role.CLIENT, ends.end))


def _network(
    ends: Ends,
    facts: Facts,
    settings: Settings,
    attributes: list[tuple[str, AttributeValue]],
    ints: list[IntColumn],
    cut: list[str],
) -> None:
    """Add server.*, client.* and network.*."""
    wanted = settings.opt_in
    unix = ends.family == Family.UNIX
    if unix:
        # A client's socket has no name; the path is the server's end.
        server = facts.unix_path
        peer, local = ("", server) if ends.server else (server, "")
    else:
        peer = address_of(ends.family, ends.remote_address)
        local = address_of(ends.family, ends.local_address)
        server = local if ends.server else peer
    half = "server.address" in cut
    if server:
        attributes.append(("server.address", server))
        if not unix:
            attributes.append(("server.port", ends.server_port))
    if ends.server and peer:
        attributes.append(("client.address", peer))
        if "client.port" in wanted:
            ints.append(IntColumn("client.port", PEER_PORT))
    if peer:
        attributes.append(("network.peer.address", peer))
        if half:
            cut.append("network.peer.address")
        if not unix and ends.server:
            ints.append(IntColumn("network.peer.port", PEER_PORT))
        elif not unix:
            attributes.append(("network.peer.port", ends.server_port))
    if local and "network.local.address" in wanted:
        attributes.append(("network.local.address", local))
    attributes += transport_of(unix, peer, wanted)


def _joined(first: str, second: str) -> str:
    """Put two strings behind one another, unless that is too long for a name."""
    joined = f"{first} {second}" if first else second
    return joined if len(joined) <= MAX_NAME else first or second[:MAX_NAME]
