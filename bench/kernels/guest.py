"""Guests: this machine's files under another kernel, emulated (no KVM is needed).

The root file system is shared read-only, /tmp and the like are overlays that end with the guest;
only the directory for results is written to.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench.kernels.images import Image
from bench.processes import BenchError
from tracer.kernel.hooks import CHOICES

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "kernels"
HERE = "host"  # this machine's own kernel, as people choose it
SLOW = 10  # how many times longer than here anything may take in a guest
CPUS, MEMORY = 1, "4G"
LOAD_S, TESTS_S = 300, 2400  # what a guest may take: to boot and load, and for the tests

# This machine's files once more, cached: without, a program and its libraries are read anew at
# each start, and each look at a file makes another inode of it, which no uprobe is on.
_SHARE = (
    "-fsdev local,id=cached,path=/,security_model=none,readonly=on,multidevs=remap"
    " -device virtio-9p-pci,fsdev=cached,mount_tag=cached"
)
# Emulated, a switch of page tables empties the TLB, and that is what each system call does to
# keep the kernel's memory from being guessed.
_KERNEL = "no_timer_check mitigations=off"
# The network, files, and a place for what tests compile: all else is read-only.
_GUEST = """\
ip link set lo up
mkdir -p /run/cached /run/out /run/built/upper /run/built/work
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=524288 cached /run/cached
mount --bind {out} /run/out
for place in /usr {python} {root}; do
    mount --bind /run/cached$place $place
done
mount --bind /run/out {out}
mount -t overlay -o lowerdir={built},upperdir=/run/built/upper,workdir=/run/built/work none {built}
"""
# Says what loading comes to, then runs the tests where that is of use. Plugins of pytest's are
# left out: that of Hypothesis wants to write beside the sources.
_SCRIPT = """\
cd {root}
export PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
export WIRESPAN_TEST_SLOW={slow} HOME=/tmp
uname -r >{out}/release
if .venv/bin/wirespan doctor --json >{out}/doctor.json 2>{out}/doctor.txt; then
    : {tests}
elif [ {log} -nt {out}/release ]; then
    cp {log} {out}/
fi
sync
"""
# By each kind of hooks that the kernel has; then what they cost.
_TESTS = """
    for hooks in $(.venv/bin/python -m bench.kernels.cost); do
        WIRESPAN_TEST_HOOKS=$hooks .venv/bin/python -m pytest -v -p no:cacheprovider -m kernels \
            --durations=0 --junitxml={out}/$hooks.xml {files} >{out}/$hooks.txt 2>&1
    done
    .venv/bin/python -m bench.kernels.cost {out}/cost.json 2>{out}/cost.txt"""
_LOG = "/var/log/wirespan/load.log"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one kernel came to.

    checks: doctor's, by name; tests: by hooks, module and name, "" where it passed, else why not;
    late: the tests did not all end in time; seconds: all of it; date: when it began; costs: as
    bench.kernels.cost measured them, by way and measure.
    """

    release: str
    works: bool
    checks: Mapping[str, Mapping[str, str]]
    tests: Mapping[str, str]
    late: bool = False
    seconds: float = 0.0
    date: str = ""
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def hooks(self) -> list[str]:
        """Those that tests have run by."""
        return list(dict.fromkeys(name.partition(" ")[0] for name in self.tests))

    @property
    def good(self) -> bool:
        return self.works and not self.late and not any(self.tests.values())


def boot(image: Image, tests: bool = True, limit_s: int | None = None) -> Answer:
    """Boot a kernel, ask doctor and run tests. Raises BenchError where nothing came of it."""
    out, script = _prepared(image.source.name, tests, SLOW, _GUEST)
    argv = [str(Path(sys.executable).with_name("vng")), "--disable-kvm", "--disable-microvm"]
    argv += ["--run", str(image.kernel), "--cpus", str(CPUS), "--memory", MEMORY]
    argv += ["--cwd", str(ROOT), "--rwdir", str(out), "--append", _KERNEL]
    argv += [f"--qemu-opts={_SHARE}", "--exec", f"bash {shlex.quote(str(script))}"]
    return _run(argv, out, tests, limit_s or LOAD_S + tests * TESTS_S)


def here(tests: bool = True) -> Answer:
    """The same on this machine's own kernel, without a guest. Raises BenchError."""
    out, script = _prepared(HERE, tests, 1, "")
    return _run(["bash", str(script)], out, tests, LOAD_S + TESTS_S)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def core() -> list[str]:
    """Files with tests that run on other kernels. The rest need not be looked at: to collect
    them all takes minutes where processors are emulated."""
    files = sorted((ROOT / "tests" / "root").glob("test_*.py"))
    return [str(file) for file in files if "mark.kernels(" in file.read_text(encoding="utf-8")]


def _prepared(name: str, tests: bool, slow: int, first: str) -> tuple[Path, Path]:
    out, built = RESULTS / name, ROOT / "build" / "root-tests"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    built.mkdir(parents=True, exist_ok=True)
    said = _TESTS.format(out=out, files=" ".join(core())) if tests else ""
    text = first.format(root=ROOT, python=sys.base_prefix, out=out, built=built)
    text += _SCRIPT.format(root=ROOT, out=out, slow=slow, tests=said, log=_LOG)
    script = out / "script"
    script.write_text(text, encoding="utf-8")
    return out, script


def _run(argv: list[str], out: Path, tests: bool, limit_s: int) -> Answer:
    path = f"{Path(sys.executable).parent}:/usr/sbin:/sbin:{os.environ['PATH']}"
    begun, date = time.monotonic(), now()
    with (out / "console").open("wb") as console:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": path},
                start_new_session=True,
            )
        except FileNotFoundError:
            raise BenchError("vng is not installed: make setup") from None
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass  # what it wrote by then counts
        finally:
            with contextlib.suppress(ProcessLookupError):  # QEMU outlives who started it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = answer(out)
    late = tests and found.works and not found.costs
    found = replace(found, late=late, seconds=time.monotonic() - begun, date=date)
    (out / "answer.json").write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def kept(name: str) -> Answer | None:
    """What the last run with a kernel came to, if there was one."""
    try:
        return Answer(**json.loads((RESULTS / name / "answer.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def answer(out: Path) -> Answer:
    """Read what a guest, or a run on this kernel, left. Raises BenchError."""
    try:
        release = (out / "release").read_text(encoding="ascii").strip()
        doctor = json.loads((out / "doctor.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BenchError(f"the guest did not come up: {out / 'console'}") from None
    checks = {check["name"]: check for check in doctor["checks"]}
    tests: dict[str, str] = {}
    for hooks in CHOICES:
        tests |= _outcomes(out / f"{hooks}.xml", hooks)
    with contextlib.suppress(FileNotFoundError):
        costs = json.loads((out / "cost.json").read_text(encoding="utf-8"))
        return Answer(release, doctor["works"], checks, tests, costs=costs)
    return Answer(release, doctor["works"], checks, tests)


def _outcomes(path: Path, hooks: str) -> dict[str, str]:
    if not path.exists() or not path.stat().st_size:
        return {}
    outcomes: dict[str, str] = {}
    for case in ET.parse(path).iter("testcase"):
        bad = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        why = (bad.get("message") or bad.tag).strip().splitlines() if bad is not None else []
        name = f"{hooks} {case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        # A test whose teardown fails is there twice.
        outcomes[name] = outcomes.get(name) or (why[0][:160] if why else "")
    return outcomes
