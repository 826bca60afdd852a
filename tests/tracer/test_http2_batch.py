"""HTTP/2 in columns: the same spans as by walking the records one by one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tests.tracer.http2_wire import CALL, DONE, GET, OK, Pairs, Rows, Wire, tracer
from tests.tracer.records import attributes_of, batch_of, names_of
from tracer.flow import SHED, End, Flag, Role
from tracer.protocols import http2_batch, http2_streams
from tracer.protocols.http2_streams import Connections
from tracer.spans import KIND_CLIENT, KIND_SERVER

WALKED, IN_COLUMNS = 1 << 30, 1


class Traffic:
    """Connections with calls under way, told one record after the other.

    odd: how often something happens that is unusual, 0 to 1.
    """

    def __init__(self, seed: int, odd: float) -> None:
        self._random = random.Random(seed)
        self._odd = odd
        self._wires: list[Wire] = []
        self._next: list[int] = []
        self._under_way: list[list[Rows]] = []
        for _ in range(4):
            self._connect(len(self._wires))

    def _connect(self, number: int) -> None:
        role = Role.SERVER if number % 2 else Role.CLIENT
        wire = Wire(role, conn_id=100 + number // 2, task_start_ns=1 + number % 3)
        if self._random.random() < self._odd:
            wire.values["flags"] = Flag.OLD
        if number < len(self._wires):
            self._wires[number], self._next[number], self._under_way[number] = wire, 1, []
        else:
            self._wires.append(wire)
            self._next.append(1)
            self._under_way.append([])

    def rows(self, count: int) -> Rows:
        made: Rows = []
        while len(made) < count:
            number = self._random.randrange(len(self._wires))
            made += self._step(number)
        return made

    def _step(self, number: int) -> Rows:
        """Let one thing happen on a connection. Blocks must be told in the order of coding."""
        wire, calls, chance = self._wires[number], self._under_way[number], self._random.random
        if chance() < self._odd / 20:
            self._connect(number)
            return wire.closed() if chance() < 0.7 else []
        if chance() < self._odd / 10:
            return self._unusual(wire, number)
        if not calls or (len(calls) < 6 and chance() < 0.4):
            stream = self._next[number]
            self._next[number] += 2
            calls.append([stream, 0])  # type: ignore[list-item]
            return wire.ask(stream, self._request(), step=self._random.choice((4, 999, 999)))
        call: Any = self._random.choice(calls)
        stream, done = call
        call[1] += 1
        step = self._random.choice((3, 999))
        if done == 0 and chance() < self._odd / 4:
            return wire.answer(stream, [(":status", "103")])
        if done == 0:
            end = Flag.END_STREAM if chance() < 0.1 else 0
            return wire.answer(stream, OK, end, step)
        if done == 1 and chance() < 0.8:
            status = self._random.choice(("0", "0", "0", "5"))
            return wire.answer(stream, [("grpc-status", status)], Flag.END_STREAM, step)
        calls.remove(call)
        reset = chance() < 0.1
        return wire.over(
            stream,
            end=End.RESET if reset else End.RESPONSE,
            code=8 if reset else 0,
            request_messages=1,
            level=SHED | 3 if chance() < 0.1 else 0,
            request_seq=self._random.getrandbits(32),
            start_ns=1_000_000_000,
            end_ns=1_000_000_000 + self._random.randrange(10**9),
        )

    def _request(self) -> Pairs:
        headers = GET if self._random.random() < 0.3 else CALL
        more: Pairs = []
        if self._random.random() < 0.1 + self._odd / 2:
            more.append(("x-number", str(self._random.randrange(5))))
        if self._random.random() < self._odd:
            more.append(("grpc-timeout", f"{self._random.randrange(1, 900)}m"))
        return [*headers, *more]

    def _unusual(self, wire: Wire, number: int) -> Rows:
        stream = self._random.randrange(1, self._next[number] + 3)
        match self._random.randrange(6):
            case 0:
                return wire.answer(stream, OK, Flag.SPANLESS)
            case 1:
                return wire.answer(stream, DONE, Flag.BROKEN)
            case 2:
                return wire.over(stream)
            case 3:
                return wire.ask(stream, [("x-trailer", "1")])
            case 4:
                return wire.block(stream, b"\xff\xff\xff\xff\xff", self._random.choice((0, 128)))
            case _:
                return wire.answer(stream, DONE)


def spans(rows: Rows, cuts: list[int], monkeypatch: pytest.MonkeyPatch, least: int) -> Any:
    """Read rows, cut into batches; returns all that spans say, and the losses."""
    monkeypatch.setattr(http2_batch, "MIN_RECORDS", least)
    reader = tracer(seed=5)
    made = []
    for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        batch = reader.feed(batch_of(*rows[begin:end]), 0)
        assert batch.links is not None
        made += [
            (
                name,
                batch.span_id[row].tobytes(),
                attributes_of(batch, row),
                int(batch.links.content[row]),
                batch.shapes[batch.shape[row]].status_message,
            )
            for row, name in enumerate(names_of(batch))
        ]
    return made, reader.losses()


@pytest.mark.parametrize("odd", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_both_ways_agree(monkeypatch: pytest.MonkeyPatch, seed: int, odd: float) -> None:
    rows = Traffic(seed, odd).rows(700)
    random_ = random.Random(seed)
    cuts = sorted(random_.sample(range(1, len(rows)), random_.choice((1, 8, 60))))
    walked = spans(rows, cuts, monkeypatch, WALKED)
    assert len(walked[0]) > 20
    assert spans(rows, cuts, monkeypatch, IN_COLUMNS) == walked


@pytest.mark.parametrize("name", ["MAX_STREAMS", "MAX_CONNECTIONS", "MAX_OPEN_STREAMS"])
def test_both_ways_agree_where_room_is_short(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(http2_streams, name, 3)
    rows = Traffic(1, 0.1).rows(700)
    cuts = list(range(100, len(rows), 100))
    walked = spans(rows, cuts, monkeypatch, WALKED)
    assert spans(rows, cuts, monkeypatch, IN_COLUMNS) == walked


def test_usual_traffic_is_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even while connections begin, or a block is new."""
    traffic = Traffic(3, 0.0)
    walks: list[int] = []
    walk = Connections.walk

    def counted(self: Connections, records: Any, key: Any) -> Any:
        walks.append(len(records))
        return walk(self, records, key)

    monkeypatch.setattr(Connections, "walk", counted)
    wires = [Wire(conn_id=number) for number in range(50)]
    short = [row for wire in wires for row in (*wire.call(1), *wire.call(3, GET), *wire.closed())]
    made, _ = spans([*traffic.rows(600), *short], [], monkeypatch, IN_COLUMNS)
    assert len(made) > 150 and not walks


def test_what_blocks_said_is_forgotten_and_learnt_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Traffic(2, 0.1).rows(700)
    cuts = list(range(50, len(rows), 50))
    walked = spans(rows, cuts, monkeypatch, WALKED)
    monkeypatch.setattr(http2_batch, "MAX_REMEMBERED", 4)
    assert spans(rows, cuts, monkeypatch, IN_COLUMNS) == walked


def test_sides_that_differ_in_how_streams_end_are_told_apart() -> None:
    """A side's number and a stream's flag, both small, must not stand for the other's two."""
    rows: Rows = []
    sides: list[Role] = []
    for number in range(40):
        role = Role.SERVER if number % 2 else Role.CLIENT
        # Of each pair of sides, and of each pair of pairs, one way and the other.
        flags = Flag.END_STREAM if (number ^ number >> 1) & 1 else 0
        port = 1000 + number // 4
        wire = Wire(role, conn_id=number, local_port=port, remote_port=port)
        rows += [*wire.ask(1, GET), *wire.answer(1, OK, flags), *wire.over(1)]
        sides.append(role)
    batch = tracer(seed=5).feed(batch_of(*rows), 0)
    assert batch.links is not None
    assert [bool(each) for each in batch.links.client] == [each is Role.CLIENT for each in sides]
    kinds = [batch.shapes[row].kind for row in batch.shape.tolist()]
    expected = {Role.SERVER: KIND_SERVER, Role.CLIENT: KIND_CLIENT}
    assert kinds == [expected[each] for each in sides]


def test_a_timeout_beyond_all_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(Role.CLIENT)
    rows = wire.ask(1, [*CALL, ("grpc-timeout", "99999999H")])
    rows += wire.over(1, end=End.RESET, code=8, start_ns=np.uint64(1), end_ns=np.uint64(1 << 60))
    made, _ = spans(rows, [], monkeypatch, IN_COLUMNS)
    assert made[0][2]["rpc.response.status_code"] == "CANCELLED"
