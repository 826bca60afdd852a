"""Matching by content: whatever leaves a choice is no match."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracer.link.content import SLACK_NS, Spans, match

T = 10 * SLACK_NS


def spans(*rows: tuple[int, int, int]) -> Spans:
    """Make spans of (group, start, end) in units of ten times the slack."""
    cells = np.array(rows, dtype=np.uint64).reshape(len(rows), 3)
    return Spans(cells[:, 0], cells[:, 1] * np.uint64(T), cells[:, 2] * np.uint64(T))


def matched(servers: Spans, clients: Spans) -> list[int]:
    found: list[int] = match(servers, clients).tolist()
    return found


def test_the_only_exchange_under_way() -> None:
    assert matched(spans((1, 0, 9), (1, 20, 29)), spans((1, 21, 28), (1, 1, 8))) == [1, 0]


def test_another_group_is_another() -> None:
    assert matched(spans((1, 0, 9)), spans((2, 1, 8), (0, 1, 8))) == [-1, -1]


def test_two_exchanges_under_way() -> None:
    assert matched(spans((1, 0, 9), (1, 1, 9)), spans((1, 2, 8))) == [-1]
    # The other had ended, or not begun.
    assert matched(spans((1, 0, 5), (1, 1, 9), (1, 3, 9)), spans((1, 2, 8))) == [1]


def test_two_requests_at_the_same_time() -> None:
    assert matched(spans((1, 0, 9)), spans((1, 1, 5), (1, 4, 8))) == [-1, -1]


def test_retries_one_after_another() -> None:
    assert matched(spans((1, 0, 9)), spans((1, 1, 4), (1, 5, 8))) == [0, 0]


def test_a_little_longer_than_the_exchange() -> None:
    one = spans((1, 0, 9))
    long = Spans(one.group, one.start_ns + np.uint64(1), one.end_ns + np.uint64(SLACK_NS))
    assert matched(one, long) == [0]
    longer = long._replace(end_ns=long.end_ns + np.uint64(1))
    assert matched(one, longer) == [-1]


def test_none() -> None:
    assert matched(spans(), spans((1, 1, 2))) == [-1]
    assert matched(spans((1, 1, 2)), spans()) == []


ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 20), st.integers(1, 8)).map(
        lambda row: (row[0], row[1], row[1] + row[2])
    ),
    max_size=12,
)


@given(ROWS, ROWS)
def test_equals_the_definition(
    servers: list[tuple[int, int, int]], clients: list[tuple[int, int, int]]
) -> None:
    expected = []
    for at, (group, start, end) in enumerate(clients):
        under_way = [
            number
            for number, (its, begin, over) in enumerate(servers)
            if its == group and begin <= start and end <= over
        ]
        rivals = [
            other
            for other, (its, begin, over) in enumerate(clients)
            if other != at and its == group and begin < end and start < over
        ]
        expected.append(under_way[0] if len(under_way) == 1 and not rivals else -1)
    assert matched(spans(*servers), spans(*clients)) == expected
