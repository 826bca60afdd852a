"""Where the programs are hooked in: at system calls, or in functions of the kernel.

`tracepoint` (ebpf/tracer.bpf.c) runs on every kernel, at every system call of the host.
`fentry` (ebpf/fentry.bpf.c) runs for sockets alone and sees what io_uring and sendfile do, on
kernels that have what it takes.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tracer import installed
from tracer.errors import KernelError
from tracer.kernel import sys
from tracer.kernel.filters import Filters
from tracer.kernel.layout import read_object

if TYPE_CHECKING:
    from tracer.kernel.loader import Kernel, Settings

CHOICES = ("auto", "tracepoint", "fentry")

# With these, programs may forbid that they are preempted, whatever they call (Linux 6.16).
_HOLDS = ("might_sleep", "bpf_preempt_disable")
_NOT_PREEMPTED = ("none", "voluntary")


def load(
    wanted: str, filters: Filters, settings: Settings, say: Callable[[str], None]
) -> tuple[Kernel, str]:
    """Load the programs; returns them and by which hooks, of CHOICES.

    Raises KernelError where that fails, as where fentry is asked for in vain; UsageError as
    Kernel.load() does.
    """
    from tracer.kernel.loader import Kernel  # not where doctor only asks

    why = lacking() if wanted != "tracepoint" else ""
    if why and wanted == "fentry":
        raise KernelError(
            f"cannot use --hooks fentry: {why}", "leave it out: system calls will do, at more cost"
        )
    if not why and wanted != "tracepoint":
        kernel = Kernel(installed.object_path("fentry"), filters, settings)
        try:
            kernel.load()
        except KernelError as error:
            if wanted == "fentry":
                raise
            say(f"hooks at system calls, for those in kernel functions fail: {error}")
        else:
            return kernel, "fentry"
    kernel = Kernel(installed.object_path("tracepoint"), filters, settings)
    kernel.load()
    return kernel, "tracepoint"


def lacking(root: Path = Path("/"), refusal: Callable[[], int] = sys.fentry_refusal) -> str:
    """Say why the fentry hooks can't be used here; "" where they can, as far as can be told.

    root: where the host's /proc and /sys are. refusal: the errno with which the kernel refuses
    an fentry program that hooks nothing. Raises WirespanError where the hooks were not built.
    """
    refused = refusal()
    if refused == errno.EPERM:
        return "this kernel refuses fentry programs"
    if refused != errno.EINVAL:  # as of a program that says not where it is to go
        return "this kernel has no fentry programs"
    try:
        types = (root / "sys/kernel/btf/vmlinux").read_bytes()
    except OSError as error:
        return f"this kernel's types can't be read ({error.strerror})"
    if not _knows(types, "BPF_FUNC_loop"):
        return "this kernel is older than Linux 5.17 (no bpf_loop)"
    if missing := [name for name in names() if not _knows(types, name)]:
        return f"this kernel has no {', '.join(missing)}"
    if all(_knows(types, name) for name in _HOLDS):
        return ""
    model = preemption(root)
    return f"programs may be preempted here (preempt={model})" if model else ""


def _knows(types: bytes, name: str) -> bool:
    return b"\0" + name.encode() + b"\0" in types


def names() -> list[str]:
    """What the hooks are called in the kernel's types."""
    names = set()
    for section in read_object(installed.object_path("fentry")).programs.values():
        kind, _, place = section.partition("/")
        if kind in ("fentry", "fexit"):
            names.add(place)
        elif kind == "raw_tp" and place:
            names.add(f"btf_trace_{place}")
    return sorted(names)


def preemption(root: Path = Path("/")) -> str:
    """Return the model by which the kernel is preempted in its own code; "" if it is not.

    What can't be found out is "unknown". Source: kernel/Kconfig.preempt,
    sched_dynamic_mode() in kernel/sched/core.c.
    """
    if chosen := re.search(r"\((\w+)\)", _read(root, "sys/kernel/debug/sched/preempt")):
        return _unless_cooperative(chosen[1])
    built = re.search(r"\bPREEMPT(_\w+)?\b", _read(root, "proc/sys/kernel/version"))
    if not built:
        return ""
    if built[1] != "_DYNAMIC":
        return "full"
    if asked := re.search(r"\bpreempt=(\w+)", _read(root, "proc/cmdline")):
        return _unless_cooperative(asked[1])
    config = _read(root, f"boot/config-{_read(root, 'proc/sys/kernel/osrelease').strip()}")
    for model in _NOT_PREEMPTED:
        if f"\nCONFIG_PREEMPT_{model.upper()}=y" in config:
            return ""
    return "unknown"


def _unless_cooperative(model: str) -> str:
    return "" if model in _NOT_PREEMPTED else model


def _read(root: Path, path: str) -> str:
    """Return a file's text, "" where this user can't."""
    try:
        return (root / path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
