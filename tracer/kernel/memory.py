"""How this process's memory is handed out and given back: glibc's malloc, told what suits numpy.

Columns of some 100 kB come and go with each batch. As glibc goes about it, each thread gets
an arena of its own, which keeps what that thread needed at its busiest, and large blocks are
mapped anew each time, page fault by page fault. One arena that keeps a few MB at hand is both
smaller and quicker. Elsewhere than on glibc nothing here does anything.

Source: mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# What may stay free at the end of the heap, and the smallest block with a mapping of its own.
KEPT_BYTES, MAPPED_BYTES = 4 << 20, 32 << 20

# Read by numpy when it is imported. A huge page is resident as a whole once a byte of it is
# used, and tables here are sparse. Its linear algebra is not used, and needs no threads.
ENVIRONMENT = {"NUMPY_MADVISE_HUGEPAGE": "0", "OPENBLAS_NUM_THREADS": "1"}


def keep_small() -> None:
    """Set malloc and numpy up; called before numpy is imported and before there are threads."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def give_back() -> None:
    """Give free memory back to the kernel; takes some ms."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
