"""HTTP/2 streams and connections: what belongs together, what is lost, what is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracer.http2_wire import CALL, DONE, GET, OK, Rows, Wire, feed, one, tracer
from tests.tracer.records import (
    TEXT_BYTES,
    Processes,
    Routes,
    attributes_of,
    batch_of,
    names_of,
    record,
    shapes_of,
)
from tracer.flow import SHED, Flag, Kind, Protocol, Role
from tracer.protocols import http2_batch, http2_streams
from tracer.protocols.base import Settings, Shapes
from tracer.protocols.http2 import Http2
from tracer.spans import KIND_CLIENT, KIND_SERVER, STATUS_UNSET


@pytest.fixture(autouse=True, params=[1 << 30, 1], ids=["walked", "in columns"])
def min_records(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have few records read in either way."""
    monkeypatch.setattr(http2_batch, "MIN_RECORDS", request.param)


def test_a_hundred_streams_interleaved() -> None:
    wire = Wire()
    rows: Rows = []
    streams = range(1, 201, 2)

    def path(stream: int) -> str:
        return f"/s.S/M{stream}"

    for stream in streams:
        headers = [(key, path(stream) if key == ":path" else value) for key, value in CALL]
        rows += wire.ask(stream, headers, step=50 if stream % 3 else 9)
    for stream in reversed(streams):
        rows += wire.answer(stream, OK)
    for stream in streams:
        rows += wire.answer(stream, [("grpc-status", str(stream % 17))], Flag.END_STREAM)
    for stream in reversed(streams):
        rows += wire.over(stream, response_messages=stream)
    for cut in (1, 7, len(rows)):
        reader = tracer()
        found: dict[int, dict[str, Any]] = {}
        for at in range(0, len(rows), cut):
            batch = reader.feed(batch_of(*rows[at : at + cut]), 0)
            for row in range(len(batch)):
                attributes = attributes_of(batch, row)
                found[attributes["wirespan.rpc.response.messages"]] = attributes
        assert sorted(found) == list(streams)
        for stream, attributes in found.items():
            name = attributes.get("rpc.method_original", attributes["rpc.method"])
            assert name == path(stream)[1:]
            assert (attributes["rpc.response.status_code"] == "OK") == (stream % 17 == 0)


def test_connections_do_not_mix() -> None:
    first, second = Wire(conn_id=1), Wire(conn_id=2)
    third = Wire(Role.CLIENT, conn_id=1)
    rows = [row for rows in zip(first.call(1), second.call(1, GET), third.call(1), strict=True)
            for row in rows]  # fmt: skip
    batch = feed(rows)
    assert names_of(batch) == ["shop.v1.Orders/Place", "GET /users/{id}", "shop.v1.Orders/Place"]
    assert [shape.kind for shape in shapes_of(batch)] == [KIND_SERVER, KIND_SERVER, KIND_CLIENT]


def test_rows_say_which_records_became_spans() -> None:
    wire = Wire()
    records = batch_of(*wire.call(1), *wire.closed())
    decoder = Http2(Shapes(Processes(), 99), Routes(), Settings())
    columns = decoder.columns(records, np.ones(len(records), dtype=np.uint64))
    assert columns.rows is not None and columns.rows.tolist() == [3]
    assert all(len(values) == 1 for values in columns.ints.values())
    assert all(len(text.length) == 1 for text in columns.texts.values())
    empty = decoder.columns(records[:0], np.ones(0, dtype=np.uint64))
    assert len(empty.shape) == 0


def test_repeated_calls_share_a_shape() -> None:
    wire = Wire()
    reader = tracer()
    rows = [row for stream in range(1, 41, 2) for row in wire.call(stream)]
    batch = reader.feed(batch_of(*rows), 0)
    assert len(batch) == 20 and len(batch.shapes) == 1


def test_a_table_size_update_in_between() -> None:
    wire = Wire()
    rows = wire.call(1)
    for stream, size in ((3, 0), (5, 4096), (7, 100), (9, 65536)):
        wire.request.header_table_size = wire.response.header_table_size = size
        rows += wire.call(stream)
    assert names_of(feed(rows)) == ["shop.v1.Orders/Place"] * 5


def test_streams_that_found_no_room_serve_the_table_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel tells of no end of theirs, so they must not take the room of those it keeps."""
    monkeypatch.setattr(http2_streams, "MAX_STREAMS", 4)
    wire = Wire()
    rows = [row for stream in (1, 3, 5, 7) for row in wire.ask(stream, GET)]
    for stream in range(9, 41, 2):
        rows += wire.ask(stream, [*GET, ("x-own", str(stream))], Flag.SPANLESS)
        rows += wire.answer(stream, [*OK, ("x-own", str(stream))], Flag.SPANLESS)
    for stream in (1, 3, 5, 7):
        rows += wire.answer(stream, OK, Flag.END_STREAM)
        rows += wire.over(stream)
    reader = tracer()
    batch = reader.feed(batch_of(*rows), 0)
    assert names_of(batch) == ["GET /users/{id}"] * 4
    assert "wirespan.incomplete" not in attributes_of(batch, 3)
    assert not reader.losses()["stream_forgotten"]


def test_a_promise_is_decoded_and_otherwise_ignored() -> None:
    wire = Wire()
    rows = wire.ask(1, GET)
    rows += wire.answer(1, [(":method", "GET"), ("x-own", "1")], Flag.SPANLESS)
    rows += wire.answer(2, [(":status", "200"), ("x-own", "1")]) + wire.over(2)
    rows += wire.answer(1, [(":status", "200"), ("x-own", "1")]) + wire.over(1)
    reader = tracer()
    batch = reader.feed(batch_of(*rows), 0)
    assert names_of(batch) == ["GET /users/{id}"]
    assert attributes_of(batch)["http.response.status_code"] == 200


def test_a_connection_older_than_the_tracer() -> None:
    wire = Wire()
    wire.call(1)  # unseen
    old = wire.values["flags"] = Flag.OLD
    # All that matters comes from the table.
    rows = wire.ask(3, CALL, old) + wire.answer(3, OK, old) + wire.answer(3, DONE, old)
    rows += wire.over(3, request_messages=1)
    attributes, shape = one(rows)
    assert (shape.name, shape.status) == ("grpc", STATUS_UNSET)
    assert attributes["wirespan.incomplete"] == "hpack_unknown"
    assert attributes["rpc.system.name"] == "grpc"
    assert not {"rpc.method", "rpc.response.status_code", "error.type"} & set(attributes)
    assert attributes["server.address"] == "10.0.0.1"
    # A method and a status that weren't in the table.
    headers = [(key, "/s.S/New" if key == ":path" else value) for key, value in CALL]
    rows += wire.ask(5, headers, old) + wire.answer(5, OK, old)
    rows += wire.answer(5, [("grpc-status", "5")], old) + wire.over(5, request_messages=1)
    batch = feed(rows)
    attributes = attributes_of(batch, 1)
    assert names_of(batch)[1] == attributes["rpc.method"] == "s.S/New"
    assert attributes["rpc.system.name"] == "grpc"


def test_an_old_http_connection() -> None:
    wire = Wire()
    wire.ask(1, GET)  # unseen
    rows = wire.ask(3, GET, Flag.OLD) + wire.answer(3, [(":status", "200")], Flag.OLD)
    attributes, shape = one(rows + wire.over(3))
    # The method is in the static table, the path isn't.
    assert (shape.name, attributes["http.request.method"]) == ("GET", "GET")
    assert attributes["http.response.status_code"] == 200
    assert attributes["wirespan.incomplete"] == "hpack_unknown"
    assert not {"url.path", "url.query", "user_agent.original"} & set(attributes)


def test_lost_blocks() -> None:
    wire = Wire()
    rows = wire.call(1)
    wire.ask(3, [*GET, ("x-lost", "1")])  # lost in the ring
    rows += wire.ask(5, [*CALL, ("x-lost", "1")], Flag.BROKEN, step=20)
    rows += wire.answer(5, OK) + wire.answer(5, DONE) + wire.over(5)
    # The exchange of a stream whose block was lost.
    rows += wire.answer(3, [(":status", "200")]) + wire.over(3)
    batch = feed(rows)
    assert names_of(batch) == ["shop.v1.Orders/Place", "grpc", "HTTP"]
    first, second, third = (attributes_of(batch, row) for row in range(3))
    assert "wirespan.incomplete" not in first
    assert second["wirespan.incomplete"] == "hpack_unknown"
    assert second["rpc.response.status_code"] == "OK"
    assert third["wirespan.incomplete"] == "gap" and "http.request.method" not in third


def test_a_malformed_block_is_counted_and_spoils_only_its_direction() -> None:
    decoder = Http2(Shapes(Processes(), 99), Routes(), Settings())
    wire = Wire()
    rows = wire.block(1, b"\xff\xff") + wire.answer(1, [(":status", "500")]) + wire.over(1)
    rows += wire.ask(3, GET) + wire.answer(3, [(":status", "200")]) + wire.over(3)
    rows += wire.closed()
    records = batch_of(*rows)
    decoder.columns(records, np.ones(len(records), dtype=np.uint64))
    assert decoder.losses() == {"hpack_failed": 1, "stream_forgotten": 0}
    batch = feed([*rows, *Wire().call(1)])
    assert names_of(batch) == ["HTTP", "HTTP", "shop.v1.Orders/Place"]
    attributes = attributes_of(batch)
    assert attributes["http.response.status_code"] == 500
    assert attributes["wirespan.incomplete"] == "hpack_unknown"


@pytest.mark.parametrize("step", [TEXT_BYTES, 10])
@pytest.mark.parametrize("closed", [True, False])
def test_a_socket_number_used_again(step: int, closed: bool) -> None:
    """Also without a word of the old connection's end, and with streams still open."""
    first, second = Wire(), Wire()
    rows = first.call(1) + first.ask(3, GET)
    rows += first.closed() if closed else []
    for stream in (1, 3):
        rows += second.ask(stream, GET, step=step)
        rows += second.answer(stream, [(":status", "200")]) + second.over(stream)
    batch = feed(rows)
    assert names_of(batch)[1:] == ["GET /users/{id}"] * 2
    assert "wirespan.incomplete" not in attributes_of(batch, 2)


def test_late_trailers_of_a_request_do_no_harm() -> None:
    wire = Wire()
    rows = wire.call(1) + wire.ask(1, [("x-sum", "1")], Flag.END_STREAM) + wire.call(3)
    batch = feed(rows)
    assert names_of(batch) == ["shop.v1.Orders/Place"] * 2
    assert "wirespan.incomplete" not in attributes_of(batch, 1)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_streams, "MAX_STREAMS", 10)
    monkeypatch.setattr(http2_streams, "MAX_CONNECTIONS", 5)
    monkeypatch.setattr(http2_streams, "MAX_OPEN_STREAMS", 30)
    decoder = Http2(Shapes(Processes(), 99), Routes(), Settings())
    for number in range(20):
        wire = Wire(conn_id=number)
        records = batch_of(*(row for stream in range(1, 61, 2) for row in wire.ask(stream, GET)))
        decoder.columns(records, np.ones(len(records), dtype=np.uint64))
        connections = decoder._connections
        assert len(connections.of) <= 5
        kept = [len(one.streams) for one in connections.of.values()]
        assert max(kept) <= 10 and sum(kept) == connections.open_streams <= 40
    assert decoder.losses()["stream_forgotten"] == 20 * 30 - connections.open_streams
    # A connection that may be one of those forgotten is not taken for a new one.
    wire = Wire(conn_id=99)
    wire.ask(1, GET)
    records = batch_of(*wire.ask(3, GET))
    decoder.columns(records, np.ones(len(records), dtype=np.uint64))
    assert not decoder.losses()["hpack_failed"]


def test_a_block_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_streams, "MAX_BLOCK_BYTES", 1000)
    wire = Wire()
    rows = wire.ask(1, [*GET, ("x-long", "\x01" * 2000)])
    rows += wire.answer(1, [(":status", "200")]) + wire.over(1)
    rows += wire.ask(3, [(":method", "GET"), (":path", "/new")])
    rows += wire.answer(3, [(":status", "200")]) + wire.over(3)
    assert names_of(feed(rows)) == ["HTTP", "GET /new"]


def test_a_new_list_of_shapes_is_begun() -> None:
    reader = tracer(max_shapes=3)
    wire = Wire()
    for stream in range(1, 41, 2):
        headers = [(key, f"/s.S/M{stream}" if key == ":path" else value) for key, value in CALL]
        batch = reader.feed(batch_of(*wire.call(stream, headers)), 0)
        assert names_of(batch) == [f"s.S/M{stream}"]
        assert len(batch.shapes) <= 3


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([Kind.BLOCK, Kind.BLOCK, Kind.EXCHANGE, Kind.CLOSED]),
            st.integers(0, 1023), st.integers(0, 5), st.integers(0, 12), st.integers(0, 12),
            st.binary(max_size=20), st.sampled_from([0, 1, 7, 8, 1 << 31]),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_any_records_are_taken(
    rows: list[tuple[Kind, int, int, int, int, bytes, int]],
) -> None:
    made: Rows = []
    for kind, flags, stream, end, status, text, code in rows:
        one_record = record(kind=kind, protocol=Protocol.HTTP2, flags=flags, stream_id=stream,
                            end=end, status=status, code=code, version=20, target=text,
                            text_len=9)  # fmt: skip
        made.append(one_record)
    batch = feed(made)
    for row in range(len(batch)):
        attributes_of(batch, row)


def test_a_stream_that_is_shed_is_forgotten_and_its_blocks_are_read_all_the_same() -> None:
    wire = Wire()
    rows = wire.ask(1, GET) + wire.answer(1, OK, Flag.END_STREAM)
    rows += wire.over(1, level=SHED | 3)
    # HPACK's table has what the first stream put there.
    rows += wire.ask(3, GET) + wire.answer(3, OK, Flag.END_STREAM) + wire.over(3, level=3, lot=9)
    reader = tracer()
    batch = reader.feed(batch_of(*rows), 0)
    assert len(batch) == 1
    assert attributes_of(batch, 0)["url.path"] == "/users/12"
    assert attributes_of(batch, 0)["user_agent.original"] == "curl/8.5"
    assert batch.sampling is not None and batch.sampling.lot.tolist() == [9]
    assert not any(reader.losses().values())
