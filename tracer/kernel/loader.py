"""The eBPF object in the kernel: sized, loaded, configured, attached, and gone again.

pylibbpf opens, loads and attaches. What it lacks is done around it: maps are resized
in a copy of the object's BTF, knobs are written through the maps of .data and .bss,
statistics and per-CPU counters come by bpf(2). RLIMIT_MEMLOCK is libbpf's own care:
it raises it on kernels that still charge maps to it (before 5.11), on no other.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pylibbpf

from tracer.errors import KernelError, LayoutError, UsageError
from tracer.kernel import btf, filters, sys
from tracer.kernel.filters import Filters
from tracer.kernel.layout import Layout, layout_of, read_object
from tracer.kernel.ring import Ring

__all__ = ["Filters", "Kernel", "MapInfo", "Program", "Settings"]

RING = "records"
LOSSES = "losses"
COUNTS = "counts"
CONNECTIONS = "conns"

MAX_RING_BYTES = 1 << 29
MAX_CONNECTIONS = 1 << 22

_LOG_DIRECTORY = Path("/var/log/wirespan")
_KERNEL_NAME = 15  # characters the kernel keeps of a program's name


@dataclass(frozen=True, slots=True)
class Settings:
    """How much the kernel side may hold; None leaves what the object declares.

    ring_bytes: a power of two and a multiple of the page size, 4 KiB to 1 GiB.
    max_connections: connections followed at once, 1 to 4 Mi.
    knobs: further `cfg_` globals by name, such as capture limits.
    log_directory: where libbpf's words go when loading fails; None: /var/log/wirespan,
    or the directory for temporary files where that cannot be written.
    Raises UsageError where a number is out of its range.
    """

    ring_bytes: int | None = None
    max_connections: int | None = None
    knobs: Mapping[str, int] = field(default_factory=dict)
    log_directory: Path | None = None

    def __post_init__(self) -> None:
        ring, page = self.ring_bytes, mmap.PAGESIZE
        if ring is not None and (
            ring <= 0 or ring & (ring - 1) or ring % page or ring > MAX_RING_BYTES
        ):
            lower = min(max(1 << ring.bit_length() - 1, page), MAX_RING_BYTES) if ring > 0 else page
            upper = min(2 * lower, MAX_RING_BYTES)
            raise UsageError(
                f"ring size {ring} is not a power of two from {page} to {MAX_RING_BYTES} bytes",
                f"try {lower} or {upper}" if lower != upper else f"try {lower}",
            )
        if self.max_connections is not None and not 1 <= self.max_connections <= MAX_CONNECTIONS:
            raise UsageError(
                f"{self.max_connections} connections are out of range",
                f"give 1 to {MAX_CONNECTIONS}",
            )


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded program. Counters grow only while tracer.kernel.sys.enable_stats()'s fd is open."""

    name: str
    kind: str  # the kernel's program type, as bpftool writes it
    attached: bool
    run_count: int
    run_ns: int
    hook: str = ""  # the section it was written for, e.g. tracepoint/syscalls/sys_enter_write


@dataclass(frozen=True, slots=True)
class MapInfo:
    """A map, and the memory the kernel says it takes, in bytes."""

    name: str
    type: str
    max_entries: int
    bytes: int


class Kernel:
    """One eBPF object, from file to detached. Not thread-safe; no methods after close()."""

    def __init__(
        self,
        object_path: Path | str,
        filters: Filters | None = None,
        settings: Settings | None = None,
    ) -> None:
        """Read the object; the kernel is asked nothing yet. Raises LayoutError."""
        self.filters = filters or Filters()
        self.settings = settings or Settings()
        self.path = Path(object_path)
        self._object = read_object(self.path)
        self.layout: Layout = layout_of(self._object)
        self._cpus = sys.possible_cpus()
        self._bpf: Any = None
        self._fds: dict[str, int] = {}  # of programs, by the kernel's short name
        self._attached: dict[str, Any] = {}
        self._ring: Ring | None = None

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def ring(self) -> Ring:
        """The ring of records, from load() to close()."""
        if self._ring is None:
            raise ValueError("the programs are not loaded")
        return self._ring

    def load(self) -> None:
        """Load programs and maps, and write filters and knobs; nothing runs yet.

        Raises UsageError where a filter names what doesn't exist, KernelError where the
        kernel refuses; the message then names the file with the verifier's log.
        """
        entries = filters.entries(self.filters)
        obj = btf.with_max_entries(self._object, self._sizes(entries))
        before = set(sys.own_fds("bpf-prog"))
        # libbpf names maps after the file, so the copy keeps its name.
        with tempfile.TemporaryDirectory(prefix="wirespan-") as directory:
            path = Path(directory) / self._object.name
            path.write_bytes(obj.data)
            with _captured_stderr() as log:
                try:
                    self._bpf = pylibbpf.BpfObject(str(path))
                    self._bpf.load()
                except pylibbpf.BpfException as error:
                    failure: str | None = str(error)
                else:
                    failure = None
        if failure is not None:
            self._bpf = None
            raise self._refusal(failure, log.text)
        try:
            for fd in set(sys.own_fds("bpf-prog")) - before:
                self._fds[sys.program_info(fd).name] = fd
            if len(self._fds) != len(self._bpf.get_program_names()):
                raise LayoutError(
                    f"{self._object.name}: two programs share their first {_KERNEL_NAME} characters"
                )
            self._write_filters(entries)
            knobs = {"cfg_self_tgid": os.getpid(), "cfg_filters": entries.mask}
            self._write_knobs({**knobs, **self.settings.knobs})
            ring = self._bpf[RING]
            self._ring = Ring(
                ring.get_fd(), ring.get_max_entries(), self.layout.record, self._awaited()
            )
        except BaseException:
            self.close()
            raise

    def attach(self) -> None:
        """Attach every program; from here on records come.

        Raises KernelError where one can't be attached, and then leaves none attached:
        a tracer that misses one way in or out would report half exchanges.
        """
        for name in self._bpf.get_program_names():
            if self._object.programs.get(name) in (
                "raw_tp",
                "tracepoint",
                "uprobe",
                "uprobe.multi",
            ):
                continue  # names no hook: others tail-call it, or attach it to files
            program = self._bpf.get_program(name)
            with _captured_stderr() as log:
                try:
                    program.attach()
                except pylibbpf.BpfException as error:
                    failure: str | None = str(error)
                else:
                    failure = None
            if failure is not None:
                self._detach()
                raise self._attach_refusal(name, failure, log.text)
            self._attached[name] = program
        self._set_ready(1)

    def shed(self, value: int) -> None:
        """Say how many traces are to be let go: `cfg_shed` in ebpf/shed.bpf.h."""
        self._write_knobs({"cfg_shed": value})

    def silence(self) -> None:
        """Have the programs look away, so that the ring can be emptied for good."""
        self._set_ready(0)

    def close(self) -> None:
        """Detach, and free programs and maps; harmless when repeated.

        Were the process killed instead, the kernel would do the same with its fds.
        """
        self._detach()
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        self._fds.clear()
        if self._bpf is not None:
            self._bpf = None
            gc.collect()  # an exception's frames may still hold the object

    def losses(self) -> dict[str, int]:
        """Return what was lost in the kernel, by enum flow_loss name."""
        return self._counters(LOSSES, "flow_loss", "FLOW_LOSS_")

    def counts(self) -> dict[str, int]:
        """Return what else the kernel side counts, by enum flow_count name."""
        return self._counters(COUNTS, "flow_count", "FLOW_COUNT_")

    def programs(self) -> list[Program]:
        """Return every program with what the kernel knows of it now."""
        result = []
        for name in self._bpf.get_program_names():
            info = sys.program_info(self._fds[name[:_KERNEL_NAME]])
            result.append(
                Program(
                    name,
                    info.kind,
                    name in self._attached,
                    info.run_count,
                    info.run_ns,
                    self._object.programs.get(name, ""),
                )
            )
        return result

    def missed(self) -> int:
        """Return how often a program was not run where it should have been."""
        return sum(sys.program_info(fd).missed for fd in self._fds.values())

    def program_fd(self, name: str) -> int:
        """Return the fd of a loaded program; it stays ours."""
        return self._fds[name[:_KERNEL_NAME]]

    def map_fd(self, name: str) -> int:
        """Return the fd of a map; it stays ours."""
        return int(self._bpf[name].get_fd())

    def maps(self) -> list[MapInfo]:
        """Return every map with its memory, as /proc/self/fdinfo tells it."""
        result = []
        for name in self._bpf.get_map_names():
            bpf_map = self._bpf[name]
            info = Path(f"/proc/self/fdinfo/{bpf_map.get_fd()}").read_text(encoding="ascii")
            memory = re.search(r"^memlock:\s+(\d+)$", info, re.MULTILINE)
            result.append(
                MapInfo(
                    name,
                    sys.map_type_name(bpf_map.get_type()),
                    bpf_map.get_max_entries(),
                    int(memory[1]) if memory else 0,
                )
            )
        return result

    def _sizes(self, entries: filters.Entries) -> dict[str, int]:
        sizes = {}
        if self.settings.ring_bytes is not None:
            sizes[RING] = self.settings.ring_bytes
        if self.settings.max_connections is not None:
            sizes[CONNECTIONS] = self.settings.max_connections
        for name, keys in entries.maps.items():
            if len(keys) > btf.max_entries(self._object, name):
                sizes[name] = len(keys)
        return sizes

    def _write_filters(self, entries: filters.Entries) -> None:
        for name, keys in entries.maps.items():
            bpf_map = self._bpf[name]
            for key, value in keys.items():
                if len(key) != bpf_map.get_key_size() or bpf_map.get_value_size() != 1:
                    raise LayoutError(f"{self._object.name}: map {name} has another key or value")
                sys.map_update(bpf_map.get_fd(), key, bytes([value]))

    def _awaited(self) -> tuple[int, int] | None:
        """Return where the programs are told that the reader sleeps, for Ring."""
        told = self._object.globals(".bss").get("ring_awaited")
        if not told:
            return None
        (name,) = (each for each in self._bpf.get_map_names() if each.endswith(".bss"))
        return self._bpf[name].get_fd(), told.value

    def _write_knobs(self, knobs: Mapping[str, int]) -> None:
        """Set globals. The compiler puts those that start as 0 into .bss, others into .data."""
        left = dict(knobs)
        for name in self._bpf.get_map_names():
            section = "." + name.rpartition(".")[2]
            if section not in (".data", ".bss") or not left:
                continue
            known = self._object.globals(section)
            if not left.keys() & known.keys():
                continue  # what programs write at the same time must not be written back
            bpf_map = self._bpf[name]
            value = bytearray(sys.map_lookup(bpf_map.get_fd(), bytes(4), bpf_map.get_value_size()))
            for knob in left.keys() & known.keys():
                place, number = known[knob], left.pop(knob)
                if number < 0 or number >> 8 * place.size:
                    raise UsageError(f"{number} does not fit {knob} ({place.size} bytes)")
                end = place.value + place.size
                value[place.value : end] = number.to_bytes(place.size, "little")
            sys.map_update(bpf_map.get_fd(), bytes(4), bytes(value))
        if left:
            raise LayoutError(
                f"{self._object.name} has no variable {', '.join(left)}", "rebuild it: make build"
            )

    def _set_ready(self, value: int) -> None:
        if "cfg_ready" in self._object.globals(".data"):
            self._write_knobs({"cfg_ready": value})

    def _counters(self, map_name: str, enum: str, prefix: str) -> dict[str, int]:
        fd = self._bpf[map_name].get_fd()
        members = self.layout.members(enum, prefix)
        sums = sys.percpu_sums(fd, max(members.values()) + 1, self._cpus)
        return {name: sums[index] for name, index in members.items()}

    def _detach(self) -> None:
        # The end of each link waits 40 ms for whoever is in its program; all wait at once where
        # threads close the last fd of each, and not pylibbpf one after the other.
        links: list[int] = []
        if self._attached:
            # Where no descriptor is to be had, it just takes longer.
            with contextlib.suppress(OSError):
                for fd in sys.own_fds("bpf_link"):
                    links.append(os.dup(fd))
        for program in self._attached.values():
            program.detach()
        self._attached.clear()
        with ThreadPoolExecutor(max(1, len(links))) as pool:
            list(pool.map(os.close, links))

    def _refusal(self, failure: str, log: str) -> KernelError:
        """Explain why loading failed; where words don't suffice, keep libbpf's in a file."""
        program = re.search(r"prog '([^']+)': BPF program load failed", log)
        helper = re.search(r"(?:unknown|invalid) func (\w+)#\d+", log)
        cause = failure.rpartition(": ")[2]
        if cause == "Operation not permitted":
            cause = "this user may not load eBPF programs"
            hint = "run as root, or with CAP_BPF and CAP_PERFMON; `wirespan doctor` tells more"
        elif "BTF is mandatory" in log or "failed to find valid kernel BTF" in log:
            cause = "kernel has no BTF (/sys/kernel/btf/vmlinux)"
            hint = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
        else:
            path = self._keep_log(log)
            hint = f"libbpf's messages are in {path}"
            if helper:
                cause = f"this kernel has no helper {helper[1]}"
                hint = f"use a newer kernel; {hint}"
            elif program and "BEGIN PROG LOAD LOG" in log:
                cause = f"the verifier rejected {program[1]}, its log is in {path}"
                hint = "this kernel may be too old or too new; report it with that file"
            elif cause in ("Cannot allocate memory", "Argument list too long"):
                hint = f"try a smaller ring or fewer connections; {hint}"
        return KernelError(f"cannot load programs: {cause}", hint)

    def _attach_refusal(self, name: str, failure: str, log: str) -> KernelError:
        hook = self._object.programs.get(name, "")
        cause = failure.rpartition(": ")[2]
        hint = "`wirespan doctor` tells what is missing"
        if cause == "No such file or directory":
            cause = "this kernel has no such event, or tracefs is not mounted"
            hint = "mount it: mount -t tracefs none /sys/kernel/tracing; " + hint
        elif cause in ("Permission denied", "Operation not permitted"):
            cause = f"{cause.lower()} (tracefs or perf_event_open)"
            hint = "run as root, or with CAP_PERFMON and CAP_DAC_READ_SEARCH"
        else:
            hint = f"libbpf's messages are in {self._keep_log(log)}"
        return KernelError(
            f"cannot attach {name} to {hook}: {cause}; what passes there would go unseen, "
            "so nothing is attached",
            hint,
        )

    def _keep_log(self, log: str) -> Path:
        """Write a log where an administrator finds it; return where that is."""
        wanted = self.settings.log_directory or _LOG_DIRECTORY
        with contextlib.suppress(OSError):
            wanted.mkdir(mode=0o755, parents=True, exist_ok=True)
            path = wanted / "load.log"
            path.write_text(log, encoding="utf-8")
            return path
        # Anyone may write there: a new file, never a name that could be a link.
        fd, name = tempfile.mkstemp(prefix="wirespan-load-", suffix=".log")
        with open(fd, "w", encoding="utf-8") as file:
            file.write(log)
        return Path(name)


@dataclass(slots=True)
class _Log:
    text: str = ""


@contextlib.contextmanager
def _captured_stderr() -> Iterator[_Log]:
    """Keep what libbpf writes to fd 2 off the terminal; `text` has it afterwards.

    pylibbpf doesn't let us set libbpf's print callback. Other threads' words to stderr
    land here too, so load before starting any that talk.
    """
    log = _Log()
    with tempfile.TemporaryFile() as file:
        try:
            saved = os.dup(2)
        except OSError:  # started with stderr closed
            saved = -1
        os.dup2(file.fileno(), 2)
        try:
            yield log
        finally:
            if saved >= 0:
                os.dup2(saved, 2)
                os.close(saved)
            else:
                os.close(2)
            file.seek(0)
            log.text = file.read().decode("utf-8", "replace")
