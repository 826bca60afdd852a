"""What runs for whom in other processes: tells the kernel side of their language runtimes.

For each process the kernel's programs need to know what a thread means in it (map
`runtimes`), and of some runtimes they need uprobes. Processes are looked at when tracing
begins, and again after each exec; children of fork inherit, in the kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import queue
import struct
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tracer.errors import KernelError
from tracer.kernel import sys, uprobes
from tracer.kernel.loader import Kernel
from tracer.probed import Probed
from tracer.protocols.base import Processes
from tracer.runtimes import modules, pyqueue
from tracer.runtimes.cpython import CPython
from tracer.runtimes.elf import ElfError
from tracer.runtimes.golang import GRPC, Go
from tracer.runtimes.hotspot import HotSpot
from tracer.runtimes.modules import Modules
from tracer.runtimes.node import Node
from tracer.runtimes.proc import opened
from tracer.runtimes.pyqueue import Queue
from tracer.runtimes.watch import FileId, Found, Runtimes
from tracer.spans import Resource

# enum runtime_kind and struct runtime of ebpf/maps.bpf.h; a test keeps both equal.
THREADS, CPYTHON, GO, NODE, OPAQUE = range(1, 6)
RUNTIME = struct.Struct("=QIIIIIiiIIIIIIIIIQIIIHHHHHHHHHHHHHH")

_TRANSPORT = f"{GRPC}/internal/transport"
_ROUND_TRIP = "net/http.(*persistConn).roundTrip"
# Function of a Go program -> program of ebpf/runtime.bpf.h.
GO_PROBES = {
    _ROUND_TRIP: "go_round_trip",
    f"{GRPC}.(*Server).handleStream": "go_grpc_serve",
    f"{_TRANSPORT}.(*http2Client).Write": "go_grpc_write",
    f"{_TRANSPORT}.(*http2Client).write": "go_grpc_write",
    "runtime.send": "go_send",
    "runtime.recv": "go_recv",
}
PROGRAMS = (
    "python_copied",
    "python_put",
    "python_got",
    "node_turn",
    *dict.fromkeys(GO_PROBES.values()),
)
# enum event_loop.
TURNS, CONNECTS, TIMERS, CHECKS = 1, 2, 4, 8
# Programs whose threads are event loops that keep an exchange to themselves. Of others nobody
# knows for whom a thread that serves several works: a task may have moved to it from another.
EVENT_LOOPS = {
    "nginx": TURNS | CONNECTS,
    "haproxy": TURNS,
    "envoy": TURNS,
    "java": CONNECTS | CHECKS,
}
# An interpreter that was just exec'ed needs a while until it can be read, in seconds.
_AGAIN = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
# When it is looked at what a CPython process has loaded since, in seconds each after the last.
_LOADS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
_SERVES = 20  # which of RUNTIME's
_QUEUE = 4096
_SAID = 4096
_NOBODY = 0  # no process: wakes the thread up


def value_of(
    found: Found, *, tornado: bool = True, serves: bool = False, mixes: bool = False
) -> bytes:
    """Return what the kernel is told of a process: struct runtime.

    tornado: it may have loaded that. serves: it has read a request. mixes: its contexts tell
    nothing.
    """
    match found.runtime:
        case CPython() if mixes:
            return _packed(OPAQUE, serves=serves)
        case CPython() as python:
            return _packed(
                CPYTHON,
                interpreter=python.runtime_addr + python.interpreters_main,
                python=(
                    python.threads_head,
                    python.tstate_next,
                    python.tstate_thread_id,
                    python.tstate_context,
                    python.tls_tstate or 0,
                ),
                rest=(python.runtime_size, python.runtime_addr, python.context_entered),
                serves=serves,
                objects=(
                    python.ob_type,
                    python.tp_name,
                    *dataclasses.astuple(python.frames),
                    tornado and python.frames.frame != 0,
                ),
            )
        case Go() as go:
            return _packed(GO, go=_go(go), serves=serves)
        case HotSpot() as java:
            return _packed(
                THREADS,
                event_loop=EVENT_LOOPS["java"],
                serves=serves,
                java=dataclasses.astuple(java),
            )
        case Node():
            return _packed(NODE, event_loop=TURNS | CONNECTS | TIMERS, serves=serves)
        # The path may be a link that is named after addresses (/proc/PID/map_files).
        case _ if "python" in os.path.basename(os.path.realpath(found.path)):
            return _packed(CPYTHON, serves=serves)
        case _ if found.reason:
            return _packed(OPAQUE, serves=serves)
        case _:
            turns = EVENT_LOOPS.get(_program(found.pid), 0)
            return _packed(THREADS, event_loop=turns, serves=serves)


def _packed(
    kind: int,
    interpreter: int = 0,
    python: Sequence[int] = (0,) * 5,
    go: Sequence[int] = (0,) * 9,
    rest: Sequence[int] = (0,) * 3,
    event_loop: int = 0,
    serves: bool = False,
    objects: Sequence[int] = (0,) * 10,
    java: Sequence[int] = (0,) * 4,
) -> bytes:
    return RUNTIME.pack(interpreter, kind, *python, *go, *rest, event_loop, serves, *objects, *java)


def _go(go: Go) -> tuple[int, ...]:
    """Return the members of struct runtime that are Go's; 0 where a thing is not known."""

    def at(kind: str, member: str) -> int:
        return go.members.get((kind, member), 0)

    def plus_1(kind: str, member: str) -> int:
        place = go.members.get((kind, member))
        return 0 if place is None else place + 1

    return (
        go.tls_g,
        go.goid,
        go.parent_goid or 0,
        at("net/http.persistConn", "conn") if _ROUND_TRIP in go.functions else 0,
        plus_1(f"{_TRANSPORT}.ClientStream", "Stream"),
        plus_1(f"{_TRANSPORT}.ServerStream", "Stream"),
        at(f"{_TRANSPORT}.Stream", "id"),
        at(f"{_TRANSPORT}.http2Client", "conn"),
        at(f"{_TRANSPORT}.http2Server", "conn"),
    )


def _children(pid: int) -> list[int]:
    """Return the processes that a process has forked, as far as they are to be seen."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def _program(pid: int) -> str:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
    except OSError:
        return ""


class Contexts:
    """Looks at processes in a thread of its own, so that nothing waits for it but start().

    say: told, once for each file, why the contexts in it can't be read or probed.
    """

    def __init__(self, kernel: Kernel, say: Callable[[str], None]) -> None:
        self._map = kernel.map_fd("runtimes")
        self._programs = {name: kernel.program_fd(name) for name in PROGRAMS}
        self._say = say
        self._said: set[FileId] = set()
        self._runtimes = Runtimes()
        self._probed = Probed(self._runtimes)
        self._queue: queue.Queue[int] = queue.Queue(_QUEUE)
        self._later: list[tuple[float, int, int]] = []  # when, process, how often before
        self._loads: list[tuple[float, int, int, bytes]] = []  # when, process, how often, image
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="contexts", daemon=True)
        self._overlooked = 0

    def start(self) -> None:
        """Look at every process there is, then wait for new ones."""
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                self._look(int(name), 0)
        self._thread.start()

    def exec(self, pid: int) -> None:
        """Take note that a process has a new image; never blocks."""
        try:
            self._queue.put_nowait(pid)
        except queue.Full:
            self._overlooked += 1

    def losses(self) -> dict[str, int]:
        """Count processes in which nothing is linked; keys of tracer.losses.USER."""
        return {"link_overlooked": self._overlooked}

    def close(self) -> None:
        """Take all uprobes off."""
        self._stop.set()
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):  # then it has something to wake up for
                self._queue.put_nowait(_NOBODY)
            self._thread.join()
        self._probed.close()

    def _work(self) -> None:
        while not self._stop.is_set():
            now = time.monotonic()
            due = [entry for entry in self._later if entry[0] <= now]
            self._later = [entry for entry in self._later if entry[0] > now]
            for _, pid, tried in due:
                self._look(pid, tried)
            loaded = [entry for entry in self._loads if entry[0] <= now]
            self._loads = [entry for entry in self._loads if entry[0] > now]
            for _, pid, loads, image in loaded:
                self._look(pid, 0, loads, image)
                for child in _children(pid):  # those that it forked inherited what it was
                    self._look(child, 0, loads, image, child=True)
            if now >= self._probed.due:
                self._probed.sweep()
            later = [entry[0] for entry in self._later] + [entry[0] for entry in self._loads]
            at = min([self._probed.due, *later])
            try:
                pid = self._queue.get(timeout=max(0.0, at - time.monotonic()))
            except queue.Empty:
                continue
            if pid == _NOBODY:
                continue
            # A child forked before its parent was known inherited nothing.
            for each in (pid, *_children(pid)):
                self._look(each, 0)

    def _look(
        self, pid: int, tried: int, loads: int = 0, image: bytes = b"", *, child: bool = False
    ) -> None:
        """Look at a process.

        tried, loads: how often that was done, since its interpreter began to start, and since it
        had. image: that it had then, or, child, whoever it was forked by; that has an entry in
        self._loads, and the child none. One with another image by now is looked at for its exec.
        """
        has = modules.loaded(pid) if loads else None
        if has and has.image != image:
            return
        found = self._runtimes.look(pid, again=not loads)
        if found is None:
            return
        if not found.ready:
            again = tried < len(_AGAIN)
            if again:
                self._later.append((time.monotonic() + _AGAIN[tried], pid, tried + 1))
            if again or found.reason:
                return
        if found.reason:
            self._say_once(
                found.file,
                f"contexts in {os.path.realpath(found.path)} can't be read: {found.reason}",
            )
        if isinstance(found.runtime, CPython):
            has = has or modules.loaded(pid)
        else:
            has = None
        try:
            if found.first:
                self._probe(found)
        except KernelError as error:
            self._probed.let_go(found.file)  # the next process may have more luck
            if os.path.exists(f"/proc/{pid}"):
                self._say(f"{error}; links inside such processes will be missing")
            return
        if has and has.queue:
            self._probe_queue(has.queue)
        self._probed.uses(pid, found.file, *((has.queue[0],) if has and has.queue else ()))
        if has and loads < len(_LOADS) and not child:
            self._loads.append((time.monotonic() + _LOADS[loads], pid, loads + 1, has.image))
        try:
            self._tell(pid, found, has, loads)
        except OSError as error:
            if os.path.exists(f"/proc/{pid}"):
                self._say(f"process {pid} can't be linked in: {error.strerror}")

    def _tell(self, pid: int, found: Found, has: Modules | None, loads: int) -> None:
        """Tell the kernel, which takes note in the same place that a process serves.

        What it knows already stays untouched: requests are being served meanwhile.
        """
        key, known, serves, tornado = struct.pack("=I", pid), None, False, True
        with contextlib.suppress(OSError):
            known = sys.map_lookup(self._map, key, RUNTIME.size)
            serves = bool(RUNTIME.unpack(known)[_SERVES])
        if has and loads and known:
            # As long as it may yet load tornado before it serves, it counts as if it had.
            tornado = has.tornado or not (serves or loads == len(_LOADS))
        told = functools.partial(value_of, found, tornado=tornado, mixes=bool(has and has.mixes))
        if told(serves=serves) != known:
            # It may have begun to serve since.
            sys.map_update(self._map, key, told(serves=known is not None))

    def _say_once(self, file: FileId, text: str) -> None:
        """Say what is wrong with a file."""
        if file in self._said:
            return
        if len(self._said) >= _SAID:  # then some are said again
            self._said.clear()
        self._said.add(file)
        self._say(text)

    def _probe(self, found: Found) -> None:
        """Attach what the runtime needs to its file, for all its processes."""
        where = found.file, found.path
        match found.runtime:
            case CPython(copy_current=copy, queue=queue, new=new):
                for offset in (*(() if copy is None else (copy,)), *new):
                    self._attach("python_copied", *where, offset, at_return=True)
                if queue is not None:
                    self._attach_queue(*where, queue)
            case Go(functions=functions):
                for name in functions.keys() & GO_PROBES.keys():
                    self._attach(GO_PROBES[name], *where, functions[name].cheap)
            case Node(turns=turns):
                for offset in turns:
                    self._attach("node_turn", *where, offset)

    def _probe_queue(self, module: tuple[FileId, Path]) -> None:
        """Attach what follows work through queue.SimpleQueue, where that is a module's own."""
        file, path = module
        if self._probed.has(file) or file in self._said:
            return
        try:
            with opened(path) as elf:
                queue = pyqueue.by_symbols(elf) or pyqueue.by_methods(elf)
        except (OSError, ElfError):
            queue = None
        name = os.path.realpath(path)
        if queue is None:
            self._say_once(file, f"work for pools of threads can't be followed in {name}")
            return
        try:
            self._attach_queue(file, path, queue)
        except KernelError as error:
            self._probed.let_go(file)
            self._say_once(file, f"{error}; work for pools of threads can't be followed")

    def _attach_queue(self, file: FileId, path: Path, queue: Queue) -> None:
        # What is put is told last, for whoever takes it must be seen to.
        for offset in queue.got:
            self._attach("python_got", file, path, offset, at_return=True)
        self._attach("python_put", file, path, queue.put)

    def _attach(
        self, program: str, file: FileId, path: Path, offset: int, *, at_return: bool = False
    ) -> None:
        fd = self._programs[program]
        self._probed.add(file, uprobes.attach(fd, path, offset, at_return=at_return))


class Announced:
    """Processes for the reassembler, whose execs are announced to Contexts as well."""

    def __init__(self, processes: Processes, contexts: Contexts) -> None:
        self._processes = processes
        self._contexts = contexts

    def exec(
        self, tgid: int, start_ns: int, comm: str, exe: str, argv: Sequence[str], cgroup_id: int
    ) -> None:
        """Take note that a process has a new image."""
        self._contexts.exec(tgid)
        self._processes.exec(tgid, start_ns, comm, exe, argv, cgroup_id)

    def resource(self, tgid: int, start_ns: int, comm: str, cgroup_id: int) -> Resource:
        """Describe a process."""
        return self._processes.resource(tgid, start_ns, comm, cgroup_id)
