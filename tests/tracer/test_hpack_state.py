"""HPACK behind a memo, against the encoder of the library and the examples of RFC 7541."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder, HPACKError
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.protocols import hpack_state
from tracer.protocols.hpack_state import DEFAULT_TABLE_BYTES, UNKNOWN, Headers, Hpack, State

Pairs = list[tuple[bytes, bytes]]
UNREADABLE: Headers = ((UNKNOWN, UNKNOWN),)


class Counted:
    """Counts how many blocks were not in the memo."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, headers: Headers) -> Headers:
        self.made += 1
        return headers


class Reader:
    """One direction."""

    def __init__(self, known: bool = True, hpack: Hpack[Headers] | None = None) -> None:
        self.made = Counted()
        self.hpack = hpack or Hpack(self.made, UNREADABLE)
        self.state: State[Headers] = self.hpack.begin(known)

    def read(self, block: bytes) -> Pairs:
        headers, self.state = self.hpack.decode(self.state, block)
        return list(headers)


CALL: Pairs = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/pkg.Svc/Do"),
    (b":authority", b"h:50051"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
]


def test_the_example_of_the_rfc() -> None:
    # RFC 7541 appendix C.4: requests with Huffman coding, on one connection.
    reader = Reader()
    get: Pairs = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")]
    host = (b":authority", b"www.example.com")
    first = reader.read(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff"))
    assert first == [*get, host]
    second = reader.read(bytes.fromhex("828684be5886a8eb10649cbf"))
    assert second == [*get, host, (b"cache-control", b"no-cache")]
    third = reader.read(bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"))
    assert third[3:] == [host, (b"custom-key", b"custom-value")]
    assert [name for name, _ in reader.state.entries] == [
        b"custom-key", b"cache-control", b":authority",
    ]  # fmt: skip


def test_a_repeated_block_is_decoded_once() -> None:
    reader, encoder = Reader(), Encoder()
    for _ in range(20):
        assert reader.read(encoder.encode(CALL)) == CALL
    # The first block fills the table; the second, all indices, leaves it alone.
    assert reader.made.made == 2
    assert reader.state.memo


def test_connections_share_what_they_have_in_common() -> None:
    first = Reader()
    block = Encoder().encode(CALL)
    first.read(block)
    second = Reader(hpack=first.hpack)
    second.read(block)
    assert second.state is first.state and first.made.made == 1


def test_what_differs_is_kept_apart() -> None:
    reader, encoder = Reader(), Encoder()
    for number in range(300):
        headers = [*CALL, (b"x-request-id", b"%d" % number)]
        assert reader.read(encoder.encode(headers)) == headers
    size = sum(32 + len(name) + len(value) for name, value in reader.state.entries)
    assert DEFAULT_TABLE_BYTES - 100 < size <= DEFAULT_TABLE_BYTES


@pytest.mark.parametrize("size", [0, 64, 300, 4096, 65536, 1 << 20])
def test_table_size_updates(size: int) -> None:
    reader, encoder = Reader(), Encoder()
    reader.read(encoder.encode(CALL))
    encoder.header_table_size = size
    for number in range(2000 if size > 65536 else 100):
        headers = [*CALL, (b"x-long-%d" % (number % 90), b"v" * 40)]
        got = reader.read(encoder.encode(headers))
        if size <= 65536:
            assert got == headers
        else:
            # Larger than what is kept here: unknown, never wrong.
            assert all(mine == his or mine[0] is UNKNOWN for mine, his in zip(got, headers,
                       strict=True))  # fmt: skip
    assert not reader.hpack.losses()["hpack_failed"]


def test_an_old_connection_is_relearned() -> None:
    encoder = Encoder()
    encoder.encode([*CALL, (b"x-old", b"1")])
    reader = Reader(known=False)
    got = reader.read(encoder.encode([*CALL, (b"x-new", b"2"), (b"x-old", b"1")]))
    assert got[:2] == [(b":method", b"POST"), (b":scheme", b"http")]
    assert got[2] == (UNKNOWN, UNKNOWN) and got[2][0] is UNKNOWN
    assert got[-2:] == [(b"x-new", b"2"), (UNKNOWN, UNKNOWN)]
    # A new value of a name that isn't known.
    again = reader.read(encoder.encode([(b"x-old", b"3"), (b"x-new", b"2")]))
    assert again[0][0] is UNKNOWN and again[0][1] == b"3"
    assert again[1] == (b"x-new", b"2")


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from([b"a", b"b", b"x-long-name", b":path", b"date"]),
                st.sampled_from([b"", b"1", b"2", b"v" * 90, b"w" * 200]),
            ),
            max_size=6,
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 11),
    st.sampled_from([None, 0, 120, 400]),
)
def test_what_an_old_connection_tells_is_never_wrong(
    blocks: list[Pairs], joined: int, size: int | None
) -> None:
    encoder, new, old = Encoder(), Reader(), Reader(known=False)
    for number, headers in enumerate(blocks):
        if number == joined and size is not None:
            encoder.header_table_size = size
        block = encoder.encode(headers)
        assert new.read(block) == headers
        if number >= joined:
            for mine, his in zip(old.read(block), headers, strict=True):
                assert mine[0] in (his[0], UNKNOWN) and mine[1] in (his[1], UNKNOWN)


MALFORMED = [
    "be",  # an index beyond the table
    "80",  # index 0
    "ff80808080808080808080808001",  # an integer without end
    "40056162",  # a name cut short
    "4001618461",  # a value cut short
    "400161",  # no value at all
    "823f",  # a size update cut short, after a field
    "8220",  # a size update after a field
    "40836f",  # Huffman, cut short
    "4081ff",  # Huffman: no such code, or padding too long
    "40",
]


@pytest.mark.parametrize("block", MALFORMED)
def test_a_malformed_block_makes_its_direction_unreadable(block: str) -> None:
    reader = Reader()
    assert tuple(reader.read(bytes.fromhex(block))) == UNREADABLE
    assert reader.hpack.losses() == {"hpack_failed": 1}
    # For good, and counted once.
    assert tuple(reader.read(b"\x82")) == UNREADABLE
    assert reader.hpack.losses() == {"hpack_failed": 1}
    assert Reader(hpack=reader.hpack).read(b"\x82") == [(b":method", b"GET")]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=6), st.booleans())
def test_any_bytes_are_taken(blocks: list[bytes], known: bool) -> None:
    reader = Reader(known)
    for block in blocks:
        reader.read(block)


def test_a_bomb_is_refused() -> None:
    # One large entry, named over and over: RFC 7541 section 7.
    reader = Reader()
    reader.read(b"\x40\x01a\x7f\xe1\x1e" + b"v" * 4000)
    assert tuple(reader.read(b"\xbe" * 100_000)) == UNREADABLE


def test_the_memo_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpack_state, "MAX_MEMO_BYTES", 1 << 20)
    hpack: Hpack[Headers] = Hpack(lambda headers: headers, UNREADABLE, max_entries=64)
    reader, encoder = Reader(hpack=hpack), Encoder()
    for number in range(500):
        headers = [*CALL, (b"x-request-id", b"%d" % number)]
        assert reader.read(encoder.encode(headers)) == headers
        # The same state for long, with blocks that never repeat.
        literal = b"\x00\x01a\x04%04d" % number
        assert reader.read(literal) == [(b"a", b"%04d" % number)]
    steady = Reader(hpack=hpack)
    for number in range(500):
        assert steady.read(b"\x00\x01a\x04%04d" % number) == [(b"a", b"%04d" % number)]
        assert len(steady.state.memo) <= 64


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.one_of(
                st.binary(max_size=6),
                st.sampled_from(
                    ["82", "be", "bf", "4001610162", "3f21", "20", "3fe11f", "7e0163", "0f2f0164",
                     "10811f00", "5f821c64"]
                ).map(bytes.fromhex),
            ),
            max_size=5,
        ).map(b"".join),
        max_size=5,
    )
)  # fmt: skip
def test_the_library_s_decoder_says_the_same(blocks: list[bytes]) -> None:
    reader, decoder = Reader(), Decoder()
    decoder.max_allowed_table_size = hpack_state.MAX_TABLE_BYTES
    for block in blocks:
        try:
            expected = [(bytes(one[0]), bytes(one[1])) for one in decoder.decode(block, raw=True)]
        except (HPACKError, IndexError):
            assert tuple(reader.read(block)) == UNREADABLE
            break
        assert reader.read(block) == expected
        assert list(reader.state.entries) == list(decoder.header_table.dynamic_entries)
