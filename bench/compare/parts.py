"""What the comparison fetches and builds, pinned with hashes and kept in build/cache."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from bench.processes import BenchError

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
REQUIREMENTS = ROOT / "requirements" / "compare.txt"
TRUTH = ROOT / "bench" / "truth" / "services"
ENVOY = TRUTH / "proxies" / "envoy.txt"
BUILD_S = 600.0


def python() -> Path:
    """Return the environment of the Python services, with OpenTelemetry's instrumentation."""

    def make(path: Path) -> None:
        _call(ROOT / "scripts" / "python.sh", path, REQUIREMENTS)

    return _cached("python", [REQUIREMENTS], make)


def load() -> Path:
    """Return the program that loads services; it is the gRPC service, too."""
    source = HERE / "load"
    # go.sum pins every module; no need to ask the checksum database as well.
    pinned = {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}

    def make(path: Path) -> None:
        argv = ("go", "build", "-trimpath", "-buildvcs=false", "-o", path / "load", ".")
        _call(*argv, cwd=source, env={**pinned, "GONOSUMDB": "*"})

    return _cached("load", sorted(source.iterdir()), make) / "load"


def envoy() -> Path:
    """Return the program."""
    return Path(_call(TRUTH / "build.sh", "envoy").split()[-1])


def versions() -> dict[str, str]:
    """Return what the services are made with, by name."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", REQUIREMENTS.read_text(), re.M))
    names = ("flask", "gunicorn", "fastapi", "uvicorn", "uvloop")
    found = {name: pins[name] for name in names}
    found["opentelemetry-instrumentation"] = pins["opentelemetry-instrumentation"]
    module = re.search(r"google.golang.org/grpc v(\S+)", (HERE / "load" / "go.mod").read_text())
    proxy = re.search(r"==(\S+)", ENVOY.read_text())
    database = re.search(r"Ver (\S+)", _call("mariadbd", "--version"))
    for name, match in (("grpc-go", module), ("Envoy", proxy), ("MariaDB", database)):
        found[name] = match[1] if match else "?"
    return found


def _cached(name: str, made_from: Iterable[Path], make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` filled from files; others of that name are removed."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in made_from:
        digest.update(file.read_bytes())
    cache = ROOT / "build" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"compare-{name}-{digest.hexdigest()[:16]}"
    with (cache / f"compare-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path / ".whole").exists():
            for old in cache.glob(f"compare-{name}-*"):
                shutil.rmtree(old)
            path.mkdir()
            make(path)
            (path / ".whole").touch()
    return path


def _call(*argv: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """Run a program and return what it printed. Raises BenchError with what it said."""
    tools = f"{ROOT / 'build' / 'tools' / 'bin'}:{os.environ['PATH']}"
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env={**os.environ, **(env or {}), "PATH": tools},
            capture_output=True,
            text=True,
            timeout=BUILD_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"cannot run {Path(argv[0]).name}: {error}") from None
    if done.returncode:
        raise BenchError(f"{Path(argv[0]).name} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
