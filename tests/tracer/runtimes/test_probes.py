"""Uprobes on real programs: what a program in the kernel reads with the facts is the truth."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.root.compile import clang
from tracer.errors import KernelError
from tracer.kernel import sys as kernel_sys
from tracer.kernel import uprobes
from tracer.runtimes import golang
from tracer.runtimes.cpython import CPython
from tracer.runtimes.proc import opened
from tracer.runtimes.watch import Runtimes

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="reads the FS base"),
]

# Reads *(*(FS base + knobs[0]) + knobs[1]), as the tracer does: a thread's own state, then
# its context; or g, then its id.
SOURCE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
struct thread_struct { unsigned long fsbase; } __attribute__((preserve_access_index));
struct task_struct { struct thread_struct thread; } __attribute__((preserve_access_index));
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 4);
    __type(key, __u32); __type(value, __u64);
} numbers SEC(".maps");
static __always_inline __u64 *number(__u32 index) { return bpf_map_lookup_elem(&numbers, &index); }
SEC("uprobe.multi") int reached(void *context)
{
    struct task_struct *task = (void *)bpf_get_current_task();
    __u64 *tls = number(0), *member = number(1), *hits = number(2), *value = number(3);
    __u64 base, state;
    if (!tls || !member || !hits || !value) return 0;
    __sync_fetch_and_add(hits, 1);
    base = BPF_CORE_READ(task, thread.fsbase);
    if (bpf_probe_read_user(&state, 8, (void *)(base + *tls))) return 0;
    bpf_probe_read_user(value, 8, (void *)(state + *member));
    return 0;
}
char _license[] SEC("license") = "GPL";
"""
PYTHON = """
import contextvars, sys
context = contextvars.copy_context()
print("ready", flush=True)
sys.stdin.readline()
def body():
    for _ in range(100):
        contextvars.copy_context()
context.run(body)
print(id(context), flush=True)
sys.stdin.readline()
import asyncio
async def nothing(): pass
async def tasks():
    for _ in range(100):
        await asyncio.create_task(nothing())
asyncio.run(tasks())
print("done", flush=True)
sys.stdin.readline()
"""
GO = """package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
)

//go:noinline
func reached(words []byte) string {
	if len(words) == 0 {
		panic(fmt.Sprint("nothing", words))
	}
	return fmt.Sprint(string(words))
}

func main() {
	in := bufio.NewReader(os.Stdin)
	done := make(chan string)
	in.ReadString('\\n')
	go func() {
		stack := make([]byte, 64)
		done <- reached(stack[:runtime.Stack(stack, false)])
	}()
	fmt.Println(<-done)
	in.ReadString('\\n')
}
"""


class Probe:
    """The program, loaded, and its numbers."""

    def __init__(self, directory: Path) -> None:
        import pylibbpf

        (directory / "probe.bpf.c").write_text(SOURCE)
        target = directory / "probe.bpf.o"
        command = [clang(), "-g", "-O2", "-target", "bpf", "-mcpu=v3"]
        command += ["-isystem", f"/usr/include/{os.uname().machine}-linux-gnu"]
        subprocess.run([*command, "-c", directory / "probe.bpf.c", "-o", target], check=True)
        before = set(kernel_sys.own_fds("bpf-prog"))
        self.object = pylibbpf.BpfObject(str(target))
        self.object.load()
        (self.fd,) = set(kernel_sys.own_fds("bpf-prog")) - before
        self.map_fd: int = self.object["numbers"].get_fd()

    def set(self, index: int, value: int) -> None:
        raw = struct.pack("=Q", value & (1 << 64) - 1)
        kernel_sys.map_update(self.map_fd, struct.pack("=I", index), raw)

    def get(self, index: int) -> int:
        raw = kernel_sys.map_lookup(self.map_fd, struct.pack("=I", index), 8)
        return int(struct.unpack("=Q", raw)[0])


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    return Probe(tmp_path)


def talk(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@pytest.fixture
def start() -> Iterator[object]:
    running: list[subprocess.Popen[str]] = []

    def begin(*command: str) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        return running[-1]

    yield begin
    for process in running:
        process.communicate("\n\n\n", timeout=10)


def test_context_of_python(probe: Probe, start: object) -> None:
    assert callable(start)
    process = start(sys.executable, "-c", PYTHON)
    assert process.stdout.readline() == "ready\n"
    found = Runtimes().look(process.pid)
    assert found is not None and isinstance(found.runtime, CPython)
    runtime = found.runtime
    assert runtime.tls_tstate is not None and runtime.copy_current is not None
    probe.set(0, runtime.tls_tstate)
    probe.set(1, runtime.tstate_context)
    with uprobes.attach(probe.fd, found.path, runtime.copy_current, pid=process.pid):
        assert probe.get(3) == 0
        context = int(talk(process))
        assert (probe.get(2), probe.get(3)) == (100, context)
        assert talk(process) == "done"
        # Tasks made by _asyncio copy through the same function.
        assert probe.get(2) >= 200


@pytest.mark.skipif(shutil.which("go") is None, reason="no Go here")
@pytest.mark.parametrize("flags", ["", "-s -w"], ids=["whole", "stripped"])
@pytest.mark.parametrize("place", ["entry", "cheap", "returns"])
def test_goroutine_of_go(
    probe: Probe, start: object, tmp_path: Path, flags: str, place: str
) -> None:
    assert callable(start)
    directory = tmp_path / "go"
    directory.mkdir()
    (directory / "go.mod").write_text("module example.com/probe\n\ngo 1.21\n")
    (directory / "main.go").write_text(GO)
    program = directory / "probe"
    command = ["go", "build", "-buildvcs=false", f"-ldflags={flags}", "-o", str(program), "."]
    subprocess.run(command, cwd=directory, check=True)
    with opened(program) as elf:
        found = golang.image(elf, ["main.reached"])
    assert found is not None
    function = found.functions["main.reached"]
    assert function.cheap != function.entry and function.returns
    places = {
        "entry": [function.entry],
        "cheap": [function.cheap],
        "returns": list(function.returns),
    }
    probe.set(0, found.tls_g)
    probe.set(1, found.goid)
    process = start(str(program))
    attached = [uprobes.attach(probe.fd, program, at) for at in places[place]]
    # "goroutine 18 [running]:"
    assert int(talk(process).split()[1]) == probe.get(3)
    # The check for stack space may send the function back to its entry.
    assert probe.get(2) in ((1, 2) if place == "entry" else (1,))
    for one in attached:
        one.close()


def test_detached_and_refused(probe: Probe) -> None:
    one = uprobes.attach(probe.fd, sys.executable, 0x1000)
    assert one.fileno() >= 0
    one.close()
    one.close()
    assert one.fileno() == -1
    with pytest.raises(KernelError, match="cannot put a uprobe on /no/such/file at 0x10"):
        uprobes.attach(probe.fd, "/no/such/file", 0x10)


def test_many_taken_off_at_once(probe: Probe) -> None:
    """Closing them one after the other would take 2 s."""
    many = [uprobes.attach(probe.fd, sys.executable, 0x1000) for _ in range(20)]
    begun = time.monotonic()
    uprobes.take_off(many)
    assert time.monotonic() - begun < 0.5
    assert {one.fileno() for one in many} == {-1}
    uprobes.take_off(many)
    uprobes.take_off(())
