"""The page of kernels, of answers as guests leave them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.kernels import guest, images, page
from bench.processes import BenchError

JUNIT = """<testsuites><testsuite>
<testcase name="test_a" /><testcase name="test_b[x]">
<failure message="assert 1 == 2&#10;more"/></testcase>
</testsuite></testsuites>"""


def left(out: Path, works: bool) -> Path:
    """What a guest writes."""
    check = {"name": "programs", "status": "ok", "seen": "all", "consequence": "", "remedy": ""}
    bad = {**check, "name": "helpers", "status": "limited", "seen": "none", "consequence": "slow"}
    (out / "release").write_text("6.1.0-test\n")
    (out / "doctor.json").write_text(json.dumps({"works": works, "checks": [check, bad]}))
    (out / "junit.xml").write_text(JUNIT)
    return out


def test_answer_and_page(tmp_path: Path) -> None:
    found = guest.answer(left(tmp_path, True))
    assert found.works and found.release == "6.1.0-test"
    assert found.tests == {"test_a": "", "test_b[x]": "assert 1 == 2"}
    image = images.Image(images.SOURCES[1], found.release, "6.1.1-1", tmp_path / "vmlinuz")
    text = page.page("today", "0.1", [("6.1", image, found), ("newest", None, "it did not boot")])
    assert "| 6.1 | Debian bookworm, 6.1.1-1 | 6.1.0-test | yes | 1 of 2 |" in text
    assert "- **6.1**, helpers: none; slow" in text
    assert "- **6.1**, `test_b[x]`: assert 1 == 2" in text
    assert "- **newest**: it did not boot" in text


def test_a_guest_that_left_nothing(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="did not come up"):
        guest.answer(tmp_path)
