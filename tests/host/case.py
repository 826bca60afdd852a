"""Corpus cases: a connection as text, and what a tracer should make of it.

tests/corpus/README.md describes the format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from tests.host.lib import ROOT, Outcome, Segment, text, types

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


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a record tells about messages; version is major * 10 + minor, sizes are in bytes."""

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
    end: str = _key(_name, default="RESPONSE")
    truncated: frozenset[str] = _key(_names, default=frozenset())
    flags: frozenset[str] = _key(_names, default=frozenset())

    @classmethod
    def of(cls, record: Any) -> Exchange:
        """Read a row of dtype flow_record."""
        names = types()
        method = names.method(record["method"]).name
        kept = {slot: text(record, slot.name) for slot in names.text if slot < 8}
        return cls(
            method=kept[names.text["METHOD"]].decode() if method == "OTHER" else method,
            target=kept[names.text["TARGET"]],
            status=int(record["status"]),
            version=int(record["version"]),
            host=kept[names.text["HOST"]],
            user_agent=kept[names.text["USER_AGENT"]],
            traceparent=kept[names.text["TRACEPARENT"]],
            forwarded_for=kept[names.text["FORWARDED_FOR"]],
            forwarded_proto=kept[names.text["FORWARDED_PROTO"]],
            request_body=int(record["request_body_bytes"]),
            response_body=int(record["response_body_bytes"]),
            end=names.end(record["end"]).name,
            truncated=frozenset(slot.name for slot in kept if record["truncated"] >> slot & 1),
            flags=frozenset(flag.name for flag in names.flag if record["flags"] & flag),
        )


@dataclass(frozen=True, slots=True)
class Connection:
    """What became of a connection; request and response: names of enum host_outcome."""

    request: str = _key(_name, default="WELL")
    response: str = _key(_name, default="WELL")
    in_flight: int = _key(int, default=0)

    @classmethod
    def of(cls, outcome: Outcome) -> Connection:
        return cls(outcome.request, outcome.response, outcome.in_flight)


@dataclass(frozen=True, slots=True)
class Case:
    """One corpus file; role: which side looks on."""

    name: str
    why: str
    origin: str
    role: str
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


KINDS: dict[str, type[Any]] = {"exchange": Exchange, "connection": Connection}


class _Reader:
    """What the lines so far came to."""

    def __init__(self) -> None:
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
            self.blocks.append((KINDS[rest], self._keys))
        elif not line.startswith("#"):
            key, colon, value = line.partition(":")
            if not colon or key in self._keys:
                raise ValueError(f"not one new `key: value`: {line!r}")
            self._keys[key] = value.strip(" ")

    def case(self, name: str) -> Case:
        if strange := self.head.keys() - {"why", "origin", "role"}:
            raise ValueError(f"unknown: {', '.join(sorted(strange))}")
        built = [_build(kind, given) for kind, given in self.blocks]
        connections = [b for b in built if isinstance(b, Connection)] or [Connection()]
        return Case(
            name=name,
            why=self.head["why"],
            origin=self.head["origin"],
            role=self.head.get("role", "CLIENT"),
            segments=tuple(_segments(self.wire)),
            exchanges=tuple(b for b in built if isinstance(b, Exchange)),
            connection=connections[-1],
        )


def parse(name: str, source: str) -> Case:
    """A case from its text. Raises CaseError."""
    reader = _Reader()
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
    return parse(path.stem, path.read_text(encoding="utf-8"))


def corpus(protocol: str) -> list[Case]:
    """All cases of a protocol, by name."""
    return [load(path) for path in sorted((CORPUS / protocol).glob("*.txt"))]
