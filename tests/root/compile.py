"""Build the eBPF sources that only tests load."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "root-tests"


def clang() -> str:
    """The compiler: $CLANG, else the newest that is installed."""
    names = [os.environ.get("CLANG", ""), "clang", *(f"clang-{n}" for n in range(21, 13, -1))]
    found = [name for name in names if name and shutil.which(name)]
    assert found, "no clang on this machine: install it, or set CLANG"
    return found[0]


@cache
def compile_bpf(name: str) -> Path:
    """Compile tests/root/NAME.bpf.c; the object's path."""
    BUILD.mkdir(parents=True, exist_ok=True)
    target = BUILD / f"{name}.bpf.o"
    # Another run may be loading the object: replace it in one step.
    fresh = target.with_suffix(f".{os.getpid()}")
    command = [clang(), "-g", "-O2", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{ROOT / 'ebpf'}", f"-I/usr/include/{platform.machine()}-linux-gnu"]
    command += ["-c", str(HERE / f"{name}.bpf.c"), "-o", str(fresh)]
    subprocess.run(command, check=True)
    fresh.replace(target)
    return target
