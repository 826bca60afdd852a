"""What was installed with this code: its version, the compiled eBPF objects."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from tracer.errors import WirespanError

# Of the distribution too, by pyproject.toml. Asking its metadata would take 3 MB, for that is mail.
VERSION = "0.1.0"
OBJECT = Path(__file__).parent / "objects" / "tracer.bpf.o"
# With other hooks.
_OBJECTS = {"fentry": OBJECT.with_name("fentry.bpf.o")}
# The same for kernels without what OBJECT asks for most: bpf_loop(), of Linux 5.17.
OLD_OBJECT = OBJECT.with_name("tracer-old.bpf.o")
OLD_MEANS = (
    "requests pipelined behind another are lost (pipeline_full), and event loops (nginx, "
    "HAProxy, Node.js) link no requests"
)
# The same for kernels that may preempt programs of trace points (ebpf/tracer.bpf.c).
PREEMPTED_OBJECT = OBJECT.with_name("tracer-preempted.bpf.o")
_PREEMPTED_SINCE = (7, 0)
_TYPES, _MARK = Path("/sys/kernel/btf/vmlinux"), b"\0BPF_FUNC_loop\0"


def version() -> str:
    """The version of the distribution."""
    return VERSION


def kernel_version(release: str) -> tuple[int, ...]:
    """The first two numbers of what `uname -r` tells."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])


def fitting(types: Path = _TYPES, release: str | None = None) -> Path:
    """Where the eBPF object for hooks at system calls belongs, of this kernel.

    types: the kernel's own; where there are none nothing can be loaded, and that is for others
    to say. release: as `uname -r` tells it, this kernel's if None.
    """
    if kernel_version(os.uname().release if release is None else release) >= _PREEMPTED_SINCE:
        return PREEMPTED_OBJECT
    return OLD_OBJECT if _is_old(types) else OBJECT


def object_path(hooks: str = "tracepoint") -> Path:
    """Where the eBPF object of some hooks is; raises WirespanError where it was not built."""
    path = fitting() if hooks == "tracepoint" else _OBJECTS[hooks]
    if not path.is_file():
        raise WirespanError(
            f"cannot load programs: {path} does not exist",
            "in a clone, build it: make build",
        )
    return path


def _is_old(types: Path) -> bool:
    """Whether a kernel's types don't know what OBJECT needs, as of Linux before 5.17."""
    try:
        with types.open("rb") as file:
            before = b""
            while part := file.read(1 << 18):
                if _MARK in before + part:
                    return False
                before = part[-len(_MARK) :]
    except OSError:
        return False
    return True


def command() -> str:
    """What to type for this program: the path it was started by, where PATH has none."""
    started = sys.argv[0]
    return started if started.endswith("/wirespan") and not shutil.which("wirespan") else "wirespan"
