"""Trace headers: each format by its form, alone and in columns."""

from __future__ import annotations

from base64 import b64encode

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.link.headers import Headers, remote_parent, sampled
from tracer.spans import SAMPLED_NO, SAMPLED_YES

TRACE = bytes.fromhex("0af7651916cd43dd8448eb211c80319c")
SPAN = bytes.fromhex("b7ad6b7169203331")
W3C = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HALF = bytes(8) + TRACE[8:]


def sw8(trace: bytes = b"t-1", segment: bytes = b"s-1", span: bytes = b"3") -> bytes:
    fields = [b"1", b64encode(trace), b64encode(segment), span, b64encode(b"svc")]
    return b"-".join(fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (W3C, (TRACE, SPAN)),
        (b"traceparent: " + W3C, (TRACE, SPAN)),
        (b"01" + W3C[2:] + b"-more", (TRACE, SPAN)),
        (b"0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", (TRACE, SPAN)),
        (b"b3: 0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1", (TRACE, SPAN)),
        (b"8448eb211c80319c-b7ad6b7169203331-d-05e3ac9a4f6e3b90", (HALF, SPAN)),
        (b"0af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0:1", (TRACE, SPAN)),
        (b"uber-trace-id: 8448eb211c80319c%3Ab7ad6b7169203331%3A0%3A1", (HALF, SPAN)),
        (b"1:2:0:1", (bytes(15) + b"\1", bytes(7) + b"\2")),
    ],
)
def test_formats(text: bytes, expected: tuple[bytes, bytes]) -> None:
    assert remote_parent(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"0",
        b"d",
        W3C.upper().replace(b"0AF", b"0af"),
        b"ff" + W3C[2:],
        W3C + b"-more",
        W3C[:-1],
        b"00-" + b"0" * 32 + W3C[35:],
        W3C[:36] + b"0" * 16 + b"-01",
        b"g" + W3C[1:],
        b"1:0:0:1",
        b"1-!-x-3",
        b"1--" + b64encode(b"s") + b"-3",
        b"x" * 300,
    ],
)
def test_what_is_none_of_them(text: bytes) -> None:
    assert remote_parent(text) is None


def test_skywalking_s_ids_are_hashed_and_differ_by_trace_segment_and_span() -> None:
    first = remote_parent(sw8())
    assert first is not None and first == remote_parent(b"sw8: " + sw8())
    assert len(first[0]) == 16 and len(first[1]) == 8
    others = [remote_parent(sw8(b"t-2")), remote_parent(sw8(segment=b"s-2"))]
    others.append(remote_parent(sw8(span=b"4")))
    assert others[0] and others[0][0] != first[0]
    for other in others[1:]:
        assert other and other[0] == first[0] and other[1] != first[1]


@given(
    st.lists(
        st.one_of(
            st.sampled_from([W3C, b"", sw8(), b"1:2:0:1", W3C[:-1], b"00-" + b"0" * 32 + W3C[35:]]),
            st.binary(max_size=60),
            st.builds(
                lambda at, byte: W3C[:at] + bytes([byte]) + W3C[at + 1 :],
                st.integers(0, 54),
                st.integers(0, 255),
            ),
        ),
        max_size=20,
    )
)
def test_columns_say_what_one_by_one_says(texts: list[bytes]) -> None:
    found = Headers().of(texts)
    for row, text in enumerate(texts):
        expected = remote_parent(text) if len(text) else None
        cells = np.array([words[row] for words in found[:3]], dtype=np.uint64).tobytes()
        assert cells == (expected[0] + expected[1] if expected else bytes(24)), text
        if expected or not text:
            assert found.sampled[row] == sampled(text), text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (W3C, SAMPLED_YES),
        (W3C[:-2] + b"00", SAMPLED_NO),
        (W3C[:-2] + b"02", SAMPLED_NO),
        (W3C[:-2] + b"03", SAMPLED_YES),
        (b"01" + W3C[2:] + b"-more", SAMPLED_YES),
        (b"b3: 0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1", SAMPLED_YES),
        (b"8448eb211c80319c-b7ad6b7169203331-d-05e3ac9a4f6e3b90", SAMPLED_YES),
        (b"8448eb211c80319c-b7ad6b7169203331-0", SAMPLED_NO),
        (b"8448eb211c80319c-b7ad6b7169203331", 0),
        (b"uber-trace-id: 8448eb211c80319c%3Ab7ad6b7169203331%3A0%3A1", SAMPLED_YES),
        (b"8448eb211c80319c:b7ad6b7169203331:0:02", SAMPLED_NO),
        (sw8(), SAMPLED_YES),
        (b"0" + sw8()[1:], SAMPLED_NO),
        (b"", 0),
        (b"nothing", 0),
    ],
)
def test_what_a_parent_says_of_its_trace(text: bytes, said: int) -> None:
    assert sampled(text) == said
