"""The kernel's connections, exchanges and parsers as a host library, called through ctypes.

ebpf/replay.h is its interface. The library keeps its state in itself: one Engine lives in a
process at a time, and one thread uses it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer.errors import WirespanError
from tracer.installed import OBJECT
from tracer.kernel.layout import Layout
from tracer.losses import KERNEL

LIBRARY = OBJECT.with_name("replay.so")

# enum replay_end.
FIN_SENT, FIN_RECEIVED, RESET, CLOSED = 1, 2, 3, 4

Records = NDArray[np.void]


class _Conn(ctypes.Structure):
    """struct replay_conn."""

    _fields_ = (
        ("id", ctypes.c_uint64),
        ("tx_seq", ctypes.c_uint32),
        ("rx_seq", ctypes.c_uint32),
        ("family", ctypes.c_uint16),
        ("local_port", ctypes.c_uint16),
        ("remote_port", ctypes.c_uint16),
        ("fresh", ctypes.c_uint8),
        ("pad", ctypes.c_uint8),
        ("local_addr", ctypes.c_uint8 * 16),
        ("remote_addr", ctypes.c_uint8 * 16),
    )


class Engine:
    """The library, reset.

    layout: of the eBPF object that was built with it, which tells the record.
    Raises WirespanError where the library is missing.
    """

    def __init__(self, layout: Layout, path: Path = LIBRARY) -> None:
        try:
            library: Any = ctypes.CDLL(str(path))
        except OSError as error:
            raise WirespanError(
                f"cannot load the parsers: {error}", "in a clone, build them: make build"
            ) from None
        u32, u64, void = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
        for name, result, arguments in (
            ("replay_reset", None, ()),
            ("replay_open", ctypes.c_int, (ctypes.POINTER(_Conn),)),
            ("replay_bytes", None, (u64, u32, u32, u64, ctypes.c_char_p, u64)),
            ("replay_unseen", None, (u64, u32, u32, u64, u64)),
            ("replay_end", None, (u64, u32, u64)),
            ("replay_take", u32, (void, u32)),
            ("replay_loss", u64, (u32,)),
            ("replay_count", u64, (u32,)),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._library = library
        self._layout = layout
        self.bytes = library.replay_bytes
        self.unseen = library.replay_unseen
        self.end = library.replay_end
        library.replay_reset()

    def open(
        self,
        number: int,
        family: int,
        local: tuple[bytes, int],
        remote: tuple[bytes, int],
        seqs: tuple[int, int],
        fresh: bool,
    ) -> bool:
        """Begin a connection; returns whether there was room.

        local, remote: address of 4 or 16 bytes, port. seqs: sequence numbers of the first
        byte that local sends, and of the first that it receives.
        """
        conn = _Conn(number, *seqs, family, local[1], remote[1], fresh)
        conn.local_addr[: len(local[0])] = list(local[0])
        conn.remote_addr[: len(remote[0])] = list(remote[0])
        return bool(self._library.replay_open(ctypes.byref(conn)) == 0)

    def take(self, room: Records) -> int:
        """Move records, oldest first, into `room`, which must be contiguous; returns how many."""
        return int(self._library.replay_take(room.ctypes.data, len(room)))

    def losses(self) -> dict[str, int]:
        """Count what was lost since the start, by the short names of tracer.losses.KERNEL."""
        return {
            KERNEL[name].name: int(self._library.replay_loss(number))
            for name, number in self._layout.members("flow_loss", "FLOW_LOSS_").items()
        }

    def room(self, count: int) -> Records:
        """Return place for `count` records."""
        return np.zeros(count, self._layout.record)
