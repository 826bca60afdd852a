"""Guests: this machine's files under another kernel, emulated (no KVM is needed).

The root file system is shared read-only, /tmp and the like are overlays that end with the guest;
only the directory for results is written to.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.kernels.images import Image
from bench.processes import BenchError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "kernels"
SLOW = 6  # how many times longer than here anything may take in a guest
CPUS, MEMORY = 2, "4G"

# Says what loading comes to, then runs the tests where that is of use.
_SCRIPT = """\
cd {root}
export PYTHONDONTWRITEBYTECODE=1 WIRESPAN_TEST_SLOW={slow} HOME=/tmp
ip link set lo up
uname -r >{out}/release
.venv/bin/wirespan doctor --json >{out}/doctor.json 2>{out}/doctor.txt
cp /var/log/wirespan/load.log {out}/ 2>/dev/null
{tests}
sync
"""
_TESTS = """\
.venv/bin/python -m pytest -q -p no:cacheprovider -m kernels --junitxml={out}/junit.xml \
 {arguments} >{out}/pytest.txt 2>&1
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one kernel came to.

    checks: doctor's, by name; tests: by name of the test, "" where it passed, else why not.
    """

    release: str
    works: bool
    checks: Mapping[str, Mapping[str, str]]
    tests: Mapping[str, str]


def boot(
    image: Image, arguments: str = "tests/root", tests: bool = True, limit_s: int = 900
) -> Answer:
    """Boot a kernel, ask doctor and run tests. Raises BenchError where nothing came of it."""
    out = RESULTS / image.source.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    said = _TESTS.format(out=out, arguments=arguments) if tests else ""
    script = out / "script"
    script.write_text(_SCRIPT.format(root=ROOT, out=out, slow=SLOW, tests=said), encoding="utf-8")
    argv = [str(Path(sys.executable).with_name("vng")), "--disable-kvm", "--disable-microvm"]
    argv += ["--run", str(image.kernel), "--cpus", str(CPUS), "--memory", MEMORY]
    argv += ["--cwd", str(ROOT), "--rwdir", str(out), "--append", "no_timer_check"]
    argv += ["--exec", f"bash {shlex.quote(str(script))}"]
    path = f"{Path(sys.executable).parent}:/usr/sbin:/sbin:{os.environ['PATH']}"
    with (out / "console").open("wb") as console:
        try:
            subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": path},
                timeout=limit_s,
            )
        except FileNotFoundError:
            raise BenchError("vng is not installed: make setup") from None
        except subprocess.TimeoutExpired:
            pass  # what it wrote by then counts
    return answer(out)


def answer(out: Path) -> Answer:
    """Read what a guest, or a run on this kernel, left. Raises BenchError."""
    try:
        release = (out / "release").read_text(encoding="ascii").strip()
        doctor = json.loads((out / "doctor.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BenchError(f"the guest did not come up: {out / 'console'}") from None
    checks = {check["name"]: check for check in doctor["checks"]}
    return Answer(release, doctor["works"], checks, _outcomes(out / "junit.xml"))


def _outcomes(path: Path) -> dict[str, str]:
    if not path.exists() or not path.stat().st_size:
        return {}
    outcomes = {}
    for case in ET.parse(path).iter("testcase"):
        bad = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        why = (bad.get("message") or bad.tag).strip().splitlines() if bad is not None else []
        outcomes[str(case.get("name"))] = why[0][:160] if why else ""
    return outcomes
