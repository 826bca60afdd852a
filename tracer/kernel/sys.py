"""System calls that neither Python nor pylibbpf offers: bpf(2), by way of ctypes.

Attributes are packed by hand after `union bpf_attr`: the kernel takes any prefix
of it, so each call passes just the members it knows, zeros for the rest.
Source: include/uapi/linux/bpf.h,
https://www.kernel.org/doc/html/latest/userspace-api/ebpf/syscall.html
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280}

_MAP_CREATE = 0
_MAP_LOOKUP_ELEM = 1
_MAP_UPDATE_ELEM = 2
_PROG_LOAD = 5
_PROG_GET_NEXT_ID = 11
_MAP_GET_NEXT_ID = 12
_OBJ_GET_INFO_BY_FD = 15
_MAP_LOOKUP_BATCH = 24
_LINK_CREATE = 28
_LINK_GET_NEXT_ID = 31
_ENABLE_STATS = 32

MAP_TYPE_ARRAY = 2
MAP_TYPE_RINGBUF = 27
PROG_TYPE_TRACEPOINT = 5
_PROG_TYPE_TRACING = 26
_TRACE_FENTRY = 24  # enum bpf_attach_type
_TRACE_UPROBE_MULTI = 48  # enum bpf_attach_type
_UPROBE_MULTI_RETURN = 1

# What the kernel answers that can't look up in batches, or not in such a map: 524 is ENOTSUPP.
_NO_BATCH = (errno.EINVAL, errno.EOPNOTSUPP, 524)

_MAP_TYPES = {
    1: "hash",
    2: "array",
    3: "prog_array",
    4: "perf_event_array",
    5: "percpu_hash",
    6: "percpu_array",
    7: "stack_trace",
    9: "lru_hash",
    10: "lru_percpu_hash",
    11: "lpm_trie",
    12: "array_of_maps",
    13: "hash_of_maps",
    22: "queue",
    23: "stack",
    24: "sk_storage",
    27: "ringbuf",
    29: "task_storage",
    31: "user_ringbuf",
    33: "arena",
}
_PROGRAM_TYPES = {
    2: "kprobe",
    5: "tracepoint",
    7: "perf_event",
    17: "raw_tracepoint",
    26: "tracing",
    29: "lsm",
    31: "syscall",
}

_INFO_BYTES = 224  # struct bpf_prog_info up to verified_insns
_NAME_BYTES = 16  # BPF_OBJ_NAME_LEN, the NUL included


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel tells of a loaded program; counters stay 0 while statistics are off."""

    id: int
    kind: str
    name: str  # at most 15 characters
    run_ns: int
    run_count: int
    missed: int  # runs left out, for the program was running on that CPU already


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> int:
    """Call bpf(2). Returns its result; raises OSError with the kernel's errno."""
    try:
        number = _NUMBERS[platform.machine()]
    except KeyError:
        raise OSError(38, f"bpf(2) has no known number on {platform.machine()}") from None
    size = ctypes.c_uint(len(attributes))
    result = int(_libc().syscall(number, command, ctypes.byref(attributes), size))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _packed(layout: str, *values: object) -> ctypes.Array[ctypes.c_char]:
    raw = struct.pack(layout, *values)
    return ctypes.create_string_buffer(raw, len(raw))


def map_create(kind: int, key_bytes: int, value_bytes: int, max_entries: int) -> int:
    """Create a nameless map. Returns its fd, close-on-exec; raises OSError."""
    return _bpf(_MAP_CREATE, _packed("=IIII", kind, key_bytes, value_bytes, max_entries))


def map_lookup(fd: int, key: bytes, value_bytes: int) -> bytes:
    """Return the value of `key`; raises OSError (ENOENT where there is none).

    value_bytes: of a per-CPU map, 8-byte-rounded value size times possible CPUs:
    the kernel writes that many bytes whatever room there is.
    """
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value = ctypes.create_string_buffer(value_bytes)
    attributes = _packed("=I4xQQQ", fd, ctypes.addressof(key_buffer), ctypes.addressof(value), 0)
    _bpf(_MAP_LOOKUP_ELEM, attributes)
    return value.raw


def map_update(fd: int, key: bytes, value: bytes) -> None:
    """Set `key` to `value`; raises OSError (E2BIG where the map is full)."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_buffer = ctypes.create_string_buffer(value, len(value))
    attributes = _packed(
        "=I4xQQQ", fd, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer), 0
    )
    _bpf(_MAP_UPDATE_ELEM, attributes)


def percpu_sums(fd: int, entries: int, cpus: int) -> list[int]:
    """Return the sums over CPUs of the u64s of a per-CPU array of so many; raises OSError.

    By one call, for each costs some 15 us in Python; one by one before Linux 5.13.
    """
    try:
        raw = _lookup_batch(fd, entries, 8 * cpus)
    except OSError as error:
        if error.errno not in _NO_BATCH:
            raise
        keys = (struct.pack("=I", index) for index in range(entries))
        raw = b"".join(map_lookup(fd, key, 8 * cpus) for key in keys)
    numbers = struct.unpack(f"={entries * cpus}Q", raw)
    return [sum(numbers[at : at + cpus]) for at in range(0, len(numbers), cpus)]


def _lookup_batch(fd: int, entries: int, value_bytes: int) -> bytes:
    """Return the values of the first `entries` of an array, in order; raises OSError."""
    keys = ctypes.create_string_buffer(4 * entries)
    values = ctypes.create_string_buffer(value_bytes * entries)
    last = ctypes.create_string_buffer(4)
    addresses = [ctypes.addressof(buffer) for buffer in (last, keys, values)]
    attributes = _packed("=QQQQIIQQ", 0, *addresses, entries, fd, 0, 0)
    _bpf(_MAP_LOOKUP_BATCH, attributes)
    return values.raw


def possible_cpus(path: Path = Path("/sys/devices/system/cpu/possible")) -> int:
    """Return how many CPUs the kernel reserves room for, from a list like "0-3,8"."""
    text = path.read_text(encoding="ascii").strip()
    ranges = [part.split("-") for part in text.split(",")]
    return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)


def program_verdict(instructions: bytes, kind: int = PROG_TYPE_TRACEPOINT) -> str:
    """Ask the verifier about a program and throw it away.

    Returns "" where it was accepted, else the verifier's log; raises OSError where
    the kernel refused before looking at it (no rights, no BPF).
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    log = ctypes.create_string_buffer(65536)
    license_text = ctypes.create_string_buffer(b"GPL")
    attributes = _packed(
        "=IIQQIIQII",
        kind,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(license_text),
        1,
        len(log),
        ctypes.addressof(log),
        0,
        0,
    )
    try:
        fd = _bpf(_PROG_LOAD, attributes)
    except OSError:
        text = log.value.decode("utf-8", "replace")
        if not text:
            raise
        return text
    os.close(fd)
    return ""


def fentry_refusal() -> int:
    """Offer the kernel an fentry program that doesn't say where it is to go; returns the errno.

    That is EINVAL where such programs may be loaded.
    """
    code = ctypes.create_string_buffer(bytes.fromhex("b7000000000000009500000000000000"), 16)
    license_text = ctypes.create_string_buffer(b"GPL")
    attributes = _packed(
        "=IIQQ44xI",
        _PROG_TYPE_TRACING,
        2,
        ctypes.addressof(code),
        ctypes.addressof(license_text),
        _TRACE_FENTRY,
    )
    try:
        os.close(_bpf(_PROG_LOAD, attributes))
    except OSError as error:
        return error.errno or 0
    return 0


def program_info(fd: int) -> ProgramInfo:
    """Describe the program behind `fd`; raises OSError (EINVAL where it is none)."""
    info = ctypes.create_string_buffer(_INFO_BYTES)
    _bpf(_OBJ_GET_INFO_BY_FD, _packed("=IIQ", fd, len(info), ctypes.addressof(info)))
    kind, number = struct.unpack_from("=II", info, 0)
    name = info.raw[64 : 64 + _NAME_BYTES].split(b"\0")[0].decode("ascii", "replace")
    run_ns, run_count, missed = struct.unpack_from("=QQQ", info, 192)
    kind_name = _PROGRAM_TYPES.get(kind, f"type {kind}")
    return ProgramInfo(number, kind_name, name, run_ns, run_count, missed)


def map_type_name(kind: int) -> str:
    """Return the kernel's name of a map type, as bpftool writes it."""
    return _MAP_TYPES.get(kind, f"type {kind}")


def own_fds(kind: str) -> Iterator[int]:
    """Yield this process's fds of one kind, "bpf-prog" or "bpf_link", whoever opened them."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:  # the fd of the listing itself
            continue
        if target == f"anon_inode:{kind}":
            yield int(entry)


def ids(kind: str) -> set[int]:
    """Return the ids of all programs, maps or links of this host, whoever loaded them.

    kind: "prog", "map" or "link". Raises OSError (EPERM without CAP_SYS_ADMIN).
    """
    command = {"prog": _PROG_GET_NEXT_ID, "map": _MAP_GET_NEXT_ID, "link": _LINK_GET_NEXT_ID}[kind]
    found: set[int] = set()
    attributes = _packed("=III", 0, 0, 0)
    while True:
        try:
            _bpf(command, attributes)
        except FileNotFoundError:
            return found
        (last,) = struct.unpack_from("=I", attributes.raw, 4)
        found.add(last)
        struct.pack_into("=I", attributes, 0, last)


def read_process(pid: int, address: int, size: int) -> bytes:
    """Read another process's memory: at most `size` bytes, fewer where the rest isn't mapped.

    Raises OSError: EPERM without CAP_SYS_PTRACE for another user's, ESRCH, EFAULT.
    """
    if pid <= 0 or not 0 < address < 1 << 63 or size <= 0:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    buffer = ctypes.create_string_buffer(size)
    own = struct.pack("=QQ", ctypes.addressof(buffer), size)
    theirs = struct.pack("=QQ", address, size)
    got = _libc().process_vm_readv(pid, own, ctypes.c_ulong(1), theirs, ctypes.c_ulong(1), 0)
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw[:got]


def uprobe_link(program_fd: int, path: bytes, offset: int, at_return: bool, pid: int) -> int:
    """Run a program at a place in a file, of one process or (-1) of all; returns the link's fd.

    Raises OSError: EINVAL where the program's section isn't `uprobe.multi`, or the kernel knows
    no such links.
    """
    name = ctypes.create_string_buffer(path)
    place = ctypes.create_string_buffer(struct.pack("=Q", offset), 8)
    attributes = _packed(
        "=IIIIQQQQIII4x",
        program_fd,
        0,
        _TRACE_UPROBE_MULTI,
        0,
        ctypes.addressof(name),
        ctypes.addressof(place),
        0,
        0,
        1,
        _UPROBE_MULTI_RETURN if at_return else 0,
        max(pid, 0),
    )
    return _bpf(_LINK_CREATE, attributes)


def enable_stats() -> int:
    """Have the kernel time every BPF program, at some 20 ns a run, while the fd is open.

    Returns the fd; raises OSError (EPERM without CAP_SYS_ADMIN).
    """
    return _bpf(_ENABLE_STATS, _packed("=I", 0))
