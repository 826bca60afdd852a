"""The reassembler: kernel records in, spans out, both in columns.

What all protocols share (times, ids, processes) is done here; the rest is the decoder's of
each protocol. A protocol is one entry in DECODERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer import ids
from tracer.columns import U64, Rows, absorb, nonzero
from tracer.flow import Family, Flag, Kind, Protocol, Role
from tracer.link.headers import nobody
from tracer.protocols.base import (
    Columns,
    Decoder,
    Processes,
    Records,
    Routes,
    Settings,
    Shapes,
)
from tracer.protocols.http1 import Http1
from tracer.protocols.http1_shape import FIRST_BYTE, THREAD
from tracer.protocols.http2 import Http2
from tracer.protocols.mysql import MySql
from tracer.protocols.postgresql import PostgreSql
from tracer.protocols.redis import Redis
from tracer.records import take
from tracer.sampling import level_threshold
from tracer.spans import EVIDENCE, Links, Remote, Sampling, SpanBatch, Text

NewDecoder = Callable[[Shapes, Routes, Settings], Decoder]

# Plain numbers, since numpy takes its time to find out that an IntEnum is one.
_EXCHANGE, _EXEC, _HANDOVER = int(Kind.EXCHANGE), int(Kind.EXEC), int(Kind.HANDOVER)
_LAST_KIND = max(Kind)
_CLIENT, _SERVER = int(Role.CLIENT), int(Role.SERVER)
_INET = int(Family.INET)
_LOOPBACK_NET = 127  # RFC 1122 section 3.2.1.3
_IDS_PRIVATE = np.uint32(Flag.IDS_PRIVATE)
# Of flow_exchange_id() in ebpf/flow.h.
_EXCHANGE_FACTOR = np.uint64(0x9E3779B97F4A7C15)

_THRESHOLDS = np.array([level_threshold(level) for level in range(256)], dtype=np.uint64)

DECODERS: Mapping[int, NewDecoder] = {
    Protocol.HTTP1: Http1,
    Protocol.HTTP2: Http2,
    Protocol.MYSQL: MySql,
    Protocol.REDIS: Redis,
    Protocol.POSTGRESQL: PostgreSql,
}


class Reassembler:
    """Turns batches of records into batches of spans; used from one thread.

    processes: describes processes. routes: names paths. decoders: by enum flow_protocol.
    """

    def __init__(
        self,
        processes: Processes,
        routes: Routes,
        settings: Settings | None = None,
        decoders: Mapping[int, NewDecoder] = DECODERS,
    ) -> None:
        self._settings = settings or Settings()
        self._shapes = Shapes(processes, self._settings.max_shapes)
        self._decoders = {
            number: new(self._shapes, routes, self._settings) for number, new in decoders.items()
        }
        self._losses = {"unknown_record": 0, "time_reversed": 0}

    def losses(self) -> dict[str, int]:
        """Count what was passed over or mended since the start; keys of tracer.losses.USER."""
        losses = dict(self._losses)
        for decoder in self._decoders.values():
            losses.update(decoder.losses())
        return losses

    def feed(self, records: NDArray[Any], unix_offset_ns: int) -> SpanBatch:
        """Make spans of records; one for each exchange, in the records' order.

        records: (n,) of the dtype flow_record; nothing of them is kept.
        unix_offset_ns: what to add to their CLOCK_MONOTONIC times to get Unix time.
        Strings and numbers that make no sense are cut to what does; records that nothing
        is known of are counted. What is raised comes from `processes` or `routes`.
        """
        self._shapes.renew()
        process = self._processes(records)
        handovers: U64 | None = None
        kind = records["kind"]
        if (kind != _EXCHANGE).any():
            self._take_execs(records, process)
            handed = take(records, kind == _HANDOVER)
            if len(handed):
                handovers = np.stack((handed["conn_id"], handed["parent"]), axis=1)
            known = (kind >= _EXCHANGE) & (kind <= _LAST_KIND)
            self._losses["unknown_record"] += int(np.count_nonzero(~known))
            flows = known & (kind != _EXEC) & (kind != _HANDOVER)
            if not flows.all():
                records, process = take(records, flows), process[flows]
        images = self._shapes.images(process)
        if images is not None:
            later = absorb(process, images.astype(np.uint64))
            process = np.where(images < 0, process, later)
        parts = self._decode(records, process)
        if len(parts) == 1:
            rows, columns = parts[0]
            if len(rows) < len(records):
                records, process = take(records, rows), process[rows]
            return self._batch(records, process, columns, unix_offset_ns, handovers)
        rows, columns = _merge(parts, len(records))
        return self._batch(take(records, rows), process[rows], columns, unix_offset_ns, handovers)

    def _processes(self, records: Records) -> U64:
        """Return a hash of each record's process, (n,)."""
        seed = np.uint64(self._settings.seed)
        return absorb(
            absorb(records["task_start_ns"] ^ seed, records["tgid"].astype(np.uint64)), seed
        )

    def _take_execs(self, records: Records, process: U64) -> None:
        """Hand over what tells of new images."""
        for row in np.flatnonzero(records["kind"] == _EXEC).tolist():
            self._shapes.exec(records[row], process[row : row + 1])

    def _decode(self, records: Records, process: U64) -> list[tuple[Rows, Columns]]:
        """Let each protocol's decoder have its rows; those of no decoder are counted."""
        protocol, role = records["protocol"], records["role"]
        sound = (role == _CLIENT) | (role == _SERVER)
        parts = []
        taken = 0
        for number, decoder in self._decoders.items():
            rows = np.flatnonzero((protocol == number) & sound)
            if not len(rows):
                continue
            taken += len(rows)
            if len(rows) == len(records):
                columns = decoder.columns(records, process)
            else:
                columns = decoder.columns(take(records, rows), process[rows])
            parts.append((rows if columns.rows is None else rows[columns.rows], columns))
        self._losses["unknown_record"] += len(records) - taken
        return parts

    def _batch(
        self,
        records: Records,
        process: U64,
        columns: Columns,
        unix_offset_ns: int,
        handovers: U64 | None,
    ) -> SpanBatch:
        """Add what all protocols have: ids, times, threads."""
        start = records["start_ns"]
        first_byte_ns = records["first_byte_ns"]
        answered = first_byte_ns != 0
        to_first_byte = (first_byte_ns - start).astype(np.int64)
        to_first_byte[~answered] = -1
        offset = np.uint64(unix_offset_ns % (1 << 64))
        unix_start, unix_end = start + offset, records["end_ns"] + offset
        reversed_ = (unix_end < unix_start) | (answered & (to_first_byte < 0))
        if reversed_.any():
            self._losses["time_reversed"] += int(np.count_nonzero(reversed_))
            unix_end = np.maximum(unix_start, unix_end)
        client = records["role"] == _CLIENT
        key = ids.keys(records["request_seq"], records["response_seq"])
        private = (records["flags"] & _IDS_PRIVATE) != 0
        if private.any():
            own = ids.private_keys(key, records["conn_id"], start, client, self._settings.seed)
            key = np.where(private, own, key)
        links = _links(records, process, columns, key, client, private)
        evidence = Text(np.zeros((len(records), 0), np.uint8), np.zeros(len(records), np.uint16))
        return SpanBatch(
            trace_id=ids.trace_id(key),
            span_id=ids.span_id(key, client),
            parent_span_id=np.zeros((len(records), 8), dtype=np.uint8),
            start_ns=unix_start,
            end_ns=unix_end,
            shape=columns.shape,
            shapes=self._shapes.shapes,
            ints={
                **columns.ints,
                THREAD: records["request_tid"].astype(np.int64),
                FIRST_BYTE: to_first_byte,
            },
            texts={**columns.texts, EVIDENCE: evidence},
            links=links._replace(handovers=handovers),
            sampling=_sampling(records),
        )


def _sampling(records: Records) -> Sampling | None:
    """Say what the kernel kept these by; None where it let nothing go as they began."""
    level = records["level"]
    if not level.any():
        return None
    lot = records["lot"].astype(np.int32)
    lot[level == 0] = -1
    return Sampling(_THRESHOLDS[level], lot)


def _links(
    records: Records,
    process: U64,
    columns: Columns,
    key: U64,
    client: NDArray[np.bool_],
    private: NDArray[np.bool_],
) -> Links:
    """Say what the spans of these records may hang on; all (n,)."""
    start = records["start_ns"]
    exchange = records["conn_id"] * _EXCHANGE_FACTOR ^ start
    exchange ^= records["request_seq"].astype(np.uint64) << np.uint64(32)
    # A client's side that doesn't share its numbers can't be told from the server's.
    above = ids.client_span_id(key).view(np.uint64)[:, 0]
    above[private] = 0
    content = columns.content
    return Links(
        client=client,
        exchange=nonzero(exchange),
        parent=np.where(client, records["parent"], above),
        evidence=records["evidence"].astype(np.uint8),
        start_ns=start.copy(),
        end_ns=records["end_ns"].copy(),
        process=process,
        content=np.zeros(len(records), np.uint64) if content is None else content,
        near=_near(records, client),
        remote=columns.remote or nobody(len(records)),
    )


def _near(records: Records, client: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Number the services whose peers are on this host by their address; 0 for the others, (n,).

    That is an address of loopback, or this side's own. Unix sockets have none, and so the same
    on both sides.
    """
    local, remote = records["local_addr"].view(np.uint64), records["remote_addr"].view(np.uint64)
    near: NDArray[np.bool_] = (local[:, 0] == remote[:, 0]) & (local[:, 1] == remote[:, 1])
    if not near.all():
        loopback = records["remote_addr"][:, 0] == _LOOPBACK_NET
        near |= loopback & (records["family"] == _INET)
    port = np.where(client, records["remote_port"], records["local_port"]).astype(np.uint64)
    port |= records["netns"].astype(np.uint64) << np.uint64(16)
    number = (port * _EXCHANGE_FACTOR >> np.uint64(48)).astype(np.uint16)
    number |= np.uint16(1)
    number[~near] = 0
    return number


def _merge(parts: list[tuple[Rows, Columns]], count: int) -> tuple[Rows, Columns]:
    """Lay the parts of several decoders into one set of columns, in the order of rows.

    count: how many rows there were. Returns the rows that some decoder took, and theirs.
    """
    taken = np.zeros(count, dtype=np.bool_)
    for rows, _ in parts:
        taken[rows] = True
    place = np.cumsum(taken) - 1
    total = int(np.count_nonzero(taken))
    shape = np.zeros(total, dtype=np.int32)
    ints: dict[str, NDArray[np.int64]] = {}
    texts: dict[str, Text] = {}
    remote = np.zeros((len(Remote._fields), total), dtype=np.uint64)
    content = np.zeros(total, dtype=np.uint64)
    for rows, columns in parts:
        at = place[rows]
        shape[at] = columns.shape
        for name, values in columns.ints.items():
            ints.setdefault(name, np.full(total, -1, dtype=np.int64))[at] = values
        for name, text in columns.texts.items():
            texts[name] = _lay(text, at, texts.get(name), total)
        if columns.remote is not None:
            for whole, words in zip(remote, columns.remote, strict=True):
                whole[at] = words
        if columns.content is not None:
            content[at] = columns.content
    made = Columns(shape, ints, texts, remote=Remote(*remote), content=content)
    return np.flatnonzero(taken), made


def _lay(text: Text, at: Rows, below: Text | None, total: int) -> Text:
    """Return a column of `total` strings: those of `text` at the rows `at`, over `below`."""
    width = text.bytes.shape[1]
    if below is None:
        below = Text(np.zeros((total, width), np.uint8), np.zeros(total, np.uint16))
    elif below.bytes.shape[1] < width:
        wider = np.zeros((total, width), np.uint8)
        wider[:, : below.bytes.shape[1]] = below.bytes
        below = Text(wider, below.length)
    below.bytes[at, :width] = text.bytes
    below.length[at] = text.length
    return below
