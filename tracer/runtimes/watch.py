"""Which runtime a process runs: each file read once, each process looked at once.

Looking takes a process's list of mapped files and, for files never seen, their symbols:
some 0.1 ms a process and up to 50 ms for a large new file, so callers look from a thread
that may wait, not from the loop that empties the ring.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tracer.runtimes import cpython, golang, hotspot, node, pyqueue
from tracer.runtimes.cpython import CPython
from tracer.runtimes.elf import Elf, ElfError
from tracer.runtimes.golang import Go
from tracer.runtimes.hotspot import HotSpot
from tracer.runtimes.node import Node
from tracer.runtimes.proc import Mapping, Memory, mappings, opened

# They are looked at again for some minutes only, and each takes 1.6 KB where it runs CPython.
MAX_PROCESSES = 1 << 10
MAX_FILES = 1 << 12

# Files besides the executable that can hold a runtime. The executable itself may be
# the dynamic loader, so interpreters count by name too.
_LIBRARY = re.compile(
    r"(lib)?python3[.\d]*[a-z]*(\.so[.\d]*)?$|libnode\.so[.\d]*$|node(js)?$|libjvm\.so$"
)
# A library that an executable asks for -> the one with the runtime, which it then loads.
_LOADERS = {"libjli.so": "libjvm.so"}

FileId = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Needs:
    """An executable whose runtime is in a library, which has yet to be mapped."""

    library: str


_Image = cpython.Image | hotspot.Image | Go | Node | Needs | str | None


@dataclass(frozen=True, slots=True)
class Found:
    """What runs in a process.

    runtime: None where no known runtime is, or where it can't be read; reason then says
    why in words, "" for a plain program. file: (device, inode) of what holds the runtime.
    path: leads to that file while the process lives (for uprobes). first: no process with
    this file was reported before, so its uprobes are to be attached now.
    ready: False where the runtime has not begun yet, or is not even mapped: look again later. If
    it never is, what has no reason is a plain program all the same.
    """

    pid: int
    runtime: CPython | Go | HotSpot | Node | None
    reason: str
    file: FileId
    path: Path
    first: bool
    ready: bool = True


class Runtimes:
    """Processes and their runtimes. Thread-safe; no method raises for a vanished process."""

    def __init__(
        self, found: Callable[[Found], None] | None = None, proc: Path = Path("/proc")
    ) -> None:
        """found: told of every process with a runtime, or with one that can't be read.

        It is called in the thread that called look(), with no lock held.
        """
        self._sink = found
        self._proc = proc
        self._lock = threading.Lock()
        self._processes: OrderedDict[int, Found] = OrderedDict()
        self._images: OrderedDict[tuple[int, int, int, int], _Image] = OrderedDict()
        self._reported: set[FileId] = set()

    def look(self, pid: int, *, again: bool = False) -> Found | None:
        """Say what runs in a process; None where it is gone, or may not be read.

        again: forget what was known, as after exec. What was not ready is always looked
        at anew.
        """
        if not again:
            with self._lock:
                known = self._processes.get(pid)
                if known is not None and known.ready:
                    self._processes.move_to_end(pid)
                    return known
        try:
            found = self._classify(pid)
        except (OSError, ElfError):
            return None
        with self._lock:
            if found.ready and found.runtime is not None and found.file not in self._reported:
                self._reported.add(found.file)
            else:
                found = _not_first(found)
            self._processes[pid] = _not_first(found)  # by the next time it isn't
            self._processes.move_to_end(pid)
            while len(self._processes) > MAX_PROCESSES:
                self._processes.popitem(last=False)
        if self._sink is not None and (found.runtime is not None or (found.ready and found.reason)):
            self._sink(found)
        return found

    def gone(self, file: FileId) -> None:
        """Have the next process with a file reported as the first: its uprobes are gone."""
        with self._lock:
            self._reported.discard(file)
            for key in [key for key in self._images if key[:2] == file]:
                del self._images[key]

    def in_use(self, files: Set[FileId]) -> set[FileId]:
        """Return those of `files` that some process has mapped, and perhaps others.

        Raises OSError where that can't be told.
        """
        used: set[FileId] = set()
        for name in os.listdir(self._proc):
            if not name.isdigit():
                continue
            try:
                mapped = list(self._wanted(int(name), modules=True))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # ended, a thread of the kernel's, or never looked at
            for mapping in mapped:
                # The number says it where the file was removed and can't be reached any more.
                used |= {file for file in files if file[1] == mapping.inode}
                with suppress(OSError):
                    status = os.stat(mapping.file(int(name), self._proc))
                    used.add((status.st_dev, status.st_ino))
        return used

    def _wanted(self, pid: int, modules: bool = False) -> Iterator[Mapping]:
        """Give the files a process maps that may hold a runtime; raises OSError.

        modules: also those of a runtime that uprobes may be on.
        """
        executable = os.readlink(self._proc / str(pid) / "exe")
        for mapping in mappings(pid, self._proc):
            if (
                mapping.path == executable
                or _LIBRARY.match(mapping.name)
                or (modules and pyqueue.MODULE.match(mapping.name))
            ):
                yield mapping

    def _classify(self, pid: int) -> Found:
        result: Found | None = None
        for mapping in self._wanted(pid):
            path = mapping.file(pid, self._proc)
            try:
                status = os.stat(path)
                key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
                image = self._image(key, path, mapping)
            except PermissionError:
                if result is None or not result.ready:
                    result = _unreadable(pid, mapping, path)
                continue
            except (OSError, ElfError):
                continue
            file = (status.st_dev, status.st_ino)
            found = self._process(pid, mapping, path, file, image)
            if isinstance(image, Needs):
                result = result or found  # the library, where it is mapped, tells more
                continue
            if found.runtime is not None or not found.ready:
                return found
            if result is None or not result.ready or found.reason:
                result = found
        if result is None:
            raise OSError(2, "no executable to read")
        return result

    def _image(self, key: tuple[int, int, int, int], path: Path, mapping: Mapping) -> _Image:
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
                return self._images[key]
        with opened(path) as elf:
            image = _read(elf, mapping)
        with self._lock:
            self._images[key] = image
            while len(self._images) > MAX_FILES:
                self._images.popitem(last=False)
        return image

    def _process(
        self, pid: int, mapping: Mapping, path: Path, file: FileId, image: _Image
    ) -> Found:
        if isinstance(image, Needs):
            reason = f"{image.library} is being loaded"
            return Found(pid, None, reason, file, path, True, ready=False)
        if isinstance(image, hotspot.Image):
            return self._hotspot(pid, mapping, path, file, image)
        if not isinstance(image, cpython.Image):
            runtime = image if isinstance(image, Go | Node) else None
            return Found(pid, runtime, image if isinstance(image, str) else "", file, path, True)
        try:
            base = _base(path, mapping)
            return Found(pid, cpython.inspect(image, base, Memory(pid)), "", file, path, True)
        except cpython.NotReady:
            return Found(pid, None, "the interpreter is starting", file, path, True, ready=False)
        except cpython.Unfit as error:
            return Found(pid, None, str(error), file, path, True)

    def _hotspot(
        self, pid: int, mapping: Mapping, path: Path, file: FileId, image: hotspot.Image
    ) -> Found:
        """Describe a JVM. One whose virtual threads can't be told apart is a plain program."""
        runtime, ready = None, True
        try:
            threads = len(os.listdir(self._proc / str(pid) / "task"))
            runtime = hotspot.inspect(image, _base(path, mapping), Memory(pid), threads)
        except hotspot.NotReady:
            ready = False
        except PermissionError:
            pass
        return Found(pid, runtime, "", file, path, True, ready)


def _base(path: Path, mapping: Mapping) -> int:
    """Return what to add to addresses of a file. Raises OSError, ElfError."""
    with opened(path) as elf:
        return elf.base(mapping.start, mapping.offset) if elf.is_pie else 0


def _read(elf: Elf, mapping: Mapping) -> _Image:
    """Return what a file holds: a runtime, why one can't be read, or None."""
    try:
        python = cpython.image(elf, mapping.name)
        if python is not None:
            return python
        # Node before Go: looking for Go's build information is the dearer of the two.
        return (
            node.image(elf, mapping.name)
            or hotspot.image(elf, mapping.name)
            or golang.image(elf)
            or _needs(elf)
        )
    except golang.Unfit as error:
        return str(error)
    except ElfError as error:
        return f"{mapping.name}: {error}"


def _needs(elf: Elf) -> Needs | None:
    names = (_LOADERS.get(name, name) for name in elf.needed())
    return next((Needs(name) for name in names if _LIBRARY.match(name)), None)


def _unreadable(pid: int, mapping: Mapping, path: Path) -> Found:
    """Say that this user may not read a file, whose own identity is then not known either."""
    reason = "this user may not (--keep-capability CAP_DAC_READ_SEARCH)"
    return Found(pid, None, reason, (-1, hash(mapping.path)), path, False)


def _not_first(found: Found) -> Found:
    return Found(found.pid, found.runtime, found.reason, found.file, found.path, False, found.ready)
