"""Corpus cases: a connection as text, and what a tracer should make of it.

tests/corpus/README.md describes the format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tests.host.lib import ROOT, Outcome, Segment, text, types
from tracer.protocols.mysql import Command

CORPUS = ROOT / "tests" / "corpus"

ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}
TOKEN = re.compile(
    r"\\(?:(?P<one>[rnt0\\])|x(?P<hex>[0-9a-fA-F]{2})"
    r"|\((?P<unit>(?:[^\\*]|\\[^(])+)\*(?P<times>[0-9]+)\))|(?P<plain>[^\\]+)"
)


class CaseError(ValueError):
    """A corpus file is not as tests/corpus/README.md says; the message names file and line."""


def unescape(source: str) -> bytes:
    """The bytes that a text with escapes and repeats stands for."""
    out = b""
    at = 0
    while at < len(source):
        found = TOKEN.match(source, at)
        if not found:
            raise ValueError(f"bad escape at {source[at : at + 8]!r}")
        at = found.end()
        if found["one"]:
            out += ESCAPES[found["one"]]
        elif found["hex"]:
            out += bytes.fromhex(found["hex"])
        elif found["unit"]:
            out += unescape(found["unit"]) * int(found["times"])
        else:
            out += found["plain"].encode()
    return out


def _name(source: str) -> str:
    return source


def _names(source: str) -> frozenset[str]:
    return frozenset(source.split())


def _version(source: str) -> int:
    major, minor = source.split(".")
    return int(major) * 10 + int(minor)


def _key(parse: Callable[[str], Any], **default: Any) -> Any:
    return field(metadata={"parse": parse}, **default)


Strings = dict[str, bytes]  # of an exchange, by the names of enum flow_text


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a record tells about messages; KEPT: the strings that its protocol has."""

    KEPT: ClassVar[tuple[str, ...]] = ()

    end: str = _key(_name, default="RESPONSE")
    truncated: frozenset[str] = _key(_names, default=frozenset())
    flags: frozenset[str] = _key(_names, default=frozenset())

    @classmethod
    def of(cls, record: Any, strings: Strings) -> Self:
        """Read a row of dtype flow_record, whose strings may have come in several records."""
        names = types()
        return cls(
            end=names.end(record["end"]).name,
            truncated=frozenset(
                slot for slot in cls.KEPT if record["truncated"] >> names.text[slot] & 1
            ),
            flags=frozenset(flag.name for flag in names.flag if record["flags"] & flag),
            **cls.more(record, strings),
        )

    @classmethod
    def more(cls, record: Any, strings: Strings) -> dict[str, Any]:
        """The values of the protocol's own fields."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Http1(Exchange):
    """version is major * 10 + minor, sizes are in bytes."""

    KEPT: ClassVar[tuple[str, ...]] = (
        "TARGET", "HOST", "USER_AGENT", "TRACEPARENT", "FORWARDED_FOR", "FORWARDED_PROTO",
        "METHOD",
    )  # fmt: skip

    method: str = _key(_name)
    target: bytes = _key(unescape)
    status: int = _key(int)
    version: int = _key(_version, default=11)
    host: bytes = _key(unescape, default=b"")
    user_agent: bytes = _key(unescape, default=b"")
    traceparent: bytes = _key(unescape, default=b"")
    forwarded_for: bytes = _key(unescape, default=b"")
    forwarded_proto: bytes = _key(unescape, default=b"")
    request_body: int = _key(int, default=0)
    response_body: int = _key(int, default=0)

    @classmethod
    def more(cls, record: Any, strings: Strings) -> dict[str, Any]:
        method = types().method(record["method"]).name
        values = {slot.lower(): strings[slot] for slot in cls.KEPT}
        return values | {
            "method": strings["METHOD"].decode() if method == "OTHER" else method,
            "status": int(record["status"]),
            "version": int(record["version"]),
            "request_body": int(record["request_body_bytes"]),
            "response_body": int(record["response_body_bytes"]),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sql(Exchange):
    """What MySQL and PostgreSQL have in common."""

    KEPT: ClassVar[tuple[str, ...]] = ("QUERY", "DATABASE", "ERROR", "SQLSTATE", "VERSION")

    command: str = _key(_name)
    query: bytes = _key(unescape, default=b"")
    database: bytes = _key(unescape, default=b"")
    error: bytes = _key(unescape, default=b"")
    sqlstate: bytes = _key(unescape, default=b"")
    version: bytes = _key(unescape, default=b"")
    code: int = _key(int, default=0)
    rows: int = _key(int, default=0)
    affected: int = _key(int, default=0)

    @classmethod
    def more(cls, record: Any, strings: Strings) -> dict[str, Any]:
        values: dict[str, Any] = {slot.lower(): strings[slot] for slot in cls.KEPT}
        return values | {
            "command": cls.command_of(int(record["method"])),
            "code": int(record["code"]),
            "rows": int(record["rows_returned"]),
            "affected": int(record["rows_affected"]),
        }

    @classmethod
    def command_of(cls, method: int) -> str:
        """The name that a case gives to flow_record.method."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Mysql(Sql):
    """command: name of a COM_ of MySQL; statement: the number of a prepared one."""

    statement: int = _key(int, default=0)

    @classmethod
    def more(cls, record: Any, strings: Strings) -> dict[str, Any]:
        # With its arguments: slots make a dataclass another class than the one being defined.
        return super(Mysql, cls).more(record, strings) | {"statement": int(record["stream_id"])}

    @classmethod
    def command_of(cls, method: int) -> str:
        return Command(method).name if method in set(Command) else f"{method:#x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgresql(Sql):
    """command: the type of the message that asked, or `connect`; statement, portal: names."""

    KEPT: ClassVar[tuple[str, ...]] = (*Sql.KEPT, "STATEMENT", "PORTAL")

    statement: bytes = _key(unescape, default=b"")
    portal: bytes = _key(unescape, default=b"")
    bound: int = _key(int, default=0)

    @classmethod
    def more(cls, record: Any, strings: Strings) -> dict[str, Any]:
        bound = int(record["request_messages"])
        return super(Postgresql, cls).more(record, strings) | {"bound": bound}

    @classmethod
    def command_of(cls, method: int) -> str:
        return "connect" if method == 1 else chr(method)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redis(Exchange):
    """arguments: how many followed the command's name."""

    KEPT: ClassVar[tuple[str, ...]] = ("QUERY", "DATABASE", "ERROR")

    command: bytes = _key(unescape)
    arguments: int = _key(int, default=0)
    database: bytes = _key(unescape, default=b"")
    error: bytes = _key(unescape, default=b"")

    @classmethod
    def more(cls, record: Any, strings: Strings) -> dict[str, Any]:
        return {
            "command": strings["QUERY"],
            "arguments": int(record["request_messages"]),
            "database": strings["DATABASE"],
            "error": strings["ERROR"],
        }


EXCHANGES: dict[str, type[Exchange]] = {
    "http1": Http1,
    "mysql": Mysql,
    "redis": Redis,
    "postgresql": Postgresql,
}


def exchanges(protocol: str, records: NDArray[np.void]) -> tuple[Exchange, ...]:
    """The exchanges among records, shape (n,), dtype flow_record, with their joined strings."""
    kind = EXCHANGES[protocol]
    names = types()
    parts: dict[tuple[int, int], Strings] = {}
    found: list[Exchange] = []
    for record in records:
        key = (int(record["start_ns"]), int(record["request_seq"]))
        if record["kind"] not in (names.record_kind["PART"], names.record_kind["EXCHANGE"]):
            continue
        before = parts.pop(key, dict.fromkeys(kind.KEPT, b""))
        strings = {slot: before[slot] + text(record, slot) for slot in kind.KEPT}
        if record["kind"] == names.record_kind["PART"]:
            parts[key] = strings
        else:
            found.append(kind.of(record, strings))
    assert not parts, "strings of an exchange that did not come"
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Connection:
    """What became of a connection; request and response: names of enum replay_outcome."""

    request: str = _key(_name, default="WELL")
    response: str = _key(_name, default="WELL")
    in_flight: int = _key(int, default=0)

    @classmethod
    def of(cls, outcome: Outcome) -> Connection:
        return cls(outcome.request, outcome.response, outcome.in_flight)


@dataclass(frozen=True, slots=True)
class Case:
    """One corpus file; role: which side looks on; old: from the connection's middle on."""

    protocol: str
    name: str
    why: str
    origin: str
    role: str
    old: bool
    segments: tuple[Segment, ...]
    exchanges: tuple[Exchange, ...]
    connection: Connection


def _segments(lines: list[tuple[str, str]]) -> Iterator[Segment]:
    """Segments from (direction, rest of line); ("", "") ends a segment."""
    sender, data = "", b""
    for mark, rest in [*lines, ("", "")]:
        if mark != sender and sender:
            yield Segment(sender == "<", data)
            sender, data = "", b""
        if mark in (">", "<"):
            sender = mark
            data += unescape(rest)
        elif mark in (">!", "<!"):
            match rest.split():
                case ["close"]:
                    yield Segment(mark == "<!", close=True)
                case ["unseen", count]:
                    yield Segment(mark == "<!", unseen=int(count))
                case _:
                    raise ValueError(f"neither close nor unseen N: {rest!r}")


def _build(kind: type[Any], given: dict[str, str]) -> Any:
    """An Exchange or Connection from its keys, which are its fields with dashes."""
    known = {f.name.replace("_", "-"): f for f in fields(kind)}
    if strange := given.keys() - known.keys():
        raise ValueError(f"unknown: {', '.join(sorted(strange))}")
    needed = {key for key, f in known.items() if f.default is MISSING}
    if missing := needed - given.keys():
        raise ValueError(f"missing: {', '.join(sorted(missing))}")
    return kind(**{known[k].name: known[k].metadata["parse"](v) for k, v in given.items()})


class _Reader:
    """What the lines so far came to."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.kinds: dict[str, type[Any]] = {
            "exchange": EXCHANGES[protocol],
            "connection": Connection,
        }
        self.head: dict[str, str] = {}
        self.wire: list[tuple[str, str]] = []
        self.blocks: list[tuple[type[Any], dict[str, str]]] = []
        self._keys = self.head

    def take(self, line: str) -> None:
        mark, _, rest = line.partition(" ")
        if mark in (">", "<", ">!", "<!"):
            unescape(rest)
            self.wire.append((mark, rest))
        elif not line.strip():
            self.wire.append(("", ""))
        elif mark == "=":
            self._keys = {}
            self.blocks.append((self.kinds[rest], self._keys))
        elif not line.startswith("#"):
            key, colon, value = line.partition(":")
            if not colon or key in self._keys:
                raise ValueError(f"not one new `key: value`: {line!r}")
            self._keys[key] = value.strip(" ")

    def case(self, name: str) -> Case:
        if strange := self.head.keys() - {"why", "origin", "role", "connection"}:
            raise ValueError(f"unknown: {', '.join(sorted(strange))}")
        if self.head.get("connection", "OLD") != "OLD":
            raise ValueError("connection can only be OLD")
        built = [_build(kind, given) for kind, given in self.blocks]
        connections = [b for b in built if isinstance(b, Connection)] or [Connection()]
        return Case(
            protocol=self.protocol,
            name=name,
            why=self.head["why"],
            origin=self.head["origin"],
            role=self.head.get("role", "CLIENT"),
            old="connection" in self.head,
            segments=tuple(_segments(self.wire)),
            exchanges=tuple(b for b in built if isinstance(b, Exchange)),
            connection=connections[-1],
        )


def parse(name: str, source: str, protocol: str = "http1") -> Case:
    """A case from its text. Raises CaseError."""
    reader = _Reader(protocol)
    for number, line in enumerate(source.split("\n"), 1):
        try:
            reader.take(line)
        except (ValueError, KeyError) as error:
            raise CaseError(f"{name}:{number}: {error}") from error
    try:
        return reader.case(name)
    except (ValueError, KeyError) as error:
        raise CaseError(f"{name}: {error}") from error


def load(path: Path) -> Case:
    """A case from its file. Raises CaseError."""
    return parse(path.stem, path.read_text(encoding="utf-8"), path.parent.name)


def corpus(protocol: str) -> list[Case]:
    """All cases of a protocol, by name."""
    return [load(path) for path in sorted((CORPUS / protocol).glob("*.txt"))]
