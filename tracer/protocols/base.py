"""What every protocol's decoder is given, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tracer.columns import I32, U64, Table
from tracer.flow import Exec
from tracer.spans import EVIDENCE, Remote, Resource, Shape, Text, TextColumn

Records = NDArray[np.void]

# Attributes that the conventions leave to the user ("opt-in") and that are on unless
# Settings.opt_in says otherwise. Off by default, for they cost bytes on each span and
# mostly repeat what another attribute says: network.local.address, network.local.port.
OPT_IN = frozenset(
    {
        "client.port",
        "db.response.returned_rows",
        "http.request.body.size",
        "http.response.body.size",
        "network.transport",
        "network.type",
        "thread.id",
        "url.scheme",
        "url.template",
        "user_agent.original",
        "wirespan.db.affected_rows",
    }
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How records become spans.

    query: what becomes of query strings: values masked, kept, or the whole dropped.
    sql: what becomes of statements sent to databases, and of the servers' messages about
        them: literals masked, kept, or the statements dropped and messages masked.
    opt_in: the optional attributes that spans carry.
    max_shapes: shapes remembered before all are forgotten and a new list is begun.
    seed: 64 bits unlike any other tracer's; makes private ids unique and hashes unguessable.
    """

    query: Literal["mask", "raw", "drop"] = "mask"
    sql: Literal["mask", "raw", "drop"] = "mask"
    opt_in: frozenset[str] = OPT_IN
    max_shapes: int = 4096
    seed: int = 0


class Processes(Protocol):
    """What of tracer.process.ProcessTable is used here."""

    def exec(
        self, tgid: int, start_ns: int, comm: str, exe: str, argv: Sequence[str], cgroup_id: int
    ) -> None:
        """Take note that a process has a new image; start_ns on CLOCK_BOOTTIME."""

    def resource(self, tgid: int, start_ns: int, comm: str, cgroup_id: int) -> Resource:
        """Describe a process; start_ns on CLOCK_BOOTTIME."""


class Routes(Protocol):
    """What of tracer.routes.RouteTable is used here."""

    def route(self, path: str) -> str:
        """Return the low-cardinality route of a URL path."""


class Columns(NamedTuple):
    """A decoder's part of a SpanBatch, (m,): spans in the order of the rows it was given.

    rows: which of the rows given became spans, ascending; None: all of them.
    remote: the parents that requests name; None: none does.
    content: uint64 (m,), a hash of what a proxy passes on as it is (method and target), 0
        for none, alike in all protocols; None: nothing of the kind.
    """

    shape: I32
    ints: Mapping[str, NDArray[np.int64]]
    texts: Mapping[str, Text]
    rows: NDArray[np.intp] | None = None
    remote: Remote | None = None
    content: U64 | None = None


class Shapes:
    """The shapes that all decoders of one tracer share.

    Once there are max_shapes, `renew` begins another list and another `generation`;
    batches made before keep the old one.
    """

    def __init__(self, processes: Processes, max_shapes: int) -> None:
        self._processes = processes
        self._max_shapes = max_shapes
        self.generation = 0
        self._begin()

    def _begin(self) -> None:
        # A new list, not a cleared one: batches made before still refer to the old.
        self.shapes: list[Shape] = []
        self._known: set[tuple[int, int]] = set()
        # Process -> how often it got a new image after a shape of it was made.
        self._images = Table()

    def renew(self) -> None:
        """Begin anew if full; called between batches, as an index is good within one list."""
        if len(self.shapes) >= self._max_shapes or len(self._images) >= self._max_shapes:
            self.generation += 1
            self._begin()

    def add(self, shape: Shape) -> int:
        """Add a shape and return its index; its spans may tell why they hang where they do."""
        evidence = TextColumn(EVIDENCE, "", EVIDENCE)
        self.shapes.append(replace(shape, texts=(*shape.texts, evidence)))
        return len(self.shapes) - 1

    def resource(self, record: np.void) -> Resource:
        """Describe the process that a record is of."""
        tgid, start_ns, comm, cgroup_id = _process(record)
        self._known.add((tgid, start_ns))
        return self._processes.resource(tgid, start_ns, comm, cgroup_id)

    def exec(self, record: np.void, process: U64) -> None:
        """Take note of a new image.

        record: of kind FLOW_EXEC. process: the hash of its process, (1,).
        """
        tgid, start_ns, comm, cgroup_id = _process(record)
        exe = text_of(record, Exec.EXE).rstrip(b"\0")
        argv = text_of(record, Exec.ARGV).split(b"\0")
        # Each argument ends with a NUL, save the one that the capture limit cut.
        if argv and not argv[-1]:
            argv.pop()
        self._processes.exec(
            tgid, start_ns, comm, _decode(exe), [_decode(argument) for argument in argv], cgroup_id
        )
        if (tgid, start_ns) in self._known:
            count = np.maximum(self._images.find(process), 0) + np.int32(1)
            self._images.put(process, count)

    def images(self, process: U64) -> I32 | None:
        """Return how many images each process has had since it was first seen, (n,).

        Negative for the one that all have; None instead of a column of those.
        """
        return self._images.find(process) if len(self._images) else None


class Decoder(Protocol):
    """Turns the records of one protocol into columns of spans."""

    def columns(self, records: Records, process: U64) -> Columns:
        """Decode; records: (m,). process: (m,), distinct for each image of each process."""

    def losses(self) -> Mapping[str, int]:
        """Count what this decoder lost since the start; keys of tracer.losses.USER."""


def text_of(record: np.void, slot: int) -> bytes:
    """Return one string of a record, cut to what lies inside its text."""
    used = min(int(record["text_len"]), len(record["text"]))
    off, length = (int(number) for number in record["fields"][slot])
    return bytes(record["text"][min(off, used) : min(off + length, used)])


def _process(record: np.void) -> tuple[int, int, str, int]:
    """Return tgid, start, comm and cgroup id."""
    tgid, start_ns = int(record["tgid"]), int(record["task_start_ns"])
    return tgid, start_ns, _decode(bytes(record["comm"])), int(record["cgroup_id"])


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
