"""Every kind of evidence is told in words, and every kind of root."""

from __future__ import annotations

from typing import Any

import pytest

from collector.explain import REASONS, explain
from tests.collector.test_waterfall import span, trace
from tracer.flow import Evidence

EVIDENCE = "wirespan.link.evidence"


def told(*spans: Any) -> str:
    return "\n".join(explain(trace(*spans)))


@pytest.mark.parametrize("evidence", sorted(REASONS))
def test_evidence(evidence: str) -> None:
    child = span("b", "a", **{EVIDENCE: evidence, "span.kind": "client", "thread.id": 7})
    said = told(span("a", **{"span.kind": "server"}), child)
    assert f"evidence {evidence}" in said and "web op a (server)" in said
    assert "{0}" not in said and "{1}" not in said
    if evidence == "thread":
        assert "sent by thread 7 while" in said


def test_all_the_kinds_of_evidence_are_known() -> None:
    assert set(REASONS) == {
        *(each.name.lower() for each in Evidence if each),
        "content", "stream", "traceparent",
    }  # fmt: skip


def test_evidence_of_a_later_version() -> None:
    said = told(span("a"), span("b", "a", **{EVIDENCE: "x\x1b[2J"}))
    assert "doesn't know" in said and "\x1b" not in said


def test_roots() -> None:
    assert "nothing traced sent this request" in told(span("a", **{"span.kind": "server"}))
    assert "no parent beats a wrong parent" in told(span("a", **{"span.kind": "client"}))
    unresolved = {"span.kind": "server", "wirespan.link.unresolved": "ab"}
    assert "never came from any tracer" in told(span("a", **unresolved))


def test_parents_that_are_elsewhere() -> None:
    assert "is not here" in told(span("a", "x"))
    assert "an SDK of its own" in told(span("a", "x", **{EVIDENCE: "traceparent"}))


def test_an_sdk_has_its_own_word_for_it() -> None:
    said = told(span("a"), span("b", "a", **{"otel.scope.name": "opentelemetry.flask"}))
    assert "the application's own SDK says so" in said


@pytest.mark.parametrize("kind", ["server", "client", "internal"])
def test_a_root_of_an_sdk(kind: str) -> None:
    said = told(span("a", **{"span.kind": kind, "otel.scope.name": "opentelemetry.flask"}))
    assert "the application's own SDK began this trace" in said and "nothing" not in said


def test_moved_clocks() -> None:
    assert "moved by 300.000 ms back" in told(span("a", **{"wirespan.clock.skew_ns": -300_000_000}))
