"""Which spans does a person want to see: `service=web status>=500 path~/api`.

A filter is a list of terms, all of which must hold. Each term is resolved once per shape,
so that what is constant for a shape costs nothing per span, and the rest is compared in
columns.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tracer.columns import unlike
from tracer.errors import UsageError
from tracer.spans import (
    KIND_CLIENT,
    KIND_SERVER,
    AttributeValue,
    IntColumn,
    Shape,
    SpanBatch,
    Text,
    TextColumn,
)

Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]

# Short names for what people filter by; any attribute's full key works as well.
KEYS: Mapping[str, str] = {
    "service": "service.name",
    "pid": "process.pid",
    "method": "http.request.method",
    "status": "http.response.status_code",
    "path": "url.path",
    "route": "http.route",
}
# Those that are numbers: nothing else could be equal to them.
NUMBERS: Mapping[str, str] = {
    "process.pid": "pid=1234",
    "http.response.status_code": "status=404",
}
PEER: Mapping[int, str] = {KIND_SERVER: "client.address", KIND_CLIENT: "server.address"}
KINDS: Mapping[int, str] = {KIND_SERVER: "server", KIND_CLIENT: "client"}
UNITS_NS: Mapping[str, int] = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}

# Longest first: `>=` must not be read as `>`.
OPERATORS = ("!=", "!~", ">=", "<=", "==", "=", "~", ">", "<")
_TERM = re.compile(
    r"([A-Za-z_][\w.]*)(" + "|".join(map(re.escape, OPERATORS)) + r")(.*)", re.DOTALL
)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s)")

HELP = (
    "terms, all of which must hold: KEY OP VALUE without spaces, OP one of "
    "= != ~ !~ > >= < <=, where ~ means contains; "
    f"KEY one of kind, name, peer, duration, {', '.join(KEYS)}, or an attribute's full name"
)


@dataclass(frozen=True, slots=True)
class Term:
    """`key op value`; `number` is the value in ns for a duration, else as a number if it is one."""

    key: str
    op: str
    value: str
    number: float | None


@dataclass(frozen=True, slots=True)
class Check:
    """A term that must look at each span: its value is in this column."""

    term: Term
    column: IntColumn | TextColumn | None  # None: the duration


Plan = tuple[Check, ...]
_NEVER = 0


def parse(text: str) -> Filter:
    """Read a filter; raises UsageError that names the term at fault."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"filter: {error}", "close the quotation mark") from None
    return Filter(tuple(_term(word) for word in words))


def _term(word: str) -> Term:
    matched = _TERM.fullmatch(word)
    if matched is None:
        raise UsageError(
            f"filter: {word!r} is not a term", "write for example 'status>=500 path~/api'"
        )
    key, op, value = matched.groups()
    if not value:
        raise UsageError(f"filter: {word!r} has no value", "write for example status>=500")
    op = op.removeprefix("=") if op == "==" else op
    key = KEYS.get(key, key)
    number: float | None = None
    if key == "duration":
        duration = _DURATION.fullmatch(value)
        if duration is None or op in ("~", "!~"):
            raise UsageError(
                f"filter: {word!r}: not a comparison with a duration",
                "write for example 'duration>100ms'; the units are ns, us, ms and s",
            )
        number = float(duration[1]) * UNITS_NS[duration[2]]
    elif re.fullmatch(r"-?\d+(\.\d+)?", value):
        number = float(value)
    elif op in (">", ">=", "<", "<="):
        raise UsageError(f"filter: {word!r}: {value!r} is not a number", f"{op} compares numbers")
    elif key in NUMBERS and op in ("=", "!="):
        raise UsageError(
            f"filter: {word!r}: {value!r} is not a number", f"write for example {NUMBERS[key]}"
        )
    if key == "kind" and value.lower() not in KINDS.values():
        raise UsageError(f"filter: {word!r}: no such kind", "the kinds are client and server")
    return Term(key, op, value, number)


class Filter:
    """Terms, and what they come to for each shape seen so far. Not shared between threads."""

    def __init__(self, terms: tuple[Term, ...]) -> None:
        self.terms = terms
        self._plans: list[Plan | None] = [None]  # _NEVER
        self._plan_ids: dict[Plan, int] = {}
        self._shapes: Sequence[Shape] = ()
        self._plan_of_shape: list[int] = []

    def rows(self, batch: SpanBatch) -> Rows:
        """Find the spans for which every term holds: their row numbers, ascending."""
        if not self.terms:
            return np.arange(len(batch), dtype=np.intp)
        if batch.shapes is not self._shapes:
            # An index means the same only within one list of shapes.
            self._shapes, self._plan_of_shape = batch.shapes, []
        for shape in batch.shapes[len(self._plan_of_shape) :]:
            self._plan_of_shape.append(self._plan_id(shape))
        plans = np.asarray(self._plan_of_shape, dtype=np.intp)[batch.shape]
        keep = np.zeros(len(batch), dtype=np.bool_)
        for plan_id in unlike(plans).tolist():
            plan = self._plans[plan_id]
            if plan is None:
                continue
            rows = np.flatnonzero(plans == plan_id)
            for check in plan:
                rows = rows[_check(check, batch, rows)]
            keep[rows] = True
        return np.flatnonzero(keep)

    def _plan_id(self, shape: Shape) -> int:
        checks: list[Check] = []
        for term in self.terms:
            found = _resolve(term.key, shape)
            if isinstance(found, Check):
                checks.append(replace(found, term=term))
            elif not _holds(term, found):
                return _NEVER
        plan = tuple(checks)
        if plan not in self._plan_ids:
            self._plan_ids[plan] = len(self._plans)
            self._plans.append(plan)
        return self._plan_ids[plan]


def take(batch: SpanBatch, rows: Rows) -> SpanBatch:
    """Make a batch of the spans in `rows`; copies the columns, shares the shapes."""
    if len(rows) == len(batch):
        return batch
    return SpanBatch(
        trace_id=batch.trace_id[rows],
        span_id=batch.span_id[rows],
        parent_span_id=batch.parent_span_id[rows],
        start_ns=batch.start_ns[rows],
        end_ns=batch.end_ns[rows],
        shape=batch.shape[rows],
        shapes=batch.shapes,
        ints={key: column[rows] for key, column in batch.ints.items()},
        texts={key: Text(text.bytes[rows], text.length[rows]) for key, text in batch.texts.items()},
        sampling=batch.sampling and batch.sampling.rows(rows),
        fate=None if batch.fate is None else batch.fate[rows],
    )


def _resolve(key: str, shape: Shape) -> Check | AttributeValue | None:
    """Where `key` is found: a column to look at, a constant, or None for nowhere."""
    term = Term(key, "=", "", None)
    if key == "duration":
        return Check(term, None)
    if key == "kind":
        return KINDS.get(shape.kind)
    if key == "name":
        return shape.name
    if key == "peer":
        key = PEER.get(shape.kind, "")
    for text_column in shape.texts:
        if text_column.key == key:
            return Check(term, text_column)
        if key == "url.path" and text_column.key == "url.full":
            # A client's span has no path of its own: what follows the authority, query and all.
            return Check(term, text_column._replace(prefix=""))
    for int_column in shape.ints:
        if int_column.key == key:
            return Check(term, int_column)
    for name, value in (*shape.attributes, *shape.resource.attributes):
        if name == key:
            return value
    return None


def _holds(term: Term, value: AttributeValue | None) -> bool:
    """Whether `term` holds for a constant; an absent one differs from everything."""
    if value is None:
        return term.op in ("!=", "!~")
    if term.op in ("~", "!~"):
        texts = value if isinstance(value, tuple) else (str(value),)
        return any(term.value in text for text in texts) == (term.op == "~")
    if isinstance(value, bool):
        equal = str(value).lower() == term.value.lower()
        return equal if term.op == "=" else term.op == "!=" and not equal
    if isinstance(value, int | float):
        return (
            bool(_compare(term, np.array([value]))[0])
            if term.number is not None
            else term.op == "!="
        )
    if term.op in ("=", "!="):
        texts = value if isinstance(value, tuple) else (value,)
        if term.key == "kind":
            return (term.value.lower() in texts) == (term.op == "=")
        return (term.value in texts) == (term.op == "=")
    return False


def _check(check: Check, batch: SpanBatch, rows: Rows) -> Mask:
    """Whether the term holds, for each of `rows`."""
    term, column = check.term, check.column
    if column is None:
        return _compare(term, (batch.end_ns[rows] - batch.start_ns[rows]).astype(np.int64))
    if isinstance(column, TextColumn):
        return _check_text(term, column, batch.texts[column.column], rows)
    values = batch.ints[column.column][rows]
    absent = values < 0
    if term.op in ("~", "!~"):
        found = np.strings.find(values.astype(np.str_), term.value) >= 0
        return (found & ~absent) if term.op == "~" else (~found | absent)
    if term.number is None:
        return np.full(len(rows), term.op == "!=")
    return (
        (_compare(term, values) | absent) if term.op == "!=" else (_compare(term, values) & ~absent)
    )


def _compare(term: Term, values: NDArray[np.int64] | NDArray[np.float64]) -> Mask:
    number = term.number
    assert number is not None
    match term.op:
        case "=":
            return np.asarray(values == number)
        case "!=":
            return np.asarray(values != number)
        case ">":
            return np.asarray(values > number)
        case ">=":
            return np.asarray(values >= number)
        case "<":
            return np.asarray(values < number)
        case _:
            return np.asarray(values <= number)


def _check_text(term: Term, column: TextColumn, text: Text, rows: Rows) -> Mask:
    length = text.length[rows]
    width = max(1, int(length.max(initial=0)))
    # Bytes beyond a row's length are undefined; numpy's S type ends a string at its NULs.
    used = np.arange(width) < length[:, np.newaxis]
    data = np.where(used, text.bytes[rows, :width], 0).astype(np.uint8)
    values = np.ascontiguousarray(data).view(f"S{width}")[:, 0]
    absent = np.zeros(len(rows), dtype=np.bool_)
    if column.prefix:
        values = np.strings.add(column.prefix.encode(), values)
    else:
        absent = length == 0
    wanted = term.value.encode(errors="surrogateescape")
    match term.op:
        case "=":
            return np.asarray((values == wanted) & ~absent)
        case "!=":
            return np.asarray((values != wanted) | absent)
        case "~":
            return np.asarray((np.strings.find(values, wanted) >= 0) & ~absent)
        case "!~":
            return np.asarray((np.strings.find(values, wanted) < 0) | absent)
        case _:
            return np.zeros(len(rows), dtype=np.bool_)
