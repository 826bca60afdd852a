"""What `wirespan run` does while it still may do everything, before it gives that up.

No import from here may start a thread: see tracer/kernel/privileges.py.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from tracer.errors import KernelError, UsageError, WirespanError
from tracer.kernel import privileges, sys
from tracer.kernel.privileges import Account
from tracer.options import RunOptions


@dataclass(frozen=True, slots=True)
class Taken:
    """What could not be had later on.

    stats_fd: keeps the kernel timing programs while it is open; None where not asked for.
    """

    stats_fd: int | None = None


def begin(options: RunOptions) -> Taken:
    """Take what needs rights that go now, and drop them. Raises WirespanError."""
    account = _account(options.user) if options.user else None
    stats_fd = _enable_stats() if options.program_stats else None
    if account:
        for path in (Path(options.socket).absolute().parent, options.store.directory):
            if path:
                _directory(Path(path), account)
    for name in options.keep:
        if name not in privileges.held():
            os.write(2, f"wirespan: {name} can't be kept: it is not held\n".encode())
    privileges.drop((*privileges.TRACING, *options.keep), account)
    # What is imported from now on is read as that user.
    for file in (os.__file__, __file__):
        if not os.access(file, os.R_OK, effective_ids=True):
            raise WirespanError(
                f"{options.user or 'this user'} cannot read {file}",
                "install wirespan, and the Python it runs with, where every user can read it",
            )
    return Taken(stats_fd)


def _account(name: str) -> Account:
    if os.geteuid() != 0:
        raise UsageError(
            "--user: only root can become somebody else",
            "start as that user, with CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE",
        )
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise UsageError(f"--user: there is no user {name!r}", f"useradd --system {name}") from None
    return Account(name, found.pw_uid, found.pw_gid)


def _enable_stats() -> int:
    """Have the kernel count and time programs until the fd is closed; needs CAP_SYS_ADMIN."""
    try:
        return sys.enable_stats()
    except OSError as error:
        raise KernelError(
            f"cannot time eBPF programs: {error.strerror}",
            "run as root, or set kernel.bpf_stats_enabled=1 by sysctl",
        ) from None


def _directory(path: Path, account: Account) -> None:
    """Make a directory that is the account's, where there is none.

    One that is there stays as it is: whose it is was decided by somebody else.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
        os.chown(path, account.uid, account.gid)
    except FileExistsError:
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise WirespanError(f"{path} is no directory", "name another place") from None
    except OSError as error:
        raise WirespanError(
            f"cannot make {path} for {account.name}: {error.strerror}", "name another place"
        ) from None
