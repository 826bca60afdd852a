"""What HTTP exchanges have in common as spans: the stable OpenTelemetry HTTP conventions.

Decisions where the conventions leave room:

- The span name is `{method} {route}` with a route folded from the path. `http.route` is
  not set: it is reserved for routes that the server's framework states. Client spans
  carry the folded route as `url.template`.
- A body's size is given also when it is 0; the response's, where a response came.
- `server.address` and `server.port`: the target's own authority if it has one, else the
  Host header, else the address at the server's end of the connection. A Host without a
  port means the scheme's port, except over Unix sockets, which have none.
- `url.path` of the asterisk form is `*`, of the authority form (CONNECT) empty.

`error.type`, beside status codes (server from 500, client from 400, either below 100):

    enum flow_end  client span          server span
    -------------  -------------------  -------------------
    PEER           connection_closed    cancelled
    LOCAL          cancelled            connection_closed
    RESET          connection_reset     connection_reset
    TIMEOUT        timeout              timeout
    INVALID        invalid_response     invalid_response

`cancelled`: the client's side gave up; `connection_closed`: the server's side did. GAP is
no error but `wirespan.incomplete=gap`: the exchange may well have succeeded. HTTP/2 adds
failures of its own (Head.failure), gRPC its own conventions (tracer.protocols.grpc_shape).

Source: https://opentelemetry.io/docs/specs/semconv/http/http-spans/.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import quote

from tracer.flow import End, Family, Method, Role, Slot
from tracer.protocols.base import Settings
from tracer.protocols.http1_target import REDACTED, TargetClass
from tracer.protocols.network import address_of, transport_of
from tracer.spans import (
    KIND_CLIENT,
    KIND_SERVER,
    STATUS_ERROR,
    STATUS_UNSET,
    AttributeValue,
    IntColumn,
    Resource,
    Shape,
    TextColumn,
)

# Columns of a batch that shapes refer to.
PEER_PORT = "network.peer.port"
LOCAL_PORT = "network.local.port"
REQUEST_BODY = "http.request.body.size"
RESPONSE_BODY = "http.response.body.size"
FIRST_BYTE = "wirespan.time_to_first_byte_ns"
THREAD = "thread.id"
URL_PATH = "url.path"
URL_QUERY = "url.query"
URL_FULL = "url.full"

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST_PORT = re.compile(r"(?:\[([^\]]+)\]|([^:]+))(?::(\d{0,5}))?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
# RFC 3986 section 3.2, but for who logs in; hosts with characters beyond ASCII are seen, too.
_AUTHORITY = re.compile(r"(?:\[[^\s/?#@\[\]]*\]?|[^\s/?#@:\[\]\\]+)(?::\d{0,5})?")
# In a user agent: who a URL logs in as, and what it asks.
_AGENT_USERINFO = re.compile(r"(?<=//)[^/@\s]+@")
_AGENT_QUERY = re.compile(r"(://[^\s?#]*)\?[^\s)>;,]*")
_HTTP2 = 20
# Head.method of a request whose method isn't known.
METHOD_UNKNOWN = -1


class Outcome(NamedTuple):
    """How an exchange that failed is told: `error.type`, and the status's message."""

    error_type: str
    message: str


_RESET = Outcome("connection_reset", "connection reset before the response was complete")
_TIMEOUT = Outcome("timeout", "connection timed out before the response was complete")
_INVALID = Outcome("invalid_response", "the response was not valid HTTP")
FAILURES: dict[tuple[int, int], Outcome] = {
    (Role.CLIENT, End.PEER): Outcome(
        "connection_closed", "the server closed the connection before the response was complete"
    ),
    (Role.CLIENT, End.LOCAL): Outcome(
        "cancelled", "the client closed the connection before the response was complete"
    ),
    (Role.SERVER, End.PEER): Outcome(
        "cancelled", "the client closed the connection before the response was complete"
    ),
    (Role.SERVER, End.LOCAL): Outcome(
        "connection_closed", "the server closed the connection before the response was complete"
    ),
    (Role.CLIENT, End.RESET): _RESET,
    (Role.SERVER, End.RESET): _RESET,
    (Role.CLIENT, End.TIMEOUT): _TIMEOUT,
    (Role.SERVER, End.TIMEOUT): _TIMEOUT,
    (Role.CLIENT, End.INVALID): _INVALID,
    (Role.SERVER, End.INVALID): _INVALID,
}


class Head(NamedTuple):
    """One record's strings and numbers that go into a shape."""

    server: bool
    method: int
    status: int
    end: int
    version: int
    truncated: int
    family: int
    local_address: bytes
    remote_address: bytes
    server_port: int  # at the server's end of the connection
    host: str
    user_agent: str
    forwarded_for: str
    forwarded_proto: str
    method_text: str
    unix_path: str
    protocol: str = "http1"
    failure: Outcome | None = None  # what `end` doesn't tell, HTTP/2 only
    incomplete: str = ""  # why something is missing, beside the gap that `end` tells of

    def cut(self, slot: Slot) -> bool:
        """Whether the capture limit took the end of a string."""
        return bool(self.truncated >> slot & 1)


class Server(NamedTuple):
    """The server of an exchange, as a URL names it."""

    address: str
    port: int | None
    scheme: str
    authority: str  # for url.full
    cut: bool  # the address's end is missing


def shape(head: Head, target: TargetClass | None, resource: Resource, settings: Settings) -> Shape:
    """Build what all exchanges with this head and this class of target have in common.

    target: None where it isn't known, as Head.incomplete then says; likewise METHOD_UNKNOWN.
    """
    wanted = settings.opt_in
    attributes: list[tuple[str, AttributeValue]] = []
    ints: list[IntColumn] = []
    texts: list[TextColumn] = []
    cut: list[str] = []

    known = head.method in _METHODS
    method = _METHODS.get(head.method, "_OTHER")
    if head.method != METHOD_UNKNOWN:
        attributes.append(("http.request.method", method))
    if not known and head.method_text:
        attributes.append(("http.request.method_original", head.method_text))
        if head.cut(Slot.METHOD):
            cut.append("http.request.method_original")

    server = server_of(head, target)
    if head.server or "url.scheme" in wanted:
        attributes.append(("url.scheme", server.scheme))
    if target is None:
        pass
    elif head.server:
        _server_url(target, settings, attributes, texts, cut)
    else:
        _client_url(target, server, settings, attributes, texts, cut)
    route = target.route if target else ""
    if not head.server and route.startswith("/") and "url.template" in wanted:
        attributes.append(("url.template", route))
    if server.address:
        attributes.append(("server.address", server.address))
        if server.cut:
            cut.append("server.address")
    if server.port is not None:
        attributes.append(("server.port", server.port))
    network(head, settings, attributes, ints, cut)
    if head.user_agent and (head.server or "user_agent.original" in wanted):
        attributes.append(("user_agent.original", _agent(head.user_agent)))
        if head.cut(Slot.USER_AGENT):
            cut.append("user_agent.original")

    if head.status:
        attributes.append(("http.response.status_code", head.status))
    failed, message, error_type = _outcome(head)
    if error_type:
        attributes.append(("error.type", error_type))
    attributes.append(("wirespan.protocol", head.protocol))
    incomplete = incomplete_of(head)
    if incomplete:
        attributes.append(("wirespan.incomplete", incomplete))
    if cut:
        attributes.append(("wirespan.truncated", ",".join(cut)))

    ints += [IntColumn(key, key) for key in (REQUEST_BODY, RESPONSE_BODY, THREAD) if key in wanted]
    ints.append(IntColumn(FIRST_BYTE, FIRST_BYTE))
    word = method if known else "HTTP"
    return Shape(
        resource=resource,
        name=f"{word} {route}" if route else word,
        kind=KIND_SERVER if head.server else KIND_CLIENT,
        status=STATUS_ERROR if failed else STATUS_UNSET,
        status_message=message,
        attributes=tuple(attributes),
        ints=tuple(ints),
        texts=tuple(texts),
    )


_METHODS = {method.value: method.name for method in Method if method != Method.OTHER}


def _outcome(head: Head) -> tuple[bool, str, str]:
    """Return whether the span is an error, its status message and `error.type`."""
    failure = failure_of(head)
    if failure:
        return True, failure.message, failure.error_type
    first_error = 500 if head.server else 400
    if head.status >= first_error or 0 < head.status < 100:
        # No message: it would only repeat the status code.
        return True, "", str(head.status)
    return False, "", ""


def failure_of(head: Head) -> Outcome | None:
    """Return how the exchange came to its end if not by a whole response."""
    if head.failure:
        return head.failure
    return FAILURES.get((Role.SERVER if head.server else Role.CLIENT, head.end))


def incomplete_of(head: Head) -> str:
    """Return `wirespan.incomplete`, "" for nothing."""
    if head.end != End.GAP:
        return head.incomplete
    return f"gap,{head.incomplete}" if head.incomplete else "gap"


def _server_url(
    target: TargetClass,
    settings: Settings,
    attributes: list[tuple[str, AttributeValue]],
    texts: list[TextColumn],
    cut: list[str],
) -> None:
    if target.form == "authority":
        attributes.append((URL_PATH, ""))
        return
    texts.append(TextColumn(URL_PATH, "", URL_PATH))
    if settings.query != "drop":
        texts.append(TextColumn(URL_QUERY, "", URL_QUERY))
    if target.cut:
        cut.append(URL_PATH if target.cut == "path" else URL_QUERY)


def _client_url(
    target: TargetClass,
    server: Server,
    settings: Settings,
    attributes: list[tuple[str, AttributeValue]],
    texts: list[TextColumn],
    cut: list[str],
) -> None:
    scheme = server.scheme
    credentials = f"{REDACTED}:{REDACTED}@" if target.credentials else ""
    prefix = f"{scheme}://{credentials}{server.authority}"
    if target.form in ("authority", "asterisk"):
        # Their path and query are empty, RFC 9112 section 3.3.
        attributes.append((URL_FULL, prefix))
    elif target.form == "other":
        return  # behind the host it would be part of its name
    else:
        texts.append(TextColumn(URL_FULL, prefix, URL_FULL))
    if target.cut:
        cut.append(URL_FULL)


def server_of(head: Head, target: TargetClass | None) -> Server:
    """Name the server and the scheme it was asked for by."""
    authority = target.authority if target else ""
    scheme = (target.scheme if target else "") or "http"
    if head.server and head.forwarded_proto and not head.cut(Slot.FORWARDED_PROTO):
        # Of several proxies the first one saw the original request.
        first = head.forwarded_proto.partition(",")[0].strip()
        if _SCHEME.fullmatch(first):
            scheme = first.lower()
    half = not authority and head.cut(Slot.HOST)
    named = authority or head.host.rpartition("@")[2].strip()
    # Anything else may be a password, with what followed it missing or taken for another part.
    if _AUTHORITY.fullmatch(named):
        address, port = _host_port(named)
        if half:
            named, port = address, None
        elif port is None and head.family != Family.UNIX:
            port = _DEFAULT_PORTS.get(scheme)
        return Server(address, port, scheme, named, half)
    if head.family == Family.UNIX:
        # No URL scheme says "HTTP over this socket"; this one is what clients have agreed on.
        url_scheme = scheme if head.server else "http+unix"
        half = head.cut(Slot.UNIX_PATH)
        return Server(head.unix_path, None, url_scheme, quote(head.unix_path, safe=""), half)
    address = address_of(head.family, head.local_address if head.server else head.remote_address)
    authority = f"[{address}]" if ":" in address else address
    if head.server_port != _DEFAULT_PORTS.get(scheme):
        authority += f":{head.server_port}"
    return Server(address, head.server_port if address else None, scheme, authority, False)


def network(
    head: Head,
    settings: Settings,
    attributes: list[tuple[str, AttributeValue]],
    ints: list[IntColumn],
    cut: list[str],
) -> None:
    """Add client.* and network.*."""
    wanted = settings.opt_in
    unix = head.family == Family.UNIX
    if unix:
        # A client's socket has no name; the path is the server's end.
        peer = "" if head.server else head.unix_path
        local = head.unix_path if head.server else ""
        if head.cut(Slot.UNIX_PATH) and peer:
            cut.append("network.peer.address")
    else:
        peer = address_of(head.family, head.remote_address)
        local = address_of(head.family, head.local_address)

    if head.server:
        client, client_port = _forwarded_for(head)
        if client:
            attributes.append(("client.address", client))
            if "," not in head.forwarded_for and head.cut(Slot.FORWARDED_FOR):
                cut.append("client.address")
            if client_port is not None and "client.port" in wanted:
                attributes.append(("client.port", client_port))
        elif peer:
            attributes.append(("client.address", peer))
            if not unix and "client.port" in wanted:
                ints.append(IntColumn("client.port", PEER_PORT))
    if peer:
        attributes.append(("network.peer.address", peer))
        if not unix and head.server:
            ints.append(IntColumn("network.peer.port", PEER_PORT))
        elif not unix:
            attributes.append(("network.peer.port", head.server_port))
    if local and "network.local.address" in wanted:
        attributes.append(("network.local.address", local))
    if local and not unix and "network.local.port" in wanted:
        ints.append(IntColumn("network.local.port", LOCAL_PORT))
    attributes += transport_of(unix, peer, wanted)
    if head.version:
        major, minor = divmod(head.version, 10)
        # As ALPN has it: HTTP/2 is without a minor version.
        version = str(major) if head.version == _HTTP2 else f"{major}.{minor}"
        attributes.append(("network.protocol.version", version))


def _forwarded_for(head: Head) -> tuple[str, int | None]:
    """Return the client that the first proxy saw, and its port if the header has it.

    "" for what is no address: anything may stand there.
    """
    first = head.forwarded_for.partition(",")[0].strip()
    several = first.count(":") > 1 and not first.startswith("[")
    address, port = (first, None) if several else _host_port(first)
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return "", None
    return address, port


def _agent(text: str) -> str:
    """Return a user agent without credentials and queries of URLs in it."""
    text = _AGENT_USERINFO.sub(f"{REDACTED}:{REDACTED}@", text)
    return _AGENT_QUERY.sub(rf"\1?{REDACTED}", text)


def _host_port(text: str) -> tuple[str, int | None]:
    """Split `host[:port]`; an IPv6 address loses its brackets, what is malformed stays whole."""
    match = _HOST_PORT.fullmatch(text)
    if not match or not match[3]:
        return (match[1] or match[2] if match else text), None
    port = int(match[3])
    return (match[1] or match[2], port) if port < 1 << 16 else (text, None)


def text_of(raw: bytes) -> str:
    """Decode a header field's value."""
    return raw.decode("utf-8", "replace")


def unix_path_of(raw: bytes) -> str:
    """Decode a socket's path; a name in the abstract namespace begins with `@`, as in ss(8)."""
    named = raw.rstrip(b"\0")
    return text_of(b"@" + named[1:] if named.startswith(b"\0") else named)
