"""What a CPython process has loaded besides its interpreter, as far as linking needs it.

Modules in C are files that it maps, from their first import on, so what a process has not
loaded it may load later.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tracer.runtimes import pyqueue
from tracer.runtimes.proc import mappings

_TORNADO = "/tornado/speedups."
_CURL = re.compile(r"_?pycurl\..*so$")


@dataclass(frozen=True, slots=True)
class Modules:
    """tornado, curl: the package of that name, and pycurl, are there. queue: device and inode of
    the file that has queue.SimpleQueue, and a path that leads to it while the process lives;
    None where it isn't loaded.
    """

    tornado: bool = False
    curl: bool = False
    queue: tuple[tuple[int, int], Path] | None = None

    @property
    def mixes(self) -> bool:
        """Whether contexts tell nothing: tornado's CurlAsyncHTTPClient has libcurl send for all
        of its requests from one callback, in the context of whoever came last."""
        return self.tornado and self.curl


def loaded(pid: int) -> Modules:
    """Say what a process has loaded; nothing where it is gone, or may not be read."""
    tornado, curl, queue = False, False, None
    try:
        for mapping in mappings(pid):
            tornado |= _TORNADO in mapping.path
            curl |= bool(_CURL.match(mapping.name))
            if pyqueue.MODULE.match(mapping.name):
                path = mapping.file(pid)
                status = os.stat(path)
                queue = (status.st_dev, status.st_ino), path
    except OSError:
        return Modules()
    return Modules(tornado, curl, queue)
