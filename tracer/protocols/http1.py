"""Records of HTTP/1 exchanges to columns of spans.

Whatever some exchanges have in common is in their Shape (http1_shape), made once per
distinct combination; targets are split, masked and folded (http1_target) once per distinct
target. Rows are told apart by 64-bit hashes of all that would make a difference, so that
Python runs only for what has not been seen of late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tracer.columns import I32, U64, Column, Rows, Table, Words, absorb, distinct, nonzero
from tracer.flow import Method, Role, Slot
from tracer.link.headers import Headers
from tracer.protocols import http1_shape as shapes
from tracer.protocols.base import Columns, Records, Routes, Settings, Shapes
from tracer.protocols.http1_target import MAX_BYTES, Target, TargetClass, parse
from tracer.spans import Remote, Text

# Targets remembered; when there are more, all are forgotten, since a table that tells old
# from new would cost more than meeting the common ones again.
MAX_TARGETS = 8192

# Slots that go into a shape, and the bits of flow_record.truncated that then matter.
_SHAPE_SLOTS = (
    Slot.HOST,
    Slot.USER_AGENT,
    Slot.FORWARDED_FOR,
    Slot.FORWARDED_PROTO,
    Slot.METHOD,
    Slot.UNIX_PATH,
)
_SERVER_SLOTS = (Slot.FORWARDED_FOR, Slot.FORWARDED_PROTO)
_SHAPE_BITS = np.uint64(sum(1 << slot for slot in _SHAPE_SLOTS))
_TARGET_BIT = np.uint64(1 << Slot.TARGET)
# Plain numbers, since numpy takes its time to find out that an IntEnum is one.
_CONNECT, _SERVER = int(Method.CONNECT), int(Role.SERVER)


class Http1:
    """The decoder of FLOW_PROTO_HTTP1; see tracer.protocols.base.Decoder."""

    def __init__(self, shapes: Shapes, routes: Routes, settings: Settings) -> None:
        self._shapes = shapes
        self._routes = routes
        self._settings = settings
        self._targets = _Targets()
        self._headers = Headers()
        self._known = Table(settings.max_shapes)
        self._generation = shapes.generation

    def columns(self, records: Records, process: U64) -> Columns:
        """Decode; every record gives one span."""
        if self._generation != self._shapes.generation:
            self._generation = self._shapes.generation
            self._known.clear()
        rows = _Rows(records)
        keys = self._target_keys(rows)
        target = self._target_rows(rows, keys)
        shape = self._shape_rows(rows, process, target)
        content = absorb(keys, rows.method)
        content[(rows.method == 0) | ((rows.truncated & _TARGET_BIT) != 0)] = 0
        return Columns(
            shape,
            self._ints(rows),
            self._texts(rows, target),
            remote=self._remote(rows),
            content=content,
        )

    def losses(self) -> dict[str, int]:
        """Nothing is lost here."""
        return {}

    def _remote(self, rows: _Rows) -> Remote | None:
        """Read the parents that requests name."""
        length = rows.length[Slot.TRACEPARENT]
        named = np.flatnonzero(length)
        if not len(named):
            return None
        size = length[named]
        text = rows.words.take(named, rows.off[Slot.TRACEPARENT][named], int(size.max()))
        found = self._headers.parents(text, size)
        if len(named) == len(length):
            return found
        columns = np.zeros((len(Remote._fields), len(length)), dtype=np.uint64)
        columns[:, named] = found
        return Remote(*columns)

    def _target_keys(self, rows: _Rows) -> U64:
        """Return a hash of each row's target and of what else its parsing depends on."""
        cut = (rows.truncated & _TARGET_BIT) != 0
        return target_keys(
            rows.words,
            rows.off[Slot.TARGET],
            rows.length[Slot.TARGET],
            rows.method == _CONNECT,
            cut,
            self._settings.seed,
        )

    def _target_rows(self, rows: _Rows, keys: U64) -> Rows:
        """Return each row's place in the memo of targets."""
        connect = rows.method == _CONNECT
        cut = (rows.truncated & _TARGET_BIT) != 0

        def make(row: int) -> Target:
            return parse(
                rows.string(row, Slot.TARGET),
                connect=bool(connect[row]),
                cut=bool(cut[row]),
                query=self._settings.query,
                routes=self._routes,
            )

        return self._targets.rows(nonzero(keys), make)

    def _shape_rows(self, rows: _Rows, process: U64, target: Rows) -> I32:
        """Return each row's index into the list of shapes."""
        keys = nonzero(rows.absorb_head(absorb(process, self._targets.class_key[target])))
        found = self._known.find(keys)
        missing = np.flatnonzero(found < 0)
        if len(missing):
            new, first, place = distinct(keys[missing])
            indices = np.array(
                [self._new_shape(rows, row, target[row]) for row in missing[first].tolist()],
                dtype=np.int32,
            )
            self._known.put(new, indices)
            found[missing] = indices[place]
        return found

    def _new_shape(self, rows: _Rows, row: int, target: int) -> int:
        resource = self._shapes.resource(rows.records[row])
        kind = self._targets.classes[target]
        return self._shapes.add(shapes.shape(rows.head(row), kind, resource, self._settings))

    def _ints(self, rows: _Rows) -> dict[str, NDArray[np.int64]]:
        records = rows.records
        ints = {
            shapes.PEER_PORT: records["remote_port"].astype(np.int64),
            shapes.REQUEST_BODY: records["request_body_bytes"].astype(np.int64),
            shapes.RESPONSE_BODY: records["response_body_bytes"].astype(np.int64),
        }
        if not rows.status.all():
            ints[shapes.RESPONSE_BODY][rows.status == 0] = -1
        if shapes.LOCAL_PORT in self._settings.opt_in:
            ints[shapes.LOCAL_PORT] = records["local_port"].astype(np.int64)
        return ints

    def _texts(self, rows: _Rows, target: Rows) -> dict[str, Text]:
        memo = self._targets
        texts = {}
        servers = int(np.count_nonzero(rows.server))
        path = memo.path_length[target]
        full = memo.full_length[target]
        # url.path begins url.full, so both share their bytes.
        longest = full if servers < len(rows.server) else path
        url = memo.full[target, : int(longest.max(initial=0))]
        if servers:
            texts[shapes.URL_PATH] = Text(url, path)
            length = memo.query_length[target]
            if length.any():
                query = memo.query[target, : int(length.max())]
                texts[shapes.URL_QUERY] = Text(query, length)
            elif self._settings.query != "drop":
                texts[shapes.URL_QUERY] = Text(url[:, :0], length)
        if servers < len(rows.server):
            texts[shapes.URL_FULL] = Text(url, full)
        return texts


def target_keys(
    words: Words,
    off: Column,
    length: Column,
    connect: NDArray[np.bool_],
    cut: NDArray[np.bool_],
    seed: int,
) -> U64:
    """Return a hash of each row's target [off, off + length), and of what it is; (n,)."""
    start = length.astype(np.uint64)
    start |= cut.astype(np.uint64) << np.uint64(32)
    start |= connect.astype(np.uint64) << np.uint64(33)
    state = absorb(np.full(len(length), seed, dtype=np.uint64), start)
    return words.absorb(state, off, length)


class _Rows:
    """A batch's columns as this decoder reads them, all contiguous and in bounds."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.server = records["role"] == _SERVER
        self.method = records["method"].astype(np.uint64)
        self.status = records["status"].astype(np.uint64)
        self.truncated = records["truncated"].astype(np.uint64)
        text = records["text"]
        used = np.minimum(records["text_len"], text.shape[1]).astype(np.intp)
        self.words = Words(text, used)
        # A record that lies about where its strings are must not show another's.
        fields = records["fields"]
        off = np.minimum(fields["off"].T, used, dtype=np.intp)
        self.off: list[Column] = list(off)
        self.length: list[Column] = list(np.minimum(fields["len"].T, used - off, dtype=np.intp))
        for slot in _SERVER_SLOTS:
            # Proxies send these too, but on their client side nothing depends on them.
            self.length[slot] = np.where(self.server, self.length[slot], 0)

    def absorb_head(self, state: U64) -> U64:
        """Take into each row's hash what `head` gives a shape besides process and target."""
        records, length = self.records, self.length
        port = np.where(self.server, records["local_port"], records["remote_port"])
        first = self.status << np.uint64(32)
        for name, shift in (("role", 0), ("version", 8), ("end", 16)):
            first |= records[name].astype(np.uint64) << np.uint64(shift)
        first |= self.method << np.uint64(24)
        state = absorb(state, first)
        second = port.astype(np.uint64) | records["family"].astype(np.uint64) << np.uint64(16)
        second |= (self.truncated & _SHAPE_BITS) << np.uint64(32)
        state = absorb(state, second)
        lengths = np.zeros(len(state), dtype=np.uint64)
        for slot in _SHAPE_SLOTS:
            lengths = lengths << np.uint64(10) | length[slot].astype(np.uint64)
        state = absorb(state, lengths)
        for name in ("local_addr", "remote_addr"):
            halves = records[name].view("<u8")
            state = absorb(absorb(state, halves[:, 0]), halves[:, 1])
        for slot in _SHAPE_SLOTS:
            state = self.words.absorb(state, self.off[slot], length[slot])
        return state

    def head(self, row: int) -> shapes.Head:
        """Return what of a row goes into its shape."""
        record = self.records[row]
        server = bool(self.server[row])
        return shapes.Head(
            server=server,
            method=int(record["method"]),
            status=int(record["status"]),
            end=int(record["end"]),
            version=int(record["version"]),
            truncated=int(record["truncated"]),
            family=int(record["family"]),
            local_address=record["local_addr"].tobytes(),
            remote_address=record["remote_addr"].tobytes(),
            server_port=int(record["local_port" if server else "remote_port"]),
            host=shapes.text_of(self.string(row, Slot.HOST)),
            user_agent=shapes.text_of(self.string(row, Slot.USER_AGENT)),
            forwarded_for=shapes.text_of(self.string(row, Slot.FORWARDED_FOR)),
            forwarded_proto=shapes.text_of(self.string(row, Slot.FORWARDED_PROTO)),
            method_text=shapes.text_of(self.string(row, Slot.METHOD)),
            unix_path=shapes.unix_path_of(self.string(row, Slot.UNIX_PATH)),
        )

    def string(self, row: int, slot: Slot) -> bytes:
        """Return a row's string."""
        return self.words.slice(row, int(self.off[slot][row]), int(self.length[slot][row]))


class _Targets:
    """Targets seen of late: their texts, side by side in arrays that batches are cut from.

    full: path, `?` and query; query: the same query once more, from column 0 on.
    """

    def __init__(self) -> None:
        self._table = Table()
        self._allocate(1024)

    def _allocate(self, capacity: int) -> None:
        # Pages of zeros that nobody writes to cost no memory.
        self.full = np.zeros((capacity, MAX_BYTES), dtype=np.uint8)
        self.query = np.zeros((capacity, MAX_BYTES), dtype=np.uint8)
        self.path_length = np.zeros(capacity, dtype=np.uint16)
        self.full_length = np.zeros(capacity, dtype=np.uint16)
        self.query_length = np.zeros(capacity, dtype=np.uint16)
        self.class_key = np.zeros(capacity, dtype=np.uint64)
        self._forget()

    def _forget(self) -> None:
        self._table.clear()
        self.classes: list[TargetClass] = []
        self._class_keys: list[int] = []
        self._interned: dict[TargetClass, tuple[TargetClass, int]] = {}

    def rows(self, keys: U64, make: Callable[[int], Target]) -> Rows:
        """Return each key's row here; `make` gives the target of a row of `keys`."""
        found = self._table.find(keys).astype(np.intp)
        missing = np.flatnonzero(found < 0)
        if not len(missing):
            return found
        new, first, place = distinct(keys[missing])
        if len(self.classes) + len(new) > len(self.full):
            missing = np.arange(len(keys))
            new, first, place = distinct(keys)
            if len(self.full) < MAX_TARGETS or len(new) > MAX_TARGETS:
                self._allocate(max(min(2 * len(self.full), MAX_TARGETS), len(new)))
            else:
                self._forget()
        start = len(self.classes)
        self._store([make(row) for row in missing[first].tolist()])
        self._table.put(new, np.arange(start, start + len(new), dtype=np.int32))
        found[missing] = start + place
        return found

    def _store(self, targets: Sequence[Target]) -> None:
        start = len(self.classes)
        rows = slice(start, start + len(targets))
        for kind, _, _ in targets:
            interned = self._interned.get(kind)
            if interned is None:
                # Strings hash to 64 bits, with a key of this process's own.
                interned = self._interned[kind] = kind, hash(kind) & 0xFFFFFFFFFFFFFFFF
            self.classes.append(interned[0])
            self._class_keys.append(interned[1])
        self.class_key[rows] = self._class_keys[rows]
        full = [path + b"?" + query if query else path for _, path, query in targets]
        self.path_length[rows] = [len(target.path) for target in targets]
        _fill(self.full, self.full_length, rows, full)
        _fill(self.query, self.query_length, rows, [target.query for target in targets])


def _fill(cells: Column, lengths: Column, rows: slice, strings: Sequence[bytes]) -> None:
    """Put strings into the given rows of a column."""
    size = [len(string) for string in strings]
    lengths[rows] = size
    width = max(size)
    if width:
        joined = b"".join([string.ljust(width, b"\0") for string in strings])
        cells[rows, :width] = np.frombuffer(joined, dtype=np.uint8).reshape(-1, width)
