"""64-bit Arm: do the programs load and trace there? In a guest with nothing but a kernel of
Debian and one program of ours (bench/kernels/arm64), for this machine's files don't run on it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.kernels.images import Image
from bench.processes import BenchError

ROOT = Path(__file__).resolve().parents[2]
OBJECT = ROOT / "build" / "arm64" / "tracer.bpf.o"
RESULTS = ROOT / "build" / "kernels" / "arm64"
LIMIT_S = 600


def boot(image: Image, limit_s: int = LIMIT_S) -> dict[str, Any]:
    """Boot and return what the guest said: `answer` in arm64/main.go. Raises BenchError."""
    shutil.rmtree(RESULTS, ignore_errors=True)
    tree = RESULTS / "tree"
    tree.mkdir(parents=True)
    _done(["make", "--no-print-directory", str(OBJECT.relative_to(ROOT))], ROOT)
    env = {**os.environ, "GOOS": "linux", "GOARCH": "arm64", "CGO_ENABLED": "0"}
    _done(
        ["go", "build", "-trimpath", "-o", str(tree / "init"), "."],
        Path(__file__).parent / "arm64",
        env,
    )
    shutil.copy(OBJECT, tree)
    archive = RESULTS / "initrd"
    with archive.open("wb") as out:
        names = "".join(f"{path.name}\n" for path in tree.iterdir())
        _done(["busybox", "cpio", "-o", "-H", "newc"], tree, input=names.encode(), stdout=out)
    argv = ["qemu-system-aarch64", "-machine", "virt", "-cpu", "max", "-smp", "1", "-m", "1G"]
    argv += ["-nographic", "-no-reboot", "-net", "none", "-kernel", str(image.kernel)]
    argv += ["-initrd", str(archive), "-append", "console=ttyAMA0 panic=-1 quiet"]
    console = RESULTS / "console"
    with console.open("wb") as out:
        try:
            subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=limit_s)
        except FileNotFoundError:
            raise BenchError(f"{argv[0]} is not installed: make setup") from None
        except subprocess.TimeoutExpired:
            raise BenchError(f"no answer in {limit_s} s: {console}") from None
    match = re.search(r"^wirespan: (\{.*\})\s*$", console.read_text(errors="replace"), re.M)
    if not match:
        raise BenchError(f"the guest did not come up: {console}")
    (RESULTS / "answer.json").write_text(match[1], encoding="utf-8")
    return dict(json.loads(match[1]))


def kept() -> dict[str, Any] | None:
    """What the last run came to, if there was one."""
    try:
        return dict(json.loads((RESULTS / "answer.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def good(found: Mapping[str, Any]) -> bool:
    """Whether each request was seen once by each side, and nothing else was."""
    made = found["made"]
    return not found["error"] and sorted(found["seen"].values()) == [made, made] != [0, 0]


def _done(argv: list[str], cwd: Path, env: dict[str, str] | None = None, **options: Any) -> None:
    try:
        subprocess.run(argv, cwd=cwd, env=env, check=True, stderr=subprocess.PIPE, **options)
    except FileNotFoundError:
        raise BenchError(f"{argv[0]} is not installed: make setup") from None
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{' '.join(argv)}: {error.stderr.decode(errors='replace')}") from None
