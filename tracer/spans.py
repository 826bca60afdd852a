"""The one span type: a batch of spans in columns.

Everything that many spans share (resource, name, kind, status, constant attributes) is a
`Shape`, interned once; what differs from span to span is a column. Renderers (OTLP, text,
JSON) read batches and never kernel records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

AttributeValue = str | int | float | bool | tuple[str, ...]

# The column, and attribute, that tells what says where a span hangs.
EVIDENCE = "wirespan.link.evidence"

KIND_INTERNAL, KIND_SERVER, KIND_CLIENT = 1, 2, 3
STATUS_UNSET, STATUS_OK, STATUS_ERROR = 0, 1, 2
SAMPLED_YES, SAMPLED_NO = 1, 2


@dataclass(frozen=True, slots=True)
class Resource:
    """OTel resource attributes of one process; equal resources are one resource."""

    attributes: tuple[tuple[str, AttributeValue], ...]


class IntColumn(NamedTuple):
    """An attribute `key` whose value is `batch.ints[column]`."""

    key: str
    column: str


class TextColumn(NamedTuple):
    """An attribute `key` whose value is `prefix` + `batch.texts[column]`."""

    key: str
    prefix: str
    column: str


@dataclass(frozen=True, slots=True)
class Shape:
    """What a set of spans have in common."""

    resource: Resource
    name: str
    kind: int
    status: int
    status_message: str
    attributes: tuple[tuple[str, AttributeValue], ...]
    ints: tuple[IntColumn, ...]
    texts: tuple[TextColumn, ...]


class Text(NamedTuple):
    """A column of strings: row i is `bytes[i, :length[i]]`, UTF-8 as far as possible.

    bytes: uint8 (n, width); what lies beyond a row's length is undefined.
    length: uint16 (n,).
    """

    bytes: NDArray[np.uint8]
    length: NDArray[np.uint16]


class Remote(NamedTuple):
    """Parents that requests themselves name (traceparent and its like), (n,).

    The ids as words that hold their bytes as they come. span: 0 where none is named.
    sampled: SAMPLED_YES or SAMPLED_NO, what the parent says of its trace; 0 where it doesn't.
    """

    trace_high: NDArray[np.uint64]
    trace_low: NDArray[np.uint64]
    span: NDArray[np.uint64]
    sampled: NDArray[np.uint64]


class Links(NamedTuple):
    """What of n spans tells where they hang; see tracer.link.stitch.

    client: bool (n,), whether the span is a client's side.
    exchange: uint64 (n,), a server's side: the number by which its process's own requests
        refer to it; a client's: that by which a handover does.
    parent: uint64 (n,), a client's side: the `exchange` it was made for; a server's: the
        word of its client's span id. 0: there is none.
    evidence: uint8 (n,), enum flow_evidence: what says so of a client's side.
    start_ns, end_ns: uint64 (n,), CLOCK_MONOTONIC.
    process: uint64 (n,), a hash of the process.
    content: uint64 (n,), a hash of method and target; 0: not to be compared.
    near: uint16 (n,), where by its address the peer is on this very host: a number that all
        exchanges with one service have, and may be another's, too. 0: it is not.
    handovers: uint64 (m, 2) or None: the `exchange` of a client's side, of this batch or one
        before, and that of the server's side it turned out to be made for.
    """

    client: NDArray[np.bool_]
    exchange: NDArray[np.uint64]
    parent: NDArray[np.uint64]
    evidence: NDArray[np.uint8]
    start_ns: NDArray[np.uint64]
    end_ns: NDArray[np.uint64]
    process: NDArray[np.uint64]
    content: NDArray[np.uint64]
    near: NDArray[np.uint16]
    remote: Remote
    handovers: NDArray[np.uint64] | None = None


class Sampling(NamedTuple):
    """With which probability n spans were kept; see tracer.sampling.

    threshold: uint64 (n,), the rejection threshold t: those whose randomness is below it, of
        56 bits, were let go, so that 1 - t / 2**56 of all were kept. 2**56: nobody knows.
    lot: int32 (n,), the upper 16 bits of that randomness where the kernel drew them; -1: it
        is the trace id's own.
    """

    threshold: NDArray[np.uint64]
    lot: NDArray[np.int32]

    def rows(self, rows: NDArray[np.intp]) -> Sampling:
        """Return that of some rows."""
        return Sampling(self.threshold[rows], self.lot[rows])


@dataclass(frozen=True, slots=True)
class SpanBatch:
    """n spans. Rows are in the order in which their exchanges ended.

    trace_id: uint8 (n, 16); span_id, parent_span_id: uint8 (n, 8), a zero parent is none.
    start_ns, end_ns: uint64 (n,), Unix time.
    shape: int32 (n,), an index into `shapes`, which only ever grows while a tracer runs:
        an index means the same shape in every batch that shares the sequence.
    ints: columns int64 (n,); a negative value means that this span lacks the attribute.
    texts: columns of strings; a zero length means that this span lacks the attribute,
        unless the shape gives it a prefix.
    links: where the spans hang, as long as trace_id and parent_span_id don't say it yet.
    sampling: None where nothing was let go so far.
    fate: uint8 (n,), what the sampler has decided and not yet done; None: nothing.
    """

    trace_id: NDArray[np.uint8]
    span_id: NDArray[np.uint8]
    parent_span_id: NDArray[np.uint8]
    start_ns: NDArray[np.uint64]
    end_ns: NDArray[np.uint64]
    shape: NDArray[np.int32]
    shapes: Sequence[Shape]
    ints: Mapping[str, NDArray[np.int64]]
    texts: Mapping[str, Text]
    links: Links | None = None
    sampling: Sampling | None = None
    fate: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.shape)
