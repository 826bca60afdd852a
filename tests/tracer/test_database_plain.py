"""Statements in columns: the same spans as by going through records one by one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tracer.records import Processes, Routes, attributes_of, batch_of, database_record
from tracer.flow import Flag, Kind, Protocol, Role
from tracer.flows import Reassembler
from tracer.protocols import database, database_plain
from tracer.protocols.base import Settings
from tracer.protocols.database import DatabaseDecoder
from tracer.protocols.mysql import Command, MySql
from tracer.protocols.postgresql import PostgreSql
from tracer.spans import SpanBatch

ONE_BY_ONE, IN_COLUMNS = 1 << 30, 1
Records = NDArray[np.void]


def traffic(seed: int, odd: float, count: int = 700) -> list[Records]:
    """Make records of eight connections. odd: how often something else than a statement comes."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        which = chance.randrange(8)
        protocol = Protocol.MYSQL if which < 5 else Protocol.POSTGRESQL
        values: dict[str, Any] = {
            "conn_id": 50 + which // 2,
            "role": Role.SERVER if which % 2 else Role.CLIENT,
            "request_seq": number,
        }
        if chance.random() < odd:
            rows.append(_odd(chance, protocol, values))
            continue
        text = chance.choice(
            (
                "SELECT name FROM items WHERE id = {}",
                "UPDATE items SET name = 'x{}' WHERE id = 3",
                "DELETE FROM basket_{0} WHERE id = {0}",
            )
        ).format(chance.randrange(6))
        if chance.random() < 0.1:
            values |= {"code": 1146, "error": "no such table"}
        values["rows_returned"] = chance.randrange(3)
        method = Command.QUERY if protocol == Protocol.MYSQL else ord("Q")
        rows.append(database_record(protocol, method, query=text, **values))
    return rows


def _odd(chance: random.Random, protocol: Protocol, values: dict[str, Any]) -> Records:
    if protocol == Protocol.POSTGRESQL:
        method, query = chance.choice((("Q", "SET search_path = x"), ("P", "SELECT 7")))
        return database_record(protocol, ord(method), query=query, **values)
    match chance.randrange(8):
        case 0:
            return database_record(protocol, 0, kind=Kind.CLOSED, **values)
        case 1:
            return database_record(protocol, Command.QUERY, query="USE other", **values)
        case 2:
            return database_record(protocol, Command.INIT_DB, database="third", **values)
        case 3:
            query = "SELECT ? FROM prepared"
            return database_record(protocol, Command.STMT_PREPARE, query=query, **values)
        case 4:
            return database_record(protocol, Command.STMT_EXECUTE, stream_id=0, **values)
        case 5:
            flags = Flag.OLD
            return database_record(protocol, Command.QUERY, query="SELECT 1", flags=flags, **values)
        case 6:
            values |= {"local": "10.0.0.9:40001", "remote": "10.0.0.5:3306"}
            return database_record(protocol, Command.QUERY, query="SELECT 2", **values)
        case _:
            version = "10.11.2-MariaDB"
            return database_record(
                protocol, Command.CONNECT, server_version=version, database="shop", **values
            )


def read(
    rows: list[Records], step: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """Return what all spans say."""
    monkeypatch.setattr(database_plain, "MIN_RECORDS", least)
    reader = Reassembler(
        Processes(),
        Routes(),
        Settings(seed=3),
        {Protocol.MYSQL: MySql, Protocol.POSTGRESQL: PostgreSql},
    )
    made = []
    for at in range(0, len(rows), step):
        batch: SpanBatch = reader.feed(batch_of(*rows[at : at + step]), 0)
        for row in range(len(batch)):
            shape = batch.shapes[batch.shape[row]]
            told = {"": (shape.name, shape.status, batch.span_id[row].tobytes())}
            made.append(told | attributes_of(batch, row))
    return made


@pytest.mark.parametrize("odd", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_both_ways_agree(monkeypatch: pytest.MonkeyPatch, seed: int, odd: float) -> None:
    rows = traffic(seed, odd)
    step = (700, 90, 20)[seed % 3]
    told = read(rows, step, ONE_BY_ONE, monkeypatch)
    assert len(told) > 400
    assert read(rows, step, IN_COLUMNS, monkeypatch) == told


@pytest.mark.parametrize("limit", ["MAX_SESSIONS", "MAX_REMEMBERED", "MAX_KNOWN"])
def test_both_ways_agree_where_little_is_kept(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    rows = traffic(9, 0.02)
    told = read(rows, 70, ONE_BY_ONE, monkeypatch)
    owner = database_plain if limit == "MAX_REMEMBERED" else database
    monkeypatch.setattr(owner, limit, 6)
    few = read(rows, 70, ONE_BY_ONE, monkeypatch)
    assert read(rows, 70, IN_COLUMNS, monkeypatch) == few
    assert len(few) == len(told)


def test_what_was_met_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[int] = []
    walk = DatabaseDecoder._walk

    def counted(self: DatabaseDecoder, batch: Any, rest: Any) -> Any:
        walked.append(len(rest))
        return walk(self, batch, rest)

    monkeypatch.setattr(DatabaseDecoder, "_walk", counted)
    rows = [
        database_record(Protocol.MYSQL, Command.QUERY, query=f"SELECT {n % 3}", conn_id=n % 4)
        for n in range(300)
    ]
    read(rows, 100, IN_COLUMNS, monkeypatch)
    assert walked == [100], "sessions begin in the first batch"


def test_batches_of_new_texts_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = database_plain.Plain.take

    def counted(self: database_plain.Plain, batch: Any, statement: Any) -> Any:
        taken.append(len(statement))
        return take(self, batch, statement)

    monkeypatch.setattr(database_plain.Plain, "take", counted)
    rows = [
        database_record(Protocol.MYSQL, Command.QUERY, query=f"SELECT {number}")
        for number in range(640)
    ]
    told = read(rows, 10, IN_COLUMNS, monkeypatch)
    assert len(told) == 640 and {each["db.query.text"] for each in told} == {"SELECT ?"}
    assert 3 < len(taken) < 12
