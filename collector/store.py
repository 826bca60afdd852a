"""Spans on local disk, bounded by bytes and age: one thread writes, others read.

Spans wait in a queue that is bounded too; what it can't take, and what can't be written,
is counted and never waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from collector.files import Files, Segment, is_corruption
from collector.model import Span
from collector.schema import BLOCK_SPANS, blocks, columns, pack
from tracer.errors import WirespanError

# Seconds that spans may wait for others to share a block with, and between looks at limits.
LINGER_S = 0.5
TEND_S = 1.0
# Files that the limits are spread over: what is dropped at once is that part of the store.
PARTS = 16
# What a span costs in the queue besides its bytes.
SPAN_OVERHEAD = 400

LOSSES: Mapping[str, str] = {
    "store_queue_full": "a span found no room before the store: not stored",
    "store_failed": "a span could not be written, the disk being full for example: not stored",
    "store_corrupt": "a file of the store, or its log, could not be read: set aside",
}

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """max_bytes: of all files. max_age_s: since a file was last written. queue_bytes: of
    spans that wait for the writer."""

    max_bytes: int = 1 << 30
    max_age_s: float = 3 * 86_400.0
    queue_bytes: int = 8 << 20


def to_stderr(message: str) -> None:
    """Tell a person."""
    print(f"wirespan: {message}", file=sys.stderr)


class Reader:
    """Reads the files that were there when reading began, newest first."""

    def __init__(self, store: Store, cursor: duckdb.DuckDBPyConnection) -> None:
        self.segments: Sequence[Segment] = tuple(reversed(store.segments))
        self._store = store
        self._cursor = cursor

    def rows(self, segment: Segment, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Ask one file, `{0}` in `sql` being its name; nothing from one that can't be read."""
        try:
            return self._cursor.execute(sql.format(segment.alias), list(values)).fetchall()
        except duckdb.Error as error:
            self._store.suspect(segment, error)
            return []

    def suspect(self, segment: Segment, error: Exception) -> None:
        """Note that what a file holds makes no sense."""
        self._store.suspect(segment, error)


class Store:
    """A directory of DuckDB files. `start`, then `submit` from any thread, then `close`.

    message: is told, once per episode, what went wrong.
    """

    def __init__(
        self,
        directory: str | Path,
        limits: Limits = Limits(),
        message: Callable[[str], None] = to_stderr,
    ) -> None:
        self.directory = Path(directory)
        self.limits = limits
        self._message = message
        self._files = Files(self.directory, message)
        self._active: Segment | None = None
        self._lock_fd = -1
        self._thread: threading.Thread | None = None
        # Guards all that follows. Readers share the files; who changes them waits for none.
        self._changed = threading.Condition()
        self._readers = 0
        self._exclusive = False
        self._queue: deque[tuple[Sequence[Span], int]] = deque()
        self._queued_bytes = 0
        self._submitted = 0
        self._done = 0
        self._hurry = False
        self._closing = False
        self._suspects: dict[Path, Exception] = {}
        self._broken = False
        # Of the writer alone.
        self._failing = 0
        self._retry_at = 0.0
        self._tended = 0.0
        self._stored = self._expired_files = 0
        self._losses = dict.fromkeys(LOSSES, 0)

    @property
    def segments(self) -> Sequence[Segment]:
        """Open files, oldest first."""
        return self._files.segments

    def start(self) -> None:
        """Open the store and begin to write; raises WirespanError."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._claim()
            self._lock_fd = os.open(self.directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            raise WirespanError(
                f"store {self.directory} is in use by another wirespan", "give another directory"
            ) from None
        except OSError as error:
            raise WirespanError(
                f"cannot use {self.directory} as store: {error.strerror}",
                "give a directory that this user may write",
            ) from None
        try:
            self._files.open()
        except duckdb.Error as error:
            os.close(self._lock_fd)
            raise WirespanError(f"cannot start the store: {_first(error)}") from None
        self._tend()
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def _claim(self) -> None:
        """Take others' rights to the directory; not to one that is more than a store."""
        names = set(os.listdir(self.directory)) - {"lost+found"}
        if names and "lock" not in names:
            raise WirespanError(
                f"cannot use {self.directory} as store: it holds other files",
                "give a directory for nothing else",
            )
        os.chmod(self.directory, 0o700)

    def submit(self, spans: Sequence[Span]) -> None:
        """Take spans without blocking; what does not fit is counted."""
        if not spans:
            return
        size = sum(len(span.raw) for span in spans) + SPAN_OVERHEAD * len(spans)
        with self._changed:
            full = self._queue and self._queued_bytes + size > self.limits.queue_bytes
            if full or self._closing:
                self._losses["store_queue_full"] += len(spans)
                return
            self._queue.append((spans, size))
            self._queued_bytes += size
            self._submitted += len(spans)
            self._changed.notify_all()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until what was submitted can be read, or was counted as lost."""
        with self._changed:
            wanted = self._submitted
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._done >= wanted, timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, then close all files."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            with self._alone():
                self._files.close()
                self._active = None
            os.close(self._lock_fd)
            self._thread = None

    def losses(self) -> dict[str, int]:
        """Count what was lost, by the names of LOSSES."""
        return {**self._losses, "store_corrupt": self._files.set_aside}

    def counts(self) -> dict[str, int]:
        """Count spans stored since the start, and what is there now."""
        return {
            "store_spans": self._stored,
            "store_files": len(self._files.segments),
            "store_bytes": sum(size for _, size, _ in self._files.sizes()),
            "store_files_expired": self._expired_files,
        }

    def queue_fill(self) -> float:
        """How full the queue is, 0 to 1."""
        return min(1.0, self._queued_bytes / self.limits.queue_bytes)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Reader]:
        """Keep files from being closed or removed meanwhile; raises WirespanError when closed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._exclusive)
            if self._thread is None:
                raise WirespanError("the store is closed")
            self._readers += 1
        try:
            try:
                cursor = self._files.connection.cursor()
            except (duckdb.Error, AssertionError) as error:
                raise WirespanError(f"cannot read the store: {error}") from None
            try:
                yield Reader(self, cursor)
            finally:
                with contextlib.suppress(duckdb.Error):
                    cursor.close()
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    def suspect(self, segment: Segment, error: Exception) -> None:
        """Note that a file could not be read; the writer looks into it."""
        with self._changed:
            if "invalidated" in str(error):
                self._broken = True
            elif is_corruption(error):
                self._suspects[segment.path] = error
                if isinstance(error, duckdb.FatalException):
                    self._broken = True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until nobody reads, and keep others from it."""
        with self._changed:
            self._exclusive = True
            self._changed.wait_for(lambda: not self._readers)
        try:
            yield
        finally:
            with self._changed:
                self._exclusive = False
                self._changed.notify_all()

    def _run(self) -> None:
        while True:
            spans = self._take()
            for part in blocks(spans):
                self._write(part)
            with self._changed:
                self._done += len(spans)
                self._changed.notify_all()
                if self._closing and not self._queue:
                    return
            if time.monotonic() - self._tended >= TEND_S:
                try:
                    self._tend()
                except (duckdb.Error, OSError) as error:
                    self._fail(0, error)

    def _take(self) -> list[Span]:
        """Wait for spans, and a little for more; an empty list at least every TEND_S."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing, TEND_S)
            if self._queue:
                self._changed.wait_for(self._is_enough, LINGER_S)
            taken: list[Span] = []
            while self._queue and len(taken) < 4 * BLOCK_SPANS:
                spans, size = self._queue.popleft()
                self._queued_bytes -= size
                taken += spans
            self._hurry = self._hurry and bool(self._queue)
            return taken

    def _is_enough(self) -> bool:
        return (
            self._hurry
            or self._closing
            or self._submitted - self._done >= BLOCK_SPANS
            or 2 * self._queued_bytes > self.limits.queue_bytes
        )

    def _write(self, spans: Sequence[Span]) -> None:
        """Write one block, or count it as lost."""
        if self._failing and time.monotonic() < self._retry_at:
            self._failing += len(spans)
            self._losses["store_failed"] += len(spans)
            return
        try:
            if self._active is None:
                with self._alone():
                    self._active = self._files.create(time.time())
            self._insert(self._active, spans)
        except Exception as error:  # the writer must outlive any of them
            self._fail(len(spans), error)
            return
        self._stored += len(spans)
        if self._failing:
            self._message(f"the store works again; {self._failing} spans were not stored")
            self._failing = 0

    def _insert(self, segment: Segment, spans: Sequence[Span]) -> None:
        """Write one block in one transaction; raises duckdb.Error, then nothing was written."""
        connection = self._files.connection
        resources, scopes = dict(segment.resources), dict(segment.scopes)
        resource_ids = [resources.setdefault(s.resource_raw, len(resources)) for s in spans]
        scope_ids = [scopes.setdefault(s.scope_raw, len(scopes)) for s in spans]
        rows = columns(spans, resource_ids, scope_ids, segment.blocks)
        packed = pack([span.raw for span in spans])
        name = segment.alias
        connection.execute("BEGIN")
        try:
            connection.execute(f"INSERT INTO {name}.blocks VALUES (?, ?)", [segment.blocks, packed])
            for table, new, old in (
                ("resources", resources, segment.resources),
                ("scopes", scopes, segment.scopes),
            ):
                for raw, number in list(new.items())[len(old) :]:
                    connection.execute(f"INSERT INTO {name}.{table} VALUES (?, ?)", [number, raw])
            connection.execute(f"INSERT INTO {name}.spans SELECT * FROM rows", None)
            connection.execute("COMMIT")
        except duckdb.Error:
            with contextlib.suppress(duckdb.Error):
                connection.execute("ROLLBACK")
            raise
        assert rows is not None  # DuckDB finds it by its name
        segment.resources, segment.scopes = resources, scopes
        segment.blocks += 1
        segment.note(
            len(spans), min(span.start_ns for span in spans), max(span.end_ns for span in spans)
        )
        self._files.protect(segment)

    def _fail(self, count: int, error: Exception) -> None:
        """Count spans that could not be written; say why once, and see that it can go on."""
        if not self._failing:
            self._message(
                f"cannot store spans in {self.directory}: {_first(error)}; "
                "they are counted (store_failed) until it works again"
            )
        self._failing += max(count, 1) if not self._failing else count
        self._losses["store_failed"] += count
        self._retry_at = time.monotonic() + TEND_S
        if isinstance(error, duckdb.FatalException) or "invalidated" in str(error):
            self._broken = True

    def _tend(self) -> None:
        """Keep the limits, set corrupt files aside, recover from errors."""
        self._tended = time.monotonic()
        if self._broken:
            self._reopen()
        with self._changed:
            suspects, self._suspects = self._suspects, {}
        for path, error in suspects.items():
            with self._alone():
                if self._active is not None and self._active.path == path:
                    self._active = None
                if path.exists():
                    self._files.move_aside(path, error)
        self._keep_limits(time.time())

    def _reopen(self) -> None:
        """Start DuckDB anew: after a fatal error it refuses everything."""
        with self._alone():
            self._active = None
            self._files.close()
            self._files.open()
            self._broken = False

    def _keep_limits(self, now_s: float) -> None:
        part_bytes = self.limits.max_bytes // PARTS
        part_s = max(self.limits.max_age_s / PARTS, TEND_S)
        sizes = self._files.sizes()
        by_path = {segment.path: segment for segment in self._files.segments}
        if sizes and not self._failing:
            path, size, _ = max((each for each in sizes if each[0] in by_path), default=sizes[-1])
            old = size >= part_bytes or now_s - _begun_s(path) >= part_s
            newest = by_path.get(path)
            if newest is not None and newest.writable and old:
                with self._alone():
                    self._active = None
                    self._files.seal(newest)
                sizes = self._files.sizes()
                by_path = {segment.path: segment for segment in self._files.segments}
            elif newest is not None and not newest.writable and not old and not self._active:
                with self._alone():
                    self._active = self._files.reuse(newest)
                by_path = {segment.path: segment for segment in self._files.segments}
        total = sum(size for _, size, _ in sizes)
        for path, size, written_s in sizes:
            expired = now_s - written_s >= self.limits.max_age_s
            if total <= self.limits.max_bytes and not expired:
                continue
            segment = by_path.get(path)
            with self._alone():
                if segment is not None:
                    if segment is self._active:
                        self._active = None
                    self._files.remove(segment)
                else:
                    path.unlink(missing_ok=True)
                    Path(f"{path}.wal").unlink(missing_ok=True)
            self._expired_files += 1
            total -= size


def _begun_s(path: Path) -> float:
    """When a file was begun, by its name."""
    digits = path.name.split("-", 1)[1].split(".", 1)[0]
    return int(digits) / 1000 if digits.isdigit() else 0.0


def _first(error: Exception) -> str:
    """Return the first line of a message: DuckDB adds stack traces."""
    return (str(error).splitlines() or [type(error).__name__])[0]
