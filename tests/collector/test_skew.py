"""Clock offsets out of intervals."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from collector.skew import Clocks, overlap, shift_ns

MS = 1_000_000
intervals = st.tuples(st.integers(-1000, 1000), st.integers(0, 1000)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)


@given(st.lists(intervals, min_size=1, max_size=20))
def test_overlap_is_where_most_agree(given_intervals: list[tuple[int, int]]) -> None:
    low, high = overlap(given_intervals)
    assert low <= high

    def agree(place: int) -> int:
        return sum(a <= place <= b for a, b in given_intervals)

    places = [edge for interval in given_intervals for edge in interval]
    assert agree(low) == agree(high) == max(map(agree, places))


@given(st.integers(-(10**9), 10**9), st.lists(st.tuples(st.integers(0, 10**6),
       st.integers(0, 10**6)), min_size=1, max_size=100))  # fmt: skip
def test_true_offset_lies_within_what_the_wire_allows(
    offset: int, wire: list[tuple[int, int]]
) -> None:
    clocks = Clocks()
    for back, forth in wire:
        clocks.observe("a", "b", offset - back, offset + forth)
    low = max(-back for back, _ in wire[-64:])
    high = min(forth for _, forth in wire[-64:])
    found = clocks.offset_ns("a", "b")
    # Exact to what the fastest exchange allows, or left alone because nothing speaks for more.
    assert low - 1 <= found - offset <= high or found == 0
    assert clocks.offset_ns("b", "a") == -found


def test_agreeing_clocks_are_left_alone_and_outliers_outvoted() -> None:
    clocks = Clocks()
    for _ in range(40):
        clocks.observe("a", "b", -1 * MS, 1 * MS)
    # Clients that gave up early: the server seems to be ahead.
    clocks.observe("a", "b", 2 * MS, 8 * MS)
    clocks.observe("a", "b", 3 * MS, 9 * MS)
    assert clocks.offset_ns("a", "b") == 0


def test_a_step_of_the_clock_is_followed() -> None:
    clocks = Clocks()
    for _ in range(64):
        clocks.observe("a", "b", -MS, MS)
    for _ in range(64):
        clocks.observe("a", "b", 299 * MS, 301 * MS)
    assert abs(clocks.offset_ns("a", "b") - 300 * MS) <= MS


def test_bounded() -> None:
    clocks = Clocks(max_pairs=10)
    for number in range(50):
        clocks.observe("a", f"b{number}", 1, 2)
    assert len(clocks) == 10


@given(st.integers(-2000, 2000), intervals)
def test_shift_never_moves_a_start_before_the_client(offset: int, own: tuple[int, int]) -> None:
    shift = shift_ns(offset, *own)
    assert shift <= own[1]
    if offset:
        assert shift >= own[0]
    if own[0] <= offset <= own[1]:
        assert shift == offset
