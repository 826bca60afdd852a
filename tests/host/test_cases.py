"""Every case of tests/corpus, and that its answer doesn't depend on where bytes are cut."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.host.case import (
    EXCHANGES,
    Case,
    CaseError,
    Connection,
    Exchange,
    corpus,
    exchanges,
    parse,
)
from tests.host.lib import COMPILERS, Outcome, Script, parsers, types

CASES = [case for protocol in EXCHANGES for case in corpus(protocol)]
IDS = [f"{case.protocol}-{case.name}" for case in CASES]
PLACES = 60  # at how many places a connection is cut in two; short ones at all of them
LARGE = 100_000  # bytes of a connection that is cut into few pieces only
WINDOWS = (1, 7, 23, 24, 25, 64, 0)  # fresh bytes presented at once; 0: as the kernel does


def run(case: Case, script: Script, *, compiler: str = "gcc", window: int = 0) -> Outcome:
    return parsers(compiler).run(script, role=case.role, old=case.old, window=window)


def answer(case: Case, outcome: Outcome) -> tuple[tuple[Exchange, ...], Connection]:
    return exchanges(case.protocol, outcome.records), Connection.of(outcome)


def cuts_of(case: Case, script: Script) -> Iterator[NDArray[np.int64]]:
    """Byte by byte, at random, few and many, and in two.

    Requests on a connection older than the tracer tell by whole I/Os what it speaks: they are
    left as they are.
    """
    kept = ~script.segments["response"].astype(bool) & case.old
    seen = script.segments["kind"] == types().kind["BYTES"]
    lengths = np.where(seen, script.segments["len"], 0).astype(np.int64)
    places = np.flatnonzero(~np.repeat(kept, lengths))
    if not len(places):
        return
    rng = random.Random(case.name)
    shares = (0.0001, 0.001) if len(places) > LARGE else (0.01, 0.05, 0.1, 0.3, 1)
    for share in shares:
        count = max(1, int(len(places) * share))
        yield places[sorted(rng.sample(range(len(places)), count))]
    for place in sorted(rng.sample(range(len(places)), min(PLACES, len(places)))):
        yield places[place : place + 1]


def check_same(case: Case, outcome: Outcome, whole: Outcome, how: object) -> None:
    # Equal bytes are the rule, and quicker to compare than what they say.
    if not outcome.same(whole):
        assert answer(case, outcome) == answer(case, whole), how


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_whole(case: Case, compiler: str) -> None:
    outcome = run(case, Script.of(case.segments), compiler=compiler)
    assert answer(case, outcome) == (case.exchanges, case.connection)
    assert outcome.protocol in ("UNKNOWN", case.protocol.upper())


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_cut_anywhere(case: Case) -> None:
    script = Script.of(case.segments)
    whole = run(case, script)
    for cuts in cuts_of(case, script):
        check_same(case, run(case, script.cut(cuts)), whole, cuts)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("protocol", EXCHANGES)
def test_windows(protocol: str, window: int) -> None:
    for case in CASES:
        script = Script.of(case.segments)
        if case.protocol != protocol or len(script.data) > LARGE:
            continue
        check_same(case, run(case, script, window=window), run(case, script), case.name)


def test_there_are_cases() -> None:
    least = {"http1": 150, "mysql": 70, "redis": 25, "postgresql": 30}
    for protocol, count in least.items():
        assert len([case for case in CASES if case.protocol == protocol]) >= count
    assert {exchange.end for case in CASES for exchange in case.exchanges} >= {
        "RESPONSE", "EOF", "UPGRADE", "PEER", "LOCAL", "INVALID",
    }  # fmt: skip
    outcomes = {case.connection.request for case in CASES}
    outcomes |= {case.connection.response for case in CASES}
    assert outcomes == set(types().outcome.__members__)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "why: no bytes",
        "why: x\norigin: y\n\n> \\q\n",
        "why: x\norigin: y\n\n? bytes\n",
        "why: x\norigin: y\nconnection: NEW\n\n> x\n",
    ],
)
def test_mistakes_in_a_case_are_named(source: str) -> None:
    with pytest.raises(CaseError):
        parse("mistake", source)
