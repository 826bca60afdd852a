"""What this kernel and this user can and can't do, in words.

CHECKS is the whole list: each probe answers whether the thing is there, the table says
what follows where it isn't and what helps. Probes ask for the feature itself, not for
a version. They read everything below `System.root` and call bpf(2) through `System`,
so tests can take a kernel apart.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tracer.errors import KernelError
from tracer.installed import kernel_version
from tracer.kernel import hooks, sys
from tracer.kernel.btf import Object
from tracer.kernel.filters import cgroup2_mounts

# include/uapi/linux/capability.h
CAPABILITIES = {
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
OLDEST_KERNEL = (5, 10)
LAST_OLD_HELPER = 155  # bpf_redirect_peer, the last that this one has
# Those younger that the programs use, and the release that has them.
# Source: include/uapi/linux/bpf.h of each release.
YOUNG_HELPERS = {
    164: ("bpf_for_each_map_elem", "5.13"),
    181: ("bpf_loop", "5.17"),
}
# proc_ns.h: PROC_PID_INIT_INO, the host's own pid namespace.
HOST_PID_NAMESPACE = 0xEFFFFFFC
CONFIG_OPTIONS = (
    "CONFIG_BPF_SYSCALL",
    "CONFIG_BPF_EVENTS",
    "CONFIG_BPF_JIT",
    "CONFIG_DEBUG_INFO_BTF",
    "CONFIG_FTRACE_SYSCALLS",
)
MEMORY_WANTED = 64 << 20  # bytes: ring, connections and programs together, with room


class Status(StrEnum):
    OK = "ok"
    LIMITED = "limited"  # tracing works, but something is lost
    MISSING = "missing"
    UNKNOWN = "unknown"  # this user may not look


@dataclass(frozen=True, slots=True)
class Finding:
    """A probe's answer, with what it saw."""

    status: Status
    seen: str


@dataclass(frozen=True, slots=True)
class System:
    """The host as probes see it; tests put another in its place."""

    root: Path = Path("/")
    object: Object | None = None  # what is to be loaded: its hooks and helpers are asked for
    create_map: Callable[[int, int, int, int], int] = sys.map_create
    verdict: Callable[[bytes], str] = sys.program_verdict
    page_bytes: int = mmap.PAGESIZE
    host_pid_namespace: int = HOST_PID_NAMESPACE  # its inode number
    fentry_refusal: Callable[[], int] = sys.fentry_refusal

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    def read(self, *parts: str) -> str:
        """Return a file's text; raises OSError."""
        return self.path(*parts).read_text(encoding="utf-8", errors="replace")

    def has(self, capability: str) -> bool:
        match = re.search(r"^CapEff:\s*([0-9a-f]+)", self.read("proc/self/status"), re.MULTILINE)
        return match is not None and bool(int(match[1], 16) >> CAPABILITIES[capability] & 1)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `required`: without it there is no tracing at all."""

    name: str
    required: bool
    probe: Callable[[System], Finding]
    consequence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    status: Status
    required: bool
    seen: str
    consequence: str  # empty where all is well
    remedy: str


def examine(system: System | None = None) -> Iterator[Result]:
    """Run every check, one after the other; raises nothing."""
    system = system or System()
    for check in CHECKS:
        try:
            finding = check.probe(system)
        except OSError as error:
            finding = Finding(Status.UNKNOWN, f"cannot look: {error.strerror}")
        well = finding.status is Status.OK
        yield Result(
            check.name,
            finding.status,
            check.required,
            finding.seen,
            "" if well else check.consequence,
            "" if well else check.remedy,
        )


def preflight(system: System | None = None) -> None:
    """Raise KernelError for the first required thing that is missing, else return."""
    for result in examine(system):
        if result.required and result.status is Status.MISSING:
            raise KernelError(f"cannot trace: {result.seen}", result.remedy)


def _ok(seen: str) -> Finding:
    return Finding(Status.OK, seen)


def _missing(seen: str) -> Finding:
    return Finding(Status.MISSING, seen)


def _limited(seen: str) -> Finding:
    return Finding(Status.LIMITED, seen)


def _unknown(seen: str) -> Finding:
    return Finding(Status.UNKNOWN, seen)


def _rights(system: System) -> Finding:
    if system.has("CAP_SYS_ADMIN"):
        return _ok("CAP_SYS_ADMIN, which covers CAP_BPF and CAP_PERFMON")
    lacking = [name for name in ("CAP_BPF", "CAP_PERFMON") if not system.has(name)]
    if lacking:
        return _missing(f"this user is not root and lacks {' and '.join(lacking)}")
    return _ok("CAP_BPF and CAP_PERFMON")


def _kernel(system: System) -> Finding:
    release = system.read("proc/sys/kernel/osrelease").strip()
    if kernel_version(release) < OLDEST_KERNEL:
        return _limited(f"Linux {release}, older than any that was tried")
    return _ok(f"Linux {release}")


def _btf(system: System) -> Finding:
    if not system.path("sys/kernel/btf/vmlinux").exists():
        return _missing("kernel has no BTF (/sys/kernel/btf/vmlinux)")
    return _ok("/sys/kernel/btf/vmlinux")


def _bpf_call(system: System) -> Finding:
    try:
        os.close(system.create_map(sys.MAP_TYPE_ARRAY, 4, 8, 1))
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return _missing("kernel has no bpf system call (CONFIG_BPF_SYSCALL)")
        if not _may_load(system):
            return _unknown("bpf(2) answers only to those with the rights above")
        return _missing(f"bpf(2) is refused in spite of the rights ({error.strerror})")
    return _ok("bpf(2) makes maps")


def _ring(system: System) -> Finding:
    try:
        os.close(system.create_map(sys.MAP_TYPE_RINGBUF, 0, 0, system.page_bytes))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return _missing("kernel is too old: no BPF ring buffer (Linux 5.8)")
        if not _may_load(system):
            return _unknown("needs the rights above to be tried")
        return _missing(f"kernel makes no BPF ring buffer ({error.strerror})")
    return _ok("BPF_MAP_TYPE_RINGBUF")


def _helpers(system: System) -> Finding:
    if system.object is None:
        return _unknown("no eBPF object was given")
    wanted = sorted(YOUNG_HELPERS.keys() & system.object.helpers)
    lacking = []
    for number in wanted:
        try:
            verdict = system.verdict(_call(number))
        except OSError as error:
            if not _may_load(system):
                return _unknown("needs the rights above to be tried")
            return _unknown(f"the verifier cannot be asked ({error.strerror})")
        # Wrong arguments are another complaint: the helper itself is then known.
        if re.search(r"(unknown|invalid) func|cannot use helper", verdict):
            name, since = YOUNG_HELPERS[number]
            lacking.append(f"{name} (Linux {since})")
    if lacking:
        return _limited(f"this kernel has no {', '.join(lacking)}")
    return _ok(", ".join(YOUNG_HELPERS[number][0] for number in wanted) or "none but old ones")


def _call(helper: int) -> bytes:
    """Return the program `r1..r5 = 0; helper(); return 0`."""
    zeroes = b"".join(struct.pack("<BBhi", 0xB7, register, 0, 0) for register in range(1, 6))
    return zeroes + struct.pack("<BBhiBBhiBBhi", 0x85, 0, 0, helper, 0xB7, 0, 0, 0, 0x95, 0, 0, 0)


def _may_load(system: System) -> bool:
    return _rights(system).status is Status.OK


def _tracefs_path(system: System) -> Path | None:
    for place in ("sys/kernel/tracing", "sys/kernel/debug/tracing"):
        with contextlib.suppress(PermissionError):
            if system.path(place, "events").is_dir():
                return system.path(place)
    return None


def _events_wanted(system: System) -> list[str]:
    hooks = system.object.programs.values() if system.object else ()
    parts = [hook.partition("/") for hook in hooks]
    # A section that names no event holds a program that others tail-call.
    return sorted({place for kind, _, place in parts if kind in ("tracepoint", "tp") and place})


def _tracefs(system: System) -> Finding:
    if system.object and not _events_wanted(system):
        return _ok("not needed")
    place = _tracefs_path(system)
    if place is None:
        if not os.access(system.path("sys/kernel/tracing"), os.X_OK | os.R_OK):
            return _missing("tracefs (/sys/kernel/tracing) is not there for this user")
        return _missing("tracefs is not mounted (/sys/kernel/tracing)")
    return _ok(f"mounted at /{place.relative_to(system.root)}")


def _events(system: System) -> Finding:
    if system.object and not _events_wanted(system):
        return _ok("none wanted")
    place = _tracefs_path(system)
    if place is None:
        return _unknown("needs tracefs to be looked up")
    if not (place / "events" / "syscalls").is_dir():
        return _missing("kernel has no system call events (CONFIG_FTRACE_SYSCALLS)")
    wanted = _events_wanted(system)
    lacking = [event for event in wanted if not (place / "events" / event / "id").exists()]
    if lacking:
        return _missing(f"kernel lacks the events {', '.join(lacking)}")
    return _ok(f"all {len(wanted)} events" if wanted else "system call events")


def _typed_hooks(system: System) -> Finding:
    hooks = system.object.programs.values() if system.object else ()
    wanted = sorted({hook.partition("/")[2] for hook in hooks if hook.startswith("tp_btf/")})
    if not wanted:
        return _ok("none wanted")
    types = system.path("sys/kernel/btf/vmlinux").read_bytes()
    lacking = [name for name in wanted if b"\0btf_trace_" + name.encode() + b"\0" not in types]
    if lacking:
        return _missing(f"kernel lacks the trace points {', '.join(lacking)}")
    return _ok(", ".join(wanted))


def _fentry(system: System) -> Finding:
    if not _may_load(system):
        return _unknown("needs the rights above to be tried")
    why = hooks.lacking(system.root, system.fentry_refusal)
    return _limited(why) if why else _ok("in kernel functions (fentry)")


def _lockdown(system: System) -> Finding:
    try:
        text = system.read("sys/kernel/security/lockdown")
    except FileNotFoundError:
        return _ok("no lockdown, or securityfs is not mounted")
    match = re.search(r"\[(\w+)\]", text)
    level = match[1] if match else "none"
    if level == "confidentiality":
        return _missing("kernel is locked down (confidentiality): programs may not read memory")
    return _ok(f"level {level}")


def _pid_namespace(system: System) -> Finding:
    try:
        number = system.path("proc/self/ns/pid").stat().st_ino
    except FileNotFoundError:
        return _unknown("/proc is not mounted")
    if number != system.host_pid_namespace:
        return _missing("this process is in a container's pid namespace")
    return _ok("the host's")


def _processes(system: System) -> Finding:
    if system.has("CAP_SYS_PTRACE"):
        return _ok("CAP_SYS_PTRACE")
    return _limited("no CAP_SYS_PTRACE: other users' processes hide files and environment")


def _jit(system: System) -> Finding:
    try:
        value = system.read("proc/sys/net/core/bpf_jit_enable").strip()
    except FileNotFoundError:
        return _limited("kernel has no JIT compiler for BPF (CONFIG_BPF_JIT)")
    if value == "0":
        return _limited("net.core.bpf_jit_enable is 0: programs are interpreted")
    return _ok(f"net.core.bpf_jit_enable is {value}")


def _cgroup2(system: System) -> Finding:
    mounts = cgroup2_mounts(system.path("proc"))
    if not mounts:
        return _limited("cgroup v2 is not mounted")
    return _ok(f"mounted at {', '.join(mounts)}")


def _memory(system: System) -> Finding:
    """Look at the cgroup's limit; maps count towards it since Linux 5.11."""
    for line in system.read("proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        for place, name in (
            ("sys/fs/cgroup" + path, "memory.max"),
            ("sys/fs/cgroup", "memory.max"),
            ("sys/fs/cgroup/memory" + path, "memory.limit_in_bytes"),
        ):
            try:
                text = system.read(place, name).strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < MEMORY_WANTED:
                return _limited(f"memory is limited to {int(text) >> 20} MiB")
            return _ok("no limit that matters")
    return _ok("no limit")


def _bpffs(system: System) -> Finding:
    # Nothing is pinned: programs and maps live as long as the process.
    if " bpf " in system.read("proc/self/mounts"):
        return _ok("mounted, though nothing here needs it")
    return _ok("not mounted, and nothing here needs it")


def _configuration(system: System) -> Finding:
    release = system.read("proc/sys/kernel/osrelease").strip()
    for place in ("proc/config.gz", f"boot/config-{release}"):
        try:
            raw = system.path(place).read_bytes()
        except OSError:
            continue
        text = zlib.decompress(raw, 31) if place.endswith(".gz") else raw
        lacking = [name for name in CONFIG_OPTIONS if f"\n{name}=y".encode() not in text]
        if lacking:
            return _limited(f"/{place} lacks {', '.join(lacking)}")
        return _ok(f"/{place} has all that tracing needs")
    return _unknown("kernel tells its configuration neither in /proc nor in /boot")


CHECKS = (
    Check(
        "rights",
        True,
        _rights,
        "no program can be loaded",
        "run as root, or with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE",
    ),
    Check("kernel", False, _kernel, "the programs may not load", "use a newer kernel"),
    Check(
        "bpf call",
        True,
        _bpf_call,
        "no program can be loaded",
        "run outside user namespaces, and in a container allow bpf(2) in the seccomp profile",
    ),
    Check(
        "kernel types",
        True,
        _btf,
        "programs can't find their way in this kernel's structures",
        "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
    ),
    Check(
        "ring buffer",
        True,
        _ring,
        "records have no way out of the kernel",
        "use a newer kernel",
    ),
    Check(
        "lockdown",
        True,
        _lockdown,
        "programs may not read what applications send and receive",
        "boot with lockdown=integrity or without lockdown",
    ),
    Check(
        "tracefs",
        True,
        _tracefs,
        "programs can't be attached to system calls",
        "mount it (mount -t tracefs none /sys/kernel/tracing), and run as root or with "
        "CAP_DAC_READ_SEARCH",
    ),
    Check(
        "events",
        True,
        _events,
        "what passes through these system calls would go unseen",
        "use a kernel built with CONFIG_FTRACE_SYSCALLS=y and CONFIG_BPF_EVENTS=y",
    ),
    Check(
        "trace points",
        True,
        _typed_hooks,
        "what they report would go unseen",
        "use a newer kernel",
    ),
    Check(
        "pid namespace",
        True,
        _pid_namespace,
        "processes go by other numbers here than in the kernel: no names, and the tracer "
        "would trace itself",
        "start the container with the host's pid namespace (--pid=host, hostPID: true)",
    ),
    Check(
        "hooks",
        False,
        _fentry,
        "all system calls of the host pass a program, and what io_uring moves is not seen",
        "use Linux 6.3 or later with CONFIG_FUNCTION_TRACER=y; before 6.16, with preempt=voluntary",
    ),
    Check("helpers", False, _helpers, "the programs may not load", "use a newer kernel"),
    Check(
        "other processes",
        False,
        _processes,
        "services of other users go by their program's short name, and what their runtimes "
        "know (contexts, goroutines, threads) links no requests",
        "run as root, or with CAP_SYS_PTRACE",
    ),
    Check(
        "JIT compiler",
        False,
        _jit,
        "tracing costs applications several times as much",
        "sysctl net.core.bpf_jit_enable=1",
    ),
    Check(
        "cgroup v2",
        False,
        _cgroup2,
        "--cgroup can't be used",
        "mount -t cgroup2 none /sys/fs/cgroup",
    ),
    Check(
        "memory",
        False,
        _memory,
        "a large ring or many connections may not fit",
        "raise the limit of this service or container",
    ),
    Check("bpffs", False, _bpffs, "", ""),
    Check(
        "configuration",
        False,
        _configuration,
        "only what the other checks try is known",
        "see the other checks",
    ),
)
