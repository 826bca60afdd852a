"""Searches and sums over the store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from collector.query import Queries, Search
from collector.search import SearchError, duration_ns, parse
from collector.store import Limits, Store
from tests.collector.stored import NOW_NS, OTHER, TRACE, everything, many

LATER_NS = NOW_NS + 3_600 * 10**9


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Queries]:
    store = Store(tmp_path_factory.mktemp("store"), Limits())
    store.start()
    store.submit(everything().spans())
    store.submit(many(100, NOW_NS + 10**9, 1_000))
    assert store.flush()
    yield Queries(store)
    store.close()


def test_services_and_operations(queries: Queries) -> None:
    assert queries.services() == ["", "api", "web"]
    assert ("serve", 2) in queries.operations("api")
    assert queries.operations("web", 3) == [("GET", 3), ("call", 3)]
    assert queries.operations("nobody") == []


def test_the_newest_come_first(queries: Queries) -> None:
    found = queries.search(Search(service="web", limit=3))
    assert [int.from_bytes(each) for each in found] == [1099, 1098, 1097]


def test_dependencies(queries: Queries) -> None:
    found = queries.dependencies(0, LATER_NS)
    assert ("web", "api", 101) in found and ("web", "web", 3) in found
    assert queries.dependencies(0, NOW_NS - 1) == []


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["service=api", "op=serve"], {TRACE}),
        (["status=503"], {TRACE}),
        (["op~lonel"], {OTHER}),
        (["kind=producer"], {TRACE}),
        (["min=5ms"], {TRACE}),
        (["duration>5ms"], {TRACE}),
        (["url.path=/users/1007"], {(1007).to_bytes(16, "big")}),
        (["path=/users/1007", "status>=500"], {(1007).to_bytes(16, "big")}),
        (["path=/users/1008", "status>=500"], set()),
        (["service=missing-service-name"], {OTHER}),
        (["pid=42", "f>1.4", "f<1.6", "s!=other", "absent!=x"], {TRACE}),
        (["otel.scope.name=lib", "error=true"], {TRACE}),
        (["service!=web", "service!=api"], {OTHER}),
    ],
)
def test_words(queries: Queries, words: list[str], wanted: set[bytes]) -> None:
    assert set(queries.search(parse(words, LATER_NS, 20))) == wanted


def test_since(queries: Queries) -> None:
    assert queries.search(parse(["since=10m"], LATER_NS, 5)) == []
    assert len(queries.search(parse(["since=2h"], LATER_NS, 5))) == 5


@pytest.mark.parametrize(
    "word", ["", "web", "min>3ms", "min=3", "kind=x", "status>x", "since=-1s", "duration>5"]
)
def test_words_that_make_no_sense(word: str) -> None:
    with pytest.raises(SearchError):
        parse([word], NOW_NS, 1)


def test_durations() -> None:
    assert duration_ns("1m30s") == 90 * 10**9 and duration_ns("1.5ms") == 1_500_000
    assert duration_ns(".5us") == 500
