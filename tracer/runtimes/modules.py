"""What a CPython process has loaded besides its interpreter, as far as linking needs it.

Modules in C are files that it maps, from their first import on, so what a process has not
loaded it may load later.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tracer.runtimes import pyqueue
from tracer.runtimes.proc import mapping

_TORNADO = b"/tornado/speedups."
_CURL = (b"/pycurl.", b"/_pycurl.")
_QUEUE = b"/_queue."
# Its place is another one after each exec.
_IMAGE = b"[vdso]"


@dataclass(frozen=True, slots=True)
class Modules:
    """tornado, curl: the package of that name, and pycurl, are there. queue: device and inode of
    the file that has queue.SimpleQueue, and a path that leads to it while the process lives;
    None where it isn't loaded. image: tells what the process runs from what it may exec.
    """

    tornado: bool = False
    curl: bool = False
    queue: tuple[tuple[int, int], Path] | None = None
    image: bytes = b""

    @property
    def mixes(self) -> bool:
        """Whether contexts tell nothing: tornado's CurlAsyncHTTPClient has libcurl send for all
        of its requests from one callback, in the context of whoever came last."""
        return self.tornado and self.curl


def loaded(pid: int) -> Modules:
    """Say what a process has loaded; nothing where it is gone, or may not be read."""
    queue = None
    try:
        # Not line by line: this is done often, and there are hundreds.
        text = Path(f"/proc/{pid}/maps").read_bytes()
        line = _line(text, _QUEUE)
        if line:
            where = mapping(os.fsdecode(line))
            if pyqueue.MODULE.match(where.name):
                path = where.file(pid)
                status = os.stat(path)
                queue = (status.st_dev, status.st_ino), path
    except OSError:
        return Modules()
    curl = any(word in text for word in _CURL)
    return Modules(_TORNADO in text, curl, queue, _line(text, _IMAGE))


def _line(text: bytes, word: bytes) -> bytes:
    """Return the first line with a word in it, or nothing."""
    at = text.find(word)
    return text[text.rfind(b"\n", 0, at) + 1 : text.find(b"\n", at)] if at >= 0 else b""
