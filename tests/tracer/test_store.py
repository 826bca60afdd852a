"""`wirespan run`'s store: its options, and the sink between pipeline and files."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from collector import store as collector_store
from collector.commands import QueryOptions
from collector.search import Search
from tracer import losses, option_values, options
from tracer.errors import UsageError, WirespanError
from tracer.spans import KIND_CLIENT, KIND_SERVER, Resource, Shape, SpanBatch
from tracer.store import CHUNK, StoreSink
from tracer.store_options import DIRECTORY, StoreOptions

SHAPES = [
    Shape(Resource((("service.name", "web"),)), "GET", kind, 0, "", (), (), ())
    for kind in (KIND_SERVER, KIND_CLIENT)
]
DEADLINE = 20.0


def batch_of(count: int, first: int = 1) -> SpanBatch:
    """Spans of traces `first`, `first` + 1, ..., of now."""
    numbers = np.arange(first, first + count, dtype=">u8")
    trace_id = np.zeros((count, 16), np.uint8)
    trace_id[:, 8:] = numbers[:, None].view(np.uint8)
    start = np.full(count, time.time_ns(), np.uint64)
    return SpanBatch(
        trace_id,
        trace_id[:, 8:].copy(),
        np.zeros((count, 8), np.uint8),
        start,
        start + np.uint64(1000),
        (np.arange(count) % 2).astype(np.int32),
        SHAPES,
        {},
        {},
    )


class Sink:
    """A store in a directory, with a pipeline that lags as long as `lag` is set."""

    def __init__(self, directory: Path, max_bytes: int = 1 << 20) -> None:
        self.lag = threading.Event()
        self.said: list[str] = []
        chosen = StoreOptions(str(directory), query_address="127.0.0.1:0")
        self.sink = StoreSink(chosen, self.lag.is_set, self.said.append, max_bytes)
        self.sink.start()

    def wait_stored(self, count: int) -> None:
        end = time.monotonic() + DEADLINE
        while self.sink.counts()["store_spans"] < count:
            assert time.monotonic() < end, self.sink.counts()
            time.sleep(0.01)

    def lost(self) -> dict[str, int]:
        return {name: count for name, count in self.sink.losses().items() if count}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Sink]:
    made = Sink(tmp_path / "store")
    try:
        yield made
    finally:
        made.lag.clear()
        made.sink.close(DEADLINE)


def parse(*arguments: str) -> options.RunOptions:
    found = options.parse(["run", *arguments])
    assert isinstance(found, options.RunOptions)
    return found


def test_by_default_spans_are_stored_where_nobody_else_gets_them() -> None:
    store = parse().store
    assert store == StoreOptions(DIRECTORY, 1 << 30, 3 * 86_400, "127.0.0.1:16686")
    assert store.wanted(exported=False)
    assert not store.wanted(exported=True)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("--store", "here"), StoreOptions("here", asked=True)),
        (("--store-size", "20G"), StoreOptions(max_bytes=20 << 30, asked=True)),
        (("--store-age", "90m"), StoreOptions(max_age_s=5_400, asked=True)),
        (("--query-address", "[::1]:0"), StoreOptions(query_address="[::1]:0", asked=True)),
        (("--query-address", "none"), StoreOptions(query_address="", asked=True)),
        (("--store", "none", "--store", "x"), StoreOptions("x", asked=True)),
    ],
)
def test_a_store_that_was_asked_for(arguments: tuple[str, ...], found: StoreOptions) -> None:
    store = parse(*arguments).store
    assert store == found
    assert store.wanted(exported=True)


def test_no_store() -> None:
    assert not parse("--store", "none").store.wanted(exported=False)


def test_the_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIRESPAN_QUERY_ADDRESS", "127.0.0.1:1234")
    assert parse().store == StoreOptions(query_address="127.0.0.1:1234")
    query = options.parse(["traces"])
    assert isinstance(query, QueryOptions)
    assert query.address == "127.0.0.1:1234"
    monkeypatch.setenv("WIRESPAN_QUERY_ADDRESS", "nowhere")
    with pytest.raises(UsageError, match="WIRESPAN_QUERY_ADDRESS: 'nowhere'"):
        parse()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--store", ""), "--store: the value is empty"),
        (("--store-size", "1K"), "--store-size: '1K'"),
        (("--store-size", "much"), "--store-size: 'much'"),
        (("--store-size", "9" * 30), "--store-size"),
        (("--store-age", "3"), "--store-age: '3'"),
        (("--store-age", "1s"), "--store-age: '1s'"),
        (("--query-address", "localhost"), "--query-address: 'localhost'"),
        (("--query-address", "0.0.0.0:16686"), "can be reached from other machines"),
        (("--store", "none", "--store-age", "3d"), "--store-age: there is no store"),
        (("--stitch", "cluster"), "--stitch"),
    ],
)
def test_what_is_no_store(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        parse(*arguments)


def test_who_joins_hosts() -> None:
    assert not parse().downstream
    assert parse("--stitch", "collector").downstream


def test_defaults_are_within_bounds() -> None:
    default = StoreOptions()
    assert option_values.MIN_STORE_BYTES <= default.max_bytes <= option_values.MAX_STORE_BYTES
    assert option_values.MIN_STORE_S <= default.max_age_s <= option_values.MAX_STORE_S
    limits = collector_store.Limits()
    assert (limits.max_bytes, limits.max_age_s) == (default.max_bytes, default.max_age_s)


def test_losses_are_those_of_the_store_and_one(made: Sink) -> None:
    names = set(made.sink.losses())
    assert names == {name for name in losses.USER if name.startswith("store_")}
    assert names == {*collector_store.LOSSES, "store_unwritten"}
    for name, meaning in collector_store.LOSSES.items():
        assert losses.USER[name].meaning == meaning


def test_spans_arrive_whole(made: Sink) -> None:
    count = 2 * CHUNK + 7
    made.sink.submit(batch_of(count))
    made.wait_stored(count)
    queries = made.sink._embedded.queries
    found = {int.from_bytes(each) for each in queries.search(Search(limit=10_000))}
    assert found == set(range(1, count + 1))
    ((_, spans),) = queries.traces([(8).to_bytes(16)])
    assert spans[0].span.name == "GET"
    assert made.sink.address.startswith("127.0.0.1:")
    assert made.lost() == {} and made.said == []


def test_while_making_spans_lags_spans_wait_and_only_those_beyond_are_lost(made: Sink) -> None:
    made.lag.set()
    begin = time.monotonic()
    for first in range(100):
        made.sink.submit(batch_of(1000, 1 + first * 1000))
    assert time.monotonic() - begin < 5, "nobody waits for the store"
    lost = made.lost()
    assert lost.keys() == {"store_queue_full"}
    assert 50_000 < lost["store_queue_full"] < 100_000
    assert made.sink.counts()["store_spans"] == 0
    made.lag.clear()
    made.wait_stored(100_000 - lost["store_queue_full"])
    assert made.lost() == lost


def test_the_end_stores_what_waits(tmp_path: Path) -> None:
    made = Sink(tmp_path / "store")
    made.sink.submit(batch_of(1000))
    made.sink.close(DEADLINE)
    assert made.sink.counts()["store_spans"] == 1000
    made.sink.close(DEADLINE)
    assert made.lost() == {}


def test_the_end_takes_bounded_time_and_counts_what_is_left(tmp_path: Path) -> None:
    made = Sink(tmp_path / "store")
    made.lag.set()
    made.sink.submit(batch_of(1000))
    begin = time.monotonic()
    made.sink.close(0.5)
    assert time.monotonic() - begin < 3
    assert made.sink.counts()["store_spans"] == 0
    assert made.lost() == {"store_unwritten": 1000}


def test_what_cannot_be_encoded_is_counted(made: Sink) -> None:
    broken = batch_of(10)
    made.sink.submit(SpanBatch(*[getattr(broken, name) for name in (
        "trace_id", "span_id", "parent_span_id", "start_ns", "end_ns",
    )], np.full(10, 99, np.int32), SHAPES, {}, {}))  # fmt: skip
    made.sink.submit(batch_of(10))
    made.wait_stored(10)
    assert made.lost() == {"store_failed": 10}
    assert len(made.said) == 1


def test_a_directory_or_an_address_that_cannot_be_had(tmp_path: Path, made: Sink) -> None:
    def start(directory: Path, address: str = "127.0.0.1:0") -> None:
        chosen = StoreOptions(str(directory), query_address=address)
        StoreSink(chosen, lambda: False, made.said.append).start()

    (tmp_path / "file").write_text("")
    tmp_path.chmod(0o755)
    with pytest.raises(WirespanError, match="as store: it holds other files"):
        start(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    with pytest.raises(WirespanError, match=r"cannot use .*/file/store as store"):
        start(tmp_path / "file" / "store")
    with pytest.raises(WirespanError, match="in use by another wirespan"):
        start(tmp_path / "store")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(WirespanError, match=f"cannot listen on {address}"):
            start(tmp_path / "other", address)
    assert not (tmp_path / "other").exists()
