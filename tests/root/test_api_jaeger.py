"""Wirespan's query API and a real Jaeger, given the same spans, answer the same."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from collector.embedded import Embedded
from tests.collector.stored import OTHER, TRACE, everything, many
from tests.root.harness import wait_until
from tests.root.test_e2e_jaeger import Jaeger, jaeger

assert jaeger  # a fixture

Answer = tuple[int, Any]


class Both:
    """Jaeger and the query API, asked the same."""

    def __init__(self, jaeger: Jaeger, ours: Embedded, now_ns: int) -> None:
        self.jaeger, self.ours, self.now_ns = jaeger, ours, now_ns

    def ask(self, target: str) -> tuple[Answer, Answer]:
        """(Jaeger's answer, ours): HTTP status and JSON."""
        return _get(self.jaeger.ports["QUERY_HTTP"], target), _get(
            int(self.ours.address.rpartition(":")[2]), target
        )


def _get(port: int, target: str, method: str = "GET", body: bytes | None = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    try:
        kind = {"Content-Type": "application/x-protobuf"} if body else {}
        connection.request(method, target, body, kind)
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content) if not body else None
    finally:
        connection.close()


@pytest.fixture(scope="module")
def both(jaeger: Jaeger, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    now_ns = time.time_ns() - 60 * 10**9
    request = everything(now_ns)
    more = many(10, now_ns, 1000)
    ours = Embedded(tmp_path_factory.mktemp("store"), address="127.0.0.1:0")
    ours.start()
    try:
        ours.submit(request.spans())
        ours.submit(more)
        assert ours.flush()
        for span in more:  # the same bytes
            group = request.request.resource_spans.add()
            group.resource.ParseFromString(span.resource_raw)
            group.scope_spans.add().spans.add().ParseFromString(span.raw)
        sent = request.request.SerializeToString()
        assert _get(jaeger.ports["OTLP_HTTP"], "/v1/traces", "POST", sent)[0] == 200
        wait_until(lambda: jaeger.query("services"), "Jaeger has the spans")
        yield Both(jaeger, ours, now_ns)
    finally:
        ours.close()


def comparable(value: Any) -> Any:
    """An answer without its order, numbers of processes, and Jaeger's remarks on clocks."""
    if isinstance(value, dict) and "processes" in value and "spans" in value:
        spans = [
            {**span, "process": value["processes"][span["processID"]], "processID": "",
             "warnings": None}
            for span in value["spans"]
        ]  # fmt: skip
        kinds = sorted(map(_text, value["processes"].values()))
        return {**value, "spans": sorted(map(comparable, spans), key=_text), "processes": kinds}
    if isinstance(value, dict):
        return {key: comparable(each) for key, each in value.items()}
    if isinstance(value, list):
        return sorted(map(comparable, value), key=_text)
    return value


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


SAME = [
    "/api/services",
    "/api/operations?service=web",
    "/api/operations?service=api&spanKind=server",
    "/api/operations?service=nobody",
    "/api/services/api/operations",
    "/api/services/nobody/operations",
    "/api/services/missing-service-name/operations",
    f"/api/traces/{TRACE.hex()}",
    f"/api/traces/{TRACE.hex().upper()}",
    f"/api/traces/{OTHER.hex()}",
    f"/api/traces/{OTHER.hex()[16:]}",
    f"/api/traces?traceID={OTHER.hex()}&traceID={TRACE.hex()}",
    f"/api/traces?traceID={'0' * 29}999",
    "/api/dependencies",
    "/api/traces?service=nobody",
    "/api/traces?service=missing-service-name",
    "/api/traces?service=web&operation=call",
    "/api/traces?service=web&operation=all",
    "/api/traces?service=web&tag=i:5&tag=s:text",
    "/api/traces?service=web&tag=i:5&tag=s:tex",
    "/api/traces?service=web&minDuration=5ms",
    "/api/traces?service=web&maxDuration=1us",
    "/api/traces?service=web&minDuration=5234567ns",
    "/api/traces?service=web&minDuration=5234568ns",
    "/api/traces?service=api&minDuration=1.9ms&maxDuration=2ms",
    "/api/traces?service=web&lookback=1h",
    "/api/traces?service=web&lookback=custom",
]
REFUSED = [
    "/api/operations",
    "/api/traces",
    f"/api/traces/{'0' * 31}1",
    "/api/traces/xyz",
    f"/api/traces/{'1' * 33}",
    "/api/traces?service=web&limit=x",
    "/api/traces?service=web&start=x",
    "/api/traces?service=web&end=x",
    "/api/traces?service=web&tag=x",
    "/api/traces?service=web&minDuration=3",
    "/api/traces?service=web&minDuration=3s&maxDuration=1s",
    "/api/dependencies?lookback=x",
]
TAGS: list[dict[str, str]] = [
    {"i": "5"}, {"f": "1.5"}, {"f2": "2"}, {"f3": "1e+21"}, {"b": "true"}, {"q": "1"},
    {"q": "z"}, {"host.name": "h1"}, {"s": "text", "i": "5"}, {"s": "tex"}, {"event": "other"},
    {"arr": '["x",1]'}, {"by": "/wBh"}, {"m": '{"k":"v","n":1}'}, {"sa": "x"}, {"l": "1"},
    {"service.name": "web"}, {"error": "false"}, {"process.pid": "42"}, {"neg": "-7"},
]  # fmt: skip


@pytest.mark.parametrize("target", SAME)
def test_the_same_answer(both: Both, target: str) -> None:
    (status, theirs), (our_status, ours) = both.ask(target)
    assert our_status == status == 200, ours
    assert comparable(ours) == comparable(theirs)


@pytest.mark.parametrize("target", REFUSED)
def test_the_same_refusal(both: Both, target: str) -> None:
    (status, theirs), (our_status, ours) = both.ask(target)
    assert (our_status, ours) == (status, theirs)


@pytest.mark.parametrize("tags", TAGS, ids=_text)
def test_the_same_spans_by_tags(both: Both, tags: dict[str, str]) -> None:
    target = f"/api/traces?service=web&tags={quote(json.dumps(tags))}"
    (_, theirs), (_, ours) = both.ask(target)
    assert comparable(ours) == comparable(theirs)


def test_the_same_by_time(both: Both) -> None:
    start_us = both.now_ns // 1000
    for query in (
        f"start={start_us}&end={start_us + 1}",
        f"start={start_us - 10}&end={start_us - 5}",
        f"start={start_us + 3_000}&end={start_us + 4_500}",
        f"start={start_us + 10**6}&end={start_us + 2 * 10**6}",
    ):
        (_, theirs), (_, ours) = both.ask(f"/api/traces?service=web&{query}")
        assert comparable(ours) == comparable(theirs), query


def test_as_many_as_asked_for(both: Both) -> None:
    (_, theirs), (_, ours) = both.ask("/api/traces?service=web&limit=3")
    assert len(ours["data"]) == len(theirs["data"]) == 3


def test_version_3(both: Both) -> None:
    (_, theirs), (_, ours) = both.ask("/api/v3/services")
    assert comparable(ours) == comparable(theirs)
    (_, theirs), (_, ours) = both.ask("/api/v3/operations?service=web")
    assert comparable(ours) == comparable(theirs)
    (status, theirs), (our_status, ours) = both.ask(f"/api/v3/traces/{'0' * 31}1")
    assert (status, theirs) == (our_status, ours)
    (status, theirs), (our_status, ours) = both.ask("/api/v3/traces/zz")
    assert (status, theirs) == (our_status, ours)
    (_, theirs), (_, ours) = both.ask(f"/api/v3/traces/{TRACE.hex()}")
    assert v3_spans(ours) == v3_spans(theirs)


def v3_spans(answer: Any) -> list[Any]:
    """Spans with their resource and scope, less what Jaeger adds."""
    found = []
    for group in answer["result"]["resourceSpans"]:
        for scope in group["scopeSpans"]:
            for span in scope["spans"]:
                kept = {**span, "attributes": [
                    each for each in span.get("attributes", ())
                    if not each["key"].startswith("@jaeger@")
                ]}  # fmt: skip
                found.append({"span": kept, "resource": group["resource"], "scope": scope["scope"]})
    return comparable(filled(found))


def filled(value: Any) -> Any:
    """Without what is empty: protobuf's JSON may leave it out or not."""
    if isinstance(value, dict):
        kept = {key: filled(each) for key, each in value.items()}
        return {key: each for key, each in kept.items() if each not in ({}, [], None)}
    return [filled(each) for each in value] if isinstance(value, list) else value


def test_the_store_is_of_this_user_only(both: Both) -> None:
    directory = Path(both.ours.store.directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
