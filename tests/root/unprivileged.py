"""Processes of an ordinary user, with nothing but the capabilities named."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.root.harness import ROOT

UID = 65_534  # nobody, on every Linux


def mounted(argv: Sequence[str | Path]) -> list[str]:
    """Run `argv` as root where everybody can reach Python and this clone.

    They may lie below a directory that is root's alone, such as /root. In a mount namespace
    of its own an empty directory is put over that, with them in it again.
    """
    wanted = [Path(sys.base_prefix).resolve(), ROOT]
    hidden = sorted({top for path in wanted if (top := _hidden(path))})
    steps = []
    for top in hidden:
        inside = [path for path in wanted if path.is_relative_to(top)]
        # What is bound elsewhere meanwhile stays in reach.
        steps += ["aside=$(mktemp -d)", "mount -t tmpfs tmpfs $aside"]
        for n, path in enumerate(inside):
            steps += [f"mkdir $aside/{n}", f"mount --bind {shlex.quote(str(path))} $aside/{n}"]
        steps.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(top))}")
        for n, path in enumerate(inside):
            quoted = shlex.quote(str(path))
            steps += [f"mkdir -p {quoted}", f"mount --bind $aside/{n} {quoted}"]
        steps += ["umount -l $aside", "rmdir $aside"]
    script = "\n".join(["set -e", *steps, f"cd {shlex.quote(str(ROOT))}", 'exec "$@"'])
    return ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, argv)]


def ordinary(argv: Sequence[str | Path], capabilities: Sequence[str]) -> list[str]:
    """Run `argv` as an ordinary user with these capabilities and no way to others."""
    names = [name.removeprefix("CAP_").lower() for name in capabilities]
    held = ",".join(["-all", *(f"+{name}" for name in names)])
    return mounted(
        [
            "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups",
            f"--bounding-set={held}", f"--inh-caps={held}", f"--ambient-caps={held}", *argv,
        ]
    )  # fmt: skip


def _hidden(path: Path) -> Path | None:
    """Return the uppermost directory on the way to `path` that others may not enter."""
    for parent in [*reversed(path.parents), path]:
        if not parent.stat().st_mode & 0o001:
            return parent
    return None
