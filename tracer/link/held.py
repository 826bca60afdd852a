"""Rows of batches that wait until their trace is known, and the making of batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracer.columns import I32, Rows
from tracer.match import take
from tracer.spans import Sampling, SpanBatch, Text

# Above so many chunks, neighbours are joined, for each costs a step of a Python loop.
MAX_CHUNKS = 64


@dataclass(slots=True)
class Chunk:
    """Some rows of a batch, and the node of each; both (n,)."""

    batch: SpanBatch
    rows: Rows
    nodes: I32


class Held:
    """What is held back, in order of arrival. Holds at most twice the memory of its rows."""

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self.nodes: I32 = np.zeros(0, dtype=np.int32)
        # When each came.
        self._since: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.nodes)

    @property
    def since_ns(self) -> int:
        """When the oldest came, 0 for none. May be asked from any thread."""
        since = self._since
        return int(since[0]) if len(since) else 0

    def add(self, batch: SpanBatch, nodes: I32, now_ns: int) -> None:
        """Take in all rows of a batch."""
        self._chunks.append(Chunk(batch, np.arange(len(batch)), nodes))
        since = np.full(len(nodes), now_ns)
        self._since = np.concatenate((self._since, since)) if len(self.nodes) else since
        self.nodes = np.concatenate((self.nodes, nodes)) if len(self.nodes) else nodes

    def rename(self, nodes: I32) -> None:
        """Take note of the new names of `nodes`, in their order."""
        self.nodes = nodes
        at = 0
        for chunk in self._chunks:
            chunk.nodes = nodes[at : at + len(chunk.nodes)]
            at += len(chunk.nodes)

    def release(self, ready: NDArray[np.bool_]) -> list[Chunk]:
        """Give out the rows that are ready, (n,) in the order of `nodes`."""
        released, left = [], []
        at = 0
        for chunk in self._chunks:
            mine = ready[at : at + len(chunk.rows)]
            at += len(chunk.rows)
            gone = int(np.count_nonzero(mine))
            if gone == len(mine):
                released.append(chunk)
                continue
            if gone:
                released.append(Chunk(chunk.batch, chunk.rows[mine], chunk.nodes[mine]))
                chunk = Chunk(chunk.batch, chunk.rows[~mine], chunk.nodes[~mine])
            left.append(_lean(chunk))
        self._chunks = left
        self.nodes, self._since = self.nodes[~ready], self._since[~ready]
        if len(left) > MAX_CHUNKS:
            self._join()
        return released

    def _join(self) -> None:
        joined: list[Chunk] = []
        for same in _runs(self._chunks):
            nodes = np.concatenate([chunk.nodes for chunk in same])
            joined.append(Chunk(join(same), np.arange(len(nodes)), nodes))
        self._chunks = joined


def batches(chunks: Sequence[Chunk]) -> list[tuple[SpanBatch, I32]]:
    """Make one batch of each run of chunks that share their shapes; with the rows' nodes."""
    return [(join(same), np.concatenate([chunk.nodes for chunk in same])) for same in _runs(chunks)]


def _runs(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    runs: list[list[Chunk]] = []
    for chunk in chunks:
        if runs and runs[-1][0].batch.shapes is chunk.batch.shapes:
            runs[-1].append(chunk)
        else:
            runs.append([chunk])
    return runs


def _lean(chunk: Chunk) -> Chunk:
    """Let go of a batch of which only a minor part is held."""
    if 2 * len(chunk.rows) > len(chunk.batch):
        return chunk
    return Chunk(take(chunk.batch, chunk.rows), np.arange(len(chunk.rows)), chunk.nodes)


def join(chunks: Sequence[Chunk]) -> SpanBatch:
    """Make one batch of chunks that share their shapes; each column is copied once at most."""
    if len(chunks) == 1:
        return take(chunks[0].batch, chunks[0].rows)
    total = sum(len(chunk.rows) for chunk in chunks)
    first = chunks[0].batch

    def lay(columns: Sequence[NDArray[np.generic] | None], fill: int, width: int) -> NDArray:  # type: ignore[type-arg]
        sample = next(column for column in columns if column is not None)
        shape = (total, width) if sample.ndim == 2 else (total,)
        whole = np.full(shape, fill, sample.dtype) if fill else np.zeros(shape, sample.dtype)
        at = 0
        for chunk, column in zip(chunks, columns, strict=True):
            count = len(chunk.rows)
            if column is not None:
                part = column if count == len(chunk.batch) else column[chunk.rows]
                if sample.ndim == 2:
                    whole[at : at + count, : part.shape[1]] = part
                else:
                    whole[at : at + count] = part
            at += count
        return whole

    def plain(name: str) -> NDArray:  # type: ignore[type-arg]
        column = getattr(first, name)
        width = column.shape[1] if column.ndim == 2 else 0
        return lay([getattr(chunk.batch, name) for chunk in chunks], 0, width)

    ints = {
        name: lay([chunk.batch.ints.get(name) for chunk in chunks], -1, 0)
        for name in dict.fromkeys(name for chunk in chunks for name in chunk.batch.ints)
    }
    texts = {}
    for name in dict.fromkeys(name for chunk in chunks for name in chunk.batch.texts):
        columns = [chunk.batch.texts.get(name) for chunk in chunks]
        width = max(column.bytes.shape[1] for column in columns if column is not None)
        texts[name] = Text(
            lay([None if column is None else column.bytes for column in columns], 0, width),
            lay([None if column is None else column.length for column in columns], 0, 0),
        )
    samplings = [chunk.batch.sampling for chunk in chunks]
    sampling = None
    if any(samplings):
        sampling = Sampling(
            lay([each and each.threshold for each in samplings], 0, 0),
            lay([each and each.lot for each in samplings], -1, 0),
        )
    return SpanBatch(
        trace_id=plain("trace_id"),
        span_id=plain("span_id"),
        parent_span_id=plain("parent_span_id"),
        start_ns=plain("start_ns"),
        end_ns=plain("end_ns"),
        shape=plain("shape"),
        shapes=first.shapes,
        ints=ints,
        texts=texts,
        sampling=sampling,
    )
