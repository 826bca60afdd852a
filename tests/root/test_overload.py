"""Overload: a cap on the tracer's CPU far below what the load would take.

Every exchange is a span or counted as lost, what is kept is whole traces that tell how many
there were, and the cap is kept to. The load counts its own requests, and nginx its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.root.harness import Span, Tracer, wait_until
from tests.root.load import load
from tests.root.nginx import Nginx
from tracer.governor import CREDIT_S
from tracer.sampling import ALL

FRONT = """
        location /front/ {
            proxy_pass http://127.0.0.1:PORT/back/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }
"""
# Of each request: the load's side, nginx's, nginx's as a client, and nginx's behind it.
SIDES = 4
# What the tracer may use beside what is measured: status calls, and the look of it.
CAP, OVER = 0.05, 0.04
SPAN_LOSSES = ("shed", "ring_full", "reader_full", "feed_failed", "output_full")


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    server = Nginx(tmp_path_factory.mktemp("nginx"), extra=FRONT)
    yield server
    server.stop()


def weight(span: Span) -> float:
    """How many spans this one stands for, by its trace state."""
    fields = dict(
        field.split(":", 1)
        for field in str(span.raw.get("trace_state", "ot=th:0")).removeprefix("ot=").split(";")
    )
    return ALL / (ALL - int(fields["th"].ljust(14, "0"), 16))


def made_of(tracer: Tracer) -> dict[str, int]:
    return {count.name: count.value for count in tracer.status().counts}


def all_out(tracer: Tracer) -> bool:
    counts = made_of(tracer)
    made = counts["server_spans"] + counts["client_spans"]
    lost = tracer.losses()
    from_ring = counts["exchanges"] - lost["reader_full"] - lost["feed_failed"]
    return made == from_ring and counts["output_spans"] + lost["output_full"] == made


@pytest.mark.parametrize("ring", ["8M", "64K"])
def test_overload_is_accounted_for(
    start_tracer: Callable[..., Tracer], nginx: Nginx, ring: str
) -> None:
    requests, path = 48_000, f"/front/{ring}"
    tracer = start_tracer(
        "--port", str(nginx.port), "--max-cpu", str(CAP), "--ring-size", ring
    )  # fmt: skip
    before = tracer.status().process.cpu_seconds
    start = time.monotonic()
    done = 0
    levels = set()
    while done < requests:
        done += len(load(nginx.port, path, requests // 6, 16))
        levels.add(tracer.status().sampling)
    took = time.monotonic() - start
    used = (tracer.status().process.cpu_seconds - before) / took
    assert any("--max-cpu 0.05" in words for words in levels), levels
    allowed = CAP * (1 + CREDIT_S / took) + OVER
    assert used < allowed, f"{used:.3f} of a core over {took:.1f} s"
    assert len(nginx.logged(path)) == len(nginx.logged(path.replace("front", "back"))) == done

    wait_until(lambda: all_out(tracer), "what was kept is out", 60.0)
    lost = tracer.losses()
    assert set(lost) <= {*SPAN_LOSSES, "note_full", "link_late", "link_full"}, lost
    spans = tracer.stop()
    # To the last one.
    assert len(spans) + sum(lost[name] for name in SPAN_LOSSES) == SIDES * done, lost
    assert lost["shed"]

    print(f"{took:.1f} s, {used:.3f} of a core, {len(spans)} spans, {lost}, {sorted(levels)}")
    if lost["ring_full"] or lost["reader_full"] or lost["output_full"]:
        assert ring == "64K", lost
        return
    traces = Counter(span.raw["trace_id"] for span in spans)
    weights = {span.raw["trace_id"]: weight(span) for span in spans}
    assert set(traces.values()) == {SIDES}
    assert all(weight(span) == weights[span.raw["trace_id"]] for span in spans)
    estimate = sum(weights.values())
    deviation = sum(each * (each - 1) for each in weights.values()) ** 0.5
    assert abs(estimate - done) < 5 * deviation + 1, (estimate, done, deviation)
