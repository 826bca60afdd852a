"""The objects for kernels before Linux 5.17 and from 7.0 on, on this one, which takes them all."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.root.harness import (
    CLIENT,
    SERVER,
    Exchange,
    Tracer,
    assert_exact,
    assert_sound,
    get,
    seen,
    unique,
)
from tests.root.load import load
from tests.root.nginx import HELLO, Nginx
from tests.root.test_link import CASES, by, called, measure, services, warm
from tests.root.wire import Wire, get_head, ok
from tracer.installed import OLD_MEANS

AS_OTHER = """
import sys
from tracer import installed
installed.fitting = lambda: installed.{}
from tracer.cli import main
sys.exit(main(sys.argv[1:]))
"""
OLD, PREEMPTED = "OLD_OBJECT", "PREEMPTED_OBJECT"
both = pytest.mark.parametrize("name", [OLD, PREEMPTED])


def with_object(name: str) -> Callable[[list[str]], list[str]]:
    """What makes of a tracer's command line that of one that takes this kernel for another."""
    return lambda argv: [sys.executable, "-c", AS_OTHER.format(name), *argv[argv.index("run") :]]


@both
def test_exchanges_are_exact_and_the_rest_is_said(
    start_tracer: Callable[..., Tracer], tmp_path: Path, name: str
) -> None:
    nginx = Nginx(tmp_path / "nginx")
    try:
        tracer = start_tracer("--port", str(nginx.port), wrap=with_object(name))
        assert (OLD_MEANS in tracer.stderr()) == (name == OLD)
        path = unique()
        expected = load(nginx.port, path, 2000, 16)
        assert expected[0].response_body == HELLO
        tracer.settle(lambda mark: get(nginx.port, mark))
        assert_exact(tracer.spans().under(path), expected)
        assert not tracer.losses()
    finally:
        nginx.stop()


def test_pipelined_requests_are_counted(start_tracer: Callable[..., Tracer]) -> None:
    """Of ten at once the first is told, on both sides, and nine are lost; then all is well."""
    path, rounds = unique(), 5
    with Wire() as wire:
        tracer = start_tracer("--pid", str(os.getpid()), wrap=with_object(OLD))
        for n in range(rounds):
            wire.request(b"".join(get_head(f"{path}/{n}/{i}") for i in range(10)))
            wire.response(b"".join(ok(b"x" * i, 230 + i) for i in range(10)))
            wire.request(get_head(f"{path}/{n}/alone"))
            wire.response(ok(b"alone"))
        spans = tracer.collect(lambda spans: spans.under(path), 4 * rounds)
    assert_sound(spans)
    truth = [Exchange(f"{path}/{n}/0", 230) for n in range(rounds)]
    truth += [Exchange(f"{path}/{n}/alone", 200, response_body=5) for n in range(rounds)]
    for kind in (CLIENT, SERVER):
        assert sorted(seen(span) for span in spans.of(kind)) == sorted(truth)
    assert tracer.losses() == {"pipeline_full": 2 * 9 * rounds}


@both
@pytest.mark.parametrize("work", ["gunicorn-gthread", "aiohttp-gather-3"])
def test_links(start_tracer: Callable[..., Tracer], tmp_path: Path, name: str, work: str) -> None:
    """By thread and by context: what takes no counting in one step."""
    (case,) = [case for case in CASES if case.name == work]
    tracer = start_tracer("--pid", str(os.getpid()), wrap=with_object(name))
    workload = called(work)
    with services(workload, tmp_path) as running:
        warm(tracer, running, 9_000_000)
        found = measure(tracer, running, 9_100_000)
    assert found.all_right(), found.counts
    assert by(found.counts) <= set(case.evidence.split())
