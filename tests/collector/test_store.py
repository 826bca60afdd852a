"""The store on real files: what goes in comes out, limits hold, broken files stay apart."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collector.files import ASIDE
from collector.query import Queries, Search
from collector.schema import BLOCK_SPANS, blocks, pack, unpack
from collector.store import Limits, Store
from tests.collector.stored import NOW_NS, OTHER, TRACE, everything, ids, many
from tracer.errors import WirespanError


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Iterator[Store]:
    store = Store(tmp_path / "store", message=said.append)
    store.start()
    yield store
    store.close()


def reopen(store: Store, limits: Limits | None = None) -> Store:
    store.close()
    again = Store(store.directory, limits or store.limits, store._message)
    again.start()
    return again


def stored_ids(store: Store) -> set[bytes]:
    """Ids of what can be read, by columns and by contents, which must agree."""
    queries = Queries(store)
    found = queries.search(Search(limit=10_000))
    # Of many, some by their contents.
    by_content = {span.span.span_id for _, spans in queries.traces(found[:400]) for span in spans}
    if len(found) <= 400:
        return by_content
    with store.reading() as reader:
        rows = [
            row
            for each in reader.segments
            for row in reader.rows(each, "SELECT span_id FROM {0}.spans")
        ]
    by_column = {number.to_bytes(8, "big") for (number,) in rows}
    assert by_content <= by_column
    return by_column


def files(store: Store) -> list[Path]:
    return sorted(store.directory.glob("spans-*.duckdb"))


def test_what_goes_in_comes_out(store: Store) -> None:
    sent = everything().spans()
    store.submit(sent)
    assert store.flush()
    found = dict(Queries(store).traces([OTHER, TRACE]))
    assert list(found) == [OTHER, TRACE]
    by_id = {each.span.span_id: each for spans in found.values() for each in spans}
    assert set(by_id) == ids(sent)
    for span in sent:
        each = by_id[span.span_id]
        assert each.span.SerializeToString() == span.raw
        assert each.resource.SerializeToString() == span.resource_raw
        assert each.scope.SerializeToString() == span.scope_raw
    assert store.counts()["store_spans"] == len(sent) and not any(store.losses().values())


def test_a_restart_keeps_everything(store: Store) -> None:
    sent = many(3_000)
    store.submit(sent[:4_000])
    again = reopen(store)
    try:
        again.submit(sent[4_000:])
        assert again.flush()
        assert stored_ids(again) == ids(sent)
        assert len(files(again)) == 1, "the newest file is written on"
    finally:
        again.close()


def test_a_killed_writer_loses_nothing_written(tmp_path: Path, said: list[str]) -> None:
    pid = os.fork()
    if pid == 0:
        store = Store(tmp_path / "store", message=said.append)
        store.start()
        store.submit(many(500))
        os._exit(0 if store.flush() else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert list((tmp_path / "store").glob("*.wal")), "nothing was closed"
    store = Store(tmp_path / "store", message=said.append)
    store.start()
    try:
        assert stored_ids(store) == ids(many(500)) and said == []
    finally:
        store.close()


def test_of_one_process_only(store: Store) -> None:
    with pytest.raises(WirespanError, match="in use by another"):
        Store(store.directory).start()


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WirespanError, match="cannot use"):
        Store(tmp_path / "file" / "store").start()


def test_the_queue_is_bounded_and_counts(tmp_path: Path, said: list[str]) -> None:
    store = Store(tmp_path / "store", Limits(queue_bytes=100_000), said.append)
    store.start()
    try:
        with store._alone():  # the writer cannot open its first file
            for _ in range(50):
                store.submit(many(50))
            assert store.losses()["store_queue_full"] > 0
        assert store.flush()
        counts, losses = store.counts(), store.losses()
        assert counts["store_spans"] + losses["store_queue_full"] == 50 * 100
        assert losses["store_failed"] == 0
    finally:
        store.close()
    store.submit(many(1))
    assert store.losses()["store_queue_full"] == losses["store_queue_full"] + 2


def test_bytes_are_bounded_by_dropping_the_oldest(tmp_path: Path, said: list[str]) -> None:
    limits = Limits(max_bytes=2 << 20)
    store = Store(tmp_path / "store", limits, said.append)
    store.start()
    try:
        for part in range(12):
            spans = many(2_000, NOW_NS + part * 10**12, 1 + part * 2_000)
            store.submit(spans)
            assert store.flush()
            with store._changed:  # as if a second had passed
                store._tended = 0.0
            store.submit(many(1, NOW_NS + part * 10**12, 10**6 + part))
            assert store.flush()
        counts = store.counts()
        assert counts["store_files_expired"] > 0 and counts["store_files"] > 1
        assert counts["store_bytes"] <= limits.max_bytes + limits.max_bytes // 4
        kept = stored_ids(store)
        assert ids(many(2_000, NOW_NS + 11 * 10**12, 1 + 11 * 2_000)) <= kept, "the newest"
        assert not ids(many(10)) & kept, "not the oldest"
        assert not any(store.losses().values()) and said == []
    finally:
        store.close()


def test_age_is_bounded(store: Store) -> None:
    store.submit(many(10))
    store.close()
    old = time.time() - 1_000
    for path in files(store):
        os.utime(path, (old, old))
        path.rename(path.with_name(f"spans-{int(old * 1000):013d}.duckdb"))
    again = Store(store.directory, Limits(max_age_s=900))
    again.start()
    try:
        assert files(again) == [] and stored_ids(again) == set()
        assert again.counts()["store_files_expired"] == 1
    finally:
        again.close()


def two_files(store: Store) -> Store:
    """A store with spans of traces 1... in one file and 1000... in another."""
    store.submit(many(100))
    store.close()
    old = store.directory / "spans-0000000000001.duckdb"
    files(store)[0].rename(old)
    again = Store(store.directory, message=store._message, limits=Limits(max_age_s=1e9))
    again.start()
    again._active = None
    with again._alone():
        again._active = again._files.create(time.time())
    again.submit(many(100, NOW_NS, 1_000))
    assert again.flush()
    return again


@pytest.mark.parametrize("how", ["garbage", "empty", "cut", "header"])
def test_a_corrupt_file_is_set_aside_at_start(store: Store, said: list[str], how: str) -> None:
    store = two_files(store)
    store.close()
    broken = files(store)[0]
    whole = broken.read_bytes()
    broken.write_bytes(
        {
            "garbage": os.urandom(50_000),
            "empty": b"",
            "cut": whole[: len(whole) // 2],
            "header": whole[:4096] + bytes(8192) + whole[12_288:],
        }[how]
    )
    damaged = broken.read_bytes()
    again = Store(store.directory, Limits(max_age_s=1e9), said.append)
    again.start()
    try:
        assert stored_ids(again) == ids(many(100, NOW_NS, 1_000)), "the other file is readable"
        assert again.losses()["store_corrupt"] == 1, said
        assert broken.with_name(broken.name + ASIDE).read_bytes() == damaged
        assert len(said) == 1 and broken.name in said[0] and "corrupt" in said[0], said
        again.submit(many(3, NOW_NS, 5_000))
        assert again.flush() and ids(many(3, NOW_NS, 5_000)) <= stored_ids(again)
    finally:
        again.close()


def test_a_file_found_corrupt_while_reading(store: Store, said: list[str]) -> None:
    store = two_files(store)
    store.close()
    broken = files(store)[0]
    whole = bytearray(broken.read_bytes())
    for at in range(12_288 + 8_192, len(whole), 16_384):  # the middle of each of its blocks
        whole[at : at + 64] = bytes(64)
    broken.write_bytes(whole)
    again = Store(store.directory, Limits(max_age_s=1e9), said.append)
    again.start()
    try:
        for _ in range(3):
            assert ids(many(100, NOW_NS, 1_000)) <= stored_ids(again)
            with again._changed:
                again._tended = 0.0
            again.submit(many(1, NOW_NS, 7_000))
            assert again.flush()
        assert again.losses()["store_corrupt"] == 1 and len(said) == 1, said
        assert stored_ids(again) == ids(many(100, NOW_NS, 1_000) + many(1, NOW_NS, 7_000))
    finally:
        again.close()


@pytest.mark.parametrize("how", ["garbage", "damaged"])
def test_a_corrupt_log_leaves_the_file(store: Store, said: list[str], how: str) -> None:
    store.submit(many(10))
    store = reopen(store)
    store.submit(many(10, NOW_NS, 100))
    assert store.flush()
    path = files(store)[0]
    log = bytearray(Path(f"{path}.wal").read_bytes())
    store.close()
    log[len(log) // 2 :] = os.urandom(len(log) - len(log) // 2)
    Path(f"{path}.wal").write_bytes(os.urandom(5_000) if how == "garbage" else log)
    before = ids(many(10) + many(10, NOW_NS, 100))
    again = Store(store.directory, message=said.append)
    again.start()
    try:
        assert stored_ids(again) == before, said
        again.submit(many(10, NOW_NS, 200))
        assert again.flush() and ids(many(10, NOW_NS, 200)) <= stored_ids(again)
    finally:
        again.close()


def test_reading_while_writing(store: Store) -> None:
    queries = Queries(store)
    for part in range(20):
        store.submit(many(200, NOW_NS + part * 10**9, 1 + 200 * part))
        queries.services()
        assert len(queries.search(Search(limit=5))) in (0, 5)
    assert store.flush()
    assert len(stored_ids(store)) == 20 * 400


def test_files_are_of_this_user_only(store: Store) -> None:
    store.submit(many(10))
    assert store.flush()
    assert store.directory.stat().st_mode & 0o777 == 0o700
    for path in store.directory.iterdir():
        if path.is_file():
            assert path.stat().st_mode & 0o777 == 0o600, path


def test_blocks_hold_what_they_may() -> None:
    spans = many(2_000)
    parts = blocks(spans)
    assert [span for part in parts for span in part] == spans
    assert max(map(len, parts)) == BLOCK_SPANS
    assert blocks([]) == []


def test_pack_and_unpack() -> None:
    for raws in ([], [b""], [b"a", b"", b"bc" * 1000]):
        assert unpack(pack(raws)) == raws
    for bad in (b"", b"garbage", pack([b"abc"])[:-6]):
        with pytest.raises(ValueError, match="not a block"):
            unpack(bad)
