"""Jaeger's query API over HTTP, read-only, for this machine.

Source: https://www.jaegertracing.io/docs/latest/architecture/apis/ and the answers of
Jaeger 2 itself. `/wirespan/traces` is for `wirespan traces`.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from collector import jaeger
from collector.http_server import ApiError, V3Error, compact
from collector.query import Found, Queries, Search
from collector.search import SearchError, duration_ns, parse

DAY_MS = 86_400_000

Parameters = Mapping[str, Sequence[str]]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Summary:
    """A line of `wirespan traces`."""

    trace_id: str
    start_ns: int
    duration_ns: int
    service: str
    name: str
    spans: int
    errors: int
    services: int

    def json(self) -> Json:
        """Write as JSON of this program's own."""
        return {
            "traceID": self.trace_id,
            "start_ns": self.start_ns,
            "duration_ns": self.duration_ns,
            "service": self.service,
            "name": self.name,
            "spans": self.spans,
            "errors": self.errors,
            "services": self.services,
        }


class Api:
    """Answers requests: a target in, pieces of JSON out."""

    def __init__(self, queries: Queries, clock: Callable[[], int] = time.time_ns) -> None:
        self._queries = queries
        self._now_ns = clock

    def answer(self, target: str) -> Iterator[str]:
        """Answer one GET in pieces; raises ApiError before the first."""
        parts = urlsplit(target)
        try:
            parameters = parse_qs(parts.query, keep_blank_values=True, max_num_fields=100)
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        # Split before unquoting: a service's name may hold a slash.
        words = tuple(unquote(word) for word in parts.path.split("/")[1:])
        match words:
            case ("api", "services"):
                return _data([_shown(name) for name in self._queries.services()], True)
            case ("api", "operations"):
                return _data(self._operations(parameters), True)
            case ("api", "services", service, "operations"):
                names = {name for name, _ in self._queries.operations(_stored(service))}
                return _data(sorted(names) or None, True)
            case ("api", "traces"):
                return self._traces(parameters)
            case ("api", "traces", trace_id):
                return self._trace(_trace_id(trace_id))
            case ("api", "dependencies"):
                return _data(self._dependencies(parameters))
            case ("api", "v3", "services"):
                return _json({"services": [_shown(name) for name in self._queries.services()]})
            case ("api", "v3", "operations"):
                return _json({"operations": self._operations(parameters, True)})
            case ("api", "v3", "traces", trace_id):
                return self._trace_v3(trace_id)
            case ("wirespan", "traces"):
                return self._summaries(parameters)
        raise ApiError(404, "not found: see docs/reference/query-api.md for what there is")

    def _operations(self, parameters: Parameters, v3: bool = False) -> list[Json]:
        service = _one(parameters, "service")
        if not service:
            if v3:
                return []
            raise ApiError(400, "parameter 'service' is required")
        wanted = _one(parameters, "span_kind" if v3 else "spanKind")
        kind = jaeger.KIND_NUMBERS.get(wanted.lower(), 0) if wanted else None
        found = self._queries.operations(_stored(service), kind)
        return [{"name": name, "spanKind": jaeger.KINDS.get(each, "")} for name, each in found]

    def _traces(self, parameters: Parameters) -> Iterator[str]:
        if parameters.get("traceID"):
            ids = [_trace_id(text) for text in parameters["traceID"][:100]]
            return self._found(ids, True)
        return self._found(self._queries.search(self._search(parameters)))

    def _search(self, parameters: Parameters) -> Search:
        service = _one(parameters, "service")
        start_us = _whole(parameters, "start")
        end_us = _whole(parameters, "end")
        limit = _whole(parameters, "limit", bare=True)
        tags = _tags(parameters)
        min_ns, max_ns = _duration(parameters, "minDuration"), _duration(parameters, "maxDuration")
        if not service:
            raise ApiError(400, "parameter 'service' is required")
        if min_ns and max_ns and max_ns < min_ns:
            raise ApiError(400, "'maxDuration' should be greater than 'minDuration'")
        if limit is not None and not 0 < limit <= 10_000:
            raise ApiError(400, "search depth must be greater than 0 and less than max traces")
        now_ns = self._now_ns()
        if start_us is None:
            start_us = now_ns // 1000 - 2 * DAY_MS * 1000
            lookback = _one(parameters, "lookback")
            # Jaeger's pages say `custom`, and Jaeger itself ignores what it can't read.
            if re.fullmatch(r"\d+(\.\d+)?(m|h|d|s|ms)", lookback):
                with contextlib.suppress(SearchError):  # centuries
                    start_us = (now_ns - duration_ns(lookback)) // 1000
        end_ns = end_us * 1000 + 999 if end_us is not None else None
        return Search(
            service=_stored(service),
            operation=_one(parameters, "operation") or None,
            start_ns=_u64(start_us * 1000),
            end_ns=_u64(end_ns) if end_ns is not None else None,
            min_ns=_u64(min_ns) if min_ns else None,
            max_ns=_u64(max_ns) if max_ns else None,
            limit=limit or 100,
            check=(lambda found: jaeger.matches(found, tags)) if tags else None,
            # Tags that are made of other fields have no such bytes.
            needles=tuple(key.encode() for key in tags if key not in _MADE_TAGS),
        )

    def _found(self, ids: Sequence[bytes], by_id: bool = False) -> Iterator[str]:
        """Write traces one by one; by_id: an error for each that is not there."""

        def pieces() -> Iterator[str]:
            missing = list(ids) if by_id else []
            between = '{"data":['
            for trace_id, spans in self._queries.traces(ids):
                yield between + compact(jaeger.trace(trace_id, spans))
                between = ","
                if by_id:
                    missing = [each for each in missing if each != trace_id]
            errors = [
                {"msg": "trace not found", "traceID": jaeger.short_id(each)} for each in missing
            ]
            yield '{"data":[' if between != "," else ""
            yield f'],"total":0,"limit":0,"offset":0,"errors":{compact(errors or None)}}}'

        return pieces()

    def _trace(self, trace_id: bytes) -> Iterator[str]:
        for each, spans in self._queries.traces([trace_id]):
            return _data([jaeger.trace(each, spans)])
        raise ApiError(404, "trace not found")

    def _trace_v3(self, text: str) -> Iterator[str]:
        try:
            found = list(self._queries.traces([_trace_id(text)]))
        except ApiError as error:
            message = f"malformed parameter trace_id: {error}"
            return _v3_error(400, message)
        if not found:
            return _v3_error(404, "No traces found")
        return _json({"result": jaeger.otlp(found)})

    def _dependencies(self, parameters: Parameters) -> list[Json]:
        end_ms = _whole(parameters, "endTs")
        lookback_ms = _whole(parameters, "lookback")
        if end_ms is None:
            end_ms = self._now_ns() // 1_000_000
        start_ms = end_ms - (DAY_MS if lookback_ms is None else lookback_ms)
        found = self._queries.dependencies(_u64(start_ms * 10**6), _u64(end_ms * 10**6))
        return [
            {"parent": _shown(parent), "child": _shown(child), "callCount": count}
            for parent, child, count in found
        ]

    def _summaries(self, parameters: Parameters) -> Iterator[str]:
        limit = _whole(parameters, "limit", bare=True)
        try:
            search = parse(parameters.get("q", ()), self._now_ns(), 20 if limit is None else limit)
        except SearchError as error:
            raise ApiError(400, str(error)) from None
        ids = self._queries.search(search)
        return _data([summary(*each).json() for each in self._queries.traces(ids)])


def summary(trace_id: bytes, spans: Sequence[Found]) -> Summary:
    """Sum up a trace; its root is the first span without a parent in it."""
    known = {found.span.span_id for found in spans}
    root = next((f for f in spans if f.span.parent_span_id not in known), spans[0])
    start_ns = min(found.span.start_time_unix_nano for found in spans)
    end_ns = max(found.span.end_time_unix_nano for found in spans)
    return Summary(
        jaeger.short_id(trace_id),
        start_ns,
        max(0, end_ns - start_ns),
        jaeger.service_of(root.resource),
        root.span.name,
        len(spans),
        sum(found.span.status.code == 2 for found in spans),
        len({jaeger.service_of(found.resource) for found in spans}),
    )


_MADE_TAGS = frozenset(
    {
        "error",
        "event",
        "otel.scope.name",
        "otel.scope.version",
        "otel.status_code",
        "otel.status_description",
        "span.kind",
        "w3c.tracestate",
    }
)


def _json(value: Any) -> Iterator[str]:
    return iter((compact(value),))


def _data(data: list[Any] | None, counted: bool = False) -> Iterator[str]:
    total = len(data or ()) if counted else 0
    return _json({"data": data, "total": total, "limit": 0, "offset": 0, "errors": None})


def _v3_error(status: int, message: str) -> Iterator[str]:
    raise V3Error(status, compact({"error": {"httpCode": status, "message": message}}))


def _shown(service: str) -> str:
    return service or jaeger.NO_SERVICE


def _stored(service: str) -> str:
    return "" if service == jaeger.NO_SERVICE else service


def _one(parameters: Parameters, name: str) -> str:
    return parameters.get(name, ("",))[0]


def _u64(value: int) -> int:
    return min(max(value, 0), (1 << 63) - 1)


def _whole(parameters: Parameters, name: str, bare: bool = False) -> int | None:
    text = _one(parameters, name)
    if not text:
        return None
    if not re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
        cause = f"strconv.ParseInt: parsing {compact(text)}: invalid syntax"
        raise ApiError(400, cause if bare else f"unable to parse param '{name}': {cause}")
    return int(text)


def _duration(parameters: Parameters, name: str) -> int | None:
    text = _one(parameters, name)
    try:
        return duration_ns(text) if text else None
    except SearchError:
        unit = "missing unit in" if re.fullmatch(r"[\d.]+", text) else "invalid"
        cause = f"time: {unit} duration {compact(text)}"
        raise ApiError(400, f"unable to parse param '{name}': {cause}") from None


def _tags(parameters: Parameters) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in parameters.get("tag", ()):
        key, colon, value = text.partition(":")
        if not colon:
            raise ApiError(400, f"malformed 'tag' parameter, expecting key:value, received: {text}")
        found[key] = value
    for text in parameters.get("tags", ()):
        try:
            read = json.loads(text)
            if not isinstance(read, dict) or not all(isinstance(v, str) for v in read.values()):
                raise ValueError("an object of strings is wanted")
        except (ValueError, RecursionError) as error:
            raise ApiError(
                400, f"malformed 'tags' parameter, cannot unmarshal JSON: {error}"
            ) from None
        found.update(read)
    return found


def _trace_id(text: str) -> bytes:
    if len(text) > 32:
        raise ApiError(400, f"TraceID cannot be longer than 32 hex characters: {text}")
    if not re.fullmatch(r"[0-9a-fA-F]+", text):
        cause = f"strconv.ParseUint: parsing {compact(text)}: invalid syntax"
        raise ApiError(400, cause)
    return bytes.fromhex(text.zfill(32))
