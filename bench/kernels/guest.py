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
from collections.abc import Mapping, Sequence
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
COSTS = "costs"
HOOKS = tuple(each for each in CHOICES if each != "auto")
PARTS = (*HOOKS, COSTS)  # of a run; a kernel has some or all of those hooks

# This machine's files once more, cached: without, a program and its libraries are read anew at
# each start, and each look at a file makes another inode of it, which no uprobe is on.
_SHARE = (
    "-fsdev local,id=cached,path=/,security_model=none,readonly=on,multidevs=remap"
    " -device virtio-9p-pci,fsdev=cached,mount_tag=cached"
)
# Emulated, a switch of page tables empties the TLB, and that is what each system call does to
# keep the kernel's memory from being guessed.
_KERNEL = "no_timer_check mitigations=off"
# The network, files, and a place for what tests compile: all else is read-only. Emulated, what
# takes microseconds in the kernel goes on beyond the end of a turn, and threads are preempted there
# which on a real processor are not (docs/design/0006-kernels.md): turns are as much longer. And
# numpy's argsort() by AVX2 sorts wrongly as QEMU 7.2 emulates it.
_GUEST = """\
ip link set lo up
mount -t debugfs none /sys/kernel/debug 2>/dev/null
if cd /sys/kernel/debug/sched; then
    echo 100000000 >base_slice_ns
    for feature in NO_WAKEUP_PREEMPTION NO_HRTICK; do echo $feature >features; done
fi
export NPY_DISABLE_CPU_FEATURES=X86_V3
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
# By each kind of hooks that the kernel has; then what they cost; of these what is asked for.
_TESTS = """
    for part in $(.venv/bin/python -m bench.kernels.cost) {costs}; do
        case " {parts} " in *" $part "*) echo $part >>{out}/parts ;; esac
    done
    for part in $(cat {out}/parts); do
        if [ $part = {costs} ]; then
            .venv/bin/python -m bench.kernels.cost {out}/$part.json 2>{out}/$part.txt
        else
            WIRESPAN_TEST_HOOKS=$part .venv/bin/python -m pytest -v -p no:cacheprovider \
                -m kernels --durations=0 --junitxml={out}/$part.xml {files} >{out}/$part.txt 2>&1
        fi
    done"""
_LOG = "/var/log/wirespan/load.log"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one kernel came to.

    checks: doctor's, by name; tests: by hooks, module and name, "" where it passed, else why not;
    costs: as bench.kernels.cost measured them, by way and measure; unended: those of PARTS that
    began, or were to, and left nothing; runs: when the guest of each part began, and the seconds
    it took ("": of one that only loaded).
    """

    release: str
    works: bool
    checks: Mapping[str, Mapping[str, str]]
    tests: Mapping[str, str]
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    unended: Sequence[str] = ()
    runs: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    @property
    def hooks(self) -> list[str]:
        """Those that tests have run by."""
        ran = {name.partition(" ")[0] for name in self.tests}
        return [each for each in HOOKS if each in ran]

    @property
    def good(self) -> bool:
        return self.works and not self.unended and not any(self.tests.values())


def boot(image: Image, parts: Sequence[str] = PARTS, limit_s: int | None = None) -> Answer:
    """Boot a kernel, ask doctor and run some of PARTS. Raises BenchError where nothing came of it.

    What earlier guests of the same release came to in other parts is in the answer, too.
    """
    out, script, before = _prepared(image.source.name, parts, SLOW, _GUEST)
    argv = [str(Path(sys.executable).with_name("vng")), "--disable-kvm", "--disable-microvm"]
    argv += ["--run", str(image.kernel), "--cpus", str(CPUS), "--memory", MEMORY]
    argv += ["--cwd", str(ROOT), "--rwdir", str(out), "--append", _KERNEL]
    argv += [f"--qemu-opts={_SHARE}", "--exec", f"bash {shlex.quote(str(script))}"]
    return _run(argv, out, before, limit_s or LOAD_S + bool(parts) * TESTS_S)


def here(parts: Sequence[str] = PARTS) -> Answer:
    """The same on this machine's own kernel, without a guest. Raises BenchError."""
    out, script, before = _prepared(HERE, parts, 1, "")
    return _run(["bash", str(script)], out, before, LOAD_S + TESTS_S)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def core() -> list[str]:
    """Files with tests that run on other kernels. The rest need not be looked at: to collect
    them all takes minutes where processors are emulated."""
    files = sorted((ROOT / "tests" / "root").glob("test_*.py"))
    return [str(file) for file in files if "mark.kernels(" in file.read_text(encoding="utf-8")]


def _prepared(
    name: str, parts: Sequence[str], slow: int, first: str
) -> tuple[Path, Path, Answer | None]:
    out, built, before = RESULTS / name, ROOT / "build" / "root-tests", kept(name)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    built.mkdir(parents=True, exist_ok=True)
    said = _TESTS.format(out=out, files=" ".join(core()), parts=" ".join(parts), costs=COSTS)
    text = first.format(root=ROOT, python=sys.base_prefix, out=out, built=built)
    text += _SCRIPT.format(root=ROOT, out=out, slow=slow, tests=said if parts else "", log=_LOG)
    script = out / "script"
    script.write_text(text, encoding="utf-8")
    return out, script, before


def _run(argv: list[str], out: Path, before: Answer | None, limit_s: int) -> Answer:
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
    took = date, round(time.monotonic() - begun)
    found = replace(found, runs=dict.fromkeys(_parts(out) or [""], took))
    if before and before.release == found.release:
        found = _joined(before, found)
    (out / "answer.json").write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def kept(name: str) -> Answer | None:
    """What the last run with a kernel came to, if there was one."""
    try:
        said = json.loads((RESULTS / name / "answer.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Answer(**{**said, "runs": {part: tuple(run) for part, run in said["runs"].items()}})


def answer(out: Path) -> Answer:
    """Read what a guest, or a run on this kernel, left. Raises BenchError."""
    try:
        release = (out / "release").read_text(encoding="ascii").strip()
        doctor = json.loads((out / "doctor.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BenchError(f"the guest did not come up: {out / 'console'}") from None
    checks = {check["name"]: check for check in doctor["checks"]}
    tests: dict[str, str] = {}
    for hooks in HOOKS:
        tests |= _outcomes(out / f"{hooks}.xml", hooks)
    costs = {}
    if _left(out / f"{COSTS}.json"):
        costs = json.loads((out / f"{COSTS}.json").read_text(encoding="utf-8"))
    ended = {name.partition(" ")[0] for name in tests} | ({COSTS} if costs else set())
    unended = [part for part in _parts(out) if part not in ended]
    return Answer(release, doctor["works"], checks, tests, costs, unended)


def _joined(before: Answer, now: Answer) -> Answer:
    """What now came of some parts, with what came of the others before."""
    old = before.runs.keys() - now.runs.keys() - {""}
    tests = {name: why for name, why in before.tests.items() if name.partition(" ")[0] in old}
    return replace(
        now,
        tests={**tests, **now.tests},
        costs=before.costs if COSTS in old else now.costs,
        unended=[*(part for part in before.unended if part in old), *now.unended],
        runs={**{part: before.runs[part] for part in before.runs if part in old}, **now.runs},
    )


def _parts(out: Path) -> list[str]:
    """Those of PARTS that were to run."""
    parts = out / "parts"
    return parts.read_text(encoding="ascii").split() if parts.exists() else []


def _left(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _outcomes(path: Path, hooks: str) -> dict[str, str]:
    if not _left(path):
        return {}
    outcomes: dict[str, str] = {}
    for case in ET.parse(path).iter("testcase"):
        bad = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        why = (bad.get("message") or bad.tag).strip().splitlines() if bad is not None else []
        name = f"{hooks} {case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        # A test whose teardown fails is there twice.
        outcomes[name] = outcomes.get(name) or (why[0][:160] if why else "")
    return outcomes
