"""What is measured, under which names, within which bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.tracer.red.exchanges import NOW, OWN, SECOND, Row, batch, http
from tracer.red.aggregate import Measurement, Red
from tracer.red.instruments import INSTRUMENTS, measured
from tracer.red.pairs import AGE_NS
from tracer.red.series import IDLE_NS
from tracer.spans import KIND_CLIENT, KIND_SERVER, AttributeValue, Resource, Shape

MINUTE = 60 * SECOND


def by_name(measurements: list[Measurement]) -> dict[str, dict[tuple[str, ...], int]]:
    """Counts, by metric and then by service and the values of attributes."""
    found: dict[str, dict[tuple[str, ...], int]] = {}
    for each in measurements:
        service = str(dict(each.key.resource.attributes)["service.name"])
        values = (service, *(str(value) for _, value in each.key.attributes))
        found.setdefault(each.key.instrument.name, {})[values] = each.point.total
    return found


def test_every_exchange_is_counted_by_service_route_method_and_status() -> None:
    shapes = [
        http("web"),
        http("web", status=503),
        http("web", path="/orders", method="POST"),
        http("curl", server=False),
        # Another user agent, or client: another shape, and the same series.
        http("web", user_agent_original="other", client_address="10.0.0.10"),
    ]
    red = Red(OWN, NOW)
    rows = [Row(number) for number in (0, 0, 1, 2, 3, 3, 3, 4)]
    red.observe(batch(rows, shapes), 0)
    red.observe(batch(rows[:2], shapes), 0)
    assert by_name(red.collect(NOW + MINUTE)) == {
        "http.server.request.duration": {
            ("web", "GET", "200", "1.1", "http", "/users/{id}"): 5,
            ("web", "GET", "503", "503", "1.1", "http", "/users/{id}"): 1,
            ("web", "POST", "200", "1.1", "http", "/orders"): 1,
        },
        "http.client.request.duration": {
            ("curl", "GET", "200", "1.1", "shop.example", "80", "/users/{id}"): 3
        },
    }
    assert red.counts()["red_exchanges"] == 10


def shape_of(kind: int, **attributes: AttributeValue) -> Shape:
    named = tuple((key.replace("__", "."), value) for key, value in attributes.items())
    return Shape(Resource((("service.name", "x"),)), "any name", kind, 0, "", named, (), ())


@pytest.mark.parametrize(
    ("shape", "name", "keys"),
    [
        (
            shape_of(KIND_SERVER, rpc__system__name="grpc", rpc__method="a.B/C",
                     server__address="s", rpc__response__status_code="OK"),
            "rpc.server.call.duration",
            ["rpc.system.name", "rpc.method", "rpc.response.status_code"],
        ),
        (
            shape_of(KIND_CLIENT, rpc__system__name="grpc", rpc__method="a.B/C",
                     server__address="s", server__port=1, error__type="INTERNAL"),
            "rpc.client.call.duration",
            ["rpc.system.name", "rpc.method", "error.type", "server.address", "server.port"],
        ),
        (
            shape_of(KIND_CLIENT, db__system__name="mysql", db__query__text="SELECT ?",
                     db__operation__name="SELECT", server__address="s", server__port=3306),
            "db.client.operation.duration",
            ["db.system.name", "db.operation.name", "server.address", "server.port"],
        ),
        (
            shape_of(KIND_SERVER, db__system__name="redis", db__operation__name="GET"),
            "wirespan.db.server.operation.duration",
            ["db.system.name", "db.operation.name"],
        ),
    ],
)  # fmt: skip
def test_other_protocols_have_metrics_of_their_own(
    shape: Shape, name: str, keys: list[str]
) -> None:
    instrument, attributes = measured(shape)
    assert (instrument.name, [key for key, _ in attributes]) == (name, keys)


def test_a_request_that_was_not_seen_whole_has_the_attributes_that_are_required() -> None:
    shape = replace(shape_of(KIND_SERVER, url__scheme="http"), name="HTTP")
    _, attributes = measured(shape)
    assert dict(attributes) == {"url.scheme": "http", "http.request.method": "_OTHER"}
    _, attributes = measured(replace(http("curl", server=False), name="CONNECT"))
    assert "url.template" not in dict(attributes)


SHAPES = [
    http("web"),
    http("shop", server=False),
    http("web", status=500),
    http("shop", server=False, status=500),
    shape_of(KIND_SERVER, db__system__name="mysql"),
]


def graph(red: Red) -> dict[str, dict[tuple[str, ...], int]]:
    found = by_name(red.collect(NOW + MINUTE))
    return {name: values for name, values in found.items() if name.startswith("traces_")}


@pytest.mark.parametrize("apart", ["together", "client first", "server first"])
def test_both_sides_of_an_exchange_are_one_request_of_a_pair(apart: str) -> None:
    red = Red(OWN, NOW)
    clients = [Row(1, 5_000_000, span) for span in (11, 12, 13)] + [Row(3, 10, 14)]
    servers = [Row(0, 3_000_000, 100 + span, span) for span in (11, 12)]
    servers += [Row(2, 7, 113, 13), Row(2, 8, 114, 14), Row(0, 9, 200, 0)]
    if apart == "together":
        red.observe(batch([*servers, *clients, Row(1, 1, 99)], SHAPES), 0)
    else:
        first, second = (clients, servers) if apart == "client first" else (servers, clients)
        red.observe(batch(first, SHAPES), 0)
        assert not graph(red)
        red.observe(batch([Row(1, 1, 98)], SHAPES), AGE_NS + 1)  # another generation
        red.observe(batch(second, SHAPES), AGE_NS + 2)
    ok, bad = (("wirespan", "shop", "web", "", failed) for failed in ("False", "True"))
    assert graph(red) == {
        "traces_service_graph_request_client": {ok: 2, bad: 2},
        "traces_service_graph_request_server": {ok: 2, bad: 2},
    }
    sums = {
        (each.key.instrument.name[-6:], dict(each.key.attributes)["failed"]): each.point.sum_ns
        for each in red.collect(NOW + MINUTE)
        if each.key.instrument.name.startswith("traces_")
    }
    assert sums == {
        ("client", False): 10_000_000, ("client", True): 5_000_010,
        ("server", False): 6_000_000, ("server", True): 15,
    }  # fmt: skip
    assert red.counts()["red_pairs"] == 4


def test_a_span_that_stands_for_others_counts_for_them() -> None:
    """Weights of 2 and 2.5; the fraction is right on average only."""
    red = Red(OWN, NOW)
    rows = [Row(1, 5_000_000, 11), Row(0, 3_000_000, 12, 11), Row(0, 0, 13)]
    red.observe(batch(rows, SHAPES), 0, np.array([2.0, 2.0, 4.0]))
    for _ in range(1_000):
        red.observe(batch([Row(2, 9)], SHAPES), 0, np.array([2.5]))
    found = {each.key[1:]: each.point for each in red.collect(NOW + MINUTE)}
    served, failures, *pairs = (
        found[measured(SHAPES[0])], found[measured(SHAPES[2])],
        *(point for key, point in found.items() if key[0].name.startswith("traces_")),
    )  # fmt: skip
    assert (served.total, served.zero, served.sum_ns, served.counts) == (6, 4, 6_000_000, [2])
    assert [(point.total, point.counts) for point in pairs] == [(2, [2]), (2, [2])]
    assert 2_400 < failures.total < 2_600
    assert failures.sum_ns == 9 * failures.total
    assert red.counts()["red_exchanges"] == 8 + failures.total


def test_a_pair_with_a_database_says_so() -> None:
    red = Red(OWN, NOW)
    red.observe(batch([Row(1, 1, 5), Row(4, 1, 6, 5)], SHAPES), 0)
    assert set(graph(red)["traces_service_graph_request_server"]) == {
        ("wirespan", "shop", "x", "database", "False")
    }


def test_twice_the_same_span_id_makes_one_pair() -> None:
    red = Red(OWN, NOW)
    red.observe(batch([Row(1, 1, 5), Row(1, 1, 5), Row(0, 1, 6, 5), Row(0, 1, 7, 5)], SHAPES), 0)
    red.observe(batch([Row(1, 1, 5), Row(0, 1, 7, 5)], SHAPES), 0)
    total = sum(graph(red)["traces_service_graph_request_server"].values())
    assert 1 <= total <= 3
    assert red.counts()["red_exchanges"] == 6


def test_a_side_whose_other_side_never_comes_is_forgotten() -> None:
    red = Red(OWN, NOW)
    red.observe(batch([Row(1, 1, 5)], SHAPES), 0)
    for number in (1, 2, 3):
        red.observe(batch([Row(1, 1, 90 + number)], SHAPES), number * (AGE_NS + 1))
    red.observe(batch([Row(0, 1, 6, 5)], SHAPES), 4 * AGE_NS)
    assert not graph(red)
    assert red.counts()["red_unpaired"] == 0, "it had its time"


def test_sides_that_are_too_many_are_counted_as_they_go() -> None:
    red = Red(OWN, NOW)
    red._pairs._capacity = 10
    for first in range(100, 200, 10):
        red.observe(batch([Row(1, 1, first + number) for number in range(10)], SHAPES), 0)
    assert red.counts()["red_unpaired"] == 80


def test_series_are_bounded_and_the_rest_is_counted_as_overflow() -> None:
    shapes = [http("web", path=f"/r{number}") for number in range(30)]
    shapes += [http(f"s{number}") for number in range(30)]
    red = Red(OWN, NOW, max_series=16)
    red.observe(batch([Row(number, span=number + 1) for number in range(60)], shapes), 0)
    measurements = red.collect(NOW + MINUTE)
    found = by_name(measurements)["http.server.request.duration"]
    assert sum(found.values()) == 60
    coarse = {key[0]: count for key, count in found.items() if key[1:] == ("True",)}
    # Two services have an overflow of their own, all others the tracer's.
    assert coarse == {"web": 14, "s0": 1, "wirespan": 29}
    assert red.overflow == 44
    assert len(found) == 16 + 3
    overflowing = next(each for each in measurements if ("True",) == tuple(
        str(value) for _, value in each.key.attributes
    ))  # fmt: skip
    assert overflowing.key.attributes == (("otel.metric.overflow", True),)


def test_overflow_of_every_instrument_has_room() -> None:
    red = Red(OWN, NOW, max_series=1)
    shapes = [http("a"), *(http(f"s{n}", server=n % 2 == 0) for n in range(8)), *SHAPES]
    red.observe(batch([Row(n, 1, n + 1, n) for n in range(len(shapes))], shapes), 0)
    assert len(red.collect(NOW + 1)) <= 1 + len(INSTRUMENTS)


def test_what_is_idle_makes_room_once_it_is_delivered() -> None:
    red = Red(OWN, NOW, max_series=4)
    old = [http("old", path=f"/{number}") for number in range(4)]
    new = [http("new", path=f"/{number}") for number in range(2)]
    red.observe(batch([Row(number) for number in range(4)], old), 0)
    red.observe(batch([Row(0), Row(1)], new), 0)
    assert red.overflow == 2
    red.collect(NOW + MINUTE)
    # It did not arrive: nothing may go, however idle.
    red.collect(NOW + 2 * MINUTE)
    assert red.counts()["red_series"] == 5
    red.settle(NOW + 2 * MINUTE)
    red.observe(batch([Row(0)], old), 0)
    red.collect(NOW + 3 * MINUTE)
    red.settle(NOW + 3 * MINUTE)
    red.observe(batch([Row(0), Row(1)], new), 0)
    found = by_name(red.collect(NOW + 4 * MINUTE))["http.server.request.duration"]
    assert found["old", "GET", "200", "1.1", "http", "/0"] == 2
    assert {key[0] for key in found if "True" not in key} == {"old", "new"}
    assert red.overflow == 2


def test_a_series_that_comes_back_begins_anew() -> None:
    red = Red(OWN, NOW)
    shapes = [http("web")]
    red.observe(batch([Row(0)] * 3, shapes), 0)
    for minute in (1, 2):
        (before,) = red.collect(NOW + minute * MINUTE)
        red.settle(NOW + minute * MINUTE)
    assert (before.start_ns, before.point.total) == (NOW, 3)
    later = NOW + IDLE_NS + 2 * MINUTE
    red.collect(later)
    red.settle(later)
    assert red.collect(later + 1) == []
    red.observe(batch([Row(0)], shapes), 0)
    (again,) = red.collect(later + MINUTE)
    assert (again.start_ns, again.point.total) == (later + 1, 1)


@pytest.mark.parametrize("delta", [False, True])
def test_temporality(delta: bool) -> None:
    red = Red(OWN, NOW, delta)
    shapes = [http("web"), http("db")]
    red.observe(batch([Row(0), Row(0), Row(1)], shapes), 0)
    red.collect(NOW + MINUTE)
    red.settle(NOW + MINUTE)
    red.observe(batch([Row(0, 9_000_000)], shapes), 0)
    found = red.collect(NOW + 2 * MINUTE)
    if delta:
        (each,) = found
        assert (each.start_ns, each.point.total, each.point.sum_ns) == (NOW + MINUTE, 1, 9_000_000)
    else:
        assert [(each.start_ns, each.point.total) for each in found] == [(NOW, 3), (NOW, 1)]


def test_an_exemplar_is_the_slowest_of_those_that_left() -> None:
    red = Red(OWN, NOW)
    shapes = [http("web"), http("web", status=500)]
    rows = [Row(0, 10, 1), Row(0, 90, 2), Row(0, 50, 3), Row(1, 5, 4), Row(0, 70, 5)]
    everything = batch(rows, shapes)
    red.observe(everything, 0)
    red.exemplify(batch([rows[0], rows[2], rows[3]], shapes))
    red.exemplify(batch([rows[4]], shapes))
    good, bad = (each.exemplar for each in red.collect(NOW + MINUTE))
    assert good is not None
    assert bad is not None
    assert (good.duration_ns, good.end_ns) == (70, NOW + 70)
    assert good.span_id == (5).to_bytes(8, "little")
    assert good.trace_id == good.span_id * 2
    assert bad.span_id == (4).to_bytes(8, "little")
    assert all(each.exemplar is None for each in red.collect(NOW + 2 * MINUTE)), "told once"


def test_a_new_list_of_shapes_continues_the_series() -> None:
    red = Red(OWN, NOW)
    for _ in range(6):
        red.observe(batch([Row(0), Row(1)], [http("web"), http("web", status=404)]), 0)
    assert sorted(each.point.total for each in red.collect(NOW + MINUTE)) == [6, 6]


def test_counts_are_those_of_a_dictionary() -> None:
    random = np.random.default_rng(3)
    shapes = [http(f"s{n % 5}", path=f"/{n}", server=n % 2 == 0) for n in range(40)]
    red = Red(OWN, NOW)
    wanted = np.zeros(len(shapes), np.int64)
    total = np.zeros(len(shapes), np.int64)
    for _ in range(20):
        rows = [Row(int(n), int(d)) for n, d in random.integers(0, [40, 10**10], (300, 2))]
        red.observe(batch(rows, shapes), 0)
        np.add.at(wanted, [row.shape for row in rows], 1)
        np.add.at(total, [row.shape for row in rows], [row.duration_ns for row in rows])
    found = {each.key: (each.point.total, each.point.sum_ns) for each in red.collect(NOW + 1)}
    for number, shape in enumerate(shapes):
        assert found[(shape.resource, *measured(shape))] == (wanted[number], total[number])
