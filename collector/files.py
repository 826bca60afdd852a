"""Files of the store within one DuckDB instance: opened, closed, set aside, removed.

One file holds the spans of some minutes: the oldest go by unlinking a file, and a corrupt
file is one file. Callers see to it that nobody reads while files come and go.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from collector.schema import TABLES, VERSION

# The smallest that DuckDB has: quiet hosts make small files.
DUCKDB_BLOCK_BYTES = 16_384
DUCKDB_MEMORY = "16MB"
DUCKDB_SPILL = "256MB"
WAL_BYTES = "16MB"

PREFIX, SUFFIX, ASIDE, PART = "spans-", ".duckdb", ".corrupt", ".part"

# Errors that say nothing about what a file holds.
_NOT_CORRUPT = (
    "no space left",
    "permission denied",
    "too many open files",
    "out of memory",
    "could not set lock",
    "read-only file system",
    "disk quota exceeded",
    "has been invalidated",
)


class CorruptError(Exception):
    """A file cannot be read."""


@dataclass(slots=True, eq=False)
class Segment:
    """One file. first_ns, last_ns: of its spans, 0 without one. resources, scopes: numbers
    of what the file being written already holds. operations: cached by queries."""

    path: Path
    alias: str
    spans: int = 0
    first_ns: int = 0
    last_ns: int = 0
    blocks: int = 0
    resources: dict[bytes, int] = field(default_factory=dict)
    scopes: dict[bytes, int] = field(default_factory=dict)
    operations: frozenset[tuple[str, str, int]] | None = None
    writable: bool = False

    def note(self, count: int, first_ns: int, last_ns: int) -> None:
        """Count spans that were written."""
        self.first_ns = min(self.first_ns, first_ns) if self.spans else first_ns
        self.last_ns = max(self.last_ns, last_ns)
        self.spans += count


def is_corruption(error: Exception) -> bool:
    """Whether an error of DuckDB blames what a file holds."""
    text = str(error).lower()
    return not any(words in text for words in _NOT_CORRUPT)


class Files:
    """The files of a directory, oldest first in `segments`; the last may be writable.

    message: is told of files set aside. set_aside: how many were.
    """

    def __init__(self, directory: Path, message: Callable[[str], None]) -> None:
        self.directory = directory
        self.segments: list[Segment] = []
        self.set_aside = 0
        self._message = message
        self._aliases = 0
        self._connection: duckdb.DuckDBPyConnection | None = None

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The one connection that writes; readers use cursors of it."""
        assert self._connection is not None
        return self._connection

    def open(self) -> None:
        """Start DuckDB and open every file; those that can't be read are set aside."""
        spill = self.directory / "spill"
        shutil.rmtree(spill, ignore_errors=True)
        # threads: 1, or each takes memory of its own. Extensions would come by network.
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": DUCKDB_MEMORY,
                "threads": 1,
                "temp_directory": str(spill),
                "max_temp_directory_size": DUCKDB_SPILL,
                "wal_autocheckpoint": WAL_BYTES,
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            },
        )
        self._connection.execute("SET enable_progress_bar = false")
        self.segments = []
        for left_behind in self.directory.glob(f"{PREFIX}*{PART}*"):
            left_behind.unlink(missing_ok=True)
        for path in sorted(self.directory.glob(f"{PREFIX}*{SUFFIX}")):
            segment = self._read_or_set_aside(path)
            if segment is not None:
                self.segments.append(segment)

    def close(self) -> None:
        """Write everything down and end DuckDB."""
        if self._connection is not None:
            with contextlib.suppress(duckdb.Error):
                for segment in self.segments:
                    self._detach(segment)
            with contextlib.suppress(duckdb.Error):
                self._connection.close()
        self._connection = None
        self.segments = []

    def create(self, now_s: float) -> Segment:
        """Start a new file; raises duckdb.Error or OSError."""
        stamp = int(now_s * 1000)
        while (path := self.directory / f"{PREFIX}{stamp:013d}{SUFFIX}").exists():
            stamp += 1
        try:
            segment = self._attach(path, True)
            os.chmod(path, 0o600)
        except (duckdb.Error, OSError):
            _unlink(path)
            raise
        try:
            self.connection.execute("BEGIN")
            self.connection.execute(TABLES.format(segment.alias))
            self.connection.execute(f"INSERT INTO {segment.alias}.about VALUES (?)", [VERSION])
            self.connection.execute("COMMIT")
        except duckdb.Error:
            with contextlib.suppress(duckdb.Error):
                self.connection.execute("ROLLBACK")
            with contextlib.suppress(duckdb.Error):
                self._detach(segment)
            _unlink(path)
            raise
        self.segments.append(segment)
        return segment

    def reuse(self, segment: Segment) -> Segment:
        """Open the newest file for writing again; raises duckdb.Error."""
        self._detach(segment)
        self.segments.remove(segment)
        found = self._attach(segment.path, True)
        self._look_into(found)
        for table, known in (("resources", found.resources), ("scopes", found.scopes)):
            rows = self.connection.execute(f"SELECT raw, id FROM {found.alias}.{table}").fetchall()
            known.update(rows)
        self.segments.append(found)
        return found

    def seal(self, segment: Segment) -> None:
        """Make a file read-only; raises duckdb.Error, then it is what it was."""
        self.connection.execute(f"CHECKPOINT {segment.alias}")
        self._compact(segment)
        at = self.segments.index(segment)
        found = self._read_or_set_aside(segment.path)
        self.segments[at : at + 1] = [found] if found is not None else []

    def _compact(self, segment: Segment) -> None:
        """Close a file, without the room that DuckDB freed in it and keeps: some 40 %."""
        part = Path(f"{segment.path}{PART}")
        _unlink(part)
        try:
            copy = self._attach(part, True)
            try:
                self.connection.execute(f"COPY FROM DATABASE {segment.alias} TO {copy.alias}")
            finally:
                self._detach(copy)
        except duckdb.Error:
            _unlink(part)  # no room for two: it stays as it is
            self._detach(segment)
            return
        self._detach(segment)
        part.chmod(0o600)
        part.replace(segment.path)

    def remove(self, segment: Segment) -> None:
        """Delete a file and all it holds."""
        with contextlib.suppress(duckdb.Error):
            self._detach(segment)
        self.segments.remove(segment)
        _unlink(segment.path)

    def move_aside(self, path: Path, cause: object) -> None:
        """Rename a file that can't be read, so that it is out of the way and not lost."""
        for segment in [each for each in self.segments if each.path == path]:
            with contextlib.suppress(duckdb.Error):
                self._detach(segment)
            self.segments.remove(segment)
        for old in (path, Path(f"{path}.wal")):
            with contextlib.suppress(FileNotFoundError):
                old.rename(f"{old}{ASIDE}")
        self.set_aside += 1
        reason = str(cause).splitlines()[0] if str(cause) else "unreadable"
        self._message(f"store file {path.name} is corrupt, moved to {path}{ASIDE}: {reason}")

    def sizes(self) -> list[tuple[Path, int, float]]:
        """Tell each file's path, bytes with its log, and time of last writing, oldest first."""
        found = []
        names = [path for path in self.directory.glob(f"{PREFIX}*") if path.suffix != ".wal"]
        for path in sorted(names):
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                size, written = facts.st_size, facts.st_mtime
                with contextlib.suppress(FileNotFoundError):
                    wal = Path(f"{path}.wal").stat()
                    size, written = size + wal.st_size, max(written, wal.st_mtime)
                found.append((path, size, written))
        return found

    def protect(self, segment: Segment) -> None:
        """Take the rights of others from the log that DuckDB makes beside a file."""
        with contextlib.suppress(FileNotFoundError):
            os.chmod(f"{segment.path}.wal", 0o600)

    def _read_or_set_aside(self, path: Path) -> Segment | None:
        wal = Path(f"{path}.wal")
        try:
            if wal.exists():
                self._fold(path, wal)
            segment = self._attach(path, False)
            try:
                self._look_into(segment)
            except Exception:
                with contextlib.suppress(duckdb.Error):
                    self._detach(segment)
                raise
            return segment
        except (duckdb.Error, CorruptError) as error:
            if is_corruption(error):
                self.move_aside(path, error)
                return None
            self._message(f"store file {path.name} is left alone: {str(error).splitlines()[0]}")
            return None

    def _fold(self, path: Path, wal: Path) -> None:
        """Bring a log that was left behind into its file; one that can't be read is set aside."""
        try:
            self._detach(self._attach(path, True))
        except duckdb.Error as error:
            if not is_corruption(error) or not wal.exists():
                raise
            wal.rename(f"{wal}{ASIDE}")
            try:
                self._detach(self._attach(path, True))
            except duckdb.Error:
                Path(f"{wal}{ASIDE}").rename(wal)
                raise
            self.set_aside += 1
            self._message(f"the log of store file {path.name} is corrupt, moved to {wal}{ASIDE}")

    def _attach(self, path: Path, writable: bool) -> Segment:
        self._aliases += 1
        segment = Segment(path, f"s{self._aliases}", writable=writable)
        how = f"BLOCK_SIZE {DUCKDB_BLOCK_BYTES}" if writable else "READ_ONLY"
        quoted = str(path).replace("'", "''")
        self.connection.execute(f"ATTACH '{quoted}' AS {segment.alias} ({how})")
        return segment

    def _detach(self, segment: Segment) -> None:
        self.connection.execute(f"DETACH {segment.alias}")

    def _look_into(self, segment: Segment) -> None:
        """Read what is known of a file; raises duckdb.Error or CorruptError."""
        about = self.connection.execute(f"SELECT version FROM {segment.alias}.about").fetchall()
        if about != [(VERSION,)]:
            raise CorruptError("not of this version of wirespan")
        size = self.connection.execute(
            "SELECT block_size * total_blocks FROM pragma_database_size() WHERE database_name = ?",
            [segment.alias],
        ).fetchone()
        if size and segment.path.stat().st_size < size[0]:
            raise CorruptError("the file has been cut short")
        found = self.connection.execute(
            f"SELECT count(*), min(start_ns), max(end_ns), max(block) FROM {segment.alias}.spans"
        ).fetchone()
        if found and found[0]:
            segment.spans, segment.first_ns, segment.last_ns = found[:3]
            segment.blocks = found[3] + 1


def _unlink(path: Path) -> None:
    for each in (path, Path(f"{path}.wal")):
        each.unlink(missing_ok=True)
