"""Go programs: where the running goroutine's g is, and where functions begin and end.

Facts come from the executable alone: build information, function table, and tables by the
version of Go and of the modules linked in. DWARF, which takes long to inflate, is searched
only for what these tables do not know.
Source: src/runtime/runtime2.go (g, m), src/debug/buildinfo, src/cmd/link and
src/runtime/asm_amd64.s of each Go version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tracer.runtimes import dwarf
from tracer.runtimes.elf import EM_X86_64, PT_TLS, Elf, ElfError
from tracer.runtimes.pclntab import Function, FunctionTable

_MAGIC = b"\xff Go buildinf:"
_INLINE = 2  # flag: version and modules follow as strings (Go 1.18 on)
_HEADER = 32
_MOST = 1 << 20  # bytes of a segment looked at for build information
_DATA_SEGMENTS = 4
OLDEST, NEWEST = (1, 18), (1, 26)

GRPC = "google.golang.org/grpc"
_TRANSPORT = GRPC + "/internal/transport"
_GRPC_OLDEST, _GRPC_SPLIT, _GRPC_NEWEST = 40, 70, 85  # minor versions of the table

WANTED_FUNCTIONS = (
    "net/http.(*persistConn).roundTrip",
    f"{_TRANSPORT}.(*http2Client).Write",
    f"{_TRANSPORT}.(*http2Client).write",
    f"{GRPC}.(*Server).handleStream",
    "runtime.send",
    "runtime.recv",
)

WANTED_MEMBERS = (
    ("runtime.g", "goid"),
    ("runtime.g", "parentGoid"),
    ("runtime.g", "m"),
    ("runtime.m", "curg"),
    ("net/http.persistConn", "conn"),
    ("crypto/tls.Conn", "conn"),
    ("net.TCPConn", "conn"),
    ("net.conn", "fd"),
    ("net.netFD", "pfd"),
    ("internal/poll.FD", "Sysfd"),
    (f"{_TRANSPORT}.Stream", "id"),
    (f"{_TRANSPORT}.ClientStream", "Stream"),
    (f"{_TRANSPORT}.ServerStream", "Stream"),
    (f"{_TRANSPORT}.http2Client", "conn"),
    (f"{_TRANSPORT}.http2Server", "conn"),
)

# The same in every Go from 1.18 to 1.26 (DWARF of both ends and 1.20 to 1.25).
_STEADY: Mapping[tuple[str, str], int] = {
    ("runtime.g", "m"): 48,
    ("net/http.persistConn", "conn"): 80,
    ("crypto/tls.Conn", "conn"): 0,
    ("net.TCPConn", "conn"): 0,
    ("net.conn", "fd"): 0,
    ("net.netFD", "pfd"): 0,
    ("internal/poll.FD", "Sysfd"): 16,
}

# First version -> (goid, parentGoid, m.curg), from the DWARF of each.
_GOROUTINE: tuple[tuple[tuple[int, int], tuple[int, int | None, int]], ...] = (
    ((1, 18), (152, None, 192)),
    ((1, 21), (152, 272, 192)),
    ((1, 23), (160, 280, 192)),
    ((1, 25), (152, 272, 184)),
    ((1, 26), (152, 280, 184)),
)

# Functions that load g early on.
_SWITCHES = ("runtime.systemstack", "runtime.morestack", "runtime.mcall")
_RELEASED = re.compile(r"go\d+\.\d+(\.\d+|rc\d+)?")

_LOADS_OF_G = (
    re.compile(rb"\x64[\x48\x4c]\x8b[\x04\x0c\x14\x1c\x24\x2c\x34\x3c]\x25(....)", re.S),
    re.compile(rb"\x48\xc7[\xc0-\xc7](....)\x64[\x48\x4c]\x8b", re.S),
)


@dataclass(frozen=True, slots=True)
class Go:
    """A Go executable. Offsets in bytes.

    version: such as (1, 23, 12).
    tls_g: where the pointer to g lies, from the FS base (x86-64), mostly -8.
    goid, parent_goid: of runtime.g, u64 each; parent_goid None before Go 1.21.
    functions: by full name, only those wanted that the program has.
    members: (type, member) -> offset, for the members wanted that are known.
    evidence: fact -> how it was found, for people.
    """

    version: tuple[int, int, int]
    tls_g: int
    goid: int
    parent_goid: int | None
    functions: Mapping[str, Function]
    members: Mapping[tuple[str, str], int]
    evidence: Mapping[str, str]


class Unfit(Exception):
    """A Go program whose goroutines cannot be read; the message says why."""


def image(elf: Elf, functions: Iterable[str] = WANTED_FUNCTIONS) -> Go | None:
    """Describe an executable, None where it is no Go program.

    Raises Unfit for a Go program that can't be read (too old, too new, other machine),
    ElfError where the file is broken.
    """
    found = build_info(elf)
    if found is None:
        return None
    version, modules = found
    if elf.machine != EM_X86_64:
        raise Unfit("Go program of another machine than x86-64")
    number = _number(version)
    if number is None or number[:2] < OLDEST:
        raise Unfit(f"Go program built by {version}: 1.18 is the oldest known")
    evidence = {"version": "build information", "functions": "Go function table"}
    wanted = tuple(functions)
    known = FunctionTable(elf).functions((*wanted, *_SWITCHES))
    linked = {name: known[name] for name in wanted if name in known}
    tls_g, evidence["tls_g"] = _tls_g(elf, known)
    grpc = any(name.startswith(GRPC) for name in linked)
    # Without modules, as other build systems do it, grpc's version is not known.
    places = _places(elf, version, number, modules.get(GRPC, "") if grpc else None, evidence)
    if ("runtime.g", "goid") not in places:
        why = evidence.get("DWARF", f"without DWARF: {NEWEST[0]}.{NEWEST[1]} is the newest known")
        raise Unfit(f"Go program built by {version}: {why}")
    return Go(
        number,
        tls_g,
        places["runtime.g", "goid"],
        places.get(("runtime.g", "parentGoid")),
        linked,
        places,
        evidence,
    )


def build_info(elf: Elf) -> tuple[str, dict[str, str]] | None:
    """Return the text of the Go version and the modules' versions; None where it isn't Go.

    Before Go 1.18 the information lies elsewhere: the version is then "" and unknown.
    """
    section = elf.section(".go.buildinfo")
    if section is not None:
        raw = elf.content(section)
    else:  # a program stripped of its section headers: at the start of its data
        writable = [s for s in elf.segments if s.kind == 1 and s.flags & 2]
        raw = b"".join(elf.take(s.offset, min(s.size, _MOST)) for s in writable[:_DATA_SEGMENTS])
    at = raw.find(_MAGIC)
    if at < 0 or len(raw) < at + _HEADER:
        return None
    if not raw[at + 15] & _INLINE:
        return "", {}
    version, end = _string(raw, at + _HEADER)
    info, _end = _string(raw, end)
    modules = {}
    name = ""
    # Sentinels of 16 bytes stand around the lines.
    for line in info[16:-16].decode("utf-8", "replace").split("\n"):
        parts = line.split("\t")
        if parts[0] in ("mod", "dep") and len(parts) >= 3:
            name = parts[1]
            modules[name] = parts[2]
        elif parts[0] == "=>" and len(parts) >= 3 and name:
            modules[name] = parts[2]  # replaced by another
    return version.decode("utf-8", "replace"), modules


def _string(raw: bytes, at: int) -> tuple[bytes, int]:
    length = shift = 0
    while True:
        if at >= len(raw) or shift > 35:
            raise ElfError("Go build information cut short")
        byte = raw[at]
        length |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return raw[at : at + length], at + length


def _number(version: str) -> tuple[int, int, int] | None:
    match = re.match(r"(?:devel )?go(\d+)\.(\d+)(?:\.(\d+))?", version)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def _places(
    elf: Elf,
    version: str,
    number: tuple[int, int, int],
    grpc: str | None,
    evidence: dict[str, str],
) -> dict[tuple[str, str], int]:
    """Return WANTED_MEMBERS from tables, and from DWARF what these leave open.

    grpc: the version of grpc-go, "" where it is unknown, None where it isn't linked in.
    """
    of_go = _go_members(number)
    match = re.match(r"v(\d+)\.(\d+)\.", grpc or "")
    of_grpc = grpc_members(int(match[1]), int(match[2])) if match else {}
    if of_go:
        evidence["members"] = f"table of Go {number[0]}.{number[1]}"
    if of_grpc:
        evidence["members of grpc"] = f"table of grpc-go {grpc}"
    # Go under development, or changed by someone, may have laid things out anew.
    go_settled = bool(of_go) and _RELEASED.fullmatch(version) is not None
    grpc_settled = bool(of_grpc) or grpc is None
    found: dict[tuple[str, str], int] = {}
    try:
        found = dwarf.members(
            elf,
            (key for key in WANTED_MEMBERS if not (grpc_settled if GRPC in key[0] else go_settled)),
        )
    except dwarf.TooLarge as error:
        evidence["DWARF"] = str(error)
    for kind, _member in found:
        evidence["members of grpc" if GRPC in kind else "members"] = "DWARF"
    return of_go | of_grpc | found


def _go_members(number: tuple[int, int, int]) -> dict[tuple[str, str], int]:
    """Return members of Go itself by its version, {} where it is unknown."""
    if not OLDEST <= number[:2] <= NEWEST:
        return {}
    goid, parent, current = next(row for first, row in reversed(_GOROUTINE) if number[:2] >= first)
    result = dict(_STEADY)
    result["runtime.g", "goid"] = goid
    if parent is not None:
        result["runtime.g", "parentGoid"] = parent
    result["runtime.m", "curg"] = current
    return result


def _tls_g(elf: Elf, functions: Mapping[str, Function]) -> tuple[int, str]:
    """Return where g is from the FS base, and how that is known. Raises Unfit."""
    segment = next((s for s in elf.segments if s.kind == PT_TLS), None)
    # The executable's own block ends at the FS base, rounded to its alignment (variant II).
    size = 0
    if segment is not None:
        align = max(segment.align, 1)
        size = (segment.memory_size + align - 1) // align * align
    symbol = elf.symbols(("runtime.tlsg",)).get("runtime.tlsg")
    section = elf.section(".tbss")
    if symbol is not None and segment is not None and section is not None:
        # A TLS symbol's value is relative to the block; internal linking writes none.
        if symbol.value < segment.memory_size:
            return symbol.value - size, "symbol runtime.tlsg"
    for name in _SWITCHES:
        function = functions.get(name)
        if function is not None and (offset := _load_of_g(elf.take(function.entry, 64))):
            return offset, f"the code of {name}"
    if segment is not None and segment.memory_size == 8:
        return -8, "the only thread-local word"
    raise Unfit("Go program that keeps its goroutine in an unknown place")


def _load_of_g(code: bytes) -> int | None:
    """Return N of `mov reg, fs:[N]`, or of `mov $N, reg` with `mov reg2, fs:[reg]`."""
    for pattern in _LOADS_OF_G:
        match = pattern.search(code)
        if match:
            return int.from_bytes(match[1], "little", signed=True)
    return None


def grpc_members(major: int, minor: int) -> dict[tuple[str, str], int]:
    """Return members of grpc-go's transport by its version, {} where it is unknown.

    From the DWARF of 1.40, 1.48, 1.58, 1.66, 1.70, 1.76, 1.77, 1.79, 1.81 and 1.85, and the
    structs' sources in between: 1.52 put an address into http2Client, 1.60 took a context
    out of http2Server, 1.77 moved a stream's id.
    """
    if major != 1 or not _GRPC_OLDEST <= minor <= _GRPC_NEWEST:
        return {}
    result = {
        (f"{_TRANSPORT}.Stream", "id"): 0 if minor < 77 else 108,
        (f"{_TRANSPORT}.http2Client", "conn"): 64 if minor < 52 else 128,
        (f"{_TRANSPORT}.http2Server", "conn"): 32 if minor < 60 else 16,
    }
    if minor >= _GRPC_SPLIT:
        result[f"{_TRANSPORT}.ClientStream", "Stream"] = 0
        result[f"{_TRANSPORT}.ServerStream", "Stream"] = 0
    return result
