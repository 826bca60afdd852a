"""Resizing maps in an object's BTF: what changes, and what must not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.root.compile import compile_bpf
from tracer.errors import LayoutError
from tracer.kernel.btf import Object, max_entries, with_max_entries
from tracer.kernel.layout import layout_of, read_object


@pytest.fixture(scope="module")
def obj() -> Object:
    return read_object(compile_bpf("writer"))


def test_only_the_named_maps_change(obj: Object) -> None:
    # records and conns share one number, and so one array type.
    assert max_entries(obj, "records") == max_entries(obj, "conns") == 4096
    resized = with_max_entries(obj, {"records": 1 << 20, "filter_pids": 77})
    assert max_entries(resized, "records") == 1 << 20
    assert max_entries(resized, "filter_pids") == 77
    assert max_entries(resized, "conns") == 4096
    assert max_entries(resized, "filter_ports") == 2


def test_the_rest_of_the_object_stays(obj: Object) -> None:
    resized = with_max_entries(obj, {"conns": 3})
    again = Object(resized.data, "again")
    assert again.programs == obj.programs
    assert again.helpers == obj.helpers
    assert again.symbols == obj.symbols
    assert layout_of(again).record == layout_of(obj).record
    old, new = obj.btf.types, again.btf.types
    assert [found.name for found in new[: len(old)]] == [found.name for found in old]
    assert len(new) == len(old) + 3


def test_resizing_twice(obj: Object) -> None:
    resized = with_max_entries(with_max_entries(obj, {"conns": 3}), {"conns": 9, "records": 8192})
    assert (max_entries(resized, "conns"), max_entries(resized, "records")) == (9, 8192)


def test_nothing_to_do_copies_nothing(obj: Object) -> None:
    assert with_max_entries(obj, {}) is obj


def test_unknown_map(obj: Object) -> None:
    with pytest.raises(LayoutError, match="no map absent"):
        with_max_entries(obj, {"absent": 1})


def test_object_without_maps() -> None:
    with pytest.raises(LayoutError, match=r"datasec \.maps"):
        max_entries(read_object(Path(compile_bpf("rejected"))), "records")
