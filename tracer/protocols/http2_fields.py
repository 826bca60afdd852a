"""What spans need of an HTTP/2 header block's fields (RFC 9113 section 8.3).

Everything that goes into a span's shape is in one tuple per block, `Asked` or `Answered`,
and equal ones have one number, so that telling shapes apart takes numbers only. What
differs from request to request (path and query, trace headers) stands beside it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from tracer.flow import Method, Slot
from tracer.protocols.base import Routes, Settings
from tracer.protocols.hpack_state import UNKNOWN, Headers
from tracer.protocols.http1_shape import METHOD_UNKNOWN
from tracer.protocols.http1_target import Target, TargetClass, parse

# Bytes of a field's value that are kept.
MAX_VALUE_BYTES = 512
# Distinct tuples remembered before all are forgotten; numbers are never used again.
MAX_NUMBERS = 1 << 15
# Likewise of what each distinct set of fields was made into.
MAX_REMEMBERED = 1 << 13

# Fields that spans depend on. Others, which often are new in each block, are not looked at.
_GRPC_NAMES = frozenset({b"grpc-encoding", b"grpc-accept-encoding"})
_REQUEST_NAMES = _GRPC_NAMES | {
    UNKNOWN,
    b":authority",
    b":method",
    b":path",
    b":scheme",
    b"content-type",
    b"host",
    b"user-agent",
    b"x-forwarded-for",
    b"x-forwarded-proto",
}
# Headers that name a trace, the one that wins first; b3 also comes in several.
_TRACE_IDS = (b"traceparent", b"b3", b"uber-trace-id", b"sw8")
_B3_TRACE, _B3_SPAN = b"x-b3-traceid", b"x-b3-spanid"
# How long the client will wait: at most 8 digits and a unit, here in ns.
_TIMEOUT = b"grpc-timeout"
_UNITS = {b"H": 3600 * 10**9, b"M": 60 * 10**9, b"S": 10**9, b"m": 10**6, b"u": 1000, b"n": 1}
# What spans depend on though it may be another in each request.
_VARYING = frozenset({*_TRACE_IDS, _B3_TRACE, _B3_SPAN, _TIMEOUT})
_RESPONSE_NAMES = _GRPC_NAMES | {
    UNKNOWN,
    b":status",
    b"content-type",
    b"grpc-message",
    b"grpc-status",
}

_METHODS = {method.name.encode(): int(method) for method in Method if method != Method.OTHER}
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]{0,31}")
# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md: not gRPC-Web.
_GRPC_TYPE = re.compile(rb"application/grpc(?:[+;].*)?", re.IGNORECASE | re.DOTALL)


class Asked(NamedTuple):
    """Of a request's header block: what goes into a shape."""

    grpc: bool | None  # None: the block doesn't tell
    method: int  # enum flow_method, or METHOD_UNKNOWN
    method_text: str  # of other methods
    target: TargetClass | None  # None: not known, or a gRPC call
    path: str  # of what may be a gRPC call; "": not known
    scheme: str
    host: str  # :authority, else Host
    user_agent: str
    forwarded_for: str
    forwarded_proto: str
    truncated: int  # bit n: Slot n was cut
    unknown: bool  # there were fields whose name or value isn't known


class Answered(NamedTuple):
    """Of a response's header or trailer block: what goes into a shape."""

    grpc: bool | None  # None: the block doesn't tell
    status: int  # 0: there is none, or it isn't known
    grpc_status: str  # "": likewise
    grpc_message: str
    unknown: bool


class Request:
    """A request's header block."""

    __slots__ = ("asked", "is_head", "number", "path", "query", "raw", "timeout_ns", "trace")

    def __init__(
        self,
        number: int,
        asked: Asked,
        path: bytes,
        query: bytes,
        raw: bytes,
        trace: bytes,
        timeout_ns: int = 0,
    ) -> None:
        self.number = number
        self.asked = asked
        # Trailers have no method.
        self.is_head = asked.method > 0 or bool(asked.method_text)
        self.path = path
        self.query = query
        self.raw = raw  # :path as it came; b"": not known, or longer than MAX_VALUE_BYTES
        self.trace = trace  # value of a header as tracer.link.headers reads it
        self.timeout_ns = timeout_ns  # of a gRPC call; 0: none


class Response:
    """A response's header or trailer block."""

    __slots__ = ("answered", "number", "status")

    def __init__(self, number: int, answered: Answered) -> None:
        self.number = number
        self.answered = answered
        self.status = answered.status


class Fields:
    """Makes requests and responses of decoded blocks."""

    def __init__(self, routes: Routes, settings: Settings) -> None:
        self._routes = routes
        self._settings = settings
        self._requests: dict[Headers, Request] = {}
        self._responses: dict[Headers, Response] = {}
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._next = 1
        unknown = (UNKNOWN, UNKNOWN)
        self.unknown_request = self.request((unknown,))
        self.unknown_response = self.response((unknown,))

    def number(self, told: tuple[Any, ...]) -> int:
        """Return the number of a tuple, from 1 on; 0 is left for "none"."""
        number = self._numbers.get(told)
        if number is None:
            if len(self._numbers) >= MAX_NUMBERS:
                self._numbers.clear()
            number = self._numbers[told] = self._next
            self._next += 1
        return number

    def request(self, headers: Headers) -> Request:
        """Take what matters out of the fields of a request's block; never raises."""
        varying: dict[bytes, bytes] | None = None
        told = []
        for field in headers:
            if field[0] in _REQUEST_NAMES:
                told.append(field)
            elif field[0] in _VARYING:
                if varying is None:
                    varying = {}
                varying.setdefault(*field)
        key = tuple(told)
        made = self._requests.get(key)
        if made is None:
            if len(self._requests) >= MAX_REMEMBERED:
                self._requests.clear()
            made = self._requests[key] = self._new_request(key)
        if varying is None:
            return made
        timeout_ns = _timeout_ns(varying.get(_TIMEOUT, b""))
        return Request(
            made.number, made.asked, made.path, made.query, made.raw, _trace(varying), timeout_ns
        )

    def response(self, headers: Headers) -> Response:
        """Take what matters out of the fields of a response's block; never raises."""
        key = tuple([field for field in headers if field[0] in _RESPONSE_NAMES])
        made = self._responses.get(key)
        if made is None:
            if len(self._responses) >= MAX_REMEMBERED:
                self._responses.clear()
            made = self._responses[key] = self._new_response(key)
        return made

    def _new_request(self, headers: Headers) -> Request:
        first, unknown = _first(headers)
        grpc = _is_grpc(first, unknown)
        method = first.get(b":method")
        number = METHOD_UNKNOWN
        if method is not None or not unknown:
            number = _METHODS.get(method or b"", int(Method.OTHER))
        # RFC 8441: a CONNECT with a :protocol has a path like other methods.
        connect = number == Method.CONNECT and b":path" not in first
        raw = first.get(b":authority" if connect else b":path")
        target = None
        if grpc is not True and (raw is not None or not unknown):
            target = self._target(raw or b"", connect)
        scheme = first.get(b":scheme", b"")
        cut = 0
        texts = []
        for slot, value in (
            (Slot.METHOD, b"" if number != Method.OTHER else method or b""),
            (Slot.HOST, first.get(b":authority") or first.get(b"host", b"")),
            (Slot.USER_AGENT, first.get(b"user-agent", b"")),
            (Slot.FORWARDED_FOR, first.get(b"x-forwarded-for", b"")),
            (Slot.FORWARDED_PROTO, first.get(b"x-forwarded-proto", b"")),
        ):
            cut |= (len(value) > MAX_VALUE_BYTES) << slot
            texts.append(_text(value))
        method_text, host, user_agent, forwarded_for, forwarded_proto = texts
        scheme_text = scheme.decode().lower() if _SCHEME.fullmatch(scheme) else ""
        kind = target.kind if target else None
        if kind and scheme_text and not kind.scheme:
            kind = kind._replace(scheme=scheme_text)
        asked = Asked(
            grpc=grpc,
            method=number,
            method_text=method_text,
            target=kind,
            path="" if grpc is False else self._call_path(raw or b""),
            scheme=scheme_text,
            host=host,
            user_agent=user_agent,
            forwarded_for=forwarded_for,
            forwarded_proto=forwarded_proto,
            truncated=cut,
            unknown=unknown,
        )
        path, query = (target.path, target.query) if target else (b"", b"")
        plain = b"" if connect or raw is None or len(raw) > MAX_VALUE_BYTES else raw
        return Request(self.number(asked), asked, path, query, plain, b"")

    def _new_response(self, headers: Headers) -> Response:
        first, unknown = _first(headers)
        status = first.get(b":status", b"")
        message = unquote_to_bytes(first.get(b"grpc-message", b"")[: 3 * MAX_VALUE_BYTES])
        answered = Answered(
            grpc=_is_grpc(first, unknown),
            status=int(status) if len(status) == 3 and status.isdigit() else 0,
            grpc_status=_text(first.get(b"grpc-status", b"")[:16]),
            grpc_message=_text(message),
            unknown=unknown,
        )
        return Response(self.number(answered), answered)

    def _call_path(self, raw: bytes) -> str:
        """Return the path of what may be a gRPC call, which has no query: what looks like one,
        or like credentials, is not shown."""
        if not raw.startswith(b"/"):
            raw = self._target(raw, False).path
        return _text(raw.partition(b"?")[0])

    def _target(self, path: bytes, connect: bool) -> Target:
        query = self._settings.query
        return parse(path, connect=connect, cut=False, query=query, routes=self._routes)


def _trace(fields: dict[bytes, bytes]) -> bytes:
    """Return the value that tells the trace."""
    for name in _TRACE_IDS:
        if value := fields.get(name):
            return value if value is not UNKNOWN else b""
    trace, span = fields.get(_B3_TRACE), fields.get(_B3_SPAN)
    if trace and span and trace is not UNKNOWN and span is not UNKNOWN:
        return trace + b"-" + span
    return b""


def _timeout_ns(value: bytes) -> int:
    """Return how long the client will wait; 0 if that isn't known."""
    digits, unit = value[:-1], value[-1:]
    if value is UNKNOWN or unit not in _UNITS or not digits.isdigit() or len(digits) > 8:
        return 0
    return int(digits) * _UNITS[unit]


def _first(headers: Headers) -> tuple[dict[bytes, bytes], bool]:
    """Return the first known value of each name, and whether there were unknown fields."""
    first: dict[bytes, bytes] = {}
    unknown = False
    for name, value in headers:
        if name is UNKNOWN or value is UNKNOWN:
            unknown = True
        else:
            first.setdefault(name, value)
    return first, unknown


def _is_grpc(first: dict[bytes, bytes], unknown: bool) -> bool | None:
    """Whether a block is of a gRPC call; None if it doesn't tell."""
    content_type = first.get(b"content-type")
    if content_type is not None:
        return _GRPC_TYPE.fullmatch(content_type) is not None
    # No other protocol has these; a client that only accepts encodings sends no type yet.
    if b"grpc-status" in first or (unknown and not _GRPC_NAMES.isdisjoint(first)):
        return True
    return None if unknown else False


def _text(value: bytes) -> str:
    """Decode a value's first bytes."""
    if len(value) > MAX_VALUE_BYTES:
        return value[:MAX_VALUE_BYTES].decode("utf-8", "ignore")
    return value.decode("utf-8", "replace")
