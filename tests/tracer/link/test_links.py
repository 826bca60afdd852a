"""From records to linked spans: what the reassembler tells the stitcher."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tracer.http2_wire import Wire, tracer
from tests.tracer.link.forest import Out, published, trace_of
from tests.tracer.records import Processes, Routes, attributes_of, batch_of, record
from tracer import ids
from tracer.flow import Evidence, Flag, Role
from tracer.flows import Reassembler
from tracer.link.stitch import Stitcher
from tracer.render import json_lines

W3C = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, SPAN = bytes.fromhex(W3C[3:35]), bytes.fromhex(W3C[36:52])
S = 1_000_000_000


def exchange_id(conn_id: int, start_ns: int, request_seq: int) -> int:
    """flow_exchange_id() of ebpf/flow.h."""
    return (conn_id * 0x9E3779B97F4A7C15 % 2**64) ^ start_ns ^ request_seq << 32


def test_a_server_s_exchange_and_the_call_made_for_it() -> None:
    served = record(conn_id=2**63 + 5, start_ns=2**40 + 1, request_seq=2**32 - 1, response_seq=9)
    number = exchange_id(2**63 + 5, 2**40 + 1, 2**32 - 1)
    call = record(
        role=Role.CLIENT,
        start_ns=2**40 + 2,
        request_seq=7,
        response_seq=8,
        parent=number,
        evidence=Evidence.LOOP,
    )
    stitcher = Stitcher()
    made = Reassembler(Processes(), Routes()).feed(batch_of(call, served), 0)
    assert made.links is not None
    assert not stitcher.feed(made, 0)
    (batch,) = stitcher.flush(10 * S)
    key = ids.keys(np.array([2**32 - 1], np.uint32), np.array([9], np.uint32))
    assert batch.parent_span_id[0].tobytes() == ids.server_span_id(key).tobytes()
    assert attributes_of(batch, 0)["wirespan.link.evidence"] == "loop"
    assert "wirespan.link.evidence" not in attributes_of(batch, 1)
    assert {row.tobytes() for row in batch.trace_id} == {trace_of(int(key[0]))}
    assert '"wirespan.link.evidence":"loop"' in next(json_lines(batch))


def test_no_exchange_s_number_is_0() -> None:
    made = Reassembler(Processes(), Routes()).feed(
        record(conn_id=0, start_ns=1 << 32, request_seq=1), 0
    )
    assert made.links is not None and made.links.exchange.tolist() == [1]


def test_private_ids_await_nobody() -> None:
    made = Reassembler(Processes(), Routes()).feed(record(flags=Flag.IDS_PRIVATE), 0)
    assert len(published(Stitcher().feed(made, 0))) == 1


def stitched(*records: NDArray[np.void]) -> list[Out]:
    stitcher = Stitcher()
    made = Reassembler(Processes(), Routes()).feed(batch_of(*records), 0)
    return published([*stitcher.feed(made, 0), *stitcher.flush(10 * S)])


def test_traceparent() -> None:
    rows = [record(request_seq=5), record(request_seq=6, traceparent=W3C), record(request_seq=7)]
    outs = stitched(*rows)
    assert (outs[1].trace, outs[1].parent, outs[1].evidence) == (TRACE, SPAN, "traceparent")
    assert not any(outs[0].parent) and not any(outs[2].parent)


@pytest.mark.parametrize("value", [f"b3: {TRACE.hex()}-{SPAN.hex()}-1", W3C])
def test_other_headers_in_its_place(value: str) -> None:
    (out,) = stitched(record(traceparent=value))
    assert (out.trace, out.parent) == (TRACE, SPAN)


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": W3C, "b3": "1-2-1"},
        {"b3": f"{TRACE.hex()}-{SPAN.hex()}"},
        {"uber-trace-id": f"{TRACE.hex()}:{SPAN.hex()}:0:1"},
        {"x-b3-traceid": TRACE.hex(), "x-b3-spanid": SPAN.hex(), "x-b3-sampled": "1"},
    ],
)
def test_http2(headers: dict[str, str]) -> None:
    wire = Wire()
    request = {":method": "GET", ":path": "/a", ":scheme": "http", ":authority": "h"}
    made = tracer().feed(batch_of(*wire.call(1, list({**request, **headers}.items()))), 0)
    stitcher = Stitcher()
    stitcher.feed(made, 0)
    (out,) = published(stitcher.flush(10 * S))
    assert (out.trace, out.parent, out.evidence) == (TRACE, SPAN, "traceparent")


def test_content_is_alike_in_both_versions_of_http() -> None:
    wire = Wire()
    request = {":method": "GET", ":path": "/a?b=c", ":scheme": "http", ":authority": "h"}
    rows = batch_of(record(target="/a?b=c"), *wire.call(1, list(request.items())))
    made = Reassembler(Processes(), Routes()).feed(rows, 0)
    assert made.links is not None
    assert len(made) == 2 and len(set(made.links.content.tolist())) == 1
    rows = batch_of(record(target="/a?b=d"), record(target="/a", cut=[0]))
    other = Reassembler(Processes(), Routes()).feed(rows, 0)
    assert other.links is not None
    assert other.links.content[0] not in (0, made.links.content[0])
    assert other.links.content[1] == 0
