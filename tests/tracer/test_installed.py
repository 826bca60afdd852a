"""Which eBPF object a kernel gets."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tracer import doctor, installed
from tracer.kernel.preflight import Result, Status


@pytest.mark.parametrize("before", [0, (1 << 18) - 7, 1 << 18])
def test_by_the_kernels_types(tmp_path: Path, before: int) -> None:
    """Its mark may lie across two reads."""
    types = tmp_path / "vmlinux"
    types.write_bytes(b"x" * before + b"\0BPF_FUNC_loop\0" + b"x" * 100)
    assert installed.fitting(types, "6.18.44") == installed.OBJECT
    types.write_bytes(b"x" * before + b"\0BPF_FUNC_looping\0")
    assert installed.fitting(types, "5.10.0-39-amd64") == installed.OLD_OBJECT
    assert installed.fitting(tmp_path / "none", "6.1") == installed.OBJECT


@pytest.mark.parametrize("release", ["7.0.0-rc1", "7.3.4+deb13-amd64", "10.1"])
def test_by_release(tmp_path: Path, release: str) -> None:
    assert installed.fitting(tmp_path / "none", release) == installed.PREEMPTED_OBJECT


def test_doctor_says_what_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = Result("rights", Status.MISSING, True, "none", "no tracing", "get some")
    monkeypatch.setattr(doctor, "examine", lambda system: [lacking])  # so nothing is loaded
    out = io.StringIO()
    doctor.doctor(installed.OLD_OBJECT, True, out)
    report = json.loads(out.getvalue())
    (found,) = [check for check in report["checks"] if check["name"] == "eBPF object"]
    assert found["status"] == "limited" and not found["required"]
    assert found["consequence"] == installed.OLD_MEANS
