"""What this process may do, made as little as it needs, for good.

Linux keeps capabilities for each thread: whoever calls `drop` must be the only one, so it
comes before whatever starts threads when it is imported (numpy, gRPC).
Source: https://man7.org/linux/man-pages/man7/capabilities.7.html,
https://man7.org/linux/man-pages/man2/prctl.2.html.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import KernelError

# include/uapi/linux/capability.h: names in the order of their numbers, from 0.
NAMES = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID "
    "CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST "
    "CAP_NET_ADMIN CAP_NET_RAW CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO "
    "CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE "
    "CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE "
    "CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM "
    "CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE"
).split()
NUMBERS = {name: number for number, name in enumerate(NAMES)}
# What tracing takes. CAP_SYS_PTRACE: /proc of other users' processes, and their memory.
TRACING = ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE")

_VERSION_3 = 0x20080522
_SET_DUMPABLE, _SET_KEEPCAPS, _CAPBSET_DROP = 4, 8, 24
_SET_SECUREBITS, _SET_NO_NEW_PRIVS, _CAP_AMBIENT, _AMBIENT_CLEAR = 28, 38, 47, 4
# NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, each locked; KEEP_CAPS locked as it is: off.
_SECUREBITS = 0b11_10_11_11


@dataclass(frozen=True, slots=True)
class Account:
    """Whom to become."""

    name: str
    uid: int
    gid: int


def held(status: Path = Path("/proc/self/status")) -> frozenset[str]:
    """Return the names of the capabilities this thread may use, or take up."""
    for line in status.read_text(encoding="ascii").splitlines():
        if line.startswith("CapPrm:"):
            return _names(int(line.split()[1], 16))
    return frozenset()


def drop(keep: Collection[str], account: Account | None = None) -> None:
    """Give up every capability but those of `keep` that are held, and the way to others.

    Also: become `account` with no group but its own, never gain by executing anything
    (no_new_privs, securebits, bounding and ambient set), and leave nothing of this
    process's memory in a core, since what applications sent passes through it. The limit of
    locked memory goes up before, where it may: kernels before 5.11 charge maps to it.

    Irrevocable. Raises KernelError where a step is refused, some having been taken.
    """
    before = held()
    kept = before & frozenset(keep)
    _without_core()
    if "CAP_SYS_RESOURCE" in before:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
    try:
        if account:
            _prctl(_SET_KEEPCAPS, 1)
            os.setgroups([])
            os.setresgid(account.gid, account.gid, account.gid)
            os.setresuid(account.uid, account.uid, account.uid)
            _capset(before)
            _prctl(_SET_KEEPCAPS, 0)
        if "CAP_SETPCAP" in before:
            last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
            for number in range(last + 1):
                if number >= len(NAMES) or NAMES[number] not in kept:
                    _prctl(_CAPBSET_DROP, number)
            _prctl(_SET_SECUREBITS, _SECUREBITS)
        _prctl(_CAP_AMBIENT, _AMBIENT_CLEAR)
        _prctl(_SET_NO_NEW_PRIVS, 1)
        _capset(kept)
    except OSError as error:
        raise KernelError(
            f"cannot give up privileges: {error.strerror}",
            f"start as {account.name} instead" if account else "",
        ) from None


def _without_core() -> None:
    """Keep memory out of cores: the kernel's, and those a debugger writes of a live process."""
    with contextlib.suppress(OSError):  # /proc may be missing or read-only
        Path("/proc/self/coredump_filter").write_text("0", encoding="ascii")
    _prctl(_SET_DUMPABLE, 0)


def _names(mask: int) -> frozenset[str]:
    return frozenset(name for number, name in enumerate(NAMES) if mask >> number & 1)


def _capset(names: Collection[str]) -> None:
    """Make these the permitted and the effective set, and the inheritable one empty."""
    mask = sum(1 << NUMBERS[name] for name in names)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0))
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, 0, high, high, 0))
    _checked(_libc().capset(header, data))


def _prctl(option: int, value: int) -> None:
    unused = ctypes.c_ulong(0)
    _checked(_libc().prctl(option, ctypes.c_ulong(value), unused, unused, unused))


def _checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
