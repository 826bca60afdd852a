"""What gRPC calls have in common as spans: the OpenTelemetry RPC conventions for gRPC.

Decisions where the conventions leave room:

- `rpc.method` is the path without its slash; where that is no `service/method`, or where a
  server answered UNIMPLEMENTED, so that nobody can tell whether it has such a method, it is
  `_OTHER` and the path is in `rpc.method_original`. The span is then named `grpc`.
- Messages and sizes have no attributes in the conventions: `wirespan.rpc.request.messages`
  and `.size` (bytes of DATA without padding), likewise of the response.
- A call without a `grpc-status` gets the one that gRPC clients have to make of what came
  instead: of a reset stream's HTTP/2 error code, of an HTTP status other than 200, of a
  header block that ended the response without (UNKNOWN). A deadline that runs out shows
  as RST_STREAM(CANCEL) of the client or, grpc-go, the server, like a call that is cancelled:
  DEADLINE_EXCEEDED, if the client had waited for as long as its `grpc-timeout` said. If the
  connection ended, nothing says more than `error.type` (the table in
  tracer.protocols.http1_shape).

Source: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/ (semantic conventions 1.45);
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md (HTTP2 Transport Mapping);
https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md.
"""

from __future__ import annotations

from typing import NamedTuple

from tracer.flow import End
from tracer.protocols.base import Settings
from tracer.protocols.http1_shape import (
    FIRST_BYTE,
    REQUEST_BODY,
    RESPONSE_BODY,
    THREAD,
    Head,
    failure_of,
    incomplete_of,
    network,
    server_of,
)
from tracer.protocols.http1_target import TargetClass
from tracer.spans import (
    KIND_CLIENT,
    KIND_SERVER,
    STATUS_ERROR,
    STATUS_UNSET,
    AttributeValue,
    IntColumn,
    Resource,
    Shape,
)

# Columns of a batch that shapes refer to.
REQUEST_MESSAGES = "wirespan.rpc.request.messages"
RESPONSE_MESSAGES = "wirespan.rpc.response.messages"

_INTS = (
    IntColumn(REQUEST_MESSAGES, REQUEST_MESSAGES),
    IntColumn(RESPONSE_MESSAGES, RESPONSE_MESSAGES),
    IntColumn("wirespan.rpc.request.size", REQUEST_BODY),
    IntColumn("wirespan.rpc.response.size", RESPONSE_BODY),
)

CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
# Of a server's span; a client's is an error for every code but OK.
_SERVER_ERRORS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)

# RFC 9113 section 7, by number.
HTTP2_ERRORS = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)
OF_HTTP2_ERROR = {
    "REFUSED_STREAM": "UNAVAILABLE",
    "CANCEL": "CANCELLED",
    "ENHANCE_YOUR_CALM": "RESOURCE_EXHAUSTED",
    "INADEQUATE_SECURITY": "PERMISSION_DENIED",
    "STREAM_CLOSED": "UNKNOWN",
    "HTTP_1_1_REQUIRED": "UNKNOWN",
}
OF_HTTP_STATUS = {
    400: "INTERNAL",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "UNIMPLEMENTED",
    429: "UNAVAILABLE",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}


class Reset(NamedTuple):
    """A RST_STREAM: its error code, who sent it, and whether the call's time was up."""

    code: int
    by_server: bool
    expired: bool = False

    @property
    def name(self) -> str:
        """The error's name, or its number if it has none."""
        return HTTP2_ERRORS[self.code] if self.code < len(HTTP2_ERRORS) else str(self.code)

    @property
    def message(self) -> str:
        """The status's message."""
        if self.expired:
            return f"the deadline passed: {self._told}"
        return self._told

    @property
    def _told(self) -> str:
        return f"the {'server' if self.by_server else 'client'} reset the stream: {self.name}"


class Call(NamedTuple):
    """What is gRPC's own in a call."""

    path: str  # "": not known
    status: str  # grpc-status as it came, "": there was none
    message: str  # grpc-message, decoded
    http_status: int  # 0: not known
    answered: bool  # a response's header block was seen
    reset: Reset | None


class _Outcome(NamedTuple):
    """How a call ended."""

    code: str  # rpc.response.status_code, "": not known
    error_type: str  # "": no error
    message: str


def shape(call: Call, head: Head, scheme: str, resource: Resource, settings: Settings) -> Shape:
    """Build what all calls like this one have in common."""
    attributes: list[tuple[str, AttributeValue]] = [("rpc.system.name", "grpc")]
    ints: list[IntColumn] = []
    cut: list[str] = []
    outcome = _outcome(call, head)
    method = _method(call.path)
    if head.server and outcome.code == "UNIMPLEMENTED":
        method = ""
    if call.path:
        attributes.append(("rpc.method", method or "_OTHER"))
        if not method:
            attributes.append(("rpc.method_original", call.path.removeprefix("/")))
    if outcome.code:
        attributes.append(("rpc.response.status_code", outcome.code))
    if outcome.error_type:
        attributes.append(("error.type", outcome.error_type))
    server = server_of(head, TargetClass("origin", "", scheme, "", False, ""))
    if server.address:
        attributes.append(("server.address", server.address))
        if server.cut:
            cut.append("server.address")
    if server.port is not None:
        attributes.append(("server.port", server.port))
    network(head, settings, attributes, ints, cut)
    attributes.append(("network.protocol.name", "http"))
    attributes.append(("wirespan.protocol", head.protocol))
    incomplete = incomplete_of(head)
    if incomplete:
        attributes.append(("wirespan.incomplete", incomplete))
    if cut:
        attributes.append(("wirespan.truncated", ",".join(cut)))
    ints += _INTS
    if THREAD in settings.opt_in:
        ints.append(IntColumn(THREAD, THREAD))
    ints.append(IntColumn(FIRST_BYTE, FIRST_BYTE))
    return Shape(
        resource=resource,
        name=method or "grpc",
        kind=KIND_SERVER if head.server else KIND_CLIENT,
        status=STATUS_ERROR if outcome.error_type else STATUS_UNSET,
        status_message=outcome.message,
        attributes=tuple(attributes),
        ints=tuple(ints),
        texts=(),
    )


def _method(path: str) -> str:
    """Return the fully-qualified method, "" if the path is none of a method."""
    service, _, method = path.removeprefix("/").partition("/")
    return path[1:] if path.startswith("/") and service and method and "/" not in method else ""


def _outcome(call: Call, head: Head) -> _Outcome:
    if call.status:
        return _of_code(_code(call.status), call.message, head.server)
    if call.reset:
        code = OF_HTTP2_ERROR.get(call.reset.name, "INTERNAL")
        if call.reset.expired:
            code = "DEADLINE_EXCEEDED"
        return _of_code(code, call.reset.message, head.server)
    failure = failure_of(head)
    if failure:
        return _Outcome("", failure.error_type, failure.message)
    if call.http_status not in (0, 200):
        code = OF_HTTP_STATUS.get(call.http_status, "UNKNOWN")
        return _of_code(code, f"HTTP status {call.http_status}", head.server)
    if head.end == End.RESPONSE and call.answered and not head.incomplete:
        return _of_code("UNKNOWN", "the response had no grpc-status", head.server)
    return _Outcome("", "", "")


def _of_code(code: str, message: str, server: bool) -> _Outcome:
    # A code that gRPC doesn't have is to be taken for UNKNOWN.
    failed = code in _SERVER_ERRORS or code not in CODES if server else code != "OK"
    return _Outcome(code, code, message) if failed else _Outcome(code, "", "")


def _code(status: str) -> str:
    """Return a grpc-status's name; what has none stays as it is."""
    if status.isascii() and status.isdigit() and len(status) < 4 and int(status) < len(CODES):
        return CODES[int(status)]
    return status
