"""Fixtures of the root tests: one tracer for most of them, others where a test needs its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.root.harness import Tracer, Watch, free_port

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.root)


class Shared:
    """The tracer that most tests share; started anew for the next test if one brought it down."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started = 0
        self.tracer: Tracer | None = None

    def get(self) -> Tracer:
        if self.tracer is None or not self.tracer.process.alive():
            self.started += 1
            self.tracer = Tracer(self.directory / str(self.started))
        return self.tracer

    def stop(self) -> None:
        if self.tracer is not None:
            self.tracer.stop()
            self.tracer = None


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    shared = Shared(tmp_path_factory.mktemp("tracer"))
    yield shared
    shared.stop()


@pytest.fixture
def watch(shared: Shared) -> Iterator[Watch]:
    """A view of the shared whole-host tracer; the test fails on any loss it does not allow."""
    watch = Watch(shared.get())
    yield watch
    assert watch.tracer.process.alive(), f"the tracer ended:\n{watch.tracer.stderr()}"
    lost = {name: n for name, n in watch.lost().items() if name not in watch.allowed}
    assert not lost, f"lost: {lost}"


@pytest.fixture
def start_tracer(tmp_path: Path, shared: Shared) -> Iterator[Callable[..., Tracer]]:
    """Start a tracer of the test's own, with these options; ended when the test is."""
    shared.stop()
    tracers: list[Tracer] = []

    def start(*args: str, **options: Any) -> Tracer:
        tracer = Tracer(tmp_path / f"tracer{len(tracers)}", *args, **options)
        tracers.append(tracer)
        return tracer

    yield start
    for tracer in tracers:
        tracer.stop()


@pytest.fixture
def port() -> int:
    return free_port()
