"""What filter options become in the kernel's maps."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tracer.errors import UsageError
from tracer.kernel.filters import EXCLUDE, INCLUDE, Filters, cgroup2_mounts, entries


def test_no_filter_sets_nothing() -> None:
    found = entries(Filters())
    assert found.mask == 0 and found.maps == {}


@pytest.mark.parametrize(
    ("filters", "mask", "maps"),
    [
        (Filters(ports=(80, 8080)), 1, {"filter_ports": {b"\x50\0": 1, b"\x90\x1f": 1}}),
        (Filters(exclude_ports=(443,)), 2, {"filter_ports": {b"\xbb\x01": 2}}),
        (Filters(exes=("nginx",)), 16, {"filter_exe_names": {b"nginx".ljust(32, b"\0"): 1}}),
        (Filters(exclude_exes=("é",)), 32, {"filter_exe_names": {b"\xc3\xa9".ljust(32, b"\0"): 2}}),
    ],
)
def test_keys(filters: Filters, mask: int, maps: dict[str, dict[bytes, int]]) -> None:
    found = entries(filters)
    assert found.mask == mask and found.maps == maps


def test_the_same_key_both_ways() -> None:
    found = entries(Filters(ports=(80,), exclude_ports=(80,)))
    assert found.mask == 3
    assert found.maps == {"filter_ports": {b"\x50\0": INCLUDE | EXCLUDE}}


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_that_do_not_exist(port: int) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        entries(Filters(ports=(port,)))


def test_pids() -> None:
    found = entries(Filters(pids=(os.getpid(),), exclude_pids=(1,)))
    assert found.mask == 4 | 8
    assert found.maps["filter_pids"] == {struct.pack("=I", os.getpid()): 1, b"\1\0\0\0": 2}


def test_a_pid_that_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(UsageError, match=f"no process has pid {child.pid}") as caught:
        entries(Filters(pids=(child.pid,)))
    assert "--exe" in caught.value.hint


def test_a_thread_is_no_process() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(UsageError, match=f"is a thread of process {os.getpid()}"):
            entries(Filters(pids=(thread.native_id or 0,)))
    finally:
        done.set()
        thread.join()


def test_executables_by_path(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(b"")
    link = tmp_path / "link"
    link.symlink_to(file)
    found = entries(Filters(exes=(str(link),)))
    [key] = found.maps["filter_exe_files"]
    ino, device, padding = struct.unpack("=QII", key)
    about = file.stat()
    assert found.mask == 16 and ino == about.st_ino and padding == 0
    assert device == os.major(about.st_dev) << 20 | os.minor(about.st_dev)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/at/all", "cannot find the executable /nowhere/at/all: No such file"),
        ("/tmp/", "/tmp/ is not a file"),
        ("", "empty name"),
        ("x" * 32, "longer than 31 bytes"),
    ],
)
def test_executables_that_are_none(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        entries(Filters(exes=(name,)))


def mountinfo(proc: Path, *mounts: tuple[Path, str]) -> None:
    """Write a /proc/self/mountinfo in which these directories are mounts of their own."""
    (proc / "self").mkdir(parents=True)
    lines = []
    for number, (path, kind) in enumerate(mounts):
        device = path.stat().st_dev
        place = str(path).replace(" ", "\\040")
        lines.append(
            f"{number} 1 {os.major(device)}:{os.minor(device)} / {place} rw shared:1 - "
            f"{kind} none rw\n"
        )
    (proc / "self" / "mountinfo").write_text("".join(lines))


def test_cgroups(tmp_path: Path) -> None:
    mount = tmp_path / "cgroup two"
    service = mount / "system.slice" / "web.service"
    service.mkdir(parents=True)
    proc = tmp_path / "proc"
    mountinfo(proc, (mount, "cgroup2"))
    assert list(cgroup2_mounts(proc)) == [str(mount)]
    key = struct.pack("=Q", service.stat().st_ino)
    for name in (str(service), "system.slice/web.service", "/system.slice/web.service"):
        found = entries(Filters(cgroups=(name,)), proc)
        assert found.mask == 64 and found.maps == {"filter_cgroups": {key: 1}}
    assert entries(Filters(exclude_cgroups=(str(service),)), proc).mask == 128


def test_cgroups_that_are_none(tmp_path: Path) -> None:
    mount = tmp_path / "cgroup"
    mount.mkdir()
    (mount / "cgroup.procs").write_text("")
    proc = tmp_path / "proc"
    mountinfo(proc, (mount, "cgroup2"))
    for name in ("absent", "cgroup.procs", "/proc", str(mount / "cgroup.procs")):
        message = f"no directory of cgroup v2 named {name}"
        with pytest.raises(UsageError, match=message) as caught:
            entries(Filters(cgroups=(name,)), proc)
        assert str(mount) in caught.value.hint


def test_no_cgroup2_at_all(tmp_path: Path) -> None:
    mountinfo(tmp_path / "proc", (tmp_path, "tmpfs"))
    with pytest.raises(UsageError, match="cgroup v2 is not mounted"):
        entries(Filters(cgroups=("web",)), tmp_path / "proc")
