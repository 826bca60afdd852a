"""Records of exchanges with databases to columns of spans: what all such protocols share.

A statement's meaning may depend on what went before on its connection: which database is
the current one, which statement a number or a name stands for. So records are taken one by
one, in order, with a Session for each connection. What a record means is remembered by all
that it depends on; one that was met before costs look-ups only.

What is kept is bounded: sessions, statements of each, strings of exchanges under way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracer.columns import U64, Column, Rows
from tracer.flow import Database, Kind
from tracer.protocols import database_shape as shapes
from tracer.protocols.base import Columns, Records, Settings, Shapes
from tracer.protocols.database_batch import SLOTS, Batch, Strings
from tracer.protocols.database_plain import Context, Outcomes, Plain
from tracer.protocols.database_shape import Facts
from tracer.protocols.http1_shape import PEER_PORT, unix_path_of
from tracer.protocols.messages import masked_error
from tracer.protocols.sql import Dialect, Statement, Statements

MAX_SESSIONS = 16384
MAX_PREPARED = 1024  # statements remembered per connection, and portals
MAX_TEXT = 8192  # bytes of a string, over all its parts
MAX_UNDER_WAY = 64  # exchanges with parts per connection
MAX_KNOWN = 8192

LAST = 0xFFFFFFFF  # MySQL, MariaDB: the statement prepared last

_EXCHANGE, _PART, _CLOSED = int(Kind.EXCHANGE), int(Kind.PART), int(Kind.CLOSED)

_Key = TypeVar("_Key")
String = Callable[[int], bytes]


class Query(NamedTuple):
    """A statement as spans show it; strings are empty where there is nothing to show."""

    text: str
    operation: str
    collection: str
    summary: str
    procedure: str
    namespace: str
    statements: int
    cut: bool


class Change(NamedTuple):
    """What an exchange makes of its session.

    system, namespace: the new ones; None: as before. query: prepared from now on, by `name`,
    or by flow_record.stream_id if that is None. portal: what `query` is bound to from now on;
    if that is None, what the portal was bound to is gone or not known. forget: what was
    prepared is gone. failed: requests with the same flow_record.stream_id are passed over.
    """

    system: str | None = None
    namespace: str | None = None
    query: Query | None = None
    name: bytes | None = None
    portal: bytes | None = None
    forget: bool = False
    failed: bool = False


class Exchange(NamedTuple):
    """A record, as a protocol's `read` is given it; see struct flow_record."""

    method: int
    end: int
    code: int
    arguments: int
    truncated: int
    lost: bool  # some strings were
    strings: Strings

    def cut(self, slot: Database) -> bool:
        """Whether the capture limit took the end of a string."""
        return bool(self.truncated >> slot & 1)

    def text(self, slot: Database) -> str:
        """Return a string."""
        return self.strings[slot].decode("utf-8", "replace")


class Reading(NamedTuple):
    """What an exchange means: facts, if there is a span of it, and what it changes.

    returns, affects: whether 0 is a meaningful number of rows.
    """

    facts: Facts | None
    change: Change | None = None
    returns: bool = False
    affects: bool = False


class Session:
    """What is known of one connection, as one side of it saw it."""

    __slots__ = ("context", "failed", "last", "old", "parts", "portals", "ports", "prepared")

    def __init__(self, context: Context, ports: int, old: bool) -> None:
        self.context = context  # system, namespace
        self.ports = ports
        self.old = old
        self.prepared: dict[int | bytes, Query] = {}
        self.portals: dict[bytes, Query] = {}
        self.last: Query | None = None
        self.failed = -1
        self.parts: dict[tuple[int, int], _Parts] = {}

    def apply(self, change: Change, stream_id: int) -> None:
        """Take note of what an exchange changed."""
        if change.forget:
            self.prepared.clear()
            self.portals.clear()
            self.last = None
        if change.system is not None:
            self.context = change.system, self.context[1]
        if change.namespace is not None:
            self.context = self.context[0], change.namespace
        if change.failed:
            self.failed = stream_id
        if change.query is not None:
            self.last = change.query
            _keep(self.prepared, stream_id if change.name is None else change.name, change.query)
        if change.portal is not None:
            if change.query is not None:
                _keep(self.portals, change.portal, change.query)
            else:
                self.portals.pop(change.portal, None)


class _Parts:
    """The strings so far of an exchange under way."""

    __slots__ = ("broken", "number", "strings", "truncated")

    def __init__(self) -> None:
        self.strings = [bytearray() for _ in range(SLOTS)]
        self.truncated = 0
        self.number = 0
        self.broken = False

    def add(self, strings: Strings, truncated: int, number: int) -> None:
        """Append a part; number: counts them from 1, in a byte."""
        self.broken = self.broken or number != (self.number + 1) % 256
        self.number = number
        self.truncated |= truncated
        for slot, (kept, more) in enumerate(zip(self.strings, strings, strict=True)):
            room = MAX_TEXT - len(kept)
            if len(more) > room:
                self.truncated |= 1 << slot
            kept += more[:room]


class _Content(NamedTuple):
    """An exchange's strings, of which some came in parts."""

    strings: Strings
    truncated: int
    lost: bool  # a part was


class _Known(NamedTuple):
    shape: int  # -1: no span
    change: Change | None
    returns: bool
    affects: bool


class DatabaseDecoder:
    """What decoders of databases' protocols derive from; see base.Decoder.

    protocol: `wirespan.protocol`. context: system and namespace of a connection seen from its
    beginning, and of an older one. methods: those that `subject` is asked for. statements:
    those whose query is a statement in full.
    """

    protocol: str
    dialect: Dialect = "mysql"
    context: Context
    old_context: Context
    methods: frozenset[int] = frozenset()
    statements: frozenset[int] = frozenset()

    def __init__(self, shapes: Shapes, routes: object, settings: Settings) -> None:
        self._shapes = shapes
        self.settings = settings
        self._generation = shapes.generation
        self._statements = Statements(self.dialect)
        self._sessions: dict[int, Session] = {}
        self._known: dict[object, _Known] = {}
        self._made: dict[tuple[int, Facts], int] = {}
        # Likewise for statements and nothing else: those that differ in literals are one here.
        self._alike: dict[tuple[int, Statement, Context], _Known] = {}
        self._plain = Plain(self._context, self._statement)
        if settings.sql == "raw":
            self.statements = frozenset()

    def subject(self, session: Session, stream_id: int, arguments: int, string: String) -> object:
        """Return what an exchange refers to of its session; Query, or None if unknown.

        arguments: as Exchange's. string: gives a slot's string, if the exchange came without
        parts.
        """
        raise NotImplementedError

    def read(self, session: Session, exchange: Exchange, subject: object) -> Reading:
        """Say what an exchange means; the session is only to be looked at (its context).

        Depends on nothing else, for the answer is remembered.
        """
        raise NotImplementedError

    def losses(self) -> dict[str, int]:
        """Nothing is lost here that a span does not say."""
        return {}

    def columns(self, records: Records, process: U64) -> Columns:
        """Decode; see tracer.protocols.base.Decoder."""
        if self._generation != self._shapes.generation:
            self._generation = self._shapes.generation
            self._known.clear()
            self._alike.clear()
            self._made.clear()
            self._plain.forget()
        batch = Batch(records, process, self.settings.seed)
        parts = []
        rest = np.arange(len(records))
        statement = self._plain_rows(batch)
        if self._plain.pays(int(np.count_nonzero(statement))) and self._roomy(batch):
            taken, plain = self._plain.take(batch, statement)
            parts.append(taken)
            rest = np.flatnonzero(~plain)
        if len(rest):
            parts.append(self._walk(batch, rest))
        rows, shape, returns, affects = (
            parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        )
        index = np.argsort(rows) if len(parts) > 1 else np.arange(len(rows))
        index = index[shape[index] >= 0]
        rows = rows[index]
        ints = {
            PEER_PORT: records["remote_port"][rows].astype(np.int64),
            shapes.RETURNED_ROWS: _counts(records["rows_returned"][rows], returns[index]),
            shapes.AFFECTED_ROWS: _counts(records["rows_affected"][rows], affects[index]),
        }
        return Columns(shape[index], ints, {}, rows)

    def _plain_rows(self, batch: Batch) -> NDArray[np.bool_]:
        """Which rows are statements and nothing else, (n,)."""
        records = batch.records
        method = np.zeros(256, dtype=np.bool_)
        method[list(self.statements)] = True
        plain: NDArray[np.bool_] = (batch.plain != 0) & (records["kind"] == _EXCHANGE)
        plain &= method[records["method"]] & (records["version"] == 0)
        return plain

    def _roomy(self, batch: Batch) -> bool:
        """Whether no session will be forgotten in this batch."""
        return len(self._sessions) + len(batch.records) < MAX_SESSIONS

    def _context(self, conn: int, ports: int, old: bool) -> Context | None:
        """Return a session's context, for Plain; None if there is no such session."""
        session = self._sessions.get(conn)
        if session is None or session.ports != ports or (old and not session.old):
            return None
        return session.context

    def _statement(
        self, batch: Batch, row: int, plain: int, content: bytes, context: Context
    ) -> _Known:
        """Say what a row means that is a statement and nothing else."""
        like = plain, self._statements.get(content), context
        known = self._alike.get(like)
        if known is None:
            session = self._sessions[int(batch.conn[row])]
            known = self._learn(session, batch, row, content, None)
            _remember(self._alike, like, known)
        return known

    def _walk(self, batch: Batch, rest: Rows) -> Outcomes:
        """Go through rows one by one, in their order."""
        sessions, known_ = self._sessions, self._known
        methods, statements, statement_of = self.methods, self.statements, self._statements.get
        alike = self._alike
        rows: list[int] = []
        told: list[_Known] = []
        text, width = batch.text, batch.width
        for columns in batch.columns(rest):
            row, kind, conn, ports, old, head, method, stream_id, arguments, parts, plain, used = (
                columns
            )
            if kind != _EXCHANGE:
                self._other(batch, row, kind)
                continue
            session = sessions.get(conn)
            if session is None or session.ports != ports or (old and not session.old):
                session = self._session(conn, ports, bool(old))
            at = row * width
            content = text[at : at + used]
            if plain and method in statements and not parts:
                # Written out, for a call more is a tenth of what a statement costs.
                like = plain, statement_of(content), session.context
                met = alike.get(like)
                known = met or self._statement(batch, row, plain, content, session.context)
            else:
                whole: object = content
                if parts:
                    whole = self._whole(session, batch, row, parts)
                subject = None
                if method in methods:
                    string = partial(batch.string, row)
                    subject = self.subject(session, stream_id, arguments, string)
                key = head, whole, session.context, subject
                met = known_.get(key)
                if met is None:
                    met = self._learn(session, batch, row, whole, subject)
                    _remember(known_, key, met)
                known = met
            if known.change is not None:
                session.apply(known.change, stream_id)
            rows.append(row)
            told.append(known)
        return Outcomes(
            np.array(rows, dtype=np.intp),
            np.array([known.shape for known in told], dtype=np.int32),
            np.array([known.returns for known in told], dtype=np.bool_),
            np.array([known.affects for known in told], dtype=np.bool_),
        )

    def query(self, raw: bytes, cut: bool) -> Query:
        """Return a statement as the settings want it shown."""
        statement = self._statements.get(raw, cut)
        text = ""
        if self.settings.sql == "mask":
            text = statement.masked
        elif self.settings.sql == "raw":
            text = raw.decode("utf-8", "replace")
        # Of a cut statement nobody knows which other tables it is about.
        sure = not cut or statement.operation.upper() in ("INSERT", "REPLACE", "CALL")
        return Query(
            text=text,
            operation=statement.operation,
            collection=statement.collection if sure else "",
            summary=statement.summary,
            procedure=statement.procedure,
            namespace=statement.namespace,
            statements=0 if cut else statement.statements,
            cut=cut and bool(text),
        )

    def facts(self, session: Session, exchange: Exchange, query: Query | None) -> Facts:
        """Return what all protocols' facts have: of the session, the statement, the socket."""
        system, namespace = session.context
        facts = Facts(self.protocol, system, namespace)
        if query is not None:
            facts = facts._replace(
                operation=query.operation,
                collection=query.collection,
                procedure=query.procedure,
                summary=query.summary,
                text=query.text,
                batch=query.statements,
                cut=("db.query.text",) if query.cut else (),
            )
        if exchange.lost:
            facts = facts._replace(incomplete=("gap",))
        path = exchange.strings[Database.UNIX_PATH]
        if path:
            facts = facts._replace(unix_path=unix_path_of(path))
            if exchange.cut(Database.UNIX_PATH):
                facts = facts._replace(cut=(*facts.cut, "server.address"))
        return facts

    def message(self, exchange: Exchange) -> str:
        """Return the server's message as the settings want it shown."""
        text = exchange.text(Database.ERROR).strip()
        if self.settings.sql == "raw":
            return text
        return masked_error(text, exchange.cut(Database.ERROR))

    def _session(self, conn: int, ports: int, old: bool) -> Session:
        """Begin a session, or forget what an existing one can't be relied on for any more."""
        session = self._sessions.get(conn)
        if session is not None and session.ports == ports:
            # Lost track of: since then another database may have been chosen.
            session.old = True
            session.context = session.context[0], self.old_context[1]
            return session
        if session is None and len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = Session(self.old_context if old else self.context, ports, old)
        self._sessions[conn] = session
        return session

    def _other(self, batch: Batch, row: int, kind: int) -> None:
        """Take a record that is no exchange."""
        conn, ports, old = int(batch.conn[row]), int(batch.ports[row]), bool(batch.old[row])
        if kind == _CLOSED:
            # Either side's: a socket has only one, but which it was may not be known any more.
            self._sessions.pop(conn, None)
            self._sessions.pop(conn ^ 1, None)
            return
        if kind != _PART:
            return
        session = self._sessions.get(conn)
        if session is None or session.ports != ports:
            session = self._session(conn, ports, old)
        key = batch.request(row)
        parts = session.parts.get(key)
        if parts is None:
            if len(session.parts) >= MAX_UNDER_WAY:
                del session.parts[next(iter(session.parts))]
            parts = session.parts[key] = _Parts()
        number = int(batch.records["version"][row])
        parts.add(batch.strings(row), int(batch.records["truncated"][row]), number)

    def _whole(self, session: Session, batch: Batch, row: int, count: int) -> _Content:
        """Return an exchange's strings with those of its parts, of which there were `count`."""
        parts = session.parts.pop(batch.request(row), None) or _Parts()
        broken = parts.broken or parts.number != count
        parts.add(batch.strings(row), 0, parts.number + 1)
        if broken:
            # What is left may begin within a literal.
            parts.strings[: Database.UNIX_PATH] = [bytearray()] * Database.UNIX_PATH
        return _Content(tuple(map(bytes, parts.strings)), parts.truncated, broken)

    def _learn(
        self, session: Session, batch: Batch, row: int, content: object, subject: object
    ) -> _Known:
        """Find out what a record means that was not met before."""
        if not isinstance(content, _Content):
            content = _Content(batch.strings(row), 0, False)
        record = batch.records[row]
        exchange = Exchange(
            method=int(record["method"]),
            end=int(record["end"]),
            code=int(record["code"]),
            arguments=int(record["request_messages"]),
            truncated=content.truncated | int(record["truncated"]),
            lost=content.lost,
            strings=content.strings,
        )
        reading = self.read(session, exchange, subject)
        index = -1
        if reading.facts is not None:
            key = int(batch.ends[row]), reading.facts
            made = self._made.get(key)
            if made is None:
                resource = self._shapes.resource(record)
                made = self._shapes.add(
                    shapes.shape(batch.end(row), reading.facts, resource, self.settings)
                )
                self._made[key] = made
            index = made
        return _Known(index, reading.change, reading.returns, reading.affects)


def _counts(counts: Column, zero: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return counts as a column that lacks those of 0 that mean nothing."""
    numbers: NDArray[np.int64] = np.minimum(counts, np.uint64((1 << 63) - 1)).astype(np.int64)
    numbers[(numbers == 0) & ~zero] = -1
    return numbers


def _remember(known: dict[_Key, _Known], key: _Key, what: _Known) -> None:
    """Remember what a record means; if there is too much, forget all else."""
    if len(known) >= MAX_KNOWN:
        known.clear()
    known[key] = what


def _keep(kept: dict[_Key, Query], key: _Key, query: Query) -> None:
    """Remember a statement, at the cost of the oldest if there are many."""
    if key not in kept and len(kept) >= MAX_PREPARED:
        del kept[next(iter(kept))]
    kept[key] = query
