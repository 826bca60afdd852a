"""The kernel's parser headers, built for the host and called through ctypes.

Layouts and names come from the BTF of types.bpf.c, so they are what C says.
"""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tests.root.compile import clang
from tracer.kernel.btf import Kind
from tracer.kernel.layout import layout_of, read_object, struct_dtype

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "host"

COMPILERS = ("gcc", "clang")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
CLIENT, SERVER = False, True  # who sends a segment


def build(target: str, *command: str) -> Path:
    """Compile into build/host/TARGET, in one step for whoever looks at it meanwhile."""
    BUILD.mkdir(parents=True, exist_ok=True)
    fresh = BUILD / f"{target}.{os.getpid()}"
    subprocess.run([*command, *WARNINGS, "-o", str(fresh)], check=True)
    return fresh.replace(BUILD / target)


class Types:
    """What BTF says of the structs and enums of parsers.h."""

    def __init__(self, path: Path) -> None:
        found = read_object(path)
        self._btf = found.btf
        self.layout = layout_of(found)
        self.record = self.layout.record
        self.segment = struct_dtype(self._btf, "host_segment")
        self.options = struct_dtype(self._btf, "host_options")
        self.result = struct_dtype(self._btf, "host_result")
        self.detect = self.enum("detect", "DETECT_")
        self.protocol = self.enum("flow_protocol", "FLOW_PROTO_")
        self.outcome = self.enum("replay_outcome", "REPLAY_")
        self.record_kind = self.enum("flow_kind", "FLOW_")
        self.kind = self.enum("host_kind", "HOST_")
        self.end = self.enum("flow_end", "FLOW_END_")
        self.flag = self.enum("flow_flag", "FLOW_FLAG_")
        self.method = self.enum("flow_method", "FLOW_METHOD_")
        self.role = self.enum("flow_role", "FLOW_")
        self.text = self.enum("flow_text", "FLOW_TEXT_")
        self.window = int(self.enum("host_limit", "HOST_")["WINDOW"])

    def enum(self, name: str, prefix: str) -> type[IntEnum]:
        """An enum of C, its common prefix left off."""
        rows = self._btf.find(Kind.ENUM, name).rows
        members = [(self._btf.string(row[0]).removeprefix(prefix), row[1]) for row in rows]
        return cast(type[IntEnum], IntEnum(name, members))


@cache
def types() -> Types:
    include = f"/usr/include/{platform.machine()}-linux-gnu"
    source = str(HERE / "types.bpf.c")
    flags = ["-g", "-O2", "-target", "bpf", "-isystem", include]
    return Types(build("types.bpf.o", clang(), *flags, "-c", source))


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes that one side sent at once, a number of them that nobody saw, or its close."""

    server: bool
    data: bytes = b""
    unseen: int = 0
    close: bool = False

    @property
    def kind(self) -> int:
        if self.close:
            return int(types().kind["CLOSE"])
        return int(types().kind["UNSEEN" if self.unseen else "BYTES"])


@dataclass(frozen=True, slots=True)
class Script:
    """A connection's segments, flat: what the library takes.

    data: the bytes of all segments; segments: shape (n,), dtype Types.segment.
    """

    data: bytes
    segments: NDArray[np.void]

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Script:
        rows = np.zeros(len(segments), types().segment)
        rows["len"] = [segment.unseen or len(segment.data) for segment in segments]
        rows["at"] = np.arange(1, len(segments) + 1)
        rows["response"] = [segment.server for segment in segments]
        rows["kind"] = [segment.kind for segment in segments]
        return cls(b"".join(segment.data for segment in segments), rows)

    def cut(self, cuts: NDArray[np.int64]) -> Script:
        """The same bytes at the same times in more segments: cut at offsets into `data`."""
        seen = self.segments["kind"] == types().kind["BYTES"]
        starts = np.cumsum(np.where(seen, self.segments["len"], 0)) - self.segments["len"]
        pieces: list[NDArray[np.void]] = []
        for row, begin, is_seen in zip(self.segments, starts.astype(np.int64), seen, strict=True):
            end = begin + int(row["len"])
            inner = cuts[(cuts > begin) & (cuts < end)] if is_seen else cuts[:0]
            piece = np.repeat(row, len(inner) + 1)
            piece["len"] = np.diff(np.concatenate([[begin], inner, [end]]))
            pieces.append(piece)
        return Script(self.data, np.concatenate(pieces) if pieces else self.segments)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a connection came to.

    records: shape (n,), dtype flow_record; request and response: names of enum
    replay_outcome; protocol: name of enum flow_protocol.
    """

    records: NDArray[np.void]
    in_flight: int
    request: str
    response: str
    protocol: str

    def same(self, other: Outcome) -> bool:
        """Whether both tell the same, down to the bytes of the records."""
        return (
            self.records.tobytes() == other.records.tobytes()
            and (self.request, self.response) == (other.request, other.response)
            and (self.in_flight, self.protocol) == (other.in_flight, other.protocol)
        )


class Parsers:
    """The library as one compiler made it."""

    MOST = 16_384  # records of one run

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        pointer = ctypes.c_void_p
        self._run = library.host_run
        self._run.restype = None
        self._run.argtypes = [
            ctypes.c_char_p,
            pointer,
            ctypes.c_uint32,
            pointer,
            pointer,
            ctypes.c_uint32,
            pointer,
        ]
        self._detect = library.host_detect
        self._detect.restype = ctypes.c_uint32
        self._detect.argtypes = [
            ctypes.c_char_p,
            ctypes.c_uint32,
            ctypes.c_uint64,
            ctypes.c_uint32,
        ]
        self._records = np.zeros(self.MOST, types().record)
        self._result = np.zeros(1, types().result)

    def run(
        self,
        script: Script,
        *,
        window: int = 0,
        role: str = "CLIENT",
        resync: bool = False,
        old: bool = False,
    ) -> Outcome:
        """Run a connection, seen from `role`.

        window: fresh bytes presented at once, 0 for as many as in the kernel;
        resync: take up again behind a refusal; old: begin in the middle of the connection.
        """
        names = types()
        assert window <= names.window
        options = np.zeros(1, names.options)
        options["window"], options["resync"] = window or names.window, resync
        options["old"] = old
        options["role"] = names.role[role]
        segments = np.ascontiguousarray(script.segments)
        self._run(
            script.data,
            segments.ctypes.data,
            len(segments),
            options.ctypes.data,
            self._records.ctypes.data,
            self.MOST,
            self._result.ctypes.data,
        )
        result = self._result[0]
        assert result["records"] <= self.MOST, "more records than were asked for"
        return Outcome(
            records=self._records[: result["records"]].copy(),
            in_flight=int(result["in_flight"]),
            request=names.outcome(result["request"]).name,
            response=names.outcome(result["response"]).name,
            protocol=names.protocol(result["protocol"]).name,
        )

    def detect(self, data: bytes, total: int = 0, fresh: bool = True) -> tuple[str, str]:
        """What first bytes speak: names of enum flow_protocol and enum detect."""
        data = data[: types().window]
        found = self._detect(data, len(data), max(total, len(data)), fresh)
        return types().protocol(found >> 8).name, types().detect(found & 0xFF).name


@cache
def parsers(compiler: str = "gcc") -> Parsers:
    """The library built by "gcc" or "clang"."""
    command = clang() if compiler == "clang" else compiler
    flags = [
        "-g",
        "-O2",
        "-std=gnu11",
        "-fPIC",
        "-shared",
        "-Wl,-Bsymbolic",
        "-Wno-unused",
        f"-I{ROOT}/ebpf",
    ]
    return Parsers(build(f"parsers.{compiler}.so", command, *flags, str(HERE / "parsers.c")))


def text(record: Any, field: str) -> bytes:
    """A string of a record, by the name of its enum flow_text."""
    where = record["fields"][types().text[field]]
    return bytes(record["text"][where["off"] : where["off"] + where["len"]])
