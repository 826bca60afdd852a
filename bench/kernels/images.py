"""Kernels of Debian, unpacked: nothing of them is installed on this machine.

Packages come from the mirror that this machine's apt uses, by a list of sources of our own,
so that older and newer releases than this one can be had too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError

CACHE = Path("build/cache/kernels")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
META = "linux-image-{}"  # depends on the newest of its suite
_PART = re.compile(r"linux-(?:image|binary|modules)-\d")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a kernel comes from. name: as people choose it; suite, machine: of Debian."""

    name: str
    suite: str
    machine: str = "amd64"

    @property
    def meta(self) -> str:
        return META.format(self.machine)


SOURCES = (
    Source("5.10", "bullseye"),
    Source("6.1", "bookworm"),
    Source("6.12", "bookworm-backports"),
    Source("newest", "trixie-backports"),
)
ARM64 = Source("arm64", "bookworm", "arm64")


@dataclass(frozen=True, slots=True)
class Image:
    """A kernel that can be booted. version: of its Debian package."""

    source: Source
    release: str
    version: str
    kernel: Path


def fetch(source: Source, say: Callable[[str], None]) -> Image:
    """Return a kernel, downloaded and unpacked if it isn't there yet. Raises BenchError."""
    home = (CACHE / source.name).resolve()
    if (kept := home / "unpacked").exists():
        release, version, place = kept.read_text(encoding="ascii").split()
        return Image(source, release, version, home / place)
    say(f"{source.name}: {source.meta} of {source.suite}")
    shutil.rmtree(home, ignore_errors=True)
    apt = _Apt(home / "apt", source)
    packages = apt.parts(source.meta)
    if not packages:
        raise BenchError(f"{source.suite} has no {source.meta}")
    tree = home / "tree"
    for deb in apt.download(packages, home / "debs"):
        _run(["dpkg", "-x", str(deb), str(tree)])
    modules = next(iter(tree.glob("usr/lib/modules/*")), None) or next(
        iter(tree.glob("lib/modules/*")), None
    )
    if modules is None:
        raise BenchError(f"{', '.join(packages)}: no modules in them")
    release = modules.name
    if not (tree / "lib").exists():  # where depmod and virtme-ng look
        (tree / "lib").symlink_to("usr/lib")
    _run(["depmod", "-b", str(tree), release])
    kernel = next(iter(tree.glob("boot/vmlinuz-*")), modules / "vmlinuz").relative_to(home)
    version = apt.version(source.meta)
    shutil.rmtree(home / "debs")
    shutil.rmtree(home / "apt")
    kept.write_text(f"{release} {version} {kernel}\n", encoding="ascii")
    return Image(source, release, version, home / kernel)


class _Apt:
    """apt with one suite and directories of its own."""

    def __init__(self, home: Path, source: Source) -> None:
        (home / "lists" / "partial").mkdir(parents=True)
        (home / "cache" / "archives" / "partial").mkdir(parents=True)
        (status := home / "status").touch()  # nothing is installed: what is here is another's
        sources = home / "sources.list"
        line = f"deb [signed-by={KEYRING}] {_mirror()} {source.suite} main\n"
        sources.write_text(line, encoding="ascii")
        self._options = [
            f"-oDir::Etc::sourcelist={sources}",
            "-oDir::Etc::sourceparts=/nonexistent",
            f"-oDir::State::lists={home}/lists",
            f"-oDir::State::status={status}",
            f"-oDir::Cache={home}/cache",
            "-oAcquire::Languages=none",
            "-oAPT::Sandbox::User=root",
            f"-oAPT::Architecture={source.machine}",
            f"-oAPT::Architectures={source.machine}",
        ]
        _run(["apt-get", *self._options, "-qq", "update"])

    def parts(self, package: str) -> list[str]:
        """Packages with files of the kernel that a package needs, itself not."""
        found: list[str] = []
        left = [package]
        while left:
            text = _run(["apt-cache", *self._options, "depends", "--important", left.pop()])
            for name in re.findall(r"^\s+\|?Depends: (\S+)$", text, re.M):
                if _PART.match(name) and name not in found:
                    found.append(name)
                    left.append(name)
        return found

    def download(self, packages: Sequence[str], into: Path) -> list[Path]:
        into.mkdir(parents=True)
        _run(["apt-get", *self._options, "-qq", "download", *packages], cwd=into)
        return sorted(into.glob("*.deb"))

    def version(self, package: str) -> str:
        text = _run(["apt-cache", *self._options, "show", "--no-all-versions", package])
        return str(re.findall(r"^Version: (\S+)$", text, re.M)[0])


def _mirror() -> str:
    """The mirror of Debian's own packages, security updates not counted."""
    text = _run(["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"])
    for line in text.splitlines():
        if line.startswith("Debian Debian "):
            return line.split()[-1]
    raise BenchError("apt knows no mirror of Debian here (apt-get update)")


def _run(argv: Sequence[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise BenchError(f"{argv[0]} is not installed: make setup") from None
    if done.returncode:
        raise BenchError(f"{' '.join([argv[0], *argv[-2:]])}: {done.stderr.strip()[-400:]}")
    return done.stdout
