"""Checks of a host taken apart: each thing missing once, in a tree of its own."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.root.compile import compile_bpf
from tracer import installed
from tracer.errors import KernelError
from tracer.kernel import hooks
from tracer.kernel.layout import read_object
from tracer.kernel.preflight import (
    CHECKS,
    LAST_OLD_HELPER,
    YOUNG_HELPERS,
    Result,
    Status,
    System,
    examine,
    preflight,
)

ALL_RIGHTS = (1 << 41) - 1
CONFIG = b"#\nCONFIG_BPF_SYSCALL=y\nCONFIG_BPF_EVENTS=y\nCONFIG_BPF_JIT=y\n"
CONFIG += b"CONFIG_DEBUG_INFO_BTF=y\nCONFIG_FTRACE_SYSCALLS=y\n"
EVENTS = ("sys_enter_getpriority", "sys_exit_getpriority")


def rights(host: Path, capabilities: int) -> None:
    (host / "proc/self/status").write_text(f"Name:\tx\nCapEff:\t{capabilities:016x}\n")


def null(*_: int) -> int:
    return os.open("/dev/null", os.O_RDONLY)


def refuse(code: int) -> Callable[..., int]:
    def create(*_: int) -> int:
        raise OSError(code, os.strerror(code))

    return create


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A file tree in which tracing works."""
    root = tmp_path / "host"
    for directory in ("proc/self/ns", "proc/sys/kernel", "proc/sys/net/core", "boot"):
        (root / directory).mkdir(parents=True)
    rights(root, ALL_RIGHTS)
    (root / "proc/sys/kernel/osrelease").write_text("6.1.0-18-amd64\n")
    (root / "proc/sys/net/core/bpf_jit_enable").write_text("1\n")
    (root / "proc/self/mounts").write_text("bpf /sys/fs/bpf bpf rw 0 0\n")
    (root / "proc/self/mountinfo").write_text("41 31 0:38 / /sys/fs/cgroup rw - cgroup2 none rw\n")
    (root / "proc/self/cgroup").write_text("0::/web.service\n")
    (root / "proc/self/ns/pid").write_text("")
    (root / "proc/config.gz").write_bytes(gzip.compress(CONFIG))
    (root / "sys/kernel/btf").mkdir(parents=True)
    known = "\0".join(["btf_trace_sched_switch", "BPF_FUNC_loop", *hooks.names()])
    (root / "sys/kernel/btf/vmlinux").write_bytes(f"\0{known}\0".encode())
    for event in EVENTS:
        (root / "sys/kernel/tracing/events/syscalls" / event).mkdir(parents=True)
        (root / "sys/kernel/tracing/events/syscalls" / event / "id").write_text("1\n")
    return root


@pytest.fixture
def system(host: Path) -> System:
    number = (host / "proc/self/ns/pid").stat().st_ino
    written = read_object(compile_bpf("writer"))
    return System(host, written, null, lambda _: "", 4096, number, lambda: errno.EINVAL)


def results(system: System) -> dict[str, Result]:
    return {result.name: result for result in examine(system)}


def test_a_host_that_can_trace(system: System) -> None:
    preflight(system)
    found = results(system)
    assert {result.name for result in found.values() if result.status is not Status.OK} == set()
    assert all(not result.consequence and not result.remedy for result in found.values())
    assert found["events"].seen == "all 2 events"


def test_without_fentry_it_says_what_follows(system: System) -> None:
    refusing = dataclasses.replace(system, fentry_refusal=lambda: errno.EPERM)
    preflight(refusing)
    found = results(refusing)["hooks"]
    assert found.status is Status.LIMITED and not found.required
    assert found.seen == "this kernel refuses fentry programs"
    assert "io_uring" in found.consequence


def no_btf(host: Path) -> None:
    (host / "sys/kernel/btf/vmlinux").unlink()


def no_tracefs(host: Path) -> None:
    shutil.rmtree(host / "sys/kernel/tracing/events")


def no_syscall_events(host: Path) -> None:
    shutil.rmtree(host / "sys/kernel/tracing/events/syscalls")


def one_event_less(host: Path) -> None:
    shutil.rmtree(host / "sys/kernel/tracing/events/syscalls" / EVENTS[1])


def no_rights(host: Path) -> None:
    rights(host, 0)


def half_rights(host: Path) -> None:
    rights(host, 1 << 39)


def lockdown(host: Path) -> None:
    (host / "sys/kernel/security").mkdir()
    (host / "sys/kernel/security/lockdown").write_text("none integrity [confidentiality]\n")


def container(host: Path) -> None:
    # Another file of that name: renamed, for an unlinked one's number may be used again.
    (host / "proc/self/ns/pid").rename(host / "proc/self/ns/host")
    (host / "proc/self/ns/pid").write_text("")


@pytest.mark.parametrize(
    ("damage", "name", "message", "remedy"),
    [
        (no_btf, "kernel types", r"no BTF \(/sys/kernel/btf/vmlinux\)", "DEBUG_INFO_BTF"),
        (no_tracefs, "tracefs", "tracefs is not mounted", "mount -t tracefs"),
        (no_syscall_events, "events", "no system call events", "FTRACE_SYSCALLS"),
        (one_event_less, "events", "syscalls/sys_exit_getpriority", "FTRACE_SYSCALLS"),
        (no_rights, "rights", "not root and lacks CAP_BPF and CAP_PERFMON", "run as root"),
        (half_rights, "rights", "lacks CAP_PERFMON", "run as root"),
        (lockdown, "lockdown", "locked down", "lockdown=integrity"),
        (container, "pid namespace", "container's pid namespace", "--pid=host"),
    ],
)
def test_missing_things_are_named(
    host: Path,
    system: System,
    damage: Callable[[Path], None],
    name: str,
    message: str,
    remedy: str,
) -> None:
    damage(host)
    found = results(system)[name]
    assert found.status is Status.MISSING and found.required
    assert found.consequence and remedy in found.remedy
    with pytest.raises(KernelError, match=message) as caught:
        preflight(system)
    assert remedy in caught.value.hint


def test_bpf_capabilities_suffice_without_sys_admin(host: Path, system: System) -> None:
    rights(host, 1 << 39 | 1 << 38)
    preflight(system)
    found = results(system)
    assert found["rights"].seen == "CAP_BPF and CAP_PERFMON"
    assert found["other processes"].status is Status.LIMITED


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        (errno.ENOSYS, Status.MISSING, "CONFIG_BPF_SYSCALL"),
        (errno.EPERM, Status.MISSING, "refused in spite of the rights"),
    ],
)
def test_bpf_call_refused(system: System, code: int, status: Status, word: str) -> None:
    found = results(dataclasses.replace(system, create_map=refuse(code)))["bpf call"]
    assert found.status is status and word in found.seen


def test_what_cannot_be_known_without_rights(host: Path, system: System) -> None:
    no_rights(host)
    found = results(dataclasses.replace(system, create_map=refuse(errno.EPERM)))
    assert found["bpf call"].status is found["ring buffer"].status is Status.UNKNOWN
    assert "rights" in found["ring buffer"].seen


def test_kernel_without_ring_buffer(system: System) -> None:
    def create(kind: int, *rest: int) -> int:
        return refuse(errno.EINVAL)() if kind == 27 else null()

    with pytest.raises(KernelError, match="too old: no BPF ring buffer"):
        preflight(dataclasses.replace(system, create_map=create))


def test_ring_buffer_without_memory(system: System) -> None:
    def create(kind: int, *rest: int) -> int:
        return refuse(errno.ENOMEM)() if kind == 27 else null()

    found = results(dataclasses.replace(system, create_map=create))["ring buffer"]
    assert found.status is Status.MISSING and "Cannot allocate memory" in found.seen


@pytest.mark.parametrize(
    ("file", "content", "name", "word"),
    [
        ("proc/sys/net/core/bpf_jit_enable", "0\n", "JIT compiler", "interpreted"),
        ("proc/sys/net/core/bpf_jit_enable", None, "JIT compiler", "no JIT"),
        ("proc/self/mountinfo", "", "cgroup v2", "not mounted"),
        ("proc/sys/kernel/osrelease", "4.19.0\n", "kernel", "older than any"),
        ("sys/fs/cgroup/web.service/memory.max", f"{8 << 20}\n", "memory", "limited to 8 MiB"),
        ("proc/config.gz", gzip.compress(b"#\n"), "configuration", "lacks CONFIG_BPF_SYSCALL"),
    ],
)
def test_what_is_only_limited(
    host: Path, system: System, file: str, content: str | bytes | None, name: str, word: str
) -> None:
    path = host / file
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = results(system)[name]
    assert found.status is Status.LIMITED and word in found.seen and not found.required
    preflight(system)


@pytest.mark.parametrize("limit", ["max\n", f"{1 << 40}\n"])
def test_memory_limits_that_do_not_matter(host: Path, system: System, limit: str) -> None:
    path = host / "sys/fs/cgroup/web.service"
    path.mkdir(parents=True)
    (path / "memory.max").write_text(limit)
    assert results(system)["memory"].status is Status.OK


def test_configuration_in_boot_or_nowhere(host: Path, system: System) -> None:
    (host / "proc/config.gz").unlink()
    assert results(system)["configuration"].status is Status.UNKNOWN
    (host / "boot/config-6.1.0-18-amd64").write_bytes(CONFIG)
    assert results(system)["configuration"].status is Status.OK


def test_debugfs_serves_where_tracefs_is_not_mounted(host: Path, system: System) -> None:
    (host / "sys/kernel/debug").mkdir()
    (host / "sys/kernel/tracing").rename(host / "sys/kernel/debug/tracing")
    preflight(system)
    assert results(system)["tracefs"].seen == "mounted at /sys/kernel/debug/tracing"


class Source:
    """Stands for an object that wants other hooks and helpers."""

    def __init__(self, hooks: dict[str, str], helpers: set[int]) -> None:
        self.programs = hooks
        self.helpers = frozenset(helpers)


def test_programs_without_an_event_of_their_own(system: System) -> None:
    hooks = {"work": "tracepoint", "enter": f"tracepoint/syscalls/{EVENTS[0]}"}
    found = results(dataclasses.replace(system, object=Source(hooks, set())))["events"]
    assert (found.status, found.seen) == (Status.OK, "all 1 events")


def test_typed_trace_points(system: System) -> None:
    wanted = Source({"a": "tp_btf/sched_switch", "b": "tp_btf/tcp_nothing"}, set())
    found = results(dataclasses.replace(system, object=wanted))["trace points"]
    assert found.status is Status.MISSING
    assert found.seen == "kernel lacks the trace points tcp_nothing"


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        ("0: (85) call unknown#181\ninvalid func unknown#181", Status.LIMITED),
        ("program of this type cannot use helper bpf_loop#181", Status.LIMITED),
        ("R1 type=scalar expected=ptr_", Status.OK),
        ("", Status.OK),
    ],
)
def test_helpers(system: System, verdict: str, status: Status) -> None:
    wanted = Source({}, {1, 181})
    found = results(
        dataclasses.replace(system, object=wanted, verdict=lambda _: verdict)  # type: ignore[arg-type]
    )["helpers"]
    assert found.status is status and "bpf_loop" in found.seen


def test_every_young_helper_of_the_programs_is_asked_for() -> None:
    used = read_object(installed.object_path()).helpers
    assert {number for number in used if number > LAST_OLD_HELPER} == set(YOUNG_HELPERS)


def test_nothing_is_readable() -> None:
    found = list(examine(System(Path("/nowhere"), None, refuse(errno.EPERM))))
    assert len(found) == len(CHECKS)
    assert all(result.status is not Status.OK or not result.required for result in found[:3])


def test_every_check_says_what_follows_and_what_helps() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert bool(check.consequence) == bool(check.remedy)
        assert check.consequence or not check.required
