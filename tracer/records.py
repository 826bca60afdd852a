"""Records copied: without what their texts leave unused, and as bytes.

Most of a record is room for text, and most texts are short: what none of a batch uses is
left out. The text is the record's last field.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Records = NDArray[np.void]

# Texts are cut to a multiple of this, so that few dtypes come up.
STEP_BYTES = 64


def copy_used(records: Records) -> Records:
    """Return a copy whose text is as wide as the fullest of them needs; (n,).

    records: of the dtype flow_record, at any stride. Others are copied as they are.
    """
    dtype = records.dtype
    if not dtype.names or dtype.names[-1] != "text" or not len(records):
        return records.copy()
    used = -(-int(records["text_len"].max()) // STEP_BYTES) * STEP_BYTES
    narrow = _narrow(dtype, used)
    if narrow.itemsize >= dtype.itemsize:
        return records.copy()
    head = np.dtype(
        {"names": ["head"], "formats": [f"V{narrow.itemsize}"], "itemsize": dtype.itemsize}
    )
    return records.view(head)["head"].copy().view(narrow)


def take(records: Records, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Records:
    """Return some records, copied as bytes: numpy itself would go field by field."""
    return records.view(f"V{records.dtype.itemsize}")[rows].view(records.dtype)


def join(parts: Sequence[Records]) -> Records:
    """Return one array of records whose texts may differ in width; beyond its own, undefined."""
    if len(parts) == 1:
        return parts[0]
    widest = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize)
    whole = np.empty(sum(map(len, parts)), dtype=widest)
    cells = whole.view(np.uint8).reshape(len(whole), widest.itemsize)
    at = 0
    for part in parts:
        size = part.dtype.itemsize
        cells[at : at + len(part), :size] = part.view(np.uint8).reshape(len(part), size)
        at += len(part)
    return whole


@lru_cache(maxsize=64)
def _narrow(dtype: np.dtype[np.void], text_bytes: int) -> np.dtype[np.void]:
    """Return the dtype with so much less text, and no room behind it."""
    fields = dtype.fields
    assert fields is not None and dtype.names is not None
    start = fields["text"][1]
    return np.dtype(
        {
            "names": list(dtype.names),
            "formats": [*(fields[name][0] for name in dtype.names[:-1]), ("u1", (text_bytes,))],
            "offsets": [fields[name][1] for name in dtype.names],
            "itemsize": start + text_bytes,
        }
    )
