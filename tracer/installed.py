"""What was installed with this code: its version, the compiled eBPF object."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tracer.errors import WirespanError

# Of the distribution too, by pyproject.toml. Asking its metadata would take 3 MB, for that is mail.
VERSION = "0.1.0"
OBJECT = Path(__file__).parent / "objects" / "tracer.bpf.o"
# By where their programs are hooked in.
_OBJECTS = {"tracepoint": OBJECT, "fentry": OBJECT.with_name("fentry.bpf.o")}


def version() -> str:
    """The version of the distribution."""
    return VERSION


def object_path(hooks: str = "tracepoint") -> Path:
    """Where the eBPF object of some hooks is; raises WirespanError where it was not built."""
    path = _OBJECTS[hooks]
    if not path.is_file():
        raise WirespanError(
            f"cannot load programs: {path} does not exist",
            "in a clone, build it: make build",
        )
    return path


def command() -> str:
    """What to type for this program: the path it was started by, where PATH has none."""
    started = sys.argv[0]
    return started if started.endswith("/wirespan") and not shutil.which("wirespan") else "wirespan"
