"""Empty programs on the tracer's own hooks: what hooks cost before any of its code runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pylibbpf

from bench.processes import BenchError
from bench.sink import Sink
from bench.traced import Tracer

CLANG = "clang-19"
SYSCALLS = ("raw_tp/sys_enter", "raw_tp/sys_exit")


def hooks(sink: Sink) -> list[str]:
    """Ask a tracer how it sees system calls; sections as libbpf names them."""
    with Tracer(sink.endpoint) as tracer:
        programs = tracer.status().programs.values()
    sink.collect(0)
    return sorted({each.hook for each in programs if each.hook in SYSCALLS})


def source(sections: Sequence[str]) -> str:
    """Write a program that returns at once for each section."""
    lines = ['__attribute__((section("license"), used)) char LICENSE[] = "GPL";']
    lines += [
        f'__attribute__((section("{section}"), used)) int empty_{number}(void *context)\n'
        "{\n\t(void)context;\n\treturn 0;\n}"
        for number, section in enumerate(sections)
    ]
    return "\n".join(lines) + "\n"


def build(directory: Path, sections: Sequence[str]) -> Path:
    """Compile those programs. Raises BenchError with what the compiler said."""
    made = directory / "empty.bpf.o"
    done = subprocess.run(
        [
            CLANG,
            "-g",
            "-O2",
            "-Wall",
            "-Wextra",
            "-target",
            "bpf",
            "-x",
            "c",
            "-c",
            "-",
            "-o",
            made,
        ],
        input=source(sections),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise BenchError(f"cannot compile empty programs:\n{done.stderr}")
    return made


@contextmanager
def attached(path: Path) -> Iterator[None]:
    """Keep the programs of an object attached; the kernel takes them off if we are killed.

    Raises BenchError where that fails.
    """
    programs = []
    try:
        loaded = pylibbpf.BpfObject(str(path))
        loaded.load()
        for name in loaded.get_program_names():
            program = loaded.get_program(name)
            program.attach()
            programs.append(program)
        yield
    except pylibbpf.BpfException as error:
        raise BenchError(f"cannot attach empty programs: {error}") from None
    finally:
        for program in programs:
            program.detach()
