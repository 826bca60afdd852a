"""The stitcher: every span once, in the tree in which it belongs."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tracer.link.forest import (
    NO_PARENT,
    SHAPE,
    Out,
    Row,
    batch,
    client,
    client_id,
    published,
    server,
    server_id,
    trace_of,
)
from tracer.flow import Evidence
from tracer.link.stitch import Stitcher, Waits
from tracer.spans import SpanBatch

MS = 1_000_000
S = 1_000 * MS


def by_number(outs: list[Out]) -> dict[int, Out]:
    made = {out.number: out for out in outs}
    assert len(made) == len(outs), "each span once"
    return made


def chain() -> list[Row]:
    """Client 1 -> server 1 -> client 2 -> server 2, all traced."""
    return [
        server(2, start_ns=30),
        client(2, parent=50_001, start_ns=20),
        server(1, start_ns=10),
        client(1, start_ns=5),
    ]


def check_chain(outs: list[Out]) -> None:
    spans = by_number(outs)
    assert {out.trace for out in outs} == {trace_of(1)}
    assert spans[1].parent == NO_PARENT and spans[1].evidence == ""
    assert spans[1_000_001].parent == client_id(1) and spans[1_000_001].evidence == "stream"
    assert spans[2].parent == server_id(1) and spans[2].evidence == "thread"
    assert spans[1_000_002].parent == client_id(2)


def test_a_chain_in_one_batch_goes_out_at_once() -> None:
    stitcher = Stitcher()
    check_chain(published(stitcher.feed(batch(chain()), 0)))
    assert len(stitcher) == 0
    assert not any(stitcher.losses().values())


def test_a_chain_in_any_order_one_by_one() -> None:
    for seed in range(24):
        rows = chain()
        random.Random(seed).shuffle(rows)
        stitcher = Stitcher()
        outs = [out for row in rows for out in published(stitcher.feed(batch([row]), 0))]
        check_chain(outs)


def test_a_server_whose_client_is_not_traced_is_a_root_after_a_while() -> None:
    stitcher = Stitcher()
    assert not stitcher.feed(batch([server(1)]), 0)
    assert not stitcher.flush(249 * MS)
    (out,) = published(stitcher.flush(250 * MS))
    assert (out.trace, out.parent, out.evidence) == (trace_of(1), NO_PARENT, "")
    assert not any(stitcher.losses().values())


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("met", [0, 1, 2])
@pytest.mark.parametrize("near", [0, 1])
def test_a_client_on_this_host_that_is_traced_is_waited_for(
    near: int, met: int, known: bool
) -> None:
    stitcher = Stitcher()
    start = 10 * S
    if known:
        stitcher.feed(batch([server(2, near=near)]), 0)
        assert len(published(stitcher.flush(start))) == 1
    rows = [server(1, start_ns=1, near=near), client(1, near=near)]
    assert not stitcher.feed(batch(rows[:1]), start)
    # That others of the same service are traced may turn out meanwhile.
    assert len(stitcher.feed(batch([client(3, near=met)]), start + 249 * MS)) == 1
    assert not stitcher.flush(start + 249 * MS)
    late = published(stitcher.flush(start + 250 * MS))
    late += published(stitcher.flush(start + 4_999 * MS))
    paired = published(stitcher.feed(batch(rows[1:]), start + 4_999 * MS))
    if near and (met == near or not known):
        assert not late and by_number(paired)[1_000_001].parent == client_id(1)
    else:
        assert late[0].parent == NO_PARENT


def test_a_client_on_this_host_is_not_waited_for_without_end() -> None:
    stitcher = Stitcher()
    assert not stitcher.feed(batch([server(1, near=1)]), 0)
    assert not stitcher.flush(250 * MS) and not stitcher.flush(4_999 * MS)
    (out,) = published(stitcher.flush(5 * S))
    assert (out.trace, out.parent) == (trace_of(1), NO_PARENT)


def test_a_collector_behind_gets_the_client_s_id_nonetheless() -> None:
    stitcher = Stitcher(downstream=True)
    stitcher.feed(batch([server(1)]), 0)
    (out,) = published(stitcher.flush(S))
    assert (out.trace, out.parent, out.evidence) == (trace_of(1), client_id(1), "stream")


def test_a_client_that_serves_nobody_goes_out_at_once() -> None:
    (out,) = published(Stitcher().feed(batch([client(1)]), 0))
    assert (out.trace, out.parent, out.evidence) == (trace_of(1), NO_PARENT, "")


def test_private_sides_are_two_roots_but_links_inside_a_process_stand() -> None:
    rows = [
        server(11, exchange=99, private=True, start_ns=10),
        client(12, start_ns=5),
        client(13, parent=99, start_ns=20),
    ]
    spans = by_number(published(Stitcher().feed(batch(rows), 0)))
    assert spans[1_000_011].parent == NO_PARENT and spans[12].parent == NO_PARENT
    assert spans[13].parent == server_id(11)
    assert spans[13].trace == spans[1_000_011].trace == trace_of(11) != spans[12].trace


def test_a_call_that_outlives_its_exchange_is_linked_for_a_minute() -> None:
    stitcher = Stitcher()
    stitcher.feed(batch([server(1)]), 0)
    assert len(published(stitcher.flush(S))) == 1
    (out,) = published(stitcher.feed(batch([client(2, parent=50_001)]), 59 * S))
    assert (out.trace, out.parent, out.evidence) == (trace_of(1), server_id(1), "thread")


def test_a_server_later_than_its_client_is_linked() -> None:
    stitcher = Stitcher()
    stitcher.feed(batch([client(1)]), 0)
    (out,) = published(stitcher.feed(batch([server(1)]), S))
    assert (out.trace, out.parent) == (trace_of(1), client_id(1))


def test_a_call_of_a_long_exchange_waits_for_it() -> None:
    stitcher = Stitcher()
    stitcher.feed(batch([client(2, parent=50_001)]), 0)
    assert not stitcher.flush(20 * S)
    spans = by_number(published(stitcher.feed(batch([server(1), client(1)]), 29 * S)))
    assert spans[2].parent == server_id(1) and len({out.trace for out in spans.values()}) == 1
    assert not any(stitcher.losses().values())


def test_before_a_collector_it_waits_no_longer_than_that_does() -> None:
    stitcher = Stitcher(downstream=True)
    stitcher.feed(batch([client(2, parent=50_001)]), 0)
    assert not stitcher.flush(5 * S - 1)
    (out,) = published(stitcher.flush(5 * S))
    assert out.parent == NO_PARENT


def test_a_client_that_waits_too_long_lends_its_trace_to_what_it_waited_for() -> None:
    stitcher = Stitcher()
    stitcher.feed(batch([client(2, parent=50_001), client(3, parent=50_001)]), 0)
    assert not stitcher.flush(30 * S - 1)
    early = published(stitcher.flush(30 * S))
    assert {out.parent for out in early} == {NO_PARENT}
    assert stitcher.losses()["link_late"] == 2
    # The exchange itself, its client, and another call.
    rows = [server(1), client(1), client(4, parent=50_001)]
    late = published(stitcher.feed(batch(rows), 31 * S))
    assert {out.trace for out in (*early, *late)} == {early[0].trace}
    assert by_number(late)[1_000_001].parent == client_id(1)
    assert by_number(late)[4].parent == server_id(1)
    assert stitcher.losses()["link_split"] == 0


def test_long_exchanges_above_one_another_are_one_trace() -> None:
    stitcher = Stitcher()
    outs: list[Out] = []
    # Each level ends long after the one below it, and the calls that it made.
    for level in range(5, 0, -1):
        now = (10 - level) * 40 * S
        rows = [client(10 * level, parent=50_000 + level), client(level + 1, parent=50_000 + level)]
        rows += [server(level + 1)]
        outs += published(stitcher.feed(batch(rows), now))
        outs += published(stitcher.flush(now + 31 * S))
    outs += published(stitcher.feed(batch([server(1), client(1)]), 400 * S))
    assert len(by_number(outs)) == 17
    assert len({out.trace for out in outs}) == 1
    assert stitcher.losses()["link_split"] == 0


def test_two_subtrees_that_are_out_already_are_counted() -> None:
    stitcher = Stitcher()
    stitcher.feed(batch([client(2, parent=50_001)]), 0)
    (below,) = published(stitcher.flush(30 * S))
    (above,) = published(stitcher.feed(batch([client(1)]), 30 * S))
    (out,) = published(stitcher.feed(batch([server(1)]), 31 * S))
    assert out.trace == above.trace != below.trace
    assert stitcher.losses()["link_split"] == 1


def test_a_child_that_began_before_its_parent_is_no_child() -> None:
    stitcher = Stitcher()
    rows = [client(2, parent=50_001, start_ns=9), server(1, start_ns=10), client(1)]
    spans = by_number(published(stitcher.feed(batch(rows), 0)))
    assert spans[2].parent == NO_PARENT and spans[2].trace == trace_of(2)
    assert stitcher.losses()["link_refused"] == 1


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_circles_are_broken(length: int) -> None:
    rows = []
    for number in range(length):
        rows += [server(number), client(number, parent=50_000 + (number + 1) % length)]
    # Hanging below it.
    rows += [client(77, parent=50_000), server(77)]
    stitcher = Stitcher()
    outs = by_number(published(stitcher.feed(batch(rows), 0)))
    assert len(outs) == len(rows)
    assert stitcher.losses()["link_refused"] >= 1


def test_a_record_that_names_itself_harms_nobody() -> None:
    word = int(np.frombuffer(client_id(1), np.uint64)[0])
    assert len(published(Stitcher().feed(batch([client(1, parent=word)]), 0))) == 1
    stitcher = Stitcher()
    word = int(np.frombuffer(client_id(2), np.uint64)[0])
    assert len(published(stitcher.feed(batch([server(2, exchange=word)]), 0))) == 1


def test_doubled_records_are_two_spans() -> None:
    rows = [server(1, number=1), server(1, number=2), client(1, number=3)]
    outs = published(Stitcher().feed(batch(rows), 0))
    spans = by_number(outs)
    assert spans[1].parent == spans[2].parent == client_id(1)
    stitcher = Stitcher()
    outs = [o for row in rows for o in published(stitcher.feed(batch([row]), 0))]
    assert by_number(outs)[2].parent == client_id(1)


# Parents that requests name.

TRACE, SPAN, OTHER = bytes(range(1, 17)), bytes(range(1, 9)), bytes(range(2, 10))


def test_a_named_parent_wins_where_the_client_is_not_traced() -> None:
    stitcher = Stitcher()
    rows = [server(1, remote=(TRACE, SPAN)), client(2, parent=50_001)]
    assert not stitcher.feed(batch(rows), 0)
    spans = by_number(published(stitcher.flush(S)))
    assert spans[1_000_001] == Out(1_000_001, TRACE, server_id(1), SPAN, "traceparent")
    assert (spans[2].trace, spans[2].parent) == (TRACE, server_id(1))


def test_a_client_goes_between_the_named_parent_and_the_server() -> None:
    rows = [server(1, remote=(TRACE, SPAN)), client(1, remote=(TRACE, SPAN))]
    spans = by_number(published(Stitcher().feed(batch(rows), 0)))
    assert (spans[1].trace, spans[1].parent, spans[1].evidence) == (TRACE, SPAN, "traceparent")
    assert (spans[1_000_001].trace, spans[1_000_001].parent) == (TRACE, client_id(1))


def test_a_name_that_only_the_server_s_side_saw_tells_the_trace_of_both() -> None:
    rows = [server(1, remote=(TRACE, SPAN)), client(1)]
    spans = by_number(published(Stitcher().feed(batch(rows), 0)))
    assert spans[1].trace == spans[1_000_001].trace == TRACE
    assert spans[1].parent == NO_PARENT


def test_a_name_passed_on_by_a_proxy_does_not_replace_the_link() -> None:
    rows = [
        server(1, remote=(TRACE, SPAN)),
        client(2, parent=50_001, remote=(TRACE, SPAN)),
        server(2, remote=(TRACE, SPAN)),
    ]
    stitcher = Stitcher()
    stitcher.feed(batch(rows), 0)
    spans = by_number(published(stitcher.flush(S)))
    assert {span.trace for span in spans.values()} == {TRACE}
    assert spans[1_000_001].parent == SPAN
    assert spans[2].parent == server_id(1) and spans[2].evidence == "thread"
    assert spans[1_000_002].parent == client_id(2)


def test_a_process_that_traces_itself_puts_its_span_between() -> None:
    rows = [server(1), client(1), client(2, parent=50_001, remote=(TRACE, OTHER)), server(2)]
    spans = by_number(published(Stitcher().feed(batch(rows), 0)))
    assert {span.trace for span in spans.values()} == {TRACE}
    assert (spans[2].parent, spans[2].evidence) == (OTHER, "traceparent")
    assert spans[1].parent == NO_PARENT and spans[1_000_001].parent == client_id(1)


# Content.

RELAY = {"process": 3, "content": 5}


def proxied() -> list[Row]:
    return [
        client(2, start_ns=20, end_ns=80, **RELAY),
        server(1, start_ns=10, end_ns=90, **RELAY),
        client(1, start_ns=5, end_ns=95, process=4),
    ]


def test_a_proxy_s_request_is_linked_by_its_content() -> None:
    stitcher = Stitcher()
    outs = published(stitcher.feed(batch(proxied()), 0))
    outs += published(stitcher.flush(200 * MS))
    assert 2 not in by_number(outs)
    outs += published(stitcher.flush(250 * MS))
    spans = by_number(outs)
    assert (spans[2].trace, spans[2].parent) == (trace_of(1), server_id(1))
    assert spans[2].evidence == "content"


def test_nothing_is_linked_by_content_where_there_is_a_choice() -> None:
    rows = [*proxied(), server(6, start_ns=8, end_ns=99, **RELAY)]
    stitcher = Stitcher()
    outs = published(stitcher.feed(batch(rows), 0)) + published(stitcher.flush(2 * S))
    assert by_number(outs)[2].parent == NO_PARENT


def test_no_client_of_a_process_that_serves_nobody_waits() -> None:
    rows = [row for row in proxied() if row.client]
    assert len(published(Stitcher().feed(batch(rows), 0))) == 2


def test_a_request_without_a_match_goes_out_in_time() -> None:
    stitcher = Stitcher()
    stitcher.feed(batch([server(1, **RELAY), client(1), client(2, **RELAY, end_ns=2 * MS)]), 0)
    assert not stitcher.flush(399 * MS)
    (out,) = published(stitcher.flush(440 * MS))
    assert (out.parent, out.evidence) == (NO_PARENT, "")


# Calls of a pool's threads, which turn out later to be for whom the thread then woke.


def woke(*servers: int) -> SpanBatch:
    """A batch of no spans: the thread that made call 2 woke those that serve `servers`."""
    handovers = np.array([(52_002, 50_000 + key) for key in servers], dtype=np.uint64)
    empty = batch([])
    assert empty.links is not None
    return replace(empty, links=empty.links._replace(handovers=handovers))


def pooled() -> list[Row]:
    return [
        client(2, exchange=52_002, start_ns=30, evidence=Evidence.WAKEUP),
        *(row for key in (1, 3) for row in (server(key, start_ns=10), client(key, start_ns=5))),
    ]


@pytest.mark.parametrize("apart", [False, True])
def test_calls_of_a_pool_with_the_same_number_wait_no_longer(apart: bool) -> None:
    stitcher, rows = Stitcher(), pooled() + pooled()
    outs = []
    for part in (rows[:5], rows[5:]) if apart else (rows,):
        outs += published(stitcher.feed(batch(part), 1))
    outs += published(stitcher.flush(1 + 250 * MS))
    assert len(outs) == len(rows) and len(stitcher) == 0


@pytest.mark.parametrize("woken", [(1,), (3,), (1, 1)])
def test_a_call_of_a_pool_is_for_whom_its_thread_woke(woken: tuple[int, ...]) -> None:
    stitcher = Stitcher()
    outs = published(stitcher.feed(batch(pooled()), 0))
    for key in woken:
        outs += published(stitcher.feed(woke(key), 100 * MS))
    outs += published(stitcher.flush(349 * MS))
    assert 2 not in by_number(outs), "it may yet wake another"
    outs += published(stitcher.flush(350 * MS))
    span = by_number(outs)[2]
    assert (span.trace, span.parent) == (trace_of(woken[0]), server_id(woken[0]))
    assert span.evidence == "wakeup"
    assert not any(stitcher.losses().values())


def test_a_call_whose_thread_woke_two_is_neither_s() -> None:
    stitcher = Stitcher()
    outs = published(stitcher.feed(batch(pooled()), 0))
    outs += published(stitcher.feed(woke(1), 100 * MS)) + published(stitcher.flush(200 * MS))
    outs += published(stitcher.feed(woke(3), 349 * MS))
    assert (by_number(outs)[2].parent, by_number(outs)[2].evidence) == (NO_PARENT, "")
    assert stitcher.losses()["link_doubtful"] == 1


def test_a_call_whose_thread_woke_nobody_goes_out_in_time() -> None:
    stitcher = Stitcher()
    outs = published(stitcher.feed(batch(pooled()), 0)) + published(stitcher.flush(249 * MS))
    assert 2 not in by_number(outs)
    outs += published(stitcher.flush(250 * MS))
    assert by_number(outs)[2].parent == NO_PARENT


# Bounds.


def test_what_is_held_is_bounded_and_the_oldest_go_first() -> None:
    stitcher = Stitcher(held_max=10)
    outs = []
    for number in range(0, 100, 5):
        rows = [client(key, parent=90_000 + key) for key in range(number, number + 5)]
        outs += published(stitcher.feed(batch(rows), number))
        assert len(stitcher) <= 10
    assert [out.number for out in outs] == list(range(90))
    assert stitcher.losses()["link_full"] == 90
    assert len(published(stitcher.flush(0, all=True))) == 10
    assert len(stitcher) == 0


def test_how_long_the_oldest_waits_is_known() -> None:
    stitcher = Stitcher()
    assert stitcher.since_ns == 0
    # More of them than are kept apart, and from each one span goes at once.
    for number in range(200):
        at = 2 * number + 1
        stitcher.feed(batch([client(at), client(at + 1, parent=90_000 + at)]), 100 + number)
        assert stitcher.since_ns == 100
    stitcher.flush(100 + 30 * S)
    assert stitcher.since_ns == 101
    stitcher.flush(200 + 30 * S)
    assert stitcher.since_ns == 201
    stitcher.flush(0, all=True)
    assert stitcher.since_ns == 0


def test_memory_of_what_is_out_is_bounded() -> None:
    stitcher = Stitcher(capacity=1 << 10)
    for number in range(200):
        at = 1_000 + 50 * number
        rows = [client(key) for key in range(at, at + 50)]
        assert len(published(stitcher.feed(batch(rows), number))) == 50
    assert stitcher._nodes.capacity == 1 << 10
    # What is recent is still known, what is old isn't.
    assert published(stitcher.feed(batch([server(at)]), 1))[0].parent == client_id(at)
    assert not stitcher.feed(batch([server(1_000)]), 1)


def test_what_waits_is_not_forgotten_for_lack_of_room() -> None:
    stitcher = Stitcher(capacity=1 << 10)
    stitcher.feed(batch([client(2, parent=50_001)]), 0)
    for number in range(100):
        at = 1_000 + 50 * number
        stitcher.feed(batch([client(key) for key in range(at, at + 50)]), number)
    spans = by_number(published(stitcher.feed(batch([server(1), client(1)]), 100)))
    assert spans[2].parent == server_id(1)


def test_batches_of_two_lists_of_shapes_stay_apart() -> None:
    stitcher = Stitcher()
    stitcher.feed(batch([client(2, parent=50_001)]), 0)
    first, second = stitcher.feed(batch([server(1), client(1)], [SHAPE]), 0)
    assert first.shapes is not second.shapes
    assert [len(first), len(second)] == [1, 2]


def test_many_small_batches_are_joined() -> None:
    stitcher = Stitcher()
    for key in range(2, 300):
        assert not stitcher.feed(batch([client(key, parent=50_001)]), key)
    outs = published(stitcher.feed(batch([server(1), client(1)]), 300))
    assert [out.number for out in outs] == [*range(2, 300), 1_000_001, 1]
    assert {out.trace for out in outs} == {trace_of(1)}


# Forests of any shape.


class Truth:
    """A random forest, its rows in the order in which their exchanges ended, and the truth."""

    def __init__(self, seed: int, count: int) -> None:
        rng = random.Random(seed)
        self.rows: list[Row] = []
        self.parents: dict[int, bytes] = {}
        self.roots: dict[int, tuple[bool, int]] = {}
        keys = rng.sample(range(1, 40_000), count)
        served: list[int] = []
        tops: dict[tuple[bool, int], tuple[bool, int]] = {}
        for at, key in enumerate(keys):
            above = rng.choice(served) if served and rng.random() < 0.85 else None
            private = rng.random() < 0.1
            has_client = above is not None or rng.random() < 0.7
            has_server = not has_client or rng.random() < 0.8
            other = key + 40_000 if private else key  # the sides share no numbers
            near = rng.randrange(3)
            if has_client:
                parent = 50_000 + above if above else 0
                row = client(other, parent=parent, start_ns=10 * at, near=near)
                top = tops[False, above] if above else (True, other)
                tops[True, other] = top
                self._add(row, server_id(above) if above else NO_PARENT, top)
            if has_server:
                row = server(key, start_ns=10 * at + 5, private=private, near=near)
                linked = has_client and not private
                top = tops[True, key] if linked else (False, key)
                tops[False, key] = top
                self._add(row, client_id(key) if linked else NO_PARENT, top)
                served.append(key)
        rng.shuffle(self.rows)

    def _add(self, row: Row, parent: bytes, top: tuple[bool, int]) -> None:
        self.rows.append(row)
        self.parents[row.number] = parent
        self.roots[row.number] = top

    def batches(self, seed: int) -> list[list[Row]]:
        rng = random.Random(seed)
        cuts = sorted(rng.sample(range(len(self.rows)), min(len(self.rows) // 4, 40)))
        return [
            self.rows[begin:end]
            for begin, end in zip([0, *cuts], [*cuts, len(self.rows)], strict=True)
        ]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 120))
def test_forests_come_out_as_they_are(seed: int, count: int) -> None:
    truth = Truth(seed, count)
    # Just enough for all of them.
    stitcher = Stitcher(capacity=1 << 10)
    outs = []
    for at, rows in enumerate(truth.batches(seed)):
        outs += published(stitcher.feed(batch(rows), at * MS))
    outs += published(stitcher.flush(6 * S))
    outs += published(stitcher.flush(60 * S))
    assert len(stitcher) == 0
    spans = by_number(outs)
    assert {number: out.parent for number, out in spans.items()} == truth.parents
    for number, out in spans.items():
        assert out.trace == trace_of(truth.roots[number][1])
    assert not any(stitcher.losses().values())


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 120), st.integers(1, 60), st.booleans())
def test_forests_torn_apart_have_no_wrong_parent(
    seed: int, count: int, held_max: int, downstream: bool
) -> None:
    truth = Truth(seed, count)
    rng = random.Random(seed)
    waits = Waits(rng.randrange(100), rng.randrange(400), near_ns=rng.randrange(800))
    stitcher = Stitcher(downstream, held_max, waits, capacity=1 << 8)
    outs: list[Out] = []
    now = 0
    for rows in truth.batches(seed):
        now += rng.choice((0, 1, 10, 200, 1_000))
        outs += published(stitcher.feed(batch(rows), now))
        assert len(stitcher) <= held_max
        if rng.random() < 0.3:
            outs += published(stitcher.flush(now + 5))
    outs += published(stitcher.flush(now, all=True))
    spans = by_number(outs)
    assert set(spans) == set(truth.parents)
    by_id = {out.span: out for out in outs}
    for number, out in spans.items():
        if out.parent == NO_PARENT:
            continue
        if downstream and number >= 1_000_000:
            assert out.parent == client_id(number - 1_000_000)
            continue
        assert out.parent == truth.parents[number]
        assert by_id[out.parent].trace == out.trace
