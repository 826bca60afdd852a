"""A batch of records of exchanges with databases, to be gone through one by one.

Python lists are quicker for that than columns; what of a row decides on its meaning is hashed
for all rows at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tracer.columns import U64, Column, Rows, absorb, nonzero
from tracer.flow import Database, Flag, Kind, Role
from tracer.protocols.base import Records
from tracer.protocols.database_shape import Ends

MAX_ARGUMENTS = 9  # counts of arguments from here on are one

SLOTS = len(Database)
Strings = tuple[bytes, ...]

_SERVER, _CLOSED = int(Role.SERVER), int(Kind.CLOSED)
_OLD = np.uint32(Flag.OLD)


class Batch:
    """What of a batch's rows decides on their meaning; (n,).

    conn: connection and side. ports. old: whether older than the tracer. head: a hash of the
    process and all that tells what a record means but its text, its session and stream_id.
    plain: where `text` is nothing but the whole of a query, the same hash without the places of
    strings, else 0. ends: a hash of the process and all that `end` returns. used: bytes of text.
    closed: rows that tell of a connection's end.
    """

    def __init__(self, records: Records, process: U64, seed: int) -> None:
        self.records = records
        text = records["text"]
        self.width = text.shape[1]
        self.used = used = np.minimum(records["text_len"], self.width)
        self._places: dict[int, tuple[list[int], list[int]]] = {}
        server = records["role"] == _SERVER
        ends = _absorb(process, _packed(records, ("role", "end"), ("family",)))
        ends = _absorb(ends, np.where(server, records["local_port"], records["remote_port"]))
        for name in ("local_addr", "remote_addr"):
            halves = np.ascontiguousarray(records[name]).view("<u8")
            ends = absorb(absorb(ends, halves[:, 0]), halves[:, 1])
        self.ends = ends
        head = absorb(ends ^ np.uint64(seed % (1 << 64)), _packed(records, ("method",), ("code",)))
        arguments = np.minimum(records["request_messages"], MAX_ARGUMENTS).astype(np.uint64)
        head = _absorb(head, arguments | records["truncated"].astype(np.uint64) << np.uint64(16))
        fields = np.ascontiguousarray(records["fields"])
        plain = nonzero(head)
        plain[~_only_query(fields, used) | (records["truncated"] != 0)] = 0
        for word in fields.view("<u8").reshape(len(records), -1).T:
            head = absorb(head, word)
        self.head, self.plain, self.arguments = head, plain, arguments
        self.old: NDArray[np.bool_] = (records["flags"] & _OLD) != 0
        self.ports = records["local_port"].astype(np.uint32) << np.uint32(16)
        self.ports |= records["remote_port"]
        self.conn = records["conn_id"] * np.uint64(2) + server
        self.closed = np.flatnonzero(records["kind"] == _CLOSED)

    @cached_property
    def text(self) -> bytes:
        """All texts, of `width` bytes each."""
        return self.records["text"].tobytes()

    def columns(self, rows: Rows) -> Iterator[tuple[int, ...]]:
        """Give rows one by one, for Python's lists are quicker for that than columns.

        Each is itself; kind; conn; ports; old; head; method; stream_id; arguments, at most
        MAX_ARGUMENTS; number of parts; plain; used.
        """
        records = self.records
        columns: tuple[Column, ...] = (
            *(rows, records["kind"], self.conn, self.ports, self.old, self.head),
            *(records["method"], records["stream_id"], self.arguments, records["version"]),
            *(self.plain, self.used),
        )
        some = len(rows) < len(records)
        lists = [column[rows] if some and column is not rows else column for column in columns]
        return zip(*[column.tolist() for column in lists], strict=True)

    def strings(self, row: int) -> Strings:
        """Return a record's strings, by slot, cut to what lies inside its text."""
        return tuple([self.string(row, slot) for slot in range(SLOTS)])

    def string(self, row: int, slot: int) -> bytes:
        """Return one of a record's strings."""
        places = self._places.get(slot)
        if places is None:
            field = self.records["fields"][:, slot]
            off = np.minimum(field["off"], self.used)
            end = np.minimum(off.astype(np.int64) + field["len"], self.used)
            places = self._places[slot] = off.tolist(), end.tolist()
        start = row * self.width
        return self.text[start + places[0][row] : start + places[1][row]]

    def request(self, row: int) -> tuple[int, int]:
        """Return what tells an exchange from the others of its connection."""
        record = self.records[row]
        return int(record["request_seq"]), int(record["start_ns"])

    def end(self, row: int) -> Ends:
        """Return what of a row besides strings goes into its shape."""
        record = self.records[row]
        server = int(record["role"]) == _SERVER
        return Ends(
            server=server,
            end=int(record["end"]),
            family=int(record["family"]),
            local_address=record["local_addr"].tobytes(),
            remote_address=record["remote_addr"].tobytes(),
            server_port=int(record["local_port" if server else "remote_port"]),
        )


def _only_query(fields: Column, used: Column) -> NDArray[np.bool_]:
    """Whether there is a query and nothing else, (n,). fields: (n, slots); used: bytes, (n,)."""
    length = fields["len"]
    only: NDArray[np.bool_] = (length[:, Database.QUERY] == used) & (used > 0)
    only &= fields["off"][:, Database.QUERY] == 0
    others = np.delete(length, Database.QUERY, axis=1)
    return only & ~others.any(axis=1)


def _packed(records: Records, small: tuple[str, ...], large: tuple[str, ...]) -> U64:
    """Put up to four fields of a byte and one of up to four bytes into one word per row."""
    word = np.zeros(len(records), dtype=np.uint64)
    for place, name in enumerate(small):
        word |= records[name].astype(np.uint64) << np.uint64(8 * place)
    for name in large:
        word |= records[name].astype(np.uint64) << np.uint64(32)
    return word


def _absorb(state: U64, word: Column) -> U64:
    return absorb(state, word.astype(np.uint64))
