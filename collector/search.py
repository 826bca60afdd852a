"""What a person looks for in words: `service=web op~GET status>=500 min=10ms since=1h`.

Pure: no sockets, files, threads or clocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from collector import jaeger
from collector.query import Found, Search

UNITS_NS: Mapping[str, int] = {
    "ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000,
    "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9,
}  # fmt: skip

# Short names, each for the first of its attributes that a span has.
KEYS: Mapping[str, tuple[str, ...]] = {
    "pid": ("process.pid",),
    "method": ("http.request.method",),
    "status": (
        "http.response.status_code",
        "rpc.response.status_code",
        "db.response.status_code",
    ),
    "path": ("url.path",),
    "route": ("http.route",),
}

HELP = (
    "words, all of which must hold for one span of the trace: KEY OP VALUE without spaces, OP one "
    "of = != ~ !~ > >= < <=, where ~ means contains; KEY one of service, op, kind, "
    f"{', '.join(KEYS)}, or an attribute's full name; besides min=, max= (duration) and since="
)

_WORD = re.compile(r"([A-Za-z_@][\w.@/-]*)(!=|!~|>=|<=|==|=|~|>|<)(.*)", re.DOTALL)
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d)")


class SearchError(ValueError):
    """A word of a search makes no sense."""


@dataclass(frozen=True, slots=True)
class _Term:
    key: str
    op: str
    value: str


def duration_ns(text: str) -> int:
    """Read `10ms` or, as Go writes them, `1m30s`; raises SearchError."""
    total, at = 0.0, 0
    while at < len(text):
        found = _DURATION.match(text, at)
        if found is None:
            break
        total += float(found[1]) * UNITS_NS[found[2]]
        at = found.end()
    if not text or at < len(text) or total >= 1 << 62:
        raise SearchError(f"{text!r} is not a duration, such as 10ms")
    return int(total)


def parse(words: Sequence[str], now_ns: int, limit: int) -> Search:
    """Read the words of a search; raises SearchError."""
    plain: dict[str, str] = {}
    times: dict[str, int] = {}
    terms: list[_Term] = []
    for word in words:
        found = _WORD.fullmatch(word)
        if found is None:
            raise SearchError(f"{word!r} is not KEY OP VALUE")
        key, op, value = found.groups()
        op = "=" if op == "==" else op
        key = {"name": "op", "operation": "op"}.get(key, key)
        if key in ("min", "max", "since"):
            if op != "=":
                raise SearchError(f"{word!r}: write {key}=DURATION")
            times[key] = _duration(value, word)
        elif key in ("service", "op", "kind") and op == "=" and key not in plain:
            plain[key] = value
        else:
            if op in (">", ">=", "<", "<="):
                _ = _duration(value, word) if key == "duration" else _number(value, word)
            terms.append(_Term(key, op, value))
    kind = plain.get("kind")
    if kind is not None and kind.lower() not in jaeger.KIND_NUMBERS:
        raise SearchError(f"kind {kind!r} is none of {', '.join(jaeger.KIND_NUMBERS)}")
    service = plain.get("service")
    return Search(
        service="" if service == jaeger.NO_SERVICE else service,
        operation=plain.get("op"),
        kind=jaeger.KIND_NUMBERS[kind.lower()] if kind is not None else None,
        start_ns=max(0, now_ns - times["since"]) if "since" in times else None,
        min_ns=times.get("min"),
        max_ns=times.get("max"),
        limit=limit,
        check=_check(terms) if terms else None,
    )


def _check(terms: Sequence[_Term]) -> Callable[[Found], bool]:
    def check(found: Found) -> bool:
        tags = jaeger.attributes(found.resource.attributes)
        tags.update(jaeger.tags(found))
        return all(_holds(term, found, tags) for term in terms)

    return check


def _holds(term: _Term, found: Found, tags: Mapping[str, jaeger.Tag]) -> bool:
    value = _value(term.key, found, tags)
    if value is None:
        return term.op in ("!=", "!~")
    match term.op:
        case "=":
            return value == term.value
        case "!=":
            return value != term.value
        case "~":
            return term.value in value
        case "!~":
            return term.value not in value
    try:
        number = float(value)
    except ValueError:
        return False
    wanted = _number(term.value, term.value)
    match term.op:
        case ">":
            return number > wanted
        case ">=":
            return number >= wanted
        case "<":
            return number < wanted
        case _:
            return number <= wanted


def _value(key: str, found: Found, tags: Mapping[str, jaeger.Tag]) -> str | None:
    if key == "op":
        return found.span.name
    if key == "service":
        return jaeger.service_of(found.resource)
    if key == "kind":
        return jaeger.KINDS.get(found.span.kind, "unspecified")
    if key == "duration":
        return str(found.span.end_time_unix_nano - found.span.start_time_unix_nano)
    for name in KEYS.get(key, (key,)):
        if name in tags:
            return jaeger.text(tags[name])
    return None


def _duration(text: str, word: str) -> int:
    try:
        return duration_ns(text)
    except SearchError as error:
        raise SearchError(f"{word!r}: {error}") from None


def _number(text: str, word: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return float(duration_ns(text))
    except SearchError:
        raise SearchError(f"{word!r}: {text!r} is not a number") from None
