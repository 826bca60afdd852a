"""The object for kernels before Linux 5.17, on this kernel, which takes it as well."""

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

AS_OLD = """
import sys
from tracer import installed
installed.OBJECT = installed.OLD_OBJECT
from tracer.cli import main
sys.exit(main(sys.argv[1:]))
"""


def as_old(argv: list[str]) -> list[str]:
    """The command line of a tracer that takes this kernel for an old one."""
    return [sys.executable, "-c", AS_OLD, *argv[argv.index("run") :]]


def test_exchanges_are_exact_and_the_rest_is_said(
    start_tracer: Callable[..., Tracer], tmp_path: Path
) -> None:
    nginx = Nginx(tmp_path / "nginx")
    try:
        tracer = start_tracer("--port", str(nginx.port), wrap=as_old)
        assert OLD_MEANS in tracer.stderr()
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
        tracer = start_tracer("--pid", str(os.getpid()), wrap=as_old)
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


@pytest.mark.parametrize("name", ["gunicorn-gthread", "aiohttp-gather-3"])
def test_links(start_tracer: Callable[..., Tracer], tmp_path: Path, name: str) -> None:
    """By thread and by context: what takes no counting in one step."""
    (case,) = [case for case in CASES if case.name == name]
    tracer = start_tracer("--pid", str(os.getpid()), wrap=as_old)
    workload = called(name)
    with services(workload, tmp_path) as running:
        warm(tracer, running, 9_000_000)
        found = measure(tracer, running, 9_100_000)
    assert found.all_right(), found.counts
    assert by(found.counts) <= set(case.evidence.split())
