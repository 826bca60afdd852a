"""One tracer per control socket: a lock beside it that dies with its process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from tracer.errors import AlreadyRunningError, WirespanError

DEFAULT_SOCKET = "/run/wirespan/wirespan.sock"
SOCKET_VARIABLE = "WIRESPAN_SOCKET"
# sockaddr_un.sun_path, unix(7), less the NUL at its end.
MAX_SOCKET_PATH = 107


class InstanceLock:
    """An exclusive lock on `SOCKET.lock`, which holds the owner's process id.

    The lock belongs to the open file: the kernel drops it however the process ends, so a
    socket found while holding it is stale, and `acquire` removes it.
    """

    def __init__(self, socket_path: str) -> None:
        self.socket_path = Path(socket_path)
        self._lock_path = Path(socket_path + ".lock")
        self._fd = -1

    def acquire(self) -> None:
        """Create the directory (mode 0700) where missing, lock, and remove a stale socket.

        Raises AlreadyRunningError where another process holds the lock, WirespanError
        where the directory or the files can't be made.
        """
        try:
            self.socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise WirespanError(
                f"cannot make the control socket {self.socket_path}: {error.strerror}",
                f"run as root, or name another place by --control-socket or {SOCKET_VARIABLE}",
            ) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            self._fd = -1
            raise AlreadyRunningError(
                f"cannot start: another wirespan is running (pid {owner})",
                "stop it first, or give this one its own --control-socket",
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        self._remove_stale()

    def _remove_stale(self) -> None:
        try:
            mode = self.socket_path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            self.release()
            raise WirespanError(
                f"cannot make the control socket {self.socket_path}: something else has that name",
                "name another place by --control-socket",
            )
        self.socket_path.unlink()

    def release(self) -> None:
        """Remove the socket and unlock.

        The lock file stays, empty: unlinking it would let two processes each lock a file
        of that name.
        """
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(self.socket_path.lstat().st_mode):
                self.socket_path.unlink()
        os.ftruncate(self._fd, 0)
        os.close(self._fd)
        self._fd = -1
