"""What the kernel is told of processes: as its own structs have it, and for every runtime."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tracer import contexts, probed
from tracer.contexts import EVENT_LOOPS, GO_PROBES, PROGRAMS, RUNTIME, Announced, Contexts, value_of
from tracer.errors import KernelError
from tracer.kernel import sys as kernel_sys
from tracer.kernel import uprobes
from tracer.kernel.layout import read_object, struct_dtype
from tracer.kernel.loader import Kernel
from tracer.protocols.base import Processes
from tracer.runtimes import modules
from tracer.runtimes.cpython import CPython, Frames
from tracer.runtimes.golang import GRPC, WANTED_FUNCTIONS, WANTED_MEMBERS, Go
from tracer.runtimes.hotspot import HotSpot
from tracer.runtimes.modules import Modules
from tracer.runtimes.node import Node
from tracer.runtimes.pclntab import Function
from tracer.runtimes.watch import FileId, Found, Runtimes
from tracer.spans import Resource

ROOT = Path(__file__).resolve().parents[2]
OBJECT = ROOT / "tracer" / "objects" / "tracer.bpf.o"
MAPS_H = (ROOT / "ebpf" / "maps.bpf.h").read_text()
TRANSPORT = f"{GRPC}/internal/transport"
ROUND_TRIP = "net/http.(*persistConn).roundTrip"

CPYTHON = CPython(
    version=(3, 12, 1),
    free_threaded=False,
    runtime_addr=0x5000_0000,
    runtime_size=459_944,
    interpreters_main=48,
    threads_head=72,
    tstate_next=8,
    tstate_thread_id=136,
    tstate_native_thread_id=144,
    tstate_context=208,
    context_entered=40,
    tls_tstate=-24,
    copy_current=0x1234,
    ob_type=8,
    tp_name=24,
    frames=Frames(frame=56, cframe=1, code=0, previous=8, locals=72, name=120, text=40),
    evidence={},
)
GO = Go(
    version=(1, 23, 1),
    tls_g=-8,
    goid=160,
    parent_goid=280,
    functions={ROUND_TRIP: Function(0x2000, 0x2004, ()), "runtime.send": Function(64, 70, ())},
    members={
        ("net/http.persistConn", "conn"): 80,
        (f"{TRANSPORT}.ClientStream", "Stream"): 0,
        (f"{TRANSPORT}.ServerStream", "Stream"): 0,
        (f"{TRANSPORT}.Stream", "id"): 108,
        (f"{TRANSPORT}.http2Client", "conn"): 128,
        (f"{TRANSPORT}.http2Server", "conn"): 16,
    },
    evidence={},
)
NODE = Node((22, 1, 0), None, None)


def found(
    runtime: CPython | Go | HotSpot | Node | None,
    reason: str = "",
    *,
    pid: int = 0,
    path: str = "/usr/bin/program",
    ready: bool = True,
    first: bool = True,
) -> Found:
    return Found(pid, runtime, reason, (8, len(path)), Path(path), first, ready)


def told(what: Found) -> dict[str, int]:
    """Read back what the kernel is told, as BTF says that it reads it."""
    dtype = struct_dtype(read_object(OBJECT).btf, "runtime")
    value = value_of(what)
    assert len(value) == dtype.itemsize
    row = np.frombuffer(value, dtype=dtype)[0]
    return {name: int(row[name]) for name in dtype.names or () if row[name]}


# The layout.


def test_packing_equals_the_struct() -> None:
    dtype = struct_dtype(read_object(OBJECT).btf, "runtime")
    fields = dtype.fields
    assert fields is not None and dtype.itemsize == RUNTIME.size
    codes = {"Q": ("u", 8), "I": ("u", 4), "i": ("i", 4), "H": ("u", 2)}
    at, packed = 0, []
    for code in RUNTIME.format.lstrip("="):
        packed.append((at, *codes[code]))
        at += codes[code][1]
    ours = [(at, info.kind, info.itemsize) for info, at, *_ in fields.values()]
    assert packed == ours and dtype.names
    assert dtype.names[contexts._SERVES] == "serves"


def members(enum: str, prefix: str) -> dict[str, int]:
    """Read an enum of maps.bpf.h: it is in no type, so BTF has it not."""
    body = re.search(rf"enum {enum} \{{(.*?)\n\}};", MAPS_H, re.DOTALL)
    assert body
    return {name: int(n) for name, n in re.findall(rf"{prefix}(\w+) = (\d+)", body[1])}


@pytest.mark.parametrize(
    ("enum", "prefix", "count"), [("runtime_kind", "RUNTIME_", 5), ("event_loop", "EVENT_LOOP_", 4)]
)
def test_enums_equal_the_header(enum: str, prefix: str, count: int) -> None:
    theirs = members(enum, prefix)
    assert theirs == {name: getattr(contexts, name) for name in theirs} and len(theirs) == count


# What is told.


def test_contexts_that_tell_nothing() -> None:
    dtype = struct_dtype(read_object(OBJECT).btf, "runtime")
    row = np.frombuffer(value_of(found(CPYTHON), mixes=True, serves=True), dtype=dtype)[0]
    assert (row["kind"], row["serves"], row["interpreter"]) == (contexts.OPAQUE, 1, 0)


def test_an_unreadable_python_is_known_by_its_file(tmp_path: Path) -> None:
    """The path that leads to a file is no name of it where it is one in /proc/PID/map_files."""
    link = tmp_path / "55e0d4c00000-55e0d4c61000"
    link.symlink_to("/usr/bin/python3.7")
    assert told(found(None, "unknown version", path=str(link))) == {"kind": contexts.CPYTHON}


def test_cpython() -> None:
    assert told(found(CPYTHON)) == {
        "interpreter": 0x5000_0030,
        "kind": contexts.CPYTHON,
        "threads_head": 72,
        "next": 8,
        "thread_id": 136,
        "context": 208,
        "tls_state": -24,
        "entered": 40,
        "locks": 0x5000_0000,
        "locks_size": 459_944,
        "object_type": 8,
        "type_name": 24,
        "frame": 56,
        "cframe": 1,
        "frame_previous": 8,
        "frame_locals": 72,
        "code_name": 120,
        "text": 40,
        "tornado": 1,
    }


def test_cpython_that_serves_and_has_not_loaded_tornado() -> None:
    dtype = struct_dtype(read_object(OBJECT).btf, "runtime")
    row = np.frombuffer(value_of(found(CPYTHON), tornado=False), dtype=dtype)[0]
    assert (row["tornado"], row["frame"]) == (0, 56)


def test_cpython_whose_threads_are_in_a_list_alone() -> None:
    assert "tls_state" not in told(found(replace(CPYTHON, tls_tstate=None)))


def test_go() -> None:
    assert told(found(GO)) == {
        "kind": contexts.GO,
        "tls_g": -8,
        "goid": 160,
        "parent_goid": 280,
        "round_trip": 80,
        "grpc_client_stream": 1,
        "grpc_server_stream": 1,
        "grpc_stream_id": 108,
        "grpc_client_conn": 128,
        "grpc_server_conn": 16,
    }


def test_go_of_before_1_21_without_libraries() -> None:
    bare = replace(GO, parent_goid=None, functions={}, members={})
    assert told(found(bare)) == {"kind": contexts.GO, "tls_g": -8, "goid": 160}


def test_go_before_grpc_told_streams_apart() -> None:
    members = {key: at for key, at in GO.members.items() if key[1] != "Stream"}
    value = told(found(replace(GO, members=members)))
    assert not {"grpc_client_stream", "grpc_server_stream"} & value.keys()


def test_java() -> None:
    assert told(found(HotSpot(80, 16, 1312, 1240))) == {
        "kind": contexts.THREADS,
        "event_loop": contexts.CONNECTS | contexts.CHECKS,
        "java_dtv": 80,
        "java_thread": 16,
        "java_number": 1312,
        "java_continuation": 1240,
    }


def test_node() -> None:
    assert told(found(NODE)) == {"kind": contexts.NODE, "event_loop": 7}


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (found(None), {"kind": contexts.THREADS}),
        (found(None, "unknown version"), {"kind": contexts.OPAQUE}),
        # Its threads mean something all the same.
        (found(None, "unknown version", path="/usr/bin/python3.7"), {"kind": contexts.CPYTHON}),
    ],
    ids=["plain", "opaque", "unknown CPython"],
)
def test_others(what: Found, expected: dict[str, int]) -> None:
    assert told(what) == expected


@pytest.mark.parametrize(("name", "bits"), EVENT_LOOPS.items())
def test_programs_that_are_event_loops(
    monkeypatch: pytest.MonkeyPatch, name: str, bits: int
) -> None:
    for link in (f"/usr/sbin/{name}", f"/usr/sbin/{name} (deleted)"):
        monkeypatch.setattr(os, "readlink", lambda _, link=link: link)
        assert told(found(None)) == {"kind": contexts.THREADS, "event_loop": bits}


# Probes.


def test_probes_are_on_functions_that_are_looked_for() -> None:
    assert set(GO_PROBES) <= set(WANTED_FUNCTIONS)


def test_members_told_are_looked_for() -> None:
    assert set(GO.members) <= set(WANTED_MEMBERS)


def test_programs_are_in_the_object() -> None:
    programs = read_object(OBJECT).programs
    uprobes = {name for name, section in programs.items() if section == "uprobe.multi"}
    assert uprobes == set(PROGRAMS)


# Contexts, with no kernel.


class FakeKernel:
    def map_fd(self, name: str) -> int:
        assert name == "runtimes"
        return 3

    def program_fd(self, name: str) -> int:
        return PROGRAMS.index(name) + 100


class Looked:
    """Contexts whose processes are what a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.updates: list[tuple[int, bytes]] = []
        self.known: dict[int, bytes] = {}
        self.attached: list[tuple[str, int, bool]] = []
        self.closed = 0
        self.answers: dict[int, list[Found | None]] = {}
        self.children: dict[int, list[int]] = {}
        monkeypatch.setattr(kernel_sys, "map_lookup", self.lookup)
        monkeypatch.setattr(kernel_sys, "map_update", self.update)
        monkeypatch.setattr(uprobes, "attach", self.attach)
        monkeypatch.setattr(uprobes, "take_off", self.take_off)
        monkeypatch.setattr(os, "listdir", self.listdir)
        monkeypatch.setattr(contexts, "_children", lambda pid: self.children.get(pid, []))
        monkeypatch.setattr(Runtimes, "look", lambda _, pid, again=False: self.look(pid))
        self.contexts = Contexts(cast(Kernel, FakeKernel()), self.said.append)

    def listdir(self, path: str) -> list[str]:
        assert path == "/proc"
        return ["self", "stat", str(os.getpid()), *map(str, self.answers)]

    def look(self, pid: int) -> Found | None:
        left = self.answers.get(pid, [None])
        return left.pop(0) if len(left) > 1 else left[0]

    def update(self, fd: int, key: bytes, value: bytes) -> None:
        assert fd == 3
        (pid,) = struct.unpack("=I", key)
        self.updates.append((pid, value))
        self.known[pid] = value

    def lookup(self, fd: int, key: bytes, value_bytes: int) -> bytes:
        assert (fd, value_bytes) == (3, RUNTIME.size)
        (pid,) = struct.unpack("=I", key)
        if pid not in self.known:
            raise OSError(errno.ENOENT, "")
        return self.known[pid]

    def attach(self, program: int, _: Path, offset: int, *, at_return: bool) -> Looked:
        self.attached.append((PROGRAMS[program - 100], offset, at_return))
        return self

    def take_off(self, probes: Iterable[object]) -> None:
        self.closed += len(list(probes))

    def wait(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 10.0
        while not condition():
            assert time.monotonic() < end, (self.updates, self.said)
            time.sleep(0.005)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Looked:
    return Looked(monkeypatch)


def test_every_process_but_itself(looked: Looked) -> None:
    looked.answers = {11: [found(None)], 12: [found(NODE)], 13: [None]}
    looked.contexts.start()
    looked.contexts.close()
    assert [pid for pid, _ in looked.updates] == [11, 12] and not looked.said


def test_probes_once_for_a_file(looked: Looked) -> None:
    node = Node((22, 1, 0), None, None, "", (0x10, 0x20))
    looked.answers = {
        11: [found(CPYTHON)],
        12: [found(CPYTHON, first=False)],
        13: [found(node)],
        14: [found(GO)],
    }
    looked.contexts.start()
    assert sorted(looked.attached) == sorted(
        [
            ("python_copied", 0x1234, True),
            ("node_turn", 0x10, False),
            ("node_turn", 0x20, False),
            # Go moves stacks: never at a return, and where a probe is cheap.
            ("go_round_trip", 0x2004, False),
            ("go_send", 70, False),
        ]
    )
    looked.contexts.close()
    assert looked.closed == 5 and len(looked.updates) == 4


def hasten(looked: Looked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probed, "EVERY_S", 0.01)
    monkeypatch.setattr(probed, "SHARE", 1.0)
    looked.contexts._probed.due = 0.0


def test_probes_go_with_the_last_process_of_their_file(
    looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(looked, monkeypatch)
    asked: list[set[FileId]] = []
    others: list[set[FileId] | None] = [None, {(8, 16)}, set()]
    gone: list[FileId] = []
    python = found(CPYTHON, pid=os.getppid(), path="/usr/bin/python")

    def in_use(_: Runtimes, files: set[FileId]) -> set[FileId]:
        asked.append(set(files))
        answer = others.pop(0)
        if answer is None:
            raise OSError(errno.EMFILE, "none left")
        return answer

    monkeypatch.setattr(Runtimes, "in_use", in_use)
    monkeypatch.setattr(Runtimes, "gone", lambda _, file: gone.append(file))
    with subprocess.Popen(["sleep", "60"]) as child:
        looked.answers = {child.pid: [found(GO, pid=child.pid)], os.getppid(): [python]}
        looked.contexts.start()
        assert len(looked.attached) == 3
        time.sleep(0.2)
        assert not asked, "a process that is known lives on"
        child.kill()
    # First nobody knows, then another process has the file, then none has.
    looked.wait(lambda: looked.closed == 2)
    assert asked == [{(8, 16)}] * 3 and gone == [(8, 16)]
    looked.contexts.close()
    assert looked.closed == 3


def test_a_process_that_execs_uses_its_former_file_no_more(
    looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(looked, monkeypatch)
    monkeypatch.setattr(Runtimes, "in_use", lambda *_: set())
    me = os.getppid()
    looked.answers = {me: [found(GO, pid=me), found(None, pid=me, path="/bin/plain", first=False)]}
    looked.contexts.start()
    looked.contexts.exec(me)
    looked.wait(lambda: looked.closed == 2)
    looked.contexts.close()


def test_probes_of_a_file_that_takes_but_some_are_taken_off(
    looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = looked.attach

    def refused(*args: Any, **options: Any) -> Looked:
        if looked.attached:
            raise KernelError("no more")
        return attach(*args, **options)

    monkeypatch.setattr(uprobes, "attach", refused)
    looked.answers = {os.getppid(): [found(GO)]}
    looked.contexts.start()
    assert len(looked.attached) == looked.closed == 1
    looked.contexts.close()
    assert looked.closed == 1


def test_an_interpreter_that_starts_is_looked_at_again(looked: Looked) -> None:
    starts = found(None, "starting", ready=False)
    looked.answers = {11: [starts, starts, found(CPYTHON)]}
    looked.contexts.start()
    assert not looked.updates
    looked.wait(lambda: bool(looked.updates))
    looked.contexts.close()
    assert looked.updates == [(11, value_of(found(CPYTHON)))] and not looked.said


@pytest.mark.parametrize("reason", ["starting", ""])
def test_one_that_never_starts_is_given_up(
    looked: Looked, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """Without a reason it is a plain program, as a JVM is whose threads nobody understands."""
    monkeypatch.setattr(contexts, "_AGAIN", (0.001, 0.001))
    looks: list[int] = []

    def look(_: Runtimes, pid: int, again: bool) -> Found:
        looks.append(pid)
        return found(None, reason, ready=False)

    looked.answers = {11: []}
    monkeypatch.setattr(Runtimes, "look", look)
    looked.contexts.start()
    looked.wait(lambda: len(looks) == 3)
    time.sleep(0.1)
    looked.contexts.close()
    plain = [(11, value_of(found(None)))]
    assert len(looks) == 3 and looked.updates == ([] if reason else plain)


def test_a_vanished_process(looked: Looked) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    looked.contexts.start()
    looked.contexts.exec(child.pid)
    looked.answers[12] = [found(None)]
    looked.contexts.exec(12)
    looked.wait(lambda: bool(looked.updates))
    looked.contexts.close()
    assert [pid for pid, _ in looked.updates] == [12] and not looked.said


def test_children_forked_before_their_parent_was_looked_at(looked: Looked) -> None:
    looked.contexts.start()
    looked.answers = {11: [found(None)], 12: [found(None)]}
    looked.children = {11: [12]}
    looked.contexts.exec(11)
    looked.wait(lambda: len(looked.updates) == 2)
    looked.contexts.close()
    assert [pid for pid, _ in looked.updates] == [11, 12]


def test_what_the_kernel_knows_is_left_to_it(looked: Looked) -> None:
    """Between two requests that it serves: its calls must go on to be asked about."""
    whats = {11: found(NODE), 12: found(None), 13: found(GO), 14: found(None, "too old")}
    looked.answers = {pid: [what] for pid, what in whats.items()}
    looked.known = {pid: value_of(what, serves=pid != 12) for pid, what in whats.items()}
    before = dict(looked.known)
    looked.contexts.start()
    looked.contexts.close()
    assert not looked.updates and looked.known == before


def test_a_process_that_turns_out_to_be_another_may_serve_by_now(looked: Looked) -> None:
    looked.answers = {11: [found(NODE)]}
    looked.known = {11: value_of(found(None))}
    looked.contexts.start()
    looked.contexts.close()
    assert looked.known == {11: value_of(found(NODE), serves=True)}


def test_what_a_process_has_loaded_since_is_told(
    looked: Looked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of itself and of those it forked; not of what has been exec'ed by then."""
    serves = {pid: value_of(found(CPYTHON), serves=True) for pid in (11, 12, 13)}
    without = {pid: value_of(found(CPYTHON), tornado=False, serves=True) for pid in serves}
    images = {11: b"one", 12: b"one", 13: b"one"}
    monkeypatch.setattr(contexts, "_LOADS", (0.0,))
    monkeypatch.setattr(modules, "loaded", lambda pid: Modules(image=images[pid]))
    looked.children = {11: [12, 13]}
    looked.contexts.start()
    looked.answers = {pid: [found(CPYTHON)] for pid in serves}
    looked.known = dict(serves)
    looked.contexts._look(11, 0)
    images[13] = b"another"
    looked.contexts.exec(99)  # wakes it up
    looked.wait(lambda: len(looked.updates) == 2)
    looked.contexts.close()
    assert looked.known == {11: without[11], 12: without[12], 13: serves[13]}


def test_children_are_found() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert child.pid in contexts._children(os.getpid())
        child.kill()
    assert contexts._children(child.pid) == []


def test_what_cannot_be_read_is_said_once_for_a_file(looked: Looked) -> None:
    looked.answers = {pid: [found(None, "too old", path="/opt/old")] for pid in (11, 12)}
    looked.contexts.start()
    looked.contexts.close()
    assert looked.said == ["contexts in /opt/old can't be read: too old"]
    assert [value for _, value in looked.updates] == [value_of(found(None, "too old"))] * 2


def test_a_probe_that_is_refused(looked: Looked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it links would be wrong: the kernel is told nothing."""

    def refuse(*_: object, **__: object) -> None:
        raise KernelError("no uprobes")

    monkeypatch.setattr(uprobes, "attach", refuse)
    looked.answers = {1: [found(CPYTHON)]}
    looked.contexts.start()
    looked.contexts.close()
    assert not looked.updates
    assert looked.said == ["no uprobes; links inside such processes will be missing"]


@pytest.mark.parametrize("there", [True, False], ids=["lives", "is gone"])
def test_a_full_map(looked: Looked, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    def full(*_: object) -> None:
        raise OSError(7, "Argument list too long")

    monkeypatch.setattr(kernel_sys, "map_update", full)
    looked.answers = {11: [found(None)]}
    monkeypatch.setattr(os.path, "exists", lambda path: there)
    looked.contexts.start()
    looked.contexts.close()
    told = "process 11 can't be linked in: Argument list too long"
    assert looked.said == [told] * there


def test_a_full_queue_never_blocks(looked: Looked) -> None:
    for pid in range(contexts._QUEUE + 5):
        looked.contexts.exec(pid)
    assert looked.contexts.losses()["link_overlooked"] == 5
    looked.contexts.close()


def test_execs_are_announced(looked: Looked) -> None:
    resource = Resource(())

    class Known:
        calls: tuple[object, ...] = ()

        def exec(self, *arguments: object) -> None:
            self.calls = arguments

        def resource(self, *arguments: object) -> Resource:
            return resource

    known = Known()
    announced = Announced(cast(Processes, known), looked.contexts)
    looked.answers = {11: [found(None)]}
    announced.exec(11, 5, "name", "/bin/name", ["name"], 7)
    assert known.calls == (11, 5, "name", "/bin/name", ["name"], 7)
    assert announced.resource(11, 5, "name", 7) is resource
    looked.answers = {}
    looked.contexts.start()
    looked.answers = {11: [found(None)]}
    looked.contexts.exec(11)
    looked.wait(lambda: bool(looked.updates))
    looked.contexts.close()
    assert looked.updates[0][0] == 11
