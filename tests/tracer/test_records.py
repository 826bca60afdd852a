"""Copies of records that leave out what no text uses."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tracer.records import RECORD, batch_of, record
from tracer.records import STEP_BYTES, copy_used, join, take


def in_ring(*records: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Lay records out as in the ring: eight bytes before each."""
    batch = batch_of(*records)
    cells = np.zeros((len(batch), 8 + RECORD.itemsize), np.uint8)
    cells[:, 8:] = batch.view(np.uint8).reshape(len(batch), -1)
    return np.ndarray((len(batch),), RECORD, cells, 8, (8 + RECORD.itemsize,))


@pytest.mark.parametrize("length", [0, 1, STEP_BYTES, STEP_BYTES + 1, 431])
def test_texts_are_kept_whole(length: int) -> None:
    records = in_ring(record(target="/" * length), record(target="/a"))
    copy = copy_used(records)
    assert copy.flags.owndata or (copy.base is not None and copy.flags.c_contiguous)
    width = copy["text"].shape[1]
    assert max(length, 2) <= width < max(length, 2) + STEP_BYTES
    assert copy.itemsize == RECORD.itemsize - RECORD["text"].shape[0] + width
    for name in RECORD.names or ():
        kept = records[name][:, :width] if name == "text" else records[name]
        assert (copy[name] == kept).all(), name


def test_full_texts_and_other_records_are_copied_as_they_are() -> None:
    records = in_ring(record(target="/" * 432))
    assert (copy_used(records) == records).all() and copy_used(records).dtype == RECORD
    others = np.ones(3, dtype=[("a", "<u4")])
    assert (copy_used(others) == others).all()
    assert len(copy_used(records[:0])) == 0


def test_copies_of_any_width_are_joined() -> None:
    parts = [copy_used(in_ring(record(target="/" * length))) for length in (3, 200, 64)]
    whole = join(parts)
    assert whole["text_len"].tolist() == [part["text_len"][0] for part in parts]
    for row, part in enumerate(parts):
        used = int(part["text_len"][0])
        assert bytes(whole["text"][row, :used]) == bytes(part["text"][0, :used])
        assert whole["start_ns"][row] == part["start_ns"][0]
    assert join(parts[:1]) is parts[0]


def test_some_are_taken() -> None:
    records = copy_used(in_ring(record(tgid=1), record(tgid=2), record(tgid=3)))
    assert take(records, np.array([2, 0]))["tgid"].tolist() == [3, 1]
    assert take(records, np.array([False, True, False]))["tgid"].tolist() == [2]
