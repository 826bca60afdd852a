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
    (out / "cost.json").write_text('{"untraced": {"zero": 1234.5}, "fentry": {"programs": 2.0}}')
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
    late = replace(found, tests={}, late=True, seconds=1200.4, date="today")
    text = page.page(
        "0.1", [("6.1", image, found), ("newest", None, "no boot"), ("host", None, late)]
    )
    passed = "1 of 2 by tracepoint, 2 of 2 by fentry"
    assert f"| 6.1 | Debian bookworm, 6.1.1-1 | 6.1.0-test | yes | {passed} | - |  |" in text
    assert "| host | this machine, no guest | 6.1.0-test | yes | not run | 1200 s | today |" in text
    assert "|  | 6.1, tracepoint | 6.1, fentry | host |" in text
    assert "| gRPC | yes | yes | not run |" in text
    assert "| MySQL | **no** | yes | not run |" in text
    assert "| linking by thread | not run | not run | not run |" in text
    assert "| 6.1 | untraced | 1,234 | - | - | - |\n| 6.1 | fentry | - | - | - | 2 |" in text
    assert "- **6.1**, helpers: none in tracer; slow" in text
    assert "- **6.1**, `tracepoint test_mysql::test_b[x]`: assert 1 == 2" in text
    assert "- **newest**: no boot" in text
    assert "- **host**: the tests did not end in time" in text


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
