"""The reassembler: what protocols share, the numbers of flow.h, and garbage."""

from __future__ import annotations

import re
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.tracer.records import (
    OFFSET_NS,
    RECORD,
    START_NS,
    TEXT_BYTES,
    Processes,
    Routes,
    attributes_of,
    batch_of,
    names_of,
    place,
    record,
    shapes_of,
)
from tracer import flow, ids, losses
from tracer.columns import U64, Table, Words, absorb, distinct, nonzero
from tracer.flow import Flag, Kind, Role
from tracer.flows import DECODERS, Reassembler
from tracer.protocols import http1
from tracer.protocols.base import Columns, Records, Settings
from tracer.render import json_lines, text_lines
from tracer.routes import RouteTable
from tracer.spans import KIND_CLIENT, Resource, Shape, Text, TextColumn

FLOW_H = (Path(__file__).parents[2] / "ebpf" / "flow.h").read_text()


def reassembler(**chosen: Any) -> Reassembler:
    return Reassembler(Processes(), Routes(), Settings(**chosen))


# The header and its mirrors.


def enum_of(name: str) -> dict[str, int]:
    found = re.search(rf"enum {name} {{(.*?)}};", FLOW_H, re.DOTALL)
    assert found, name
    return {name: int(value) for name, value in re.findall(r"(FLOW_\w+) = (\d+),", found[1])}


@pytest.mark.parametrize(
    ("name", "prefix", "mirrors"),
    [
        ("flow_kind", "FLOW_", [flow.Kind]),
        ("flow_protocol", "FLOW_PROTO_", [flow.Protocol]),
        ("flow_role", "FLOW_", [flow.Role]),
        ("flow_end", "FLOW_END_", [flow.End]),
        ("flow_method", "FLOW_METHOD_", [flow.Method]),
        ("flow_flag", "FLOW_FLAG_", [flow.Flag]),
        ("flow_text", "FLOW_TEXT_", [flow.Slot, flow.Database, flow.Block, flow.Exec]),
        ("flow_family", "FLOW_FAMILY_", [flow.Family]),
        ("flow_evidence", "FLOW_EVIDENCE_", [flow.Evidence]),
    ],
)
def test_enums_equal_the_header(name: str, prefix: str, mirrors: list[type[IntEnum]]) -> None:
    ours = {prefix + member.name: member.value for mirror in mirrors for member in mirror}
    theirs = enum_of(name)
    theirs.pop("FLOW_TEXT_FIELDS", None)
    assert ours == theirs


def test_losses_equal_the_header() -> None:
    names = set(enum_of("flow_loss")) - {"FLOW_LOSSES"}
    assert set(losses.KERNEL) == names
    for name, loss in losses.KERNEL.items():
        assert name == f"FLOW_LOSS_{loss.name.upper()}"


def test_every_loss_has_a_name_of_its_own_and_one_line_of_meaning() -> None:
    names = [loss.name for loss in losses.LOSSES.values()]
    assert len(set(names)) == len(names)
    for loss in losses.LOSSES.values():
        assert re.fullmatch(r"[a-z][a-z_]*", loss.name)
        assert loss.meaning and "\n" not in loss.meaning and len(loss.meaning) <= 90


def test_handmade_records_have_the_header_s_layout() -> None:
    body = re.search(r"struct flow_record {(.*?)\n};", FLOW_H, re.DOTALL)
    assert body
    code = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
    sizes = {"__u64": 8, "__u32": 4, "__u16": 2, "__u8": 1, "char": 1, "struct flow_field": 4}
    counts = {"FLOW_TEXT_FIELDS": 8, "FLOW_TEXT_BYTES": TEXT_BYTES}
    expected, at = {}, 0
    for kind, name, count in re.findall(r"(struct \w+|\w+)\s+(\w+)(?:\[(\w+)\])?;", code):
        expected[name] = at
        at += sizes[kind] * (counts.get(count) or int(count or 1))
    assert {name: RECORD.fields[name][1] for name in RECORD.names} == expected
    assert (
        RECORD.itemsize
        == at
        == int(re.findall(r"sizeof\(struct flow_record\) == (\d+)", FLOW_H)[0])
    )


# Times.


def test_times_are_unix_times() -> None:
    batch = reassembler().feed(record(), OFFSET_NS)
    assert batch.start_ns.tolist() == [OFFSET_NS + START_NS]
    assert batch.end_ns.tolist() == [OFFSET_NS + START_NS + 1_000_000]
    assert attributes_of(batch)["wirespan.time_to_first_byte_ns"] == 250_000


def test_an_offset_may_be_negative() -> None:
    assert reassembler().feed(record(), -1_000).start_ns.tolist() == [START_NS - 1_000]


def test_no_response_has_no_time_to_first_byte() -> None:
    batch = reassembler().feed(record(first_byte_ns=0, status=0), 0)
    assert "wirespan.time_to_first_byte_ns" not in attributes_of(batch)


def test_an_end_before_the_start_is_mended_and_counted() -> None:
    tracer = reassembler()
    batch = tracer.feed(batch_of(record(), record(end_ns=START_NS - 5)), 0)
    assert (batch.end_ns - batch.start_ns).tolist() == [1_000_000, 0]
    assert tracer.losses()["time_reversed"] == 1


def test_a_first_byte_before_the_start_is_left_out_and_counted() -> None:
    tracer = reassembler()
    batch = tracer.feed(record(first_byte_ns=START_NS - 5), 0)
    assert "wirespan.time_to_first_byte_ns" not in attributes_of(batch)
    assert tracer.losses()["time_reversed"] == 1


# Ids.


def test_both_sides_compute_each_other_s_ids() -> None:
    sides = [record(role=role, request_seq=0xDEADBEEF, response_seq=7) for role in Role]
    batch = reassembler().feed(batch_of(*sides), 0)
    client, server = 0, 1
    key = ids.keys(np.array([0xDEADBEEF], np.uint32), np.array([7], np.uint32))
    assert batch.trace_id[client].tobytes() == batch.trace_id[server].tobytes()
    assert batch.span_id[client].tobytes() == ids.client_span_id(key).tobytes()
    assert batch.span_id[server].tobytes() == ids.server_span_id(key).tobytes()
    assert not batch.parent_span_id.any()


def test_ids_are_a_contract_between_versions() -> None:
    key = ids.keys(np.array([1], np.uint32), np.array([2], np.uint32))
    assert ids.trace_id(key).tobytes().hex() == "800d2cb7781e66314c48ee3fb5888d73"
    assert ids.client_span_id(key).tobytes().hex() == "83ecdc860823293b"
    assert ids.server_span_id(key).tobytes().hex() == "ca008235a4509043"


@pytest.mark.parametrize("zero", [ids._CLIENT, ids._SERVER, ids._TRACE_LOW, np.uint64(0)])
def test_no_id_is_zero(zero: np.uint64) -> None:
    key = np.array([zero], np.uint64)
    for made in (ids.client_span_id(key), ids.server_span_id(key), ids.trace_id(key)[:, 8:]):
        assert made.any()


def test_many_neighbouring_keys_have_ids_of_their_own() -> None:
    key = np.arange(100_000, dtype=np.uint64)
    made = [ids.client_span_id(key), ids.server_span_id(key), ids.trace_id(key)[:, 8:]]
    assert len(np.unique(np.concatenate(made), axis=0)) == 300_000


def test_private_numbers_make_ids_that_nobody_else_has() -> None:
    private = {"flags": Flag.IDS_PRIVATE, "request_seq": 0, "response_seq": 0, "conn_id": 9}
    rows = batch_of(
        record(role=Role.CLIENT, **private),
        record(role=Role.SERVER, **private),
        record(role=Role.SERVER, **{**private, "conn_id": 10}),
        record(role=Role.SERVER, **{**private, "start_ns": START_NS + 1}),
        record(request_seq=0, response_seq=0),
    )
    traces = [
        trace.tobytes()
        for seed in (1, 2)
        for trace in reassembler(seed=seed).feed(rows, 0).trace_id
    ]
    # Only the one that is not private is the same for every tracer.
    assert len(set(traces)) == 9


# Processes, kinds and protocols.


def exec_record(argv: bytes, **values: Any) -> NDArray[np.void]:
    made = record(kind=Kind.EXEC, protocol=0, role=0, target="", **values)
    place(made[0], {flow.Exec.EXE: b"/usr/bin/python3", flow.Exec.ARGV: argv})
    return made


def test_execs_go_to_the_process_table() -> None:
    processes = Processes()
    tracer = Reassembler(processes, Routes())
    rows = batch_of(record(), exec_record(b"python3\0app.py\0", cgroup_id=5), record(target="/b"))
    assert names_of(tracer.feed(rows, 0)) == ["GET /", "GET /b"]
    exe, argv = "/usr/bin/python3", ("python3", "app.py")
    assert processes.execs == [(77, 4_000, "app", exe, argv, 5)]
    assert tracer.losses()["unknown_record"] == 0


@pytest.mark.parametrize(
    ("argv", "expected"),
    [(b"", ()), (b"a\0", ("a",)), (b"a\0cut of", ("a", "cut of")), (b"a\0\0b\0", ("a", "", "b"))],
)
def test_arguments_are_ended_by_nul(argv: bytes, expected: tuple[str, ...]) -> None:
    processes = Processes()
    Reassembler(processes, Routes()).feed(exec_record(argv), 0)
    assert processes.execs[0][4] == expected


def test_a_process_is_described_again_after_an_exec() -> None:
    tracer = reassembler()
    names = []
    for rows in (record(), record(tgid=5), exec_record(b"x\0"), record(), record(tgid=5)):
        batch = tracer.feed(rows, 0)
        names += [dict(shape.resource.attributes)["service.name"] for shape in shapes_of(batch)]
    # The other process has no new image, so its old description stays.
    assert names == ["app", "app", "app1", "app"]


def test_the_thread_s_name_does_not_divide_a_process() -> None:
    rows = batch_of(*(record(comm=f"worker-{number}".encode()) for number in range(9)))
    assert len(reassembler().feed(rows, 0).shapes) == 1


@pytest.mark.parametrize("values", [{"kind": 9}, {"protocol": 0}, {"protocol": 99}, {"role": 0}])
def test_records_of_unknown_sorts_are_counted(values: dict[str, int]) -> None:
    tracer = reassembler()
    batch = tracer.feed(batch_of(record(target="/a"), record(**values), record(target="/b")), 0)
    assert names_of(batch) == ["GET /a", "GET /b"]
    assert tracer.losses()["unknown_record"] == 1


def test_what_the_kernel_kept_says_by_which_level() -> None:
    assert reassembler().feed(batch_of(record(), record(lot=7)), 0).sampling is None
    made = reassembler().feed(batch_of(record(), record(level=2, lot=0xFFFE)), 0).sampling
    assert made is not None
    assert made.threshold.tolist() == [0, 3 << 54]
    assert made.lot.tolist() == [-1, 0xFFFE]


def test_no_records_no_spans() -> None:
    for rows in (batch_of(), exec_record(b"a\0")):
        batch = reassembler().feed(rows, 0)
        assert len(batch) == 0 and batch.trace_id.shape == (0, 16)


class Shout:
    """A decoder of another protocol, with columns of its own."""

    def __init__(self, shapes: Any, routes: Any, settings: Any) -> None:
        self._shapes = shapes

    def losses(self) -> dict[str, int]:
        return {}

    def columns(self, records: Records, process: U64) -> Columns:
        assert len(records) == len(process)
        one = Shape(
            Resource(()),
            "SHOUT",
            KIND_CLIENT,
            0,
            "",
            (),
            (),
            (TextColumn("url.path", "", "url.path"),),
        )
        number = self._shapes.add(one)
        loud = np.full((len(records), 600), ord("A"), np.uint8)
        length = np.full(len(records), 600, np.uint16)
        return Columns(
            np.full(len(records), number, np.int32),
            {"shouts": np.arange(len(records), dtype=np.int64)},
            {"url.path": Text(loud, length)},
        )


@pytest.mark.parametrize("first", [1, 200])
def test_protocols_keep_the_order_of_records(first: int) -> None:
    decoders = {first: http1.Http1, 201 - first: Shout}
    order = [1, 200, 1, 200, 7, 1]
    if first != 1:
        order = [201 - number if number != 7 else 7 for number in order]
    rows = batch_of(*(record(protocol=p, target=f"/{i}") for i, p in enumerate(order)))
    tracer = Reassembler(Processes(), Routes(), None, dict(sorted(decoders.items())))
    batch = tracer.feed(rows, 0)
    assert [shape.name for shape in shapes_of(batch)] == [
        "GET /{id}", "SHOUT", "GET /{id}", "SHOUT", "GET /{id}",
    ]  # fmt: skip
    paths = [attributes_of(batch, row)["url.path"] for row in range(5)]
    assert paths == ["/0", "A" * 600, "/2", "A" * 600, "/5"]
    assert batch.ints["shouts"].tolist() == [-1, 0, -1, 1, -1]
    assert tracer.losses()["unknown_record"] == 1


# Shapes and memos.


def test_an_index_means_one_shape_as_long_as_the_list_is_the_same() -> None:
    tracer = reassembler(max_shapes=10)
    batches = [tracer.feed(record(host=f"h{number}"), 0) for number in range(35)]
    for number, batch in enumerate(batches):
        assert attributes_of(batch)["server.address"] == f"h{number}"
    assert len({id(batch.shapes) for batch in batches}) == 4
    again = tracer.feed(record(host="h34"), 0)
    assert again.shapes is batches[-1].shapes and again.shape[0] == batches[-1].shape[0]


def test_a_target_is_looked_at_once() -> None:
    routes = Routes()
    tracer = Reassembler(Processes(), routes)
    rows = batch_of(*(record(target=f"/{number % 3}") for number in range(300)))
    tracer.feed(rows, 0)
    tracer.feed(rows, 0)
    assert routes.asked == ["/0", "/1", "/2"]


@pytest.mark.parametrize("sizes", [[30, 30], [3, 100, 3], [1, 64, 1, 64]])
def test_targets_survive_being_forgotten(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "MAX_TARGETS", 16)
    tracer = reassembler(query="raw")
    # Small from the start, as after many batches.
    tracer._decoders[1]._targets._allocate(8)  # type: ignore[attr-defined]
    for start, size in enumerate(sizes):
        paths = [f"/{'x' * (number % 7)}/{start}-{number}" for number in range(size)]
        batch = tracer.feed(batch_of(*(record(target=f"{path}?q={path}") for path in paths)), 0)
        got = [attributes_of(batch, row) for row in range(size)]
        assert [one["url.path"] for one in got] == paths
        assert [one["url.query"] for one in got] == [f"q={path}" for path in paths]


def test_what_lies_beyond_a_string_does_not_count() -> None:
    rows = batch_of(*(record(target="/same", host="h") for _ in range(50)))
    noise = np.random.default_rng(1).integers(0, 256, (50, TEXT_BYTES), np.uint8)
    used = int(rows["text_len"][0])
    rows["text"][:, used:] = noise[:, used:]
    batch = reassembler().feed(rows, 0)
    assert len(batch.shapes) == 1 and set(names_of(batch)) == {"GET /same"}


def test_nothing_of_the_records_is_kept() -> None:
    rows = batch_of(*(record(target=f"/{number}") for number in range(20)))
    batch = reassembler().feed(rows, OFFSET_NS)
    before = list(json_lines(batch))
    rows.view(np.uint8)[:] = 0xFF
    assert list(json_lines(batch)) == before


def test_records_may_lie_apart_as_in_the_ring() -> None:
    rows = batch_of(*(record(target=f"/{number}") for number in range(20)))
    stride = 8 + rows.itemsize
    ring = np.zeros((20, stride), np.uint8)
    ring[:, 8:] = rows.view(np.uint8).reshape(20, rows.itemsize)
    apart = np.ndarray((20,), RECORD, ring, offset=8, strides=(stride,))
    made = [reassembler().feed(array, 0) for array in (rows, apart)]
    assert list(json_lines(made[0])) == list(json_lines(made[1]))


# Columns.


@given(st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=20)), min_size=1, max_size=30))
def test_strings_have_equal_hashes_exactly_if_they_are_equal(
    rows: list[tuple[bytes, bytes]],
) -> None:
    text = np.random.default_rng(2).integers(0, 256, (len(rows), 64), np.uint8)
    for row, (before, string) in zip(text, rows, strict=True):
        row[: len(before) + len(string)] = np.frombuffer(before + string, np.uint8)
    off = np.array([len(before) for before, _ in rows])
    length = np.array([len(string) for _, string in rows])
    hashed = Words(text, off + length).absorb(
        absorb(np.zeros(len(rows), np.uint64), length.astype(np.uint64)), off, length
    )
    strings = [string for _, string in rows]
    assert len(set(hashed.tolist())) == len(set(strings))
    assert len(set(zip(hashed.tolist(), strings, strict=True))) == len(set(strings))


def test_the_table_is_a_dict() -> None:
    random = np.random.default_rng(3)
    table, expected = Table(4), dict[int, int]()
    for turn in range(40):
        # Few distinct low bits, so that cells collide.
        keys = np.unique(nonzero(random.integers(0, 1 << 20, 60).astype(np.uint64) << np.uint64(3)))
        numbers = (np.arange(len(keys)) + turn * 100).astype(np.int32)
        table.put(keys, numbers)
        expected.update(zip(keys.tolist(), numbers.tolist(), strict=True))
        asked = nonzero(random.integers(0, 1 << 23, 500).astype(np.uint64))
        asked[::2] = random.choice(list(expected), 250)
        assert table.find(asked).tolist() == [expected.get(key, -1) for key in asked.tolist()]
    assert len(table) == len(expected)
    table.clear()
    assert len(table) == 0 and (table.find(np.array(list(expected), np.uint64)) < 0).all()


def test_distinct_keeps_the_order_of_appearance() -> None:
    values, first, place_of = distinct(np.array([7, 3, 7, 9, 3], np.uint64))
    assert values.tolist() == [7, 3, 9]
    assert first.tolist() == [0, 1, 3]
    assert place_of.tolist() == [0, 1, 0, 2, 1]


# Garbage.


def check(rows: NDArray[np.void], offset_ns: int) -> None:
    tracer = Reassembler(Processes(), RouteTable())
    batch = tracer.feed(rows, offset_ns)
    no_spans = int(np.isin(rows["kind"], [Kind.EXEC, Kind.HANDOVER]).sum())
    assert len(batch) + no_spans + tracer.losses()["unknown_record"] == len(rows)
    assert (batch.end_ns >= batch.start_ns).all()
    assert len(list(text_lines(batch))) == len(list(json_lines(batch))) == len(batch)
    for line in (*text_lines(batch), *json_lines(batch)):
        line.encode()
        assert "\n" not in line
    for text in batch.texts.values():
        for cells, length in zip(text.bytes, text.length.tolist(), strict=True):
            assert length <= len(cells)
            cells[:length].tobytes().decode()


def shake(raw: bytes, count: int) -> NDArray[np.void]:
    """Spread bytes over `count` records."""
    filled = np.resize(np.frombuffer(raw or b"\0", np.uint8), count * RECORD.itemsize)
    return filled.view(RECORD).copy()


@given(st.binary(max_size=2_000), st.integers(0, 3), st.integers(-(1 << 63), 1 << 63))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_taken(raw: bytes, count: int, offset_ns: int) -> None:
    check(shake(raw, count), offset_ns)


TEXTS = st.one_of(
    st.binary(max_size=TEXT_BYTES),
    st.text(max_size=90).map(str.encode),
    st.sampled_from(
        [b"http://u:p@h:1/p?q=1", b"*", b"h:443", b"[::1]:8080", b"//", b"://@?#", b"\xff"]
    ),
)


@given(
    st.lists(
        st.tuples(
            st.binary(min_size=160, max_size=160),
            st.lists(TEXTS, min_size=8, max_size=8),
            st.sampled_from([1, 2]),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_exchange_is_a_span(rows: list[tuple[bytes, list[bytes], int, bool]]) -> None:
    records = np.concatenate([shake(head, 1) for head, _, _, _ in rows])
    records["kind"], records["protocol"] = Kind.EXCHANGE, 1
    for one, (_, strings, role, sound) in zip(records, rows, strict=True):
        one["role"] = role
        if sound:
            one["fields"] = (0, 0)
            room = TEXT_BYTES
            kept = {}
            for slot, string in enumerate(strings):
                kept[slot] = string[:room]
                room -= len(kept[slot])
            place(one, kept)
            one["family"] = (1, 2, 10, 77)[len(strings[0]) % 4]
    check(records, 0)


def test_every_decoder_is_found_by_its_number() -> None:
    assert set(DECODERS) == set(flow.Protocol) - {flow.Protocol.UNKNOWN}
