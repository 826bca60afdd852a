"""The page of kernels, of answers as guests leave them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.kernels import guest, images, page
from bench.processes import BenchError

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.root.test_grpc" name="test_a" />
<testcase classname="tests.root.test_mysql" name="test_b[x]">
<failure message="assert 1 == 2&#10;more"/></testcase>
</testsuite></testsuites>"""


def left(out: Path, works: bool) -> Path:
    """What a guest writes."""
    check = {"name": "programs", "status": "ok", "seen": "all", "consequence": "", "remedy": ""}
    bad = {**check, "name": "helpers", "status": "limited", "consequence": "slow"}
    bad["seen"] = f"none in {guest.ROOT}/tracer"
    (out / "release").write_text("6.1.0-test\n")
    (out / "doctor.json").write_text(json.dumps({"works": works, "checks": [check, bad]}))
    (out / "tracepoint.xml").write_text(JUNIT)
    (out / "fentry.xml").write_text(JUNIT.replace("failure", "properties"))
    (out / "parts").write_text("tracepoint\nfentry\ncosts\n")
    (out / "costs.json").write_text('{"untraced": {"zero": 1234.5}, "fentry": {"programs": 2.0}}')
    return out


def test_answer_and_page(tmp_path: Path) -> None:
    found = guest.answer(left(tmp_path, True))
    assert found.works and found.release == "6.1.0-test"
    assert found.tests == {
        "tracepoint test_grpc::test_a": "",
        "tracepoint test_mysql::test_b[x]": "assert 1 == 2",
        "fentry test_grpc::test_a": "",
        "fentry test_mysql::test_b[x]": "",
    }
    assert found.hooks == ["tracepoint", "fentry"]
    assert not found.good
    image = images.Image(images.SOURCES[1], found.release, "6.1.1-1", tmp_path / "vmlinuz")
    runs = {"tracepoint": ("today", 1200), "costs": ("today", 1200), "fentry": ("yesterday", 7)}
    late = replace(found, tests={}, unended=["fentry", "costs"], runs=runs)
    text = page.page(
        "0.1", [("6.1", image, found), ("newest", None, "no boot"), ("host", None, late)]
    )
    passed = "1 of 2 by tracepoint, 2 of 2 by fentry"
    assert f"| 6.1 | Debian bookworm, 6.1.1-1 | 6.1.0-test | yes | {passed} |  |" in text
    ran = "today (1,200 s), yesterday (7 s)"
    assert f"| host | this machine, no guest | 6.1.0-test | yes | not run | {ran} |" in text
    assert "|  | 6.1, tracepoint | 6.1, fentry | host |" in text
    assert "| gRPC | yes | yes | not run |" in text
    assert "| MySQL | **no** | yes | not run |" in text
    assert "| linking by thread | not run | not run | not run |" in text
    assert "| 6.1 | untraced | 1,234 | - | - | - |\n| 6.1 | fentry | - | - | - | 2 |" in text
    assert "- **6.1**, helpers: none in tracer; slow" in text
    assert "- **6.1**, `tracepoint test_mysql::test_b[x]`: assert 1 == 2" in text
    assert "- **newest**: no boot" in text
    for what in ("the tests by fentry", "the measurement of costs"):
        assert f"- **host**: {what} did not end in the time given, or failed" in text


def test_parts_that_did_not_end(tmp_path: Path) -> None:
    """Costs that were not asked for are not late; what has begun and left nothing is."""
    left(tmp_path, True)
    (tmp_path / "costs.json").unlink()
    (tmp_path / "fentry.xml").write_text("")
    assert guest.answer(tmp_path).unended == ["fentry", "costs"]
    (tmp_path / "parts").write_text("tracepoint\n")
    assert guest.answer(tmp_path).unended == []
    (tmp_path / "parts").unlink()
    (tmp_path / "tracepoint.xml").unlink()
    found = guest.answer(tmp_path)
    assert found.unended == [] and found.tests == {} and found.good


def test_parts_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of one part leaves what came of the others, by the same kernel alone."""
    monkeypatch.setattr(guest, "RESULTS", tmp_path)

    def ran(part: str, release: str = "6.1") -> guest.Answer:
        out, _, before = guest._prepared("some", [part], 1, "")
        left(out, True)
        for name in ("tracepoint.xml", "fentry.xml", "costs.json"):
            if not name.startswith(part):
                (out / name).unlink()
        (out / "parts").write_text(part)
        (out / "release").write_text(release)
        return guest._run(["true"], out, before, 60)

    assert ran("fentry").hooks == ["fentry"]
    assert ran("tracepoint").hooks == ["tracepoint", "fentry"]
    assert "fentry" in ran("costs").costs
    found = ran("tracepoint")
    assert found == guest.kept("some")
    assert sorted(found.runs) == ["costs", "fentry", "tracepoint"]
    assert (found.hooks, len(found.tests), found.unended) == (["tracepoint", "fentry"], 4, [])
    other = ran("fentry", "6.2")
    assert (other.hooks, other.costs, sorted(other.runs)) == (["fentry"], {}, ["fentry"])


def test_a_guest_that_left_nothing(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="did not come up"):
        guest.answer(tmp_path)


def test_what_runs_is_marked_and_said(pytestconfig: pytest.Config) -> None:
    """Each line of the page has tests that are marked, in the files that guests look at."""
    argv = [sys.executable, "-m", "pytest", "-q", "-m", "kernels", "--collect-only", *guest.core()]
    done = subprocess.run(argv, cwd=pytestconfig.rootpath, capture_output=True, text=True)
    names = re.findall(r"^tests/root/(\w+)\.py(::\S+)$", done.stdout, re.M)
    tests = ["".join(name) for name in names]
    assert tests, done.stdout
    for begins in page.CORE.values():
        assert any(test.startswith(begins) for test in tests), begins
    for test in tests:
        assert any(test.startswith(begins) for begins in page.CORE.values()), test
