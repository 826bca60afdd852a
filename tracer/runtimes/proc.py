"""One process as /proc shows it: what it maps, and its memory (read only)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tracer.kernel import sys
from tracer.runtimes.elf import Elf


@dataclass(frozen=True, slots=True)
class Mapping:
    """A file mapped into a process: the lowest of its lines in /proc/PID/maps."""

    start: int
    end: int
    offset: int
    path: str  # as the process sees it
    inode: int = 0

    @property
    def name(self) -> str:
        """Return the file's own name, without what the kernel adds to a removed one's."""
        return self.path.removesuffix(" (deleted)").rpartition("/")[2]

    def file(self, pid: int, root: Path = Path("/proc")) -> Path:
        """Return a path to the file that works here, also into containers, while pid lives."""
        exact = root / str(pid) / "map_files" / f"{self.start:x}-{self.end:x}"
        # Needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
        if os.access(exact, os.R_OK, effective_ids=True):
            return exact
        named = root / str(pid) / "root" / self.path.lstrip("/")
        # Through this link the directories on the way are not asked for leave.
        executable = root / str(pid) / "exe"
        with suppress(OSError):
            readable = os.access(named, os.R_OK, effective_ids=True)
            if not readable and os.readlink(executable) == self.path:
                return executable
        return named


def mappings(pid: int, root: Path = Path("/proc")) -> list[Mapping]:
    """Return the files a process maps, lowest address first. Raises OSError: gone, or no right."""
    seen: dict[tuple[str, str], Mapping] = {}
    text = (root / str(pid) / "maps").read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.splitlines():
        parts = line.split(None, 5)
        if len(parts) == 6 and parts[5].startswith("/"):
            seen.setdefault((parts[3], parts[4]), _mapping(parts))
    return list(seen.values())


def mapping(line: str) -> Mapping:
    """Return the mapping of a file that a line of /proc/PID/maps tells of."""
    return _mapping(line.split(None, 5))


def _mapping(parts: list[str]) -> Mapping:
    start, _, end = parts[0].partition("-")
    return Mapping(int(start, 16), int(end, 16), int(parts[2], 16), parts[5], int(parts[4]))


class Memory:
    """A process's memory. Every reading method raises OSError where nothing is mapped.

    Not by /proc/PID/mem: that file is its owner's alone, whatever CAP_SYS_PTRACE allows.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def read(self, address: int, size: int) -> bytes:
        """Return exactly `size` bytes."""
        if not 0 < address < 1 << 63:
            raise OSError(14, f"no memory at {address:#x}")
        raw = sys.read_process(self._pid, address, size)
        if len(raw) != size:
            raise OSError(14, f"no memory at {address:#x}")
        return raw

    def u64(self, address: int) -> int:
        """Return a 64-bit word, a pointer for one."""
        return int(struct.unpack("<Q", self.read(address, 8))[0])

    def u32(self, address: int) -> int:
        """Return a 32-bit word."""
        return int(struct.unpack("<I", self.read(address, 4))[0])

    def text(self, address: int, most: int = 64) -> str:
        """Return a C string of at most `most` bytes that lie in one piece."""
        return self.read(address, most).split(b"\0")[0].decode("utf-8", "replace")


class File:
    """A file's bytes by slices, never mapped: one cut short meanwhile only seems shorter."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __len__(self) -> int:
        return os.fstat(self._fd).st_size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _step = part.indices(1 << 62)
        return os.pread(self._fd, max(0, stop - start), start)


@contextmanager
def opened(path: Path | str) -> Iterator[Elf]:
    """Open a file and read it as ELF. Raises OSError, ElfError."""
    with open(path, "rb", buffering=0) as file:
        yield Elf(File(file.fileno()))
