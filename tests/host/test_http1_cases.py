"""Every case of tests/corpus/http1, and that its answer doesn't depend on where bytes are cut."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.host.case import Case, CaseError, Connection, Exchange, corpus, parse
from tests.host.lib import COMPILERS, Outcome, Script, parsers

CASES = corpus("http1")
SMALL = 1_000  # bytes of a connection that is cut in two at every place
WINDOWS = (1, 7, 23, 24, 25, 64, 0)  # fresh bytes presented at once; 0: as the kernel does


def answer(outcome: Outcome) -> tuple[tuple[Exchange, ...], Connection]:
    return tuple(Exchange.of(record) for record in outcome.records), Connection.of(outcome)


def cuts_of(size: int, seed: str) -> Iterator[NDArray[np.int64]]:
    """Byte by byte, then at random, few and many; small ones in two at every place."""
    yield np.arange(size, dtype=np.int64)
    rng = random.Random(seed)
    for share in (0.01, 0.02, 0.05, 0.1, 0.3, 0.6) if size else ():
        count = max(1, int(size * share))
        yield np.array(sorted(rng.choices(range(size), k=count)), np.int64)
    if size <= SMALL:
        for place in range(1, size):
            yield np.array([place], np.int64)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_whole(case: Case, compiler: str) -> None:
    outcome = parsers(compiler).run(Script.of(case.segments), role=case.role)
    assert answer(outcome) == (case.exchanges, case.connection)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_cut_anywhere(case: Case) -> None:
    script = Script.of(case.segments)
    library = parsers()
    for cuts in cuts_of(len(script.data), case.name):
        outcome = library.run(script.cut(cuts), role=case.role)
        assert answer(outcome) == (case.exchanges, case.connection), cuts


@pytest.mark.parametrize("window", WINDOWS)
def test_windows(window: int) -> None:
    for case in CASES:
        outcome = parsers().run(Script.of(case.segments), role=case.role, window=window)
        assert answer(outcome) == (case.exchanges, case.connection), case.name


def test_there_are_cases() -> None:
    assert len(CASES) > 150
    assert {exchange.end for case in CASES for exchange in case.exchanges} >= {
        "RESPONSE", "EOF", "UPGRADE", "PEER", "LOCAL", "INVALID",
    }  # fmt: skip


@pytest.mark.parametrize(
    "source",
    ["", "why: no bytes", "why: x\norigin: y\n\n> \\q\n", "why: x\norigin: y\n\n? bytes\n"],
)
def test_mistakes_in_a_case_are_named(source: str) -> None:
    with pytest.raises(CaseError):
        parse("mistake", source)
