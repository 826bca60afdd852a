"""A short pass of the fuzzer of the intake; `make fuzz-intake` is a long one."""

from __future__ import annotations

from tests.collector.fuzz_intake import run

SECONDS = 6.0


def test_damaged_requests() -> None:
    outcome = run(SECONDS, seed=1)
    assert outcome.inputs > 100
    # Both kinds were reached: good requests among the damaged, and every way to refuse.
    assert {"200", "400", "frames"} <= outcome.answers.keys()
    assert outcome.sent_away["unfit"] and outcome.sent_away["malformed"]
    assert outcome.answers.keys() <= {
        "200", "400", "404", "405", "408", "411", "413", "415", "417", "429", "431", "505",
        "closed", "frames", "reset",
    }  # fmt: skip
