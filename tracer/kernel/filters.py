"""Who is traced: options of the command line -> keys of the kernel's filter maps.

Each map's value is a byte: bit 0 includes, bit 1 excludes. `mask` tells the programs
which kinds of filter are set at all, so that an unfiltered run looks nothing up.
What an option names is looked up once, here; the programs compare numbers.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path

from tracer.errors import UsageError

INCLUDE = 1
EXCLUDE = 2

_NAME_BYTES = 32  # of filter_exe_names' key, the closing NUL included

# Bits of cfg_filters: (include, exclude) of each kind.
_PORTS = (1, 2)
_PIDS = (4, 8)
_EXES = (16, 32)
_CGROUPS = (64, 128)


@dataclass(frozen=True, slots=True)
class Filters:
    """What to trace; an empty include means everything, an exclude always wins.

    ports: either end's. pids: processes. exes: a path (with a slash) or a file name.
    cgroups: directories of cgroup v2, absolute or relative to where it is mounted.
    """

    ports: tuple[int, ...] = ()
    exclude_ports: tuple[int, ...] = ()
    pids: tuple[int, ...] = ()
    exclude_pids: tuple[int, ...] = ()
    exes: tuple[str, ...] = ()
    exclude_exes: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    exclude_cgroups: tuple[str, ...] = ()


@dataclass(slots=True)
class Entries:
    """What goes into the kernel: the mask of cfg_filters, and each map's keys."""

    mask: int = 0
    maps: dict[str, dict[bytes, int]] = field(default_factory=dict)

    def add(self, map_name: str, key: bytes, bits: tuple[int, int], way: int) -> None:
        self.mask |= bits[0] if way == INCLUDE else bits[1]
        keys = self.maps.setdefault(map_name, {})
        keys[key] = keys.get(key, 0) | way


def entries(filters: Filters, proc: Path = Path("/proc")) -> Entries:
    """Look up what the filters name. Raises UsageError where something doesn't exist."""
    result = Entries()
    for way, ports, pids, exes, cgroups in (
        (INCLUDE, filters.ports, filters.pids, filters.exes, filters.cgroups),
        (
            EXCLUDE,
            filters.exclude_ports,
            filters.exclude_pids,
            filters.exclude_exes,
            filters.exclude_cgroups,
        ),
    ):
        for port in ports:
            result.add("filter_ports", _port_key(port), _PORTS, way)
        for pid in pids:
            result.add("filter_pids", _pid_key(pid, proc), _PIDS, way)
        for exe in exes:
            if "/" in exe:
                result.add("filter_exe_files", _file_key(exe, proc), _EXES, way)
            else:
                result.add("filter_exe_names", _name_key(exe), _EXES, way)
        for cgroup in cgroups:
            result.add("filter_cgroups", _cgroup_key(cgroup, proc), _CGROUPS, way)
    return result


def _port_key(port: int) -> bytes:
    if not 1 <= port <= 65535:
        raise UsageError(f"port {port} does not exist", "ports are 1 to 65535")
    return struct.pack("=H", port)


def _pid_key(pid: int, proc: Path) -> bytes:
    try:
        status = (proc / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        raise UsageError(
            f"no process has pid {pid}", "name processes that start later by --exe or --cgroup"
        ) from None
    match = re.search(r"^Tgid:\s+(\d+)$", status, re.MULTILINE)
    if match and int(match[1]) != pid:
        raise UsageError(
            f"{pid} is a thread of process {match[1]}", f"trace the process: --pid {match[1]}"
        )
    return struct.pack("=I", pid)


def _name_key(name: str) -> bytes:
    raw = os.fsencode(name)
    if not raw:
        raise UsageError("an empty name of an executable", "give a file name or a path")
    if len(raw) >= _NAME_BYTES:
        raise UsageError(
            f"the file name {name} is longer than {_NAME_BYTES - 1} bytes",
            "give the path of the file instead",
        )
    return raw.ljust(_NAME_BYTES, b"\0")


def _file_key(path: str, proc: Path) -> bytes:
    """Return the file's inode and device as the kernel holds them, not as stat tells them.

    On btrfs, stat invents a device number for each subvolume; mountinfo has the true one.
    The kernel's own inode number stands in fdinfo since Linux commit 3845f256a8b5
    ("procfs/dmabuf: add inode number to /proc/*/fdinfo") (in v5.14).
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"cannot find the executable {path}: {error.strerror}",
            "give the path as this host sees it, /proc/PID/root/... for a file in a container, "
            "or only the file's name",
        ) from None
    try:
        found = os.fstat(fd)
        about = dict(
            line.split(":", 1)
            for line in (proc / "self" / "fdinfo" / str(fd)).read_text("ascii").splitlines()
        )
    finally:
        os.close(fd)
    if not os.path.isfile(path):
        raise UsageError(f"{path} is not a file", "name the program itself")
    inode = int(about.get("ino", found.st_ino))
    device = _mount_device(int(about.get("mnt_id", -1)), proc)
    major, minor = device or (os.major(found.st_dev), os.minor(found.st_dev))
    return struct.pack("=QII", inode, major << 20 | minor, 0)


def _mount_device(mount: int, proc: Path) -> tuple[int, int] | None:
    for line in (proc / "self" / "mountinfo").read_text("utf-8", "replace").splitlines():
        fields = line.split()
        if int(fields[0]) == mount:
            major, minor = fields[2].split(":")
            return int(major), int(minor)
    return None


def cgroup2_mounts(proc: Path = Path("/proc")) -> dict[str, int]:
    """Return where cgroup v2 is mounted, and its device number as stat tells it.

    Source: proc_pid_mountinfo(5). Spaces in paths are escaped as octal numbers.
    """
    mounts = {}
    for line in (proc / "self" / "mountinfo").read_text("utf-8", "replace").splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            path = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
            major, minor = fields[2].split(":")
            mounts[path] = os.makedev(int(major), int(minor))
    return mounts


def _cgroup_key(name: str, proc: Path) -> bytes:
    """Return the cgroup's id: on 64-bit machines its directory's inode number."""
    mounts = cgroup2_mounts(proc)
    if not mounts:
        raise UsageError(
            f"cannot filter by cgroup {name}: cgroup v2 is not mounted",
            "mount it: mount -t cgroup2 none /sys/fs/cgroup",
        )
    # A path from / may also be meant as /proc/PID/cgroup writes it, below the mount.
    for candidate in (Path(name), *(Path(mount) / name.lstrip("/") for mount in mounts)):
        if not candidate.is_absolute() or not candidate.is_dir():
            continue
        found = candidate.stat()
        if found.st_dev in mounts.values():
            return struct.pack("=Q", found.st_ino)
    raise UsageError(
        f"there is no directory of cgroup v2 named {name}",
        f"/proc/PID/cgroup names a process's cgroup, relative to {', '.join(mounts)}",
    )
