"""What `wirespan doctor` prints, for people and for programs."""

from __future__ import annotations

import io
import json
from pathlib import Path

from tests.root.compile import compile_bpf
from tracer.doctor import doctor
from tracer.kernel.preflight import System


def nothing_there(tmp_path: Path) -> System:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("CapEff:\t0000000000000000\n")
    return System(tmp_path)


def test_words(tmp_path: Path) -> None:
    out = io.StringIO()
    assert doctor(compile_bpf("writer"), False, out, nothing_there(tmp_path)) == 1
    lines = out.getvalue().splitlines()
    assert lines[-1] == "tracing will not work"
    [place] = [i for i, line in enumerate(lines) if line.startswith("missing  kernel types: ")]
    assert lines[place].endswith("kernel has no BTF (/sys/kernel/btf/vmlinux)")
    assert "required; without it: programs can't find their way" in lines[place + 1]
    assert "remedy: use a kernel built with CONFIG_DEBUG_INFO_BTF=y" in lines[place + 2]


def test_json(tmp_path: Path) -> None:
    out = io.StringIO()
    assert doctor(compile_bpf("writer"), True, out, nothing_there(tmp_path)) == 1
    report = json.loads(out.getvalue())
    assert report["works"] is False
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["rights"]["status"] == "missing"
    assert checks["rights"]["required"] is True
    assert "run as root" in checks["rights"]["remedy"]
    assert checks["pylibbpf"]["status"] == "ok"
    # Nothing was loaded to see whether it would.
    assert "programs" not in checks


def test_object_is_missing(tmp_path: Path) -> None:
    out = io.StringIO()
    assert doctor(tmp_path / "absent.bpf.o", False, out) == 1
    assert out.getvalue().startswith("missing  eBPF object: cannot read the eBPF object")
