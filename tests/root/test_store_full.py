"""A disk that is full, and then is not: a file system of 4 MiB in memory."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.faults.stores import take_room
from collector.query import Queries, Search
from collector.store import Store
from tests.collector.stored import NOW_NS, many


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "wirespan-test", str(disk)]
    subprocess.run(mount, check=True, timeout=10)
    yield disk
    subprocess.run(["umount", str(disk)], check=True, timeout=10)


def test_a_full_disk_is_told_once_counted_and_left(small_disk: Path) -> None:
    said: list[str] = []
    filler = small_disk / "filler"
    store = Store(small_disk / "store", message=said.append)
    store.start()
    sent = 0
    try:
        store.submit(many(100))
        assert store.flush()
        sent += 200
        take_room(filler)
        until = time.monotonic() + 6
        first = 1_000
        while time.monotonic() < until:
            store.submit(many(500, NOW_NS, first))
            assert store.flush()
            sent, first = sent + 1_000, first + 500
            time.sleep(0.05)
        failed = store.losses()["store_failed"]
        assert failed > 0 and len(said) == 1, said
        assert "space" in said[0].lower() and "store_failed" in said[0], said
        assert {1} <= _stored(store), "what is stored stays readable"

        filler.unlink()
        until = time.monotonic() + 10
        while len(said) < 2 and time.monotonic() < until:
            store.submit(many(1, NOW_NS, first))
            assert store.flush()
            sent, first = sent + 2, first + 1
            time.sleep(0.1)
        assert len(said) == 2 and "works again" in said[1], said
        store.submit(many(1, NOW_NS, 10**9))
        assert store.flush()
        sent += 2
        assert {1, 10**9} <= _stored(store)
        assert store.counts()["store_spans"] + store.losses()["store_failed"] == sent
        assert store.losses()["store_corrupt"] == 0
    finally:
        store.close()


def _stored(store: Store) -> set[int]:
    return {int.from_bytes(each) for each in Queries(store).search(Search(limit=10_000))}
